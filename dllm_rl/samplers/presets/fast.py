"""Samplers that write as many tokens at a time as the network is sure of."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.score import DrawnProbability
from dllm_rl.samplers.select import Threshold


@dataclass(frozen=True, slots=True)
class FastThreshold:
    """Every token drawn with at least a given confidence, and always the surest one.

    Source: Wu et al. (Fast-dLLM), https://arxiv.org/abs/2505.22618, section 3.3.
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise RecipeError(f"threshold is {self.threshold}; expected a probability above 0, at most 1")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("threshold")
        blocks = request.blocks(spec)
        return Sampler(request.transform(spec), DrawnProbability(), Threshold(self.threshold), blocks)
