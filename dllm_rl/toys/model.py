"""A small random LLaDA, made in code: what tests, examples and toy runs use in place of 8 billion weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.llada import LladaConfig, LLaDAModelLM
from dllm_rl.models.spec import spec_of
from dllm_rl.toys.tokenizer import character_tokenizer


def tiny_llada(
    seed: int = 0,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int | None = None,
    mlp: int = 128,
    max_positions: int = 512,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> DiffusionModel:
    """A LLaDA of the given size over a character tokenizer (`character_tokenizer()` unless given).

    Matrices are normal with variance 1 / inputs, embeddings standard normal times 0.02 and the head likewise, so that
    a fresh model is close to uniform. Equal seeds give equal weights, whatever was drawn before.
    """
    tokenizer = tokenizer or character_tokenizer()
    config = LladaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # construction initialises from the global generator
        network = LLaDAModelLM(config)
    _draw_weights(network, seed)
    network.eval()  # type: ignore[no-untyped-call]
    return DiffusionModel(network, spec_of(config, tokenizer), tokenizer)


def write_tiny_llada(folder: str | Path, seed: int = 0) -> Path:
    """Write `tiny_llada(seed)` as a folder in the published format, tokenizer included."""
    tiny_llada(seed).save(folder)
    return Path(folder)


def _draw_weights(network: LLaDAModelLM, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                small = name in ("model.embed_tokens.weight", "lm_head.weight")
                scale = 0.02 if small else parameter.shape[1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
