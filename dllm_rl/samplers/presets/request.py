"""What a user asks of every sampler, whichever it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers import blocks
from dllm_rl.samplers.blocks import Blocks
from dllm_rl.samplers.loop import Sampler


@dataclass(frozen=True, slots=True)
class Request:
    """Lengths and the distribution to draw from; see `samplers.generate` for their meaning.

    Raises:
        RecipeError: a temperature or guidance that is negative or not finite, a top_p or top_k out of range.
    """

    gen_length: int
    block_length: int | None = None
    steps: int | None = None
    temperature: float = 0.0
    cfg_scale: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    stop_at_eos: bool = False

    def __post_init__(self) -> None:
        for setting, value in (("temperature", self.temperature), ("cfg_scale", self.cfg_scale)):
            if not 0 <= value < math.inf:
                raise RecipeError(f"{setting} is {value}; expected a finite number, at least 0")
        try:
            Transform(top_p=self.top_p, top_k=self.top_k)
        except ValueError as error:
            raise RecipeError(str(error)) from None

    def blocks(self, spec: DiffusionSpec) -> Blocks:
        """Equal blocks of the length asked for; those of the model if it is block-causal."""
        return blocks.cut(self.gen_length, self.block_length, spec.block_size)

    def steps_per_block(self, cut: Blocks) -> int:
        """Each block's share of the steps; one per position if not said."""
        return blocks.steps_per_block(self.steps, cut)

    def refuse_steps(self, sampler: str) -> None:
        """For samplers that decide by themselves.

        Raises:
            RecipeError: a number of steps was asked for.
        """
        if self.steps is not None:
            raise RecipeError(
                f"steps is {self.steps} and sampler {sampler!r} decides by itself how many it takes; leave steps out"
            )

    def end_ids(self, spec: DiffusionSpec) -> tuple[int, ...]:
        """What finishes a row before its last block.

        Raises:
            RecipeError: it is asked for, and the model has no end of sequence.
        """
        if self.stop_at_eos and not spec.eos_ids:
            raise RecipeError(
                "stop_at_eos is set and the model has no end of sequence; set eos_token_id in config.json"
            )
        return spec.eos_ids if self.stop_at_eos else ()

    def transform(self, spec: DiffusionSpec, never: tuple[int, ...] = ()) -> Transform:
        """What is drawn from: neither the mask nor a reserved id nor one of `never`, ever."""
        forbidden = tuple(sorted({spec.mask_id, *spec.forbidden_ids, *never}))
        return Transform(self.temperature, self.cfg_scale, forbidden, self.top_p, self.top_k)


@runtime_checkable
class Preset(Protocol):
    """Options of a named sampler, and how to build it."""

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        """The sampler.

        Raises:
            RecipeError: an option, or what is asked for, does not suit this sampler or this model.
        """
        ...
