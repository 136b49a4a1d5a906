"""dUltra: a clipped policy gradient on every step of a planner's rollout, its tokens and its choice of positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dllm_rl.algorithms.base import Batch, Loss, Material, Scores, Trained
from dllm_rl.algorithms.group_relative import GroupRelative, Terms

if TYPE_CHECKING:
    from jaxtyping import Float, Int64
    from torch import Tensor

    from dllm_rl.diffusion.trajectory import Trajectory
    from dllm_rl.diffusion.views import Sequences, Views


class DUltra(GroupRelative):
    """Group-relative policy optimisation of a diffusion model together with its planner head.

    A step of a rollout throws a coin for every open position, loaded by the planner, and draws tokens where it fell
    heads (where none does, at the likeliest position). Its log-probability is that of the coins plus that of the
    tokens, both of them what the rollout recorded while the policy is the one that wrote; one ratio per step, clipped.

    With `forced_rule` exact, no KL, no `advantage_floor`, the leave-one-out baseline and either sum, the expected
    gradient on policy is that of the expected reward, for the network and for the head (tested by enumeration; over the
    length when the reduction says so); the mean baseline gives (1 - 1/G) times it. Wrong where the reward has no term
    for speed: nothing then keeps the planner from writing one token at a time.

    Source: dUltra, https://arxiv.org/abs/2512.21446, section 3 and its released code. Deviations: a forced step has its
    true probability, the paper counts a coin that did not fall (`forced_rule`: published); tokens are scored at the
    temperature they were drawn at, the code at 1; advantages keep both signs, the code drops those below a floor
    (`advantage_floor`); every completion weighs 1 over its length, the code's divisions amount to other constants.
    """

    citation: ClassVar[str] = (
        "@article{chen2025dultra, title={dUltra: Ultra-Fast Diffusion Language Models via Reinforcement Learning}, "
        "author={Chen, Shirui and Jiao, Jiantao and Ratliff, Lillian J. and Zhu, Banghua}, "
        "journal={arXiv preprint arXiv:2512.21446}, year={2025}}"
    )
    head: ClassVar[Literal["planner", "schedule"] | None] = "planner"
    samplers: ClassVar[tuple[str, ...] | None] = ("planner",)

    type: Literal["dultra"] = "dultra"
    clip_low: Annotated[float, Field(gt=0)] = 0.2
    """The ratio's lower bound is 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 1.0
    """The ratio's upper bound is 1 + clip_high."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the tokens' divergence from the reference; 0 saves scoring it. The planner's is not restrained."""
    ratio_level: Literal["step", "factors"] = "step"
    """One ratio per step, of its tokens and its choice of positions together (the paper), or one for the choice and one
    for each token."""
    reduction: Literal["sum_over_length", "sum", "mean_active_steps"] = "sum_over_length"
    """Per completion: the sum over its steps, divided by its length (the paper) or not (the trajectory's
    log-probability), or their mean, in which a long rollout weighs no more than a short one. Then the mean over
    completions."""
    forced_rule: Literal["exact", "published"] = "exact"
    """The likelihood of a step whose likeliest position was written alone: its true one, or with a coin of that
    position counted as heads though it may have been forced. The second is no probability: it sums to less than 1, and
    drives up the logit of positions that the planner did not choose."""
    advantage_floor: float | None = None
    """Advantages below this are set to 0 (published: 0.1, so that nothing is learned from failures); null: none are.
    Their mean is then not zero any more."""
    parameters: Trained = "all"
    """What is trained: the network and the planner, or one of them; the other is frozen."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.forced_rule == "published" and self.updates_per_rollout > 1:
            raise ValueError(
                f"forced_rule is published and updates_per_rollout is {self.updates_per_rollout}; the published rule "
                "gives no probability that a rollout could have recorded, so it can learn from a rollout once. Set one "
                "update, or the exact rule"
            )
        return self

    @property
    def is_sum_over_views(self) -> bool:
        return True

    def check_options(self, options: Mapping[str, object]) -> None:
        if options.get("mode", "sample") != "sample":
            raise ValueError(
                f"mode is {options['mode']!r}, and dultra learns the law of the planner's coins; leave it at sample"
            )

    @property
    def learns(self) -> Trained:
        return self.parameters

    def scope(self, sequences: Sequences) -> Sequences:
        """The sampler saw the whole canvas."""
        return sequences

    def advantages(self, reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        advantage = super().advantages(reward)
        return advantage if self.advantage_floor is None else advantage.where(advantage >= self.advantage_floor, 0.0)

    def prepare(self, material: Material, keys: Int64[Tensor, " B"], mask_id: int) -> Batch:
        """The rollout's own views; nothing is drawn.

        Raises:
            RecipeError: the rollout has no likelihood that the head could learn from.
        """
        from dllm_rl.diffusion.replay import replay

        trajectory = material.trajectory
        assert trajectory is not None, "rollouts have trajectories"
        temperature = _planner_temperature(trajectory)
        replayed = replay(trajectory, material.sequences)
        return Batch(
            material.sequences,
            replace(replayed.views, open=replayed.open),
            material.advantage,
            replayed.behaviour_logp,
            transform=trajectory.transform,
            selection_logp=None if self.forced_rule == "published" else replayed.selection_logp,
            planner_temperature=temperature,
        )

    def count(self, batch: Batch) -> float:
        return float(len(batch.sequences))

    def loss(self, batch: Batch, scores: Scores) -> Loss:
        from dllm_rl.objectives.reduce import masked_mean, mean_of

        assert scores.plan is not None
        views = batch.views.select(scores.view)
        assert views.open is not None
        share = self._share(batch, views)
        loss = self.clipped_loss(batch, scores, self._terms(batch, scores, views, share), share[:, None] * views.weight)
        chance = (scores.plan.detach().double() / batch.planner_temperature).sigmoid()
        more = {
            "planner/probability": masked_mean(chance, views.open),
            "planner/tokens_per_step": mean_of(views.scored.sum(-1).double()),
        }
        return replace(loss, metrics={**loss.metrics, **more})

    def log_weight(self, batch: Batch, scores: Scores) -> Float[Tensor, " B"]:
        """Of tokens and choices."""
        choice = self._choice_logp(batch, scores, batch.views.select(scores.view))
        old = choice if batch.selection_logp is None else batch.selection_logp[scores.view]
        of_tokens = super().log_weight(batch, scores)
        return of_tokens.index_add(0, batch.views.row[scores.view], (choice - old).to(of_tokens.dtype))

    def _terms(self, batch: Batch, scores: Scores, views: Views, share: Float[Tensor, " S"]) -> Terms:
        """What has a ratio: each step, or each step's choice and tokens."""
        import torch

        assert batch.advantage is not None
        choice = self._choice_logp(batch, scores, views)
        known = batch.selection_logp
        old_choice = choice.detach() if known is None else known[scores.view]
        tokens, old_tokens = scores.logp, self.behaviour_of(batch, scores)
        advantage, chosen = batch.advantage[views.row], views.scored.any(-1, keepdim=True)
        if self.ratio_level == "step":
            policy = (views.weight * tokens).sum(-1) + choice
            old = (views.weight * old_tokens).sum(-1) + old_choice
            return Terms(policy[:, None], old[:, None], advantage, chosen, share[:, None])
        policy, old = torch.cat([tokens, choice[:, None]], -1), torch.cat([old_tokens, old_choice[:, None]], -1)
        scored = torch.cat([views.scored, chosen], -1)
        return Terms(policy, old, advantage, scored, share[:, None] * scored)

    def _choice_logp(self, batch: Batch, scores: Scores, views: Views) -> Float[Tensor, " S"]:
        """Log-probability, nats, that each step chose the positions it did."""
        from torch.nn.functional import logsigmoid

        from dllm_rl.diffusion.ledger import coins_logp, forced_coins_logp

        assert scores.plan is not None and views.open is not None
        logits = scores.plan.double() / batch.planner_temperature
        if self.forced_rule == "published":
            return coins_logp(logsigmoid(logits), logsigmoid(-logits), views.scored, views.open)
        return forced_coins_logp(logits, views.scored, views.open)

    def _share(self, batch: Batch, views: Views) -> Float[Tensor, " S"]:
        """How much each step counts in the sum, before the division by the update's count."""
        if self.reduction == "sum":
            return views.weight.new_ones(len(views))
        steps = batch.views.row.bincount(minlength=len(batch.sequences))
        length = batch.sequences.completion.sum(-1)
        return 1 / (steps if self.reduction == "mean_active_steps" else length)[views.row].double()


def _planner_temperature(trajectory: Trajectory) -> float:
    from dllm_rl.errors import RecipeError

    if trajectory.planner_temperature is None:
        raise RecipeError(
            "dultra: the rollouts' positions were not chosen by the coins of a planner, whose likelihood is what is "
            "learned; set rollout.sampler to planner, with its mode left at sample"
        )
    if trajectory.exactness == "approximate_cache":
        raise RecipeError(
            "dultra: the rollouts were made through an approximate cache, so what they recorded of tokens and choices "
            "is not the model's own likelihood; set cache to 'none', or to 'block' for a block-causal model"
        )
    if trajectory.transform.truncates:
        raise RecipeError(
            "dultra: the rollouts were drawn with top_p or top_k; tokens leave such a support as the policy learns, "
            "and their ratio is then undefined. Leave top_p and top_k out of rollout"
        )
    return trajectory.planner_temperature
