"""MDPO's sampler, with running-confidence remasking or without."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import MaskRatio
from dllm_rl.samplers.revise.running import RunningConfidence
from dllm_rl.samplers.score import DrawnProbability, Indifferent, Margin, NegativeEntropy, Score, as_drawn
from dllm_rl.samplers.select import Everything, TopK, UniformSubset

CONFIDENCES = ("llada", "entropy", "topk_margin", "random")
SCOPES = ("canvas", "block")


@dataclass(frozen=True, slots=True)
class Rcr:
    """Write everything, keep what is surest, and let every step decide again what that is.

    Costs as many forwards as LLaDA's sampler, with a draw at every open position. Nothing that is drawn is left out of
    the log, so the likelihood is exact. Token for token the published sampler at temperature 0, but for its errors.

    Source: He et al. (MDPO), https://arxiv.org/abs/2508.13148, mdlm_generation_utils.py. Deviations: see
    `samplers.revise.running`; the mask is never drawn; steps with nothing left to write are not made; a number of steps
    that blocks cannot share is refused. The code's "random" fails.
    """

    conf_alg: str = "llada"
    """Confidence: the probability of the token drawn ("llada"), the entropy of the prediction ("entropy"), the lead of
    its likeliest token ("topk_margin"), each of the distribution drawn from, the mask included as published; or none,
    and without `rcr` only ("random")."""
    mode: str = "linear"
    """How many stay hidden: "linear", "cosine", "log", "exp", or "pow" and an exponent, see `quota.MaskRatio`."""
    rcr: bool = True
    """False: what is written stays, and only so many positions are written; the sampler that MDPO starts from."""
    scope: str = "canvas"
    """Tokens of earlier blocks may be hidden again ("canvas", as published), or none ("block")."""

    def __post_init__(self) -> None:
        for option, value, known in (("conf_alg", self.conf_alg, CONFIDENCES), ("scope", self.scope, SCOPES)):
            if value not in known:
                raise RecipeError(f"{option} is {value!r}; expected one of {', '.join(known)}")
        if self.conf_alg == "random" and self.rcr:
            raise RecipeError(
                "conf_alg is 'random', and tokens cannot be hidden again for a confidence that they do not have; set "
                "rcr to False for a random order, or choose another conf_alg"
            )
        if self.scope != "canvas" and not self.rcr:
            raise RecipeError(f"scope is {self.scope!r} and without rcr nothing is hidden again; leave scope out")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks, transform = request.blocks(spec), request.transform(spec)
        quota = MaskRatio(self.mode, request.steps_per_block(blocks))
        if self.conf_alg == "random":
            return Sampler(transform, Indifferent(), UniformSubset(quota), blocks)
        score = self._score(transform)
        if not self.rcr:
            return Sampler(transform, score, TopK(quota), blocks)
        revise = RunningConfidence(quota, "block" if self.scope == "block" else "canvas")
        return Sampler(transform, score, Everything(), blocks, revise)

    def _score(self, transform: Transform) -> Score:
        distribution = replace(as_drawn(transform), forbidden_ids=())
        if self.conf_alg == "llada":
            return DrawnProbability(distribution)
        return Margin(distribution) if self.conf_alg == "topk_margin" else NegativeEntropy(distribution)
