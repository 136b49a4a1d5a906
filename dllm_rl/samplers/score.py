"""How good each open position is: the order in which a sampler writes.

A score that is blind to the draw is known before any token is drawn: the order is then a function of the canvas, one
token per step leaves an exact model's joint distribution as it is, and tokens are drawn only where they are written. A
score of the token drawn tilts the distribution of the text at any temperature above 0, and the likelihood of a rollout
needs the F term (`diffusion.ledger.losing_logp`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal


@runtime_checkable
class BlindScore(Protocol):
    """A number per open position that does not depend on the token drawn there."""

    reads_plan: ClassVar[bool]
    """True if it reads the planner head."""

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]: ...


@runtime_checkable
class DrawnScore(Protocol):
    """A number per open position that is read from the token drawn there."""

    def of_tokens(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, "T V"]:
        """The score of every token that could have been drawn. Called with chunks of a proposal."""
        ...


Score = BlindScore | DrawnScore

EVERYTHING = Transform()
"""The full softmax at temperature 1."""


@dataclass(frozen=True, slots=True)
class MaxProbability:
    """Log-probability of the likeliest token."""

    distribution: Transform = EVERYTHING

    reads_plan: ClassVar[bool] = False

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        return proposal.per_position(lambda logits: self.distribution.log_probs(logits).amax(dim=-1))


@dataclass(frozen=True, slots=True)
class Indifferent:
    """All positions alike; for selections that choose at random."""

    reads_plan: ClassVar[bool] = False

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        return torch.zeros(len(proposal.row), dtype=torch.float64, device=proposal.row.device)


@dataclass(frozen=True, slots=True)
class PlannerLogit:
    """What the model's planner head says; nothing of the tokens is read.

    Source: dUltra, https://arxiv.org/abs/2512.21446; LLaDOU, https://arxiv.org/abs/2505.10446.
    """

    reads_plan: ClassVar[bool] = True

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        assert proposal.plan is not None, "the loop asks the planner when the score reads it"
        return proposal.plan


@dataclass(frozen=True, slots=True)
class DrawnProbability:
    """Log-probability of the token drawn, under a distribution that need not be the one it was drawn from.

    LLaDA's "low confidence" order reads it from the full softmax at temperature 1; Dream's "maskgit_plus" from the
    distribution drawn from.

    Source: Nie et al., https://arxiv.org/abs/2502.09992, generate.py. Confidence is float32 here, whatever the weights.
    """

    distribution: Transform = EVERYTHING
    """Ids that it forbids score minus infinity: where one was drawn, it is written last."""

    def of_tokens(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, "T V"]:
        return self.distribution.log_probs(proposal.logits)
