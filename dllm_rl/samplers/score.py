"""How good each open position is: the order in which a sampler writes.

A score that is blind to the draw is known before any token is drawn: the order is then a function of the canvas, one
token per step leaves an exact model's joint distribution as it is, and tokens are drawn only where they are written. A
score of the token drawn tilts the distribution of the text at any temperature above 0, and the likelihood of a rollout
needs the F term (`diffusion.ledger.losing_logp`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal


@runtime_checkable
class BlindScore(Protocol):
    """A number per open position that does not depend on the token drawn there."""

    @property
    def reads_plan(self) -> bool:
        """True if it reads the planner head."""
        ...

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


def as_drawn(transform: Transform) -> Transform:
    """The distribution that tokens are drawn from, for scores that read it; that of temperature 1 when they are drawn
    greedily, since a point mass ranks nothing. Top-p and top-k stay.

    Source: the confidence of Dream, https://arxiv.org/abs/2508.15487, and of SDAR, https://arxiv.org/abs/2510.06303.
    """
    return replace(transform, temperature=transform.temperature or 1.0)


@dataclass(frozen=True, slots=True)
class MaxProbability:
    """Log-probability of the likeliest token."""

    distribution: Transform = EVERYTHING

    reads_plan: ClassVar[bool] = False

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        return proposal.per_position(lambda logits: self.distribution.log_probs(logits).amax(dim=-1))


@dataclass(frozen=True, slots=True)
class Margin:
    """Lead of the likeliest token over the next: log(p_1 - p_2), minus infinity when the two are equal.

    The logarithm, as all scores of probabilities, so that a threshold on it is one on the margin. Ranks positions like
    the margin itself; a rule that reads more than the ranks must say which of the two it means (`Exponentiated`).

    Source: Kim et al., https://arxiv.org/abs/2502.06768, section 4.1.
    """

    distribution: Transform = EVERYTHING

    reads_plan: ClassVar[bool] = False

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        return proposal.per_position(self._log_lead)

    def _log_lead(self, logits: Float[Tensor, "T V"]) -> Float[Tensor, " T"]:
        first, second = self.distribution.log_probs(logits).topk(2, dim=-1).values.unbind(dim=-1)
        return first + torch.log1p(-(second - first).exp())


@dataclass(frozen=True, slots=True)
class NegativeEntropy:
    """The entropy of the prediction with its sign turned, nats: at most 0. Not a log-probability."""

    distribution: Transform = EVERYTHING

    reads_plan: ClassVar[bool] = False

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        return proposal.per_position(self._negative_entropy)

    def _negative_entropy(self, logits: Float[Tensor, "T V"]) -> Float[Tensor, " T"]:
        probs = self.distribution.log_probs(logits).exp()
        total: Tensor = torch.special.entr(probs).sum(dim=-1)
        return -total


@dataclass(frozen=True, slots=True)
class Exponentiated:
    """The number whose logarithm a score is, for rules that want a probability or a margin and not its logarithm."""

    score: BlindScore

    @property
    def reads_plan(self) -> bool:
        return self.score.reads_plan

    def of_positions(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, " T"]:
        return self.score.of_positions(proposal, canvas).exp()


@dataclass(frozen=True, slots=True)
class ExponentiatedDraw:
    """`Exponentiated`, of a score that reads the token drawn."""

    score: DrawnScore

    def of_tokens(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, "T V"]:
        return self.score.of_tokens(proposal, canvas).exp()


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


@dataclass(frozen=True, slots=True)
class DrawnLogit:
    """The raw logit of the token drawn. Logits of different positions have no common zero: a comparison of them means
    little, and is here because it was published.

    Source: RemeDi, https://arxiv.org/abs/2509.23653, its inference.py.
    """

    def of_tokens(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, "T V"]:
        return proposal.logits


@dataclass(frozen=True, slots=True)
class Plausibility:
    """The lower of two: how sure the network is of anything, max p, and how the token drawn compares with the likeliest
    one, q(v) / max q. Logarithms.

    For thresholds at temperatures above 0. There the probability of the token drawn hardly ever clears a threshold,
    since it is low wherever the network has more than one good idea, and every step is left with its single best.

    Source: SGLang, srt/dllm/sampling.py, which gates with min(max p, exp((l_v - l_max) / T)).

    Raises:
        RecipeError: tokens are drawn greedily; each is then the likeliest, and `MaxProbability` says the same.
    """

    drawn_from: Transform
    """The distribution that tokens are drawn from."""
    distribution: Transform = EVERYTHING
    """What the largest probability is read from."""

    def __post_init__(self) -> None:
        if self.drawn_from.temperature == 0:
            raise RecipeError("plausibility of draws asked for at temperature 0; use the largest probability instead")

    def of_tokens(self, proposal: Proposal, canvas: Canvas) -> Float[Tensor, "T V"]:
        sure = self.distribution.log_probs(proposal.logits).amax(dim=-1, keepdim=True)
        logq = self.drawn_from.log_probs(proposal.logits)
        return torch.minimum(sure, logq - logq.amax(dim=-1, keepdim=True))
