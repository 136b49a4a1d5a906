"""Canvases, views and likelihoods of discrete diffusion models.

Names resolve on first use, so that importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dllm_rl.diffusion.corruption import CORRUPTORS as CORRUPTORS
    from dllm_rl.diffusion.corruption import AntitheticLevels as AntitheticLevels
    from dllm_rl.diffusion.corruption import Balanced as Balanced
    from dllm_rl.diffusion.corruption import Bernoulli as Bernoulli
    from dllm_rl.diffusion.corruption import Complementary as Complementary
    from dllm_rl.diffusion.corruption import Corruptor as Corruptor
    from dllm_rl.diffusion.corruption import FixedCount as FixedCount
    from dllm_rl.diffusion.corruption import FullyHidden as FullyHidden
    from dllm_rl.diffusion.denoiser import Denoiser as Denoiser
    from dllm_rl.diffusion.denoiser import DiffusionSpec as DiffusionSpec
    from dllm_rl.diffusion.denoiser import TokenScores as TokenScores
    from dllm_rl.diffusion.likelihood import ElboEstimate as ElboEstimate
    from dllm_rl.diffusion.likelihood import elbo as elbo
    from dllm_rl.diffusion.likelihood import elbo_draws as elbo_draws
    from dllm_rl.diffusion.likelihood import exact_elbo as exact_elbo
    from dllm_rl.diffusion.likelihood import score_views as score_views
    from dllm_rl.diffusion.sequences import sequences_from_ids as sequences_from_ids
    from dllm_rl.diffusion.transform import Transform as Transform
    from dllm_rl.diffusion.transform import guide as guide
    from dllm_rl.diffusion.views import Sequences as Sequences
    from dllm_rl.diffusion.views import Views as Views

_MODULES = {
    "corruption": "CORRUPTORS AntitheticLevels Balanced Bernoulli Complementary Corruptor FixedCount FullyHidden",
    "denoiser": "Denoiser DiffusionSpec TokenScores",
    "likelihood": "ElboEstimate elbo elbo_draws exact_elbo score_views",
    "sequences": "sequences_from_ids",
    "transform": "Transform guide",
    "views": "Sequences Views",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
