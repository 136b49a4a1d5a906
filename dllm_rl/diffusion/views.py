"""A view is one noised copy of a sequence: what the model sees, what is scored on it, and what each score weighs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
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

    def __len__(self) -> int:
        return self.canvas.shape[0]

    def select(self, index: Int64[Tensor, " S"]) -> Views:
        tokens = None if self.tokens is None else self.tokens[index]
        return Views(self.canvas[index], self.scored[index], self.weight[index], self.row[index], tokens)

    def to(self, device: torch.device) -> Views:
        canvas, scored, weight, row = (part.to(device) for part in (self.canvas, self.scored, self.weight, self.row))
        return Views(canvas, scored, weight, row, None if self.tokens is None else self.tokens.to(device))
