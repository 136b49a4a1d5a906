"""Samplers that follow a planner: a head of the model that says which positions to write."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import Even
from dllm_rl.samplers.random_rules import PlackettLuce, PlannerBernoulli, Steady
from dllm_rl.samplers.score import PlannerLogit


@dataclass(frozen=True, slots=True)
class Planner:
    """Each position is written with the planner's probability; the likeliest is, where none would be.

    Tokens are drawn only where they are written, so the likelihood of a rollout is exact at temperatures above 0.

    Source: dUltra, https://arxiv.org/abs/2512.21446. The forced step is counted as it happens, see
    `diffusion.ledger.forced_coins_logp`.
    """

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("planner")
        return Sampler(request.transform(spec), PlannerLogit(), PlannerBernoulli(), request.blocks(spec))


@dataclass(frozen=True, slots=True)
class PlannerPlackettLuce:
    """LLaDA's quota of positions, one after the other, each by a softmax of the planner's logits of those left.

    Source: Huang et al. (LLaDOU), https://arxiv.org/abs/2505.10446.
    """

    planner_temperature: float = 1.0
    """0 writes the highest logits."""

    def __post_init__(self) -> None:
        if not 0 <= self.planner_temperature < math.inf:
            raise RecipeError(
                f"planner_temperature is {self.planner_temperature}; expected a finite number, at least 0"
            )

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        rule = PlackettLuce(Even(request.steps_per_block(blocks)), Steady(self.planner_temperature))
        return Sampler(request.transform(spec), PlannerLogit(), rule, blocks)
