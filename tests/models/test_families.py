"""Dream, LLaDA-MoE, LLaDA2 and SDAR against their transcriptions: logits, names in files, configurations, adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from dllm_rl.errors import CheckpointError, ModelContractError
from dllm_rl.models import DiffusionModel, load_model
from dllm_rl.models.export import export_official
from dllm_rl.models.families import FAMILIES
from dllm_rl.models.lora import add_lora
from dllm_rl.toys import families as toys

from .published_families import CONFIGS, Published, write_published
from .test_lora import perturb

ALL = sorted(CONFIGS)
EXPERTS = ["llada_moe", "llada2", "sdar_moe"]
BLOCKS = {"llada2": 32, "sdar": 4, "sdar_moe": 8}
IDS = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(0))
TINY = {
    "dream": toys.tiny_dream,
    "llada_moe": toys.tiny_llada_moe,
    "llada2": toys.tiny_llada2,
    "sdar": toys.tiny_sdar,
    "sdar_moe": toys.tiny_sdar_moe,
}


@pytest.fixture
def folder(tmp_path: Path, family: str) -> Path:
    return write_published(tmp_path / family, family)


def blocks(size: int | None, length: int = 12, rows: int = 2) -> Tensor:
    """Who sees whom, [rows, length, length]: own block and those before; with None, everyone sees everyone."""
    block = torch.arange(length) // (size or length)
    return (block[:, None] >= block).expand(rows, length, length)


def about_each_token(family: str, logits: Tensor) -> Tensor:
    """Dream's output is about the next token; its published sampler reads the first position for the first token."""
    return torch.cat([logits[:, :1], logits[:, :-1]], 1) if family == "dream" else logits


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("size", [None, 3])
@torch.no_grad()
def test_logits_equal_the_transcription(folder: Path, family: str, size: int | None) -> None:
    expected = about_each_token(family, Published(family)(IDS, blocks(size)))
    found = load_model(folder).logits(IDS, blocks(size))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_who_is_seen_without_being_told(tmp_path: Path, family: str) -> None:
    size = 5 if family in BLOCKS else None
    folder = write_published(tmp_path / "model", family, **({"block_size": size} if size else {}))
    expected = about_each_token(family, Published(family)(IDS, blocks(size)))
    torch.testing.assert_close(load_model(folder).logits(IDS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_scores_and_gradients_equal_the_transcription(folder: Path, family: str) -> None:
    model, oracle = load_model(folder), Published(family)
    where = torch.zeros_like(IDS, dtype=torch.bool)
    where[:, 1::2] = True
    found = model.token_logp(IDS, IDS, where, blocks(4))
    logp = about_each_token(family, oracle(IDS, blocks(4))).log_softmax(-1).gather(2, IDS[..., None])[..., 0]
    torch.testing.assert_close(found, logp * where, atol=1e-5, rtol=1e-5)
    found.sum().backward()
    (logp * where).sum().backward()
    layer, published = model.network.model.layers[1], oracle.model.layers[1]
    pairs = [
        (model.network.model.embed_tokens.weight, oracle.model.get_submodule(oracle.embedding).weight),
        (layer.input_layernorm.weight, published.input_layernorm.weight),
    ]
    if family in EXPERTS:
        pairs.append((layer.mlp.gate.weight, published.mlp.gate.weight))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    assert ours.grad.abs().max() > 0.01


@pytest.mark.parametrize("family", ALL)
def test_files_survive_unchanged(folder: Path, family: str, tmp_path: Path) -> None:
    load_model(folder).save(tmp_path / "again")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", ALL)
def test_configurations_survive(folder: Path, family: str, tmp_path: Path) -> None:
    load_model(folder).save(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    changed = {"torch_dtype", "transformers_version", "rope_scaling", "norm_topk_prob"}
    published = {name: value for name, value in CONFIGS[family].items() if name not in changed}
    assert {name: written.get(name) for name in published} == published
    extra = set(written) - set(CONFIGS[family]) - {"dtype", "bos_token_id"}
    assert extra <= {"block_size"}  # what transformers' classes have and the published ones do not stays inside


@pytest.mark.parametrize("family", ALL)
def test_what_a_model_says_of_itself(folder: Path, family: str) -> None:
    spec = load_model(folder).spec
    assert (spec.mask_id, spec.eos_ids, spec.forbidden_ids) == (39, (37,), (39,))
    assert spec.logit_shift == (1 if family == "dream" else 0)
    assert spec.block_size == BLOCKS.get(family)


@pytest.mark.parametrize(
    ("family", "ids"),
    [
        ("dream", (151666, 151643)),
        ("llada_moe", (156895, 156892)),
        ("llada2", (156895, 156892)),
        ("sdar", (151669, 151643)),
        ("sdar_moe", (151669, 151643)),
    ],
)
def test_ids_that_a_released_configuration_leaves_out(family: str, ids: tuple[int, int]) -> None:
    family_entry = FAMILIES[CONFIGS[family]["architectures"][0]]
    fields = {name: value for name, value in CONFIGS[family].items() if not name.endswith("_token_id")}
    config = family_entry.network.config_class.from_dict(fields | {"vocab_size": 157184})
    spec = family_entry.spec(config, None)
    assert (spec.mask_id, spec.eos_ids) == (ids[0], (ids[1],))


@pytest.mark.parametrize("family", ["dream", "llada_moe"])
@torch.no_grad()
def test_a_head_size_of_null_is_the_usual_one(tmp_path: Path, family: str) -> None:
    folder = write_published(tmp_path / "model", family, head_dim=None)
    expected = about_each_token(family, Published(family)(IDS, blocks(None)))
    torch.testing.assert_close(load_model(folder).logits(IDS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_left_padding_changes_nothing(folder: Path, family: str) -> None:
    model = load_model(folder)
    expected = model.logits(IDS)
    for padding in (37, 5):
        padded = torch.cat([torch.full((2, 3), padding), IDS], 1)
        found = model.logits(padded, torch.arange(15).expand(2, 15) >= 3)[:, 3:]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_blocks_through_a_cache_equal_one_forward(folder: Path, family: str) -> None:
    network = load_model(folder).network
    cache, parts = DynamicCache(config=network.config), []
    for start in range(0, 12, 4):
        logits = network(
            input_ids=IDS[:, start : start + 4],
            attention_mask=blocks(4)[:, None, start : start + 4, : start + 4],
            position_ids=torch.arange(start, start + 4).expand(2, 4),
            past_key_values=cache,
            rows=torch.arange(8),
        )
        parts.append(logits.unflatten(0, (2, 4)))
    expected = Published(family)(IDS, blocks(4))
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", EXPERTS)
def test_routing_is_no_part_of_the_loss_and_experts_agree(folder: Path, family: str) -> None:
    """One grouped product gives what a loop over experts gives, and no auxiliary output is kept."""
    network = load_model(folder).network
    assert network.config._experts_implementation == "grouped_mm"
    with torch.no_grad():
        output = network(input_ids=IDS)
        network.set_experts_implementation("eager")
        torch.testing.assert_close(output.logits, network(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
    assert output.router_logits is None and getattr(output, "aux_loss", None) is None


@pytest.mark.parametrize("family", EXPERTS)
@torch.no_grad()
def test_experts_in_float64(folder: Path, family: str) -> None:
    """Not to 1e-10 everywhere: LLaDA2 routes in float32 whatever the weights are in, as published."""
    found = load_model(folder, dtype="float64").logits(IDS, blocks(3))
    expected = Published(family).double()(IDS, blocks(3))
    torch.testing.assert_close(found, expected, atol=1e-5 if family == "llada2" else 1e-6, rtol=0)


def test_the_padding_token_learns() -> None:
    for tiny in TINY.values():
        model = tiny()
        eos = model.spec.eos_ids[0]
        ids = torch.tensor([[5, eos, 7]])
        model.token_logp(ids, ids, torch.ones_like(ids, dtype=torch.bool)).sum().backward()
        assert model.network.model.embed_tokens.weight.grad[eos].abs().sum() > 0


@pytest.mark.parametrize("family", ALL)
def test_tiny_models_are_of_their_family_and_repeat(family: str, tmp_path: Path) -> None:
    model, same, other = (TINY[family](seed) for seed in (3, 3, 4))
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(model.logits(ids), same.logits(ids)) and torch.equal(model.logits(ids), loaded.logits(ids))
        assert not torch.allclose(model.logits(ids), other.logits(ids), atol=0.1)
    assert loaded.spec == model.spec and loaded.tokenizer.decode([1, 2]) == model.tokenizer.decode([1, 2])


# --- what is refused


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("dream", "use_sliding_window", True),
        ("dream", "use_mrope", True),
        ("dream", "attention_dropout", 0.1),
        ("dream", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("llada_moe", "qk_layernorm", False),
        ("llada_moe", "clip_qkv", 8.0),
        ("llada_moe", "norm_topk_prob", True),
        ("llada_moe", "moe_router_score_function", "sigmoid"),
        ("llada_moe", "moe_router_enable_expert_bias", True),
        ("llada_moe", "shared_expert_intermediate_size", 1024),
        ("llada_moe", "partial_rotary_factor", 0.5),
        ("llada_moe", "routed_scaling_factor", 2.5),
        ("llada_moe", "router_num_group", 8),
        ("llada_moe", "moe_layer_freq", [0, 1]),
        ("llada_moe", "output_router_logits", True),
        ("llada2", "use_bias", True),
        ("llada2", "use_qkv_bias", True),
        ("llada2", "use_qk_norm", False),
        ("llada2", "norm_head", True),
        ("llada2", "norm_topk_prob", False),
        ("llada2", "num_experts_per_tok", 1),
        ("llada2", "num_shared_experts", 0),
        ("llada2", "score_function", "softmax"),
        ("llada2", "moe_router_enable_expert_bias", False),
        ("llada2", "router_dtype", "bf16"),
        ("llada2", "embedding_dropout", 0.1),
        ("llada2", "output_dropout", 0.1),
        ("llada2", "output_router_logits", True),
        ("llada2", "num_nextn_predict_layers", 1),
        ("llada2", "use_sliding_window", True),
        ("sdar", "use_sliding_window", True),
        ("sdar", "attention_dropout", 0.1),
        ("sdar_moe", "output_router_logits", True),
        ("sdar_moe", "rope_scaling", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}),
    ],
)
def test_features_that_the_transformers_class_lacks_are_refused(family: str, field: str, value: object) -> None:
    config_class = FAMILIES[CONFIGS[family]["architectures"][0]].network.config_class
    name = {"rope_scaling": "rope_parameters", "num_shared_experts": "n_shared_experts"}.get(field, field)
    with pytest.raises(ModelContractError, match=name):
        config_class.from_dict(CONFIGS[family] | {field: value})


@pytest.mark.parametrize("family", ["llada_moe"])
def test_two_families_share_a_model_type(folder: Path, family: str) -> None:
    """Transformers' Auto classes take LLaDA-MoE's folder for LLaDA's; nothing comes of it but an error."""
    with pytest.raises(ModelContractError, match="LLaDAMoEModelLM"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert type(load_model(folder).network).__name__ == "LLaDAMoEModelLM"


@pytest.mark.parametrize("family", ["llada2"])
def test_layers_that_glm_would_ignore_are_unexpected(folder: Path, family: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.46.input_layernorm.weight"] = torch.ones(32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected.*layers\.46"):
        load_model(folder)


@pytest.mark.parametrize("family", ["llada2", "sdar_moe"])
def test_a_missing_expert_is_an_error(folder: Path, family: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.2.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"experts\.down_proj"):
        load_model(folder)


# --- adapters


def logits(model: DiffusionModel) -> Tensor:
    with torch.no_grad():
        return model.logits(IDS)


@pytest.mark.parametrize("family", ALL)
def test_an_adapter_comes_back_and_switches_off(folder: Path, family: str, tmp_path: Path) -> None:
    model = perturb(load_model(folder, lora={"r": 2}))
    model.save(tmp_path / "adapter")
    assert torch.equal(logits(load_model(tmp_path / "adapter")), logits(model))
    with model.reference() as reference:
        assert torch.equal(logits(reference), logits(load_model(folder)))
    assert not torch.allclose(logits(model), logits(load_model(folder)), atol=0.1)


@pytest.mark.parametrize("family", ["llada2"])
def test_a_base_made_in_code_is_kept_with_its_adapter(family: str, tmp_path: Path) -> None:
    tiny = toys.tiny_llada2(seed=2)
    model = perturb(DiffusionModel(add_lora(tiny.network, {"r": 2}), tiny.spec, tiny.tokenizer))
    model.save(tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter")
    assert loaded.spec == model.spec and torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("family", ALL)
def test_an_exported_adapter_gives_the_same_logits_on_the_published_model(
    folder: Path, family: str, tmp_path: Path
) -> None:
    model = perturb(load_model(folder, lora={"r": 2, "lora_alpha": 6}))
    model.save(tmp_path / "adapter")
    export_official(tmp_path / "adapter", tmp_path / "exported")
    plain = PeftModel.from_pretrained(Published(family), tmp_path / "exported")
    with torch.no_grad():
        found = about_each_token(family, plain(IDS, seen=blocks(3)))
        torch.testing.assert_close(found, model.logits(IDS, blocks(3)), atol=1e-5, rtol=1e-5)
    names = {name.removesuffix(".weight") for name, _ in plain.named_parameters() if ".lora_A." in name}
    assert not any(".experts." in name or "gate." in name or "lm_head" in name for name in names)
    assert len(names) == len(
        {name.partition(".lora_")[0] for name in load_file(tmp_path / "exported" / "adapter_model.safetensors")}
    )


@pytest.mark.parametrize("family", ["llada2"])
@pytest.mark.parametrize("more", [{"use_rslora": True}, {"target_modules": ["up_proj"]}, {"lora_alpha": 3}])
def test_the_scale_of_a_fused_adapter_stays(folder: Path, family: str, more: dict, tmp_path: Path) -> None:
    model = perturb(load_model(folder, lora={"r": 2, **more}))
    model.save(tmp_path / "adapter")
    export_official(tmp_path / "adapter", tmp_path / "exported")
    plain = PeftModel.from_pretrained(Published(family), tmp_path / "exported")
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS, seen=blocks(3)), model.logits(IDS, blocks(3)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llada2"])
def test_only_all_of_a_fused_projection_exports(folder: Path, family: str, tmp_path: Path) -> None:
    load_model(folder, lora={"r": 2, "target_modules": ["q_proj", "v_proj"]}).save(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="query_key_value"):
        export_official(tmp_path / "adapter", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("family", ["llada_moe"])
def test_adapters_on_experts_come_back_and_do_not_export(folder: Path, family: str, tmp_path: Path) -> None:
    model = perturb(load_model(folder, lora={"r": 2, "target_parameters": ["mlp.experts.down_proj"]}))
    model.save(tmp_path / "adapter")
    assert any(".experts." in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert torch.equal(logits(load_model(tmp_path / "adapter")), logits(model))
    with pytest.raises(CheckpointError, match="target_parameters"):
        export_official(tmp_path / "adapter", tmp_path / "exported")


@pytest.mark.parametrize("family", ["llada_moe"])
def test_a_target_that_names_nothing_is_refused(folder: Path, family: str) -> None:
    with pytest.raises(ModelContractError, match=r"\['gate_proj'\]"):
        load_model(folder, lora={"r": 2, "target_modules": ["q_proj", "gate_proj"]})


# --- Dream's tokenizer


def test_the_tokenizer_loads_without_running_code_of_the_checkpoint(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "dream", "dream", mask_token_id=7, eos_token_id=5, pad_token_id=5)
    specials = ["<|endoftext|>", "<|beginoftext|>", "<|mask|>"]
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    tokenizer_config = {
        "added_tokens_decoder": {str(5 + n): {"content": text, "special": True} for n, text in enumerate(specials)},
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "DreamTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    tokenizer = load_model(folder).tokenizer
    assert tokenizer("ab ab<|mask|>b")["input_ids"] == [2, 4, 7, 1]
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id) == (7, 5)
