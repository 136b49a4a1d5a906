"""A sampler whose steps are planned by a head of the model that starts from a manual schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.diffusion.transform import Transform
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.names import PARAMETERS
from dllm_rl.samplers.presets.order import refuse_improbable
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.quota import Even
from dllm_rl.samplers.random_rules import PlackettLuce, Steady
from dllm_rl.samplers.schedule import ByShare, ByThreshold, Exploration, Schedule, learned_parameters
from dllm_rl.samplers.score import MaxProbability
from dllm_rl.samplers.select import Select, Threshold, TopK


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A manual sampler, `rl` or `threshold`, whose parameters a schedule head moves at every step.

    With a new head and sigma 0 it is the manual sampler bit for bit. Positions are chosen by their largest probability
    and tokens drawn only there, so the likelihood is exact: draws, actions, and the order where that is random.

    For decoding leave sigma at 0. At temperature 0 tokens stay greedy, whatever the head says of the temperature.

    Source: Zhou et al. (Co-GRPO), https://arxiv.org/abs/2512.22288, for images; the transfer to text is ours.
    """

    learned: str = "commit"
    """What the head decides, as words: "commit" (how many positions a step writes), "temperature" (of the tokens),
    "ranking_temperature" (of the order), "cfg_scale" (guidance, for a second forward a step). What is not named
    stays at its manual value."""
    commit: str = "share"
    """What "commit" moves: the share of the open positions, from the even split over `steps` ("share"), or the
    confidence from which positions are written ("threshold")."""
    threshold: float = 0.9
    """The manual confidence."""
    ranking_temperature: float = 0.0
    """The manual temperature of a Plackett-Luce choice of positions; 0 takes the surest."""
    sigma: float = 0.0
    """Standard deviation of the actions around what the head says; 0 explores nothing."""
    sigma_end: float | None = None
    """What it falls to; None: it does not fall."""
    sigma_updates: int = 1
    """In so many updates of the weights."""

    def __post_init__(self) -> None:
        words = self.learned.split()
        if unknown := sorted(set(words) - set(PARAMETERS)):
            raise RecipeError(f"learned names {unknown[0]!r}; expected some of {', '.join(PARAMETERS)}")
        if not words or len(set(words)) < len(words):
            raise RecipeError(f"learned is {self.learned!r}; expected at least one parameter, each once")
        if self.commit not in ("share", "threshold"):
            raise RecipeError(f"commit is {self.commit!r}; expected 'share' or 'threshold'")
        self._check_numbers()
        if self.commit == "threshold" and (self.ranking_temperature or "ranking_temperature" in words):
            raise RecipeError(
                "ranking_temperature randomises the order, and commit 'threshold' writes all that is sure enough in "
                "any order; leave it out, or set commit to 'share'"
            )
        if "ranking_temperature" in words and not self.ranking_temperature:
            raise RecipeError(_no_start("ranking_temperature"))

    def _check_numbers(self) -> None:
        refuse_improbable("threshold", self.threshold)
        if self.commit == "threshold" and self.threshold == 1 and "commit" in self.learned.split():
            raise RecipeError("threshold is 1, from which no action moves it; expected a probability below 1")
        for name in ("ranking_temperature", "sigma", "sigma_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise RecipeError(f"{name} is {value}; expected a finite number, at least 0")
        if self.sigma_updates < 1:
            raise RecipeError(f"sigma_updates is {self.sigma_updates}; expected at least 1")

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        learned = learned_parameters(self.learned.split())
        if "cfg_scale" in learned and not request.cfg_scale:
            raise RecipeError(_no_start("cfg_scale"))
        blocks, transform = request.blocks(spec), request.transform(spec)
        exploration = Exploration(
            self.sigma, self.sigma if self.sigma_end is None else self.sigma_end, self.sigma_updates
        )
        commit: ByShare | ByThreshold
        select: Select
        if self.commit == "threshold":
            request.refuse_steps("schedule with commit 'threshold'")
            commit, select = ByThreshold(self.threshold), Threshold(self.threshold)
        else:
            quota = Even(request.steps_per_block(blocks))
            noisy = PlackettLuce(quota, Steady(self.ranking_temperature))
            commit, select = ByShare(quota), noisy if self.ranking_temperature else TopK(quota)
        schedule = Schedule(learned, commit, transform, self.ranking_temperature, exploration, self.sigma)
        score = MaxProbability(Transform(forbidden_ids=transform.forbidden_ids))
        return Sampler(transform, score, select, blocks, schedule=schedule)


def _no_start(parameter: str) -> str:
    return (
        f"learned names {parameter} and {parameter} is 0, from which no action moves it; give the manual value to "
        "start from"
    )
