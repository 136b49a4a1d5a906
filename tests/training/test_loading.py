"""When one process reads for all, and what transformers is kept from meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments

from dllm_rl.errors import CheckpointError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.recipe.load import load_recipe
from dllm_rl.recipe.model import needs_weights_everywhere
from dllm_rl.toys.model import tiny_llada
from dllm_rl.training.loading import load_together, loading_whole, spread_from_one

ROOT = Path(__file__).resolve().parents[2]
FLAG = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def under(plugin: Any = None) -> TrainingArguments:
    arguments = TrainingArguments(use_cpu=True)
    arguments.deepspeed_plugin = plugin
    return arguments


def test_weights_are_spread_from_one_process_by_fsdp_and_the_third_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not spread_from_one(under())
    assert [spread_from_one(under(SimpleNamespace(zero_stage=stage))) for stage in (1, 2, 3)] == [False, False, True]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not spread_from_one(under())
    monkeypatch.setenv(FLAG, "false")
    assert not spread_from_one(under())
    monkeypatch.setenv(FLAG, "true")
    assert spread_from_one(under())


def test_models_are_loaded_whole_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FLAG, "true")
    with pytest.raises(CheckpointError), loading_whole(under()):
        assert os.environ[FLAG] == "false"
        raise CheckpointError("no")
    assert os.environ[FLAG] == "true"
    monkeypatch.delenv(FLAG)
    with loading_whole(under()):
        assert FLAG not in os.environ
    assert FLAG not in os.environ


@pytest.mark.parametrize(
    ("override", "everywhere"),
    [
        ("model.dtype=float32", False),
        ("model.lora={r: 4}", False),
        ("model.lora={r: 4, init_lora_weights: gaussian}", False),
        ("model.lora={r: 4, init_lora_weights: pissa}", True),
        ("model.path=toy:llada", True),
    ],
)
def test_some_models_are_made_from_weights_on_every_process(override: str, everywhere: bool) -> None:
    recipe = load_recipe(ROOT / "recipes/vrpo.yaml", [override])
    assert needs_weights_everywhere(recipe) == everywhere


def test_a_process_that_is_alone_reads() -> None:
    told: list[bool] = []

    def load(reads: bool) -> DiffusionModel:
        told.append(reads)
        return tiny_llada(hidden=16, mlp=16)

    for from_one in (False, True):
        load_together(load, from_one)
    assert told == [True, True]


@pytest.mark.parametrize("from_one", [False, True])
def test_what_cannot_be_read_is_told_as_it_is(from_one: bool) -> None:
    """From the process that reads too, once all have agreed."""

    def load(reads: bool) -> DiffusionModel:
        raise CheckpointError("lm_head.weight is missing")

    with pytest.raises(CheckpointError, match=r"^lm_head\.weight is missing$"):
        load_together(load, from_one)
