"""Hints: parts of a reference trace given to a rollout, none of which shows the answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from jaxtyping import Int64
from torch import Tensor

from dllm_rl.errors import DataError
from dllm_rl.rng import fold, uniform

Hint = list[int | None]
"""A completion's ids where they are given, None where they are to be written: a template, see `samplers.canvas`."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A reference trace as ids, with the tokens that any occurrence of the answer touches marked."""

    ids: list[int]
    shown: list[bool]
    """False for tokens that must not be given."""

    @property
    def held_answer(self) -> bool:
        """Whether the answer was found in it."""
        return not all(self.shown)


def strip_answer(text: str, answer: str, tokenizer: Any) -> Trace:
    """The trace without its answer, wherever it stands.

    A token is hidden if it shares a character with an occurrence of the answer, inside longer numbers and words too. An
    occurrence may differ in case, in white space and in thousands separators. An answer in other words (1/2 for 0.5) is
    not found.

    Raises:
        DataError: text or answer is empty, the tokenizer cannot tell where its tokens begin, or the tokens that are
            left still spell the answer.
    """
    if not text.strip() or not answer.strip():
        raise DataError(f"the trace is {text[:40]!r} and its answer {answer[:40]!r}; expected some text in both")
    pattern = _occurrences(answer)
    spans = [found.span(1) for found in pattern.finditer(text)]
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError as error:
        raise DataError(
            "the tokenizer does not say which characters its tokens stand for, so that the answer cannot be taken out "
            "of traces; use a fast tokenizer"
        ) from error
    shown = [not any(a < end and begin < b for begin, end in spans) for a, b in encoded["offset_mapping"]]
    trace = Trace(list(encoded["input_ids"]), shown)
    for run in runs_of([token if seen else None for token, seen in zip(trace.ids, shown, strict=True)]):
        if pattern.search(str(tokenizer.decode(run))):
            raise DataError(f"the tokens left of the trace {text[:40]!r} still spell its answer {answer[:40]!r}")
    return trace


def _occurrences(answer: str) -> re.Pattern[str]:
    """Every occurrence, those that overlap an earlier one too: the match is in a look-ahead's group 1."""
    words = [",?".join(map(re.escape, word.replace(",", "") or word)) for word in answer.split()]
    spelled = r"\s+".join(words)
    return re.compile(f"(?=({spelled}))", re.IGNORECASE)


def runs_of(template: Sequence[int | None]) -> list[list[int]]:
    """The ids of a template's stretches of neighbouring given positions."""
    stretches = groupby(template, key=lambda token: token is not None)
    return [[token for token in run if token is not None] for given, run in stretches if given]


class Placement(Protocol):
    """Where the chunks that are shown stand in the completion."""

    def room(self, length: int) -> int:
        """Tokens of a trace that a completion of `length` has places for; the trace is cut after them."""
        ...

    def starts(self, chunks: Sequence[range], trace: int, length: int) -> list[int]:
        """First position of each chunk, given as places in a trace of `trace` tokens; chunks never meet or overlap."""
        ...


@dataclass(frozen=True, slots=True)
class AtOffsets:
    """Each chunk at its own offset in the trace. Source: Zhao et al., IGPO, https://arxiv.org/abs/2509.10396."""

    def room(self, length: int) -> int:
        return length

    def starts(self, chunks: Sequence[range], trace: int, length: int) -> list[int]:
        return [chunk.start for chunk in chunks]


@dataclass(frozen=True, slots=True)
class Stretched:
    """Offsets of short traces spread over the completion, but for a tail that stays free.

    Source: IGPO's released code, whose comment says 50 free positions and whose code leaves 30.
    """

    free_tail: int = 30
    max_stretch: float = 1.5
    max_gap: int = 100

    def room(self, length: int) -> int:
        return length - self.free_tail

    def starts(self, chunks: Sequence[range], trace: int, length: int) -> list[int]:
        stretch = min(max(self.room(length) / trace, 1.0), self.max_stretch)
        starts: list[int] = []
        written = left = 0
        for chunk in chunks:
            gap = int((chunk.start - left) * stretch)
            start = written + (min(gap, self.max_gap) if starts else gap)
            starts.append(start)
            written, left = start + len(chunk), chunk.stop
        return starts


@dataclass(frozen=True, slots=True)
class HintRule:
    """How much of a trace is shown, and where."""

    chunk_size: tuple[int, int]
    """Tokens of a chunk: uniform between these two, both included; the last one takes what is left."""
    share: tuple[float, float]
    """eta, the share of the chunks that is shown: uniform between these two."""
    placement: Placement


def draw_hint(trace: Trace, length: int, key: Int64[Tensor, ""], rule: HintRule) -> Hint:
    """A completion of `length` ids with a random part of the trace given, None elsewhere.

    The trace, cut to the room that there is, is divided into chunks; floor(eta * chunks) of them are shown, all sets of
    that many being equally likely, except for tokens that would show the answer. A short trace may give no hint.

    Args:
        key: everything drawn is folded from it; another length or placement keeps the same draws.

    Source: Zhao et al., IGPO, https://arxiv.org/abs/2509.10396, section 3.1. The released code shows the last chunk of
        every trace, the answer with it; drops a last chunk that is shorter than the smallest; and shows
        n - floor(n (1 - eta)) chunks.
    """
    chunks = _partition(max(0, min(len(trace.ids), rule.placement.room(length))), key, rule.chunk_size)
    low, high = rule.share
    count = math.floor((low + (high - low) * float(uniform(fold(key, "hint share"), 1))) * len(chunks))
    order = uniform(fold(key, "hint chunks"), len(chunks)).argsort().tolist()
    chosen = [chunks[place] for place in sorted(order[:count])]
    template: Hint = [None] * length
    if chosen:
        starts = rule.placement.starts(chosen, chunks[-1].stop, length)
        for chunk, start in zip(chosen, starts, strict=True):
            for place in chunk:
                if trace.shown[place]:
                    template[start + place - chunk.start] = trace.ids[place]
    return template


def _partition(size: int, key: Int64[Tensor, ""], chunk_size: tuple[int, int]) -> list[range]:
    """0 .. size - 1 in consecutive chunks of random sizes."""
    low, high = chunk_size
    draws = uniform(fold(key, "chunk sizes"), size // low + 1).tolist()
    chunks: list[range] = []
    start = 0
    while start < size:
        stop = min(size, start + low + math.floor((high - low + 1) * draws[len(chunks)]))
        chunks.append(range(start, stop))
        start = stop
    return chunks
