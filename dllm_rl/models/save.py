"""Write a model so that the published modeling code can read it, and so that a failed write loses nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dllm_rl.errors import CheckpointError
from dllm_rl.models.policy_head import write_settings

BASE = "base"
"""Subfolder for the base of an adapter that no path or hub id leads to."""
WEIGHT_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_config.json",
)

MODEL_CARD = """---
library_name: peft
base_model: {base}
---
# LoRA adapter of a diffusion language model

Trained with `dllm_rl`. Module names are those of transformers, not those of the published modeling code. To load it:

```python
import dllm_rl

model = dllm_rl.load_model({base!r}, adapter="this/folder")
```

or with plain PEFT on the same network:

```python
from peft import PeftModel

network = PeftModel.from_pretrained(dllm_rl.load_model({base!r}).network, "this/folder")
```

For the published modeling code, rewrite the names first: `dllm-rl export --official-names`.
"""


def save(network: Any, tokenizer: Any | None, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write weights under their published names, the published configuration and the tokenizer.

    A network with LoRA writes its adapter alone, under transformers' names; its base too when that was made in code and
    could not be found again. Everything is written beside `folder` first: when that fails, `folder` is as it was.

    Args:
        state_dict: the whole network's tensors when they had to be gathered from several processes.

    Raises:
        CheckpointError: when the disk or the folder refuses the files, or a tensor is empty because its values are
            spread over processes.
    """
    scratch = folder.with_name(f".{folder.name}.writing")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        _write(network, tokenizer, scratch, state_dict)
        _refuse_empty(scratch)
        _move(scratch, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} could not be written: {error}. What it held before is unchanged; free space or choose another "
            "folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(network: Any, tokenizer: Any | None, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
    if isinstance(network, PeftModel):
        base = network.get_base_model()
        # Embeddings never change size here; "auto" would ask the hub about it.
        network.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
        write_settings(base, folder)
        (folder / "README.md").write_text(MODEL_CARD.format(base=base.name_or_path or "this/folder"))
        if not base.name_or_path:
            _write_base(network, folder / BASE, state_dict)
    else:
        network.save_pretrained(str(folder), state_dict=_each_once(network, state_dict))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))


def _write_base(network: PeftModel, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
    """The network under the adapter, as if it had never been wrapped."""
    tensors: dict[str, Tensor] = network.state_dict() if state_dict is None else state_dict
    below = {_unwrapped(name): tensor for name, tensor in tensors.items() if _is_of_base(name)}
    base: Any = network.get_base_model()
    if missing := _base_names(network) - below.keys():
        raise CheckpointError(
            f"the base under the adapter was made in code and cannot be written: {len(missing)} of its weights, such "
            f"as {min(missing)}, were not gathered (DeepSpeed's third stage gathers what is trained); write it to a "
            "folder first and give that as model.path"
        )
    base.save_pretrained(str(folder), state_dict=_each_once(base, below))


def _unwrapped(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")


def _is_of_base(name: str) -> bool:
    return ".lora_" not in name and ".modules_to_save." not in name


def _base_names(network: PeftModel) -> set[str]:
    """Names of the tensors of the network under the adapter, as if it had never been wrapped."""
    return {_unwrapped(name) for name in network.state_dict() if _is_of_base(name)}


def _each_once(network: Any, state_dict: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Without the second name of a tensor: a head tied to the embedding, once gathered, looks like one of its own."""
    if state_dict is None:
        return None
    return {name: tensor for name, tensor in state_dict.items() if name not in network.all_tied_weights_keys}


def _refuse_empty(folder: Path) -> None:
    """DeepSpeed's third stage leaves empty tensors in the network, even in a single process."""
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            empty = [name for name in tensors.keys() if 0 in tensors.get_slice(name).get_shape()]  # noqa: SIM118
        if empty:
            raise CheckpointError(
                f"{len(empty)} tensors to be written are empty, such as {empty[0]}: their values are spread over "
                "processes. Gather them and pass them as state_dict"
            )


def _move(scratch: Path, folder: Path) -> None:
    """Put the finished files in place; into a folder that exists file by file, then drop weights they replace."""
    if not folder.exists():
        scratch.rename(folder)
        return
    written = {file.name for file in scratch.iterdir()}
    for name in sorted(written):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        os.replace(scratch / name, folder / name)
    for pattern in WEIGHT_FILES:
        for stale in folder.glob(pattern):
            if stale.name not in written:
                stale.unlink()
