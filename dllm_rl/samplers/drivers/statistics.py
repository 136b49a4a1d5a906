"""Numbers that whole rollouts are compared by."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import RecipeError


@runtime_checkable
class Statistic(Protocol):
    """A number per rollout; the smallest is the best."""

    def __call__(self, trajectory: Trajectory) -> Float[Tensor, " B"]: ...


def path_entropy(trajectory: Trajectory) -> Float64[Tensor, " B"]:
    """Denoising entropy of each path, nats: the mean entropy of the open positions, integrated over time.

    Time runs from 1 to 0 in equal steps over a row's own forwards. The integral is a trapezoid; at its end nothing is
    hidden, and the entropy of nothing is 0. Costs no forward. It says how sure the network was, not whether it was
    right: a rollout that repeats itself is very sure. In a completion of several blocks only the block being written is
    looked at.

    Source: Chen et al., https://arxiv.org/abs/2512.21336, H_DE; in bits there. Deviation: the open block instead of all
    hidden positions.

    Raises:
        RecipeError: the entropy was not measured.
    """
    if trajectory.entropy is None:
        raise RecipeError("the rollouts hold no entropy; set the sampler's measure_entropy to True")
    heights = trajectory.entropy.nan_to_num(nan=0.0)  # where a row has nothing open
    forwards = torch.tensor(trajectory.nfe, dtype=torch.float64, device=trajectory.device)
    area = heights.sum(dim=1) - heights[:, :1].sum(dim=1) / 2
    return torch.where(forwards > 0, area / forwards, 0.0)


def values_of(trajectory: Trajectory, by: Statistic, n: int) -> Float64[Tensor, "P N"]:
    """The statistic of every rollout, `n` of each prompt."""
    return by(trajectory).to(torch.float64).view(-1, n)


def smallest(values: Float64[Tensor, "P N"]) -> Int64[Tensor, " P"]:
    """Place of the smallest value of each prompt, of equals the first.

    Raises:
        RecipeError: a value is NaN.
    """
    if bool(values.isnan().any()):
        prompt, candidate = values.isnan().nonzero()[0].tolist()
        raise RecipeError(
            f"the statistic of candidate {candidate} of prompt {prompt} is NaN; expected numbers. Log-probabilities of "
            "greedy rollouts, for one, are NaN"
        )
    return values.argmin(dim=1)
