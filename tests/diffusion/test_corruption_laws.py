"""The laws of what corruptors draw, by fixed keys."""

from __future__ import annotations

import math

import pytest
import torch

from dllm_rl.diffusion.corruption import (
    AntitheticLevels,
    Balanced,
    Complementary,
    Corruptor,
    FixedCount,
)
from tests.diffusion.drawing import (
    MASK,
    completion_only,
    deal,
    keys,
)

COUNTED: list[Corruptor] = [FixedCount(), FixedCount(stratified=False), AntitheticLevels(), Balanced()]


@pytest.mark.parametrize("corruptor", COUNTED, ids=repr)
@pytest.mark.parametrize("draw", [0, 1, 2, 3])
def test_every_hidden_set_appears_as_often_as_it_should_in_each_draw(corruptor: Corruptor, draw: int) -> None:
    rows, n = 9000, 3
    views = corruptor.views(completion_only(n, rows), 4, keys(rows, seed=draw), MASK)
    hidden = views.scored.view(rows, 4, n)[:, draw]
    count = hidden.sum(-1)
    assert torch.equal(views.weight.view(rows, 4, n)[:, draw].amax(-1), n / count.double())
    code = (hidden * torch.tensor([1, 2, 4])).sum(-1)
    seen = torch.bincount(code, minlength=8)[1:].double()
    size = torch.tensor([1, 1, 2, 1, 2, 2, 3])
    expected = rows / (n * torch.tensor([math.comb(n, s) for s in size.tolist()], dtype=torch.float64))
    assert float(((seen - expected) ** 2 / expected).sum()) < 22.5  # 6 degrees of freedom, upper 0.1%


def test_hidden_sets_of_different_draws_are_independent() -> None:
    rows = 8000
    views = FixedCount().views(completion_only(6, rows), 2, keys(rows), MASK)
    rank = views.scored.view(rows, 2, 6).double()
    centred = rank - rank.mean(-1, keepdim=True)  # removes what the count alone says
    correlation = (centred[:, 0] * centred[:, 1]).sum(-1).mean() / centred.square().sum(-1).mean()
    assert abs(float(correlation)) < 4 / (5 * rows) ** 0.5


@pytest.mark.parametrize("draws", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_stratified_counts_are_uniform_and_evenly_spread(monkeypatch: pytest.MonkeyPatch, n: int, draws: int) -> None:
    cells = n * draws
    levels = ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells)[:, None]
    deal(monkeypatch, levels, torch.zeros(cells, draws, n, dtype=torch.float64))
    views = FixedCount().views(completion_only(n, cells), draws, keys(cells), MASK)
    count = views.scored.sum(-1).view(cells, draws)
    for draw in range(draws):
        assert torch.bincount(count[:, draw], minlength=n + 1).tolist() == [0] + [draws] * n
    for row in count:
        per_count = torch.bincount(row, minlength=n + 1)[1:]
        assert per_count.max() - per_count.min() <= (1 if draws % n == 0 or n % draws == 0 else 2)
        assert abs(float(row.double().mean()) - (n + 1) / 2) <= n / (2 * draws) + 0.5


def test_the_levels_of_a_row_rise_from_its_shift_and_wrap_around(monkeypatch: pytest.MonkeyPatch) -> None:
    shifts, noise = torch.tensor([[0.305], [0.905]], dtype=torch.float64), torch.zeros(2, 4, 100, dtype=torch.float64)
    deal(monkeypatch, shifts, noise)
    views = FixedCount().views(completion_only(100, 2), 4, keys(2), MASK)
    assert views.scored.sum(-1).view(2, 4).tolist() == [[31, 56, 81, 6], [91, 16, 41, 66]]


def test_independent_counts_are_not_stratified() -> None:
    views = FixedCount(stratified=False).views(completion_only(10, 400), 10, keys(400), MASK)
    count = views.scored.sum(-1).view(400, 10)
    stratified = FixedCount().views(completion_only(10, 400), 10, keys(400), MASK).scored.sum(-1).view(400, 10)
    assert all(sorted(row.tolist()) == list(range(1, 11)) for row in stratified)
    # The variance of a mean of ten independent uniform counts on 1..10 is (100 - 1) / 12 / 10.
    assert float(count.double().mean(-1).var()) == pytest.approx(0.825, rel=0.3)


