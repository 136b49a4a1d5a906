"""Samplers that write as many tokens at a time as the network is sure of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.adaptive import EntropyBounded, Factor
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.order import refuse_improbable, refuse_unknown_order, score_by
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import Constant
from dllm_rl.samplers.score import BlindScore, Margin, MaxProbability, NegativeEntropy
from dllm_rl.samplers.select import Threshold


@dataclass(frozen=True, slots=True)
class FastThreshold:
    """Every token with at least a given confidence, and always the surest one.

    Source: Wu et al. (Fast-dLLM), https://arxiv.org/abs/2505.22618, section 3.3.
    """

    threshold: float = 0.9
    max_k: int | None = None
    """At most so many tokens a step, the surest; None for any number."""
    order: str = "drawn"
    """Confidence is the probability of the token drawn ("drawn"), or the largest, blind to the draw ("max")."""

    def __post_init__(self) -> None:
        refuse_improbable("threshold", self.threshold)
        refuse_unknown_order(self.order)
        if self.max_k is not None and self.max_k < 1:
            raise RecipeError(f"max_k is {self.max_k}; expected at least 1, or nothing for no limit")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("threshold")
        transform = request.transform(spec)
        cap = None if self.max_k is None else Constant(self.max_k)
        rule = Threshold(self.threshold, cap=cap)
        return Sampler(transform, score_by(self.order, transform), rule, request.blocks(spec))


@dataclass(frozen=True, slots=True)
class FastFactor:
    """The n surest tokens, for the largest n with (n + 1) (1 - c_n) <= factor, c_n the n-th confidence; at least one.

    Source: Wu et al. (Fast-dLLM), https://arxiv.org/abs/2505.22618, section 3.3. The published code also writes the one
    token left over when all others of a block pass, sure or not: not reproduced.
    """

    factor: float = 1.0
    order: str = "drawn"
    """Confidence is the probability of the token drawn ("drawn"), or the largest, blind to the draw ("max")."""

    def __post_init__(self) -> None:
        refuse_unknown_order(self.order)
        if not 0 < self.factor < math.inf:
            raise RecipeError(f"factor is {self.factor}; expected a finite number above 0")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("factor")
        transform = request.transform(spec)
        return Sampler(transform, score_by(self.order, transform), Factor(self.factor), request.blocks(spec))


@dataclass(frozen=True, slots=True)
class EbSampler:
    """As many tokens as their entropies allow: all but the largest add up to at most gamma nats; always one.

    At gamma 0 these are the positions without entropy and one more. Its likelihood is that of the tokens alone.

    Source: Ben-Hamu et al. (EB-Sampler), https://arxiv.org/abs/2505.24857, equation 8 with its three error proxies.
    There is no official code; 0.01 is what PC-Sampler's scripts use, others from 0.001 to 0.15.
    """

    gamma: float = 0.01
    order: str = "entropy"
    """Which come first: the least entropy ("entropy"), the largest probability ("max") or the largest lead of the
    likeliest token ("margin")."""

    def __post_init__(self) -> None:
        if self.order not in ("entropy", "max", "margin"):
            raise RecipeError(f"order is {self.order!r}; expected 'entropy', 'max' or 'margin'")
        if not 0 <= self.gamma < math.inf:
            raise RecipeError(f"gamma is {self.gamma}; expected a finite number of nats, at least 0")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("eb")
        return Sampler(request.transform(spec), self._score(), EntropyBounded(self.gamma), request.blocks(spec))

    def _score(self) -> BlindScore:
        if self.order == "entropy":
            return NegativeEntropy()
        return Margin() if self.order == "margin" else MaxProbability()
