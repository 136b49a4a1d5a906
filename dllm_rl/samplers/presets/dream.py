"""Dream's sampler with its four algorithms."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import TimeFloor, revealed_share
from dllm_rl.samplers.random_coins import Coins
from dllm_rl.samplers.random_rules import PlackettLuce, Steady
from dllm_rl.samplers.score import (
    DrawnProbability,
    Exponentiated,
    ExponentiatedDraw,
    Indifferent,
    Margin,
    NegativeEntropy,
    Score,
    as_drawn,
)
from dllm_rl.samplers.select import TopK

ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")


@dataclass(frozen=True, slots=True)
class Dream:
    """As many positions as a step of time reveals, by a confidence read from the distribution drawn from.

    Recommended with temperature 0.2 and top_p 0.95. "maskgit_plus" reads the token drawn; the other three are blind to
    it. With a step per position the first step writes nothing and the last one two, as published.

    Source: Ye et al., https://arxiv.org/abs/2508.15487, generation_utils.py. Deviation: every row has its own quota.
    """

    alg: str = "entropy"
    """Order: at random by time ("origin"), by the probability of the token drawn ("maskgit_plus"), by the lead of the
    likeliest token ("topk_margin"), by entropy ("entropy")."""
    alg_temp: float = 0.0
    """Choose positions at random, by a softmax of the confidence over this; 0 takes the highest. With "maskgit_plus"
    the likelihood of such a rollout is not known."""
    eps: float = 1e-3
    """The time at which the last step ends."""

    def __post_init__(self) -> None:
        if self.alg not in ALGORITHMS:
            raise RecipeError(f"alg is {self.alg!r}; expected one of {', '.join(ALGORITHMS)}")
        if not 0 <= self.alg_temp < float("inf"):
            raise RecipeError(f"alg_temp is {self.alg_temp}; expected a finite number, at least 0")
        if self.alg_temp and self.alg == "origin":
            raise RecipeError(f"alg_temp is {self.alg_temp} and alg 'origin' has no confidence to divide; set it to 0")
        if not 0 < self.eps < 1:
            raise RecipeError(f"eps is {self.eps}; expected a time between 0 and 1")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks, transform = request.blocks(spec), request.transform(spec)
        steps = request.steps_per_block(blocks)
        if self.alg == "origin":
            coins = Coins(tuple(revealed_share(torch.arange(steps), steps, self.eps).tolist()))
            return Sampler(transform, Indifferent(), coins, blocks)
        quota, distribution = TimeFloor(steps, self.eps), as_drawn(transform)
        if not self.alg_temp:
            return Sampler(transform, self._score(distribution), TopK(quota), blocks)
        select = PlackettLuce(quota, Steady(self.alg_temp))
        return Sampler(transform, self._divisible(distribution), select, blocks)

    def _score(self, distribution: Transform) -> Score:
        if self.alg == "maskgit_plus":
            return DrawnProbability(distribution)
        return Margin(distribution) if self.alg == "topk_margin" else NegativeEntropy(distribution)

    def _divisible(self, distribution: Transform) -> Score:
        """The confidence itself, not its logarithm: this is what `alg_temp` divides."""
        if self.alg == "maskgit_plus":
            return ExponentiatedDraw(DrawnProbability(distribution))
        return Exponentiated(Margin(distribution)) if self.alg == "topk_margin" else NegativeEntropy(distribution)
