"""Small models with a schedule head, for tests of what plans and of what learns to."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_rl.samplers.names import FEATURES
from tests.samplers.oracle import Table


class Scheduling(Table):
    """A table with a schedule head: a linear map of the features, zero if not said otherwise."""

    def __init__(
        self,
        actions: int = 1,
        longest: int = 6,
        weight: Tensor | None = None,
        bias: float = 0.0,
        seed: int = 4,
        words: int = 3,
        eos_ids: tuple[int, ...] = (),
    ) -> None:
        super().__init__(seed=seed, words=words, longest=longest, eos_ids=eos_ids)
        self.weight = torch.zeros(len(FEATURES), actions, dtype=torch.float64) if weight is None else weight
        self.bias = bias

    def schedule_at(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


def drifting(actions: int, longest: int = 6, head: int = 1, scale: float = 0.3, words: int = 3) -> Scheduling:
    """One whose head says something."""
    generator = torch.Generator().manual_seed(head)
    weight = scale * torch.randn(len(FEATURES), actions, generator=generator, dtype=torch.float64)
    return Scheduling(actions, longest, weight, bias=0.2, words=words)
