"""How far a rollout through an approximate cache strayed from the model: measured, by replaying it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.trajectory import Op, Trajectory
from dllm_rl.diffusion.transform import Transform


@dataclass(frozen=True, slots=True)
class Drift:
    """Log-probabilities at temperature 1 that the rollout's network gave the tokens it drew, minus the model's own."""

    per_token: Float64[Tensor, " W"]
    """One difference per token drawn, overwritten ones too, in the order of the log; nats."""

    @property
    def mean(self) -> float:
        """Mean absolute difference, nats per token."""
        return float(self.per_token.abs().mean())

    @property
    def largest(self) -> float:
        """Largest absolute difference, nats."""
        return float(self.per_token.abs().max())


@torch.no_grad()
def measure_drift(model: Denoiser, trajectory: Trajectory) -> Drift:
    """Replay every step of a rollout with exact forwards. Costs as many forwards as the rollout without a cache.

    For rollouts without a cache, or with an exact one, what is left is rounding.
    """
    events, sequences = trajectory.events, trajectory.sequences()
    transform = Transform(cfg_scale=trajectory.transform.cfg_scale)
    drawn = events.op == Op.WRITE
    difference = torch.zeros_like(events.logp)
    for step in range(1, trajectory.num_steps + 1):
        now = (drawn & (events.step == step)).nonzero()[:, 0]
        cell = (events.row[now], events.position[now] + trajectory.prompt_length)
        canvas = trajectory.canvas(step - 1)
        where = torch.zeros_like(canvas, dtype=torch.bool).index_put(cell, torch.ones_like(now, dtype=torch.bool))
        tokens = canvas.index_put(cell, events.token[now])
        scores = model.score(canvas, tokens, where, sequences.attend, transform, prompt=sequences.prompt)
        difference[now] = events.logp[now] - scores.logp[cell].to(torch.float64)
    return Drift(difference[drawn])
