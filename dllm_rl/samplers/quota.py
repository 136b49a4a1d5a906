"""How many positions a step writes, when that is decided beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl.samplers.canvas import Canvas


@runtime_checkable
class Quota(Protocol):
    """A number of positions for each row, from where the row stands. 0 is allowed as long as later turns make it up."""

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]: ...


@dataclass(frozen=True, slots=True)
class Even:
    """An even split of a block over its steps, the remainder on the first steps.

    Source: Nie et al., https://arxiv.org/abs/2502.09992, get_num_transfer_tokens.
    """

    steps: int
    """Of each block."""

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        return canvas.opening // self.steps + (canvas.turn < canvas.opening % self.steps)


@dataclass(frozen=True, slots=True)
class Constant:
    """The same number at every step."""

    count: int

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        return torch.full_like(canvas.turn, self.count)
