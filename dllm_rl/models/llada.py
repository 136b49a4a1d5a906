"""LLaDA is a Llama that attends both ways: its configuration under the published names, its class, its weight names."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.core_model_loading import WeightRenaming

from dllm_rl.models.heads import ScoresRows
from dllm_rl.models.published import NOT_PUBLISHED, PublishedConfig, register

PUBLISHED_FIELDS: dict[str, Any] = {
    "alibi": False,
    "alibi_bias_max": 8.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "embedding_dropout": 0.0,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rope": True,
    "rope_full_precision": True,
    "scale_logits": False,
}
"""Fields of the published configuration that Llama has no name for, with the values of LLaDA-8B."""

LLADA_8B: dict[str, Any] = {
    "vocab_size": 126464,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "use_cache": False,
    "bos_token_id": None,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
    "mask_token_id": 126336,
}
"""Defaults under Llama's names, where they differ from Llama's own."""

REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "clip_qkv": (None,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "multi_query_attention": (False, None),
    "rope": (True,),
    "scale_logits": (False,),
    "activation_type": ("silu",),
    "attention_dropout": (0.0,),
    "embedding_dropout": (0.0,),
    "residual_dropout": (0.0,),
}
"""What a configuration must say for a Llama to compute the same function."""

LLAMA_ONLY = ("attention_bias", "head_dim", "mlp_bias", "pretraining_tp")


class LladaConfig(PublishedConfig, LlamaConfig):
    """Configuration of LLaDA; see `PublishedConfig`.

    `vocab_size` inside counts rows of the embedding, published as `embedding_size`; the published `vocab_size`, which
    can be smaller, is `text_vocab_size`.
    """

    model_type = "llada"
    published_type = "llada"
    architecture = "LLaDAModelLM"
    not_published = (*NOT_PUBLISHED, *LLAMA_ONLY)
    attribute_map: ClassVar[dict[str, str]] = {
        "activation_type": "hidden_act",
        "d_model": "hidden_size",
        "embedding_size": "vocab_size",
        "init_std": "initializer_range",
        "max_sequence_length": "max_position_embeddings",
        "mlp_hidden_size": "intermediate_size",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "n_layers": "num_hidden_layers",
        "weight_tying": "tie_word_embeddings",
    }
    released: ClassVar[dict[str, Any]] = {**LLADA_8B, **PUBLISHED_FIELDS}
    required: ClassVar[dict[str, Any]] = REQUIRED_VALUES

    text_vocab_size: int
    mask_token_id: int | None
    is_causal: bool

    def __init__(self, **fields: Any) -> None:
        rows = fields.pop("embedding_size", None)
        values = {**self.released, **self.named_by_transformers(fields)}
        values.setdefault("text_vocab_size", values["vocab_size"])
        values["vocab_size"] = rows or values["vocab_size"]
        if values["intermediate_size"] is None:
            values["intermediate_size"] = values["mlp_ratio"] * values["hidden_size"]
        super().__init__(**values)

    def to_dict(self) -> dict[str, Any]:
        """The published fields, so that the published modeling code can read what is saved."""
        published = super().to_dict()
        published["vocab_size"] = published.pop("text_vocab_size")
        return published


class LLaDAModelLM(ScoresRows, LlamaForCausalLM):
    """LLaDA under its published class name: position i predicts token i, every position sees every other.

    Logits equal the published modeling code's in float32. In bfloat16 the rotary angles are rounded once more than
    there (`rope_full_precision`): as far from float32 as the published code is, but not bit for bit the same.
    """

    config_class = LladaConfig


WEIGHT_NAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.transformer\.wte\.", "model.embed_tokens."),
    (r"^model\.transformer\.ln_f\.", "model.norm."),
    (r"^model\.transformer\.ff_out\.", "lm_head."),
    (r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.", r"model.layers.\1.input_layernorm."),
    (r"^model\.transformer\.blocks\.(\d+)\.q_proj\.", r"model.layers.\1.self_attn.q_proj."),
    (r"^model\.transformer\.blocks\.(\d+)\.k_proj\.", r"model.layers.\1.self_attn.k_proj."),
    (r"^model\.transformer\.blocks\.(\d+)\.v_proj\.", r"model.layers.\1.self_attn.v_proj."),
    (r"^model\.transformer\.blocks\.(\d+)\.attn_out\.", r"model.layers.\1.self_attn.o_proj."),
    (r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.", r"model.layers.\1.mlp.gate_proj."),
    (r"^model\.transformer\.blocks\.(\d+)\.up_proj\.", r"model.layers.\1.mlp.up_proj."),
    (r"^model\.transformer\.blocks\.(\d+)\.ff_out\.", r"model.layers.\1.mlp.down_proj."),
)
"""Published weight names as patterns, with the names that Llama gives the same tensors."""


register(LladaConfig, LLaDAModelLM, [WeightRenaming(*names) for names in WEIGHT_NAMES])
