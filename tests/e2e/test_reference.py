"""The reference is the model that training started from, held as the policy is: VRPO's first loss is log 2 exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import dllm_rl
from tests.e2e import runs

pytestmark = pytest.mark.slow
VRPO: dict[str, Any] = {"type": "vrpo", "num_draws": 2}


def _first_loss(output: Path) -> float:
    return float(next(line["loss"] for line in runs.metrics(output) if "loss" in line))


def _train(folder: Path, name: str, model: dict[str, Any], **train: Any) -> Path:
    tree = runs.recipe(folder, VRPO, name, **{"max_steps": 2, "save_strategy": "no", **train})
    tree["model"].update(model)
    dllm_rl.train(tree)
    return folder / name


def test_first_loss_is_log_two_in_every_precision_and_from_every_start(tmp_path: Path) -> None:
    folder = runs.workshop(tmp_path)
    lora = {"lora": {"r": 4, "lora_alpha": 8}}
    for name, model, train in (
        ("full", {}, {}),
        ("full_bf16", {}, {"bf16": True}),
        ("lora_bf16", lora, {"bf16": True, "learning_rate": 0.1}),
    ):
        assert _first_loss(_train(folder, name, model, **train)) == pytest.approx(math.log(2), abs=1e-7), name
    start = {"adapter": str(folder / "lora_bf16" / "final")}
    assert _first_loss(_train(folder, "from_adapter", start)) == pytest.approx(math.log(2), abs=1e-7)


def test_an_adapter_trained_by_two_processes_loads(tmp_path: Path) -> None:
    folder = runs.workshop(tmp_path)
    tree = runs.recipe(folder, {"type": "sft"}, "two", max_steps=2, per_device_train_batch_size=2)
    tree["model"] = {"path": "toy:llada", "dtype": "float32", "options": {"hidden": 32, "mlp": 64}, "lora": {"r": 4}}
    done = runs.launch(runs.write(folder, tree), launcher=runs.TWO_PROCESSES)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(file.name for file in (folder / "two" / "checkpoint-2").glob("rng_state*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    model = dllm_rl.load_model(folder / "two")
    assert any("lora" in name for name, _ in model.network.named_parameters())


def test_dropout_is_for_sft_alone(tmp_path: Path) -> None:
    from dllm_rl.errors import RecipeError

    folder = runs.workshop(tmp_path)
    dropout = {"lora": {"r": 4, "lora_dropout": 0.1}}
    tree = runs.recipe(folder, {"type": "sft"}, "sft", max_steps=1)
    tree["model"].update(dropout)
    assert dllm_rl.train(tree).final.is_dir()
    with pytest.raises(RecipeError, match="lora_dropout: must be 0 for vrpo"):
        _train(folder, "vrpo", dropout)
