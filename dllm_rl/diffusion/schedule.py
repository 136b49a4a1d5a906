"""What a schedule policy did in a rollout: what it was shown, what it decided, and how probable that was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class ScheduleTrace:
    """The decisions of B rollouts, S steps each; a row's first `nfe` steps are its own, the rest is zero."""

    features: Float64[Tensor, "B S F"]
    """What the policy was shown before each step."""
    action: Float64[Tensor, "B S A"]
    """What was added to the manual schedule, before the links: a draw from N(mean(features), sigma^2)."""
    logp: Float64[Tensor, "B S"]
    """Log-density of the action, nats; 0 where sigma is 0 and nothing was drawn."""
    commit: Float64[Tensor, "B S"]
    """How much was to be written at each step, manual or decided: a share of the open positions, before it is rounded
    to a number of them, or the probability that a position had to reach."""
    temperature: Float64[Tensor, "B S"] | None
    """Of the tokens' distribution at each step; None if that was not the policy's to decide."""
    cfg_scale: Float64[Tensor, "B S"] | None
    """Strength of guidance at each step; None if that was not the policy's to decide."""
    ranking_temperature: Float64[Tensor, "B S"] | None
    """How random the order was at each step; None if that was not the policy's to decide."""
    sigma: float
    """Standard deviation of every action around its mean."""
    learned: tuple[str, ...]
    """What the policy decided, one action each, in their order."""

    def select(self, rows: Int64[Tensor, " R"]) -> ScheduleTrace:
        """The decisions of `rows`, in that order, repeats allowed."""
        return self._each(lambda part: part[rows])

    @staticmethod
    def of_steps(steps: Sequence[ScheduleTrace]) -> ScheduleTrace:
        """One trace of steps that followed each other, of the same rows."""
        return _joined(steps, dim=1)

    @staticmethod
    def of_rows(parts: Sequence[ScheduleTrace]) -> ScheduleTrace:
        """One trace of all rows; those with fewer steps are filled with zeros."""
        steps = max(part.logp.shape[1] for part in parts)
        return _joined([part._lengthened(steps) for part in parts], dim=0)

    def _lengthened(self, steps: int) -> ScheduleTrace:
        missing = steps - self.logp.shape[1]
        return self._each(lambda part: pad(part, (0,) * (2 * part.ndim - 4) + (0, missing)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> ScheduleTrace:
        return _made_of(self, {name: change(part) for name, part in _tensors(self).items()})


def _made_of(trace: ScheduleTrace, tensors: dict[str, Tensor]) -> ScheduleTrace:
    return replace(trace, **tensors)  # type: ignore[arg-type]  # sigma and learned are none of them


def _tensors(trace: ScheduleTrace) -> dict[str, Tensor]:
    parts = {field.name: getattr(trace, field.name) for field in fields(trace)}
    return {name: part for name, part in parts.items() if isinstance(part, Tensor)}


def _joined(parts: Sequence[ScheduleTrace], dim: int) -> ScheduleTrace:
    tensors = [_tensors(part) for part in parts]
    return _made_of(parts[0], {name: torch.cat([part[name] for part in tensors], dim=dim) for name in tensors[0]})
