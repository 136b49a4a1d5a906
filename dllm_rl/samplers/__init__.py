"""Samplers for masked diffusion models: one loop over small interchangeable parts."""

from __future__ import annotations

from dllm_rl.samplers.generate import generate, rollout
from dllm_rl.samplers.loop import Sampler
from dllm_rl.samplers.presets import PRESETS, preset

__all__ = ["PRESETS", "Sampler", "generate", "preset", "rollout"]
