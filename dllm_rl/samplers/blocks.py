"""How a completion is cut into blocks, written one after the other, and how many steps each gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of a completion, the same for every row, or aligned to absolute positions for block-causal models."""

    lengths: tuple[int, ...]
    """Of each block; their sum is the completion's length."""
    aligned: bool = False
    """The first block ends where the model's block around the prompt's last token ends, so it may be shorter, and one
    more may follow; all lengths are then the model's block size."""

    @property
    def gen_length(self) -> int:
        return sum(self.lengths)

    def layout(self, prompts: Sequence[Sequence[int]]) -> Int64[Tensor, "B L"]:
        """The block of every completion position."""
        position = torch.arange(self.gen_length)
        if self.aligned:
            size = self.lengths[0]
            before = torch.tensor([len(prompt) for prompt in prompts])[:, None]
            return (before + position) // size - before // size
        ends = torch.tensor(self.lengths).cumsum(0)
        return torch.searchsorted(ends, position, right=True).expand(len(prompts), -1)


def cut(gen_length: int, block_length: int | None, block_size: int | None = None) -> Blocks:
    """Cut `gen_length` positions into equal blocks.

    Args:
        block_length: None for one block, or for the model's own.
        block_size: that of a block-causal model, which leaves no choice.

    Raises:
        RecipeError: a number is not positive, or does not divide as it must, or is not the model's.
    """
    if block_size is not None and block_length not in (None, block_size):
        raise RecipeError(
            f"block_length is {block_length} and the model is block-causal with blocks of {block_size}; "
            "leave block_length out"
        )
    length = block_size or (gen_length if block_length is None else block_length)
    for name, value in (("gen_length", gen_length), ("block_length", length)):
        if value < 1:
            raise RecipeError(f"{name} is {value}; expected at least 1")
    if gen_length % length:
        raise RecipeError(f"block_length {length} does not divide gen_length {gen_length}; choose a divisor")
    return Blocks((length,) * (gen_length // length), aligned=block_size is not None)


def steps_per_block(steps: int | None, blocks: Blocks) -> int:
    """Each block's share of `steps`, which counts those of all blocks together; None is one per position.

    Raises:
        RecipeError: not positive, or not divisible by the number of blocks.
    """
    steps = blocks.gen_length if steps is None else steps
    count = len(blocks.lengths)
    if steps < 1:
        raise RecipeError(f"steps is {steps}; expected at least 1")
    if steps % count:
        raise RecipeError(
            f"steps {steps} cannot be shared equally by {count} blocks of {blocks.lengths[0]}; steps counts those of "
            f"all blocks together, choose a multiple of {count}"
        )
    return steps // count
