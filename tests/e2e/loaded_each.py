"""Run several recipes in one launch, as `spread_each` does, each process with a model folder of its own.

For RECIPE.yaml the model of process RANK is models/RECIPE/RANK beside it, as on machines that share no disk. Each
process leaves RECIPE-RANK.json, the bytes by which its resident memory grew, at most, until its model was ready to be
trained; or RECIPE-RANK.error, the one line.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import dllm_rl
from dllm_rl.errors import DllmRlError
from dllm_rl.recipe import build
from dllm_rl.training.trainer import DiffusionTrainer
from tests.e2e.spread_each import shard_on_cpu, spread_small_weights

RANK = os.environ.get("RANK", "0")


def resident(field: str) -> int:
    """Bytes of this process that are in the machine's memory: `VmRSS` now, `VmHWM` at most since `forget_peak`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


class Weighed(DiffusionTrainer):
    """The trainer, with an account of what it took to have it."""

    before = 0
    account = Path()

    def create_optimizer(self, model: Any = None) -> Any:
        self.weigh()  # DeepSpeed has spread the weights; what comes next is its optimiser's
        return super().create_optimizer(model)

    def create_scheduler(self, *arguments: Any, **options: Any) -> Any:
        if self.is_fsdp_enabled:
            self.weigh()  # now FSDP has too
        return super().create_scheduler(*arguments, **options)

    def weigh(self) -> None:
        self.account.write_text(json.dumps(resident("VmHWM") - self.before))


def run(recipe: Path) -> None:
    report = recipe.with_name(f"{recipe.stem}-{RANK}")
    Weighed.before, Weighed.account = forget_peak(), report.with_suffix(".json")
    try:
        dllm_rl.train(recipe, [f"model.path={recipe.parent / 'models' / recipe.stem / RANK}"])
    except DllmRlError as error:
        report.with_suffix(".error").write_text(str(error))


if __name__ == "__main__":
    spread_small_weights()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    vars(build)["DiffusionTrainer"] = Weighed
    for path in sys.argv[1:]:
        run(Path(path))
