"""A view is one noised copy of a sequence: what the model sees, what is scored on it, and what each score weighs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sequences:
    """Clean sequences in one rectangle; padding, if any, is on the left or has `attend` false."""

    tokens: Int[Tensor, "B N"]
    attend: Bool[Tensor, "B N"]
    """Positions the model may look at; false on padding."""
    completion: Bool[Tensor, "B N"]
    """Positions written by the model (or to be learned); the rest of what is attended is the prompt."""
    scored: Bool[Tensor, "B N"]
    """Positions whose likelihood counts; a part of `completion`."""

    @property
    def prompt(self) -> Bool[Tensor, "B N"]:
        return self.attend & ~self.completion

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def select(self, rows: Int64[Tensor, " S"]) -> Sequences:
        return Sequences(self.tokens[rows], self.attend[rows], self.completion[rows], self.scored[rows])

    def to(self, device: torch.device) -> Sequences:
        return Sequences(*(part.to(device) for part in (self.tokens, self.attend, self.completion, self.scored)))


@dataclass(frozen=True, slots=True)
class Views:
    """R views over B sequences. Any likelihood of this library is a weighted sum of token log-probs over views."""

    canvas: Int[Tensor, "R N"]
    """Ids the model sees."""
    scored: Bool[Tensor, "R N"]
    """Positions whose clean token is scored on this view."""
    weight: Float[Tensor, "R N"]
    """Weight of each scored position; zero elsewhere. float64, made once with the draw."""
    row: Int64[Tensor, " R"]
    """The sequence each view belongs to."""
    tokens: Int[Tensor, "R N"] | None = None
    """What is scored, where that need not be the sequence's own tokens: a draw that was overwritten later."""
    open: Bool[Tensor, "R N"] | None = None
    """Positions among which a step chose where to write; the model's planner head is scored there."""
    temperature: Float64[Tensor, " R"] | None = None
    """Of each view's token distribution, where a schedule set it step by step; in place of the transform's."""
    cfg_scale: Float64[Tensor, " R"] | None = None
    """Likewise for guidance."""
    features: Float[Tensor, "R F"] | None = None
    """What a schedule policy was shown. Such views are scored by it alone: the network does not see their canvas."""

    def __len__(self) -> int:
        return self.canvas.shape[0]

    def select(self, index: Int64[Tensor, " S"]) -> Views:
        return Views(*(None if part is None else part[index] for part in self._parts()))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Views:
        return Views(*(None if part is None else part.to(device) for part in self._parts()))  # type: ignore[arg-type]

    def _parts(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]
