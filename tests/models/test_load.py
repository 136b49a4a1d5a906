"""Loading is strict: what fits loads exactly, what does not is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import is_bitsandbytes_available

from dllm_rl.errors import CheckpointError, ModelContractError, RecipeError
from dllm_rl.models import load_model
from dllm_rl.models.load import four_bits
from dllm_rl.models.policy_head import HEADS, attach_head
from dllm_rl.toys.model import tiny_llada, write_tiny_llada

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_llada(tmp_path / "model", seed=4)


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(fields))


def logits(path: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(path).logits(IDS)


def test_what_was_saved_comes_back_bit_for_bit(folder: Path) -> None:
    original, loaded = tiny_llada(seed=4), load_model(folder)
    with torch.no_grad():
        assert torch.equal(loaded.logits(IDS), original.logits(IDS))
    assert loaded.spec == original.spec
    assert loaded.tokenizer.get_vocab() == original.tokenizer.get_vocab()
    assert not loaded.network.training and all(p.requires_grad for p in loaded.network.parameters())


def test_shards(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    model.network.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(tmp_path / "shards"), logits(folder))


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    load_model(folder).network.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    lost = sorted((tmp_path / "shards").glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load_model(tmp_path / "shards")


def test_precisions(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    edit_config(folder, dtype="bfloat16")
    assert load_model(folder, dtype="auto").network.dtype == torch.bfloat16
    assert load_model(folder).network.dtype == torch.float32
    rounded = load_file(folder / "model.safetensors")["model.transformer.wte.weight"]
    assert torch.equal(load_model(folder).network.model.embed_tokens.weight.bfloat16(), rounded)
    with pytest.raises(CheckpointError, match="float31"):
        load_model(folder, dtype="float31")


def test_half_precision_round_trip(folder: Path, tmp_path: Path) -> None:
    half = load_model(folder, dtype="bfloat16")
    half.save(tmp_path / "half")
    again = load_model(tmp_path / "half", dtype="auto")
    assert again.network.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(again.logits(IDS), half.logits(IDS))


LOST = "model.transformer.blocks.1.ff_out.weight"


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(LOST))
    with pytest.raises(CheckpointError, match=r"missing.*layers\.1\.mlp\.down_proj"):
        load_model(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.transformer.blocks.0.q_norm.weight": torch.ones(4)}))
    with pytest.raises(CheckpointError, match=r"unexpected.*q_norm"):
        load_model(folder)


def test_a_tensor_of_another_size_is_named(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({LOST: torch.ones(64, 100)}))
    with pytest.raises(CheckpointError, match=r"mismatched.*down_proj"):
        load_model(folder)


def test_a_tied_head_of_its_own_is_refused(folder: Path) -> None:
    embedding = load_file(folder / "model.safetensors")["model.transformer.wte.weight"]
    edit_config(folder, weight_tying=True)
    with pytest.raises(CheckpointError, match="ties the output head"):
        load_model(folder)
    edit_weights(folder, lambda tensors: tensors.update({"model.transformer.ff_out.weight": embedding.clone()}))
    assert torch.equal(load_model(folder).network.lm_head.weight, embedding)
    edit_weights(folder, lambda tensors: tensors.pop("model.transformer.ff_out.weight"))
    assert torch.equal(load_model(folder).network.lm_head.weight, embedding)


def test_a_device_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(RecipeError, match="device is 'nowhere'"):
        load_model(folder, device="nowhere")


def test_a_truncated_file_is_an_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("path", ["nowhere/at/all", "./nowhere", "/nowhere/at/all"])
def test_a_missing_folder_is_named(path: str) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_model(path)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path)


def test_an_unknown_architecture_is_named(folder: Path) -> None:
    edit_config(folder, architectures=["LlamaForCausalLM"])
    with pytest.raises(CheckpointError, match=r"'LlamaForCausalLM'.*LLaDAModelLM"):
        load_model(folder)


def test_without_a_tokenizer(folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()
    model = load_model(folder)
    assert model.tokenizer is None
    assert model.spec == tiny_llada().spec


def test_a_tokenizer_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    for file in folder.glob("token*"):
        shutil.move(file, tmp_path / "tokens" / file.name)
    assert load_model(folder, tokenizer=tmp_path / "tokens").tokenizer.encode("ab") == [66, 67]
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_model(folder, tokenizer=folder)


def test_ids_that_the_tokenizer_lacks_are_forbidden(folder: Path) -> None:
    """Twenty more rows of the embedding than tokens."""
    size = len(tiny_llada().tokenizer)

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.transformer.wte.weight", "model.transformer.ff_out.weight"):
            tensors[name] = torch.cat([tensors[name], torch.zeros(20, 64)])

    edit_weights(folder, widen)
    edit_config(folder, vocab_size=size + 20, embedding_size=size + 20)
    model = load_model(folder)
    assert model.spec.forbidden_ids == (model.spec.mask_id, *range(size, size + 20))


@pytest.mark.parametrize("change", [{"mask_token_id": None}, {"mask_token_id": 102}, {"eos_token_id": -1}])
def test_special_ids_must_exist(folder: Path, change: dict[str, object]) -> None:
    edit_config(folder, **change)
    with pytest.raises(ModelContractError, match=next(iter(change))):
        load_model(folder)


def test_the_mask_cannot_end_a_text(folder: Path) -> None:
    edit_config(folder, eos_token_id=101)
    with pytest.raises(ModelContractError, match="both the mask and an EOS"):
        load_model(folder)


def test_a_tokenizer_with_more_ids_than_rows_belongs_elsewhere(folder: Path) -> None:
    (folder / "more").mkdir()
    tokenizer = tiny_llada().tokenizer
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(folder / "more")
    with pytest.raises(ModelContractError, match="another checkpoint"):
        load_model(folder, tokenizer=folder / "more")


def test_the_output_of_a_run(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    with pytest.raises(CheckpointError, match="final"):
        load_model(run)
    shutil.copytree(folder, run / "final")
    assert torch.equal(logits(run), logits(folder))


def test_attention_implementation_is_passed_on(folder: Path) -> None:
    assert load_model(folder, attn_implementation="eager").config._attn_implementation == "eager"


def test_only_one_kind_of_quantisation(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="nf4"):
        load_model(folder, quantization="int3")


def test_quantisation_without_a_gpu_or_its_library_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=r"^quantization nf4 needs a GPU, .* on 'cpu'; drop quantization$"):
        load_model(folder, quantization="nf4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if not is_bitsandbytes_available():
        with pytest.raises(RecipeError, match=r"^quantization nf4 needs bitsandbytes; .*drop quantization$"):
            load_model(folder, quantization="nf4", device="cuda:0")


@pytest.mark.parametrize("head", HEADS)
def test_quantisation_leaves_the_output_head_and_policy_heads_alone(head: str) -> None:
    """As transformers decides it, module by module."""
    network = tiny_llada().network
    attach_head(network, {"type": head, **({"features": 3, "actions": 2} if head == "schedule" else {})})
    skipped = HfQuantizer.get_modules_to_not_convert(network, four_bits().llm_int8_skip_modules)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    converted = {name.split(".")[0] for name in linear if should_convert_module(name, skipped)}
    assert converted == {"model"} and {name.split(".")[0] for name in linear} == {"model", "lm_head", head}
