"""What rows of a block-causal model begin with alike, run once: a group's prompt, and finished blocks of its views.

A block sees nothing behind it, so the hidden states of the whole blocks that rows begin with are the same in all of
them. Each row is cut there. What is behind the cut stays a row; what is before it is run once per group, folded into
further rows of the same width, so that everything still runs in one forward. In every layer each row is handed its
group's keys and values beside its own, and gradients flow back through them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from transformers import Cache

from dllm_rl.models.attention import mask_of_pairs
from dllm_rl.models.few import Few

LEAST_GAIN = 1.2
"""Below it, by the estimate of `_cost`, rows stay whole."""


class Group(NamedTuple):
    """Rows that begin alike, and how many columns of them are run once."""

    rows: list[int]
    cut: int


class Piece(NamedTuple):
    """One of the R rows: columns `start` to `end` of a row, which look at the first `cut` columns of its group."""

    row: int
    start: int
    end: int
    cut: int
    behind: bool
    """Whether it is what is behind the cut, and looks at itself too. The rest finds itself among its group's."""


@dataclass(frozen=True)
class Prefixes:
    """How U rows of M columns are run as R rows of W: group by group, what is behind the cut, then what is before."""

    groups: list[Group]
    length: list[int]
    """Of each of the U rows, in columns."""
    width: int
    block_size: int

    @classmethod
    def of(cls, few: Few, block_size: int) -> Prefixes | None:
        """The cheapest cut; None where too little is shared, or rows are more than runs of tokens to be scored."""
        length = _lengths(few)
        if length is None or len(length) < 2:
            return None
        columns = few.canvas.shape[1]
        inside = torch.arange(columns, device=length.device) < length[:, None]
        order, alike = _begin_alike(few.canvas.long().masked_fill(~inside, -1))
        whole, size = [shared // block_size * block_size for shared in alike], length.tolist()
        ways = (cls(groups, size, width, block_size) for groups, width in _ways(order, whole, size, block_size))
        best = min(ways, key=cls.cost, default=None)
        return best if best is not None and best.cost() * LEAST_GAIN <= len(size) * _cost(columns, columns) else None

    def cost(self) -> float:
        """Of the forward, in columns."""
        rows = sum(len(rows) + -(-cut // self.width) for rows, cut in self.groups)
        return rows * _cost(self.width, self.before + self.width)

    @property
    def before(self) -> int:
        """Columns of the longest beginning."""
        return max(group.cut for group in self.groups)

    def pieces(self) -> Iterator[Piece]:
        """The R rows."""
        for rows, cut in self.groups:
            yield from (Piece(row, cut, self.length[row], cut, True) for row in rows)
            yield from (
                Piece(rows[0], start, min(cut, start + self.width), cut, False) for start in range(0, cut, self.width)
            )

    @cached_property
    def home(self) -> Int64[Tensor, "U M"]:
        """Flat index, into [R * W], of where each column of each row is run; of no meaning behind a row's end."""
        home = torch.zeros(len(self.length), max(self.length), dtype=torch.int64)
        group = {row: rows for rows, _ in self.groups for row in rows}
        for number, piece in enumerate(self.pieces()):
            index = number * self.width + torch.arange(piece.end - piece.start)
            for row in [piece.row] if piece.behind else group[piece.row]:
                home[row, piece.start : piece.end] = index
        return home

    def inputs(self, canvas: Int[Tensor, "U M"], network: Any) -> dict[str, Any]:
        """What the network takes."""
        row, start, end, cut, behind = torch.tensor(list(self.pieces()), device=canvas.device).T[..., None]
        home = self.home.to(canvas.device)
        column = torch.arange(self.width, device=canvas.device)
        position = (start + column).clamp(max=canvas.shape[1] - 1)
        block = position // self.block_size
        first = torch.arange(self.before, device=canvas.device)
        earlier = (first < cut)[:, None] & (first // self.block_size <= block[:, :, None])
        own = ((start + column < end) & behind.bool())[:, None] & (block[:, None] <= block[:, :, None])
        return {
            "input_ids": canvas[row, position],
            "attention_mask": mask_of_pairs(torch.cat([earlier, own], dim=2), network),
            "position_ids": position,
            "past_key_values": SharedKeys(home[row, first]),
        }


class SharedKeys(Cache):
    """To transformers' attention a cache: keys and values of a group's beginning, then a row's own.

    It keeps nothing, so that a layer may be run twice, as activation checkpointing does.
    """

    def __init__(self, source: Int64[Tensor, "R C"]) -> None:
        """Take what stands first beside each row, as flat indices into [R * W]; the mask hides what is not shared."""
        super().__init__(layers=[])
        self.source = source

    def update(  # the framework's own signature
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Nothing is kept."""
        return self._beside(key_states), self._beside(value_states)

    def _beside(self, own: Float[Tensor, "R H W D"]) -> Float[Tensor, "R H K D"]:
        flat = own.transpose(1, 2).flatten(2).flatten(0, 1)
        # As an embedding, since the gradient of one is added up in a fixed order on every device.
        begin = nn.functional.embedding(self.source, flat).view(*self.source.shape, own.shape[1], own.shape[3])
        return torch.cat([begin.transpose(1, 2), own], dim=2)


def _cost(width: int, keys: int) -> float:
    """Of one row, in columns. Looking at a key costs 1/32 (measured), for its copy and for the attention."""
    return width + keys / 32


def _lengths(few: Few) -> Int64[Tensor, " U"] | None:
    """Of rows whose columns in use are their first ones, all that is asked about among them; else None."""
    if few.blind is not None or few.open is not None or not (few.attend is None or isinstance(few.attend, Tensor)):
        return None
    attend = torch.ones_like(few.canvas, dtype=torch.bool) if few.attend is None else few.attend
    if attend.dim() != 2:
        return None
    runs = attend[:, 0].all() & ~(attend[:, 1:] & ~attend[:, :-1]).any()
    return attend.sum(1) if runs and not (few.where & ~attend[few.place]).any() else None


def _begin_alike(canvas: Int64[Tensor, "U M"]) -> tuple[list[int], list[int]]:
    """Rows in an order in which those that begin alike are neighbours, and in how many columns neighbours do."""
    order = torch.unique(canvas, dim=0, return_inverse=True)[1].argsort()
    ordered = canvas[order]
    return order.tolist(), (ordered[1:] == ordered[:-1]).long().cumprod(1).sum(1).tolist()


def _ways(order: list[int], whole: list[int], length: list[int], block: int) -> Iterator[tuple[list[Group], int]]:
    """Groups of neighbours that share at least so many columns, for each so many, and widths that hold what is left."""
    for least in sorted(set(whole) - {0}):
        groups = [Group([order[0]], 0)]
        for row, shared in zip(order[1:], whole, strict=True):
            rows, cut = groups[-1]
            if shared >= least:
                groups[-1] = Group([*rows, row], min(shared, cut or shared))
            else:
                groups.append(Group([row], 0))
        longest = max(cut for _, cut in groups)
        least_width = max(block, *(length[row] - cut for rows, cut in groups if cut for row in rows))
        for width in [least_width * 2**power for power in range((longest // least_width).bit_length() + 1)]:
            yield [Group(rows, cut or _fold(length[rows[0]], width, block)) for rows, cut in groups], width


def _fold(length: int, width: int, block: int) -> int:
    """Where a row that shares nothing is cut, so that it is no wider than the others."""
    return -(-max(0, length - width) // block) * block
