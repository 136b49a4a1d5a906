"""Advantages of steps: rollouts of a group compared at one step, when every step's own completion has a reward."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dllm_rl.objectives.advantages import group_advantages

_DECIMALS = 12
"""Values are rounded to so many, so that what is equal on paper is equal here, whatever the order of the sums."""


def step_exists(num_steps: Int64[Tensor, "P G"], longest: int) -> Bool[Tensor, "P G S"]:
    """Which of `longest` steps each rollout took."""
    return torch.arange(longest, device=num_steps.device) < num_steps[..., None]


def step_values(reward: Float[Tensor, "P G S"], num_steps: Int64[Tensor, "P G"]) -> Float64[Tensor, "P G S"]:
    """What a step gained on the one before, and what the steps after it are worth: (r_i - r_{i-1} + 1) + v_i.

    v_i is the mean reward of the later steps, that of the last step its own reward, and r_{-1} is 0. The 1 leaves every
    difference as it is. Zero at steps that a rollout did not take, whatever `reward` holds there.

    Source: He et al., MDPO, https://arxiv.org/abs/2508.13148, and its mdpo_trainer.py, which counts steps from the
        first made; the paper counts down and divides by 0 at the last.
    """
    exists = step_exists(num_steps, reward.shape[2])
    exact = reward.double().masked_fill(~exists, 0.0)
    gain = exact.diff(dim=-1, prepend=torch.zeros_like(exact[..., :1])) + 1
    num_later = (num_steps[..., None] - 1 - torch.arange(reward.shape[2], device=reward.device)).clamp(min=0)
    later = exact.flip(-1).cumsum(-1).flip(-1) - exact
    value = torch.where(num_later > 0, later / num_later.clamp(min=1), exact)
    return (gain + value).masked_fill(~exists, 0.0)


def step_advantages(
    reward: Float[Tensor, "P G S"],
    num_steps: Int64[Tensor, "P G"],
    *,
    baseline: Literal["mean", "leave_one_out"] = "mean",
    scale: Literal["none", "group_std"] = "none",
) -> Float64[Tensor, "P G S"]:
    """How much better each rollout did at a step than the others of its group at the same step.

    Rollouts that were finished before a step are not compared at it. Values that are equal at a step give exactly
    zeros, and so does a rollout that no other is left to be compared with.

    Args:
        reward: of every step's one-step completion, finite where a rollout took the step.
        num_steps: how many steps each rollout took.
        baseline: see `group_advantages`.
        scale: see `group_advantages`; MDPO's is "group_std".

    Raises:
        ValueError: a reward is not finite, or an option is unknown.

    Source: He et al., MDPO, https://arxiv.org/abs/2508.13148; its code adds 1e-4 to the standard deviation.
    """
    value = step_values(reward, num_steps).round(decimals=_DECIMALS)
    exists = step_exists(num_steps, reward.shape[2])
    advantage = torch.zeros_like(value)
    # One group at a time: its numbers are then the same bits whatever groups are beside it.
    for prompt, step in exists.any(1).nonzero().tolist():
        rows = exists[prompt, :, step].nonzero()[:, 0]
        compared = group_advantages(value[prompt, rows, step][None], baseline=baseline, scale=scale)
        advantage[prompt, rows, step] = compared[0]
    return advantage


def telling_steps(advantage: Float64[Tensor, "P G S"], keep: int | None) -> Bool[Tensor, "P S"]:
    """The `keep` steps at which a group's rollouts differ most: the largest sum of |advantage|; of equals the first.

    Args:
        keep: None for all.

    Source: He et al., MDPO, https://arxiv.org/abs/2508.13148, whose code adds over the rollouts of one process.
    """
    strength = torch.stack([group.abs().sum(0) for group in advantage]).round(decimals=_DECIMALS)
    kept = torch.ones_like(strength, dtype=torch.bool)
    if keep is None:
        return kept
    order = strength.argsort(dim=-1, descending=True, stable=True)
    return kept.scatter(1, order[:, keep:], False)
