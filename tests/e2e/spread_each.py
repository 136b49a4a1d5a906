"""Run several recipes in one launch, as `train_each` does, with weights of a few kilobytes really spread, and say so.

Two things that a recipe cannot ask for are arranged here, and only here: DeepSpeed's third stage leaves weights as
small as these whole unless its thresholds are zero, and accelerate shards with FSDP on no CPU unless it takes it for
another device.

Each process leaves OUTPUT/spread-RANK.json: see `Account`. A run that is refused leaves RECIPE.error.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

import dllm_rl
from dllm_rl.errors import DllmRlError
from dllm_rl.recipe import build
from dllm_rl.training.trainer import DiffusionTrainer

ZEROED = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")


@dataclass
class Account:
    """What one process held and did."""

    kind: str
    weights: int
    """Numbers of trained weights that this process holds after training."""
    reference: int
    """Numbers of weights of the frozen copy that it holds."""
    optimizer: int
    """Numbers in the optimiser's state that it holds."""
    forwards: int
    """Forwards of the network, with and without gradient, company kept included."""


class Watched(DiffusionTrainer):
    """The trainer, with an account of what it held and did."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.forwards = 0
        self.diffusion.network.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.forwards += 1

    def train(self, *arguments: Any, **options: Any) -> Any:
        out = super().train(*arguments, **options)
        frozen = self.diffusion._reference
        account = Account(
            kind=self.accelerator.distributed_type.value,
            weights=sum(_held(p) for p in self.diffusion.network.parameters() if p.requires_grad),
            reference=0 if frozen is None else sum(map(_held, frozen.network.parameters())),
            optimizer=_state(self.optimizer),
            forwards=self.forwards,
        )
        place = Path(str(self.args.output_dir)) / f"spread-{self.accelerator.process_index}.json"
        place.write_text(json.dumps(asdict(account)))
        return out


def _held(parameter: torch.Tensor) -> int:
    """Numbers of a parameter that are on this process between forwards."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.numel() or parameter.ds_tensor.numel()  # empty unless the whole is here
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter.data).numel()


def _state(optimizer: Any) -> int:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(_held(tensor) for tensor in tensors if tensor.dim())


def spread_small_weights() -> None:
    """Make DeepSpeed spread every weight, and gather none for longer than it is needed."""
    settle = DeepSpeedPlugin.__post_init__

    def zeroed(plugin: DeepSpeedPlugin) -> None:
        settle(plugin)
        zero = plugin.deepspeed_config["zero_optimization"]
        if zero["stage"] == 3:
            zero |= {f"stage3_{name}": 0 for name in ZEROED}
        if not os.environ.get("SPREAD_CPU_ADAM"):
            plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False  # its own is compiled, which takes a minute

    DeepSpeedPlugin.__post_init__ = zeroed


def shard_on_cpu() -> None:
    """Let accelerate take the CPUs for a device that it shards on; the work is torch's own, over gloo."""
    start = PartialState.__init__

    def disguised(state: PartialState, *arguments: Any, **options: Any) -> None:
        start(state, *arguments, **options)
        if state._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            state._shared_state["distributed_type"] = DistributedType.MULTI_XPU

    PartialState.__init__ = disguised


def read_on_one_process() -> None:
    """Let no process but the first load a network, where weights are spread from that one."""
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if os.environ.get("RANK", "0") == "0" or (stage != "3" and os.environ.get("ACCELERATE_USE_FSDP") != "true"):
        return

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a process that gets its weights from another one reads them")

    PreTrainedModel.from_pretrained = refused


if __name__ == "__main__":
    spread_small_weights()
    read_on_one_process()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        shard_on_cpu()
    vars(build)["DiffusionTrainer"] = Watched
    for path in sys.argv[1:]:
        try:
            dllm_rl.train(path)
        except DllmRlError as error:  # the same on every process, before they have begun
            Path(path).with_suffix(".error").write_text(str(error))
