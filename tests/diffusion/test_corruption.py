from __future__ import annotations

import math
import pickle
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor

from dllm_rl.diffusion import corruption
from dllm_rl.diffusion.corruption import (
    CORRUPTORS,
    AntitheticLevels,
    Balanced,
    Bernoulli,
    Complementary,
    Corruptor,
    FadingOut,
    FixedCount,
    FullyHidden,
)
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.diffusion.views import Sequences, Views
from dllm_rl.rng import sample_keys

MASK = 99
ALL_CORRUPTORS: list[Corruptor] = [
    FixedCount(),
    FixedCount(stratified=False),
    Bernoulli(),
    Bernoulli(floor=0.0),
    AntitheticLevels(),
    Complementary(),
    Balanced(),
    FadingOut(share=0.7),
    FullyHidden(),
]
HIDE_SCORED_ONLY = ALL_CORRUPTORS[:-1]
COUNTED: list[Corruptor] = [FixedCount(), FixedCount(stratified=False), AntitheticLevels(), Balanced()]


def keys(count: int, seed: int = 0) -> Tensor:
    return sample_keys(seed, torch.arange(count))


def completion_only(length: int, rows: int = 1) -> Sequences:
    return sequences_from_ids([[]] * rows, [list(range(1, length + 1))] * rows, 0)


def partly_scored() -> Sequences:
    """Two rows of prompt and completion with padding; the second row scores a middle part of its completion."""
    tokens = torch.tensor([[0, 11, 12, 21, 22, 23, 24, 25], [13, 14, 15, 31, 32, 33, 0, 0]])
    attend = tokens > 0
    completion = tokens > 20
    scored = torch.zeros_like(completion)
    scored[0, 3:8], scored[1, 4:6] = True, True
    return Sequences(tokens, attend, completion, scored)


def deal(monkeypatch: pytest.MonkeyPatch, levels: Tensor, noise: Tensor) -> None:
    """Replace what the keys would give by chosen numbers: levels [B, k], and noise [B, K, n] for the hidden sets."""

    def dealt(row_keys: Tensor, size: int) -> Tensor:
        return levels[:, :size] if row_keys.ndim == 1 else noise[:, : row_keys.shape[1], :size]

    monkeypatch.setattr(corruption, "uniform", dealt)


def every_draw(n: int, cells: int, draws: int) -> tuple[Tensor, Tensor]:
    """Each cell's midpoint level with each order of n positions: [n! cells, 1] levels and [.., draws, n] noise."""
    orders = torch.tensor(list(permutations(range(n))), dtype=torch.float64)
    noise = ((orders + 0.5) / n).repeat(cells, 1)[:, None].expand(-1, draws, -1)
    levels = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    return levels.repeat_interleave(len(orders))[:, None], noise


def by_set(views: Views) -> dict[tuple[int, ...], float]:
    """Average weight with which each hidden set is seen, over all views."""
    seen: dict[tuple[int, ...], float] = {}
    for scored, weight in zip(views.scored, views.weight, strict=True):
        hidden = tuple(scored.nonzero()[:, 0].tolist())
        seen[hidden] = seen.get(hidden, 0.0) + float(weight.max()) / len(views)
    return seen


def elbo_coefficients(n: int) -> dict[tuple[int, ...], float]:
    """ELBO = sum over non-empty sets U of sum_{i in U} log p(i | rest) / (|U| binomial(n, |U|))."""
    sets = [u for size in range(1, n + 1) for u in combinations(range(n), size)]
    return {u: 1.0 / (len(u) * math.comb(n, len(u))) for u in sets}


# --- what every corruptor promises -----------------------------------------------------------------------------------


@pytest.mark.parametrize("corruptor", ALL_CORRUPTORS, ids=repr)
def test_a_rows_views_depend_on_its_key_and_content_alone(corruptor: Corruptor) -> None:
    sequences, row_keys = partly_scored(), keys(2)
    together = corruptor.views(sequences, 4, row_keys, MASK)
    swapped = corruptor.views(sequences.select(torch.tensor([1, 0])), 4, row_keys.flip(0), MASK)
    for row in range(2):
        alone = corruptor.views(sequences.select(torch.tensor([row])), 4, row_keys[row : row + 1], MASK)
        for name in ("canvas", "scored", "weight"):
            mine = getattr(together, name)[4 * row : 4 * row + 4]
            assert torch.equal(getattr(alone, name), mine), name
            assert torch.equal(getattr(swapped, name)[4 * (1 - row) : 4 * (1 - row) + 4], mine), name


