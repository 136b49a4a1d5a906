"""Hugging Face networks as denoisers: loading, scoring, saving."""

from dllm_rl.models.attention import AttentionSpec
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model

__all__ = ["AttentionSpec", "DiffusionModel", "load_model"]
