"""MDPO: a clipped policy gradient that judges the completion which every denoising step predicts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from dllm_rl.algorithms.base import Batch, Loss, Material, Scores, StepCredit
from dllm_rl.algorithms.group_relative import GroupRelative, Terms

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from dllm_rl.diffusion.trajectory import Trajectory
    from dllm_rl.diffusion.views import Sequences


class MDPO(GroupRelative):
    """Group-relative policy optimisation whose action is a step's prediction of everything that is hidden.

    At every step i of a rollout the network predicts the whole completion from the canvas x_i; the prediction is
    decoded and gets a reward r_i, so no critic is needed. Per step and group, A_i is (r_i - r_{i-1}) + the mean of the
    later rewards, less its mean over the group, over its standard deviation. Learned from are the `kept_steps` steps of
    a group at which its rollouts differ most. With M_i the hidden positions of x_i, L the completion's length, rho the
    ratio of the policy's probability of a predicted token to that it was drawn with, and c that probability itself,

        objective = mean over rollouts and kept steps of 1/|M_i| sum over k in M_i of
            c_k [ L/|M_i| min(rho_k A_i, clip(rho_k) A_i) - kl_coefficient * k2_k ].

    On policy, with canvases and A_i held fixed, its gradient is what is followed (tested by enumeration). It is not
    that of the expected reward: A_i is no sum of later rewards, a step with few hidden tokens counts more (L/|M|^2 a
    token), so does a token that was likely, and the deviation rescales groups. docs/mdpo.md has the bias on a toy.

    Wrong for greedy or truncated rollouts and for block-causal models, which are refused. Judging costs one reward for
    every distinct completion that a rollout's steps predicted.

    Source: He et al., https://arxiv.org/abs/2508.13148, and the released code (autonomousvision/mdpo, e6ae439).
    Deviations: groups are prompts, so the kept steps do not depend on how they are spread over processes; nothing is
    added to denominators; the reward reads a prediction up to its first end of text; c_k is the probability of the
    draw also under confidence remasking, where that code stores 0 for what was never written. A rollout that was
    finished before a step is neither compared nor learned from at it (published rollouts all take the same steps).
    """

    citation: ClassVar[str] = (
        "@article{he2025mdpo, title={MDPO: Overcoming the Training-Inference Divide of Masked Diffusion Language "
        "Models}, author={He, Haoyu and Renz, Katrin and Cao, Yong and Geiger, Andreas}, journal={arXiv preprint "
        "arXiv:2508.13148}, year={2025}}"
    )
    judges_steps: ClassVar[bool] = True

    type: Literal["mdpo"] = "mdpo"
    clip_low: Annotated[float, Field(gt=0)] = 0.2
    """The ratio's lower bound is 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """The ratio's upper bound is 1 + clip_high."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.02
    """Weight of the divergence from the reference; 0 saves scoring it."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"
    """Estimator of that divergence per token."""
    scale: Literal["none", "group_std"] = "group_std"
    """Whether advantages are divided by their group's standard deviation at the step."""
    kept_steps: Annotated[int, Field(ge=1)] | None = 8
    """Steps of a group that are learned from, those with the largest sum of |A|; null: all."""
    confidence_weight: bool = True
    """Whether a token counts by the probability that it was drawn with."""
    level_weight: bool = True
    """Whether a step's surrogate, not its divergence, is multiplied by L/|M|, the 1/t of the ELBO."""

    @property
    def is_sum_over_views(self) -> bool:
        return True

    def scope(self, sequences: Sequences) -> Sequences:
        """The sampler saw the whole canvas."""
        return sequences

    def step_credit(self, reward: Float[Tensor, "P G S"], num_steps: Int64[Tensor, "P G"]) -> StepCredit:
        from dllm_rl.objectives.steps import step_advantages, step_exists, telling_steps

        advantage = step_advantages(reward, num_steps, baseline=self.baseline, scale=self.scale)
        kept = telling_steps(advantage, self.kept_steps)[:, None] & step_exists(num_steps, reward.shape[2])
        return StepCredit(advantage.flatten(0, 1), kept.flatten(0, 1))

    def prepare(self, material: Material, keys: Int64[Tensor, " B"], mask_id: int) -> Batch:
        """A sequence and a view for every kept step of every rollout; nothing is drawn.

        Raises:
            RecipeError: the rollout was greedy, or drawn from a truncated distribution, whose support moves.
        """
        import torch

        from dllm_rl.diffusion.replay import replay_predictions

        trajectory, credit = material.trajectory, material.credit
        assert trajectory is not None and credit is not None, "rollouts are judged step by step"
        _refuse_draws(trajectory)
        row, step = credit.kept.nonzero(as_tuple=True)
        found = replay_predictions(trajectory, material.sequences, row, step + 1)
        acting = found.views.scored.any(-1).nonzero()[:, 0]  # a step that only revised what stood predicted nothing
        views, behaviour, row, step = (
            found.views.select(acting),
            found.behaviour_logp[acting],
            row[acting],
            step[acting],
        )
        weight = behaviour.exp() * views.weight if self.confidence_weight else views.weight
        return Batch(
            material.sequences.select(row),
            replace(views, weight=weight, row=torch.arange(len(row), device=row.device)),
            credit.advantage[row, step],
            behaviour,
            transform=trajectory.transform,
        )

    def count(self, batch: Batch) -> float:
        return float(len(batch.sequences))

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        assert batch.advantage is not None
        views = batch.views.select(scores.view)
        hidden = views.scored.sum(-1, keepdim=True).double()
        length = batch.sequences.completion.sum(-1, keepdim=True)[views.row]
        share = views.weight / hidden
        weight = share * length / hidden if self.level_weight else share
        behaviour = self.behaviour_of(batch, scores)
        terms = Terms(scores.logp, behaviour, batch.advantage[views.row], views.scored, weight)
        return self.clipped_loss(batch, scores, terms, share)

    def log_weight(self, batch: Batch, scores: Scores) -> Float[Tensor, " B"]:
        """Of each prediction: every token counts once, whatever it weighs in the loss."""
        ratio = (scores.logp - self.behaviour_of(batch, scores)).masked_fill(~batch.views.scored[scores.view], 0.0)
        return ratio.new_zeros(len(batch.sequences)).index_add(0, batch.views.row[scores.view], ratio.sum(-1))


def _refuse_draws(trajectory: Trajectory) -> None:
    from dllm_rl.errors import RecipeError

    if trajectory.transform.temperature == 0:
        raise RecipeError(
            "mdpo: the rollouts were greedy, and their tokens have no probability to learn from. Set "
            "rollout.temperature above 0; published is 0.4"
        )
    if trajectory.transform.truncates:
        raise RecipeError(
            "mdpo: the rollouts were drawn with top_p or top_k; tokens leave such a support as the policy learns, and "
            "their ratio is then undefined. Leave top_p and top_k out of rollout"
        )
