"""The expectation of the policy-gradient estimators, enumerated, against autograd of the enumerated objective."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from dllm_rl.diffusion.corruption import FullyHidden
from dllm_rl.diffusion.likelihood import score_views
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.objectives import clipped_surrogate, group_advantages, reinforce
from dllm_rl.rng import sample_keys
from tests.diffusion.tabular import Tabular

LENGTH = 2


class OneStep:
    """All completions of two tokens after the prompt [1], with the log-probability of drawing them in one step."""

    def __init__(self) -> None:
        self.model = Tabular()
        self.table = self.model.tables[1 + LENGTH].requires_grad_()
        texts = [list(text) for text in product(range(self.model.size), repeat=LENGTH)]
        sequences = sequences_from_ids([[1]] * len(texts), texts, 0)
        views = FullyHidden(prompt_noise=0.0).views(sequences, 1, sample_keys(0, torch.arange(len(texts))), 3)
        self.logp = score_views(self.model, sequences, views, views_per_forward=64).logp
        self.scored = views.scored
        self.reward = torch.tensor([float(sum(text) % 4 + 2 * (text[0] == text[1])) for text in texts]).double()
        self.probability = self.logp.sum(1).exp()

    def gradient(self, objective: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(objective, self.table, retain_graph=True)
        return gradient


def test_the_completions_are_all_there() -> None:
    assert float(OneStep().probability.detach().sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("estimator", ["reinforce", "clipped"])
def test_one_sample_is_unbiased(estimator: str) -> None:
    toy = OneStep()
    expected = toy.gradient((toy.probability * toy.reward).sum())
    if estimator == "reinforce":
        surrogate = reinforce(toy.logp, toy.reward, toy.scored)
    else:
        old = toy.logp.detach()
        surrogate = clipped_surrogate(toy.logp, old, toy.reward, toy.scored, clip_low=0.2, clip_high=0.2)
    seen = toy.gradient((toy.probability.detach() * surrogate.sum(1)).sum())
    assert float(expected.norm()) > 0.1
    assert torch.allclose(seen, expected, atol=1e-12)


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("mean", 0.5)])
def test_a_group_of_two_is_unbiased_up_to_the_factor_of_its_baseline(baseline: str, share: float) -> None:
    toy = OneStep()
    count = len(toy.reward)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    advantage = group_advantages(toy.reward[pairs], baseline=baseline)
    weight = toy.probability.detach()[pairs].prod(1)
    surrogate = reinforce(toy.logp[pairs.flatten()], advantage.flatten(), toy.scored[pairs.flatten()])
    per_group = surrogate.sum(1).view(-1, 2).mean(1)
    expected = share * toy.gradient((toy.probability * toy.reward).sum())
    assert torch.allclose(toy.gradient((weight * per_group).sum()), expected, atol=1e-12)
