"""Several rollouts of each prompt, of which the best one is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.diffusion.trajectory import Trajectory
from dllm_rl.samplers.cache import CachePolicy
from dllm_rl.samplers.canvas import Template
from dllm_rl.samplers.drivers.base import candidate_keys, refuse_equal_candidates, refuse_fewer, repeated
from dllm_rl.samplers.drivers.statistics import Statistic, path_entropy, smallest, values_of
from dllm_rl.samplers.generate import rollout
from dllm_rl.samplers.loop import Sampler


@dataclass(frozen=True, slots=True)
class Best:
    """The best rollout of each prompt, and all of them. See `base.Driven`."""

    trajectory: Trajectory
    forwards: list[int]
    candidates: Trajectory
    """N rollouts of the first prompt, then N of the second, ...; each by itself is a plain rollout of the sampler."""
    values: Float64[Tensor, "P N"]
    """What they were compared by."""
    picked: Int64[Tensor, " P"]


@dataclass(frozen=True, slots=True)
class BestOfN:
    """N independent rollouts of each prompt; the one whose statistic is smallest is returned.

    With the default this is E-BoN. The first candidate is the rollout that there would be without a driver. Rows are N
    times as many, all in one batch. Wrong for reinforcement learning: the pick has no likelihood, and so it says.

    Source: Chen et al., https://arxiv.org/abs/2512.21336, E-BoN, with 8 rollouts.

    Raises:
        RecipeError: n is below 1; when it runs, all candidates would be the same, or a statistic is NaN.
    """

    n: int = 8
    by: Statistic = path_entropy
    """Any function of a `Trajectory`; its rows are all candidates, their entropy is measured."""

    def __post_init__(self) -> None:
        refuse_fewer("n", self.n)

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
    ) -> Best:
        refuse_equal_candidates(sampler, self.n)
        candidates = rollout(
            model,
            repeated(prompts, self.n),
            replace(sampler, measure_entropy=True),
            candidate_keys(keys, self.n).flatten(),
            update,
            fixed=None if fixed is None else repeated(fixed, self.n),
            policy=policy,
        )
        values = values_of(candidates, self.by, self.n)
        picked = smallest(values)
        forwards = torch.tensor(candidates.nfe).view(-1, self.n).sum(dim=1)
        return Best(pick(candidates, picked, self.n), forwards.tolist(), candidates, values, picked)


def pick(candidates: Trajectory, picked: Int64[Tensor, " P"], n: int) -> Trajectory:
    """One of every `n` rollouts; without a likelihood unless there is nothing to pick from."""
    rows = torch.arange(len(picked), device=picked.device) * n + picked
    chosen = candidates.select(rows.tolist())
    return chosen if n == 1 else replace(chosen, exactness="none")
