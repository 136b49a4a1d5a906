"""Advantages of completions within the group that answers one prompt."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Real
from torch import Tensor


def group_advantages(
    reward: Real[Tensor, "P G"],
    *,
    baseline: Literal["mean", "leave_one_out"] = "mean",
    scale: Literal["none", "group_std"] = "none",
) -> Float[Tensor, "P G"]:
    """How much better each completion is than its group. A group of equal rewards gets exactly zeros.

    Not for rewards that are undefined for some completions: replace or leave those out first, on purpose.

    Args:
        reward: one number per completion, finite. Advantages are of its type, those of integers float32.
        baseline: "mean" of the group, or "leave_one_out": the mean of the others, G / (G - 1) times as large and
            unbiased as a baseline.
        scale: "none", or "group_std": divide by the group's standard deviation (G - 1 in its denominator). Nothing is
            added to it: equal rewards are zeros already. The division over-weights prompts that are nearly always or
            nearly never solved.

    Raises:
        ValueError: a reward is not finite, or an option is unknown.

    Source: Shao et al., GRPO, https://arxiv.org/abs/2402.03300, eq. 4 without its eps; Ahmadian et al., RLOO,
        https://arxiv.org/abs/2402.14740, eq. 6; Liu et al., Dr. GRPO, https://arxiv.org/abs/2503.20783 (no division).
    """
    if not torch.isfinite(reward).all():
        prompt, completion = (~torch.isfinite(reward)).nonzero()[0].tolist()
        value = reward[prompt, completion].item()
        raise ValueError(f"reward [{prompt}, {completion}] is {value}; expected finite numbers, one per completion")
    exact = reward.double()
    size = reward.shape[1]
    advantage = exact - exact.mean(1, keepdim=True)
    equal = (reward == reward[:, :1]).all(1, keepdim=True)
    if baseline == "leave_one_out":
        advantage = advantage * size / (size - 1)
    elif baseline != "mean":
        raise ValueError(f"baseline is {baseline!r}; expected 'mean' or 'leave_one_out'")
    if scale == "group_std":
        squares = (exact - exact.mean(1, keepdim=True)).square().sum(1, keepdim=True)
        advantage = advantage / (squares / (size - 1)).sqrt()
    elif scale != "none":
        raise ValueError(f"scale is {scale!r}; expected 'none' or 'group_std'")
    dtype = reward.dtype if reward.is_floating_point() else torch.float32
    return advantage.masked_fill(equal, 0.0).to(dtype)  # 0 / 0 above where all are equal
