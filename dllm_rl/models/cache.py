"""Keys and values by column of a canvas: any column can be renewed, in any order, the others stay as they were."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from transformers import Cache

from dllm_rl.errors import ModelContractError
from dllm_rl.models.attention import mask_of_pairs

NEVER = -1
"""In place of a position id: the column was never computed."""


class ColumnCache:
    """What every layer kept of every column, as `KeyValues`; filled by `DiffusionModel.logits_through`.

    A column holds its key and value of the last forward that ran it, rotated to the position it had then. Memory is
    that of an autoregressive cache over the whole canvas. Void once the weights change or a forward raises.
    """

    def __init__(self, position: Int64[Tensor, "B N"]) -> None:
        self.position = position
        """Position id of each column when it was last computed, or NEVER."""
        self.layers: list[tuple[Float[Tensor, "B C H D"], Float[Tensor, "B C H D"]]] = []
        """Keys and values of each layer; C is one more than the columns, and nobody ever sees the last."""

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> ColumnCache:
        return cls(torch.full((rows, columns), NEVER, device=device))

    def select(self, index: Int64[Tensor, " R"]) -> ColumnCache:
        """A copy of rows `index`, repeats allowed."""
        chosen = ColumnCache(self.position[index])
        chosen.layers = [(keys[index], values[index]) for keys, values in self.layers]
        return chosen

    def write(
        self,
        layer: int,
        columns: Int64[Tensor, "B Q"],
        keys: Float[Tensor, "B H Q D"],
        values: Float[Tensor, "B H Q D"],
    ) -> tuple[Float[Tensor, "B H C D"], Float[Tensor, "B H C D"]]:
        """Put keys and values in their columns and return views of all that the layer has."""
        if layer == len(self.layers):
            # Zeros: what is masked has weight 0, and 0 times an uninitialised NaN is NaN.
            length = self.position.shape[1] + 1
            blank = [new.new_zeros(len(new), length, new.shape[1], new.shape[3]) for new in (keys, values)]
            self.layers.append((blank[0], blank[1]))
        row = torch.arange(len(columns), device=columns.device)[:, None]
        for buffer, new in zip(self.layers[layer], (keys, values), strict=True):
            buffer[row, columns] = new.transpose(1, 2)
        return self.layers[layer][0].transpose(1, 2), self.layers[layer][1].transpose(1, 2)


class Visit(Cache):
    """One forward through a `ColumnCache`; to transformers' attention it is the cache that the forward fills.

    Rows that run fewer columns than others are filled up with columns they do not run: computed, ignored, and their
    keys and values put in the spare column.
    """

    def __init__(
        self,
        cache: ColumnCache,
        columns: Bool[Tensor, "B N"],
        seen: Bool[Tensor, "B N"],
        positions: Int64[Tensor, "B N"],
        block_size: int | None,
    ) -> None:
        """Plan the forward that runs `columns`, which look at the columns `seen`, if in no later block than their own.

        Raises:
            ModelContractError: when a column that would be looked at was never computed, or at another position; when
                there is nothing to run.
        """
        super().__init__(layers=[])
        self.cache, self.columns, self.seen, self.positions = cache, columns, seen, positions
        self.block = positions // block_size if block_size else torch.zeros_like(positions)
        visible = seen & (self.block <= self.block.masked_fill(~columns, -1).amax(1, keepdim=True))
        self.kept = torch.where(columns, positions, cache.position)
        wrong = visible & (self.kept != positions)
        ends = visible * torch.arange(1, seen.shape[1] + 1, device=seen.device)
        # One transfer from the device: how many columns run, where the visible ones end, and whether all are usable.
        width, self.end, any_wrong = torch.stack([columns.sum(1).max(), ends.max(), wrong.any()]).tolist()
        if not width:
            raise ModelContractError("`refresh` has no attended column; expected at least one to run")
        if any_wrong:
            self._refuse(wrong)
        self.source = (~columns).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        self.target = self.source.masked_fill(~columns.gather(1, self.source), columns.shape[1])

    def inputs(self, canvas: Int[Tensor, "B N"], outputs: Int64[Tensor, " T"], network: Any) -> dict[str, Any]:
        """What the network takes; `outputs` are flat indices into the canvas, all of columns that run."""
        width = self.source.shape[1]
        slot = (self.columns.cumsum(1) - 1).flatten()[outputs] + outputs // canvas.shape[1] * width
        return {
            "input_ids": canvas.gather(1, self.source),
            "attention_mask": self.mask(network),
            "position_ids": self.positions.gather(1, self.source),
            "past_key_values": self,
            "rows": slot,
        }

    def mask(self, network: Any) -> Tensor | None:
        """Who looks at whom, up to the last visible column; None when everybody looks at all of it."""
        query = self.block.gather(1, self.source)[:, :, None]
        allowed = self.seen[:, None, : self.end] & (self.block[:, None, : self.end] <= query)
        mask = mask_of_pairs(allowed, network)
        return None if allowed.all() else mask

    def finish(self) -> None:
        """The forward went through: what it ran is kept."""
        self.cache.position = self.kept

    def update(  # the framework's own signature
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep a layer's keys and values; return views of all columns up to the last visible one."""
        keys, values = self.cache.write(layer_idx, self.target, key_states, value_states)
        return keys[:, :, : self.end], values[:, :, : self.end]

    def _refuse(self, wrong: Bool[Tensor, "B N"]) -> None:
        row, column = wrong.nonzero()[0].tolist()
        where = f"row {row}, column {column} of the canvas"
        before, now = int(self.kept[row, column]), int(self.positions[row, column])
        if before == NEVER:
            raise ModelContractError(
                f"{where} would be looked at and was never computed in this cache; refresh every column that the "
                "refreshed ones look at, now or earlier"
            )
        raise ModelContractError(
            f"{where} was kept at position {before} and is at position {now} now, because `attend` changed before it; "
            "refresh it"
        )


def refuse_mismatch(
    cache: object, canvas: Int[Tensor, "B N"], refresh: Bool[Tensor, "B N"], where: Bool[Tensor, "B N"]
) -> ColumnCache:
    """The cache, if it and both masks fit the canvas.

    Raises:
        ModelContractError: for another model's kind of cache, a wrong shape, or `where` outside of `refresh`.
    """
    if not isinstance(cache, ColumnCache):
        raise ModelContractError(f"the cache is a {type(cache).__name__}; expected what open_cache() of a model gives")
    parts = {"the cache": cache.position, "`refresh`": refresh, "`where`": where}
    for name, part in parts.items():
        if part.shape != canvas.shape:
            raise ModelContractError(
                f"{name} has shape {tuple(part.shape)} and the canvas {tuple(canvas.shape)}; expected the same shape"
            )
    outside = (where & ~refresh).nonzero()
    if len(outside):
        row, column = outside[0].tolist()
        raise ModelContractError(
            f"row {row}, column {column} is asked for and not refreshed; `where` must lie within `refresh`"
        )
    return cache
