"""Which of the open positions a step writes: the rules that keep the highest scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from dllm_rl.diffusion import ledger
from dllm_rl.diffusion.ledger import Bar
from dllm_rl.samplers.canvas import NO_MEMORY, Canvas
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.quota import Constant, Quota


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule chose, and what is needed to know how probable the choice was."""

    commit: Bool[Tensor, "B L"]
    bar: Bar | None = None
    """What the score of each position left out must have stayed below for this choice to be made; None for a rule that
    chooses at random, which then has no known law when the score reads the draw."""
    logp: Float64[Tensor, " B"] | None = None
    """Log-probability of the choice given the scores, nats; None for 0."""
    rank: Int64[Tensor, "B L"] | None = None
    """When each position was taken, counted from 0, for a rule that takes one after the other."""
    memory: Mapping[str, Tensor] = field(default_factory=lambda: NO_MEMORY)
    """What the rule wants to find on the canvas at the next step, batch-first."""


ONE = Constant(1)


@runtime_checkable
class Select(Protocol):
    """Chooses among eligible positions by score; ties go to the lowest index."""

    random: ClassVar[bool]
    """True if it chooses at random given the scores."""

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        """Choose.

        Args:
            score: of every position; 0 where not eligible.
            proposal: what the network said of the eligible positions.
        """
        ...


def ranks(score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"]) -> Int64[Tensor, "B L"]:
    """Place of each position by score, from 0; of equals the lowest index first; those not eligible come last."""
    by_score = score.masked_fill(~eligible, float("-inf")).argsort(dim=1, descending=True, stable=True)
    # An eligible score may itself be minus infinity; it still goes before the positions that cannot be chosen.
    by_right = (~eligible).gather(1, by_score).argsort(dim=1, stable=True)
    return by_score.gather(1, by_right).argsort(dim=1)


def highest(
    score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], count: Int64[Tensor, " B"]
) -> Bool[Tensor, "B L"]:
    """The `count` eligible positions of each row with the highest scores, of equals the lowest index first."""
    return eligible & (ranks(score, eligible) < count[:, None])


@dataclass(frozen=True, slots=True)
class Everything:
    """Every open position; for rules that then hide again what did not hold.

    Nothing is left out, so the likelihood is that of the draws alone, whatever the score.
    """

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        return Choice(eligible)


@dataclass(frozen=True, slots=True)
class TopK:
    """The highest scores, as many as a quota says."""

    quota: Quota

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        commit = highest(score, eligible, self.quota(canvas))
        return Choice(commit, ledger.weakest_chosen(score, commit))


@dataclass(frozen=True, slots=True)
class UniformSubset:
    """As many positions as a quota says, all subsets equally likely. Scores are not read."""

    quota: Quota

    random: ClassVar[bool] = True

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        lottery = proposal.dense(proposal.uniform("order"), eligible.shape)
        commit = highest(lottery, eligible, self.quota(canvas))
        return Choice(commit, logp=ledger.uniform_subset_logp(eligible.sum(dim=1), commit.sum(dim=1)))


@dataclass(frozen=True, slots=True)
class ExpectedCount:
    """The highest scores, as many as coins that fall heads with probability sigmoid(score / temperature) would show on
    average, rounded down; at least one.

    For the logits of a planner where nothing should be left to chance. Not the law it was trained under: with many
    positions of a small probability each the coins would spread, and this takes the likeliest.

    Source: the inference mode of dUltra's released code, https://arxiv.org/abs/2512.21446.
    """

    temperature: float = 1.0

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        chance = (score.to(torch.float64) / self.temperature).sigmoid().masked_fill(~eligible, 0.0)
        commit = highest(score, eligible, chance.sum(dim=1).long().clamp(min=1))
        return Choice(commit, ledger.weakest_chosen(score, commit))


@dataclass(frozen=True, slots=True)
class Threshold:
    """Every position that scores at least a probability, but no fewer than a floor and no more than a cap.

    Source: Wu et al. (Fast-dLLM), https://arxiv.org/abs/2505.22618, section 3.3, where the floor is 1. SDAR's dynamic
    decoding (https://arxiv.org/abs/2510.06303) has its quota for a floor, and WINO (https://arxiv.org/abs/2507.18578)
    a share of the open positions for a cap.
    """

    probability: float
    """What the score, a log-probability, is compared with."""
    floor: Quota = ONE
    """Where fewer pass, the highest scores make up the number."""
    cap: Quota | None = None
    """Where more pass, the highest scores are kept."""

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        level = torch.full_like(score, math.log(self.probability))
        sure = (eligible & (score >= level)).sum(dim=1)
        count = torch.maximum(sure, self.floor(canvas))
        by_rank = count > sure
        if self.cap is not None:
            most = self.cap(canvas)
            count = torch.minimum(count, most)
            by_rank |= count == most
        commit = highest(score, eligible, count)
        weakest = ledger.weakest_chosen(score, commit)
        return Choice(commit, ledger.where(by_rank[:, None], weakest, ledger.below(level)))
