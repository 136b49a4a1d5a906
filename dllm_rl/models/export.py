"""Rewrite what was saved so that the published modeling code, without this library, can load it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dllm_rl.errors import CheckpointError
from dllm_rl.models.families import Family, family_of
from dllm_rl.models.load import ADAPTER_CONFIG, base_config, load_model, resolve

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MODEL_CARD = """# LoRA adapter of a diffusion language model

Module names are those of the published modeling code (`trust_remote_code=True`): load it on that with plain PEFT.
"""
PEFT_PREFIX = "base_model.model."


def export_official(path: str | Path, out: str | Path) -> None:
    """Write the model or adapter at `path` to the new folder `out` under the names of the published modeling code.

    Full weights are saved that way already; they are checked by loading them and written again. Of an adapter, tensor
    names, `target_modules` and the model card change, numbers do not.

    Raises:
        CheckpointError: when `out` exists, or for an adapter that goes beyond LoRA on whole kinds of layers.
    """
    source, out = Path(resolve(path)), Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists; expected a new folder to export to")
    if not (source / ADAPTER_CONFIG).is_file():
        load_model(source, dtype="auto").save(out)
        return
    family = family_of(*base_config(source))
    tensors = {
        PEFT_PREFIX + published_name(name.removeprefix(PEFT_PREFIX), family): tensor
        for name, tensor in load_file(source / ADAPTER_WEIGHTS).items()
    }
    config = _published_config(json.loads((source / ADAPTER_CONFIG).read_text()), list(tensors), source)
    try:
        shutil.copytree(source, out, ignore=shutil.ignore_patterns(ADAPTER_WEIGHTS, ADAPTER_CONFIG, "README.md"))
        (out / "README.md").write_text(MODEL_CARD)
        save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (out / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise CheckpointError(f"{out} could not be written: {error}") from error


def published_name(name: str, family: Family) -> str:
    """The published name of a weight, or of an adapter's tensor on it."""
    for published, ours in family.weight_names:
        pattern = re.escape(ours).replace(r"\\1", r"(\d+)")
        if match := re.match(pattern, name):
            template = (
                published.removeprefix("^").replace(r"(\d+)", match[1] if match.groups() else "").replace("\\", "")
            )
            return template + name[match.end() :]
    raise CheckpointError(f"the tensor {name} has no published name; only adapters on {family.network.__name__} export")


def _published_config(config: dict[str, Any], tensors: list[str], source: Path) -> dict[str, Any]:
    """The adapter's configuration with published module names, the output head kept out.

    There a block's last layer and the output head are both called `ff_out`.
    """
    unsupported = [
        key
        for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "target_parameters")
        if config.get(key)
    ]
    if unsupported or not isinstance(config["target_modules"], list):
        raise CheckpointError(
            f"the adapter in {source} sets {unsupported or 'target_modules by a pattern'}, which has no translation; "
            "expected LoRA with a list of target_modules on all layers"
        )
    modules = {name.removeprefix(PEFT_PREFIX).split(".lora_")[0] for name in tensors}
    leaves = sorted({module.rpartition(".")[2] for module in modules})
    return {**config, "target_modules": leaves, "exclude_modules": ["transformer.ff_out"]}
