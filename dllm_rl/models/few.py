"""The canvases of a batch without what need not be computed: columns of padding, and rows that were there before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.nn.functional import pad

from dllm_rl.models.attention import Attend, AttentionSpec


@dataclass(frozen=True, slots=True)
class Few:
    """U different rows of M columns, in place of B rows of N.

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
    columns: slice
    width: int
    """N."""

    @classmethod
    def of(
        cls,
        canvas: Int[Tensor, "B N"],
        where: Bool[Tensor, "B N"],
        attend: Attend,
        blind: Int[Tensor, "B N"] | None,
        open: Bool[Tensor, "B N"] | None,
    ) -> Few:
        """Rows that differ, cut to the columns in use. A pattern between pairs of positions stays as it is."""
        width = canvas.shape[1]
        if attend is not None and (not isinstance(attend, Tensor) or attend.dim() == 3):
            place = torch.arange(len(canvas), device=canvas.device)
            return cls(canvas, attend, blind, open, where, place, slice(0, width), width)
        columns = slice(0, width) if attend is None else _in_use(attend | where)
        parts = [None if part is None else part[:, columns] for part in (canvas, attend, blind, open)]
        (shown, seen, unseen, opened), place = _different(parts)
        assert shown is not None
        return cls(shown, seen, unseen, opened, where[:, columns], place, columns, width)

    def flat(self, rows: Int64[Tensor, " T"]) -> Int64[Tensor, " T"]:
        """Flat indices into [B * M] as indices into [U * M]."""
        width = self.canvas.shape[1]
        return self.place[rows // width] * width + rows % width

    def everywhere(self, values: Float[Tensor, "U M"]) -> Float[Tensor, "B N"]:
        """Values of the different rows, for every row and column; zero in the columns that were cut off."""
        return pad(values[self.place], (self.columns.start, self.width - self.columns.stop))


def _in_use(kept: Bool[Tensor, "B N"]) -> slice:
    columns = kept.any(0).nonzero()[:, 0].tolist()
    return slice(columns[0], columns[-1] + 1) if columns else slice(0, kept.shape[1])


def _different(parts: list[Tensor | None]) -> tuple[list[Tensor | None], Int64[Tensor, " B"]]:
    """Rows that differ in some part, and which of them each row is. If all do, they stay in their order."""
    given = [part.long() for part in parts if part is not None]
    rows, place = torch.unique(torch.cat(given, dim=1), dim=0, return_inverse=True)
    if len(rows) == len(place):
        return parts, torch.arange(len(place), device=place.device)
    pieces = iter(rows.split([part.shape[1] for part in given], dim=1))
    return [None if part is None else next(pieces).to(part.dtype) for part in parts], place
