from __future__ import annotations

import math

import pytest
import torch

from dllm_rl.objectives import dpo_loss


@pytest.mark.parametrize("beta", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("policy", "reference"), [(0.0, 0.0), (3.0, 1.0), (-4.0, 2.5), (30.0, -10.0)])
def test_values_and_gradients_by_hand(beta: float, policy: float, reference: float) -> None:
    margin = torch.tensor([policy], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(margin, torch.tensor([reference], dtype=torch.float64), beta=beta)
    score = beta * (policy - reference)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-score)), rel=1e-12)
    loss.sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(-beta / (1 + math.exp(score)), rel=1e-12)


def test_the_mathematics_of_trl() -> None:
    """TRL's DPOTrainer, loss type sigmoid without label smoothing, transcribed on its four log-probabilities."""
    chosen, rejected, reference_chosen, reference_rejected = torch.randn(4, 9, dtype=torch.float64) * 20
    chosen_logratios, rejected_logratios = chosen - reference_chosen, rejected - reference_rejected
    theirs = -torch.nn.functional.logsigmoid(0.1 * (chosen_logratios - rejected_logratios))
    ours = dpo_loss(chosen - rejected, reference_chosen - reference_rejected, beta=0.1)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_equal_margins_cost_log_two_exactly() -> None:
    margin = torch.tensor([0.0, -123.4, 9e4], dtype=torch.float64)
    assert dpo_loss(margin, margin, beta=0.3).tolist() == [math.log(2)] * 3


def test_huge_margins_stay_finite_in_value_and_gradient() -> None:
    margin = torch.tensor([1e5, -1e5], requires_grad=True)
    loss = dpo_loss(margin, torch.zeros(2), beta=1.0)
    assert loss.tolist() == [0.0, 1e5]
    loss.sum().backward()
    assert margin.grad is not None
    assert margin.grad.tolist() == [0.0, -1.0]
