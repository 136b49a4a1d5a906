"""The model families that can be loaded: one entry each, keyed by what a checkpoint calls its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dllm_rl.diffusion.denoiser import DiffusionSpec
from dllm_rl.errors import CheckpointError
from dllm_rl.models import dream, llada, llada2, llada_moe, sdar
from dllm_rl.models.fused import Fused
from dllm_rl.models.spec import spec_of


@dataclass(frozen=True, slots=True)
class Family:
    """A class of transformers networks and how its outputs line up with tokens."""

    network: Any
    """The network's class; its `config_class` reads the checkpoint's config.json."""
    logit_shift: int = 0
    """1 when the output at position i predicts token i + 1."""
    block_size: int | None = None
    """Positions that see each other, for a block-causal family whose config.json does not say; None: all do."""
    weight_names: tuple[tuple[str, str], ...] = ()
    """Patterns of published weight names, and the names here; where none fits, both are the same."""
    fused: Fused | None = None
    """Projections that the files hold as one."""
    not_adapted: str | None = None
    """Pattern of published modules that end like an adapted one and have no adapter."""

    def spec(self, config: Any, tokenizer: Any | None) -> DiffusionSpec:
        """Constants of a model of this family; see `spec_of`."""
        block_size = None if self.block_size is None else getattr(config, "block_size", self.block_size)
        return spec_of(config, tokenizer, logit_shift=self.logit_shift, block_size=block_size)


# By architecture, not by model type: LLaDA-MoE's configuration also calls itself "llada".
FAMILIES: dict[str, Family] = {
    "LLaDAModelLM": Family(
        llada.LLaDAModelLM,
        weight_names=llada.WEIGHT_NAMES,
        not_adapted=r".*transformer\.ff_out",  # the output head; a block's last layer is called `ff_out` too
    ),
    "DreamModel": Family(dream.DreamModel, logit_shift=1),
    "LLaDAMoEModelLM": Family(llada_moe.LLaDAMoEModelLM),
    "LLaDA2MoeModelLM": Family(
        llada2.LLaDA2MoeModelLM,
        block_size=llada2.BLOCK_SIZE,
        weight_names=llada2.WEIGHT_NAMES,
        fused=llada2.FUSED,
        not_adapted=r".*\.mlp\.experts\..*",
    ),
    "SDARForCausalLM": Family(sdar.SDARForCausalLM, block_size=sdar.BLOCK_SIZE),
    "SDARMoeForCausalLM": Family(sdar.SDARMoeForCausalLM, block_size=sdar.BLOCK_SIZE),
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
