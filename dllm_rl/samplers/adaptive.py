"""Which of the open positions a step writes: rules that write the more the surer the network is.

Each sets bars that settle its choice exactly (`diffusion.ledger.Bar`), so that a rollout has a likelihood with scores
that read the draw, too. `select.Threshold` is the simplest of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from dllm_rl.diffusion import ledger
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.select import Choice, highest, ranks


@dataclass(frozen=True, slots=True)
class Factor:
    """The n highest scores, for the largest n with (n + 1) (1 - c_n) <= factor, c_n the n-th probability; at least one.

    Where the condition with factor < 1 holds, writing the likeliest tokens at once gives what writing them one after
    the other gives.

    Source: Wu et al. (Fast-dLLM), https://arxiv.org/abs/2505.22618, section 3.3 and theorem 1. The published code
    writes one position more than the rule allows when all but one pass: not reproduced.
    """

    factor: float

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        level = self._level_to_be_taken(score)
        passed = eligible & (score >= level[ranks(score, eligible) + 1])
        count = passed.sum(dim=1).clamp(min=1)
        commit = highest(score, eligible, count)
        one_more = ledger.below(level[count + 1][:, None].expand_as(score))
        return Choice(commit, ledger.lower(ledger.weakest_chosen(score, commit), one_more))

    def _level_to_be_taken(self, score: Float[Tensor, "B L"]) -> Float[Tensor, " L+2"]:
        """The log-probability from which the n-th highest score is taken, n from 0 to L + 1.

        It never falls, so those that pass are the highest. The bar is read from the same numbers, so that rounding
        moves both alike.
        """
        n = torch.arange(score.shape[1] + 2, dtype=torch.float64, device=score.device)
        return (1 - self.factor / (n + 1)).clamp(min=0).log().to(score.dtype)


@dataclass(frozen=True, slots=True)
class EntropyBounded:
    """The surest positions, as long as the entropies of those before add up to at most a bound; at least one.

    For a score of minus the entropy, in nats: the sum over those written but the last, which is the largest, bounds
    what their joint distribution can differ from the product of their own.

    Source: Ben-Hamu et al. (EB-Sampler), https://arxiv.org/abs/2505.24857, equation 8, sorted by entropy. There is no
    official code. One re-implementation takes the running maximum over the batch: not reproduced.
    """

    gamma: float

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        rank = ranks(score, eligible)
        entropy = torch.zeros_like(score).scatter(1, rank, (-score).masked_fill(~eligible, 0.0))
        spent = pad(entropy.cumsum(dim=1)[:, :-1], (1, 0))
        commit = eligible & (spent <= self.gamma).gather(1, rank)
        # Whether one more is taken depends on those before it alone, so the others only had to be weaker.
        return Choice(commit, ledger.weakest_chosen(score, commit))


@dataclass(frozen=True, slots=True)
class LocalLeap:
    """Anchors, which score at least a probability, and near them whatever scores a lower one; at least the best.

    Source: Kong et al. (LocalLeap), https://arxiv.org/abs/2510.07081, algorithm 1.
    """

    anchor: float
    relaxed: float
    """Enough within `radius` of an anchor."""
    radius: int

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        high, low = (torch.full_like(score, math.log(each)) for each in (self.anchor, self.relaxed))
        anchors = eligible & (score >= high)
        near = max_pool1d(anchors.to(torch.float32), 2 * self.radius + 1, stride=1, padding=self.radius) > 0
        enough = torch.where(near, low, high)
        commit = eligible & (score >= enough)
        best = highest(score, eligible, torch.ones_like(canvas.turn))
        forced = ~anchors.any(dim=1, keepdim=True)
        bar = ledger.where(forced, ledger.weakest_chosen(score, best), ledger.below(enough))
        return Choice(torch.where(forced, best, commit), bar)
