"""Heads that decide how to decode: a planner or a schedule, beside the output head of a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dllm_rl.errors import CheckpointError, ModelContractError
from dllm_rl.models.planner import PlannerHead
from dllm_rl.models.schedule import ScheduleHead

POLICY_HEAD = "policy_head"
"""Field of a configuration that says which head there is, `{"type": "planner" | "schedule", ...}`."""
HEAD_FILE = "policy_head.json"
"""Where an adapter's folder says it; full weights say it in their config.json."""
HEADS = ("planner", "schedule")
"""Attributes of the network."""


def attach_head(network: Any, settings: Mapping[str, Any]) -> None:
    """Give the network a head of its own, on its device; equal settings give equal weights on every rank.

    Adapters and samplers then find it by the configuration. Weights are float32, whatever the network's are.

    Args:
        settings: `type`, and the arguments of `PlannerHead` or `ScheduleHead`.

    Raises:
        ModelContractError: unknown settings, or a network that has a head already.
    """
    options = dict(settings)
    kind = options.pop("type", None)
    if kind not in HEADS:
        raise ModelContractError(f"head.type is {kind!r}; expected one of {', '.join(HEADS)}")
    if head_of(network) is not None:
        raise ModelContractError(f"the network has a {head_of(network)} already; expected one without a head")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            head = PlannerHead(network.config, **options) if kind == "planner" else ScheduleHead(**options)
        except TypeError as error:
            raise ModelContractError(f"head={dict(settings)} does not make a {kind}: {error}") from error
    network.add_module(kind, head.to(device=network.device, dtype=torch.float32).train(network.training))
    setattr(network.config, POLICY_HEAD, dict(settings))


def head_of(network: nn.Module) -> str | None:
    """Which head a network has, wrapped by PEFT or not."""
    bare: Any = network
    bare = bare.get_base_model() if hasattr(bare, "get_base_model") else bare
    return next((kind for kind in HEADS if hasattr(bare, kind)), None)


def is_head_parameter(name: str) -> bool:
    """Whether a parameter of this name, wrapped by whatever, belongs to a policy head."""
    return not set(name.split(".")).isdisjoint(HEADS)


def refuse_missing(config: Any, kind: str) -> None:
    """Raise ModelContractError if a network of this configuration has no such head."""
    found = (getattr(config, POLICY_HEAD, None) or {}).get("type")
    if found != kind:
        raise ModelContractError(
            f"this needs a {kind} head and the model has {found or 'none'}; load a model that has one, or give it one "
            f"with model.head: {{type: {kind}}} in a recipe, head={{'type': {kind!r}}} in load_model"
        )


def write_settings(network: Any, folder: Path) -> None:
    """Say beside an adapter which head it was made with."""
    settings = getattr(network.config, POLICY_HEAD, None)
    if settings:
        (folder / HEAD_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def read_settings(folder: str | Path) -> dict[str, Any] | None:
    """Settings of the head that an adapter was made with, None where it was made without."""
    file = Path(folder) / HEAD_FILE
    if not file.is_file():
        return None
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; expected the settings of a policy head") from error
    return settings
