"""Log-probabilities of selections against brute force."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from dllm_rl.diffusion.ledger import losing_logp, uniform_subset_logp, weakest_chosen


def test_a_uniform_subset_has_probability_one_over_their_number():
    n = torch.tensor([5, 5, 7, 1, 4])
    k = torch.tensor([2, 5, 1, 1, 0])
    expected = [-math.log(math.comb(a, b)) for a, b in zip(n.tolist(), k.tolist(), strict=True)]
    torch.testing.assert_close(uniform_subset_logp(n, k), torch.tensor(expected, dtype=torch.float64))


def test_the_weakest_chosen_is_the_last_of_the_lowest():
    score = torch.tensor([[3.0, 1.0, 1.0, 0.5], [2.0, 7.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    chosen = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])
    bar = weakest_chosen(score, chosen)
    assert bar.level[:, 0].tolist() == [1.0, 2.0, math.inf]
    assert bar.place[:, 0].tolist() == [2, 0, -1]
    assert bar.level.shape == bar.place.shape == (3, 4)


def step_law(logq: torch.Tensor, score: torch.Tensor, count: int) -> dict[tuple, float]:
    """By brute force over all draws: probability that exactly these (position, token) pairs win."""
    law: dict[tuple, float] = {}
    for drawn in product(range(logq.shape[1]), repeat=logq.shape[0]):
        best = sorted(range(len(drawn)), key=lambda i: (-float(score[i, drawn[i]]), i))[:count]
        key = tuple((i, drawn[i]) for i in sorted(best))
        law[key] = law.get(key, 0.0) + math.exp(sum(float(logq[i, v]) for i, v in enumerate(drawn)))
    return law


def ledger_logp(logq: torch.Tensor, score: torch.Tensor, outcome: tuple) -> torch.Tensor:
    positions, tokens = (torch.tensor(part) for part in zip(*outcome, strict=True))
    index = torch.arange(len(logq))
    chosen = torch.zeros(len(logq), dtype=torch.bool)
    chosen[positions] = True
    drawn_score = torch.zeros(len(logq), dtype=score.dtype)
    drawn_score[positions] = score[positions, tokens]
    bar = weakest_chosen(drawn_score[None], chosen[None])
    losing = losing_logp(logq[~chosen], score[~chosen], bar.level[0, ~chosen], bar.place[0, ~chosen], index[~chosen])
    return logq[positions, tokens].sum() + losing.sum()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("scores", ["smooth", "tied", "with minus infinity"])
def test_choosing_by_the_draw_has_the_probability_of_all_draws_that_lose(count, scores):
    generator = torch.Generator().manual_seed(count)
    logq = torch.randn(3, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    score = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    if scores == "tied":
        score = score.round()
    if scores == "with minus infinity":
        score[:, 1] = float("-inf")
    law = step_law(logq, score, count)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    for outcome, chance in law.items():
        assert float(ledger_logp(logq, score, outcome).exp()) == pytest.approx(chance, abs=1e-14)


def test_the_gradient_flows_through_the_log_probabilities():
    """The expected score function is zero exactly when the ledger holds every term of the step's probability."""
    raw = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    logq = raw.log_softmax(-1)
    score = (raw.detach() / 0.7).log_softmax(-1)
    total = torch.zeros_like(raw)
    for outcome, chance in step_law(logq.detach(), score, 2).items():
        (gradient,) = torch.autograd.grad(ledger_logp(logq, score, outcome), raw, retain_graph=True)
        total += chance * gradient
    torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-12)
