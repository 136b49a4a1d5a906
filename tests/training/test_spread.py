"""What a checkpoint says of the layout of its run, who may go on from it, and what FSDP takes for a layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from transformers import TrainingArguments

from dllm_rl.algorithms import SFT
from dllm_rl.errors import CheckpointError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.lora import add_lora
from dllm_rl.toys import families
from dllm_rl.toys.model import tiny_llada
from dllm_rl.training.data import Example
from dllm_rl.training.source import ExampleSource
from dllm_rl.training.spread import RecordSpread, Spread, refuse_unfit
from dllm_rl.training.trainer import DiffusionTrainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a real trainer, which says that it was spread as it is told."""
    folder = tmp_path_factory.mktemp("run")
    tiny = tiny_llada(hidden=16, mlp=16, layers=1)
    rows = [Example([40 + i], ([50 + i, 51, 97],)) for i in range(4)]
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, disable_tqdm=True, report_to="none", max_steps=1, save_steps=1
    )
    source = ExampleSource(rows, 0, 97, torch.device("cpu"))
    trainer = DiffusionTrainer(model=tiny, algorithm=SFT(), source=source, args=arguments, views_per_forward=8)
    trainer.add_callback(RecordSpread(Spread("zero2", processes=4, rows_per_update=8)))
    trainer.train()
    return folder / "checkpoint-1"


def test_the_layout_that_made_a_checkpoint_goes_on_from_it(checkpoint: Path) -> None:
    refuse_unfit(checkpoint, Spread("zero2", processes=4, rows_per_update=8))


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (Spread("zero2", 4, 16), r"updates saw 8 rows each and this run's would see 16 \(4 processes\).*must give 8"),
        (Spread("zero2", 2, 8), "kept as zero2 by 4 processes and this run keeps it as zero2 in 2.*weights alone"),
        (Spread("zero3", 4, 8), "kept as zero2 by 4 processes and this run keeps it as zero3 in 4"),
        (Spread("whole", 4, 8), "kept as zero2 by 4 processes and this run keeps it as whole in 4"),
    ],
)
def test_others_are_told_what_differs(checkpoint: Path, here: Spread, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        refuse_unfit(checkpoint, here)


@pytest.mark.parametrize("form", ["whole", "fsdp2"])
def test_what_is_kept_whole_goes_on_in_any_number_of_processes(form: str, tmp_path: Path) -> None:
    recorded = RecordSpread(Spread(form, processes=2, rows_per_update=8)).state()
    (tmp_path / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": {"RecordSpread": recorded}}))
    for processes in (1, 2, 4):
        refuse_unfit(tmp_path, Spread(form, processes, rows_per_update=8))


def test_a_checkpoint_that_says_nothing_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text("{}")
    refuse_unfit(tmp_path, Spread("whole", processes=2, rows_per_update=8))


MAKERS: list[Callable[..., DiffusionModel]] = [
    tiny_llada,
    families.tiny_dream,
    families.tiny_llada_moe,
    families.tiny_llada2,
    families.tiny_sdar,
    families.tiny_sdar_moe,
]


@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["full", "lora"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_fsdp_finds_the_layers_of_every_family(make: Callable[..., DiffusionModel], lora: Any) -> None:
    """Without a layer class named in fsdp2.yaml: else every forward would gather the network as one piece."""
    network: Any = make().network if lora is None else add_lora(make().network, lora)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(network)
    is_unit = fsdp2_prepare_auto_wrap_policy(plugin, network)
    assert is_unit is not None
    assert sum(map(is_unit, network.modules())) == network.config.num_hidden_layers
