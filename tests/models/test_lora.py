"""Adapters: created, switched off for the reference, saved, and loaded with and without this library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dllm_rl.errors import CheckpointError, ModelContractError
from dllm_rl.models import DiffusionModel, load_model
from dllm_rl.models.lora import add_lora
from dllm_rl.toys.model import tiny_llada, write_tiny_llada

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_llada(tmp_path / "base", seed=5)


def logits(model: DiffusionModel) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(IDS)


def perturb(model: DiffusionModel) -> DiffusionModel:
    """Give the adapter something to say: a fresh one is the identity."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def trained(base: Path) -> DiffusionModel:
    return perturb(load_model(base, lora={"r": 4}))


def test_a_new_adapter_changes_nothing_and_alone_is_trainable(base: Path) -> None:
    model = load_model(base, lora={"r": 4})
    assert torch.equal(logits(model), logits(load_model(base)))
    names = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name for name in names)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_equal_arguments_give_equal_adapters_whatever_was_drawn_before(base: Path) -> None:
    first = load_model(base, lora={"r": 4}).network.state_dict()
    torch.rand(3)
    state = torch.get_rng_state()
    second = load_model(base, lora={"r": 4}).network.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_reach_the_adapter_through_scores(base: Path) -> None:
    model = trained(base)
    model.network.gradient_checkpointing_enable()
    model.network.train()
    model.token_logp(IDS, IDS, torch.ones_like(IDS, dtype=torch.bool)).sum().backward()
    for name, parameter in model.network.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == (".lora_" in name), name


def test_the_reference_is_the_base(base: Path) -> None:
    model = trained(base)
    policy = logits(model)
    with model.reference() as reference:
        assert torch.equal(logits(reference), logits(load_model(base)))
    assert torch.equal(logits(model), policy)
    assert not torch.allclose(policy, logits(load_model(base)))


@pytest.mark.parametrize("trainable", [True, False])
def test_the_reference_leaves_what_trains_as_it_was(base: Path, tmp_path: Path, trainable: bool) -> None:
    trained(base).save(tmp_path / "adapter")
    model = load_model(base, adapter=tmp_path / "adapter", trainable=trainable)
    before = {name: parameter.requires_grad for name, parameter in model.network.named_parameters()}
    assert any(before.values()) == trainable
    with pytest.raises(KeyError), model.reference():
        raise KeyError
    assert {name: parameter.requires_grad for name, parameter in model.network.named_parameters()} == before


def test_without_an_adapter_the_reference_is_a_frozen_copy() -> None:
    model = tiny_llada(seed=6)
    with pytest.raises(ModelContractError, match="make_reference_copy"), model.reference():
        pass
    start = logits(model)
    model.make_reference_copy()
    with torch.no_grad():
        model.network.lm_head.weight.mul_(2)
    with model.reference() as reference:
        assert torch.equal(logits(reference), start)
        assert not any(parameter.requires_grad for parameter in reference.network.parameters())
    assert not torch.equal(logits(model), start)


def test_saved_adapter_comes_back_every_way(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    folder = tmp_path / "adapter"
    model.save(folder)
    expected = logits(model)
    assert torch.equal(logits(load_model(folder)), expected)
    assert torch.equal(logits(load_model(base, adapter=folder)), expected)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, expected)
    assert load_model(folder).tokenizer.encode("a") == [66]
    assert not (folder / "model.safetensors").exists()
    card = (folder / "README.md").read_text()
    assert str(base) in card and "--official-names" in card


def test_adapter_tensors_are_named_as_in_transformers(base: Path, tmp_path: Path) -> None:
    trained(base).save(tmp_path / "adapter")
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight" in names
    assert len(names) == 2 * 2 * 7


def test_the_output_of_a_lora_run(base: Path, tmp_path: Path) -> None:
    model = trained(base)
    model.save(tmp_path / "run" / "final")
    assert torch.equal(logits(load_model(tmp_path / "run")), logits(model))
    assert torch.equal(logits(load_model(base, adapter=tmp_path / "run")), logits(model))


