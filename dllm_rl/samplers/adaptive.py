"""Which of the open positions a step writes: rules that write the more the surer the network is.

All but one set bars that settle their choice exactly (`diffusion.ledger.Bar`), so that a rollout has a likelihood with
scores that read the draw, too. `select.Threshold` is the simplest of them.
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
from dllm_rl.diffusion.transform import Transform
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.score import EVERYTHING, NegativeEntropy
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
    """The highest scores, as long as the entropies of all but the largest of them add up to at most a bound.

    At least one: the bound is on how far the joint distribution of what is written can be from the product of their
    own, which is 0 for one alone. Sorted by entropy, it is the sum over those before. For scores that are blind to the
    draw: which position comes next decides whether it fits, so one that was left out had no bar to stay below.

    Source: Ben-Hamu et al. (EB-Sampler), https://arxiv.org/abs/2505.24857, equation 8. There is no official code. One
    re-implementation takes the running maximum over the batch: not reproduced.
    """

    gamma: float
    """Nats."""
    distribution: Transform = EVERYTHING
    """What entropies are read from."""

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        rank = ranks(score, eligible)
        entropies = -NegativeEntropy(self.distribution).of_positions(proposal, canvas)
        entropy = proposal.dense(entropies.to(torch.float64), eligible.shape)
        ordered = torch.zeros_like(entropy).scatter(1, rank, entropy)
        largest_before = pad(ordered.cummax(dim=1).values[:, :-1], (1, 0))
        # The sum but for the largest, without the cancellation of taking it away.
        spent = torch.minimum(ordered, largest_before).cumsum(dim=1)
        return Choice(eligible & (spent <= self.gamma).gather(1, rank))


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
