"""LLaDA2.1's sampler: write by a threshold, edit by another."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.order import refuse_improbable, refuse_unknown_order, score_by
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.revise.token_to_token import TokenToToken
from dllm_rl.samplers.select import Threshold


@dataclass(frozen=True, slots=True)
class T2t:
    """Every token with at least a given confidence, always the surest; written ones change where another is surer.

    The values are those of LLaDA2.1's quality mode; its speed mode has threshold 0.5 and edit 0. With edit 1 this is
    `threshold`. Passes that only edit are forwards like the others, and a row that ends waits for them.

    Source: Bie et al. (LLaDA2.1), https://arxiv.org/abs/2602.08676. See `samplers.revise.token_to_token`.
    """

    threshold: float = 0.7
    edit: float = 0.5
    """A written token is replaced by the likeliest one if that is another with a probability above this."""
    post_steps: int = 16
    """At most so many forwards that only edit, in each block."""
    order: str = "drawn"
    """Confidence is the probability of the token drawn ("drawn"), or the largest, blind to the draw ("max")."""

    def __post_init__(self) -> None:
        refuse_improbable("threshold", self.threshold)
        refuse_unknown_order(self.order)
        if not 0 <= self.edit <= 1:
            raise RecipeError(f"edit is {self.edit}; expected a probability")
        if self.post_steps < 0:
            raise RecipeError(f"post_steps is {self.post_steps}; expected at least 0 forwards")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("t2t")
        transform = request.transform(spec)
        revise = TokenToToken(self.edit, self.post_steps, transform.forbidden_ids)
        score = score_by(self.order, transform)
        return Sampler(transform, score, Threshold(self.threshold), request.blocks(spec), revise)
