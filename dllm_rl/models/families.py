"""The model families that can be loaded: one entry each, keyed by what a checkpoint calls its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dllm_rl.errors import CheckpointError
from dllm_rl.models import llada


@dataclass(frozen=True, slots=True)
class Family:
    """A class of transformers networks and how its outputs line up with tokens."""

    network: Any
    """The network's class; its `config_class` reads the checkpoint's config.json."""
    logit_shift: int = 0
    """1 when the output at position i predicts token i + 1."""
    weight_names: tuple[tuple[str, str], ...] = ()
    """Patterns of published weight names, and the names here; empty where they are the same."""


# By architecture, not by model type: LLaDA-MoE's configuration also calls itself "llada".
FAMILIES: dict[str, Family] = {
    llada.ARCHITECTURE: Family(llada.LLaDAModelLM, weight_names=llada.WEIGHT_NAMES),
}


def family_of(config: dict[str, Any], source: str) -> Family:
    """The family of a checkpoint by its config.json.

    Raises:
        CheckpointError: when the architecture is missing or not one that this library knows.
    """
    architectures = config.get("architectures") or [None]
    if architectures[0] not in FAMILIES:
        raise CheckpointError(
            f"{source}: config.json names the architecture {architectures[0]!r}; expected one of {sorted(FAMILIES)}. "
            "Only these families are supported"
        )
    return FAMILIES[architectures[0]]
