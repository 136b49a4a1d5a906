"""Hints show parts of a trace where the paper says, as often as it says, and never the answer."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations, pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dllm_rl.errors import DataError
from dllm_rl.rng import sample_keys
from dllm_rl.rollouts.hints import AtOffsets, HintRule, Stretched, Trace, draw_hint, runs_of, strip_answer
from dllm_rl.toys.bytes import byte_tokenizer
from dllm_rl.toys.tokenizer import character_tokenizer, with_specials

PAPER = HintRule((5, 10), (0.2, 0.6), AtOffsets())
PIECES = [
    "so ",
    "1",
    "12",
    "212",
    "1,2",
    "12.5",
    "Σ=",
    "\n",
    "x",
    "Twelve",
    "  ",
    "=",
    "ANNA",
    "nn",
    "\\frac{1}{2}",
    ". ",
]


def merged_tokenizer():  # type: ignore[no-untyped-def]
    """Tokens of several characters, and characters of several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["so 12 = 12.5. 1,212 Anna banana \\frac{1}{2}\n Twelve twelve"] * 3, trainer)
    return with_specials(core, "")


TOKENIZERS = {"characters": character_tokenizer(), "bytes": byte_tokenizer(), "merged": merged_tokenizer()}


def spells(text: str, answer: str) -> bool:
    """Whether the answer stands in a text, however its white space, case and separators are written."""
    plain = lambda s: " ".join(s.replace(",", "").split()).casefold()  # noqa: E731
    return plain(answer) in plain(text)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("answer", ["12", "1,212", "212", "Anna", "a", "\\frac{1}{2}", "12.5", "Twelve  x"])
def test_no_hint_shows_the_answer_wherever_it_stands(name: str, answer: str) -> None:
    """Inside longer numbers, twice over, in other case, with separators: over random traces."""
    tokenizer, generator = TOKENIZERS[name], random.Random(f"{name} {answer}")
    everything = HintRule((1, 4), (1.0, 1.0), AtOffsets())
    stretched = HintRule((1, 4), (0.5, 1.0), Stretched(free_tail=2, max_gap=3))
    showed = 0
    for case in range(25):
        pieces = generator.choices([*PIECES, answer, answer.upper()], k=generator.randint(1, 12))
        text = "".join(piece for piece in pieces if name != "characters" or piece.isascii()) + "x" + answer + "."
        trace = strip_answer(text, answer, tokenizer)
        assert trace.held_answer
        assert trace.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        for rule in (everything, stretched):
            hint = draw_hint(trace, len(trace.ids) + 8, sample_keys(case, torch.tensor(0)), rule)
            for run in runs_of(hint):
                assert not spells(tokenizer.decode(run), answer), (text, tokenizer.decode(run))
                showed += len(run)
    assert showed > 40


def test_a_token_is_hidden_exactly_if_it_shares_a_character_with_the_answer() -> None:
    text = "3+9=12 so 1,2 not 2 1; 112"
    trace = strip_answer(text, "12", TOKENIZERS["characters"])
    hidden = "".join("_" if not shown else letter for letter, shown in zip(text, trace.shown, strict=True))
    assert hidden == "3+9=__ so ___ not 2 1; 1__"
    assert not strip_answer("nothing here", "12", TOKENIZERS["characters"]).held_answer
    overlapping = strip_answer("xanana", "ana", TOKENIZERS["characters"])
    assert overlapping.shown == [True] + [False] * 5


@pytest.mark.parametrize(("text", "answer"), [("", "1"), (" \n", "1"), ("1", ""), ("1", "  ")])
def test_empty_traces_and_answers_are_refused(text: str, answer: str) -> None:
    with pytest.raises(DataError, match="expected some text in both"):
        strip_answer(text, answer, TOKENIZERS["characters"])


def test_tokenizers_that_hide_where_tokens_begin_are_refused() -> None:
    class Slow:
        def __call__(self, text: str, **options: object) -> None:
            raise NotImplementedError

    with pytest.raises(DataError, match="use a fast tokenizer"):
        strip_answer("a", "b", Slow())


def test_tokens_that_still_spell_the_answer_are_refused() -> None:
    class Wrong:
        """Says of every token that it begins at 0."""

        def __call__(self, text: str, **options: object) -> dict[str, list[object]]:
            return {"input_ids": [*text.encode()], "offset_mapping": [(0, 1)] * len(text)}

        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode()

    with pytest.raises(DataError, match="still spell its answer '12'"):
        strip_answer("a=12", "12", Wrong())


