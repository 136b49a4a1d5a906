"""Reinforcement-learning post-training for diffusion language models.

Names are imported when first used: the start-up hook imports this package in every interpreter, and must cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dllm_rl import objectives
    from dllm_rl.diffusion.denoiser import DiffusionSpec
    from dllm_rl.diffusion.likelihood import elbo, exact_elbo
    from dllm_rl.diffusion.trajectory import Trajectory
    from dllm_rl.diffusion.transform import Transform
    from dllm_rl.evaluation.metrics import EvalResult, evaluate
    from dllm_rl.models.denoiser import DiffusionModel
    from dllm_rl.models.load import load_model
    from dllm_rl.recipe.build import RunResult, train
    from dllm_rl.samplers.generate import generate
    from dllm_rl.scoring.result import Score
    from dllm_rl.scoring.score import score

_HOME = {
    "DiffusionModel": "dllm_rl.models.denoiser",
    "DiffusionSpec": "dllm_rl.diffusion.denoiser",
    "EvalResult": "dllm_rl.evaluation.metrics",
    "RunResult": "dllm_rl.recipe.build",
    "Score": "dllm_rl.scoring.result",
    "Trajectory": "dllm_rl.diffusion.trajectory",
    "Transform": "dllm_rl.diffusion.transform",
    "elbo": "dllm_rl.diffusion.likelihood",
    "evaluate": "dllm_rl.evaluation.metrics",
    "exact_elbo": "dllm_rl.diffusion.likelihood",
    "generate": "dllm_rl.samplers.generate",
    "load_model": "dllm_rl.models.load",
    "score": "dllm_rl.scoring.score",
    "train": "dllm_rl.recipe.build",
}
_PACKAGES = ("objectives",)

__all__ = [
    "DiffusionModel",
    "DiffusionSpec",
    "EvalResult",
    "RunResult",
    "Score",
    "Trajectory",
    "Transform",
    "elbo",
    "evaluate",
    "exact_elbo",
    "generate",
    "load_model",
    "objectives",
    "score",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"dllm_rl.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'dllm_rl' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
