"""Samplers that hide again what they wrote, and write it anew: ReMDM, and its port to LLaDA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets.order import refuse_unknown_order, score_by
from dllm_rl.samplers.presets.request import Request
from dllm_rl.samplers.random_coins import Coins
from dllm_rl.samplers.revise.base import Revise
from dllm_rl.samplers.revise.coins import RemaskCoins, RemaskUnsureCoins
from dllm_rl.samplers.revise.exchange import ExchangeByCurrent, ExchangeByStored, Phases
from dllm_rl.samplers.revise.times import Plateau, capped, chances, even_times, rescaled
from dllm_rl.samplers.score import Indifferent
from dllm_rl.samplers.select import TopK

PUBLISHED_ETA: Mapping[str, float] = MappingProxyType({"cap": 0.008, "rescale": 0.015, "conf": 1.0, "loop": 0.02})
"""Of the scripts, for 1024 steps; "conf" has none there."""
PUBLISHED_PLATEAU = Plateau(t_on=0.55, t_off=0.05, alpha_on=0.9)


@dataclass(frozen=True, slots=True)
class Remdm:
    """The reverse process in steps of equal time, with what was written hidden again at random on the way.

    Worth its cost with at least as many steps as positions. Every step makes a forward, even where a row's canvas did
    not change. With eta 0 and without a loop it is "ancestral". Its likelihood includes the coins and is exact.

    Source: Wang et al. (ReMDM), https://arxiv.org/abs/2503.00307, sections 3 and 4. Times end at 0, where what is left
    is written by the same rule; the code stops a little before and fills in the likeliest tokens with one more forward.
    The scripts set top_p to 0.9; the code leaves out the token that crosses it, here it is kept.
    """

    mode: str = "cap"
    """How much is hidden again: a constant share of what is written ("cap"), a share of the most that there can be
    ("rescale"), that most shared out to the unsure ("conf"), or a constant share while time stands still ("loop")."""
    eta: float | None = None
    """That share, from 0 to 1; None for the scripts' value, see `PUBLISHED_ETA`. In "cap" and "loop" no more than keeps
    the share of hidden positions what the time says."""
    t_on: float | None = None
    """Time at which the loop begins; None for 0.55."""
    t_off: float | None = None
    """Time at which the loop ends; None for 0.05."""
    alpha_on: float | None = None
    """Share of positions written during the loop; None for 0.9."""

    def __post_init__(self) -> None:
        if self.mode not in PUBLISHED_ETA:
            raise RecipeError(f"mode is {self.mode!r}; expected one of {', '.join(PUBLISHED_ETA)}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise RecipeError(f"eta is {self.eta}; expected a probability")
        loop = {"t_on": self.t_on, "t_off": self.t_off, "alpha_on": self.alpha_on}
        for option, value in loop.items():
            if value is not None and self.mode != "loop":
                raise RecipeError(f"{option} is {value} and mode {self.mode!r} has no loop; leave it out, or set mode")
            if value is not None and not 0 < value < 1:
                raise RecipeError(f"{option} is {value}; expected a number between 0 and 1")
        plateau = self._plateau
        if plateau.t_off >= plateau.t_on:
            raise RecipeError(f"t_off is {plateau.t_off} and t_on {plateau.t_on}; time falls, so expected t_off < t_on")

    @property
    def _plateau(self) -> Plateau:
        return Plateau(
            PUBLISHED_PLATEAU.t_on if self.t_on is None else self.t_on,
            PUBLISHED_PLATEAU.t_off if self.t_off is None else self.t_off,
            PUBLISHED_PLATEAU.alpha_on if self.alpha_on is None else self.alpha_on,
        )

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        blocks = request.blocks(spec)
        select, revise = self._coins(request.steps_per_block(blocks))
        return Sampler(request.transform(spec), Indifferent(), select, blocks, revise)

    def _coins(self, steps: int) -> tuple[Coins, Revise]:
        eta = PUBLISHED_ETA[self.mode] if self.eta is None else self.eta
        times = even_times(steps)
        if self.mode == "conf":
            most = chances(times, rescaled(times, eta)).remask
            return Coins(chances(times, [0.0] * steps).write), RemaskUnsureCoins(most)
        if self.mode == "loop":
            both = chances(self._plateau.hidden(times), self._plateau.again(times, eta))
        else:
            both = chances(times, capped(times, eta) if self.mode == "cap" else rescaled(times, eta))
        return Coins(both.write), RemaskCoins(both.remask)


@dataclass(frozen=True, slots=True)
class RemdmLlada:
    """LLaDA's order up to most of a block, then rounds that exchange the least sure tokens, then the rest.

    Source: Wang et al. (ReMDM), https://arxiv.org/abs/2503.00307, table 3, with the code's values, for 32 positions: as
    many rounds, with one token exchanged for Countdown and four for TruthfulQA. With confidence "current" it is
    generate_with_remdm of PC-Sampler, https://arxiv.org/abs/2508.13021.
    """

    init_unmask_ratio: float = 0.875
    """Share of a block that is written before the rounds, rounded down."""
    unmask_k: int = 1
    """Tokens written by a forward before and after the rounds."""
    remask_k: int | None = None
    """Tokens exchanged in a round; None for `unmask_k`."""
    loop_steps: int = 32
    """Rounds of each block."""
    confidence: str = "stored"
    """A token's confidence is its probability when it was written ("stored"), or what the network now gives it
    ("current", which costs one more forward a round)."""
    order: str = "drawn"
    """Positions are written by the probability of the token drawn ("drawn"), or the largest, blind to the draw
    ("max")."""

    def __post_init__(self) -> None:
        refuse_unknown_order(self.order)
        if self.confidence not in ("stored", "current"):
            raise RecipeError(f"confidence is {self.confidence!r}; expected 'stored' or 'current'")
        if not 0 <= self.init_unmask_ratio <= 1:
            raise RecipeError(f"init_unmask_ratio is {self.init_unmask_ratio}; expected a number from 0 to 1")
        for option, value, least in (
            ("unmask_k", self.unmask_k, 1),
            ("remask_k", self._exchanged, 1),
            ("loop_steps", self.loop_steps, 0),
        ):
            if value < least:
                raise RecipeError(f"{option} is {value}; expected at least {least}")

    @property
    def _exchanged(self) -> int:
        return self.unmask_k if self.remask_k is None else self.remask_k

    def build(self, spec: DiffusionSpec, request: Request) -> Sampler:
        request.refuse_steps("remdm_llada")
        transform = request.transform(spec)
        turns = 1 if self.confidence == "stored" else 2
        phases = Phases(self.init_unmask_ratio, self.unmask_k, self._exchanged, self.loop_steps, turns)
        revise = ExchangeByStored(phases) if self.confidence == "stored" else ExchangeByCurrent(phases)
        return Sampler(transform, score_by(self.order, transform), TopK(phases), request.blocks(spec), revise)
