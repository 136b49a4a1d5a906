"""What clipped policy gradients on groups of rollouts share: settings, advantages, and the objective of given terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from dllm_rl.algorithms.base import Algorithm, Batch, Loss, Scores

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor

    from dllm_rl.objectives.reduce import Report


class Terms(NamedTuple):
    """Everything that has a probability ratio, U of them in each of T rows."""

    policy: Float[Tensor, "T U"]
    behaviour: Float[Tensor, "T U"]
    advantage: Float[Tensor, " T"]
    scored: Bool[Tensor, "T U"]
    weight: Float[Tensor, "T U"]
    """Share of the objective."""


def pooled(terms: Terms, group: Int64[Tensor, " T"], advantage: Float[Tensor, " H"]) -> Terms:
    """One ratio for each of H groups of rows, exp of their weighted mean log-ratio, which counts as much as they did.

    At old == new the objective and its gradient stay what they were.

    Args:
        group: which group each row belongs to.
        advantage: of each group.

    Source: with equal weights, the length-normalised ratio of GSPO, Zheng et al., https://arxiv.org/abs/2507.18071,
        eq. 7.
    """
    empty = terms.weight.new_zeros(len(advantage))

    def total(values: Float[Tensor, "T U"]) -> Float[Tensor, " H"]:
        return empty.index_add(0, group, values.masked_fill(~terms.scored, 0.0).sum(-1))

    weight = total(terms.weight)
    present = weight > 0
    share = weight.masked_fill(~present, 1.0)  # a group with nothing scored has sums of zero
    policy, behaviour = (total(terms.weight * logp) / share for logp in (terms.policy, terms.behaviour))
    return Terms(policy[:, None], behaviour[:, None], advantage, present[:, None], weight[:, None])


class GroupRelative(Algorithm):
    """Settings of a clipped policy gradient whose advantages compare the completions of one prompt.

    Source: Shao et al., GRPO, https://arxiv.org/abs/2402.03300, eq. 3.
    """

    source: ClassVar[Literal["text", "pairs", "rollouts"]] = "rollouts"

    clip_low: Annotated[float, Field(gt=0)] = 0.5
    """The ratio's lower bound is 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 0.5
    """The ratio's upper bound is 1 + clip_high."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the divergence from the reference; 0 saves scoring it."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that divergence per token."""
    updates_per_rollout: Annotated[int, Field(ge=1)] = 1
    """Updates made from one rollout (mu)."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is subtracted from a completion's reward: its group's mean, or the mean of the others."""
    scale: Literal["none", "group_std"] = "none"
    """Whether advantages are divided by their group's standard deviation."""

    @property
    def num_iterations(self) -> int:
        return self.updates_per_rollout

    @property
    def needs_behaviour(self) -> bool:
        return True

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0

    def advantages(self, reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        from dllm_rl.objectives.advantages import group_advantages

        return group_advantages(reward, baseline=self.baseline, scale=self.scale)

    def behaviour_of(self, batch: Batch, scores: Scores) -> Float[Tensor, "S N"]:
        """Scores of the weights that wrote the rollout: the policy's own as long as it still has them."""
        known = batch.behaviour_logp
        return scores.logp.detach() if known is None else known[scores.view]

    def clipped_loss(self, batch: Batch, scores: Scores, terms: Terms, per_token: Float[Tensor, "S N"]) -> Loss:
        """The clipped surrogate of `terms`, and the divergence of every scored token times `per_token`, as a loss."""
        from dllm_rl.objectives.kl import kl
        from dllm_rl.objectives.policy import clipped_surrogate, is_clipped
        from dllm_rl.objectives.reduce import effective_share, masked_mean

        policy, old, advantage, scored, weight = terms
        low, high = self.clip_low, self.clip_high
        surrogate = clipped_surrogate(policy, old, advantage, scored, clip_low=low, clip_high=high)
        clipped = is_clipped(policy, old, advantage, scored, clip_low=low, clip_high=high)
        objective = (weight * surrogate).sum()
        log_ratio = (policy - old).detach()
        falling = (advantage < 0)[:, None]
        metrics: dict[str, Report] = {
            "policy/ratio": masked_mean(log_ratio.exp(), scored),
            "policy/ess": effective_share(log_ratio, scored),
            "policy/clipped": masked_mean(clipped.double(), scored),
            "policy/clipped_low": masked_mean((clipped & falling).double(), scored),
            "policy/clipped_high": masked_mean((clipped & ~falling).double(), scored),
            "policy/kl_behaviour": masked_mean(-log_ratio, scored),
            "policy/kl_behaviour_k3": masked_mean(kl(old, policy, estimator="k3"), scored),
        }
        if batch.reference_logp is not None:
            divergence = kl(scores.logp, batch.reference_logp[scores.view], estimator=self.kl_estimator)
            objective = objective - self.kl_coefficient * (per_token * divergence).sum()
            metrics["policy/kl_reference"] = masked_mean(divergence.detach(), batch.views.scored[scores.view])
        return Loss(-objective, metrics)

    def diagnose(self, batch: Batch, scores: Scores) -> Mapping[str, Report]:
        from dllm_rl.objectives.reduce import effective_share

        if batch.views.features is not None:  # decisions of a schedule: no token was scored
            return super().diagnose(batch, scores)
        log_weight = self.log_weight(batch, scores)
        share = effective_share(log_weight, log_weight.new_ones(log_weight.shape).bool())
        return {**super().diagnose(batch, scores), "policy/ess_sequence": share}

    def log_weight(self, batch: Batch, scores: Scores) -> Float[Tensor, " B"]:
        """Log-ratio of each whole rollout, of policy to behaviour, from the scores of all views; for reports.

        By default that of the tokens scored. Where positions or schedules are learned too, theirs are to be added.
        """
        policy = self.estimates(batch, scores.logp).mean(-1)
        return policy - self.estimates(batch, self.behaviour_of(batch, scores)).mean(-1)
