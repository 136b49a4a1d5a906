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
    from jaxtyping import Float, Int64
    from torch import Tensor

    from dllm_rl.diffusion.trajectory import Trajectory
    from dllm_rl.diffusion.transform import Transform
    from dllm_rl.diffusion.views import Sequences, Views
    from dllm_rl.objectives.reduce import Mean


@dataclass(frozen=True, slots=True)
class Material:
    """What one micro-batch learns from, before any view is drawn."""

    sequences: Sequences
    keys: Int64[Tensor, " B"]
    """One per sequence; whatever is drawn for it is folded from it."""
    advantage: Float[Tensor, " B"] | None = None
    trajectory: Trajectory | None = None
    """How the sequences came to be; None for texts and pairs."""


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
    metrics: Mapping[str, Mean]


Trained = Literal["all", "network", "head"]
"""Which parameters: those of the policy head, all others, or both."""


class Algorithm(BaseModel, abc.ABC):
    """Base of all algorithms; concrete ones are never subclassed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    source: ClassVar[Literal["text", "pairs", "rollouts"]]
    """What it learns from: texts, preference pairs (rows 2i chosen, 2i + 1 rejected) or its own rollouts."""
    citation: ClassVar[str]
    """BibTeX of the paper."""
    head: ClassVar[Literal["planner", "schedule"] | None] = None
    """The policy head that the model must have."""
    learns: ClassVar[Trained] = "all"
    """What training may change at all; the rest is frozen. A head that is not this algorithm's is always frozen."""

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
    def allows_dropout(self) -> bool:
        return False

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

    def iteration_index(self, iteration: int, micro_batch: int, num_micro_batches: int) -> int:
        """Which of the mu sets of views a micro-batch uses in an iteration."""
        return iteration

    def advantages(self, reward: Float[Tensor, "P G"]) -> Float[Tensor, "P G"]:
        """Advantages of a prompt's completions. Only asked of algorithms that learn from rollouts."""
        raise NotImplementedError(f"{type(self).__name__} does not learn from rollouts")

    @abc.abstractmethod
    def count(self, batch: Batch) -> float:
        """This micro-batch's share of the denominator; known before anything is scored."""

    @abc.abstractmethod
    def loss(self, batch: Batch, scores: Scores) -> Loss:
        """The loss as a pure function of the numbers scored."""
