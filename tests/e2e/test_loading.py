"""Who reads a checkpoint that is to be spread over processes, what it costs the others, and what a bad one says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.toys.model import tiny_llada
from tests.e2e import runs

pytestmark = pytest.mark.slow
WEIGHTS = "model.safetensors"
SMALL: dict[str, int] = {"hidden": 32, "mlp": 64, "max_positions": 64}
BIG: dict[str, int] = {"hidden": 512, "mlp": 2048, "layers": 6, "max_positions": 64}


def lay_out(folder: Path, name: str, model: DiffusionModel) -> None:
    """Two machines' folders of a model, of which the second has everything but the weights."""
    first, second = (folder / "models" / name / rank for rank in "01")
    model.save(first)
    shutil.copytree(first, second)
    (second / WEIGHTS).unlink()


def prepare(folder: Path) -> tuple[list[Path], int]:
    """Recipes of full fine-tuning with a frozen copy, and the bytes of the big model in float32."""
    big, small, deeper = tiny_llada(**BIG), tiny_llada(**SMALL), tiny_llada(layers=3, **SMALL)
    size = 4 * sum(weight.numel() for weight in big.network.parameters())
    big.network.bfloat16()
    for name, model in {"warm": small, "broken": small, "apart": small, "gone": small, "big": big}.items():
        lay_out(folder, name, model)
    models = folder / "models"
    tensors = load_file(models / "broken/0" / WEIGHTS)
    del tensors["model.transformer.blocks.1.q_proj.weight"]
    save_file(tensors, models / "broken/0" / WEIGHTS, {"format": "pt"})
    deeper.save(models / "apart/1")
    shutil.rmtree(models / "gone/1")
    return [recipe(folder, name) for name in ("warm", "broken", "apart", "gone", "big")], size


def recipe(folder: Path, name: str) -> Path:
    once = {"max_steps": 1, "per_device_train_batch_size": 1, "save_strategy": "no"}
    return runs.write(folder, runs.recipe(folder, {"type": "vrpo", "num_draws": 1}, f"out-{name}", **once), name)


def said(folder: Path, name: str) -> str:
    """The one line that both processes ended with."""
    first, second = ((folder / f"{name}-{rank}.error").read_text() for rank in "01")
    assert first == second and "\n" not in first
    return first


@pytest.mark.parametrize(("file", "most"), [("zero3", 1.8), ("fsdp2", 2.2)])
def test_one_process_reads_and_none_holds_the_model_twice(file: str, most: float, tmp_path: Path) -> None:
    """Process 1 has no weights to read. The small run before has every library imported when memory is counted."""
    if file == "zero3":
        pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    folder = runs.workshop(tmp_path)
    recipes, size = prepare(folder)
    launcher = ["--config_file", str(runs.ROOT / f"recipes/accelerate/{file}.yaml"), "--num_processes", "2"]
    done = runs.run([*runs.ACCELERATE, *launcher, "-m", "tests.e2e.loaded_each", *map(str, recipes)])
    assert done.returncode == 0, done.stderr[-5000:]
    reader, other = (json.loads((folder / f"big-{rank}.json").read_text()) / size for rank in "01")
    print(f"{file}: process 0 grew by {reader:.2f} models, process 1 by {other:.2f}")
    assert (folder / "out-big/final" / WEIGHTS).is_file()
    assert other < 1.45, "a share of the model and one of the copy are half a model each"
    assert reader < most, "the model while it is spread, and the shares, which FSDP makes before it lets go of it"
    assert "do not fit its config.json" in said(folder, "broken")
    assert "{'missing': ['model.layers.1.self_attn.q_proj.weight']}" in said(folder, "broken")
    assert "processes made different networks" in said(folder, "apart")
    assert "there is no folder" in said(folder, "gone")
