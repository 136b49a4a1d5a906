"""Checkpoints of a run: which ones are whole, and loading their weights strictly."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

from dllm_rl.errors import CheckpointError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.load import load_model
from dllm_rl.training.spread import as_held

_STATE = "trainer_state.json"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_SPACE_TEXT = (
    "no space left",
    "file too large",
    "disk quota exceeded",
    "failed writing file",
    "writing to file failed",
)


def update_of(checkpoint: Path) -> int | None:
    """The update after which a checkpoint was made, or None if it is not whole.

    The trainer's state is the last file written, so a checkpoint that a crash cut short has none or half of one.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        update = state["global_step"]
    except (OSError, ValueError, KeyError):
        return None
    return update if isinstance(update, int) and checkpoint.name == f"checkpoint-{update}" else None


def planned_updates(checkpoint: Path) -> int:
    """How many updates the run that made a whole checkpoint was to make."""
    return int(json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["max_steps"])


def last_complete(output: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    whole = [(update, folder) for folder in output.glob("checkpoint-*") if (update := update_of(folder)) is not None]
    return max(whole)[1] if whole else None


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
    loaded = load_model(folder, dtype=str(network.dtype).removeprefix("torch.")).network.state_dict()
    held = network.state_dict()
    wanted = {name: tensor.shape for name, tensor in held.items()}
    if wrong := sorted({*wanted.items()} ^ {(name, tensor.shape) for name, tensor in loaded.items()}):
        raise CheckpointError(
            f"{folder}: the weights do not fit the recipe's model: {len(wrong)} are in one and not in the other, such "
            f"as {wrong[0][0]}; resume with the recipe it was made with"
        )
    with torch.no_grad():
        network.load_state_dict({name: as_held(loaded[name], held[name]) for name in sorted(held)}, strict=True)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that nothing more could be written."""
    while error is not None:
        text = str(error).lower()
        if (isinstance(error, OSError) and error.errno in _NO_SPACE) or any(part in text for part in _NO_SPACE_TEXT):
            return True
        error = error.__cause__ or error.__context__
    return False
