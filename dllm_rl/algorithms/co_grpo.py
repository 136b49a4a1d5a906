"""Co-GRPO for text: a policy gradient on the network and on the schedule that it is decoded with, in turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from dllm_rl.algorithms.base import Batch, Loss, Material, Scores, Trained
from dllm_rl.algorithms.group_relative import Terms
from dllm_rl.algorithms.replayed import Replayed

if TYPE_CHECKING:
    from jaxtyping import Int64
    from torch import Tensor


class CoGRPO(Replayed):
    """Group-relative policy optimisation of p(action | statistics) p(tokens | action, canvas), one factor at a time.

    At every step of a rollout a schedule head, shown pooled statistics of the step, decides how many positions are
    written (and, if asked to, with which temperatures and guidance); the network then writes them. One reward for both.
    For some updates the network learns, and the head is left bit for bit as it is: tokens are scored in their own
    canvas, at their own step's temperature and guidance. For some the head learns from the statistics and actions that
    the rollout recorded: not one forward of the network.

    Reward speed, or the head has no reason to be fast: `reward.speed_exponent`. A wrong answer that is fast must not
    earn more than a right one that is slow, so multiply, do not add.

    With reduction and schedule_reduction "sum", no KL and the leave-one-out baseline, the expected gradient on policy
    is that of the expected reward (tested by enumeration and quadrature): in the head's updates exactly, in the
    network's up to one term. The statistics, and with a ranking temperature the order, depend on the network too; that
    dependence is treated as part of the world and not differentiated. While the head is new, or if it decides by
    progress alone, there is none.

    Source: Zhou et al., https://arxiv.org/abs/2512.22288, which does this for image generators. Its body was not seen
    and there is no code: the factorisation, one group-relative reward for both factors and alternating updates are the
    paper's; links, Gaussian and its annealing are those of AdaNAT, https://arxiv.org/abs/2409.00342, by the same
    laboratory; what is decided, the pooled statistics and every number are ours.
    """

    citation: ClassVar[str] = (
        "@article{zhou2025cogrpo, title={Co-GRPO: Co-Optimized Group Relative Policy Optimization for Masked Diffusion "
        "Model}, author={Zhou, Renping and Ni, Zanlin and Chen, Tianyi and Liu, Zeyu and Yue, Yang and Wang, Yulin and "
        "Wang, Yuxuan and Liu, Jingshu and Huang, Gao}, journal={arXiv preprint arXiv:2512.22288}, year={2025}}"
    )
    head: ClassVar[Literal["planner", "schedule"] | None] = "schedule"
    samplers: ClassVar[tuple[str, ...] | None] = ("schedule",)

    type: Literal["co_grpo"] = "co_grpo"
    network_updates: Annotated[int, Field(ge=0)] = 5
    """Updates of the network before the schedule's turn; 0 learns the schedule only."""
    schedule_updates: Annotated[int, Field(ge=0)] = 5
    """Updates of the schedule before the network's turn; 0 learns the network only."""
    schedule_reduction: Literal["step", "sum"] = "step"
    """Mean over completions of the mean, or of the sum, over steps of the schedule's objective."""

    @model_validator(mode="after")
    def _check_turns(self) -> CoGRPO:
        if self.network_updates + self.schedule_updates == 0:
            raise ValueError("network_updates and schedule_updates are both 0, so nothing would learn")
        for name in ("network_updates", "schedule_updates"):
            if getattr(self, name) % self.updates_per_rollout:
                raise ValueError(
                    f"{name} is {getattr(self, name)} and updates_per_rollout {self.updates_per_rollout}: a turn would "
                    "end within a rollout; give a multiple"
                )
        return self

    def check_options(self, options: Mapping[str, object]) -> None:
        if self.schedule_updates and not options.get("sigma") and not options.get("sigma_end"):
            raise ValueError("sigma is 0, which explores no other schedule, so the head learns nothing; set it above 0")

    @property
    def learns(self) -> Trained:
        """One part alone, where the other never has its turn."""
        if self.schedule_updates == 0:
            return "network"
        return "head" if self.network_updates == 0 else "all"

    def trains(self, update: int) -> Trained:
        """The network first, then the head, and so on."""
        return "network" if update % (self.network_updates + self.schedule_updates) < self.network_updates else "head"

    def prepare(self, material: Material, keys: Int64[Tensor, " B"], mask_id: int) -> Batch:
        """The rollout's tokens, or its decisions, as the next update needs; nothing is drawn.

        Raises:
            RecipeError: no schedule planned the rollout, it was drawn from a truncated distribution, or it explored no
                other schedules.
        """
        from dllm_rl.errors import RecipeError

        trajectory = material.trajectory
        assert trajectory is not None, "rollouts have trajectories"
        if trajectory.schedule is None:
            raise RecipeError("co_grpo: no schedule head planned the rollouts; set rollout.sampler to schedule")
        if self.trains(trajectory.update) == "network":
            return super().prepare(material, keys, mask_id)
        if trajectory.schedule.sigma == 0:
            raise RecipeError(
                "co_grpo: the rollouts explored no schedule, so there is nothing to learn from; set "
                "rollout.options.sigma above 0"
            )
        return _decisions(material)

    def count(self, batch: Batch) -> float:
        return super().count(batch) if batch.action is None else float(len(batch.sequences))

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        return super().loss(batch, scores) if batch.action is None else self._schedule_loss(batch, scores)

    def _schedule_loss(self, batch: Batch, scores: Scores) -> Loss:
        from dllm_rl.diffusion.ledger import gaussian_logp

        assert batch.advantage is not None and batch.action is not None and batch.selection_logp is not None
        assert scores.schedule is not None, "views with features are scored by the schedule head"
        row, action = batch.views.row[scores.view], batch.action[scores.view]
        policy = gaussian_logp(action, scores.schedule.to(action.dtype), batch.sigma)[:, None]
        weight = policy.new_ones(policy.shape)
        if self.schedule_reduction == "step":
            weight = 1 / batch.views.row.bincount(minlength=len(batch.sequences))[row, None].to(policy.dtype)
        behaviour = batch.selection_logp[scores.view, None]
        terms = Terms(policy, behaviour, batch.advantage[row], weight > 0, weight)
        loss = self.clipped_loss(replace(batch, reference_logp=None), scores, terms, weight)
        return Loss(loss.total, {name.replace("policy", "schedule"): mean for name, mean in loss.metrics.items()})


def _decisions(material: Material) -> Batch:
    """A view for every decision of every rollout; no token is scored on it."""
    import torch

    from dllm_rl.diffusion.views import Views

    trajectory, sequences = material.trajectory, material.sequences
    assert trajectory is not None and trajectory.schedule is not None
    decided = trajectory.schedule
    steps = torch.arange(trajectory.num_steps, device=trajectory.device)
    row, step = (steps < torch.tensor(trajectory.nfe, device=trajectory.device)[:, None]).nonzero(as_tuple=True)
    nothing = decided.logp.new_zeros(()).expand(len(row), sequences.tokens.shape[1])
    canvas = sequences.tokens.new_zeros(()).expand(nothing.shape)
    return Batch(
        sequences,
        Views(canvas, nothing.bool(), nothing, row, features=decided.features[row, step]),
        material.advantage,
        behaviour_logp=nothing,
        selection_logp=decided.logp[row, step],
        action=decided.action[row, step],
        sigma=decided.sigma,
    )
