"""SDAR's dynamic sampler."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.order import refuse_improbable
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import Even
from dllm_rl.samplers.score import DrawnProbability, as_drawn
from dllm_rl.samplers.select import Threshold


@dataclass(frozen=True, slots=True)
class Sdar:
    """Every token drawn with at least a given confidence, but no fewer than the steps of a block ask for.

    Confidence is read from the distribution drawn from. Made for block-causal models, whose blocks it takes. Published
    with temperature 1.

    Source: Cheng et al., https://arxiv.org/abs/2510.06303, "low_confidence_dynamic" of its generate.py. In the first
    block, which the prompt's tail may have shortened, the code can write more positions than are open: not here.
    """

    threshold: float = 0.85

    def __post_init__(self) -> None:
        refuse_improbable("threshold", self.threshold)

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks, transform = request.blocks(spec), request.transform(spec)
        select = Threshold(self.threshold, floor=Even(request.steps_per_block(blocks)))
        return Sampler(transform, DrawnProbability(as_drawn(transform)), select, blocks)
