"""Which of the open positions a step writes: the rules that choose at random, each with the law of its choice.

With a score that is blind to the draw the likelihood of a rollout is exact. With one that reads the draw the choice
would have to be summed over all that might have been drawn, so the rollout has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from dllm_rl.diffusion import ledger
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.quota import Quota
from dllm_rl.samplers.select import Choice, highest, ranks


@runtime_checkable
class Temperature(Protocol):
    """How random a choice is, from where the row stands; 0 is not at all."""

    def __call__(self, canvas: Canvas) -> Float64[Tensor, " B"]: ...


@dataclass(frozen=True, slots=True)
class Steady:
    """The same temperature at every step: Dream's `alg_temp`.

    Source: Ye et al. (Dream), https://arxiv.org/abs/2508.15487, generation_utils.py.
    """

    temperature: float

    def __call__(self, canvas: Canvas) -> Float64[Tensor, " B"]:
        return torch.full_like(canvas.turn, self.temperature, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Annealed:
    """Falls by equal amounts, from just below its start at a block's first step to 0 at its last.

    Source: Chang et al. (MaskGIT), https://arxiv.org/abs/2202.04200, mask_by_random_topk: start * (1 - turn / steps)
    with turns counted from 1.
    """

    start: float
    steps: int
    """Of each block; 0 from there on."""

    def __call__(self, canvas: Canvas) -> Float64[Tensor, " B"]:
        left = self.steps - 1 - canvas.turn.to(torch.float64)
        return self.start * left.clamp(min=0) / self.steps


@dataclass(frozen=True, slots=True)
class PlackettLuce:
    """As many positions as a quota says, one after the other, each by a softmax of the scores of those left.

    Drawn at once as the highest scores after Gumbel noise. At temperature 0 the same as `TopK`. The order within a step
    is part of the choice: it is recorded, and its law is that of the order, not of the set.

    Source: Kool et al., https://arxiv.org/abs/1903.06059, section 2.2. The law of LLaDOU's planner
    (https://arxiv.org/abs/2505.10446), of Dream's `alg_temp`, and of MaskGIT's annealed order.
    """

    quota: Quota
    temperature: Temperature

    random: ClassVar[bool] = True

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        temperature = self.temperature(canvas)[:, None]
        gumbel = proposal.dense(-(-proposal.uniform("order").log()).log(), eligible.shape)
        rank = ranks(score + temperature * gumbel, eligible)
        commit = eligible & (rank < self.quota(canvas)[:, None])
        noisy = temperature > 0
        logits = score / temperature.masked_fill(~noisy, 1.0)
        return Choice(commit, logp=ledger.plackett_luce_logp(logits, rank, commit & noisy, eligible), rank=rank)


@dataclass(frozen=True, slots=True)
class PlannerBernoulli:
    """Every position fires by itself with probability sigmoid(score / temperature); where none does, the likeliest is
    forced.

    Of equally likely ones the lowest index. For the logits of a planner; a log-probability fires at most half the time.

    Source: dUltra, https://arxiv.org/abs/2512.21446. The forced step is counted at its true probability
    (`ledger.forced_coins_logp`); the published loss leaves it out, or counts a coin that did not fall.
    """

    temperature: float = 1.0
    """Below 1 the planner is taken at its word more often, above 1 less."""

    random: ClassVar[bool] = True

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        logits = score.to(torch.float64) / self.temperature
        uniform = proposal.dense(proposal.uniform("order"), eligible.shape, empty=1.0)
        fired = eligible & (uniform < logits.sigmoid())
        forced = highest(logits, eligible, torch.ones_like(canvas.turn))
        commit = torch.where(fired.any(dim=1, keepdim=True), fired, forced)
        return Choice(commit, logp=ledger.forced_coins_logp(logits, commit, eligible))