@pytest.mark.parametrize("corruptor", ALL_CORRUPTORS, ids=repr)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_moves_nothing(corruptor: Corruptor, side: str) -> None:
    plain = partly_scored()
    pad = (3, 0) if side == "left" else (0, 3)
    parts = (plain.tokens, plain.attend, plain.completion, plain.scored)
    wide = Sequences(*(torch.nn.functional.pad(part, pad) for part in parts))
    before, after = (corruptor.views(s, 4, keys(2), MASK) for s in (plain, wide))
    inner = slice(pad[0], pad[0] + plain.tokens.shape[1])
    assert torch.equal(after.canvas[:, inner], before.canvas)
    assert torch.equal(after.scored[:, inner], before.scored)
    assert torch.equal(after.weight[:, inner], before.weight)
    assert after.scored.sum() == before.scored.sum()


@pytest.mark.parametrize("corruptor", ALL_CORRUPTORS, ids=repr)
def test_a_positions_draw_is_the_same_with_another_prompt_length(corruptor: Corruptor) -> None:
    short, long = (sequences_from_ids([prompt], [[5, 6, 7, 8]], 0) for prompt in ([1], [1, 2, 3]))
    a, b = (corruptor.views(s, 4, keys(1), MASK) for s in (short, long))
    assert torch.equal(a.scored[:, 1:], b.scored[:, 3:])
    assert torch.equal(a.weight[:, 1:], b.weight[:, 3:])


@pytest.mark.parametrize("corruptor", ALL_CORRUPTORS, ids=repr)
def test_layout_dtypes_and_weights_off_the_scored_positions(corruptor: Corruptor) -> None:
    views = corruptor.views(partly_scored(), 4, keys(2), MASK)
    assert views.row.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert views.canvas.dtype == torch.int64
    assert views.weight.dtype == torch.float64
    assert (views.weight[views.scored] > 0).all()
    assert (views.weight[~views.scored] == 0).all()
    assert not (views.scored & ~partly_scored().scored[views.row]).any()


@pytest.mark.parametrize("corruptor", ALL_CORRUPTORS, ids=repr)
def test_different_keys_and_different_draws_differ(corruptor: Corruptor) -> None:
    sequences = sequences_from_ids([list(range(1, 41))] * 2, [list(range(1, 41))] * 2, 0)
    views = corruptor.views(sequences, 4, keys(2), MASK)
    assert len({tuple(canvas) for canvas in views.canvas.tolist()}) == 8


