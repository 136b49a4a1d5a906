"""How much more likely the policy makes what the behaviour policy drew."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def log_ratio(
    logp: Float[Tensor, "B L"],
    behaviour_logp: Float[Tensor, "B L"],
    scored: Bool[Tensor, "B L"],
    *,
    level: Literal["token", "sequence"] = "token",
) -> Float[Tensor, "B L"]:
    """Log importance ratio in nats, zero where not scored. Gradient flows into `logp` only.

    Args:
        logp: of the policy.
        behaviour_logp: of the policy that drew the tokens, under the same transform and the same views.
        scored: positions that count; what the others hold does not matter.
        level: "token": each position its own. "sequence": the mean over a row's scored positions, at each of them.

    Source: "sequence" is GSPO's length-normalised ratio, Zheng et al., https://arxiv.org/abs/2507.18071, eq. 7.
    """
    difference = logp.masked_fill(~scored, 0.0) - behaviour_logp.detach().masked_fill(~scored, 0.0)
    if level == "token":
        return difference
    if level != "sequence":
        raise ValueError(f"level is {level!r}; expected 'token' or 'sequence'")
    count = scored.sum(1, keepdim=True).clamp(min=1)  # a row without scored positions has sum zero and stays zero
    return torch.where(scored, difference.sum(1, keepdim=True) / count, 0.0)