def test_the_largest_level_hides_everything_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    top = torch.full((1, 1), 1.0 - 2.0**-53, dtype=torch.float64)
    for n in (1, 2, 3, 5, 7, 64, 100, 1000):
        deal(monkeypatch, top, torch.zeros(1, 1, n, dtype=torch.float64))
        assert int(FixedCount().views(completion_only(n), 1, keys(1), MASK).scored.sum()) == n


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_antithetic_counts_mirror_each_other(n: int) -> None:
    views = AntitheticLevels().views(completion_only(n, 200), 6, keys(200), MASK)
    first, second = views.scored.sum(-1).view(200, 3, 2).unbind(-1)
    assert torch.equal(first + second, torch.full_like(first, n + 1))
    assert set(first.flatten().tolist()) == set(range(1, n + 1))
    assert torch.allclose(views.weight.sum(-1), torch.tensor(float(n)).double())  # l tokens of weight n / l


def test_antithetic_hidden_sets_are_drawn_apart() -> None:
    views = AntitheticLevels().views(completion_only(9, 300), 2, keys(300), MASK)
    first, second = views.scored.view(300, 2, 9).unbind(1)
    middle = first.sum(-1) == 5
    assert int(middle.sum()) > 10
    assert not torch.equal(first[middle], second[middle])
    assert not torch.equal(first[middle], ~second[middle])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_complementary_pair_scores_every_token_once(n: int) -> None:
    views = Complementary().views(completion_only(n, 300), 4, keys(300), MASK)
    first, second = views.scored.view(300, 2, 2, n).unbind(2)
    assert torch.equal(first, ~second)
    count = first.sum(-1)
    assert set(count.flatten().tolist()) == set(range(1, n + 1))
    weight = views.weight.view(300, 2, 2, n)
    full = count == n
    assert (weight[:, :, 0][full] == 2.0).all()
    assert (weight[:, :, 1][full] == 0.0).all()
    assert torch.allclose(weight[:, :, 0].amax(-1)[~full] * count[~full], torch.tensor(n).double())
    assert torch.allclose(weight[:, :, 1].amax(-1)[~full] * (n - count)[~full], torch.tensor(n).double())


@pytest.mark.parametrize("corruptor", [AntitheticLevels(), Complementary()], ids=repr)
def test_the_levels_of_pairs_are_stratified(corruptor: Corruptor) -> None:
    views = corruptor.views(completion_only(6, 100), 12, keys(100), MASK)
    first = views.scored.sum(-1).view(100, 6, 2)[:, :, 0]
    assert all(sorted(row.tolist()) == [1, 2, 3, 4, 5, 6] for row in first)


def test_balanced_draws_hide_first_what_was_hidden_least_from_the_smallest_count_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Levels 0.5, 0.75, 0, 0.25 of eight tokens are counts 5, 7, 1, 3, each with noise of its own."""
    noise = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1], [2, 1, 3, 4, 5, 6, 7, 8], [9] * 8]) / 10.0
    noise[3, 1::2] = 0.1
    deal(monkeypatch, torch.tensor([[0.5]], dtype=torch.float64), noise[None].double())
    hidden = Balanced().views(completion_only(8), 4, keys(1), MASK).scored
    places = [view.nonzero()[:, 0].tolist() for view in hidden]
    # Token 1; of the others 3, 5, 7; the four that are left and token 1, the first of all by noise; the other seven.
    assert places == [[0, 1, 2, 4, 6], [0, 2, 3, 4, 5, 6, 7], [1], [3, 5, 7]]


@pytest.mark.parametrize("n", [1, 5, 7])
def test_no_token_is_hidden_twice_more_than_another(n: int) -> None:
    hidden = Balanced().views(completion_only(n, 200), 8, keys(200), MASK).scored.view(200, 8, n)
    often = hidden.sum(1)
    assert int((often.amax(-1) - often.amin(-1)).max()) <= 1
    stratified = FixedCount().views(completion_only(n, 200), 8, keys(200), MASK).scored.view(200, 8, n)
    assert torch.equal(hidden.sum(-1), stratified.sum(-1))


def test_sets_do_not_repeat_round_after_round() -> None:
    """Sixteen draws of ten tokens: two that hide the same five are no more likely than by chance."""
    hidden = Balanced().views(completion_only(10, 400), 16, keys(400), MASK).scored.view(400, 16, 10)
    same = [
        torch.equal(row[i], row[j])
        for row in hidden
        for i in range(16)
        for j in range(i)
        if row[i].sum() == row[j].sum() == 5
    ]
    assert len(same) > 200
    assert sum(same) / len(same) < 0.02
