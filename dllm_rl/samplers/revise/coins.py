"""A coin for every position written earlier: whether it is hidden again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float64
from torch import Tensor

from dllm_rl import rng
from dllm_rl.diffusion import ledger
from dllm_rl.samplers.canvas import Canvas
from dllm_rl.samplers.propose import Proposal, step_keys
from dllm_rl.samplers.random_coins import of_turn
from dllm_rl.samplers.revise.base import Reads, Revision


def _written(canvas: Canvas) -> Bool[Tensor, "B L"]:
    return canvas.window & ~canvas.hidden


def _toss(before: Canvas, after: Canvas, chance: Float64[Tensor, "B L"], turns: tuple[float, ...]) -> Revision:
    """Hide what was written before this step, each with its chance; `turns` says at which turns any may be hidden."""
    written = _written(before)
    row, index = written.nonzero(as_tuple=True)
    uniform = rng.uniform(rng.fold(step_keys(before, row, index), "remask"), 1)[:, 0]
    remask = written.index_put((row, index), uniform < chance[row, index])
    logp = ledger.coins_logp(chance.log(), (-chance).log1p(), remask, written)
    last = max((turn for turn, most in enumerate(turns) if most > 0), default=-1)
    return Revision(remask, after.turn <= last, logp=logp)


@dataclass(frozen=True, slots=True)
class RemaskCoins:
    """Every written position is hidden again with a probability that depends on the turn alone.

    What a step writes it does not hide. A full block stays open as long as a coin can still open it; such a step makes
    its forward like any other, though there is nothing to write. The coins are not the network's: a ratio of policies
    does not see them, and a loss has no gradient through them.

    Source: Wang et al. (ReMDM), https://arxiv.org/abs/2503.00307, section 3, with one sigma for all positions. The
    published code keeps the last prediction while nothing changes and makes no forward then.
    """

    chances: tuple[float, ...]
    """Of each turn of a block."""

    reads: ClassVar[Reads] = "nothing"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        chance = of_turn(self.chances, before)[:, None].expand(before.hidden.shape)
        return _toss(before, after, chance, self.chances)


@dataclass(frozen=True, slots=True)
class RemaskUnsureCoins:
    """The same, with each turn's chance shared out among the written positions by a softmax of how unsure they were.

    The shares add up to 1, so a turn hides one position at most on average. Unsure is minus the probability, at
    temperature 1, that a token had when it was written. The chance to be written is not raised by as much as some
    positions are hidden, so on average more is hidden than the time says; the last step makes up for it. Here the coins
    depend on the network: a policy that gave the same tokens other probabilities would toss others.

    Source: Wang et al. (ReMDM), https://arxiv.org/abs/2503.00307, section 4, "ReMDM-conf", with sigma_max. The code
    reads probabilities after nucleus truncation.
    """

    chances: tuple[float, ...]
    """Of each turn of a block."""

    reads: ClassVar[Reads] = "nothing"

    def __call__(self, before: Canvas, after: Canvas, opinion: Proposal) -> Revision:
        written = _written(before)
        unsure = (-before.logp.exp()).masked_fill(~written, float("-inf"))
        share = unsure.softmax(dim=1)  # NaN in a row with nothing written, which tosses no coin
        return _toss(before, after, of_turn(self.chances, before)[:, None] * share, self.chances)