def law_of_hints(length: int, low: int, high: int, share: tuple[float, float]) -> dict[tuple[bool, ...], float]:
    """Every way to partition, every number of chunks shown, every set of them: section 3.1 of the paper."""

    def partitions(start: int) -> list[tuple[list[range], float]]:
        if start >= length:
            return [([], 1.0)]
        out = []
        for size in range(low, high + 1):
            stop = min(length, start + size)
            out += [([range(start, stop), *rest], p / (high - low + 1)) for rest, p in partitions(stop)]
        return out

    law: dict[tuple[bool, ...], float] = Counter()
    for chunks, p in partitions(0):
        n = len(chunks)
        for count in range(n + 1):  # P(floor(eta n) = count), eta uniform
            inside = max(0.0, min(share[1], (count + 1) / n) - max(share[0], count / n)) / (share[1] - share[0])
            sets = list(combinations(chunks, count))
            for chosen in sets:
                places = {place for chunk in chosen for place in chunk}
                law[tuple(place in places for place in range(length))] += p * inside / len(sets)
    assert math.isclose(sum(law.values()), 1.0)
    return law


def test_hints_follow_the_papers_law() -> None:
    law = law_of_hints(5, 1, 3, (0.2, 0.9))
    rule = HintRule((1, 3), (0.2, 0.9), AtOffsets())
    trace = Trace([10, 11, 12, 13, 14], [True] * 5)
    draws = 1200
    found = Counter(
        tuple(token is not None for token in draw_hint(trace, 5, key, rule))
        for key in sample_keys(0, torch.arange(draws))
    )
    assert found.keys() <= {shape for shape, p in law.items() if p > 0}
    chi_square = sum((found[shape] - draws * p) ** 2 / (draws * p) for shape, p in law.items() if p > 0)
    freedom = sum(p > 0 for p in law.values()) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom), (chi_square, freedom)


def test_chunks_stand_at_their_own_offsets_and_end_with_the_completion() -> None:
    trace = Trace(list(range(100, 160)), [place % 7 != 3 for place in range(60)])
    for length in (20, 60, 90):
        shown = set()
        for key in sample_keys(1, torch.arange(50)):
            hint = draw_hint(trace, length, key, PAPER)
            assert len(hint) == length
            given = [place for place, token in enumerate(hint) if token is not None]
            assert all(hint[place] == trace.ids[place] and trace.shown[place] for place in given)
            shown |= set(given)
        assert shown == {place for place in range(min(60, length)) if trace.shown[place]}


def test_a_full_hint_is_the_trace_and_an_empty_one_is_none() -> None:
    trace, key = Trace([7, 8, 9], [True, False, True]), sample_keys(0, torch.tensor(0))
    assert draw_hint(trace, 5, key, HintRule((1, 2), (1.0, 1.0), AtOffsets())) == [7, None, 9, None, None]
    assert draw_hint(trace, 5, key, HintRule((1, 2), (0.0, 0.0), AtOffsets())) == [None] * 5
    assert draw_hint(trace, 5, key, PAPER) == [None] * 5, "one chunk, of which a share below 1 is none"
    assert draw_hint(trace, 2, key, HintRule((1, 1), (1.0, 1.0), Stretched(free_tail=5))) == [None] * 2


def test_stretched_placement_is_the_released_codes() -> None:
    """scale = clamp((L - 30) / |y|, 1, 1.5); a first chunk at its scaled start, then scaled gaps of at most 100."""
    chunks = [range(4, 9), range(15, 22), range(40, 45), range(200, 205)]
    for length, trace in ((256, 205), (330, 205), (600, 205), (100, 68)):
        scale = min(max((length - 30) / trace, 1.0), 1.5)
        used = [chunk for chunk in chunks if chunk.stop <= trace]
        expected = [int(used[0].start * scale)]
        for before, after in pairwise(used):
            gap = min(int((after.start - before.stop) * scale), 100)
            expected.append(expected[-1] + len(before) + gap)
        assert Stretched().starts(used, trace, length) == expected
        assert expected[-1] + len(used[-1]) <= length - 30 or trace > length - 30
    assert Stretched().starts(chunks, 205, 600)[-1] - (Stretched().starts(chunks, 205, 600)[-2] + 5) == 100
    assert Stretched().room(256) == 226


def test_draws_belong_to_the_key_and_not_to_the_trace_length_or_placement() -> None:
    trace = Trace(list(range(40)), [True] * 40)
    key = sample_keys(5, torch.tensor(3))
    state = torch.random.get_rng_state()
    first = draw_hint(trace, 40, key, PAPER)
    assert torch.equal(torch.random.get_rng_state(), state), "no global generator is used or seeded"
    assert draw_hint(trace, 64, key, PAPER)[:40] == first
    wide = draw_hint(trace, 100, key, HintRule((5, 10), (0.2, 0.6), Stretched()))
    assert [token for token in wide if token is not None] == [token for token in first if token is not None]
    others = [draw_hint(trace, 40, other, PAPER) for other in sample_keys(5, torch.arange(20))]
    assert len({tuple(hint) for hint in others}) > 15
