"""Policy-gradient objectives per token. All are to be maximised: the minus sign is the caller's."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dllm_rl.objectives.ratio import log_ratio


def clipped_surrogate(
    logp: Float[Tensor, "B L"],
    behaviour_logp: Float[Tensor, "B L"],
    advantage: Float[Tensor, " B"],
    scored: Bool[Tensor, "B L"],
    *,
    clip_low: float,
    clip_high: float,
    level: Literal["token", "sequence"] = "token",
) -> Float[Tensor, "B L"]:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), to be maximised; zero where not scored.

    Gradient flows into `logp` only. At logp == behaviour_logp the value is A and the gradient that of `reinforce`.

    Args:
        logp: of the policy, nats.
        behaviour_logp: of the policy that drew the tokens, under the same transform and the same views.
        advantage: one per sequence.
        scored: positions that count; what the others hold does not matter.
        clip_low: how far below 1 a ratio may fall before its gradient stops, if the advantage is negative.
        clip_high: how far above 1 it may rise, if the advantage is positive.
        level: what the ratio is taken over; see `log_ratio`.

    Raises:
        ValueError: a clip is negative.

    Source: Schulman et al., PPO, https://arxiv.org/abs/1707.06347, eq. 7; separate clips as in DAPO, Yu et al.,
        https://arxiv.org/abs/2503.14476, eq. 10.
    """
    ratio = log_ratio(logp, behaviour_logp, scored, level=level).exp()
    gain = advantage.to(ratio.dtype)[:, None]
    return torch.minimum(ratio * gain, _clip(ratio, clip_low, clip_high) * gain).masked_fill(~scored, 0.0)


def is_clipped(
    logp: Float[Tensor, "B L"],
    behaviour_logp: Float[Tensor, "B L"],
    advantage: Float[Tensor, " B"],
    scored: Bool[Tensor, "B L"],
    *,
    clip_low: float,
    clip_high: float,
    level: Literal["token", "sequence"] = "token",
) -> Bool[Tensor, "B L"]:
    """Scored positions where `clipped_surrogate` took the clipped branch, so that nothing is learned from them.

    A ratio outside the clip that its advantage pulls back inside is not clipped.
    """
    with torch.no_grad():
        ratio = log_ratio(logp, behaviour_logp, scored, level=level).exp()
        gain = advantage.to(ratio.dtype)[:, None]
        return scored & (_clip(ratio, clip_low, clip_high) * gain < ratio * gain)


def reinforce(
    logp: Float[Tensor, "B L"], advantage: Float[Tensor, " B"], scored: Bool[Tensor, "B L"]
) -> Float[Tensor, "B L"]:
    """Advantage times logp, to be maximised; zero where not scored. Its gradient is the policy gradient when on-policy.

    Source: Williams 1992, https://doi.org/10.1007/BF00992696.
    """
    return logp.masked_fill(~scored, 0.0) * advantage.to(logp.dtype)[:, None]


def _clip(ratio: Float[Tensor, "B L"], clip_low: float, clip_high: float) -> Float[Tensor, "B L"]:
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low is {clip_low}, clip_high is {clip_high}; expected distances from 1, not negative")
    return ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
