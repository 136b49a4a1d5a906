"""Samplers that look at more than the confidence of one position in one forward."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.adaptive import LocalLeap
from dllm_rl.samplers.dilated import Dilated
from dllm_rl.samplers.klass import Klass
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.order import refuse_improbable, refuse_unknown_order, score_by
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import Even


@dataclass(frozen=True, slots=True)
class KlassSampler:
    """Tokens that are sure and whose prediction is stable from forward to forward; LLaDA's quota where none is.

    Source: Kim et al. (KLASS), https://arxiv.org/abs/2511.05664; their code's values, tuned for each task in the paper
    (threshold 0.6 to 0.9, divergence 0.001 to 0.015). Keeps one prediction per position of a block: 4 bytes times the
    vocabulary, 16 MB a row for a block of 32. See `samplers.klass` for what is not reproduced.
    """

    threshold: float = 0.9
    divergence: float = 0.01
    """Stable is a prediction whose divergence from the one before is smaller, nats."""
    history: int = 2
    """At so many forwards in a row."""
    order: str = "drawn"
    """Confidence is the probability of the token drawn ("drawn"), or the largest, blind to the draw ("max")."""

    def __post_init__(self) -> None:
        refuse_improbable("threshold", self.threshold)
        refuse_unknown_order(self.order)
        if not 0 < self.divergence < math.inf:
            raise RecipeError(f"divergence is {self.divergence}; expected a finite number of nats above 0")
        if self.history < 1:
            raise RecipeError(f"history is {self.history}; expected at least 1 forward")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks, transform = request.blocks(spec), request.transform(spec)
        rule = Klass(
            self.threshold,
            self.divergence,
            window=max(blocks.lengths),
            quota=Even(request.steps_per_block(blocks)),
            history=self.history,
            distribution=Transform(forbidden_ids=transform.forbidden_ids),
        )
        return Sampler(transform, score_by(self.order, transform), rule, blocks)


@dataclass(frozen=True, slots=True)
class LocalLeapSampler:
    """Tokens that are sure, and near those the ones that are nearly so; always the surest one.

    Source: Kong et al. (LocalLeap), https://arxiv.org/abs/2510.07081, with its values.
    """

    threshold: float = 0.9
    relaxed: float = 0.75
    """Confidence that is enough within `radius` of a token that reaches the threshold."""
    radius: int = 4
    order: str = "drawn"
    """Confidence is the probability of the token drawn ("drawn"), or the largest, blind to the draw ("max")."""

    def __post_init__(self) -> None:
        refuse_improbable("threshold", self.threshold)
        refuse_unknown_order(self.order)
        if not 0 < self.relaxed <= self.threshold:
            raise RecipeError(f"relaxed is {self.relaxed}; expected above 0 and at most the threshold {self.threshold}")
        if self.radius < 0:
            raise RecipeError(f"radius is {self.radius}; expected at least 0 positions")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("localleap")
        transform = request.transform(spec)
        rule = LocalLeap(self.threshold, self.relaxed, self.radius)
        return Sampler(transform, score_by(self.order, transform), rule, request.blocks(spec))


@dataclass(frozen=True, slots=True)
class Dus:
    """Each block in rounds of positions that stand far apart, about log(block_length) forwards a block.

    Source: Luxembourg et al. (DUS), https://arxiv.org/abs/2506.19037. See `samplers.dilated` for what differs.
    """

    base: int = 2
    """Each round stands this many times closer than the one before."""
    skip: float = 0.3
    """Tokens with less confidence are put off to the next round; 0 puts none off."""
    order: str = "drawn"
    """Confidence is the probability of the token drawn ("drawn"), or the largest, blind to the draw ("max")."""

    def __post_init__(self) -> None:
        refuse_unknown_order(self.order)
        if self.base < 2:
            raise RecipeError(f"base is {self.base}; expected at least 2")
        if not 0 <= self.skip <= 1:
            raise RecipeError(f"skip is {self.skip}; expected a probability")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("dus")
        transform = request.transform(spec)
        rule = Dilated(self.base, self.skip)
        return Sampler(transform, score_by(self.order, transform), rule, request.blocks(spec))
