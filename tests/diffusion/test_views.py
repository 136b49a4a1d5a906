from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.diffusion.views import Sequences, Views


def test_prompts_are_padded_left_and_completions_right() -> None:
    sequences = sequences_from_ids([[1], [2, 3, 4], []], [[5, 6], [7], [8, 9, 9]], pad_id=0)
    assert sequences.tokens.tolist() == [[0, 0, 1, 5, 6, 0], [2, 3, 4, 7, 0, 0], [0, 0, 0, 8, 9, 9]]
    assert sequences.attend.int().tolist() == [[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert sequences.completion.int().tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert torch.equal(sequences.scored, sequences.completion)
    assert sequences.prompt.int().tolist() == [[0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert sequences.tokens.dtype == torch.int64
    assert len(sequences) == 3


def test_ids_are_taken_exactly_as_given_pads_included() -> None:
    sequences = sequences_from_ids([[7, 7]], [[7, 1, 7]], pad_id=7)
    assert sequences.attend.all()
    assert sequences.completion.int().tolist() == [[0, 0, 1, 1, 1]]


def test_equal_lengths_get_no_padding() -> None:
    assert sequences_from_ids([[1, 2], [3, 4]], [[5], [6]], pad_id=0).attend.all()


def test_pads_hold_the_pad_id() -> None:
    assert sequences_from_ids([[1, 2], []], [[5], [6]], pad_id=42).tokens[1].tolist() == [42, 42, 6]


@pytest.mark.parametrize(("prompts", "completions"), [([], []), ([[1]], []), ([[1]], [[2], [3]])])
def test_rows_must_match_and_exist(prompts: list[list[int]], completions: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=f"{len(prompts)} prompts and {len(completions)} completions"):
        sequences_from_ids(prompts, completions, pad_id=0)


def sequences() -> Sequences:
    tokens = torch.arange(12).view(3, 4)
    flags = [torch.rand(3, 4, generator=torch.Generator().manual_seed(i)) < 0.5 for i in range(3)]
    return Sequences(tokens, *flags)


def views() -> Views:
    canvas, scored = torch.arange(20).view(5, 4), torch.arange(20).view(5, 4) % 3 == 0
    return Views(canvas, scored, scored.double() * 2.5, torch.tensor([0, 0, 1, 2, 2]), canvas + 100)


def test_selection_takes_every_field_of_the_rows_asked_for_in_their_order() -> None:
    index = torch.tensor([2, 0, 2])
    for whole, names in (
        (sequences(), ("tokens", "attend", "completion", "scored")),
        (views(), ("canvas", "scored", "weight", "row", "tokens")),
    ):
        part = whole.select(index)
        assert len(part) == 3
        for name in names:
            assert torch.equal(getattr(part, name), getattr(whole, name)[index]), name


def test_moving_keeps_every_field_in_its_place() -> None:
    for whole, names in (
        (sequences(), ("tokens", "attend", "completion", "scored")),
        (views(), ("canvas", "scored", "weight", "row", "tokens")),
    ):
        moved = whole.to(torch.device("meta"))
        for name in names:
            there, here = getattr(moved, name), getattr(whole, name)
            assert there.device.type == "meta"
            assert (there.shape, there.dtype) == (here.shape, here.dtype)
        for name in names:
            assert torch.equal(getattr(whole.to(torch.device("cpu")), name), getattr(whole, name)), name


def test_the_prompt_is_what_is_attended_to_and_not_written_by_the_model() -> None:
    rows = sequences()
    for a, c, p in zip(rows.attend.flatten(), rows.completion.flatten(), rows.prompt.flatten(), strict=True):
        assert bool(p) == (bool(a) and not bool(c))


def test_lengths_are_numbers_of_rows() -> None:
    assert (len(sequences()), len(views())) == (3, 5)


def test_views_without_tokens_of_their_own_have_none_whatever_is_done_to_them() -> None:
    plain = replace(views(), tokens=None)
    assert plain.select(torch.tensor([1])).tokens is None and plain.to(torch.device("cpu")).tokens is None
