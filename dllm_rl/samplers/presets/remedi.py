"""RemeDi's sampler: a head of the model says which tokens stay."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import MaskRatio
from dllm_rl.samplers.revise.keep_top import KeepTop
from dllm_rl.samplers.score import DrawnLogit, PlannerLogit, Score
from dllm_rl.samplers.select import Everything

ORDERS = ("planner", "logit")


@dataclass(frozen=True, slots=True)
class Remedi:
    """The planner scores every position of the block, written or not: the highest stay, the others are hidden again.

    Nothing that is drawn is left out of the log, so the likelihood is exact. The choice is greedy in the planner's
    logits, as at inference; the paper's reinforcement learning draws it (Plackett-Luce), which is not offered here.

    Source: Huang et al. (RemeDi), https://arxiv.org/abs/2509.23653; blocks of 32 with a step per position. Deviation of
    the released inference.py: it never reads the head that was trained for this, and ranks by the raw logits of the
    tokens; `order` "logit" does the same, but for its remainder, which goes to the last steps there.
    """

    order: str = "planner"
    """What ranks positions: the planner head ("planner"), or the raw logit of the token that is drawn or stands there,
    for models without one ("logit")."""
    mode: str = "linear"
    """How many stay hidden: "linear" as published, or another of `quota.MaskRatio`."""

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise RecipeError(f"order is {self.order!r}; expected one of {', '.join(ORDERS)}")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        quota = MaskRatio(self.mode, request.steps_per_block(blocks))
        score: Score = PlannerLogit() if self.order == "planner" else DrawnLogit()
        return Sampler(request.transform(spec), score, Everything(), blocks, KeepTop(quota, score))
