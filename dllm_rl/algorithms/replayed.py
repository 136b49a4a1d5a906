"""What clipped policy gradients on a rollout's own steps share: the views, and how much each token of them counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dllm_rl.algorithms.base import Batch, Loss, Material, Scores
from dllm_rl.algorithms.group_relative import GroupRelative, Terms, pooled

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from dllm_rl.diffusion.views import Sequences, Views


class Replayed(GroupRelative):
    """Settings of a clipped policy gradient that scores every token in the context in which the rollout drew it.

    Memory is that of one group of views, whatever the number of steps. See `CJGRPO` for what its gradient is.
    """

    type: str
    ratio_level: Literal["token", "step", "sequence"] = "token"
    """One ratio per token, one per step from the mean log-ratio of the tokens it wrote, or one per completion from the
    mean log-ratio of all its tokens, weighed as `reduction` weighs them."""
    reduction: Literal["step", "token", "sum"] = "step"
    """Mean over completions of the mean over steps of the mean over a step's tokens (the paper: a token written alone
    weighs as much as many written together), mean over all tokens of the update, or sum over a completion's tokens and
    mean over completions (the trajectory's log-probability)."""

    @property
    def is_sum_over_views(self) -> bool:
        return self.ratio_level != "sequence"

    def scope(self, sequences: Sequences) -> Sequences:
        """The sampler saw the whole canvas."""
        return sequences

    def prepare(self, material: Material, keys: Int64[Tensor, " B"], mask_id: int) -> Batch:
        """The rollout's own views; nothing is drawn.

        Raises:
            RecipeError: the rollout was drawn from a truncated distribution, whose support moves with the weights.
        """
        from dllm_rl.diffusion.replay import replay
        from dllm_rl.errors import RecipeError

        trajectory = material.trajectory
        assert trajectory is not None, "rollouts have trajectories"
        if trajectory.transform.truncates:
            raise RecipeError(
                f"{self.type}: the rollouts were drawn with top_p or top_k; tokens leave such a support as the policy "
                "learns, and their ratio is then undefined. Leave top_p and top_k out of rollout"
            )
        replayed = replay(trajectory, material.sequences)
        # What an approximate cache recorded is not the model's own; its scores then stand in, made before the update.
        known = None if trajectory.exactness == "approximate_cache" else replayed.behaviour_logp
        return Batch(material.sequences, replayed.views, material.advantage, known, transform=trajectory.transform)

    def count(self, batch: Batch) -> float:
        return float(batch.views.scored.sum() if self.reduction == "token" else len(batch.sequences))

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        import torch

        assert batch.advantage is not None
        views = batch.views.select(scores.view)
        behaviour = self.behaviour_of(batch, scores)
        weight = self._share(batch, views)[:, None] * views.weight
        advantage = batch.advantage[views.row]
        terms = Terms(scores.logp, behaviour, advantage, views.scored, weight)
        if self.ratio_level == "step":
            terms = pooled(terms, torch.arange(len(views), device=views.row.device), advantage)
        elif self.ratio_level == "sequence":
            terms = pooled(terms, views.row, batch.advantage)
        return self.clipped_loss(batch, scores, terms, weight)

    def _share(self, batch: Batch, views: Views) -> Float[Tensor, " S"]:
        """How much one token of each view counts in the sum, before the division by the update's count."""
        if self.reduction != "step":
            return views.weight.new_ones(len(views))
        steps = batch.views.row.bincount(minlength=len(batch.sequences))
        return 1 / (steps[views.row] * views.scored.sum(-1)).double()
