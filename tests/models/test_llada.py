"""LLaDA as a Llama: logits, gradients and names of the published format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dllm_rl.errors import ModelContractError
from dllm_rl.models import load_model
from dllm_rl.models.llada import LladaConfig, LLaDAModelLM
from dllm_rl.toys.model import tiny_llada

from .published import PublishedLLaDA


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "llada_tiny_gqa"


@pytest.fixture(scope="module")
def numbers(golden: Path) -> dict[str, torch.Tensor]:
    with np.load(golden / "logits.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.mark.parametrize("case", "ABCD")
def test_logits_equal_the_published_code(golden: Path, numbers: dict[str, torch.Tensor], case: str) -> None:
    with torch.no_grad():
        logits = load_model(golden).logits(numbers[f"ids_{case}"])
    torch.testing.assert_close(logits, numbers[f"logits_{case}"], atol=2e-4, rtol=0)


def test_left_padded_logits_equal_the_published_code(golden: Path, numbers: dict[str, torch.Tensor]) -> None:
    attend = numbers["attention_mask_E"].bool()
    with torch.no_grad():
        logits = load_model(golden).logits(numbers["ids_E"], attend)
    torch.testing.assert_close(logits[attend], numbers["logits_E_masked"][attend], atol=2e-4, rtol=0)


def test_hidden_states_equal_the_published_code(golden: Path, numbers: dict[str, torch.Tensor]) -> None:
    network = load_model(golden).network
    seen: list[torch.Tensor] = []
    for layer in network.model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.model.norm.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        network(numbers["ids_A"])
    torch.testing.assert_close(torch.stack(seen), numbers["hidden_A"], atol=1e-5, rtol=0)


def test_gradients_equal_the_published_code(golden: Path, numbers: dict[str, torch.Tensor]) -> None:
    """Through `token_logp`, for every parameter, under its published name."""
    model = load_model(golden)
    ids, target = numbers["ids_A"], numbers["grad_target_A"]
    where = (ids == model.spec.mask_id) & (target >= 0)
    loss = -model.token_logp(ids, target.clamp(min=0), where).sum() / where.sum()
    loss.backward()
    assert loss.item() == pytest.approx(numbers["grad_loss_A"].item(), rel=1e-6)
    published = load_file(golden / "grads_A.safetensors")
    ours = {published_name(name): parameter.grad for name, parameter in model.network.named_parameters()}
    assert set(ours) == set(published)
    for name, gradient in published.items():
        # Gradients here are up to 0.1; CPUs that sum float32 in another order differ by 1.2e-6.
        torch.testing.assert_close(ours[name], gradient, atol=3e-6, rtol=1e-4)


LEAVES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "o_proj": "attn_out",
    "gate_proj": "ff_proj",
    "down_proj": "ff_out",
    "embed_tokens": "wte",
    "norm": "ln_f",
    "lm_head": "ff_out",
}


def published_name(name: str) -> str:
    """Written apart from the library's own table."""
    parts = name.split(".")
    block = f"blocks.{parts[2]}." if "layers" in parts else ""
    return f"model.transformer.{block}{LEAVES.get(parts[-2], parts[-2])}.weight"


def test_the_written_out_model_agrees(tmp_path: Path) -> None:
    """Independent of reference files: what is saved, read by a transcription of the architecture, computes the same."""
    model = tiny_llada(seed=3, kv_heads=2)
    model.save(tmp_path / "model")
    oracle = PublishedLLaDA(json.loads((tmp_path / "model" / "config.json").read_text()))
    oracle.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    ids = torch.arange(60).reshape(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids), oracle(ids), atol=1e-5, rtol=1e-5)


def test_the_padding_token_learns() -> None:
    """LLaDA pads with its EOS; Llama would keep that row of the embedding from getting a gradient."""
    model = tiny_llada()
    eos = model.spec.eos_ids[0]
    ids = torch.tensor([[5, eos, 7]])
    model.token_logp(ids, ids, torch.ones_like(ids, dtype=torch.bool)).sum().backward()
    assert model.network.model.embed_tokens.weight.grad[eos].abs().sum() > 0


def test_configuration_reads_and_writes_published_fields(golden: Path) -> None:
    published = json.loads((golden / "config.json").read_text())
    written = LladaConfig.from_dict(dict(published)).to_dict()
    assert {name: written[name] for name in published if name != "transformers_version"} == {
        name: value for name, value in published.items() if name != "transformers_version"
    }
    assert not {"hidden_size", "num_attention_heads", "head_dim", "rope_parameters", "is_causal"} & set(written)


def test_published_names_given_as_arguments_reach_derived_fields() -> None:
    config = LladaConfig(d_model=48, n_heads=6, n_kv_heads=None, n_layers=1, mlp_hidden_size=None, mlp_ratio=3)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (8, 6, 144)


def test_rope_theta_is_read() -> None:
    assert LladaConfig(rope_theta=1234.0).rope_parameters["rope_theta"] == 1234.0


def test_more_rows_than_tokens(golden: Path, tmp_path: Path) -> None:
    fields = json.loads((golden / "config.json").read_text()) | {"vocab_size": 127}
    config = LladaConfig.from_dict(fields)
    assert (config.vocab_size, config.text_vocab_size) == (128, 127)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((golden / "model.safetensors").read_bytes())
    model = load_model(tmp_path)
    assert model.spec.forbidden_ids == (126, 127)
    model.save(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (written["vocab_size"], written["embedding_size"]) == (127, 128)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alibi", True),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("layer_norm_type", "default"),
        ("block_type", "sequential"),
        ("activation_type", "gelu"),
        ("rope", False),
        ("scale_logits", True),
        ("input_emb_norm", True),
        ("attention_layer_norm", True),
        ("residual_dropout", 0.1),
        ("attention_dropout", 0.1),
        ("embedding_dropout", 0.1),
        ("multi_query_attention", True),
        ("block_group_size", 2),
        ("clip_qkv", 8.0),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_features_that_a_llama_lacks_are_refused(field: str, value: object) -> None:
    with pytest.raises(ModelContractError, match="rope_parameters" if field == "rope_scaling" else field):
        LladaConfig(**{field: value})


def test_tied_weights_save_one_tensor(tmp_path: Path) -> None:
    config = LladaConfig(
        vocab_size=32, d_model=16, n_heads=2, n_layers=1, mlp_hidden_size=24, weight_tying=True,
        mask_token_id=31, eos_token_id=30, pad_token_id=30,
    )  # fmt: skip
    torch.manual_seed(0)
    network = LLaDAModelLM(config)
    network.save_pretrained(tmp_path)
    assert "model.transformer.ff_out.weight" not in load_file(tmp_path / "model.safetensors")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path).logits(ids), network(ids).logits, atol=0, rtol=0)
    gathered = {name: tensor.clone() for name, tensor in network.state_dict().items()}  # as processes send them
    load_model(tmp_path).save(tmp_path / "gathered", state_dict=gathered)
    assert (
        load_file(tmp_path / "gathered" / "model.safetensors").keys()
        == load_file(tmp_path / "model.safetensors").keys()
    )
