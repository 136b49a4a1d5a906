"""Which row an update sees in which slot: a pure function, so that the number of processes changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from dllm_rl.rng import fold, sample_keys, uniform


@dataclass(frozen=True, slots=True)
class Layout:
    """How the slots of an update are spread over processes and micro-batches."""

    rank: int
    world: int
    num_micro_batches: int
    per_device: int
    """Rows (prompts, pairs or texts) in one micro-batch of one process."""

    @property
    def slots_per_update(self) -> int:
        return self.world * self.num_micro_batches * self.per_device

    def slots(self, micro_batch: int) -> range:
        """Slots of one of this process's micro-batches."""
        start = (micro_batch * self.world + self.rank) * self.per_device
        return range(start, start + self.per_device)


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit of a dataset row: the row, and how often it had been visited before."""

    row: int
    repeat: int

    def key_path(self, completion: int) -> tuple[int, int, int]:
        """The sample id: with it and the seed, every draw made for this sample is fixed."""
        return (self.row, self.repeat, completion)


@lru_cache(maxsize=2)
def _permutation(seed: int, repeat: int, num_rows: int) -> list[int]:
    key = fold(sample_keys(seed, torch.tensor(repeat)), "order")
    return uniform(key, num_rows).argsort(stable=True).tolist()


def visit_at(seed: int, window: int, slot: int, slots_per_update: int, num_rows: int) -> Visit:
    """The visit made in a slot of a window (one rollout and the updates made from it).

    Rows come in passes over the data set, each in an order of its own.
    """
    repeat, offset = divmod(window * slots_per_update + slot, num_rows)
    return Visit(_permutation(seed, repeat, num_rows)[offset], repeat)


def visit_keys(seed: int, visits: list[Visit], num_completions: int) -> torch.Tensor:
    """One key per completion of each visit, visits outermost."""
    paths = torch.tensor([v.key_path(g) for v in visits for g in range(num_completions)], dtype=torch.int64)
    keys = sample_keys(seed, paths[:, 0])
    return fold(keys, paths[:, 1], paths[:, 2])
