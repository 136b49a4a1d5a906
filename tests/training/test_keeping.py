"""Old checkpoints go only when a newer one is whole, and what is kept in memory does not grow with the run."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from dllm_rl.training.checkpoint import checkpoints, find_whole, update_of
from dllm_rl.training.keeping import KeepWhole
from tests.training.test_checkpoint import make


def _arguments(folder: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **more)


def _save(keep: KeepWhole, output: Path, update: int, **state: Any) -> None:
    make(output, update, finished=False)
    now = TrainerState(global_step=update, is_world_process_zero=True, **state)
    keep.on_save(_arguments(output), now, TrainerControl())


def _there(output: Path) -> list[int]:
    return [update_of(folder) for folder in checkpoints(output)]


def test_the_last_good_one_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    seen: list[tuple[list[int], Path | None]] = []
    keep = KeepWhole(lambda: seen.append((_there(tmp_path), find_whole(tmp_path).checkpoint)), limit=1)
    _save(keep, tmp_path, 2)
    _save(keep, tmp_path, 4)
    two, four = tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"
    assert seen == [([2], None), ([2], two), ([4, 2], two), ([4], four)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    make(tmp_path, 6, finished=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError):
            keep.on_save(
                _arguments(tmp_path), TrainerState(global_step=6, is_world_process_zero=True), TrainerControl()
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _there(tmp_path) == [6, 4] and find_whole(tmp_path).checkpoint == four


def test_as_many_as_asked_for_stay_and_the_best_one(tmp_path: Path) -> None:
    keep = KeepWhole(lambda: None, limit=2)
    for update in (2, 4, 6, 8, 10):
        _save(keep, tmp_path, update, best_model_checkpoint=str(tmp_path / "checkpoint-4") if update >= 4 else None)
    assert _there(tmp_path) == [10, 8, 4]
    for update in (12, 14):
        _save(KeepWhole(lambda: None), tmp_path, update)
    assert _there(tmp_path) == [14, 12, 10, 8, 4]
    _save(KeepWhole(lambda: None, limit=1), tmp_path, 9)  # a run that was told to go on from an old one keeps its own
    assert _there(tmp_path) == [14, 12, 10, 9]


def test_a_process_that_is_not_the_main_one_waits_and_writes_nothing(tmp_path: Path) -> None:
    waits: list[int] = []
    make(tmp_path, 2, finished=False)
    state = TrainerState(global_step=2, is_world_process_zero=False)
    KeepWhole(lambda: waits.append(1)).on_save(_arguments(tmp_path), state, TrainerControl())
    assert len(waits) == 2 and find_whole(tmp_path).checkpoint is None


def test_only_the_last_line_stays_in_memory_and_a_checkpoint_comes_after_its_line(tmp_path: Path) -> None:
    keep, state = KeepWhole(lambda: None), TrainerState(max_steps=10, save_steps=500, logging_steps=7)
    for update in range(5):
        state.log_history.append({"loss": float(update), "step": update})
        keep.on_log(_arguments(tmp_path), state, TrainerControl())
    assert state.log_history == [{"loss": 4.0, "step": 4}]
    for due in (False, True):
        control = TrainerControl(should_save=due)
        keep.on_step_end(_arguments(tmp_path), state, control)
        assert control.should_log == due
    keep.on_train_begin(_arguments(tmp_path, save_steps=3, logging_steps=2), state, TrainerControl())
    assert (state.save_steps, state.logging_steps) == (3, 2)
