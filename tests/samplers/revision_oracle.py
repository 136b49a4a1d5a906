"""All rollouts of WINO and of token-to-token edits and their probabilities, from the rules in plain Python.

One row, one table that looks tokens up by the canvas. A rule is asked for every way a step can go.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import NamedTuple

import torch

from dllm_rl.diffusion.trajectory import Op, Trajectory
from tests.diffusion.tabular import Tabular
from tests.samplers.order_oracle import drawn_from, softmax

Log = tuple[frozenset[tuple[str, int, int]], ...]
"""A rollout: for each step, the (what happened, position, token) that it brought about."""


class Where(NamedTuple):
    """Where a row stands."""

    completion: tuple[int, ...]
    block: int
    memory: int
    """What the rule keeps; 0 when a block is opened."""
    given: frozenset[int]


class Way(NamedTuple):
    """How a step can go."""

    written: dict[int, int]
    hidden: frozenset[int]
    edited: dict[int, int]
    memory: int
    stay: bool
    """In this block, though it may be full."""


class Look(NamedTuple):
    """What the network says of a completion, position by position."""

    p: list[list[float]]
    """The full softmax, the mask included."""
    q: list[list[float]]
    """What tokens are drawn from."""


Rule = Callable[[Where, range, Callable[[tuple[int, ...]], Look], int], list[tuple[Way, float]]]


def every_draw(look: Look, places: list[int]) -> list[tuple[dict[int, int], float]]:
    """A token for each open position, and how probable that is."""
    draws = product(*([(v, mass) for v, mass in enumerate(look.q[i]) if mass] for i in places))
    return [
        ({i: v for i, (v, _) in zip(places, draw, strict=True)}, math.prod(mass for _, mass in draw)) for draw in draws
    ]


def surest(look: Look, drawn: dict[int, int], threshold: float, blind: bool, most: int | None = None) -> list[int]:
    """The places to write: what is sure, at most so many, at least one."""
    words = len(next(iter(look.q)))
    sure = {}
    for i, v in drawn.items():
        permitted = softmax([math.log(p) for p in look.p[i][:words]])
        sure[i] = max(permitted) if blind else look.p[i][v]
    order = sorted(sure, key=lambda i: (-sure[i], i))
    enough = [i for i in order if sure[i] >= threshold]
    return (enough or order[:1])[:most]


def wino(threshold: float, verify: float, cap: Callable[[int], int], blind: bool = False) -> Rule:
    def rule(at: Where, block: range, network: Callable[[tuple[int, ...]], Look], mask: int) -> list[tuple[Way, float]]:
        look = network(at.completion)
        places = [i for i in block if at.completion[i] == mask]
        doubts = []
        for j in block:
            if j in at.given or at.completion[j] == mask:
                continue
            without = tuple(mask if i == j else token for i, token in enumerate(at.completion))
            held = network(without).p[j][at.completion[j]]
            if held < verify:
                doubts.append((held, j))
        ways = []
        for drawn, chance in every_draw(look, places):
            chosen = surest(look, drawn, threshold, blind, cap(len(places)))
            allowed = at.memory - 1 if len(chosen) > 1 and at.memory else 0
            back = frozenset(j for _, j in sorted(doubts)[:allowed])
            ways.append((Way({i: drawn[i] for i in chosen}, back, {}, len(chosen), False), chance))
        return ways

    return rule


def token_to_token(threshold: float, edit: float, post_steps: int, blind: bool = False) -> Rule:
    def rule(at: Where, block: range, network: Callable[[tuple[int, ...]], Look], mask: int) -> list[tuple[Way, float]]:
        look = network(at.completion)
        places = [i for i in block if at.completion[i] == mask]
        edits = {}
        for j in block:
            best = max(range(mask), key=lambda v: look.p[j][v])
            visible = at.completion[j] != mask and j not in at.given
            if visible and best != at.completion[j] and look.p[j][best] > edit:
                edits[j] = best
        if not places:
            passes = at.memory + 1
            return [(Way({}, frozenset(), edits, passes, bool(edits) and passes < post_steps), 1.0)]
        ways = []
        for drawn, chance in every_draw(look, places):
            chosen = surest(look, drawn, threshold, blind)
            stay = len(chosen) < len(places) or (post_steps > 0 and edit < 1)
            ways.append((Way({i: drawn[i] for i in chosen}, frozenset(), edits, 0, stay), chance))
        return ways

    return rule


class Enumeration:
    """Every rollout of one rule on one prompt."""

    def __init__(
        self, model: Tabular, prompt: list[int], blocks: list[int], rule: Rule, temperature: float = 1.0
    ) -> None:
        self.mask, self.length, self.rule = model.spec.mask_id, sum(blocks), rule
        starts = [sum(blocks[:b]) for b in range(len(blocks))]
        self.blocks = [range(start, start + size) for start, size in zip(starts, blocks, strict=True)]

        @cache
        def network(completion: tuple[int, ...]) -> Look:
            dense = model.logits(torch.tensor([[*prompt, *completion]]))[0, len(prompt) :].tolist()
            return Look([softmax(row) for row in dense], [drawn_from(row, self.mask, temperature) for row in dense])

        self.network = network
        self.step = cache(self._step)

    def start(self, template: list[int | None] | None = None) -> Where:
        template = template or [None] * self.length
        given = frozenset(i for i, token in enumerate(template) if token is not None)
        return self._opened(Where(tuple(self.mask if t is None else t for t in template), -1, 0, given), stay=False)

    def _opened(self, at: Where, stay: bool) -> Where:
        if stay or any(at.completion[i] == self.mask for i in (self.blocks[at.block] if at.block >= 0 else ())):
            return at
        waiting = [b for b, block in enumerate(self.blocks) if any(at.completion[i] == self.mask for i in block)]
        return at._replace(block=min(waiting, default=len(self.blocks)), memory=0)

    def finished(self, at: Where) -> bool:
        return at.block == len(self.blocks)

    def _step(self, at: Where) -> dict[frozenset, tuple[float, Where]]:
        """What the next step can log, its probability, and where it leads."""
        chances: dict[frozenset, float] = defaultdict(float)
        leads: dict[frozenset, Where] = {}
        for way, chance in self.rule(at, self.blocks[at.block], self.network, self.mask):
            log = frozenset(
                [("WRITE", i, v) for i, v in way.written.items()]
                + [("REMASK", i, self.mask) for i in way.hidden]
                + [("EDIT", i, v) for i, v in way.edited.items()]
            )
            new = way.written | way.edited | dict.fromkeys(way.hidden, self.mask)
            after = tuple(new.get(i, token) for i, token in enumerate(at.completion))
            lead = self._opened(at._replace(completion=after, memory=way.memory), way.stay)
            assert leads.setdefault(log, lead) == lead, "a log says where a row stands"
            chances[log] += chance
        return {log: (chance, leads[log]) for log, chance in chances.items()}

    def law(self, template: list[int | None] | None = None) -> dict[Log, float]:
        """The probability of every rollout."""

        @cache
        def follow(at: Where) -> dict[Log, float]:
            if self.finished(at):
                return {(): 1.0}
            return {
                (log, *rest): chance * more
                for log, (chance, lead) in self.step(at).items()
                for rest, more in follow(lead).items()
            }

        return follow(self.start(template))

    def probability(self, log: Log, template: list[int | None] | None = None) -> float:
        """Of one rollout, where there are too many to hold them all."""
        at, total = self.start(template), 1.0
        for events in log:
            chance, at = self.step(at)[events]
            total *= chance
        assert self.finished(at)
        return total


def logs_of(out: Trajectory) -> list[Log]:
    """The rollouts of a trajectory in these terms; what is given from the start is no part of a step."""
    rows: list[list[set]] = [[set() for _ in range(nfe)] for nfe in out.nfe]
    events = out.events
    for row, step, position, op, token in zip(
        *(getattr(events, name).tolist() for name in ("row", "step", "position", "op", "token")), strict=True
    ):
        if step:
            rows[row][step - 1].add((Op(op).name, position, token))
    return [tuple(frozenset(step) for step in row) for row in rows]
