"""Samplers that go through time in steps, forth and back: how likely each step writes, and hides again.

A step goes from a time at which a share t of all positions is hidden to one at which it is s. It may hide again a share
m of all, and then writes so many more: whatever m is, the share hidden after it is s on average.

Source: Wang et al. (ReMDM), https://arxiv.org/abs/2503.00307, sections 3 and 4. In its terms t is 1 - alpha_t, s is
1 - alpha_s and m is sigma * alpha_t; m is at most min(1 - t, s), where sigma is sigma_max.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Chances:
    """Probabilities at each turn of a block."""

    write: tuple[float, ...]
    """That a hidden position is written; 1 at the last."""
    remask: tuple[float, ...]
    """That a written position is hidden again; 0 at the first and at the last."""


def chances(hidden: Sequence[float], again: Sequence[float]) -> Chances:
    """The chances that make it so: of those hidden (s - m) / t stay hidden, and of the others m / (1 - t) join them.

    Args:
        hidden: share of all positions hidden before each step, and after the last; from 1 to 0, it never rises.
        again: share of all positions that each step hides again.
    """
    steps = list(zip(pairwise(hidden), again, strict=True))
    return Chances(
        write=tuple(1 - (s - m) / t for (t, s), m in steps),
        remask=tuple(m / (1 - t) if t < 1 else 0.0 for (t, _), m in steps),
    )


def even_times(steps: int) -> list[float]:
    """Times fall evenly from 1 to 0."""
    return [1 - step / steps for step in range(steps + 1)]


def capped(hidden: Sequence[float], eta: float) -> list[float]:
    """Shares hidden again when sigma is eta, or sigma_max if that is less ("ReMDM-cap")."""
    return [min(eta * (1 - t), s) for t, s in pairwise(hidden)]


def rescaled(hidden: Sequence[float], eta: float) -> list[float]:
    """Shares hidden again when sigma is eta * sigma_max ("ReMDM-rescale")."""
    return [eta * min(1 - t, s) for t, s in pairwise(hidden)]


@dataclass(frozen=True, slots=True)
class Plateau:
    """Times between which the share written stands still, so that what is written is only exchanged ("ReMDM-loop").

    Deviation: the published code goes on along each line up to the end of the step that crosses a switch, and so misses
    the share that the next step starts from. Here alpha is a function of time.
    """

    t_on: float
    """Time at which it begins."""
    t_off: float
    """Time at which it ends, earlier on the way to 0."""
    alpha_on: float
    """Share of positions written meanwhile."""

    def hidden(self, times: Sequence[float]) -> list[float]:
        """Share of all positions hidden at each time."""
        return [self._hidden(time) for time in times]

    def _hidden(self, time: float) -> float:
        rest = 1 - self.alpha_on
        if time > self.t_on:  # as a share of a share, which rounding cannot take below the plateau
            return 1 - self.alpha_on * ((1 - time) / (1 - self.t_on))
        return min(rest, rest * time / self.t_off)

    def again(self, times: Sequence[float], eta: float) -> list[float]:
        """Shares hidden again: capped by eta in steps that start on the plateau, none in the others."""
        shares = capped(self.hidden(times), eta)
        return [
            share if self.t_off < time <= self.t_on else 0.0 for time, share in zip(times[:-1], shares, strict=True)
        ]
