"""What one forward says of the open positions, and draws from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dllm_rl import rng
from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.transform import Transform, guide
from dllm_rl.errors import ModelContractError
from dllm_rl.samplers.canvas import Canvas

POSITIONS_PER_CHUNK = 128
"""Rows of float64 vocabulary held at once: 128 of a vocabulary of 126 464 take 130 MB."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The network's opinion on T open positions, in row-major order."""

    row: Int64[Tensor, " T"]
    index: Int64[Tensor, " T"]
    """Position in the completion, counted from 0."""
    logits: Float[Tensor, "T V"]
    """Guided, if the rollout is; before temperature and before any id is forbidden."""
    key: Int64[Tensor, " T"]
    """A key for this row, step and position; every random number of the step is folded from it."""

    def select(self, which: Bool[Tensor, " T"]) -> Proposal:
        return Proposal(self.row[which], self.index[which], self.logits[which], self.key[which])

    def split(self) -> list[Proposal]:
        """The proposal in chunks small enough for float64 and for copies of the logits."""
        parts = (torch.split(part, POSITIONS_PER_CHUNK) for part in (self.row, self.index, self.logits, self.key))
        return [Proposal(*chunk) for chunk in zip(*parts, strict=True)]

    def gather(self, of_tokens: Callable[[Proposal], Tensor], token: Int64[Tensor, " T"]) -> Float[Tensor, " T"]:
        """What `of_tokens`, a [T, V] table computed in chunks, holds for one token per position."""
        tokens = torch.split(token, POSITIONS_PER_CHUNK)
        chunks = zip(self.split(), tokens, strict=True)
        return torch.cat([of_tokens(part).gather(-1, column[:, None])[:, 0] for part, column in chunks])


def propose(
    denoiser: Denoiser, canvas: Canvas, eligible: Bool[Tensor, "B L"], step: int, transform: Transform
) -> Proposal:
    """Run the network once (twice under guidance) and keep what it says of the eligible positions.

    Raises:
        ModelContractError: a logit is NaN.
    """
    where = canvas.columns(eligible)
    logits = denoiser.logits_at(canvas.tokens, where, canvas.attend)
    if transform.cfg_scale != 0:
        unconditional = denoiser.logits_at(canvas.without_prompt(denoiser.spec.mask_id), where, canvas.attend)
        logits = guide(logits, unconditional, transform.cfg_scale)
    if logits.isnan().any():
        raise ModelContractError(f"the network gave NaN logits at forward {step}; expected numbers. Check its weights")
    row, index = eligible.nonzero(as_tuple=True)
    return Proposal(row, index, logits, rng.fold(canvas.keys[row], step, index))


@dataclass(frozen=True, slots=True)
class Draw:
    """One token per position and what it cost to draw it."""

    token: Int64[Tensor, " T"]
    logq: Float64[Tensor, " T"]
    """Log-probability under the distribution drawn from, nats; NaN when drawn greedily."""

    def select(self, which: Bool[Tensor, " T"]) -> Draw:
        return Draw(self.token[which], self.logq[which])


def draw(proposal: Proposal, transform: Transform) -> Draw:
    """Draw a token at every position of the proposal, in float64; at temperature 0 the largest permitted logit.

    In lower precision the noise has so few values that the tail of a large vocabulary is never drawn.
    """
    draws = [_draw_chunk(chunk, transform) for chunk in proposal.split()]
    return Draw(torch.cat([part.token for part in draws]), torch.cat([part.logq for part in draws]))


def _draw_chunk(proposal: Proposal, transform: Transform) -> Draw:
    if transform.temperature == 0:
        greedy = transform.permitted(proposal.logits).argmax(dim=-1)
        return Draw(greedy, torch.full(greedy.shape, float("nan"), dtype=torch.float64, device=greedy.device))
    logq = transform.log_probs(proposal.logits.to(torch.float64))
    uniform = rng.uniform(rng.fold(proposal.key, "token"), 1)
    cumulative = logq.exp().cumsum(dim=-1)
    # The sum is 1 only up to rounding, hence the scale; a number below 1 then lands on a token that has mass.
    token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return Draw(token[:, 0], logq.gather(-1, token)[:, 0])
