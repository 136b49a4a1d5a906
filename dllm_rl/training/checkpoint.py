"""Checkpoints of a run: which ones are whole, and loading their weights strictly."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch.distributed.tensor import DTensor

from dllm_rl.errors import CheckpointError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model
from dllm_rl.training.loading import load_together
from dllm_rl.training.manifest import is_finished, problem_of
from dllm_rl.training.spread import as_held

_STATE = "trainer_state.json"
_NO_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_NO_WRITING_TEXT = (
    "no space left",
    "file too large",
    "disk quota exceeded",
    "read-only file system",
    "input/output error",
    "failed writing file",
    "writing to file failed",
)


@dataclass(frozen=True, slots=True)
class Found:
    """Where a run can go on from."""

    checkpoint: Path | None
    """The newest whole checkpoint."""
    broken: dict[Path, str] = field(default_factory=dict)
    """Newer ones that are not whole, and what is wrong with each."""


def find_whole(output: Path) -> Found:
    """The newest checkpoint of a run of which every file is what was written; newer ones are named, never used."""
    broken: dict[Path, str] = {}
    for folder in checkpoints(output):
        problem = problem_of(folder)
        if problem is None:
            return Found(folder, broken)
        broken[folder] = problem
    return Found(None, broken)


def checkpoints(output: Path) -> list[Path]:
    """Folders of a run's checkpoints, whole or not, newest first."""
    folders = [folder for folder in output.glob("checkpoint-*") if folder.is_dir()]
    numbered = [folder for folder in folders if folder.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(numbered, key=update_of, reverse=True)


def update_of(checkpoint: Path) -> int:
    """The update after which a checkpoint was made; its name says it."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def clear_broken(output: Path, found: Found) -> None:
    """Make room for the checkpoints that will be written again.

    One that was never finished goes; one that was whole once is set aside, since somebody may want to look at it.
    """
    for folder in found.broken:
        if is_finished(folder):
            aside = folder.with_name(f"broken-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        else:
            shutil.rmtree(folder)
    for scratch in output.glob(".*.writing"):
        shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()


def planned_updates(checkpoint: Path) -> int:
    """How many updates the run that made a whole checkpoint was to make."""
    return int(json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["max_steps"])


def load_weights(model: DiffusionModel, folder: str | Path) -> None:
    """Put a checkpoint's weights into a model that already has the right shape.

    Raises:
        CheckpointError: the folder holds the other kind of weights, or a weight is missing or unexpected.
    """
    network: Any = model.network
    adapter = (Path(folder) / "adapter_config.json").is_file()
    if adapter != isinstance(network, PeftModel):
        raise CheckpointError(
            f"{folder} holds {'an adapter' if adapter else 'full weights'}, the recipe trains "
            f"{'full weights' if adapter else 'an adapter'}; resume with the recipe it was made with"
        )
    if adapter:
        found = load_peft_weights(str(folder))
        expected = get_peft_model_state_dict(network)
        if found.keys() != expected.keys():
            wrong = sorted(found.keys() ^ expected.keys())
            raise CheckpointError(
                f"{folder}: the adapter does not fit the recipe's: {len(wrong)} weights are in one and not in the "
                f"other, such as {wrong[0]}; resume with the recipe it was made with"
            )
        set_peft_model_state_dict(network, {name: as_held(found[name], expected[name]) for name in sorted(found)})
        return
    held, dtype = network.state_dict(), str(network.dtype).removeprefix("torch.")
    shared = any(isinstance(tensor, DTensor) for tensor in held.values())
    loaded = load_together(lambda reads: load_model(folder, dtype=dtype, reads=reads), shared).network.state_dict()
    wanted = {name: tensor.shape for name, tensor in held.items()}
    if wrong := sorted({*wanted.items()} ^ {(name, tensor.shape) for name, tensor in loaded.items()}):
        raise CheckpointError(
            f"{folder}: the weights do not fit the recipe's model: {len(wrong)} are in one and not in the other, such "
            f"as {wrong[0][0]}; resume with the recipe it was made with"
        )
    with torch.no_grad():
        for name in sorted(held):
            held[name].copy_(as_held(loaded[name], held[name]))


def could_not_write(error: BaseException | None, output: Path) -> bool:
    """Whether an error, or what caused it, says that a run's folder takes nothing more."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_WRITING:
            return True
        if isinstance(error, PermissionError) and str(error.filename).startswith(str(output)):
            return True
        if any(part in str(error).lower() for part in _NO_WRITING_TEXT):
            return True
        error = error.__cause__ or error.__context__
    return False
