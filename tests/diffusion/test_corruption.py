"""What every corruptor promises, and the fully hidden view."""

from __future__ import annotations

import pickle

import pytest
import torch

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
from dllm_rl.diffusion.views import Sequences
from tests.diffusion.drawing import (
    MASK,
    completion_only,
    deal,
    keys,
    partly_scored,
)

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
