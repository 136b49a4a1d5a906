"""Samplers that hold ends of text back, and that write twice as much at every step."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.blocks import Blocks, peel
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.processors import AscendingRise, EndsDiscounted, Factor, LinearRise
from dllm_rl.samplers.quota import Ascending, Even
from dllm_rl.samplers.score import DrawnProbability
from dllm_rl.samplers.select import TopK


def _ends_discounted(spec: DiffusionSpec, eot_id: int | None, factor: Factor) -> EndsDiscounted:
    if not spec.eos_ids:
        raise RecipeError("ends are to be held back and the model has none; set eos_token_id in config.json")
    turn = () if eot_id is None else (eot_id,)
    return EndsDiscounted(DrawnProbability(), tuple(sorted({*spec.eos_ids, *turn})), factor)


def _peeled(spec: DiffusionSpec, request: Request, count: int) -> tuple[int, Blocks]:
    """Steps, by default as many as doublings fit, and the blocks that they are written in."""
    if request.block_length is not None:
        raise RecipeError(
            f"block_length is {request.block_length} and blocks of ascending steps have lengths of their own; "
            "set block_num instead"
        )
    if spec.block_size is not None:
        raise RecipeError(
            "ascending steps go over the whole completion, and a block-causal model writes its own blocks"
        )
    steps = max(1, request.gen_length.bit_length() - 1) if request.steps is None else request.steps
    return steps, peel(request.gen_length, steps, count)


@dataclass(frozen=True, slots=True)
class Eoser:
    """LLaDA's sampler with the confidence of drawn ends multiplied by a factor that rises step by step.

    Source: Yang et al., https://arxiv.org/abs/2509.23924, "EOS early rejection". Deviation: steps are counted over all
    blocks; the code starts again with every block, which differs when there are several.
    """

    eos_min_gamma: float = 0.4
    eos_max_gamma: float = 1.0
    eot_id: int | None = None
    """An end of turn to hold back as well (LLaDA: 126348); the code does not."""

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        steps = request.steps_per_block(blocks)
        factor = LinearRise(self.eos_min_gamma, self.eos_max_gamma, steps * len(blocks.lengths))
        score = _ends_discounted(spec, self.eot_id, factor)
        return Sampler(request.transform(spec), score, TopK(Even(steps)), blocks)


@dataclass(frozen=True, slots=True)
class Ass:
    """1, 2, 4, ... tokens a step, the surest draws first: about log2 of gen_length steps. For models trained to it.

    Source: Yang et al., https://arxiv.org/abs/2509.23924, "ascending step size".
    """

    block_num: int = 1
    """Blocks of unequal lengths, one step each but for the first."""

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        steps, blocks = _peeled(spec, request, self.block_num)
        return Sampler(request.transform(spec), DrawnProbability(), TopK(Ascending(steps)), blocks)


@dataclass(frozen=True, slots=True)
class EoserAss:
    """Both at once: ascending steps, and ends held back in proportion to what is still to be written.

    Source: Yang et al., https://arxiv.org/abs/2509.23924.
    """

    block_num: int = 1
    """Blocks of unequal lengths, one step each but for the first."""
    eos_min_gamma: float = 0.01
    eos_max_gamma: float = 1.0
    eot_id: int | None = None
    """An end of turn to hold back as well (LLaDA: 126348); the code does not."""

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        steps, blocks = _peeled(spec, request, self.block_num)
        score = _ends_discounted(spec, self.eot_id, AscendingRise(self.eos_min_gamma, self.eos_max_gamma, steps))
        return Sampler(request.transform(spec), score, TopK(Ascending(steps)), blocks)
