"""Rollouts with what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor, cat

from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.training.data import PromptRow


@dataclass(frozen=True, slots=True)
class Judged:
    """B completions, in the order of their prompts."""

    rows: list[PromptRow]
    trajectory: Trajectory
    texts: list[str]
    reward: Float64[Tensor, " B"]
    """What the algorithm sees: the weighted sum over the reward functions, shaped."""
    unshaped: Float64[Tensor, " B"]
    """That sum before gates, speed and normalisation."""
    per_function: dict[str, list[float | None]]
    """Of each reward function, without its weight; None where it does not apply."""

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: Judged) -> Judged:
        """All completions of both, these first."""
        return Judged(
            self.rows + other.rows,
            Trajectory.concatenate([self.trajectory, other.trajectory]),
            self.texts + other.texts,
            cat([self.reward, other.reward]),
            cat([self.unshaped, other.unshaped]),
            {name: values + other.per_function[name] for name, values in self.per_function.items()},
        )

    def select(self, index: Sequence[int]) -> Judged:
        """The completions of `index`, in that order."""
        return Judged(
            [self.rows[i] for i in index],
            self.trajectory.select(index),
            [self.texts[i] for i in index],
            self.reward[list(index)],
            self.unshaped[list(index)],
            {name: [values[i] for i in index] for name, values in self.per_function.items()},
        )
