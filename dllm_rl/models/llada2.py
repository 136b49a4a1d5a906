"""LLaDA2.0 and 2.1 are a Glm4Moe that attends block by block: grouped sigmoid routing, a shared expert, half rotary."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

from dllm_rl.models.fused import Fused
from dllm_rl.models.heads import ScoresRowsOfExperts
from dllm_rl.models.published import NOT_PUBLISHED, PublishedConfig, expert_conversions, register

BLOCK_SIZE = 32
"""Of the released checkpoints, whose config.json does not say it."""
FUSED = Fused("attention.query_key_value", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
"""Queries, keys and values are one projection in the files, in this order."""


class LLaDA2MoeConfig(PublishedConfig, Glm4MoeConfig):
    """Configuration of LLaDA2.0 and 2.1; see `PublishedConfig`."""

    model_type = "llada2_moe"
    published_type = "llada2_moe"
    architecture = "LLaDA2MoeModelLM"
    not_published = (*NOT_PUBLISHED, "attention_bias", "num_nextn_predict_layers")
    attribute_map: ClassVar[dict[str, str]] = {
        **Glm4MoeConfig.attribute_map,
        "num_experts": "n_routed_experts",
        "num_shared_experts": "n_shared_experts",
    }
    released: ClassVar[dict[str, Any]] = {
        "vocab_size": 157184,
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 0,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 600000.0,
        "partial_rotary_factor": 0.5,
        "embedding_dropout": 0.0,
        "moe_router_enable_expert_bias": True,
        "norm_head": False,
        "output_dropout": 0.0,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "use_bias": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_sliding_window": False,
        "use_cache": False,
        "eos_token_id": 156892,
        "pad_token_id": 156892,
        "mask_token_id": 156895,
    }
    required: ClassVar[dict[str, Any]] = {
        "attention_bias": (False,),
        "attention_dropout": (0.0,),
        "embedding_dropout": (0.0, None),
        "moe_router_enable_expert_bias": (True,),
        "n_shared_experts": range(1, 1024),
        "norm_head": (False, None),
        "norm_topk_prob": (True,),
        "num_experts_per_tok": range(2, 1024),  # the published code does not normalise the weight of a single one
        "num_nextn_predict_layers": (0, None),
        "output_dropout": (0.0, None),
        "output_router_logits": (False,),
        "router_dtype": ("fp32", "float32", None),
        "score_function": ("sigmoid",),
        "use_bias": (False,),
        "use_qk_norm": (True,),
        "use_qkv_bias": (False,),
        "use_sliding_window": (False, None),
    }


class LLaDA2MoeModelLM(ScoresRowsOfExperts, Glm4MoeForCausalLM):
    """LLaDA2 under its published class name: position i predicts token i, and sees its block and those before.

    Which positions that are has to be said with `attention_mask`: without one, every position sees every other.
    """

    config_class = LLaDA2MoeConfig

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__(config)
        self._keys_to_ignore_on_load_unexpected = []  # Glm4Moe's ignores two layers of any model


WEIGHT_NAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.word_embeddings\.", "model.embed_tokens."),
    (r"^model\.layers\.(\d+)\.attention\.dense\.", r"model.layers.\1.self_attn.o_proj."),
    (r"^model\.layers\.(\d+)\.attention\.query_layernorm\.", r"model.layers.\1.self_attn.q_norm."),
    (r"^model\.layers\.(\d+)\.attention\.key_layernorm\.", r"model.layers.\1.self_attn.k_norm."),
    (r"^model\.layers\.(\d+)\.mlp\.gate\.expert_bias", r"model.layers.\1.mlp.gate.e_score_correction_bias"),
)
"""Published weight names as patterns, with the names that Glm4Moe gives the same tensors; others are the same."""


def _conversions() -> list[WeightConverter | WeightRenaming]:
    fused = WeightConverter(f"{FUSED.published}.weight", [f"{name}.weight" for name in FUSED.ours], [Split(dim=0)])
    renamings = [WeightRenaming(*names) for names in WEIGHT_NAMES]
    return [*renamings, fused, *expert_conversions("glm4_moe")]


register(LLaDA2MoeConfig, LLaDA2MoeModelLM, _conversions())
