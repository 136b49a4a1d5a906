"""The canvases of a batch without what need not be computed: columns of padding, and rows that were there before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from dllm_rl.models.attention import Attend, AttentionSpec


@dataclass(frozen=True, slots=True)
class Few:
    """U different rows of M columns, each from its first position in use, in place of B rows of N.

    Exact for networks whose positions count attended tokens, up to the last bits of their arithmetic. With one fully
    hidden view per completion and no noise on prompts, a prompt's whole group is one row.
    """

    canvas: Int[Tensor, "U M"]
    attend: Bool[Tensor, "U M"] | Bool[Tensor, "U M M"] | AttentionSpec | None
    blind: Int[Tensor, "U M"] | None
    """The canvas of the guidance pass."""
    open: Bool[Tensor, "U M"] | None
    where: Bool[Tensor, "B M"]
    """Positions asked about, of every row."""
    place: Int64[Tensor, " B"]
    """Which of the different rows each row is."""
    column: Int64[Tensor, "B N"]
    """Where each column of each row is found; M and more, or below 0, if it was left out."""

    @classmethod
    def of(
        cls,
        canvas: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Attend,
        blind: Int[Tensor, "B N"] | None,
        open: Bool[Tensor, "B N"] | None,
    ) -> Few:
        """Rows that differ, cut to what is in use. A pattern between pairs of positions stays as it is."""
        columns = torch.arange(canvas.shape[1], device=canvas.device)
        if attend is not None and (not isinstance(attend, Tensor) or attend.dim() == 3):
            place = torch.arange(len(canvas), device=canvas.device)
            return cls(canvas, attend, blind, open, where, place, columns.expand_as(canvas))
        parts: list[Tensor | None] = [canvas, attend, blind, open]
        start = torch.zeros_like(canvas[:, :1], dtype=torch.int64)
        if attend is not None:
            start, parts, where = _cut(attend | where, parts, where)
        (shown, seen, unseen, opened), place = _different(parts)
        assert shown is not None
        return cls(shown, seen, unseen, opened, where, place, columns - start)

    def flat(
        self, rows: Int64[Tensor, " T"], home: Int64[Tensor, "U M"] | None = None
    ) -> tuple[Int64[Tensor, " R"], Int64[Tensor, " T"]]:
        """Flat indices into [B * M] as indices into [U * M], each different one once, and which of them each was.

        Args:
            home: where else each position of [U, M] is run; see `Prefixes`.
        """
        width = self.canvas.shape[1]
        moved = self.place[rows // width] * width + rows % width
        if home is not None:
            moved = home.flatten()[moved]
        different, which = torch.unique(moved, return_inverse=True)
        return different, which

    def everywhere(self, values: Float[Tensor, "U M"]) -> Float[Tensor, "B N"]:
        """Values of the different rows, for every row and column; zero in the columns that were left out."""
        width = values.shape[1]
        found = values[self.place].gather(1, self.column.clamp(0, width - 1))
        return found.masked_fill((self.column < 0) | (self.column >= width), 0.0)


def _cut(
    used: Bool[Tensor, "B N"], parts: list[Tensor | None], where: Bool[Tensor, "B N"]
) -> tuple[Int64[Tensor, "B 1"], list[Tensor | None], Bool[Tensor, "B M"]]:
    """Each row from its first column in use, as wide as the widest; what comes in from behind counts as padding."""
    number = torch.arange(used.shape[1], device=used.device)
    start = used.long().argmax(1, keepdim=True)
    span = (number * used).amax(1, keepdim=True) + 1 - start
    index = start + number[: int(span.max())]
    inside = index < start + span
    index = index.clamp(max=used.shape[1] - 1)
    moved = [None if part is None else part.gather(1, index).masked_fill(~inside, 0) for part in (*parts, where)]
    found = moved.pop()
    assert found is not None
    return start, moved, found


def _different(parts: list[Tensor | None]) -> tuple[list[Tensor | None], Int64[Tensor, " B"]]:
    """Rows that differ in some part, and which of them each row is. If all do, they stay in their order."""
    given = [part.long() for part in parts if part is not None]
    rows, place = torch.unique(torch.cat(given, dim=1), dim=0, return_inverse=True)
    if len(rows) == len(place):
        return parts, torch.arange(len(place), device=place.device)
    pieces = iter(rows.split([part.shape[1] for part in given], dim=1))
    return [None if part is None else next(pieces).to(part.dtype) for part in parts], place
