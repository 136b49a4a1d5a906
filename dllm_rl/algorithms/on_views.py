"""What clipped policy gradients share whose token scores come from views of finished completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from dllm_rl.algorithms.base import Batch, Loss, Scores
from dllm_rl.algorithms.corruption import AnyCorruption, FullyHiddenSettings, check_draws, estimates_of
from dllm_rl.algorithms.group_relative import GroupRelative, Terms

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int64
    from torch import Tensor

    from dllm_rl.diffusion.views import Sequences, Views


class ScoredOnViews(GroupRelative):
    """Settings and loss of a clipped policy gradient on one-step or ELBO scores of a completion's tokens.

    The trajectory is not looked at: scores are of the text that it led to.
    """

    ratio_level: Literal["token", "sequence"] = "token"
    """One ratio per token, or one per sequence from its length-mean log-ratio."""
    num_draws: Annotated[int, Field(ge=1)] = 1
    """Views per completion and update; 1 for the fully hidden view."""
    corruption: Annotated[AnyCorruption, Field(discriminator="type")] = FullyHiddenSettings()
    """How views are noised."""
    draws_for: Literal["completion", "group"] = "completion"
    """Each completion's views are drawn apart, as published, or those of a prompt's whole group alike. Fully hidden
    views of a group are then one canvas, which the network sees once; each is still a view of the same law."""
    reduction: Literal["sequence", "token", "local_token"] = "sequence"
    """Mean over sequences of per-token means (the paper), mean over all tokens of the update, or the released code's
    token mean of each micro-batch, averaged over micro-batches (depends on how the update is laid out)."""

    @model_validator(mode="after")
    def _check_draws(self) -> Self:
        check_draws(self.corruption, self.num_draws)
        noiseless = isinstance(self.corruption, FullyHiddenSettings) and self.corruption.prompt_noise == 0
        if noiseless and self.num_draws > 1:
            raise ValueError(
                f"num_draws is {self.num_draws}, but fully hidden views without prompt noise are all the same; "
                "use num_draws: 1, prompt noise, or an ELBO corruption such as {type: fixed_count}"
            )
        return self

    @property
    def shares_draws(self) -> bool:
        return self.draws_for == "group"

    @property
    def is_sum_over_views(self) -> bool:
        return self.ratio_level == "token" or self.num_draws == 1

    def scope(self, sequences: Sequences) -> Sequences:
        """Fully hidden views show the whole canvas, as d1 does; ELBO views end where scoring ends."""
        return sequences if isinstance(self.corruption, FullyHiddenSettings) else super().scope(sequences)

    def views(self, sequences: Sequences, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        return self.corruption.build().views(sequences, self.num_draws, keys, mask_id)

    def estimates(self, batch: Batch, logp: Float[Tensor, "R N"]) -> Float64[Tensor, "B M"]:
        return estimates_of(self.corruption, batch, logp)

    def count(self, batch: Batch) -> float:
        if self.reduction == "local_token":
            return 1.0
        return float(len(batch.sequences) if self.reduction == "sequence" else batch.sequences.scored.sum())

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        views = batch.views.select(scores.view)
        terms = self._terms(batch, views, scores.logp, self.behaviour_of(batch, scores))
        per_token = self._share(batch)[views.row, None] * views.weight / self.num_draws
        return self.clipped_loss(batch, scores, terms, per_token)

    def _terms(self, batch: Batch, views: Views, logp: Float[Tensor, "S N"], behaviour: Float[Tensor, "S N"]) -> Terms:
        """What has a ratio of its own: each scored token of each view, or each sequence."""
        assert batch.advantage is not None
        share = self._share(batch)
        if self.ratio_level == "token":
            weight = share[views.row, None] * views.weight / self.num_draws
            return Terms(logp, behaviour, batch.advantage[views.row], views.scored, weight)
        # A sequence is one token here, its log-probability the mean of its tokens': a ratio of geometric means.
        lengths = batch.sequences.scored.sum(-1)
        present = (lengths < 0).index_fill(0, views.row, True)
        return Terms(
            (self._sums(batch, views, logp) / lengths)[:, None],
            (self._sums(batch, views, behaviour) / lengths)[:, None],
            batch.advantage,
            present[:, None],
            (share * lengths)[:, None],
        )

    def _share(self, batch: Batch) -> Float[Tensor, " B"]:
        """How much one token of a sequence counts in the sum, before the division by the update's count."""
        lengths = batch.sequences.scored.sum(-1).double()
        if self.reduction == "sequence":
            return 1 / lengths
        return lengths.new_full(lengths.shape, 1.0 if self.reduction == "token" else 1 / float(lengths.sum()))

    def _sums(self, batch: Batch, views: Views, logp: Float[Tensor, "S N"]) -> Float[Tensor, " B"]:
        """Weighted sum of log-probabilities of each sequence, averaged over its draws."""
        per_view = (views.weight * logp).sum(-1) / self.num_draws
        return per_view.new_zeros(len(batch.sequences)).index_add(0, views.row, per_view)
