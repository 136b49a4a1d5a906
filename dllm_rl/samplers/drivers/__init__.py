"""Drivers: decoding that runs a sampler over states which can be forked. The loop is `samplers.loop`'s, always."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from dllm_rl.diffusion.denoiser import Denoiser
from dllm_rl.samplers.cache import make_policy
from dllm_rl.samplers.canvas import Template
from dllm_rl.samplers.drivers.ahead import LookAhead
from dllm_rl.samplers.drivers.base import Driven, Driver, Result
from dllm_rl.samplers.drivers.best_of import BestOfN
from dllm_rl.samplers.drivers.particles import Smc
from dllm_rl.samplers.drivers.search import Mcts
from dllm_rl.samplers.generate import row_keys
from dllm_rl.samplers.options import make
from dllm_rl.samplers.presets import make_sampler
from dllm_rl.samplers.presets.request import Request

DRIVERS: Mapping[str, type[Driver[Driven]]] = {"best_of_n": BestOfN, "smc": Smc, "look_ahead": LookAhead, "mcts": Mcts}


def make_driver(name: str, options: Mapping[str, Any]) -> Driver[Driven]:
    """The driver called `name`, with `options` set.

    Raises:
        RecipeError: there is no such driver, it has no such option, or an option is of the wrong type or value.
    """
    return make("driver", DRIVERS, name, options)


def drive(
    model: Denoiser,
    prompts: Sequence[Sequence[int]],
    driver: Driver[Result],
    request: Request,
    *,
    sampler: str = "llada",
    options: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
    sample_ids: Sequence[int] | None = None,
    fixed: Sequence[Template] | None = None,
    cache: str = "none",
) -> Result:
    """Decode with a driver: `generate` for those who want the best of several rollouts, and how it was found.

    Args:
        request: lengths and the distribution to draw from, which are arguments of `generate`.
        sampler: a preset, and its `options`.
        seed, sample_ids, fixed, cache: as in `generate`.

    Raises:
        RecipeError: a setting is wrong, or does not suit the driver.
        DataError: see `generate`.
        ModelContractError: see `generate`.
    """
    chosen = make_sampler(model.spec, sampler, options, request)
    keys = row_keys(seed, sample_ids, len(prompts))
    return driver(model, prompts, chosen, keys, fixed=fixed, policy=make_policy(cache, model.spec))
