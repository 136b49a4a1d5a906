"""Small models whose rollouts can be enumerated, and the enumeration: written from the papers, without the library."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, product

import torch
from torch import Tensor

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.trajectory import Op, Trajectory
from tests.diffusion.tabular import Tabular

Steps = tuple[frozenset[tuple[int, int]], ...]
"""A rollout of one row: for each step, the (position, token) pairs written."""


class Table(Tabular):
    """The tabular denoiser, with no limit of its own on the length; it keeps every canvas that it was shown."""

    max_positions: int | None = None

    def __init__(self, seed: int = 0, words: int = 3, longest: int = 4, eos_ids: tuple[int, ...] = ()) -> None:
        super().__init__(seed, words, longest, eos_ids)
        self.seen: list[Tensor] = []

    def logits_at(self, canvas: Tensor, where: Tensor, attend: Tensor | None = None) -> Tensor:
        self.seen.append(canvas)
        return super().logits_at(canvas, where, attend)

    def logits_seeing(self, canvas: Tensor, where: Tensor, sees: Tensor, positions: Tensor) -> Tensor:
        """Who looks knows one token per position id that it sees: of two with the same, the one further to the left."""
        length = int(sees[:, 0].any(dim=0).nonzero().max()) + 1  # the first column does not see a shadow
        self.seen.append(canvas[:, :length])
        tokens, place = canvas.tolist(), positions.tolist()
        rows = []
        for row, column in where.nonzero().tolist():
            others = sees[row, column].nonzero()[:, 0].tolist()
            known = {place[row][other]: tokens[row][other] for other in reversed(others)}
            index = sum(known[k] * self.size**i for i, k in enumerate(sorted(known)))
            rows.append(self.tables[len(known)][index, sorted(known).index(place[row][column])])
        return torch.stack(rows) if rows else torch.empty(0, self.size, dtype=torch.float64)


class Exact(Table):
    """The conditionals of a known joint distribution over `length` tokens; nothing comes before them."""

    def __init__(self, length: int = 3, words: int = 3, seed: int = 0) -> None:
        self.seen = []
        self.spec = DiffusionSpec(mask_id=words, forbidden_ids=(words,))
        self.device = torch.device("cpu")
        self.size = words + 1
        generator = torch.Generator().manual_seed(seed)
        weight = (3.0 * torch.randn(words**length, generator=generator, dtype=torch.float64)).exp()
        texts = list(product(range(words), repeat=length))
        self.joint = dict(zip(texts, (weight / weight.sum()).tolist(), strict=True))
        table = torch.full((self.size**length, length, self.size), float("-inf"), dtype=torch.float64)
        for canvas in product(range(self.size), repeat=length):
            index = sum(token * self.size**i for i, token in enumerate(canvas))
            agree = [t for t in texts if all(c in (words, v) for c, v in zip(canvas, t, strict=True))]
            for i, v in product(range(length), range(words)):
                mass = sum(self.joint[t] for t in agree if t[i] == v)
                table[index, i, v] = math.log(mass) if mass else float("-inf")
        self.tables = {length: table}


def _softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / sum(weights) for weight in weights]


def _choices(order: str, logits: list[list[float]], q: list[list[float]], count: int) -> dict[tuple, float]:
    """Probability of each way to make one step: ((place among the open positions, token), ...) written."""
    m, words = len(q), len(q[0])
    law: dict[tuple, float] = defaultdict(float)
    if order == "low_confidence":
        confidence = [_softmax(row) for row in logits]  # of the full vocabulary, the mask included
        for drawn in product(range(words), repeat=m):
            best = sorted(range(m), key=lambda i: (-confidence[i][drawn[i]], i))[:count]
            law[tuple((i, drawn[i]) for i in sorted(best))] += math.prod(q[i][drawn[i]] for i in range(m))
        return law
    if order == "max_probability":
        peak = [max(_softmax(row[:words])) for row in logits]
        chosen = [sorted(sorted(range(m), key=lambda i: (-peak[i], i))[:count])]
    else:
        chosen = [list(places) for places in combinations(range(m), count)]
    for places in chosen:
        for tokens in product(range(words), repeat=count):
            chance = math.prod(q[i][v] for i, v in zip(places, tokens, strict=True))
            law[tuple(zip(places, tokens, strict=True))] += chance / len(chosen)
    return law


def enumerate_rollouts(
    model: Tabular,
    prompt: list[int],
    length: int,
    quotas: list[int],
    order: str,
    temperature: float = 1.0,
    fixed: Sequence[int | None] | None = None,
) -> dict[Steps, float]:
    """Every rollout of one block and its probability; `fixed` are the tokens that are there from the start."""
    words = model.spec.mask_id

    def follow(completion: tuple[int, ...], quotas: list[int]) -> dict[Steps, float]:
        if not quotas:
            return {(): 1.0}
        places = [i for i, token in enumerate(completion) if token == words]
        dense = model.logits(torch.tensor([[*prompt, *completion]]))[0, len(prompt) :]
        logits = [dense[i].tolist() for i in places]
        q = [_softmax([value / temperature for value in row[:words]]) for row in logits]
        law: dict[Steps, float] = {}
        for choice, chance in _choices(order, logits, q, quotas[0]).items():
            written = {places[i]: v for i, v in choice}
            after = tuple(written.get(i, token) for i, token in enumerate(completion))
            for rest, chance_of_rest in follow(after, quotas[1:]).items():
                law[(frozenset(written.items()), *rest)] = chance * chance_of_rest
        return law

    given = [None] * length if fixed is None else fixed
    return follow(tuple(words if token is None else token for token in given), quotas)


def text_of(steps: Steps) -> tuple[int, ...]:
    return tuple(token for _, token in sorted(pair for step in steps for pair in step))


def law_of_texts(rollouts: dict[Steps, float]) -> dict[tuple[int, ...], float]:
    law: dict[tuple[int, ...], float] = defaultdict(float)
    for steps, chance in rollouts.items():
        law[text_of(steps)] += chance
    return law


def steps_of(out: Trajectory) -> list[Steps]:
    """The rollouts of a trajectory in the enumeration's terms; tokens given from the start are no part of a step."""
    rows: list[list[set[tuple[int, int]]]] = [[set() for _ in range(out.num_steps)] for _ in range(len(out))]
    events = out.events.select((out.events.op == Op.WRITE).nonzero()[:, 0])
    for row, step, position, token in zip(
        events.row.tolist(), events.step.tolist(), events.position.tolist(), events.token.tolist(), strict=True
    ):
        rows[row][step - 1].add((position, token))
    return [tuple(frozenset(step) for step in row) for row in rows]


def total_variation(p: dict, q: dict) -> float:
    return 0.5 * sum(abs(p.get(key, 0.0) - q.get(key, 0.0)) for key in p.keys() | q.keys())
