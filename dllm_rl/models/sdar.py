"""SDAR is a Qwen3, and SDAR-MoE a Qwen3Moe, that attends block by block. Its files use the names of these classes."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from dllm_rl.models.heads import ScoresRows, ScoresRowsOfExperts
from dllm_rl.models.published import PublishedConfig, expert_conversions, register

BLOCK_SIZE = 4
"""Of the first releases; others say their own in config.json."""

COMMON: dict[str, Any] = {
    "vocab_size": 151936,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "block_size": BLOCK_SIZE,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
    "mask_token_id": 151669,
}


class SDARConfig(PublishedConfig, Qwen3Config):
    """Configuration of SDAR; see `PublishedConfig`. `block_size` is how many positions see each other."""

    model_type = "sdar"
    published_type = "sdar"
    architecture = "SDARForCausalLM"
    attribute_map: ClassVar[dict[str, str]] = {}
    released: ClassVar[dict[str, Any]] = {
        **COMMON,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    required: ClassVar[dict[str, Any]] = {"attention_dropout": (0.0,), "use_sliding_window": (False,)}


class SDARMoeConfig(PublishedConfig, Qwen3MoeConfig):
    """Configuration of SDAR-MoE; see `PublishedConfig`. `block_size` is how many positions see each other."""

    model_type = "sdar_moe"
    published_type = "sdar_moe"
    architecture = "SDARMoeForCausalLM"
    attribute_map: ClassVar[dict[str, str]] = dict(Qwen3MoeConfig.attribute_map)
    released: ClassVar[dict[str, Any]] = {
        **COMMON,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    }
    required: ClassVar[dict[str, Any]] = {
        "attention_dropout": (0.0,),
        "output_router_logits": (False,),
        "use_sliding_window": (False,),
    }


class SDARForCausalLM(ScoresRows, Qwen3ForCausalLM):
    """SDAR under its published class name: position i predicts token i, and sees its block and those before.

    Which positions that are has to be said with `attention_mask`: without one, every position sees every other.
    """

    config_class = SDARConfig


class SDARMoeForCausalLM(ScoresRowsOfExperts, Qwen3MoeForCausalLM):
    """SDAR-MoE under its published class name; see `SDARForCausalLM`."""

    config_class = SDARMoeConfig


register(SDARConfig, SDARForCausalLM)
register(SDARMoeConfig, SDARMoeForCausalLM, expert_conversions("qwen3_moe"))
