"""All rollouts of rules that write everything and keep the best, from plain Python; and a planner for tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise, product
from typing import NamedTuple

import torch

from dllm_rl.diffusion.trajectory import Op, Trajectory
from tests.diffusion.tabular import Planned
from tests.samplers.oracle import Table
from tests.samplers.order_oracle import drawn_from

Log = tuple[tuple[frozenset[tuple[int, int]], frozenset[int]], ...]
"""A rollout: for each step the (position, token) pairs written and the positions hidden again."""
Judge = Callable[[list[float], float, int], float]
"""Logits of a position, its planner logit and a token there: how good that is."""


class Planning(Planned, Table):
    """A table with a planner that keeps what it was shown; a steady one says the same of every canvas."""

    def __init__(self, seed: int = 0, longest: int = 4, steady: bool = False, eos_ids: tuple[int, ...] = ()) -> None:
        super().__init__(seed, 3, longest, eos_ids)
        if steady:
            for table in self.planner.tables.values():
                table[:] = table[0]


class Setting(NamedTuple):
    """A rule and where it is applied."""

    judge: Judge
    remembers: bool
    """A token keeps the score that it was written with; else every step scores what stands anew."""
    quotas: list[list[int]]
    """Tokens to add at each step of each block."""
    whole: bool = False
    """Tokens of earlier blocks may be hidden again."""
    temperature: float = 0.8
    top_p: float = 1.0


def linear(n: int, steps: int, share: Callable[[float], float] = lambda r: 1 - r) -> list[int]:
    """Tokens to add at each step so that a share of n is hidden after each, rounded down."""
    hidden = [n, *(math.floor(n * share(i / steps) + 1e-12) for i in range(1, steps)), 0]
    return [a - b for a, b in pairwise(hidden)]


def remasking(
    model: Planning, prompt: list[int], blocks: list[int], rule: Setting, given: Sequence[int | None] | None = None
) -> dict[Log, float]:
    """Every log and its probability."""
    words, length = model.spec.mask_id, sum(blocks)
    start = [words if token is None else token for token in (given or [None] * length)]
    ends = [sum(blocks[: b + 1]) for b in range(len(blocks))]
    free = [i for i, token in enumerate(start) if token == words]

    @cache
    def said(tokens: tuple[int, ...]) -> tuple[list[list[float]], list[float]]:
        seen = torch.tensor([[*prompt, *tokens]])
        return model.logits(seen)[0, len(prompt) :].tolist(), model.plan(seen)[0, len(prompt) :].tolist()

    def follow(tokens: tuple[int, ...], memory: dict[int, float], block: int, turn: int) -> dict[Log, float]:
        if block == len(blocks):
            return {(): 1.0}
        left = sum(rule.quotas[block][turn:])
        if not left:
            return follow(tokens, memory, block + 1, 0)
        logits, plan = said(tokens)
        hidden = [i for i in free if i < ends[block] and tokens[i] == words]
        assert len(hidden) == left
        candidates = [i for i in free if i < ends[block] and (rule.whole or i >= ends[block] - blocks[block])]
        q = {i: drawn_from(logits[i], words, rule.temperature, rule.top_p) for i in hidden}
        law: dict[Log, float] = defaultdict(float)
        for drawn in product(range(words), repeat=len(hidden)):
            chance = math.prod(q[i][v] for i, v in zip(hidden, drawn, strict=True))
            if not chance:
                continue
            new = dict(zip(hidden, drawn, strict=True))
            full = [new.get(i, token) for i, token in enumerate(tokens)]
            fresh = new if rule.remembers else candidates
            score = {**memory, **{i: rule.judge(logits[i], plan[i], full[i]) for i in fresh}}
            stay = len(candidates) - sum(rule.quotas[block][turn + 1 :])
            kept = sorted(candidates, key=lambda i: (-score[i], i))[:stay]
            again = frozenset(candidates) - frozenset(kept)
            after = tuple(words if i in again else token for i, token in enumerate(full))
            for rest, chance_of_rest in follow(after, score, block, turn + 1).items():
                law[((frozenset(new.items()), again), *rest)] += chance * chance_of_rest
        return law

    return follow(tuple(start), {}, 0, 0)


def logs_of(out: Trajectory) -> list[Log]:
    """The rollouts of a trajectory in these terms."""
    written: list[list[set[tuple[int, int]]]] = [[set() for _ in range(nfe)] for nfe in out.nfe]
    again: list[list[set[int]]] = [[set() for _ in range(nfe)] for nfe in out.nfe]
    e = out.events
    columns = (e.row, e.step, e.position, e.op, e.token)
    for row, step, position, op, token in zip(*(column.tolist() for column in columns), strict=True):
        if op == Op.WRITE:
            written[row][step - 1].add((position, token))
        elif op == Op.REMASK:
            again[row][step - 1].add(position)
    return [
        tuple((frozenset(w), frozenset(a)) for w, a in zip(*row, strict=True))
        for row in zip(written, again, strict=True)
    ]
