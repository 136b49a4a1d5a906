"""KLASS: write what is sure and has stopped changing from one forward to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from dllm_rl.diffusion import ledger
from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.quota import Quota
from dllm_rl.samplers.score import EVERYTHING
from dllm_rl.samplers.select import Choice, highest

PREDICTION = "klass_prediction"
"""[B, window, V] float32: log-probabilities of the last forward, by place in the block; NaN where not asked for."""
DIVERGENCE = "klass_divergence"
"""[B, window, history] float64: the last divergences between forwards, nats; NaN where there was none."""


@dataclass(frozen=True, slots=True)
class Klass:
    """Every position that scores at least a probability and is stable; where none is, the highest scores of a quota.

    Stable is a position whose prediction diverged by less than a bound, KL(now || before), at each of the last few
    forwards of this block. A position's history begins when its block is opened, or when it is hidden again.

    Source: Kim et al. (KLASS), https://arxiv.org/abs/2511.05664, algorithm 1. The published code keeps the history of
    positions of later blocks while earlier ones are written, and at temperatures above 0 reads predictions from logits
    with the noise of the draw in them: not reproduced.
    """

    probability: float
    divergence: float
    """Nats."""
    window: int
    """Length of the longest block."""
    quota: Quota
    history: int = 2
    """Forwards compared with the one before them."""
    distribution: Transform = EVERYTHING

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        divergence, prediction = self._compare(proposal, canvas)
        past = self._history(divergence, proposal, canvas)
        place = (proposal.row, proposal.index - canvas.block_start[proposal.row])
        stable = proposal.dense((past[place] < self.divergence).all(dim=-1), eligible.shape)
        level = torch.full_like(score, math.log(self.probability)).masked_fill(~stable, float("inf"))
        ready = eligible & (score >= level)
        best = highest(score, eligible, self.quota(canvas))
        any_ready = ready.any(dim=1, keepdim=True)
        not_ready = ledger.below(level)
        bar = ledger.where(any_ready, not_ready, ledger.lower(ledger.weakest_chosen(score, best), not_ready))
        memory = {PREDICTION: prediction, DIVERGENCE: past}
        return Choice(torch.where(any_ready, ready, best), bar, memory=memory)

    def _compare(self, proposal: Proposal, canvas: Canvas) -> tuple[Float64[Tensor, " T"], Float32[Tensor, "B W V"]]:
        """The divergence of each position from its last prediction, and the new predictions."""
        shape = (len(canvas.keys), self.window, proposal.logits.shape[1])
        now = torch.full(shape, float("nan"), dtype=torch.float32, device=canvas.keys.device)
        before = canvas.memory.get(PREDICTION, now)
        divergence = []
        for part in proposal.split():
            place = (part.row, part.index - canvas.block_start[part.row])
            logp = self.distribution.log_probs(part.logits.to(torch.float64))
            change = logp.exp() * (logp - before[place])
            divergence.append(change.masked_fill(logp == float("-inf"), 0.0).sum(dim=-1))
            now = now.index_put(place, logp.to(torch.float32))
        return torch.cat(divergence), now

    def _history(
        self, divergence: Float64[Tensor, " T"], proposal: Proposal, canvas: Canvas
    ) -> Float64[Tensor, "B W H"]:
        """The last divergences of every place in the block, the newest at the end."""
        shape = (len(canvas.keys), self.window, self.history)
        unknown = torch.full(shape, float("nan"), dtype=torch.float64, device=canvas.keys.device)
        place = (proposal.row, proposal.index - canvas.block_start[proposal.row])
        newest = unknown[:, :, 0].index_put(place, divergence)
        past = torch.cat([canvas.memory.get(DIVERGENCE, unknown)[:, :, 1:], newest[:, :, None]], dim=-1)
        return past.masked_fill((canvas.turn == 0)[:, None, None], float("nan"))
