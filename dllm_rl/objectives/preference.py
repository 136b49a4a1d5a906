"""Losses on pairs of a chosen and a rejected completion."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(
    policy_margin: Float[Tensor, " B"], reference_margin: Float[Tensor, " B"], *, beta: float
) -> Float[Tensor, " B"]:
    """-log sigmoid(beta * (policy_margin - reference_margin)) per pair, to be minimised.

    With estimated margins the loss is biased: -log sigmoid is 1-Lipschitz, so the bias is at most beta times the
    standard deviation of the difference. Score policy and reference on the same views to keep that small.

    Args:
        policy_margin: log-likelihood (or ELBO) of the chosen minus that of the rejected, nats, summed over tokens.
        reference_margin: the same under the reference.
        beta: strength of the pull towards the reference, per nat of whole sequences: do not divide margins by length.

    Source: Rafailov et al., DPO, https://arxiv.org/abs/2305.18290, eq. 7; with ELBOs, Zhu et al., LLaDA 1.5,
        https://arxiv.org/abs/2505.19223.
    """
    return -logsigmoid(beta * (policy_margin - reference_margin))
