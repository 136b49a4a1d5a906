"""Corruptors are unbiased, by enumeration of every draw."""

from __future__ import annotations

import pytest
import torch

from dllm_rl.diffusion.corruption import (
    AntitheticLevels,
    Balanced,
    Bernoulli,
    Complementary,
    Corruptor,
    FixedCount,
)
from tests.diffusion.drawing import (
    MASK,
    by_set,
    completion_only,
    deal,
    elbo_coefficients,
    every_draw,
    keys,
)


@pytest.mark.parametrize("corruptor", [FixedCount(), Balanced()], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_fixed_counts_weigh_every_hidden_set_as_the_elbo_does(
    monkeypatch: pytest.MonkeyPatch, corruptor: Corruptor, n: int, draws: int
) -> None:
    levels, noise = every_draw(n, n * draws, draws)
    deal(monkeypatch, levels, noise)
    views = corruptor.views(completion_only(n, len(levels)), draws, keys(len(levels)), MASK)
    assert by_set(views) == pytest.approx(elbo_coefficients(n), rel=1e-12)


@pytest.mark.parametrize("corruptor", [AntitheticLevels(), Complementary()], ids=repr)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_pairs_weigh_every_hidden_set_as_the_elbo_does(
    monkeypatch: pytest.MonkeyPatch, corruptor: Corruptor, n: int, pairs: int
) -> None:
    levels, noise = every_draw(n, n * pairs, 2 * pairs)
    deal(monkeypatch, levels, noise)
    views = corruptor.views(completion_only(n, len(levels)), 2 * pairs, keys(len(levels)), MASK)
    seen = by_set(views)
    seen.pop((), None)
    assert seen == pytest.approx(elbo_coefficients(n), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_each_balanced_draw_is_unbiased_alone(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    levels, noise = every_draw(n, 3 * n, 3)
    deal(monkeypatch, levels, noise)
    views = Balanced().views(completion_only(n, len(levels)), 3, keys(len(levels)), MASK)
    for draw in range(3):
        assert by_set(views.select(torch.arange(draw, len(views), 3))) == pytest.approx(elbo_coefficients(n), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_antithetic_draws_are_unbiased_one_by_one(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    levels, noise = every_draw(n, n, 2)
    deal(monkeypatch, levels, noise)
    views = AntitheticLevels().views(completion_only(n, len(levels)), 2, keys(len(levels)), MASK)
    for side in (0, 1):
        half = views.select(torch.arange(side, len(views), 2))
        assert by_set(half) == pytest.approx(elbo_coefficients(n), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_bernoulli_draw_hides_what_lies_below_its_level(
    monkeypatch: pytest.MonkeyPatch, n: int, floor: float
) -> None:
    levels = torch.tensor([[0.05], [0.5], [0.95]], dtype=torch.float64)
    noise = torch.linspace(0.02, 0.98, n, dtype=torch.float64).expand(3, 1, n)
    deal(monkeypatch, levels, noise)
    views = Bernoulli(floor=floor).views(completion_only(n, 3), 1, keys(3), MASK)
    t = floor + (1 - floor) * levels
    assert torch.equal(views.scored, noise[:, 0] < t)
    assert torch.allclose(views.weight, (noise[:, 0] < t) / t, rtol=1e-15)


def test_bernoulli_levels_are_independent_and_cover_floor_to_one() -> None:
    # The weight of a hidden position is 1 / t, which tells the level; with 60 tokens nearly every view has one.
    views = Bernoulli(floor=0.25).views(completion_only(60, 500), 8, keys(500), MASK)
    t = 1.0 / views.weight.amax(-1)
    assert t.isfinite().all()
    assert 0.25 < t.min() < 0.251
    assert 0.999 < t.max() < 1.0
    ordered = ((t - 0.25) / 0.75).sort().values
    steps = torch.arange(1, 4001, dtype=torch.float64) / 4000
    assert float((ordered - steps).abs().max()) * 4000**0.5 < 1.63  # Kolmogorov-Smirnov, 1%
    correlation = torch.corrcoef(t.view(500, 8).T)
    assert float((correlation - torch.eye(8, dtype=torch.float64)).abs().max()) < 0.16  # 3.6 / sqrt(500)


def test_a_bernoulli_draw_may_hide_nothing_and_is_worth_zero() -> None:
    views = Bernoulli().views(completion_only(1, 1000), 1, keys(1000), MASK)
    empty = ~views.scored.any(-1)
    assert 400 < int(empty.sum()) < 600  # P(empty) = E(1 - t) = 1/2; 6 sd = 95
    assert (views.weight[empty] == 0).all()


@pytest.mark.parametrize("floor", [-0.1, 1.0, 2.0])
def test_a_floor_that_is_no_level_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor is"):
        Bernoulli(floor=floor)
