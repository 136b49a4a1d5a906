"""Log-probabilities of selections against brute force."""

from __future__ import annotations

import math
from itertools import permutations, product

import pytest
import torch

from dllm_rl.diffusion.ledger import (
    Bar,
    below,
    coins_logp,
    forced_coins_logp,
    gaussian_logp,
    losing_logp,
    lower,
    plackett_luce_logp,
    uniform_subset_logp,
    weakest_chosen,
    where,
)


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


LOGITS = torch.tensor([[0.3, -1.0, 0.7, 5.0], [-0.4, 9.0, -0.4, 1.1], [2.0, 0.1, 0.2, -3.0]], dtype=torch.float64)
ELIGIBLE = torch.tensor([[True, True, True, False], [True, False, True, True], [True, True, True, True]])


def subsets(row: int) -> list[tuple[bool, ...]]:
    allowed = [(False, True) if possible else (False,) for possible in ELIGIBLE[row].tolist()]
    return list(product(*allowed))


def with_others(row: int, chosen: tuple[bool, ...]) -> torch.Tensor:
    """A batch in which `row` chose this and the others chose something of their own."""
    rows = ELIGIBLE.clone()
    rows[row] = torch.tensor(chosen)
    return rows


@pytest.mark.parametrize("row", range(3))
def test_coins_and_forced_coins_are_laws_in_every_row_of_a_batch(row):
    p = LOGITS[row].sigmoid().tolist()
    places = [i for i, possible in enumerate(ELIGIBLE[row].tolist()) if possible]
    plain = {s: math.prod(p[i] if s[i] else 1 - p[i] for i in places) for s in subsets(row)}
    likeliest = max(places, key=lambda i: (p[i], -i))
    forced = {s: chance for s, chance in plain.items() if any(s)}
    forced[tuple(i == likeliest for i in range(4))] += plain[(False,) * 4]
    assert sum(plain.values()) == pytest.approx(1.0) and sum(forced.values()) == pytest.approx(1.0)
    heads, tails = LOGITS.sigmoid().log(), (-LOGITS).sigmoid().log()
    for chosen, chance in plain.items():
        found = coins_logp(heads, tails, with_others(row, chosen), ELIGIBLE)[row].exp()
        assert float(found) == pytest.approx(chance, abs=1e-14)
    for chosen, chance in forced.items():
        found = forced_coins_logp(LOGITS, with_others(row, chosen), ELIGIBLE)[row].exp()
        assert float(found) == pytest.approx(chance, abs=1e-14)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_plackett_luce_is_drawing_one_after_the_other_whatever_stands_in_ranks_not_chosen(count):
    weights = LOGITS.exp()
    for row in range(3):
        places = [i for i, possible in enumerate(ELIGIBLE[row].tolist()) if possible]
        total = 0.0
        for order in permutations(places, count):
            chance, left = 1.0, set(places)
            for place in order:
                chance *= float(weights[row, place]) / sum(float(weights[row, i]) for i in left)
                left.remove(place)
            total += chance
            chosen = ELIGIBLE.clone()
            chosen[row] = False
            rank = torch.arange(4).expand(3, 4).clone()
            rank[row] = torch.tensor([-3, 0, 7, 1])  # read where chosen only
            for turn, place in enumerate(order):
                chosen[row, place], rank[row, place] = True, turn
            found = plackett_luce_logp(LOGITS, rank, chosen, ELIGIBLE)[row].exp()
            assert float(found) == pytest.approx(chance, abs=1e-14)
        assert total == pytest.approx(1.0)


def stays_below(score: float, index: int, level: float, place: int) -> bool:
    return score < level or (score == level and index > place)


def test_the_lower_of_two_bars_is_stayed_below_when_both_are():
    cases = list(product([0.0, 1.0], [-1, 0, 2], repeat=2))
    a, b = (
        Bar(torch.tensor([[case[i] for case in cases]]), torch.tensor([[case[i + 1] for case in cases]]))
        for i in (0, 2)
    )
    both = lower(a, b)
    for column, (level_a, place_a, level_b, place_b) in enumerate(cases):
        for score, index in product([-0.5, 0.0, 0.5, 1.0, 1.5], range(4)):
            expected = stays_below(score, index, level_a, place_a) and stays_below(score, index, level_b, place_b)
            level, place = float(both.level[0, column]), int(both.place[0, column])
            assert stays_below(score, index, level, place) == expected


def test_a_bar_that_takes_its_own_level_is_stayed_below_by_less_only():
    bar = below(torch.tensor([[0.5, 0.5, 0.5]]))
    assert [stays_below(0.5, i, float(bar.level[0, i]), int(bar.place[0, i])) for i in range(3)] == [False] * 3
    assert [stays_below(0.4, i, float(bar.level[0, i]), int(bar.place[0, i])) for i in range(3)] == [True] * 3


def test_bars_are_chosen_place_by_place():
    a, b = below(torch.tensor([[1.0, 2.0]])), Bar(torch.tensor([[3.0, 4.0]]), torch.tensor([[0, 1]]))
    mixed = where(torch.tensor([[True, False]]), a, b)
    assert mixed.level.tolist() == [[1.0, 4.0]] and mixed.place.tolist() == [[2, 1]]


def test_actions_have_the_density_of_a_normal_law_around_their_means():
    action = torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=torch.float64)
    mean = torch.tensor([[0.0, -1.5], [2.0, 1.0]], dtype=torch.float64)
    expected = torch.distributions.Normal(mean, 0.3).log_prob(action).sum(-1)
    torch.testing.assert_close(gaussian_logp(action, mean, 0.3), expected)


@pytest.mark.parametrize("sigma", [0.0, -0.3, math.nan])
def test_actions_that_were_not_drawn_have_no_density(sigma: float):
    with pytest.raises(ValueError, match="actions that were not drawn have no density"):
        gaussian_logp(torch.zeros(1, 2), torch.zeros(1, 2), sigma)
