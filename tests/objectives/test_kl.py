from __future__ import annotations

import math

import pytest
import torch

from dllm_rl.objectives.kl import kl

ESTIMATORS = ["k1", "k2", "k3"]


@pytest.mark.parametrize("difference", [0.0, 0.3, -1.7, 4.0])
def test_values_by_hand(difference: float) -> None:
    policy, reference = torch.tensor([[-2.0]], dtype=torch.float64), torch.tensor([[-2.0 - difference]]).double()
    d = float(policy - reference)
    assert kl(policy, reference, "k1").item() == pytest.approx(d, abs=1e-12)
    assert kl(policy, reference, "k2").item() == pytest.approx(d**2 / 2, abs=1e-12)
    assert kl(policy, reference, "k3").item() == pytest.approx(math.exp(-d) - 1 + d, abs=1e-12)


def test_k3_is_the_formula_of_grpo() -> None:
    policy, reference = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).double().unbind(0)
    theirs = torch.exp(reference - policy) - (reference - policy) - 1
    assert torch.allclose(kl(policy, reference, "k3"), theirs, atol=1e-12)


def test_k3_keeps_its_digits_near_zero() -> None:
    """Subtracting 1 from an exponential near 1 would leave nothing of 5e-11 in float32."""
    value = kl(torch.tensor([-1e-5]), torch.tensor([0.0]), "k3").item()
    assert value >= 0
    assert abs(value - 5e-11) < 1e-11


def distributions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits, other = torch.randn(2, 7, generator=generator, dtype=torch.float64).unbind(0)
    return logits.requires_grad_(), other.log_softmax(0)


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_expected_values(estimator: str, unbiased: bool) -> None:
    logits, reference = distributions()
    logp = logits.log_softmax(0).detach()
    exact = float((logp.exp() * (logp - reference)).sum())
    mean = float((logp.exp() * kl(logp, reference, estimator)).sum())
    assert (mean == pytest.approx(exact, abs=1e-12)) is unbiased
    assert mean > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_expected_gradients_are_those_documented(estimator: str) -> None:
    logits, reference = distributions()
    logp = logits.log_softmax(0)
    weight = logp.detach().exp()
    (seen,) = torch.autograd.grad((weight * kl(logp, reference, estimator)).sum(), logits, retain_graph=True)
    objective = {
        "k1": 0.0 * logits.sum(),
        "k2": (logp.exp() * (logp - reference)).sum(),
        "k3": (reference.exp() * (reference - logp)).sum(),
    }[estimator]
    (expected,) = torch.autograd.grad(objective, logits)
    assert torch.allclose(seen, expected, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_reference_gets_no_gradient(estimator: str) -> None:
    policy, reference = torch.tensor([-1.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    kl(policy, reference, estimator).sum().backward()
    assert policy.grad is not None
    assert reference.grad is None


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_models_are_at_distance_zero(estimator: str) -> None:
    logp = torch.tensor([[-0.3, -7.0]])
    assert kl(logp, logp, estimator).tolist() == [[0.0, 0.0]]


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="'k4'"):
        kl(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]
