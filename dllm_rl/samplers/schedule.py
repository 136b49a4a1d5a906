"""A schedule policy at work: a manual schedule, and what a head of the model adds to it at every step.

Every parameter of a step is a link applied to an unconstrained number, that of the manual schedule plus an action. The
actions are drawn around what the head says, or are what it says where nothing is explored. An action of zero leaves
the manual value as it is, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from dllm_rl import rng
from dllm_rl.diffusion import ledger
from dllm_rl.diffusion.schedule import ScheduleTrace
from dllm_rl.diffusion.transform import Transform, guide
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.features import features
from dllm_rl.samplers.names import PARAMETERS
from dllm_rl.samplers.network import Network
from dllm_rl.samplers.propose import Proposal
from dllm_rl.samplers.quota import Quota
from dllm_rl.samplers.random_rules import PlackettLuce
from dllm_rl.samplers.select import Choice, Select, TopK, highest


@dataclass(frozen=True, slots=True)
class Exploration:
    """Standard deviation of the actions: falls by equal amounts from `start` to `end` over so many updates, and stays.

    Source: AdaNAT, https://arxiv.org/abs/2409.00342, whose code goes from 0.6 to 0.1; the straight line is ours.
    """

    start: float = 0.0
    end: float = 0.0
    updates: int = 1

    def at(self, update: int) -> float:
        """A function of the number of updates made and of nothing else."""
        return self.start + (self.end - self.start) * min(update / self.updates, 1.0)


@dataclass(frozen=True, slots=True)
class Count:
    """So many positions for each row."""

    count: Int64[Tensor, " B"]

    def __call__(self, canvas: Canvas) -> Int64[Tensor, " B"]:
        return self.count


@dataclass(frozen=True, slots=True)
class RankingTemperature:
    """How random each row's choice is."""

    temperature: Float64[Tensor, " B"]

    def __call__(self, canvas: Canvas) -> Float64[Tensor, " B"]:
        return self.temperature


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Every position that scores at least its row's level, and always the best. For scores blind to the draw."""

    level: Float64[Tensor, " B"]
    """A log-probability."""

    random: ClassVar[bool] = False

    def __call__(
        self, score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], proposal: Proposal, canvas: Canvas
    ) -> Choice:
        sure = eligible & (score >= self.level[:, None].to(score.dtype))
        best = highest(score, eligible, torch.ones_like(canvas.turn))
        return Choice(sure | best)


@dataclass(frozen=True, slots=True)
class Commitment:
    """Which positions a step writes."""

    select: Select
    value: Float64[Tensor, " B"]
    """See `ScheduleTrace.commit`."""


@dataclass(frozen=True, slots=True)
class ByShare:
    """As many positions as a quota says; an action moves the logit of their share of the open ones.

    K = clamp(round(sigmoid(logit(quota / open) + action) open), 1, open). Where the quota is everything that is open,
    no action changes that.
    """

    quota: Quota

    def rule(self, action: Float64[Tensor, " B"], ranking: Float64[Tensor, " B"] | None, canvas: Canvas) -> Commitment:
        left = canvas.eligible.sum(dim=1)
        share = torch.minimum(self.quota(canvas), left) / left.clamp(min=1).to(torch.float64)
        moved = (share.logit() + action).sigmoid()
        count = (moved * left).round().to(torch.int64)
        quota = Count(torch.minimum(count.clamp(min=1), left))
        select = TopK(quota) if ranking is None else PlackettLuce(quota, RankingTemperature(ranking))
        return Commitment(select, moved)


@dataclass(frozen=True, slots=True)
class ByThreshold:
    """Positions at least as sure as a threshold, and always the surest; an action moves the threshold's logit."""

    threshold: float

    def rule(self, action: Float64[Tensor, " B"], ranking: Float64[Tensor, " B"] | None, canvas: Canvas) -> Commitment:
        manual = math.log(self.threshold)
        logit = manual - math.log1p(-self.threshold) if self.threshold < 1 else math.inf
        level = torch.where(action == 0, manual, logsigmoid(logit + action))
        return Commitment(AtLeast(level), level.exp())


