"""CJ-GRPO: a clipped policy gradient that scores every token in the context in which it was written."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from dllm_rl.algorithms.base import Batch, Loss, Material, Scores
from dllm_rl.algorithms.group_relative import GroupRelative, Terms, pooled

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from dllm_rl.diffusion.views import Sequences, Views


class CJGRPO(GroupRelative):
    """Group-relative policy optimisation on the rollout's own steps: x_{s-1} to x_s for every s, replayed from its log.

    The tokens' behaviour log-probabilities are those that the rollout recorded, and everything is scored under the
    distribution that was drawn from (temperature, guidance, forbidden ids), so the ratio is 1 up to rounding as long as
    the policy is the one that wrote. Every token drawn counts, those after the end of text and those overwritten later
    too: they are what the sampler did. Memory is that of one group of views, whatever the number of steps.

    With the samplers whose likelihood is "exact" and is that of the draws alone (`rl`, `margin`, `entropy`, ...),
    reduction "sum", no KL and the leave-one-out baseline, the expected gradient on policy is that of the expected
    reward (tested by enumeration); the mean baseline gives (1 - 1/G) times it. With samplers that look at the draws
    (llada, eoser, ass, eoser_ass, ...) the choice of positions carries gradient too, the F term, which the paper and
    this class leave out.

    Source: Yang et al., https://arxiv.org/abs/2509.23924, algorithm 1 and section 4.2. Deviations: the algorithm box
    divides advantages by their deviation and does not clip; the released code does not divide and clips at 0.5, as here
    by default (`scale`, `clip_low`, `clip_high`). The mean over a step's tokens is each completion's own; the released
    code shares it over the batch, which is the same where all completions write equally many tokens a step, as in all
    its settings. Its rollouts, scores of the policy and of the reference at temperature 1 belong to one distribution
    only because it samples at temperature 1.
    """

    citation: ClassVar[str] = (
        "@article{yang2025taming, title={Taming Masked Diffusion Language Models via Consistency Trajectory "
        "Reinforcement Learning with Fewer Decoding Step}, author={Yang, Jingyi and Chen, Guanxu and Hu, Xuhao and "
        "Shao, Jing}, journal={arXiv preprint arXiv:2509.23924}, year={2025}}"
    )

    type: Literal["cj_grpo"] = "cj_grpo"
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
                "cj_grpo: the rollouts were drawn with top_p or top_k; tokens leave such a support as the policy "
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
