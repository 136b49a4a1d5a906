"""Small random models, made in code: what tests, examples and toy runs use in place of 8 billion weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.families import FAMILIES
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
    fields = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": max_positions,
        "rope_theta": 500000.0,
    }
    return build("LLaDAModelLM", fields, tokenizer or character_tokenizer(), seed)


def build(architecture: str, fields: dict[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> DiffusionModel:
    """A random model of any family; `fields` are of its configuration, the vocabulary is the tokenizer's.

    Weights are drawn as `tiny_llada` says, experts like other matrices. Biases, also those of routers, are normal
    times 0.1, so that forgetting one shows.
    """
    family = FAMILIES[architecture]
    config = family.network.config_class(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        **fields,
    )
    with torch.random.fork_rng(devices=[]):  # construction initialises from the global generator
        network = family.network(config)
    _draw_weights(network, seed)
    network.eval()
    return DiffusionModel(network, family.spec(config, tokenizer), tokenizer)


def write_tiny_llada(folder: str | Path, seed: int = 0) -> Path:
    """Write `tiny_llada(seed)` as a folder in the published format, tokenizer included."""
    tiny_llada(seed).save(folder)
    return Path(folder)


@torch.no_grad()
def _draw_weights(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = network.state_dict()
    for name, tensor in sorted(tensors.items()):
        if name.endswith("bias"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            small = name in ("model.embed_tokens.weight", "lm_head.weight")
            scale = 0.02 if small else tensor.shape[-1] ** -0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
