"""How a completion is cut into blocks, written one after the other, and how many steps each gets."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_rl.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Blocks:
    """Equal blocks, each written in equally many steps."""

    gen_length: int
    block_length: int
    steps_per_block: int

    @property
    def starts(self) -> range:
        return range(0, self.gen_length, self.block_length)


def cut(gen_length: int, block_length: int | None, steps: int | None) -> Blocks:
    """Cut `gen_length` positions into blocks of `block_length`, written in `steps` steps altogether.

    Args:
        block_length: None for one block.
        steps: None for one step per position.

    Raises:
        RecipeError: a number is not positive, or does not divide as it must.
    """
    block_length = gen_length if block_length is None else block_length
    steps = gen_length if steps is None else steps
    for name, value in (("gen_length", gen_length), ("block_length", block_length), ("steps", steps)):
        if value < 1:
            raise RecipeError(f"{name} is {value}; expected at least 1")
    if gen_length % block_length:
        raise RecipeError(f"block_length {block_length} does not divide gen_length {gen_length}; choose a divisor")
    blocks = gen_length // block_length
    if steps % blocks:
        raise RecipeError(
            f"steps {steps} cannot be shared equally by {blocks} blocks of {block_length}; steps counts those of all "
            f"blocks together, choose a multiple of {blocks}"
        )
    return Blocks(gen_length, block_length, steps // blocks)
