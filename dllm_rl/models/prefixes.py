"""What rows of a block-causal model begin with alike, run once: a group's prompt, and finished blocks of its views.

A block sees nothing behind it, so the hidden states of the whole blocks that rows begin with are the same in all of
them. Each row is cut there. What is behind the cut stays a row; what is before it is run once per group, laid into
further rows of the same width, so that nothing runs twice and everything runs in one forward. In every layer each row
is handed its group's keys and values beside its own, and gradients flow back through them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from transformers import Cache

from dllm_rl.models.attention import mask_of_pairs
from dllm_rl.models.few import Few

LEAST_GAIN = 1.2
"""Below it, rows stay whole: handing keys around costs too, and the estimate is one."""


class Group(NamedTuple):
    """Rows that begin alike, and how many columns of them are run once."""

    rows: list[int]
    cut: int


@dataclass(frozen=True, slots=True)
class Prefixes:
    """How U rows of M columns are run as R rows of W: group by group, what is behind the cut, then what is before."""

    groups: list[Group]
    length: list[int]
    """Of each of the U rows, in columns."""
    width: int
    block_size: int

    @classmethod
    def of(cls, few: Few, block_size: int) -> Prefixes | None:
        """The cheapest cut, or None where too little is shared or rows are not plain runs of tokens."""
        if few.attend is None:
            length = torch.full_like(few.canvas[:, 0], few.canvas.shape[1], dtype=torch.int64)
        elif isinstance(few.attend, Tensor) and few.attend.dim() == 2:
            length = few.attend.sum(1)
        else:
            return None
        inside = torch.arange(few.canvas.shape[1], device=length.device) < length[:, None]
        plain = few.blind is None and few.open is None and not (few.where & ~inside[few.place]).any()
        plain = plain and (few.attend is None or torch.equal(few.attend, inside))
        if not plain or len(few.canvas) < 2 or not length.all():
            return None
        order, alike = _begin_alike(few.canvas.long().masked_fill(~inside, -1))
        whole = [columns // block_size * block_size for columns in alike]
        size = length.tolist()
        plans = (cls(groups, size, width, block_size) for groups, width in _ways(order, whole, size, block_size))
        best = min(plans, key=cls.cost, default=None)
        today = len(size) * _cost(few.canvas.shape[1], few.canvas.shape[1])
        return best if best is not None and best.cost() * LEAST_GAIN <= today else None

    def pieces(self, group: Group) -> int:
        """Rows of W that what is before the cut fills."""
        return -(-group.cut // self.width)

    @property
    def before(self) -> int:
        """Columns of the longest beginning."""
        return max(group.cut for group in self.groups)

    def cost(self) -> float:
        rows = sum(len(group.rows) + self.pieces(group) for group in self.groups)
        return rows * _cost(self.width, self.before + self.width)

    def inputs(self, canvas: Int[Tensor, "U M"], network: Any) -> dict[str, Any]:
        """What the network takes."""
        layout = torch.tensor(list(self._layout()), device=canvas.device)
        row, start, end, cut, behind = layout.T[..., None]
        column = torch.arange(self.width, device=canvas.device)
        position = (start + column).clamp(max=canvas.shape[1] - 1)
        block = position // self.block_size
        key = torch.arange(self.before, device=canvas.device)
        earlier = (key < cut)[:, None] & (key // self.block_size <= block[:, :, None])
        own = (behind.bool() & (start + column < end))[:, None] & (block[:, None] <= block[:, :, None])
        return {
            "input_ids": canvas[row, position],
            "attention_mask": mask_of_pairs(torch.cat([earlier, own], dim=2), network),
            "position_ids": position,
            "past_key_values": SharedKeys(self),
        }

    def home(self, canvas: Int[Tensor, "U M"]) -> Int64[Tensor, "U M"]:
        """Flat index, into [R * W], of where each column of each row is run; of no meaning behind a row's end."""
        found = torch.zeros(canvas.shape, dtype=torch.int64)
        column, at = torch.arange(canvas.shape[1]), 0
        for group in self.groups:
            after = at + len(group.rows)
            for number, row in enumerate(group.rows):
                own = (at + number) * self.width + column - group.cut
                found[row] = torch.where(column < group.cut, after * self.width + column, own)
            at = after + self.pieces(group)
        return found.to(canvas.device)

    def _layout(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Of each of the R rows: a row to take its tokens from, its first column, its end, the cut, if it is behind."""
        for group in self.groups:
            for row in group.rows:
                yield row, group.cut, self.length[row], group.cut, 1
            for piece in range(self.pieces(group)):
                yield group.rows[0], piece * self.width, group.cut, group.cut, 0


class SharedKeys(Cache):
    """To transformers' attention a cache, though it keeps nothing: keys and values of a group's beginning, then own.

    So a layer may be run twice, as activation checkpointing does.
    """

    def __init__(self, prefixes: Prefixes) -> None:
        super().__init__(layers=[])
        self.before = prefixes.before
        self.groups = [(len(group.rows), prefixes.pieces(group), group.cut) for group in prefixes.groups]

    def update(  # the framework's own signature
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._beside(key_states), self._beside(value_states)

    def _beside(self, own: Float[Tensor, "R H W D"]) -> Float[Tensor, "R H C D"]:
        parts = []
        for (rows, pieces, cut), part in zip(self.groups, own.split([r + p for r, p, _ in self.groups]), strict=True):
            begin = part[rows:].transpose(0, 1).flatten(1, 2)[:, :cut]
            begin = torch.nn.functional.pad(begin, (0, 0, 0, self.before - cut))
            parts.append(begin.expand(rows + pieces, *begin.shape))
        return torch.cat([torch.cat(parts), own], dim=2)


def _cost(width: int, keys: int) -> float:
    """Of one row, in columns run: a key it looks at counts as an eighth, for being copied and for the attention."""
    return width + keys / 8


def _begin_alike(canvas: Int64[Tensor, "U M"]) -> tuple[list[int], list[int]]:
    """Rows in an order in which those that begin alike are neighbours, and in how many columns neighbours do."""
    rows, place = torch.unique(canvas, dim=0, return_inverse=True)
    ordered = canvas[place.argsort()]
    alike = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
    return place.argsort().tolist(), alike.long().cumprod(1).sum(1).tolist()


def _ways(order: list[int], whole: list[int], length: list[int], block: int) -> Iterator[tuple[list[Group], int]]:
    """Groups of neighbours that share at least so many columns, for each so many, and widths that hold what is left."""
    for least in sorted(set(whole) - {0}):
        groups: list[Group] = []
        for number, row in enumerate(order):
            if number and whole[number - 1] >= least:
                shared = min(whole[number - 1], groups[-1].cut or whole[number - 1])
                groups[-1] = Group([*groups[-1].rows, row], shared)
            else:
                groups.append(Group([row], 0))
        width = max(length[row] - group.cut for group in groups if len(group.rows) > 1 for row in group.rows)
        width = max(width, block)
        longest = max(group.cut for group in groups)
        for width in (width * 2**power for power in range(longest.bit_length()) if width * 2**power < 2*longest or not power):
            folds = [-(-max(0, length[group.rows[0]] - width) // block) * block for group in groups]
            yield [g if len(g.rows) > 1 else Group(g.rows, fold) for g, fold in zip(groups, folds, strict=True)], width
