"""Dream is a Qwen2 that attends both ways; the output at a position predicts the next token, as in Qwen2."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from dllm_rl.models.heads import ScoresRows
from dllm_rl.models.published import PublishedConfig, register


class DreamConfig(PublishedConfig, Qwen2Config):
    """Configuration of Dream-7B and its descendants of the same architecture; see `PublishedConfig`."""

    model_type = "Dream"
    published_type = "Dream"
    architecture = "DreamModel"
    attribute_map: ClassVar[dict[str, str]] = {}
    released: ClassVar[dict[str, Any]] = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_cache": False,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
        "mask_token_id": 151666,
    }
    required: ClassVar[dict[str, Any]] = {
        "attention_dropout": (0.0,),
        "use_mrope": (False, None),
        "use_sliding_window": (False,),
    }


class DreamModel(ScoresRows, Qwen2ForCausalLM):
    """Dream under its published class name. Parameter names are the published ones.

    Its logits are Qwen2's: the output at position i is about token i + 1. `DiffusionModel` shifts them
    (`spec.logit_shift` is 1); whoever calls the network itself must do so too.
    """

    config_class = DreamConfig


class DreamTokenizer(Qwen2Tokenizer):
    """Dream's tokenizer under its published name: Qwen2's with two more special tokens, which its files declare."""


register(DreamConfig, DreamModel)
AutoTokenizer.register(DreamConfig, fast_tokenizer_class=DreamTokenizer, exist_ok=True)  # type: ignore[no-untyped-call]
