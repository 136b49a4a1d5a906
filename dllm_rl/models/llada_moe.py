"""LLaDA-MoE is a Qwen3Moe that attends both ways, with one head of keys per head and unnormalised routing weights."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from dllm_rl.errors import ModelContractError
from dllm_rl.models.heads import ScoresRowsOfExperts
from dllm_rl.models.published import NOT_PUBLISHED, PublishedConfig, expert_conversions, register

NO_MORE_THAN_QWEN = ("decoder_sparse_step", "mlp_only_layers", "sliding_window", "use_sliding_window")


class LLaDAMoEConfig(PublishedConfig, Qwen3MoeConfig):
    """Configuration of LLaDA-MoE; see `PublishedConfig`.

    Its config.json calls the model type "llada", like that of LLaDA itself: only the architecture tells them apart,
    and transformers' Auto classes do not look at it.
    """

    model_type = "llada_moe"
    published_type = "llada"
    architecture = "LLaDAMoEModelLM"
    not_published = (*NOT_PUBLISHED, *NO_MORE_THAN_QWEN)
    attribute_map: ClassVar[dict[str, str]] = {
        **Qwen3MoeConfig.attribute_map,
        "dense_intermediate_size": "intermediate_size",
        "expert_intermediate_size": "moe_intermediate_size",
    }
    released: ClassVar[dict[str, Any]] = {
        "vocab_size": 157184,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "moe_intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "router_aux_loss_coef": 0.01,
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "qk_layernorm": True,
        "routed_scaling_factor": 1,
        "use_cache": False,
        "eos_token_id": 156892,
        "pad_token_id": 156892,
        "mask_token_id": 156895,
    }
    required: ClassVar[dict[str, Any]] = {
        "attention_bias": (False,),
        "attention_dropout": (0.0,),
        "clip_qkv": (None,),
        "moe_router_enable_expert_bias": (False, None),
        "moe_router_score_function": ("softmax",),
        "norm_topk_prob": (False,),
        "output_router_logits": (False,),
        "partial_rotary_factor": (1, None),
        "qk_layernorm": (True,),
        "routed_scaling_factor": (1, None),
        "router_num_group": (None, 0, 1),
        "router_topk_group": (None, 0, 1),
        "shared_expert_intermediate_size": (None, 0),
    }

    def __init__(self, **fields: Any) -> None:
        if fields.get("norm_topk_prob", False) is None:
            fields["norm_topk_prob"] = False  # published as null, which the published code takes for false
        super().__init__(**fields)

    def _refuse_unsupported(self) -> None:
        super()._refuse_unsupported()
        frequencies = getattr(self, "moe_layer_freq", None) or ()
        if any(frequency != 1 for frequency in frequencies):
            raise ModelContractError(
                f"the {self.architecture} configuration has moe_layer_freq={frequencies}; this library computes only "
                "layers that all have experts, 1 for each. Use a checkpoint without dense layers"
            )


class LLaDAMoEModelLM(ScoresRowsOfExperts, Qwen3MoeForCausalLM):
    """LLaDA-MoE under its published class name: position i predicts token i, every position sees every other.

    The experts of a layer are two tensors here and three per expert in the files.
    """

    config_class = LLaDAMoEConfig


register(LLaDAMoEConfig, LLaDAMoEModelLM, expert_conversions("qwen3_moe"))