def test_a_base_made_in_code_is_kept_with_the_adapter(tmp_path: Path) -> None:
    start = tiny_llada(seed=7)
    expected = logits(start)
    model = perturb(DiffusionModel(add_lora(start.network, {"r": 2}), start.spec, start.tokenizer))
    model.save(tmp_path / "whole")
    loaded = load_model(tmp_path / "whole")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.spec == start.spec and loaded.tokenizer is not None
    with loaded.reference() as reference:
        assert torch.equal(logits(reference), expected)
    model.save(tmp_path / "whole")
    assert torch.equal(logits(load_model(tmp_path / "whole")), logits(model))


def test_gathered_tensors_are_what_is_written(tmp_path: Path) -> None:
    """As under sharding, where the network's own tensors are pieces."""
    start = tiny_llada(seed=7)
    model = perturb(DiffusionModel(add_lora(start.network, {"r": 2}), start.spec, start.tokenizer))
    expected = logits(model)
    gathered = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    for parameter in model.network.parameters():
        parameter.data.zero_()
    model.save(tmp_path / "whole", state_dict=gathered)
    assert torch.equal(logits(load_model(tmp_path / "whole")), expected)


def test_adapters_stay_float32_on_a_half_precision_base(base: Path, tmp_path: Path) -> None:
    model = perturb(load_model(base, dtype="bfloat16", lora={"r": 2}))
    kinds = {(".lora_" in name, parameter.dtype) for name, parameter in model.network.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    model.save(tmp_path / "adapter")
    assert torch.equal(logits(load_model(tmp_path / "adapter", dtype="bfloat16")), logits(model))


def test_dropout_needs_permission(base: Path) -> None:
    with pytest.raises(ModelContractError, match=r"lora_dropout is 0.1"):
        load_model(base, lora={"r": 2, "lora_dropout": 0.1})
    load_model(base, lora={"r": 2, "lora_dropout": 0.1}, lora_dropout_allowed=True)


def test_wrong_arguments_are_named(base: Path) -> None:
    with pytest.raises(ModelContractError, match="rnk"):
        load_model(base, lora={"rnk": 2})
    with pytest.raises(ModelContractError, match="no_such_layer"):
        load_model(base, lora={"target_modules": ["no_such_layer"]})
    with pytest.raises(ModelContractError, match="lm_head"):
        load_model(base, lora={"target_modules": ["lm_head", "q_proj"]})


def test_only_one_adapter(base: Path, tmp_path: Path) -> None:
    trained(base).save(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="both lora and adapter"):
        load_model(tmp_path / "adapter", lora={"r": 2})
    with pytest.raises(CheckpointError, match="is an adapter, and"):
        load_model(tmp_path / "adapter", adapter=tmp_path / "adapter")


def test_an_adapter_whose_base_is_gone(base: Path, tmp_path: Path) -> None:
    trained(base).save(tmp_path / "adapter")
    shutil.move(base, tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"made on .*base, which is not there"):
        load_model(tmp_path / "adapter")
    load_model(tmp_path / "moved", adapter=tmp_path / "adapter")


def test_an_adapter_that_lacks_tensors(base: Path, tmp_path: Path) -> None:
    trained(base).save(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"lacks .*down_proj\.lora_B"):
        load_model(base, adapter=tmp_path / "adapter")


def test_an_adapter_of_another_size(base: Path, tmp_path: Path) -> None:
    trained(base).save(tmp_path / "adapter")
    tiny_llada(hidden=32).save(tmp_path / "small")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(tmp_path / "small", adapter=tmp_path / "adapter")


def test_an_adapter_made_on_published_names_is_refused(base: Path, tmp_path: Path) -> None:
    """PEFT alone would load it with a warning, and leave half of its layers out."""
    trained(base).save(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    fields = json.loads(config.read_text()) | {"target_modules": ["q_proj", "attn_out"]}
    config.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="published module names"):
        load_model(base, adapter=tmp_path / "adapter")
