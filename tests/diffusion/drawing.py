"""What corruptors are tried on, and what their draws are held against."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor

from dllm_rl.diffusion import corruption
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.diffusion.views import Sequences, Views
from dllm_rl.rng import sample_keys

MASK = 99


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
