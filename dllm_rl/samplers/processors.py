"""Scores made of scores: ends of text held back, for a while or to the last."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.score import EVERYTHING, BlindScore, DrawnScore


@runtime_checkable
class Factor(Protocol):
    """What a confidence is multiplied with, from where the row stands."""

    def __call__(self, canvas: Canvas) -> Float64[Tensor, " B"]: ...


def _refuse_wrong_range(low: float, high: float) -> None:
    if not 0 <= low <= high < math.inf:
        raise RecipeError(f"factors rise from {low} to {high}; expected 0 <= eos_min_gamma <= eos_max_gamma, finite")


@dataclass(frozen=True, slots=True)
class LinearRise:
    """From `low` at the first step of a rollout to `high` at the last, and `high` if there is only one.

    Counts the steps of all blocks. The published code counts those of the block and divides by those of all, so that
    with several blocks it never comes near `high`.

    Source: Yang et al. (EOSER), https://arxiv.org/abs/2509.23924, "EOS early rejection".
    """

    low: float
    high: float
    steps: int
    """Of all blocks together; `high` from there on."""

    def __post_init__(self) -> None:
        _refuse_wrong_range(self.low, self.high)

    def __call__(self, canvas: Canvas) -> Float64[Tensor, " B"]:
        last = self.steps - 1
        done = canvas.forwards.to(torch.float64).clamp(max=last)
        share = done / last if last else torch.ones_like(done)
        return self.low + (self.high - self.low) * share


@dataclass(frozen=True, slots=True)
class AscendingRise:
    """From `low` towards `high` in proportion to what steps of 1, 2, 4, ... will have written: (2^(i+1) - 1) / 2^steps
    at step i from 0, and `high` if there is only one step.

    Source: Yang et al. (EOSER with ASS), https://arxiv.org/abs/2509.23924, and ass_sampling of its code.
    """

    low: float
    high: float
    steps: int
    """Of all blocks together."""

    def __post_init__(self) -> None:
        _refuse_wrong_range(self.low, self.high)

    def __call__(self, canvas: Canvas) -> Float64[Tensor, " B"]:
        done = canvas.forwards.to(torch.float64).clamp(max=self.steps - 1)
        share = (2 ** (done + 1) - 1) / 2**self.steps if self.steps > 1 else torch.ones_like(done)
        return self.low + (self.high - self.low) * share


@dataclass(frozen=True, slots=True)
class EndsDiscounted:
    """Another score, in which a drawn end of text counts for less: its probability times a factor.

    Only the order of writing changes, not what is drawn. At temperature 0 and with one block that is enough to keep the
    ends, of which the network is sure early, from shortening the text.

    Source: Yang et al. (EOSER, "EOS early rejection"), https://arxiv.org/abs/2509.23924. The code discounts the end of
    sequence alone; an end of turn can be named as well.
    """

    score: DrawnScore
    """Of log-probabilities."""
    ids: tuple[int, ...]
    factor: Factor

    def of_tokens(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, "T V"]:
        table = self.score.of_tokens(proposal, canvas)
        ids = torch.tensor(self.ids, device=table.device)
        discount = self.factor(canvas).log()[proposal.row, None].to(table.dtype)
        return table.index_add(1, ids, discount.expand(-1, len(ids)))


@dataclass(frozen=True, slots=True)
class DrawnEndsLast:
    """Another score, in which a drawn end of text is written only where nothing else was drawn."""

    score: DrawnScore
    ids: tuple[int, ...]

    def of_tokens(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, "T V"]:
        table = self.score.of_tokens(proposal, canvas)
        return table.index_fill(1, torch.tensor(self.ids, device=table.device), float("-inf"))


@dataclass(frozen=True, slots=True)
class LikelyEndsLast:
    """Another score, in which positions whose likeliest token ends the text come last.

    The counterpart of `DrawnEndsLast` for scores that are blind to the draw, and so still an exact order.
    """

    score: BlindScore
    ids: tuple[int, ...]
    distribution: Transform = EVERYTHING
    """Which token is likeliest; ids that it forbids are not asked."""

    @property
    def reads_plan(self) -> bool:
        return self.score.reads_plan

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        return self.score.of_positions(proposal, canvas) + proposal.per_position(self._handicap)

    def _handicap(self, logits: Float[Tensor, "T V"]) -> Float[Tensor, " T"]:
        likeliest = self.distribution.permitted(logits).argmax(dim=-1)
        ends = torch.isin(likeliest, torch.tensor(self.ids, device=logits.device))
        return torch.zeros_like(logits[:, 0]).masked_fill(ends, float("-inf"))
