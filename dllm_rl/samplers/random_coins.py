"""A coin for every open position: how samplers that discretise a reverse process in time choose what to write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dllm_rl.diffusion import ledger
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.select import Choice


def of_turn(values: tuple[float, ...], canvas: Canvas) -> Float64[Tensor, " B"]:
    """The value for the turn at which each row stands; rows that are finished may stand beyond the last."""
    table = torch.tensor(values, dtype=torch.float64, device=canvas.turn.device)
    return table[canvas.turn.clamp(max=len(values) - 1)]


@dataclass(frozen=True, slots=True)
class Coins:
    """Every open position is written with a probability that depends on the turn alone. Scores are not read.

    A step may write nothing. The last probability must be 1 for the block to be filled.

    Source: Sahoo et al. (MDLM), https://arxiv.org/abs/2406.07524, ancestral sampling: 1 - s / t from time t to s.
    """

    chances: tuple[float, ...]
    """Of each turn of a block."""

    random: ClassVar[bool] = True

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        chance = of_turn(self.chances, canvas)[:, None].expand(eligible.shape)
        uniform = proposal.dense(proposal.uniform("order"), eligible.shape, empty=1.0)
        commit = eligible & (uniform < chance)
        return Choice(commit, logp=ledger.coins_logp(chance.log(), (-chance).log1p(), commit, eligible))
