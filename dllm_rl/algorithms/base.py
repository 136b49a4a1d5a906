"""What an algorithm is: which views to score, what to keep from them, and a pure loss of the numbers scored.

An algorithm never sees a model. Its fields are its section of a recipe, and importing it does not import torch.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Int64
    from torch import Tensor

    from dllm_rl.algorithms.hints import HintSettings
    from dllm_rl.diffusion.trajectory import Trajectory
    from dllm_rl.diffusion.transform import Transform
    from dllm_rl.diffusion.views import Sequences, Views
    from dllm_rl.objectives.reduce import Report


@dataclass(frozen=True, slots=True)
class StepCredit:
    """What each step of B rollouts earned, and which steps are learned from."""

    advantage: Float[Tensor, "B S"]
    kept: Bool[Tensor, "B S"]

    def select(self, rows: Int64[Tensor, " R"]) -> StepCredit:
        return StepCredit(self.advantage[rows], self.kept[rows])


@dataclass(frozen=True, slots=True)
class Material:
    """What one micro-batch learns from, before any view is drawn."""

    sequences: Sequences
    keys: Int64[Tensor, " B"]
    """One per sequence; whatever is drawn for it is folded from it."""
    advantage: Float[Tensor, " B"] | None = None
    trajectory: Trajectory | None = None
    """How the sequences came to be; None for texts and pairs."""
    iteration: int = 0
    """Which of the mu sets of views is to be made, counted from 0."""
    credit: StepCredit | None = None
    """Of the trajectory's steps, for algorithms that judge them."""
    first: Int64[Tensor, " B"] | None = None
    """The first completion of each one's prompt; None for texts and pairs."""

    @property
    def group_keys(self) -> Int64[Tensor, " B"]:
        """For each sequence the key of its group's first, whatever micro-batch the group is in."""
        assert self.first is not None, "rollouts come in groups"
        return self.keys[self.first]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of an update: sequences, the views to score on them, and what was known before the update."""

    sequences: Sequences
    views: Views
    advantage: Float[Tensor, " B"] | None = None
    """One number per sequence; None for algorithms that learn from text or pairs."""
    behaviour_logp: Float[Tensor, "R N"] | None = None
    """Scores of the weights that wrote the rollout, on the same views; None while the policy still has those weights,
    when they are its own scores."""
    reference_logp: Float[Tensor, "R N"] | None = None
    """Scores of the reference model, on the same views."""
    transform: Transform | None = None
    """The distribution that everything is scored under; None is the full softmax at temperature 1."""
    selection_logp: Float[Tensor, " R"] | None = None
    """What the rollout recorded, for each view, of the choices that were no tokens: where to write, how to step."""
    action: Float64[Tensor, "R A"] | None = None
    """What a schedule policy decided before each view's step, where that is learned from and not the tokens."""
    sigma: float = 0.0
    """Standard deviation of those actions."""
    planner_temperature: float = 1.0
    """What the rollout divided the planner's logits by."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the policy on some of a batch's views."""

    logp: Float[Tensor, "S N"]
    """Log-probability of the clean token where a view is scored, zero elsewhere; nats; carries gradient."""
    view: Int64[Tensor, " S"]
    """Which of the batch's views these are."""
    plan: Float[Tensor, "S N"] | None = None
    """Logits of the planner head where a view is open, zero elsewhere; carries gradient. None if views have nothing
    open."""
    schedule: Float[Tensor, "S A"] | None = None
    """Means of the schedule head's actions; carries gradient. None if views have no features; where they have, `logp`
    is zero: the network was not asked."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum to be minimised, divided by the exact count of the whole update, and numbers to report."""

    total: Float[Tensor, ""]
    metrics: Mapping[str, Report]


Trained = Literal["all", "network", "head"]
"""Which parameters: those of the policy head, all others, or both."""


