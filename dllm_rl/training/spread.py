"""How a run is spread over processes, what its checkpoints say of it, and which of them another run can use."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from dllm_rl.errors import CheckpointError
from dllm_rl.training.order import Layout


@dataclass(frozen=True, slots=True)
class Spread:
    """What of a run's layout decides whether its checkpoints fit another one."""

    form: str
    """How the optimiser's state is kept: whole, fsdp2, zero1, zero2 or zero3."""
    processes: int
    rows_per_update: int
    """Prompts, pairs or texts."""

    @classmethod
    def of(cls, accelerator: Accelerator, layout: Layout) -> Spread:
        form = "whole"
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            form = f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
        elif accelerator.distributed_type == DistributedType.FSDP:
            form = "fsdp2"
        return cls(form, layout.world, layout.slots_per_update)


class RecordSpread(TrainerCallback, ExportableState):
    """Has every checkpoint say, in its trainer_state.json, how the run that made it was spread."""

    def __init__(self, spread: Spread) -> None:
        self.spread = spread

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"spread": asdict(self.spread)}}


def refuse_unfit(checkpoint: Path, here: Spread) -> None:
    """Refuse a checkpoint that this run would not go on from exactly.

    Raises:
        CheckpointError: an update would see another number of rows; or the optimiser's state was kept in another form,
            or by DeepSpeed in another number of parts.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    recorded = state.get("stateful_callbacks", {}).get(RecordSpread.__name__)
    if not recorded:
        return
    there = Spread(**recorded["attributes"]["spread"])
    if there.rows_per_update != here.rows_per_update:
        raise CheckpointError(
            f"{checkpoint}: its updates saw {there.rows_per_update} rows each and this run's would see "
            f"{here.rows_per_update} ({here.processes} processes); processes x train.gradient_accumulation_steps x "
            f"train.per_device_train_batch_size must give {there.rows_per_update}"
        )
    in_parts = there.form.startswith("zero") and there.processes != here.processes
    if there.form != here.form or in_parts:
        raise CheckpointError(
            f"{checkpoint}: its optimiser was kept as {there.form} by {there.processes} processes and this run keeps "
            f"it as {here.form} in {here.processes}, so it cannot go on exactly; launch it as it was, or start another "
            f"run from the weights alone (model.path or model.adapter={checkpoint}, another output)"
        )


def as_held(whole: Tensor, held: Tensor) -> Tensor:
    """A whole tensor in the form in which another is held: as it is, or this process's share of it."""
    return distribute_tensor(whole, held.device_mesh, held.placements) if isinstance(held, DTensor) else whole
