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


def peel(gen_length: int, steps: int, count: int) -> Blocks:
    """Blocks of unequal lengths for steps of 1, 2, 4, ... positions and the rest: one step for each block, but for the
    first, which has those that are left over.

    Example: 128 positions, 7 steps and 4 blocks make lengths 15, 16, 32 and 65.

    Source: Yang et al., https://arxiv.org/abs/2509.23924, ass_generate, which peels the largest power of 2 off the
    right end, again and again.

    Raises:
        RecipeError: fewer positions than the steps would write, or more blocks than steps.
    """
    if steps < 1 or gen_length < 2**steps - 1:
        raise RecipeError(
            f"steps of 1, 2, 4, ... positions fill {2**steps - 1} in {steps} steps, and gen_length is {gen_length}; "
            f"expected between 1 and {(gen_length + 1).bit_length() - 1} steps"
        )
    if not 1 <= count <= steps:
        raise RecipeError(f"block_num is {count}; expected at least 1, at most one per step: {steps}")
    first = 2 ** (steps - count + 1) - 1
    lengths = (first, *(2**power for power in range(steps - count + 1, steps)))
    return Blocks((*lengths[:-1], lengths[-1] + gen_length - sum(lengths)))


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
