"""All rollouts of an order and their probabilities, from rules written in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations, permutations, product
from typing import NamedTuple

import torch

from dllm_rl.diffusion.trajectory import Trajectory
from tests.diffusion.tabular import Tabular

Written = tuple[tuple[int, int], ...]
"""(position, token) pairs of one step, in the order in which they were taken."""
Ordered = tuple[Written, ...]
"""A rollout, step by step."""


class Moment(NamedTuple):
    """Where a row stands, and what the network says of its open positions."""

    turn: int
    """Steps made in this block."""
    step: int
    """Steps made in all."""
    start: int
    """Of the block."""
    length: int
    """Of the block."""
    places: list[int]
    """Open positions of the block."""
    p: list[list[float]]
    """The full softmax at each, the mask included."""
    q: list[list[float]]
    """What tokens are drawn from."""


Rule = Callable[[Moment], dict[Written, float]]
Count = Callable[[Moment], int]


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / sum(weights) for weight in weights]


def drawn_from(logits: list[float], words: int, temperature: float, top_p: float = 1.0) -> list[float]:
    """Of the words alone, at a temperature, and the fewest of them whose mass reaches `top_p`."""
    q = softmax([value / temperature for value in logits[:words]])
    by_mass = sorted(range(words), key=lambda v: (-q[v], v))
    kept = [v for place, v in enumerate(by_mass) if sum(q[w] for w in by_mass[:place]) < top_p]
    mass = sum(q[v] for v in kept)
    return [q[v] / mass if v in kept else 0.0 for v in range(words)]


def rollouts(
    model: Tabular, prompt: list[int], blocks: list[int], rule: Rule, temperature: float = 1.0, top_p: float = 1.0
) -> dict[Ordered, float]:
    """Every rollout and its probability."""
    words = model.spec.mask_id
    starts = [sum(blocks[:b]) for b in range(len(blocks))]

    def follow(completion: tuple[int, ...], turn: int, step: int, last: int) -> dict[Ordered, float]:
        hidden = [i for i, token in enumerate(completion) if token == words]
        if not hidden:
            return {(): 1.0}
        block = max(b for b, start in enumerate(starts) if start <= hidden[0])
        turn = turn if block == last else 0
        places = [i for i in hidden if i < starts[block] + blocks[block]]
        dense = model.logits(torch.tensor([[*prompt, *completion]]))[0, len(prompt) :].tolist()
        p = [softmax(dense[i]) for i in places]
        q = [drawn_from(dense[i], words, temperature, top_p) for i in places]
        law: dict[Ordered, float] = defaultdict(float)
        for written, chance in rule(Moment(turn, step, starts[block], blocks[block], places, p, q)).items():
            new = dict(written)
            after = tuple(new.get(i, token) for i, token in enumerate(completion))
            for rest, chance_of_rest in follow(after, turn + 1, step + 1, block).items():
                law[(written, *rest)] += chance * chance_of_rest
        return law

    return follow((words,) * sum(blocks), 0, 0, 0)


def _with_tokens(at: Moment, chosen: tuple[int, ...], chance: float) -> dict[Written, float]:
    """All tokens that can be drawn at the chosen of the open places."""
    law = {}
    for tokens in product(range(len(at.q[0])), repeat=len(chosen)):
        mass = math.prod(at.q[i][v] for i, v in zip(chosen, tokens, strict=True))
        if mass:
            law[tuple((at.places[i], v) for i, v in zip(chosen, tokens, strict=True))] = chance * mass
    return law


def _best(score: list[float], count: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:count])


def by_drawn(score: Callable[[Moment, int, int], float], count: Callable[[Moment, list[float]], int]) -> Rule:
    """Draw everywhere, keep the best; `score` of the token v at the i-th open place."""

    def rule(at: Moment) -> dict[Written, float]:
        law: dict[Written, float] = defaultdict(float)
        for drawn in product(range(len(at.q[0])), repeat=len(at.places)):
            scores = [score(at, i, v) for i, v in enumerate(drawn)]
            chosen = _best(scores, count(at, scores))
            law[tuple((at.places[i], drawn[i]) for i in chosen)] += math.prod(at.q[i][v] for i, v in enumerate(drawn))
        return {written: chance for written, chance in law.items() if chance}

    return rule


def by_blind(score: Callable[[Moment, int], float], count: Count) -> Rule:
    """Keep the best places, draw there."""

    def rule(at: Moment) -> dict[Written, float]:
        scores = [score(at, i) for i in range(len(at.places))]
        return _with_tokens(at, tuple(_best(scores, count(at))), 1.0)

    return rule


def by_softmax(logit: Callable[[Moment, int], float], count: Count, temperature: Callable[[Moment], float]) -> Rule:
    """One place after the other, by a softmax of what is left; draw there."""

    def rule(at: Moment) -> dict[Written, float]:
        heat = temperature(at)
        if heat == 0:
            scores = [logit(at, i) for i in range(len(at.places))]
            taken = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: count(at)]
            return _with_tokens(at, tuple(taken), 1.0)
        weight = [math.exp(logit(at, i) / heat) for i in range(len(at.places))]
        law: dict[Written, float] = {}
        for order in permutations(range(len(at.places)), count(at)):
            chance, left = 1.0, sum(weight)
            for i in order:
                chance, left = chance * weight[i] / left, left - weight[i]
            law |= _with_tokens(at, order, chance)
        return law

    return rule


def by_coin(chance: Callable[[Moment], float]) -> Rule:
    """A coin for every place; draw where it falls heads."""

    def rule(at: Moment) -> dict[Written, float]:
        law: dict[Written, float] = {}
        m, heads = len(at.places), chance(at)
        for chosen in (subset for size in range(m + 1) for subset in combinations(range(m), size)):
            mass = heads ** len(chosen) * (1 - heads) ** (m - len(chosen))
            if mass:
                law |= _with_tokens(at, chosen, mass)
        return law

    return rule


def ordered_steps_of(out: Trajectory) -> list[Ordered]:
    """The rollouts of a trajectory in these terms."""
    rows: list[list[list[tuple[int, int]]]] = [[[] for _ in range(nfe)] for nfe in out.nfe]
    events = out.events
    for row, step, position, token in zip(
        events.row.tolist(), events.step.tolist(), events.position.tolist(), events.token.tolist(), strict=True
    ):
        rows[row][step - 1].append((position, token))
    return [tuple(tuple(step) for step in row) for row in rows]


def texts(law: dict[Ordered, float]) -> dict[tuple[int, ...], float]:
    out: dict[tuple[int, ...], float] = defaultdict(float)
    for steps, chance in law.items():
        out[tuple(token for _, token in sorted(pair for step in steps for pair in step))] += chance
    return out
