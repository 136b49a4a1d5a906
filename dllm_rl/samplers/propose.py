"""What one forward says of some positions, and draws from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dllm_rl import rng
from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.canvas import Canvas

LOGITS_PER_CHUNK = 2**18
"""Logits held at once in float64, 2 MB of them: 2 positions of a vocabulary of 126 464."""


def step_keys(canvas: Canvas, row: Int64[Tensor, " T"], index: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
    """A key for the step after this canvas at each of some positions."""
    return rng.fold(canvas.keys[row], canvas.forwards[row] + 1, index)


@dataclass(frozen=True, slots=True)
class Proposal:
    """The network's opinion on T positions, in row-major order."""

    row: Int64[Tensor, " T"]
    index: Int64[Tensor, " T"]
    """Position in the completion, counted from 0."""
    logits: Float[Tensor, "T V"]
    """Guided, if the rollout is; before temperature and before any id is forbidden."""
    key: Int64[Tensor, " T"]
    """A key for this row, step and position; every random number of the step is folded from it."""
    plan: Float[Tensor, " T"] | None = None
    """The planner head's logit; None unless the score asks for it."""
    unconditional: Float[Tensor, "T V"] | None = None
    """Logits without the prompt, where a schedule still has to decide how strong guidance is."""
    temperature: Float64[Tensor, " T"] | None = None
    """Of each position's distribution, in place of the transform's, where a schedule has decided it."""

    def select(self, which: Bool[Tensor, " T"] | Int64[Tensor, " S"] | slice) -> Proposal:
        return Proposal(*(None if part is None else part[which] for part in self._parts()))  # type: ignore[arg-type]

    def _parts(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]

    def of_rows(self, rows: Int64[Tensor, " R"], canvas: Canvas) -> Proposal:
        """The proposal for `canvas`, whose rows are copies of `rows`, repeats allowed; random numbers are its own."""
        row, place = (rows[:, None] == self.row).nonzero(as_tuple=True)
        chosen = self.select(place)
        return replace(chosen, row=row, key=step_keys(canvas, row, chosen.index))

    @property
    def _chunk(self) -> int:
        return max(1, LOGITS_PER_CHUNK // self.logits.shape[1])

    def split(self) -> list[Proposal]:
        """The proposal in chunks small enough for float64 and for copies of the logits."""
        bounds = range(0, max(1, len(self.row)), self._chunk)
        return [self.select(slice(start, start + self._chunk)) for start in bounds]

    def gather(self, of_tokens: Callable[[Proposal], Tensor], token: Int64[Tensor, " T"]) -> Float[Tensor, " T"]:
        """What `of_tokens`, a [T, V] table computed in chunks, holds for one token per position."""
        tokens = torch.split(token, self._chunk)
        chunks = zip(self.split(), tokens, strict=True)
        return torch.cat([of_tokens(part).gather(-1, column[:, None])[:, 0] for part, column in chunks])

    def per_position(self, of_logits: Callable[[Tensor], Tensor]) -> Float[Tensor, " T"]:
        """A function of each position's logits, computed in chunks."""
        return torch.cat([of_logits(part.logits) for part in self.split()])

    def log_probs(self, transform: Transform) -> Float64[Tensor, "T V"]:
        """Of the distribution that tokens are drawn from, in float64. For chunks."""
        logits = self.logits.to(torch.float64)
        if self.temperature is None:
            return transform.log_probs(logits)
        return replace(transform, temperature=1.0).log_probs(logits / self.temperature[:, None])

    def uniform(self, purpose: str) -> Float64[Tensor, " T"]:
        """One fresh number per position, uniform on (0, 1), that nothing else of this step shares."""
        return rng.uniform(rng.fold(self.key, purpose), 1)[:, 0]

    def dense(self, values: Tensor, shape: torch.Size, empty: float = 0.0) -> Tensor:
        """[B, L]: one value per position of the proposal, `empty` elsewhere."""
        table = torch.full(shape, empty, dtype=values.dtype, device=values.device)
        return table.index_put((self.row, self.index), values)


@dataclass(frozen=True, slots=True)
class Draw:
    """One token per position and what it cost to draw it."""

    token: Int64[Tensor, " T"]
    logq: Float64[Tensor, " T"]
    """Log-probability under the distribution drawn from, nats; NaN when drawn greedily."""

    def select(self, which: Bool[Tensor, " T"] | Int64[Tensor, " S"]) -> Draw:
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
    logq = proposal.log_probs(transform)
    uniform = proposal.uniform("token")[:, None]
    cumulative = logq.exp().cumsum(dim=-1)
    # The sum is 1 only up to rounding, hence the scale; a number below 1 then lands on a token that has mass.
    token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return Draw(token[:, 0], logq.gather(-1, token)[:, 0])
