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
from dllm_rl.samplers.select import ExpectedCount, Select

MODES = ("sample", "expected")


@dataclass(frozen=True, slots=True)
class Planner:
    """Each position is written with the planner's probability; the likeliest is, where none would be.

    Tokens are drawn only where they are written, so the likelihood of a rollout is exact at temperatures above 0.

    Source: dUltra, https://arxiv.org/abs/2512.21446. The forced step is counted as it happens, see
    `diffusion.ledger.forced_coins_logp`.
    """

    planner_temperature: float = 1.0
    """The planner's logits are divided by it. Below 1 steps agree more often with what the planner finds likelier than
    not."""
    mode: str = "sample"
    """Throw coins ("sample": what is trained), or write as many of the likeliest positions as coins would on average
    ("expected": the published way to decode, which leaves nothing to chance and has no law to learn from)."""

    def __post_init__(self) -> None:
        if not 0 < self.planner_temperature < math.inf:
            raise RecipeError(
                f"planner_temperature is {self.planner_temperature}; expected a finite number above 0 (for a choice "
                "without chance, set mode to 'expected')"
            )
        if self.mode not in MODES:
            raise RecipeError(f"mode is {self.mode!r}; expected {' or '.join(map(repr, MODES))}")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("planner")
        return Sampler(request.transform(spec), PlannerLogit(), self._rule(), request.blocks(spec))

    def _rule(self) -> Select:
        if self.mode == "expected":
            return ExpectedCount(self.planner_temperature)
        return PlannerBernoulli(self.planner_temperature)


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