@pytest.mark.parametrize("share", [0.5, 0.7, 1.0])
def test_fading_out_hides_each_token_as_often_as_its_place_says(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fine grid of noise, each token's own: the released code's keep_i = 2 (1 - share) (1 - i / (n - 1))."""
    n, cells = 5, 1000
    noise = ((torch.arange(cells, dtype=torch.float64) + 0.5) / cells)[:, None, None].expand(-1, 1, n)
    deal(monkeypatch, torch.zeros(cells, 1), noise)
    views = FadingOut(share=share).views(completion_only(n, cells), 1, keys(cells), MASK)
    often = views.scored.double().mean(0).tolist()
    assert often == pytest.approx([1 - 2 * (1 - share) * (1 - i / (n - 1)) for i in range(n)], abs=1e-3)
    assert sum(often) / n == pytest.approx(share, abs=1e-3)
    assert often[-1] == 1.0 and often == sorted(often)


def test_fading_out_always_hides_something_and_refuses_shares_that_it_cannot_keep() -> None:
    one = FadingOut(share=0.5).views(completion_only(1, 50), 1, keys(50), MASK)
    assert one.scored.all() and (one.weight == 1).all() and FadingOut.draws_per_estimate == 1
    for share in (0.4, 1.1):
        with pytest.raises(ValueError, match=f"share is {share}; expected from 0.5 to 1"):
            FadingOut(share=share)


def test_the_first_of_two_tokens_is_kept_while_its_noise_is_below_its_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """At share 0.75 that chance is a half; what stands exactly on it is hidden."""
    noise = torch.tensor([0.25, 0.499, 0.5, 0.75], dtype=torch.float64)[:, None, None].expand(-1, 1, 2)
    deal(monkeypatch, torch.zeros(4, 1), noise)
    views = FadingOut(share=0.75).views(completion_only(2, 4), 1, keys(4), MASK)
    assert views.scored.tolist() == [[False, True], [False, True], [True, True], [True, True]]


@pytest.mark.parametrize("corruptor", HIDE_SCORED_ONLY, ids=repr)
def test_exactly_the_scored_positions_of_a_view_are_hidden(corruptor: Corruptor) -> None:
    sequences = partly_scored()
    views = corruptor.views(sequences, 20, keys(2), MASK)
    assert torch.equal(views.canvas == MASK, views.scored)
    clean = sequences.tokens[views.row]
    assert torch.equal(views.canvas[~views.scored], clean[~views.scored])
    assert {tuple(p) for p in views.scored[20:].nonzero()[:, 1:].tolist()} == {(4,), (5,)}


@pytest.mark.parametrize("corruptor", ALL_CORRUPTORS, ids=repr)
def test_a_row_with_nothing_scored_is_refused_by_number(corruptor: Corruptor) -> None:
    sequences = partly_scored()
    sequences.scored[1] = False
    with pytest.raises(ValueError, match="row 1 of the sequences has no scored position"):
        corruptor.views(sequences, 2, keys(2), MASK)


@pytest.mark.parametrize("corruptor", ALL_CORRUPTORS, ids=repr)
def test_no_draws_are_refused(corruptor: Corruptor) -> None:
    with pytest.raises(ValueError, match="num_draws is 0"):
        corruptor.views(partly_scored(), 0, keys(2), MASK)


@pytest.mark.parametrize("corruptor", [AntitheticLevels(), Complementary()], ids=repr)
def test_pairs_need_an_even_number_of_draws(corruptor: Corruptor) -> None:
    with pytest.raises(ValueError, match=rf"num_draws is 3; {type(corruptor).__name__} draws in pairs"):
        corruptor.views(partly_scored(), 3, keys(2), MASK)


@pytest.mark.parametrize("corruptor", ALL_CORRUPTORS, ids=repr)
def test_corruptors_are_values(corruptor: Corruptor) -> None:
    assert pickle.loads(pickle.dumps(corruptor)) == corruptor


def test_names() -> None:
    defaults = [FixedCount(), Bernoulli(), AntitheticLevels(), Complementary(), Balanced(), FullyHidden()]
    assert [make() for make in CORRUPTORS.values()] == defaults
    assert list(CORRUPTORS) == ["fixed_count", "bernoulli", "antithetic", "complementary", "balanced", "fully_hidden"]
    assert FixedCount().stratified is True
    assert Bernoulli().floor == 1e-3
    assert FullyHidden().prompt_noise == 0.15
    assert [make.draws_per_estimate for make in CORRUPTORS.values()] == [1, 1, 2, 2, 1, 1]


# --- unbiased, by enumeration of every draw --------------------------------------------------------------------------


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


# --- distributions, by fixed keys ------------------------------------------------------------------------------------


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


# --- the fully hidden view -------------------------------------------------------------------------------------------


def test_fully_hidden_hides_the_whole_completion_and_scores_the_scored_part_with_weight_one() -> None:
    sequences = partly_scored()
    views = FullyHidden(prompt_noise=0.5).views(sequences, 3, keys(2), MASK)
    assert (views.canvas[sequences.completion[views.row]] == MASK).all()
    assert torch.equal(views.scored, sequences.scored[views.row])
    assert torch.equal(views.weight, sequences.scored[views.row].double())
    padding = ~sequences.attend[views.row]
    assert (views.canvas[padding] == 0).all()


@pytest.mark.parametrize("noise", [0.0, 0.15, 0.6, 1.0])
def test_prompt_tokens_are_hidden_with_the_probability_asked_for(noise: float) -> None:
    sequences = sequences_from_ids([list(range(1, 21))] * 200, [[30]] * 200, 0)
    hidden = FullyHidden(prompt_noise=noise).views(sequences, 2, keys(200), MASK).canvas[:, :20] == MASK
    sd = (noise * (1 - noise) / 8000) ** 0.5
    assert abs(float(hidden.double().mean()) - noise) <= 4 * sd
    if 0 < noise < 1:
        per_position = hidden.double().mean(0)
        assert float((per_position - noise).abs().max()) <= 4 * sd * 20**0.5
        assert not torch.equal(hidden[0::2], hidden[1::2])


def test_a_prompt_token_is_hidden_below_the_probability_and_not_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are below 1 and above 0, so that probability 1 hides all and probability 0 nothing."""
    noise = torch.tensor([[[0.1, 0.25, 0.4, 0.0]]], dtype=torch.float64)
    deal(monkeypatch, torch.zeros(1, 1, dtype=torch.float64), noise)
    views = FullyHidden(prompt_noise=0.25).views(sequences_from_ids([[1, 2, 3]], [[4]], 0), 1, keys(1), MASK)
    assert views.canvas.tolist() == [[MASK, 2, 3, MASK]]


@pytest.mark.parametrize("noise", [-0.1, 1.1])
def test_prompt_noise_that_is_no_probability_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="prompt_noise is"):
        FullyHidden(prompt_noise=noise)