class Algorithm(BaseModel, abc.ABC):
    """Base of all algorithms; concrete ones are never subclassed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    source: ClassVar[Literal["text", "pairs", "rollouts"]]
    """What it learns from: texts, preference pairs (rows 2i chosen, 2i + 1 rejected) or its own rollouts."""
    citation: ClassVar[str]
    """BibTeX of the paper."""
    judges_steps: ClassVar[bool] = False
    """True if it wants a reward for every step's one-step completion, which rollouts then record."""
    head: ClassVar[Literal["planner", "schedule"] | None] = None
    """The policy head that the model must have."""
    samplers: ClassVar[tuple[str, ...] | None] = None
    """Names of the samplers whose rollouts it can learn from; None: any. A recipe with another is refused."""
    needs_reward: ClassVar[bool] = True
    """False for one that learns from rollouts and not from what they are worth."""

    @property
    def learns(self) -> Trained:
        """What training may change at all; the rest is frozen. A head that is not this algorithm's is always frozen."""
        return "all"

    @property
    def num_iterations(self) -> int:
        """Updates made from one rollout (mu)."""
        return 1

    @property
    def needs_behaviour(self) -> bool:
        return False

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def is_sum_over_views(self) -> bool:
        """True if the loss of all views is the sum of the losses of any partition of them, so that no pass without
        gradient is needed before the backward.
        """
        return False

    @property
    def shares_draws(self) -> bool:
        """True if all completions of a prompt are to be drawn for with the key of the first."""
        return False

    @property
    def allows_dropout(self) -> bool:
        return False

    @property
    def inpainting(self) -> HintSettings | None:
        """How groups that fail are rolled out again with hints; None: they are not."""
        return None

    def check_options(self, options: Mapping[str, object]) -> None:
        """Refuse options of the rollout's sampler that leave nothing to learn from; a recipe asks. By default none.

        Raises:
            ValueError: which option, and what it should be.
        """

    def trains(self, update: int) -> Trained:
        """What update number `update`, counted from 0, changes, of what the algorithm learns. The rest stays bit for
        bit as it is, its optimiser's state too.
        """
        return self.learns

    def scope(self, sequences: Sequences) -> Sequences:
        """What of the sequences the model is shown. By default: up to the last scored position."""
        return replace(sequences, attend=sequences.attend & (~sequences.completion | sequences.scored))

    def views(self, sequences: Sequences, keys: Int64[Tensor, " B"], mask_id: int) -> Views:
        """Random views of the sequences. Not asked of algorithms that replay trajectories."""
        raise NotImplementedError(f"{type(self).__name__} draws no views")

    def prepare(self, material: Material, keys: Int64[Tensor, " B"], mask_id: int) -> Batch:
        """What to score in one iteration; the only place where an algorithm draws. By default random views.

        Args:
            keys: those of the material, folded with the iteration.
        """
        return Batch(material.sequences, self.views(material.sequences, keys, mask_id), material.advantage)

    def needs_entropy(self, material: Material) -> bool:
        """Whether `filtered` is to be asked once the views of this material are drawn."""
        return False

    def filtered(self, material: Material, batch: Batch, entropy: Float[Tensor, "R N"]) -> Batch:
        """The batch without what is not to be learned; what it leaves unscored gets no gradient.

        Args:
            material: what the batch was prepared from.
            entropy: of the policy's distribution at each view's scored positions, nats; zero elsewhere.
        """
        return batch

    def iteration_index(self, iteration: int, micro_batch: int, num_micro_batches: int) -> int:
        """Which of the mu sets of views a micro-batch uses in an iteration."""
        return iteration

    def advantages(self, reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Advantages of a prompt's completions. Only asked of algorithms that learn from rollouts."""
        raise NotImplementedError(f"{type(self).__name__} does not learn from rollouts")

    def step_credit(self, reward: Float[Tensor, "P G S"], num_steps: Int64[Tensor, "P G"]) -> StepCredit:
        """What the steps of a prompt's completions earned, [P G, S]. Only asked of algorithms that judge steps.

        Args:
            num_steps: how many steps each rollout took; later rewards mean nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} does not judge steps")

    @abc.abstractmethod
    def count(self, batch: Batch) -> float:
        """This micro-batch's share of the denominator; known before anything is scored."""

    @abc.abstractmethod
    def loss(self, batch: Batch, scores: Scores) -> Loss:
        """The loss as a pure function of the numbers scored."""

    def estimates(self, batch: Batch, logp: Float[Tensor, "R N"]) -> Float64[Tensor, "B M"]:
        """Independent estimates of each sequence's log-probability, nats, from the scores of all the batch's views.

        By default one: the sum over the sequence's views.
        """
        per_view = (logp.double() * batch.views.weight).sum(-1)
        return per_view.new_zeros(len(batch.sequences)).index_add(0, batch.views.row, per_view)[:, None]

    def diagnose(self, batch: Batch, scores: Scores) -> Mapping[str, Report]:
        """What is reported of a batch and needs its views together, however few a forward takes; `scores` is of all."""
        from dllm_rl.objectives.reduce import mean_of, variance_of_mean

        estimates = self.estimates(batch, scores.logp)
        if estimates.shape[1] == 1:
            return {}
        return {"likelihood/estimate_variance": mean_of(variance_of_mean(estimates))}