def softened(manual: float, action: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """softplus(softplus^-1(manual) + action): positive numbers; a manual value of 0 stays 0."""
    inverse = manual + math.log(-math.expm1(-manual)) if manual > 0 else -math.inf
    return torch.where(action == 0, manual, softplus(inverse + action))


@dataclass(frozen=True, slots=True)
class Plan:
    """How one step is to be taken."""

    proposal: Proposal
    """Guided and with temperatures, where those were decided."""
    select: Select
    trace: ScheduleTrace
    """Of this one step."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A manual schedule, which of its parameters a policy moves, and how far it explores.

    Source: Zhou et al. (Co-GRPO), https://arxiv.org/abs/2512.22288, and AdaNAT, https://arxiv.org/abs/2409.00342, which
    move the schedules of image generators; carried over to text here.
    """

    learned: tuple[str, ...]
    """A part of `PARAMETERS`, in their order."""
    commit: ByShare | ByThreshold
    transform: Transform
    """Its temperature and cfg_scale are the manual ones."""
    ranking_temperature: float
    exploration: Exploration
    sigma: float = 0.0
    """Standard deviation of the actions in this rollout."""

    @property
    def guides(self) -> bool:
        """True if the policy decides how strong guidance is, so that it is done after the decision."""
        return "cfg_scale" in self.learned

    def at(self, update: int) -> Schedule:
        """The schedule of a rollout made after so many updates."""
        return replace(self, sigma=self.exploration.at(update))

    def __call__(self, proposal: Proposal, canvas: Canvas, network: Network) -> Plan:
        """Decide how to take a step."""
        seen = features(proposal, canvas, self.transform.forbidden_ids)
        mean = network.schedule(seen, len(self.learned)).to(torch.float64)
        action, logp = self._draw(mean, canvas)
        given = dict(zip(self.learned, action.unbind(dim=1), strict=True))
        manual = torch.zeros_like(logp)
        temperature = softened(self.transform.temperature, given["temperature"]) if "temperature" in given else None
        cfg_scale = softened(self.transform.cfg_scale, given["cfg_scale"]) if self.guides else None
        ranking = softened(self.ranking_temperature, given.get("ranking_temperature", manual))
        noisy = self.ranking_temperature > 0
        commitment = self.commit.rule(given.get("commit", manual), ranking if noisy else None, canvas)
        trace = ScheduleTrace(
            features=seen[:, None],
            action=_of_the_living(action, canvas)[:, None],
            logp=logp[:, None],
            commit=_of_the_living(commitment.value, canvas)[:, None],
            temperature=_kept(temperature, canvas),
            cfg_scale=_kept(cfg_scale, canvas),
            ranking_temperature=_kept(ranking if "ranking_temperature" in given else None, canvas),
            sigma=self.sigma,
            learned=self.learned,
        )
        return Plan(_adjusted(proposal, temperature, cfg_scale), commitment.select, trace)

    def _draw(
        self, mean: Float64[Tensor, "B A"], canvas: Canvas
    ) -> tuple[Float64[Tensor, "B A"], Float64[Tensor, " B"]]:
        """The actions of every row and their log-density; the means themselves where sigma is 0."""
        if self.sigma == 0:
            return mean, torch.zeros_like(mean[:, 0])
        keys = rng.fold(canvas.keys, "schedule", canvas.forwards + 1)
        normal = math.sqrt(2) * torch.erfinv(2 * rng.uniform(keys, mean.shape[1]) - 1)
        action = mean + self.sigma * normal
        return action, _of_the_living(ledger.gaussian_logp(action, mean, self.sigma), canvas)


def _of_the_living(values: Tensor, canvas: Canvas) -> Tensor:
    """Zero for rows that are finished and take no step."""
    finished = canvas.finished if values.ndim == 1 else canvas.finished[:, None]
    return values.masked_fill(finished, 0.0)


def _kept(values: Float64[Tensor, " B"] | None, canvas: Canvas) -> Float64[Tensor, "B 1"] | None:
    """What a step keeps of a parameter; None where it was not decided."""
    return None if values is None else _of_the_living(values, canvas)[:, None]


def _adjusted(
    proposal: Proposal, temperature: Float64[Tensor, " B"] | None, cfg_scale: Float64[Tensor, " B"] | None
) -> Proposal:
    """The proposal as it is drawn from."""
    if cfg_scale is not None:
        assert proposal.unconditional is not None, "the loop asks for both when the schedule guides"
        guided = guide(proposal.logits, proposal.unconditional, cfg_scale[proposal.row, None])
        proposal = replace(proposal, logits=guided, unconditional=None)
    return proposal if temperature is None else replace(proposal, temperature=temperature[proposal.row])


def learned_parameters(words: Sequence[str]) -> tuple[str, ...]:
    """The parameters named, in the order of the actions."""
    return tuple(name for name in PARAMETERS if name in words)
