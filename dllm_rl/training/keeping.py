"""Makes each checkpoint whole, and drops old ones only when a newer one is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dllm_rl.training.checkpoint import checkpoints, update_of
from dllm_rl.training.manifest import MANIFEST, sync, write_manifest


class KeepWhole(TrainerCallback):
    """Writes a checkpoint's manifest when every process has written its files, then drops what is too old.

    transformers drops old checkpoints before the new one is on the disk, so its `save_total_limit` must be off.

    Args:
        everyone: waits for all processes.
        limit: whole checkpoints to keep; None or 0: all of them. The one that is best by `metric_for_best_model` stays.
        beside: files that belong to the state of the run, on the disk no later than a checkpoint is.
    """

    def __init__(self, everyone: Callable[[], None], limit: int | None = None, beside: tuple[Path, ...] = ()) -> None:
        self.everyone, self.limit, self.beside = everyone, limit, beside

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint holds the intervals of the run that made it; those asked for now count."""
        state.compute_steps(args, state.max_steps)  # type: ignore[no-untyped-call]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """What was gathered for the next line of metrics is not part of a checkpoint, so it is logged before."""
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """metrics.jsonl keeps every line; kept in memory and in each checkpoint too, they would grow with the run."""
        del state.log_history[:-1]

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.everyone()
        if state.is_world_process_zero:
            for file in self.beside:
                sync(file)
            assert args.output_dir is not None
            output = Path(args.output_dir)
            write_manifest(output / f"checkpoint-{state.global_step}", state.global_step)
            self._drop_old(output, state)
        self.everyone()

    def _drop_old(self, output: Path, state: TrainerState) -> None:
        if not self.limit or self.limit < 0:
            return
        best = state.best_model_checkpoint and Path(state.best_model_checkpoint).name
        older = [f for f in checkpoints(output) if update_of(f) < state.global_step and f.name != best]
        for folder in older[self.limit - 1 :]:
            (folder / MANIFEST).unlink(missing_ok=True)  # first: a half deleted one is not taken for a whole one
            shutil.rmtree(folder)
