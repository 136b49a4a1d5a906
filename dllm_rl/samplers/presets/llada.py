"""LLaDA's own sampler, and the same with the order that reinforcement learning wants."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import Even
from dllm_rl.samplers.score import DrawnProbability, Indifferent, MaxProbability
from dllm_rl.samplers.select import TopK, UniformSubset


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

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        quota = Even(request.steps_per_block(blocks))
        never = spec.eos_ids if self.logits_eos_inf else ()
        transform = request.transform(spec, never)
        if self.remasking == "random":
            return Sampler(transform, Indifferent(), UniformSubset(quota), blocks)
        turn = () if self.eot_id is None else (self.eot_id,)
        last = (*spec.eos_ids, *turn) if self.confidence_eos_eot_inf else ()
        score = DrawnProbability(Transform(forbidden_ids=tuple(sorted({*never, *last}))))
        return Sampler(transform, score, TopK(quota), blocks)


@dataclass(frozen=True, slots=True)
class Rl:
    """For reinforcement learning: choose positions by their largest probability, then draw only there.

    The choice does not depend on the draws, so the log-probability of a rollout is the sum over its tokens.
    """

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        transform = request.transform(spec)
        score = MaxProbability(Transform(forbidden_ids=transform.forbidden_ids))
        return Sampler(transform, score, TopK(Even(request.steps_per_block(blocks))), blocks)
