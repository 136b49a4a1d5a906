"""Adapters of several projections that are one projection in the published files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm_rl.errors import CheckpointError

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class Fused:
    """One published projection whose rows are those of `ours`, one after the other; names below a layer."""

    published: str
    ours: tuple[str, ...]

    def fuse(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same change of the weights as one adapter of as many times the rank.

        `[B1 A1; B2 A2] = blockdiag(B1, B2) [A1; A2]`, exactly. The scale must be kept: see `fuse_config`.

        Raises:
            CheckpointError: when only some of the projections have an adapter.
        """
        places = {name.partition(part)[0] for name in tensors for part in self.ours if part in name}
        out = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in self.ours)}
        for place in sorted(places):
            parts = [place + part for part in self.ours]
            if missing := [part for part in parts if part + DOWN not in tensors or part + UP not in tensors]:
                raise CheckpointError(
                    f"the adapter leaves out {missing}, which the published {place}{self.published} contains; only "
                    f"adapters on all of {self.ours} or on none export"
                )
            out[place + self.published + DOWN] = torch.cat([tensors[part + DOWN] for part in parts])
            ups = [tensors[part + UP] for part in parts]
            out[place + self.published + UP] = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
        return out

    def fuse_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The adapter's configuration with the larger rank, and alpha such that the scale stays."""
        leaf = self.published.rpartition(".")[2]
        times = len(self.ours)
        alpha = config["lora_alpha"] * (times**0.5 if config.get("use_rslora") else times)
        return {**config, "rank_pattern": {leaf: config["r"] * times}, "alpha_pattern": {leaf: alpha}}
