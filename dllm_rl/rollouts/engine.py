"""Engines write completions for the trainer and for evaluation; the one here runs in the same process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from jaxtyping import Int64
from torch import Tensor

from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.errors import DataError, RecipeError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.modes import evaluating
from dllm_rl.samplers.cache import make_policy
from dllm_rl.samplers.canvas import Canvas, Template, refuse_overlong, templates_of
from dllm_rl.samplers.drivers.base import Driven, Driver
from dllm_rl.samplers.generate import rollout
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request

WatchRows = Callable[[Sequence[int], int, Canvas], None]
"""Looks on at a batch: called with the numbers of its prompts, the forwards done and the canvas; see `loop.Watch`."""


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How completions are sampled; the arguments of `samplers.generate` without the prompts and the randomness."""

    sampler: str = "rl"
    gen_length: int = 256
    steps: int | None = None
    block_length: int | None = None
    temperature: float = 1.0
    cfg_scale: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    stop_at_eos: bool = False
    cache: str = "none"
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    record_predictions: bool = False
    """Whether the trajectories keep what every step predicted of all that was hidden."""


class RolloutEngine(Protocol):
    """Writes completions."""

    @property
    def returns_trajectory(self) -> bool:
        """True if the trajectory tells when each token was written; otherwise only completions are to be trusted."""
        ...

    @property
    def exact_logp(self) -> bool:
        """True if `behaviour_logp` is the exact log-probability of what the engine did."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Int64[Tensor, " B"],
        update: int = 0,
        *,
        fixed: Sequence[Template] | None = None,
    ) -> Trajectory:
        """Write one completion per prompt, in the order of the prompts.

        Args:
            keys: one per prompt; everything drawn for the prompt is folded from it.
            update: version of the weights, to be recorded.
            fixed: for each prompt, the completion's ids that are given, None where one is to be written; see
                `samplers.generate`.
        """
        ...


class LocalEngine:
    """Samples with the model itself, `batch_size` prompts of similar length at a time.

    What a row becomes depends on its prompt and its key, not on `batch_size` nor on the other rows.

    Args:
        batch_size: prompts per forward; None for all at once.

    Raises:
        RecipeError: a setting cannot be used, see `make_sampler`; or batch_size is below 1.
    """

    def __init__(self, model: DiffusionModel, settings: RolloutSettings, batch_size: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise RecipeError(f"batch_size is {batch_size}; expected at least 1, or None for all prompts at once")
        self.model = model
        self.batch_size = batch_size
        sampler = make_sampler(
            model.spec,
            settings.sampler,
            settings.options,
            Request(
                gen_length=settings.gen_length,
                block_length=settings.block_length,
                steps=settings.steps,
                temperature=settings.temperature,
                cfg_scale=settings.cfg_scale,
                top_p=settings.top_p,
                top_k=settings.top_k,
                stop_at_eos=settings.stop_at_eos,
            ),
        )
        self.sampler = replace(sampler, record_predictions=settings.record_predictions)
        self.policy = make_policy(settings.cache, model.spec)

    @property
    def returns_trajectory(self) -> bool:
        return True

    @property
    def exact_logp(self) -> bool:
        """False for greedy decoding, which has no likelihood, and through a cache that is out of date."""
        exact_network = self.policy is None or self.policy.exact
        return exact_network and self.sampler.exactness != "none"

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Int64[Tensor, " B"],
        update: int = 0,
        watch: WatchRows | None = None,
        *,
        fixed: Sequence[Template] | None = None,
    ) -> Trajectory:
        """Write one completion per prompt, in the order of the prompts. See `RolloutEngine`.

        Raises:
            DataError: no prompts, not one key per prompt, a prompt too long for the model, a template that does not
                fit, or templates though the rollouts stop at the end of sequence. Nothing has been sampled then.
        """
        batches = self._batches(prompts, keys)
        given = templates_of(self.model, fixed, len(prompts), self.sampler.blocks.gen_length)
        with evaluating(self.model.network):
            parts = [
                rollout(
                    self.model,
                    [prompts[row] for row in rows],
                    self.sampler,
                    keys[rows],
                    update,
                    fixed=None if fixed is None else [given[row] for row in rows],
                    policy=self.policy,
                    watch=None if watch is None else partial(watch, rows),
                )
                for rows in batches
            ]
        return Trajectory.concatenate(parts).select(_places(batches))

    def drive(
        self,
        driver: Driver[Driven],
        prompts: Sequence[Sequence[int]],
        keys: Int64[Tensor, " P"],
        *,
        fixed: Sequence[Template] | None = None,
    ) -> tuple[Trajectory, list[int]]:
        """The rollouts that a driver picks, and the forwards that it spent on each prompt; else as `generate`.

        A driver that keeps n rollouts of a prompt makes batches of n times as many rows.

        Raises:
            RecipeError: the driver cannot run this sampler.
            DataError: as for `generate`.
        """
        batches = self._batches(prompts, keys)
        given = None if fixed is None else templates_of(self.model, fixed, len(prompts), self.sampler.blocks.gen_length)
        with evaluating(self.model.network):
            parts = [
                driver(
                    self.model,
                    [prompts[row] for row in rows],
                    self.sampler,
                    keys[rows],
                    fixed=None if given is None else [given[row] for row in rows],
                    policy=self.policy,
                )
                for rows in batches
            ]
        place = _places(batches)
        forwards = [count for part in parts for count in part.forwards]
        out = Trajectory.concatenate([part.trajectory for part in parts]).select(place)
        return out, [forwards[row] for row in place]

    def _batches(self, prompts: Sequence[Sequence[int]], keys: Int64[Tensor, " B"]) -> list[list[int]]:
        """Numbers of the prompts that are run together: those of similar length."""
        if len(keys) != len(prompts):
            raise DataError(f"{len(keys)} keys for {len(prompts)} prompts; expected one key per prompt")
        refuse_overlong(self.model, prompts, self.sampler.blocks.gen_length)
        by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        size = self.batch_size or len(prompts)
        return [by_length[start : start + size] for start in range(0, len(prompts), size)]


def _places(batches: Sequence[Sequence[int]]) -> list[int]:
    """Where each prompt is found after the batches, one after the other."""
    places: list[int] = torch.tensor([row for rows in batches for row in rows]).argsort().tolist()
    return places
