"""MaskGRPO: a clipped policy gradient on views that hide most of a completion, its end more than its start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dllm_rl.algorithms.base import Batch, Loss, Material, Scores
from dllm_rl.algorithms.group_relative import GroupRelative, Terms, pooled

if TYPE_CHECKING:
    from jaxtyping import Int64
    from torch import Tensor


class MaskGRPO(GroupRelative):
    """Group-relative policy optimisation whose update j of mu scores a view that hides a share t_j.

    t_j = gamma + (1 - gamma) j / mu. Only what is hidden is scored, given the rest. Views that hide little say little
    about a rollout, so they are left out (gamma), and more is hidden towards the end, as it is while a model decodes.
    Like diffu-GRPO's, the scores are not the probability of the rollout. With mu = 1 everything is hidden.

    Source: Ma et al., MaskGRPO, https://arxiv.org/abs/2510.02880, for text. The paper's ratio is that of all hidden
    tokens together, the released code's that of each token: `ratio_level`, where "sequence" is here their geometric
    mean, which clips alike whatever is hidden. Deviations from the released code: update j is scored where its own view
    is hidden (the code multiplies by all mu masks at once, so that tokens count which the model can see); all mu views
    are used (its index follows micro-steps); nothing after the end of text is scored, and hiding fades over the text,
    not over the canvas; draws do not reset the global generator; a share is not capped at 0.999.
    """

    citation: ClassVar[str] = (
        "@article{ma2025consolidating, title={Consolidating Reinforcement Learning for Multimodal Discrete Diffusion "
        "Models}, author={Ma, Tianren and Zhang, Mu and Wang, Yibing and Ye, Qixiang}, journal={arXiv preprint "
        "arXiv:2510.02880}, year={2025}}"
    )

    type: Literal["mask_grpo"] = "mask_grpo"
    least_hidden: Annotated[float, Field(ge=0.5, lt=1)] = 0.6
    """The share of a completion below which none is hidden (gamma)."""
    ratio_level: Literal["token", "sequence"] = "token"
    """One ratio per hidden token, or one per completion from their mean log-ratio."""
    reduction: Literal["sequence", "token"] = "sequence"
    """Mean over completions of the mean over their hidden tokens, or mean over all hidden tokens of the update."""

    @property
    def is_sum_over_views(self) -> bool:
        return True

    def prepare(self, material: Material, keys: Int64[Tensor, " B"], mask_id: int) -> Batch:
        """One view of each completion; how much it hides depends on the iteration."""
        from dllm_rl.diffusion.corruption import FadingOut

        step = (material.iteration + 1) / self.updates_per_rollout
        corruptor = FadingOut(share=self.least_hidden + (1 - self.least_hidden) * step)
        return Batch(material.sequences, corruptor.views(material.sequences, 1, keys, mask_id), material.advantage)

    def count(self, batch: Batch) -> float:
        return float(len(batch.sequences) if self.reduction == "sequence" else batch.views.scored.sum())

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        import torch

        assert batch.advantage is not None
        views = batch.views.select(scores.view)
        weight = views.weight / views.scored.sum(-1, keepdim=True) if self.reduction == "sequence" else views.weight
        advantage = batch.advantage[views.row]
        terms = Terms(scores.logp, self.behaviour_of(batch, scores), advantage, views.scored, weight)
        if self.ratio_level == "sequence":
            terms = pooled(terms, torch.arange(len(views), device=views.row.device), advantage)
        return self.clipped_loss(batch, scores, terms, weight)
