"""Estimates of KL(policy || reference) from tokens that the policy drew."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def kl(
    policy_logp: Float[Tensor, "*shape"],
    reference_logp: Float[Tensor, "*shape"],
    estimator: Literal["k1", "k2", "k3"],
) -> Float[Tensor, "*shape"]:
    """One estimate per token, nats; tokens must be draws of the policy. Mask positions that are not scored yourself.

    With d = policy_logp - reference_logp:
        k1 = d: unbiased; may be negative.
        k2 = d^2 / 2: biased, never negative.
        k3 = exp(-d) - 1 + d: unbiased, never negative.

    Gradient flows into `policy_logp` only. Used as a loss, what is descended is the gradient of the formula and not
    that of its mean. On-policy, in expectation: k1 gives zero (put it into the reward instead), k2 gives the gradient
    of KL(policy || reference), and k3 gives that of KL(reference || policy).

    Source: Schulman, http://joschu.net/blog/kl-approx.html; k3 is d1's and GRPO's, k2 is MDPO's.
    """
    difference = policy_logp - reference_logp.detach()
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"estimator is {estimator!r}; expected 'k1', 'k2' or 'k3'")
