"""Named samplers. A preset is its options, and a function of them and of the model's constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol, get_type_hints, runtime_checkable

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.blocks import Blocks, cut
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.score import DrawnProbability, MaxProbability, RandomOrder, Score
from dllm_rl.samplers.select import EvenQuota


@runtime_checkable
class Preset(Protocol):
    """Options of a named sampler, and how to build it."""

    def build(self, spec: DiffusionSpec, blocks: Blocks, temperature: float, cfg_scale: float) -> Sampler: ...


@dataclass(frozen=True, slots=True)
class Llada:
    """The published sampler: draw everywhere, keep the draws with the highest confidence.

    Token for token the reference at temperature 0, but for its errors: neither the mask nor a reserved id is ever
    drawn, and a prompt may contain the mask id. At temperatures above 0 it does not sample the model's distribution,
    not even one token at a time; the likelihood it records is exact all the same.

    Source: Nie et al., https://arxiv.org/abs/2502.09992, generate.py.
    """

    remasking: str = "low_confidence"
    """Order of writing: by the probability of the token drawn ("low_confidence"), or at random ("random")."""
    logits_eos_inf: bool = False
    """Never draw the end of sequence."""
    confidence_eos_eot_inf: bool = False
    """Write ends of sequence and of turn last: they are left out of the softmax that confidence is read from. The
    reference does this at temperature 0 only, by accident."""
    eot_id: int | None = None
    """The end of turn that `confidence_eos_eot_inf` holds back (LLaDA: 126348); None if there is none."""

    def __post_init__(self) -> None:
        if self.remasking not in ("low_confidence", "random"):
            raise RecipeError(f"remasking is {self.remasking!r}; expected 'low_confidence' or 'random'")

    def build(self, spec: DiffusionSpec, blocks: Blocks, temperature: float, cfg_scale: float) -> Sampler:
        never = spec.eos_ids if self.logits_eos_inf else ()
        turn = () if self.eot_id is None else (self.eot_id,)
        last = (*spec.eos_ids, *turn) if self.confidence_eos_eot_inf else ()
        score: Score = RandomOrder()
        if self.remasking == "low_confidence":
            score = DrawnProbability(ignored_ids=tuple(sorted({*never, *last})))
        transform = Transform(temperature, cfg_scale, _forbidden(spec, never))
        return Sampler(transform, score, EvenQuota(blocks.steps_per_block), blocks)


@dataclass(frozen=True, slots=True)
class Rl:
    """For reinforcement learning: choose positions by their largest probability, then draw only there.

    The choice does not depend on the draws, so the log-probability of a rollout is the sum over its tokens.
    """

    def build(self, spec: DiffusionSpec, blocks: Blocks, temperature: float, cfg_scale: float) -> Sampler:
        forbidden = _forbidden(spec, ())
        transform = Transform(temperature, cfg_scale, forbidden)
        return Sampler(transform, MaxProbability(forbidden), EvenQuota(blocks.steps_per_block), blocks)


def _forbidden(spec: DiffusionSpec, more: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({spec.mask_id, *spec.forbidden_ids, *more}))


PRESETS: Mapping[str, type[Preset]] = {"llada": Llada, "rl": Rl}


def preset(name: str, options: Mapping[str, Any]) -> Preset:
    """The preset called `name`, with `options` set.

    Raises:
        RecipeError: there is no such preset, it has no such option, or an option is of the wrong type.
    """
    if name not in PRESETS:
        raise RecipeError(f"no sampler is called {name!r}; {_suggest(name, list(PRESETS))}")
    chosen = PRESETS[name]
    types = get_type_hints(chosen)
    for option, value in options.items():
        if option not in types:
            raise RecipeError(f"sampler {name!r} has no option {option!r}; {_suggest(option, list(types))}")
        if not isinstance(value, types[option]):  # the text "no" would count as true
            expected = getattr(types[option], "__name__", types[option])
            raise RecipeError(f"sampler {name!r}: option {option} is {value!r}; expected {expected}")
    return chosen(**options)


def make_sampler(
    spec: DiffusionSpec,
    name: str,
    options: Mapping[str, Any],
    *,
    gen_length: int,
    block_length: int | None,
    steps: int | None,
    temperature: float,
    cfg_scale: float,
) -> Sampler:
    """The sampler that settings describe; see `samplers.generate` for their meaning.

    Raises:
        RecipeError: unknown sampler or option, lengths that do not divide, or a temperature or guidance that is
            negative or not finite.
    """
    for setting, value in (("temperature", temperature), ("cfg_scale", cfg_scale)):
        if not 0 <= value < math.inf:
            raise RecipeError(f"{setting} is {value}; expected a finite number, at least 0")
    return preset(name, options).build(spec, cut(gen_length, block_length, steps), temperature, cfg_scale)


def _suggest(word: str, known: list[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return (
        f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known) or 'none: it takes no options'}"
    )
