"""DUS: a block is written in rounds of positions that stand far apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dllm_rl.diffusion import ledger
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.select import Choice

ROUND = "dilated_round"
"""[B]: the last round made in this block."""


@dataclass(frozen=True, slots=True)
class Dilated:
    """The positions of the next round and those put off, if they score at least a probability; in the last round all.

    Round t = 1, 2, ... of a block of b positions brings every s-th position not brought before, from the first one on,
    s = max(1, b // base^t).

    Source: Luxembourg et al. (DUS), https://arxiv.org/abs/2506.19037, section 3. Deviations: a round that has nobody
    left, as the last ones of a block whose length is no power of the base, is not made; one in which nobody scores
    enough would leave the canvas as it is, and is joined with the next in the same forward.
    """

    base: int = 2
    skip: float = 0.0
    """Positions that score less are put off; 0 puts nobody off."""

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        level = torch.full_like(score, math.log(self.skip) if self.skip else float("-inf"))
        sure = eligible & (score >= level)
        group = self.groups(canvas)
        never = group.shape[1] + 2
        done = canvas.memory.get(ROUND, torch.zeros_like(canvas.turn)).masked_fill(canvas.turn == 0, 0)
        following = group.masked_fill(~eligible | (group <= done[:, None]), never).amin(dim=1)
        due_from = torch.maximum(group, following[:, None])
        last = group.masked_fill(~eligible, 0).amax(dim=1)
        this = torch.minimum(due_from.masked_fill(~sure, never).amin(dim=1), last)[:, None]
        due = eligible & (group <= this)
        commit = torch.where(this == last[:, None], due, due & sure)
        bar = ledger.below(level.masked_fill(~due, float("inf")))
        return Choice(commit, bar, memory={ROUND: torch.maximum(done, this[:, 0])})

    def groups(self, canvas: Canvas) -> Int64[Tensor, "B L"]:
        """The round in which each position of the open block is due, from 1; other positions have no meaning."""
        size = (canvas.block_of == canvas.block[:, None]).sum(dim=1, keepdim=True)
        place = torch.arange(canvas.hidden.shape[1], device=size.device) - canvas.block_start[:, None]
        group = torch.zeros_like(canvas.block_of)
        turn, stride = 0, size
        while turn == 0 or bool((stride > 1).any()):
            turn += 1
            stride = (size // self.base**turn).clamp(min=1)
            group = torch.where((group == 0) & (place % stride == 0), turn, group)
        return group
