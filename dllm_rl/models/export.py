"""Rewrite what was saved so that the published modeling code, without this library, can load it; or merge it first."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dllm_rl.errors import CheckpointError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.families import Family, family_of
from dllm_rl.models.load import ADAPTER_CONFIG, base_config, load_model, resolve
from dllm_rl.models.policy_head import POLICY_HEAD, read_settings

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
        CheckpointError: when `out` exists, for a policy head, which the published modeling code would leave out, or for
            an adapter that goes beyond LoRA on whole kinds of layers.
    """
    source, out = Path(resolve(path)), Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists; expected a new folder to export to")
    if not (source / ADAPTER_CONFIG).is_file():
        model = load_model(source, dtype="auto")
        _refuse_policy_head(model.config.to_dict().get(POLICY_HEAD), source)
        model.save(out)
        return
    fields, base = base_config(source)
    _refuse_policy_head(read_settings(source) or fields.get(POLICY_HEAD), source)
    family = family_of(fields, base)
    config = json.loads((source / ADAPTER_CONFIG).read_text())
    _refuse_untranslatable(config, source)
    tensors = load_file(source / ADAPTER_WEIGHTS)
    if family.fused is not None:
        tensors, config = family.fused.fuse(tensors), family.fused.fuse_config(config)
    tensors = {
        PEFT_PREFIX + published_name(name.removeprefix(PEFT_PREFIX), family): tensor for name, tensor in tensors.items()
    }
    modules = {name.split(".lora_")[0] for name in tensors}
    config["target_modules"] = sorted({module.rpartition(".")[2] for module in modules})
    config["exclude_modules"] = family.not_adapted
    try:
        shutil.copytree(source, out, ignore=shutil.ignore_patterns(ADAPTER_WEIGHTS, ADAPTER_CONFIG, "README.md"))
        (out / "README.md").write_text(MODEL_CARD)
        save_file(tensors, out / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (out / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise CheckpointError(f"{out} could not be written: {error}") from error


def export_merged(path: str | Path, out: str | Path) -> None:
    """Write the adapter at `path` added to its base, as one model, to the new folder `out`.

    Sums are rounded to the base's own dtype, so in bfloat16 the merged model is not quite base plus adapter.

    Raises:
        CheckpointError: when `out` exists, or `path` holds no adapter.
    """
    source, out = Path(resolve(path)), Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists; expected a new folder to export to")
    if not (source / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{source} holds no adapter to merge; expected a run with LoRA, or an adapter")
    model = load_model(source, dtype="auto")
    DiffusionModel(model.network.merge_and_unload(), model.spec, model.tokenizer).save(out)  # type: ignore[operator]


def published_name(name: str, family: Family) -> str:
    """The published name of a weight, or of an adapter's tensor on it; its own where the family changes nothing."""
    for published, ours in family.weight_names:
        pattern = re.escape(ours).replace(r"\\1", r"(\d+)")
        if match := re.match(pattern, name):
            template = (
                published.removeprefix("^").replace(r"(\d+)", match[1] if match.groups() else "").replace("\\", "")
            )
            return template + name[match.end() :]
    return name


def _refuse_policy_head(head: dict[str, Any] | None, source: Path) -> None:
    if head:
        raise CheckpointError(
            f"the model in {source} decodes with a {head.get('type')} head, which the published modeling code does not "
            "have and would leave out; expected a model without a head. Use it with dllm_rl.load_model"
        )


def _refuse_untranslatable(config: dict[str, Any], source: Path) -> None:
    unsupported = [
        key
        for key in (
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "layers_to_transform",
            "target_parameters",
            "use_dora",
        )
        if config.get(key)
    ]
    if unsupported or not isinstance(config["target_modules"], list):
        raise CheckpointError(
            f"the adapter in {source} sets {unsupported or 'target_modules by a pattern'}, which has no translation; "
            "expected LoRA with a list of target_modules on all layers"
        )
