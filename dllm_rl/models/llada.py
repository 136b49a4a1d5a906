"""LLaDA is a Llama that attends both ways: its configuration under the published names, its class, its weight names."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from dllm_rl.errors import ModelContractError
from dllm_rl.models.heads import ScoresRows, TokenHead

ARCHITECTURE = "LLaDAModelLM"

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

LLAMA_ONLY = ("attention_bias", "head_dim", "is_causal", "mlp_bias", "pretraining_tp", "rope_parameters")


class LladaConfig(LlamaConfig):
    """Configuration of LLaDA. Reads and writes the published field names; inside, Llama's names hold.

    `vocab_size` inside counts rows of the embedding, published as `embedding_size`; the published `vocab_size`, which
    can be smaller, is `text_vocab_size`.

    Raises:
        ModelContractError: for a feature of the published configuration that a Llama does not compute.
    """

    model_type = "llada"
    attribute_map = {
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

    vocab_size: int = 126464
    text_vocab_size: int | None = None
    intermediate_size: int | None = 12288
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    use_cache: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 126081
    pad_token_id: int | None = 126081
    mask_token_id: int | None = 126336
    is_causal: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_vocab_size = self.text_vocab_size or self.vocab_size
        rows = kwargs.pop("embedding_size", None)
        # Aliases given as arguments would be applied after everything below was derived from the defaults.
        for published, name in self.attribute_map.items():
            if published in kwargs:
                setattr(self, name, kwargs.pop(published))
        self.vocab_size = rows or self.vocab_size
        kwargs = {**PUBLISHED_FIELDS, **kwargs}
        if self.intermediate_size is None:
            self.intermediate_size = kwargs["mlp_ratio"] * self.hidden_size
        super().__post_init__(**kwargs)
        self._refuse_unsupported()

    def _refuse_unsupported(self) -> None:
        wrong = {
            name: found
            for name, accepted in REQUIRED_VALUES.items()
            if (found := getattr(self, name, accepted[0])) not in accepted
        }
        if self.rope_parameters.get("rope_type") != "default":  # type: ignore[union-attr]
            wrong["rope_parameters"] = self.rope_parameters
        if wrong:
            expected = {name: REQUIRED_VALUES.get(name, ("default",))[0] for name in wrong}
            raise ModelContractError(
                f"the LLaDA configuration has {wrong}; this library computes only {expected}. "
                "Use a checkpoint without these features"
            )

    def to_dict(self) -> dict[str, Any]:
        """The published fields, so that the published modeling code can read what is saved."""
        fields = super().to_dict()
        rope_theta = fields["rope_parameters"]["rope_theta"]
        text_vocab_size = fields.pop("text_vocab_size")
        names = {name: published for published, name in self.attribute_map.items()}
        published = {names.get(name, name): value for name, value in fields.items() if name not in LLAMA_ONLY}
        published.update(rope_theta=rope_theta, vocab_size=text_vocab_size, architectures=[ARCHITECTURE])
        return published


class LLaDAModelLM(ScoresRows, LlamaForCausalLM):  # type: ignore[misc]
    """LLaDA under its published class name: position i predicts token i, every position sees every other.

    Logits equal the published modeling code's in float32. In bfloat16 the rotary angles are rounded once more than
    there (`rope_full_precision`): as far from float32 as the published code is, but not bit for bit the same.
    """

    config_class = LladaConfig

    def __init__(self, config: LladaConfig) -> None:
        super().__init__(config)
        self.lm_head = TokenHead(config.hidden_size, config.vocab_size, bias=False)
        # Llama declares the padding id to its embedding, which then gets no gradient. LLaDA pads with its EOS.
        self.model.embed_tokens.padding_idx = None
        self.post_init()

    @classmethod
    def can_generate(cls) -> bool:
        """No: left-to-right generation is meaningless here."""
        return False


WEIGHT_NAMES = (
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


def register() -> None:
    """Tell transformers of the class, so that its Auto classes and PEFT find it by the checkpoint's own names."""
    AutoConfig.register("llada", LladaConfig, exist_ok=True)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
        auto.register(LladaConfig, LLaDAModelLM, exist_ok=True)
    renamings = [WeightRenaming(published, name) for published, name in WEIGHT_NAMES]
    register_checkpoint_conversion_mapping(ARCHITECTURE, renamings, overwrite=True)


register()
