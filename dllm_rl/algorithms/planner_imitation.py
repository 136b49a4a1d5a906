"""Supervised start of a planner head: learn when to write from a sampler that already knows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dllm_rl.algorithms.base import Algorithm, Batch, Loss, Material, Scores, Trained

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor

    from dllm_rl.diffusion.views import Sequences, Views


class PlannerImitation(Algorithm):
    """The planner head is fitted to the positions that a teacher sampler wrote at every step of its rollouts.

    The teacher is `rollout.sampler`: threshold or factor, run on the model itself. Every step is a view; the head sees
    the canvas before it, and the target is the set of positions that the step wrote, among those it could. Nothing else
    is trained, so the text of a given order of writing stays what it was. No reward is asked for. A teacher that takes
    one position at a time teaches a planner that forces, not one that is fast.

    Source: dUltra, https://arxiv.org/abs/2512.21446, its planner initialisation. Deviations: the canvases are those of
    rollouts on the recipe's prompts, the published ones are texts with a random block hidden at a random level and all
    that follows hidden; the loss is the likelihood of the choice, forced steps included (`objective`: bce is the
    published one).
    """

    source: ClassVar[Literal["text", "pairs", "rollouts"]] = "rollouts"
    samplers: ClassVar[tuple[str, ...] | None] = (
        *("llada", "rl", "threshold", "ancestral", "ass", "dream", "entropy", "eoser", "eoser_ass", "first_hitting"),
        *("margin", "maskgit", "pc", "pc_linear", "sdar", "factor", "eb", "klass", "localleap", "dus"),
    )
    """Those that hide nothing again and ask no head."""
    needs_reward: ClassVar[bool] = False
    head: ClassVar[Literal["planner", "schedule"] | None] = "planner"
    citation: ClassVar[str] = (
        "@article{chen2025dultra, title={dUltra: Ultra-Fast Diffusion Language Models via Reinforcement Learning}, "
        "author={Chen, Shirui and Jiao, Jiantao and Ratliff, Lillian J. and Zhu, Banghua}, "
        "journal={arXiv preprint arXiv:2512.21446}, year={2025}}"
    )

    type: Literal["planner_imitation"] = "planner_imitation"
    objective: Literal["likelihood", "bce"] = "likelihood"
    """Minus the log-probability that the planner's coins choose what the teacher chose, a mean over steps; or binary
    cross-entropy over open positions, those written weighed by (number not written) / (number written) of the
    micro-batch (published), which makes coins too eager and does not know of forced steps."""
    updates_per_rollout: Annotated[int, Field(ge=1)] = 1
    """Updates made from one rollout."""

    @property
    def learns(self) -> Trained:
        return "head"

    @property
    def num_iterations(self) -> int:
        return self.updates_per_rollout

    @property
    def is_sum_over_views(self) -> bool:
        return True

    def scope(self, sequences: Sequences) -> Sequences:
        """The sampler saw the whole canvas."""
        return sequences

    def prepare(self, material: Material, keys: Int64[Tensor, " B"], mask_id: int) -> Batch:
        """The teacher's steps; nothing is drawn.

        Raises:
            RecipeError: the log does not tell what the teacher could choose from.
        """
        from dllm_rl.diffusion.replay import replay
        from dllm_rl.errors import RecipeError

        assert material.trajectory is not None, "rollouts have trajectories"
        replayed = replay(material.trajectory, material.sequences)
        if replayed.open is None:
            raise RecipeError(
                "planner_imitation: the teacher hides again what it wrote, and a planner that only writes cannot "
                "follow it; set rollout.sampler to one that does not, such as threshold or factor"
            )
        return Batch(material.sequences, replace(replayed.views, open=replayed.open))

    def count(self, batch: Batch) -> float:
        assert batch.views.open is not None
        return float(len(batch.views) if self.objective == "likelihood" else batch.views.open.sum())

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        from dllm_rl.diffusion.ledger import forced_coins_logp
        from dllm_rl.objectives.reduce import mean_of

        views = batch.views.select(scores.view)
        assert scores.plan is not None and views.open is not None
        plan = scores.plan.double()
        nll = -forced_coins_logp(plan, views.scored, views.open)
        total = nll.sum() if self.objective == "likelihood" else _cross_entropy(plan, views, batch.views)
        agrees = (_wanted(plan.detach(), views.open) == views.scored).all(-1)
        metrics = {"planner/nll": mean_of(nll), "planner/agreement": mean_of(agrees.double())}
        return Loss(total, metrics)


def _cross_entropy(plan: Float[Tensor, "S N"], views: Views, all_views: Views) -> Float[Tensor, ""]:
    """Of every open position's coin, heads weighed so that they count as much as tails over all views."""
    from torch.nn.functional import logsigmoid

    assert views.open is not None and all_views.open is not None
    written = all_views.scored.sum()
    heads_weight = (all_views.open.sum() - written) / written
    terms = heads_weight * logsigmoid(plan) * views.scored + logsigmoid(-plan) * (views.open & ~views.scored)
    return -terms.sum()


def _wanted(plan: Float[Tensor, "S N"], opened: Bool[Tensor, "S N"]) -> Bool[Tensor, "S N"]:
    """Positions that the planner would rather write than not; the likeliest where there is none."""
    import torch

    sure = opened & (plan > 0)
    first = plan.masked_fill(~opened, float("-inf")).argmax(-1, keepdim=True)
    alone = torch.zeros_like(opened).scatter(-1, first, True) & opened
    return torch.where(sure.any(-1, keepdim=True), sure, alone)
