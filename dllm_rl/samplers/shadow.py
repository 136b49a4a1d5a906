"""A second, hidden copy of the open block, in the same forward: what a token looks like to one who cannot see it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.functional import one_hot, pad

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.samplers.canvas import Canvas


@dataclass(frozen=True, slots=True)
class Shadow:
    """W columns of mask ids behind the N of a canvas, one for each position of the row's open block: M in all.

    The canvas cannot see its shadow, so its own logits are what they are without. The copy of a position sees what that
    position sees but for the position itself, and the rest of the shadow. The token reaches it all the same through
    deeper layers, by way of positions that have looked at it: the comparison is a check, not a leave-one-out law.

    Source: Hong et al. (WINO), https://arxiv.org/abs/2507.18578, section 3.2.
    """

    mask_id: int
    block: Int64[Tensor, "R W"]
    """Position in the completion that each column copies; 0 where `real` is false."""
    real: Bool[Tensor, "R W"]
    """False for columns that only make the rows equally long."""
    sees: Bool[Tensor, "R M M"]
    position_ids: Int64[Tensor, "R M"]

    @staticmethod
    def of(canvas: Canvas, spec: DiffusionSpec) -> Shadow:
        """The shadow of each row's open block."""
        inside = canvas.block_of == canvas.block[:, None]
        width = int(inside.sum(dim=1).amax())
        block = (~inside).long().argsort(dim=1, stable=True)[:, :width]
        real = inside.gather(1, block)
        block = block.masked_fill(~real, 0)
        columns = canvas.prompt_length + block
        attend = torch.ones_like(canvas.tokens, dtype=torch.bool) if canvas.attend is None else canvas.attend
        ids = (attend.long().cumsum(dim=1) - 1).clamp(min=0)
        own = _visible(attend, ids, spec.block_size)
        length = canvas.tokens.shape[1]
        copies = own.gather(1, columns[:, :, None].expand(-1, -1, length)) & ~one_hot(columns, length).bool()
        among = real[:, None, :].expand(-1, width, -1)
        sees = torch.cat([pad(own, (0, width)), torch.cat([copies, among], dim=2)], dim=1)
        return Shadow(spec.mask_id, block, real, sees, torch.cat([ids, ids.gather(1, columns)], dim=1))

    def extended(self, tokens: Int64[Tensor, "R N"]) -> Int64[Tensor, "R M"]:
        """The canvas with its shadow behind it."""
        return pad(tokens, (0, self.block.shape[1]), value=self.mask_id)

    def where(self, positions: Bool[Tensor, "R L"], shadowed: Bool[Tensor, "R L"]) -> Bool[Tensor, "R M"]:
        """Columns that answer for `positions`, and columns of the copies of `shadowed`."""
        width = self.block.shape[1]
        prompt = self.sees.shape[1] - width - positions.shape[1]
        return torch.cat([pad(positions, (prompt, 0)), shadowed.gather(1, self.block) & self.real], dim=1)


def _visible(attend: Bool[Tensor, "R N"], ids: Int64[Tensor, "R N"], block_size: int | None) -> Bool[Tensor, "R N N"]:
    """Who sees whom without a shadow: everybody what is attended; of a block-causal model, no later block."""
    everybody = attend[:, None, :].expand(-1, attend.shape[1], -1)
    if block_size is None:
        return everybody
    block = ids // block_size
    return everybody & (block[:, None, :] <= block[:, :, None])
