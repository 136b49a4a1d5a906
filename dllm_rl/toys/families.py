"""Small random models of every family, made in code; `dllm_rl.toys.model.tiny_llada` is the one of LLaDA."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.toys.model import build
from dllm_rl.toys.tokenizer import character_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def tiny_dream(seed: int = 0, *, tokenizer: PreTrainedTokenizerFast | None = None, **sizes: int) -> DiffusionModel:
    """A Dream: biases on queries, keys and values; logits shifted by one.

    Args:
        sizes: fields of the configuration that replace those of `SIZES`.
    """
    return build("DreamModel", {**SIZES, **sizes}, tokenizer or character_tokenizer(), seed)


def tiny_llada_moe(seed: int = 0, *, tokenizer: PreTrainedTokenizerFast | None = None, **sizes: int) -> DiffusionModel:
    """A LLaDA-MoE: eight experts, two per token, normalised queries and keys. See `tiny_dream`."""
    fields = {**SIZES, **EXPERTS, "num_key_value_heads": 4, **sizes}
    return build("LLaDAMoEModelLM", fields, tokenizer or character_tokenizer(), seed)


def tiny_llada2(
    seed: int = 0, *, block_size: int = 4, tokenizer: PreTrainedTokenizerFast | None = None, **sizes: int
) -> DiffusionModel:
    """A LLaDA2: block-causal, a dense layer, then eight experts in four groups and a shared one. See `tiny_dream`."""
    fields = {**SIZES, **EXPERTS, "head_dim": 16, "n_group": 4, "topk_group": 2, "block_size": block_size, **sizes}
    return build("LLaDA2MoeModelLM", fields, tokenizer or character_tokenizer(), seed)


def tiny_sdar(
    seed: int = 0, *, block_size: int = 4, tokenizer: PreTrainedTokenizerFast | None = None, **sizes: int
) -> DiffusionModel:
    """An SDAR: block-causal, normalised queries and keys. See `tiny_dream`."""
    fields = {**SIZES, "head_dim": 16, "block_size": block_size, **sizes}
    return build("SDARForCausalLM", fields, tokenizer or character_tokenizer(), seed)


def tiny_sdar_moe(
    seed: int = 0, *, block_size: int = 4, tokenizer: PreTrainedTokenizerFast | None = None, **sizes: int
) -> DiffusionModel:
    """An SDAR-MoE: block-causal, eight experts with normalised weights. See `tiny_dream`."""
    fields = {**SIZES, **EXPERTS, "head_dim": 16, "block_size": block_size, **sizes}
    return build("SDARMoeForCausalLM", fields, tokenizer or character_tokenizer(), seed)
