"""PC-Sampler, now called Uncode: order by position and by how much a token says."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.position_aware import Background, LinearPosition, PositionAware
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import Even
from dllm_rl.samplers.select import TopK


def _background(given: str | Background | None) -> Background:
    if given is None:
        raise RecipeError("background is not set; pass the path of a file of token counts, or a Background")
    return Background.load(given) if isinstance(given, str) else given


@dataclass(frozen=True, slots=True)
class Pc:
    """Nearest the prompt first, unless what was drawn there is common or unsure.

    The paper decodes greedily and in one block. It uses lambd 0.25 for mathematics and code, 0 for Sudoku, 0.5 for
    Countdown.

    Source: Huang et al., https://arxiv.org/abs/2508.13021, equation 8.
    """

    background: str | Background | None = None
    """How often tokens occur: a file in PC-Sampler's format, see `Background.load`."""
    lambd: float = 0.25
    """How fast the score falls with the distance from the prompt."""
    alpha: float = 10.0
    """The most that a token can say."""

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        score = PositionAware(_background(self.background), self.lambd, self.alpha)
        return Sampler(request.transform(spec), score, TopK(Even(request.steps_per_block(blocks))), blocks)


@dataclass(frozen=True, slots=True)
class PcLinear:
    """The same with a prior that falls linearly and is added. An ablation of the code.

    Source: https://github.com/NEUIR/PC-Sampler, generate_with_linear_position; see `LinearPosition` for the deviations.
    """

    background: str | Background | None = None
    """How often tokens occur: a file in PC-Sampler's format, see `Background.load`."""
    lambd: float = 0.25
    """Weight of the position, from 0 to 1."""
    alpha: float = 10.0
    """The most that a token can say."""

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        transform = request.transform(spec)
        score = LinearPosition(_background(self.background), self.lambd, self.alpha, transform)
        return Sampler(transform, score, TopK(Even(request.steps_per_block(blocks))), blocks)
