"""What particles are weighed by: functions of a state, from one forward that the sampler needs anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Float64
from torch import Tensor

from dllm_rl.errors import RecipeError
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.loop import Sampler, Sight
from dllm_rl.samplers.network import mean_entropy


@runtime_checkable
class Potential(Protocol):
    """How much a state that is not finished is favoured; finished ones are not asked, they have 1."""

    def __call__(self, sight: Sight, canvas: Canvas, sampler: Sampler) -> Float[Tensor, " B"]:
        """The potential's logarithm, nats; minus infinity for a state that must not be."""
        ...


def certainty(sight: Sight, canvas: Canvas, sampler: Sampler) -> Float64[Tensor, " B"]:
    """1 - h / log V, between 0 and 1, for the mean entropy h of the open positions; 1 where nothing is open.

    No clipping is needed: h is the entropy of the ids that may be drawn, at most V.
    """
    proposal = sight.proposal
    entropy = mean_entropy(proposal, sampler.transform.forbidden_ids, len(canvas.keys)).nan_to_num(nan=0.0)
    return 1 - entropy / math.log(proposal.logits.shape[1])


def _refuse_strength(strength: float) -> None:
    if not 0 <= strength < math.inf:
        raise RecipeError(f"strength is {strength}; expected a finite number, at least 0")


@dataclass(frozen=True, slots=True)
class EntropyTilt:
    """exp(strength * (r - 1)) for the certainty r of a state.

    The published potential is exp(strength * r). The constant between the two changes nothing among particles that are
    weighed equally often; with it a finished state has potential 1, so that rollouts of adaptive samplers, which take
    different numbers of steps, are weighed alike.

    Source: Chen et al., https://arxiv.org/abs/2512.21336, E-SMC, "max", strength 5. The released code takes a softmax
    of the potential, exp(exp(5 r)), under which r = 0.90 and 0.91 weigh 0.01 and 0.99 instead of 0.49 and 0.51.

    Raises:
        RecipeError: strength is negative or not finite.
    """

    strength: float = 5.0

    def __post_init__(self) -> None:
        _refuse_strength(self.strength)

    def __call__(self, sight: Sight, canvas: Canvas, sampler: Sampler) -> Float64[Tensor, " B"]:
        return self.strength * (certainty(sight, canvas, sampler) - 1)


E_SMC = EntropyTilt()


@dataclass(frozen=True, slots=True)
class LinearTilt:
    """(1 + strength * r) / (1 + strength) for the certainty r of a state; 1 for one that is finished.

    Source: Chen et al., https://arxiv.org/abs/2512.21336, E-SMC, "mean": 1 + strength * r; see `EntropyTilt`.

    Raises:
        RecipeError: strength is negative or not finite.
    """

    strength: float = 5.0

    def __post_init__(self) -> None:
        _refuse_strength(self.strength)

    def __call__(self, sight: Sight, canvas: Canvas, sampler: Sampler) -> Float64[Tensor, " B"]:
        return (self.strength * certainty(sight, canvas, sampler)).log1p() - math.log1p(self.strength)
