"""Which and how many of the open positions a step writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64
from torch import Tensor


@runtime_checkable
class Select(Protocol):
    """Chooses among eligible positions by score; ties go to the lowest index."""

    def __call__(
        self,
        score: Float[Tensor, "B L"],
        eligible: Bool[Tensor, "B L"],
        opening: Int64[Tensor, " B"],
        turn: int,
    ) -> Bool[Tensor, "B L"]:
        """Choose.

        Args:
            opening: positions that were hidden when the block was opened.
            turn: steps already made in this block.
        """
        ...


def highest(
    score: Float[Tensor, "B L"], eligible: Bool[Tensor, "B L"], count: Int64[Tensor, " B"]
) -> Bool[Tensor, "B L"]:
    """The `count` eligible positions of each row with the highest scores, of equals the lowest index first."""
    by_score = score.masked_fill(~eligible, float("-inf")).argsort(dim=1, descending=True, stable=True)
    # An eligible score may itself be minus infinity; it still goes before the positions that cannot be chosen.
    by_right = (~eligible).gather(1, by_score).argsort(dim=1, stable=True)
    rank = by_score.gather(1, by_right).argsort(dim=1)
    return eligible & (rank < count[:, None])


def even_quota(opening: Int64[Tensor, " B"], steps: int, turn: int) -> Int64[Tensor, " B"]:
    """Positions to write at step `turn` of `steps`: an even split, the remainder on the first steps.

    Source: Nie et al., https://arxiv.org/abs/2502.09992, get_num_transfer_tokens.
    """
    return opening // steps + (turn < opening % steps)


@dataclass(frozen=True, slots=True)
class EvenQuota:
    """The highest scores, equally many at each of a block's `steps` steps."""

    steps: int

    def __call__(
        self,
        score: Float[Tensor, "B L"],
        eligible: Bool[Tensor, "B L"],
        opening: Int64[Tensor, " B"],
        turn: int,
    ) -> Bool[Tensor, "B L"]:
        return highest(score, eligible, even_quota(opening, self.steps, turn))
