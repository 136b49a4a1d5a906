"""Run several recipes in one launch, as `spread_each` does, and say how much memory each process needed to begin.

Each process leaves OUTPUT/loaded-RANK.json with the bytes that its resident memory grew by, at most, from before the
model was loaded until it was spread; or RECIPE-RANK.error with the one line.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import dllm_rl
from dllm_rl.errors import DllmRlError
from dllm_rl.recipe import build
from dllm_rl.training.trainer import DiffusionTrainer
from tests.e2e.spread_each import shard_on_cpu, spread_small_weights

RANK = os.environ.get("RANK", "0")


def resident(field: str) -> int:
    """Bytes of this process's memory that are in the machine's: `VmRSS` now, `VmHWM` at most since `forget_peak`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


class Weighed(TrainerCallback):
    """Writes down what beginning took: when the trainer is made, and when it begins (only then does FSDP spread)."""

    def __init__(self) -> None:
        self.account = {"model": 0}

    def weigh(self, trainer: DiffusionTrainer) -> None:
        self.account |= {"made": resident("VmHWM") - Watched.before}
        self.trainer = trainer

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        self.account |= {"begun": resident("VmHWM") - Watched.before, "held": resident("VmRSS") - Watched.before}
        place = Path(args.output_dir) / f"loaded-{RANK}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(self.account))


class Watched(DiffusionTrainer):
    before = 0

    def train(self, *arguments: Any, **options: Any) -> Any:
        weighed = Weighed()
        weighed.weigh(self)
        self.add_callback(weighed)
        return super().train(*arguments, **options)


if __name__ == "__main__":
    spread_small_weights()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    vars(build)["DiffusionTrainer"] = Watched
    for path in sys.argv[1:]:
        Watched.before = forget_peak()
        try:
            dllm_rl.train(path)
        except DllmRlError as error:
            Path(path).with_name(f"{Path(path).stem}-{RANK}.error").write_text(str(error))
