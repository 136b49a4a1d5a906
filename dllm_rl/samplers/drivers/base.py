"""What a driver is: a way to decode that runs a sampler over states which it forks, compares and drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl import rng
from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import RecipeError
from dllm_rl.samplers.cache import CachePolicy
from dllm_rl.samplers.canvas import Template
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.revise.base import NOTHING

Item = TypeVar("Item")


@runtime_checkable
class Driven(Protocol):
    """What every driver returns; each adds what it knows besides."""

    @property
    def trajectory(self) -> Trajectory:
        """The rollout picked for each prompt. Its log is that of its own draws, and replays; but it was chosen by
        looking at others, so its probability is not the product of what was drawn, and `exactness` is "none".
        """
        ...

    @property
    def forwards(self) -> list[int]:
        """Network evaluations spent on each prompt, all rows together; a guided evaluation counts once. The
        trajectory's `nfe` counts those on the path of the pick alone.
        """
        ...


Result = TypeVar("Result", bound=Driven, covariant=True)


@runtime_checkable
class Driver(Protocol[Result]):
    """Decodes one batch of prompts."""

    def __call__(
        self,
        model: Denoiser,
        prompts: Sequence[Sequence[int]],
        sampler: Sampler,
        keys: Int64[Tensor, " P"],
        update: int = 0,
        *,
        fixed: Sequence[Template] | None = None,
        policy: CachePolicy | None = None,
    ) -> Result:
        """Decode. The arguments, and what is refused, are those of `samplers.generate.rollout`."""
        ...


def repeated(items: Sequence[Item], n: int) -> list[Item]:
    """Each of `items` `n` times, one after the other."""
    return [item for item in items for _ in range(n)]


def candidate_keys(keys: Int64[Tensor, " P"], n: int) -> Int64[Tensor, "P {n}"]:
    """A key for each of `n` candidates of every prompt; the first is the prompt's own, so it is the plain rollout."""
    index = torch.arange(n, device=keys.device)
    column = keys[:, None].expand(-1, n)
    return torch.where(index == 0, column, rng.fold(column, "candidate", index))


def refuse_fewer(name: str, value: int) -> None:
    """Check a count.

    Raises:
        RecipeError: it is below 1.
    """
    if value < 1:
        raise RecipeError(f"{name} is {value}; expected at least 1")


def refuse_equal_candidates(sampler: Sampler, n: int) -> None:
    """Check that whole rollouts of one prompt can differ.

    Raises:
        RecipeError: there are several, and nothing in the sampler is random.
    """
    if n > 1 and sampler.transform.temperature == 0 and not sampler.select.random and sampler.revise == NOTHING:
        raise RecipeError(
            f"temperature is 0 and the sampler's order is not random: all {n} rollouts of a prompt would be the same; "
            "set a temperature above 0, or n to 1"
        )
