"""All rollouts of ReMDM and their probabilities, from the paper's posterior written in plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

import torch

from dllm_rl.diffusion.trajectory import Op, Trajectory
from tests.diffusion.tabular import Tabular
from tests.samplers.order_oracle import drawn_from, softmax

Step = tuple[frozenset[tuple[int, int]], frozenset[int]]
"""The (position, token) pairs written, and the positions hidden again."""
Log = tuple[Step, ...]
Sigmas = Callable[[int, list[float | None]], list[float]]
"""At a step, given the probability that each token had when it was written (None where hidden): sigma of each place,
those of the hidden ones included."""


def sigma_max(alpha_t: float, alpha_s: float) -> float:
    return min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0


def alphas(steps: int) -> list[float]:
    return [k / steps for k in range(steps + 1)]


def plateau(steps: int, t_on: float, t_off: float, alpha_on: float) -> list[float]:
    """Up to alpha_on until t_on, there until t_off, then up to 1."""

    def alpha(t: float) -> float:
        if t > t_on:
            return (1 - t) * alpha_on / (1 - t_on)
        return alpha_on if t > t_off else 1 - t * (1 - alpha_on) / t_off

    return [alpha(1 - k / steps) for k in range(steps + 1)]


def reader(
    model: Tabular, prompt: list[int], temperature: float
) -> Callable[[tuple[int, ...]], tuple[list[list[float]], list[list[float]]]]:
    """For each place of a completion, the full softmax and what tokens are drawn from."""

    @cache
    def read(now: tuple[int, ...]) -> tuple[list[list[float]], list[list[float]]]:
        dense = model.logits(torch.tensor([[*prompt, *now]]))[0, len(prompt) :].tolist()
        return [softmax(row) for row in dense], [drawn_from(row, model.spec.mask_id, temperature) for row in dense]

    return read


def rollouts(
    model: Tabular,
    prompt: list[int],
    alpha: Sequence[float],
    sigmas: Sigmas,
    temperature: float,
    start: Sequence[int],
    fixed: frozenset[int] = frozenset(),
) -> dict[Log, float]:
    """Every rollout and its probability: q(z_s | z_t) of each place by itself, a step after the other."""
    words = model.spec.mask_id
    read = reader(model, prompt, temperature)

    def follow(now: tuple[int, ...], psi: tuple[float | None, ...], k: int) -> dict[Log, float]:
        if k == len(alpha) - 1:
            return {(): 1.0}
        a_t, a_s = alpha[k], alpha[k + 1]
        p, q = read(now)
        ways: list[list[tuple[int, float]]] = []
        for place, (token, sigma) in enumerate(zip(now, sigmas(k, list(psi)), strict=True)):
            if place in fixed:
                ways.append([(token, 1.0)])
            elif token == words:
                write = (a_s - (1 - sigma) * a_t) / (1 - a_t)
                ways.append([(words, 1 - write), *((v, write * q[place][v]) for v in range(words))])
            else:
                ways.append([(token, 1 - sigma), (words, sigma)])
        law: dict[Log, float] = defaultdict(float)
        for outcome in product(*ways):
            chance = math.prod(mass for _, mass in outcome)
            if chance < 1e-15:
                continue
            after = tuple(token for token, _ in outcome)
            written = frozenset((i, v) for i, v in enumerate(after) if now[i] == words != v)
            hidden = frozenset(i for i, v in enumerate(after) if now[i] != words == v)
            new = {i: p[i][v] for i, v in written}
            kept = tuple(new.get(i, None if i in hidden else psi[i]) for i in range(len(now)))
            for rest, chance_of_rest in follow(after, kept, k + 1).items():
                law[((written, hidden), *rest)] += chance * chance_of_rest
        return law

    return follow(tuple(start), (None,) * len(start), 0)


def logs_of(out: Trajectory, steps: int) -> list[Log]:
    """The rollouts of a trajectory in these terms; steps after the last forward did nothing."""
    events = out.events
    written: list[list[set]] = [[set() for _ in range(steps)] for _ in range(len(out))]
    hidden: list[list[set]] = [[set() for _ in range(steps)] for _ in range(len(out))]
    columns = (events.row, events.step, events.position, events.op, events.token)
    for row, step, position, op, token in zip(*(column.tolist() for column in columns), strict=True):
        if op == Op.WRITE:
            written[row][step - 1].add((position, token))
        elif op == Op.REMASK:
            assert token == out.mask_id
            hidden[row][step - 1].add(position)
    return [
        tuple((frozenset(w), frozenset(h)) for w, h in zip(written[row], hidden[row], strict=True))
        for row in range(len(out))
    ]
