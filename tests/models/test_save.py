"""Saving: published names on disk, and nothing lost when writing fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm_rl.errors import CheckpointError
from dllm_rl.models import DiffusionModel, load_model
from dllm_rl.models.lora import add_lora
from dllm_rl.toys.model import tiny_llada, write_tiny_llada

IDS = torch.arange(40).reshape(2, 20)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_names_on_disk_are_the_published_ones(tmp_path: Path) -> None:
    names = set(load_file(write_tiny_llada(tmp_path / "m") / "model.safetensors"))
    layer = {"attn_norm", "ff_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}
    expected = {f"model.transformer.blocks.{n}.{leaf}.weight" for n in range(2) for leaf in layer}
    expected |= {f"model.transformer.{leaf}.weight" for leaf in ("wte", "ln_f", "ff_out")}
    assert names == expected
    fields = json.loads((tmp_path / "m" / "config.json").read_text())
    assert fields["architectures"] == ["LLaDAModelLM"] and fields["model_type"] == "llada"
    assert (fields["d_model"], fields["n_layers"], fields["mask_token_id"]) == (64, 2, 101)


def test_a_published_checkpoint_survives_unchanged(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "llada_tiny_gqa"
    load_model(golden).save(tmp_path / "again")
    before, after = (load_file(folder / "model.safetensors") for folder in (golden, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_saving_over_other_weights_leaves_none_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tiny_llada(seed=1).network.save_pretrained(folder, max_shard_size="60KB")
    (folder / "notes.txt").write_text("kept")
    model = tiny_llada(seed=2)
    model.save(folder)
    assert not list(folder.glob("model-*")) and not (folder / "model.safetensors.index.json").exists()
    assert (folder / "notes.txt").read_text() == "kept"
    with torch.no_grad():
        assert torch.equal(load_model(folder).logits(IDS), model.logits(IDS))
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_gathered_tensors_are_what_is_written(tmp_path: Path) -> None:
    model, other = tiny_llada(seed=1), tiny_llada(seed=2)
    model.save(tmp_path / "m", state_dict=other.network.state_dict())
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "m").logits(IDS), other.logits(IDS))


def test_weights_that_are_elsewhere_are_not_saved_as_nothing(tmp_path: Path) -> None:
    folder = write_tiny_llada(tmp_path / "m", seed=1)
    before, model = contents(folder), tiny_llada(seed=2)
    whole = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model.network.model.layers[0].mlp.up_proj.weight.data = torch.empty(0)  # as under ZeRO's third stage
    with pytest.raises(CheckpointError, match=r"1 tensors .* empty, such as .*blocks.0.up_proj.weight"):
        model.save(folder)
    assert contents(folder) == before
    model.save(folder, state_dict=whole)
    assert contents(folder)["model.safetensors"] != before["model.safetensors"]


FILL_THE_DISK = """
import resource, sys
from dllm_rl.errors import CheckpointError
from dllm_rl.toys.model import tiny_llada
model = tiny_llada(seed=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    model.save(sys.argv[1])
except CheckpointError as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_save_as_it_was(tmp_path: Path) -> None:
    folder = write_tiny_llada(tmp_path / "m", seed=1)
    before = contents(folder)
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(folder)], capture_output=True, text=True, check=True, timeout=300
    )
    assert "refused:" in done.stdout and "could not be written" in done.stdout
    assert contents(folder) == before
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for target in (tmp_path / "file" / "model", tmp_path / "file"):
        with pytest.raises(CheckpointError, match="could not be written"):
            tiny_llada().save(target)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_base_that_was_not_gathered_is_not_written_in_part(tmp_path: Path) -> None:
    """DeepSpeed's third stage gathers the adapter alone, and nobody else has a base that was made in code."""
    network = add_lora(tiny_llada().network, {"r": 2})
    trained = {name: tensor for name, tensor in network.state_dict().items() if ".lora_" in name}
    model = DiffusionModel(network, tiny_llada().spec)
    with pytest.raises(CheckpointError, match=r"21 of its weights.*were not gathered.*write it to a folder first"):
        model.save(tmp_path / "run", state_dict=trained)
    assert not (tmp_path / "run").exists()
    model.save(tmp_path / "run", state_dict=network.state_dict())
    torch.testing.assert_close(load_model(tmp_path / "run").logits(IDS), model.logits(IDS), atol=0, rtol=0)
