"""One process reads a checkpoint where weights are spread over all of them; what it cannot read ends them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainingArguments

from dllm_rl.errors import DllmRlError
from dllm_rl.models.denoiser import DiffusionModel
from dllm_rl.models.hollow import Form

T = TypeVar("T")
_FSDP_LOADS = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def spread_from_one(arguments: TrainingArguments) -> bool:
    """Whether preparing a network gives every process its share of process 0's weights, so that others need none."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        return os.environ.get(_FSDP_LOADS, "false").lower() == "true"
    return arguments.deepspeed_plugin is not None and arguments.deepspeed_plugin.zero_stage == 3


def load_together(load: Callable[[bool], DiffusionModel], from_one: bool) -> DiffusionModel:
    """A model on every process, of which process 0 alone has read the weights if they are to be spread from there.

    Args:
        load: makes the model; it is told whether to read the weights or to leave them out (`load_model(reads=False)`).
        from_one: whether the others leave them out.

    Raises:
        DllmRlError: on every process, what went wrong on the first one where something did.
    """
    if not from_one:
        return load(True)
    first = PartialState().process_index == 0
    model = _agreed(lambda: load(first))
    form = broadcast_object_list([Form.of(model.network) if first else None])[0]
    _agreed(lambda: None if first else form.give_to(model.network))
    return model


def _agreed(make: Callable[[], T]) -> T:
    """What `make` makes here, when it has on every process."""
    made: list[T] = []
    error: DllmRlError | None = None
    try:
        made = [make()]
    except DllmRlError as here:
        error = here
    first = next((each for each in gather_object([error]) if each is not None), None)
    if first is not None:
        raise first
    return made[0]


@contextmanager
def loading_whole(arguments: TrainingArguments) -> Iterator[None]:
    """Inside, transformers loads models whole on the process that asks, whatever is to be done with them.

    Its own ways would break what follows: under DeepSpeed's third stage it ignores weights that do not fit and spreads
    before adapters are put on; under FSDP it leaves any model empty on all processes but one, reward models included.
    """
    before, plugin = os.environ.get(_FSDP_LOADS), arguments.deepspeed_plugin
    if plugin is not None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    if before is not None:
        os.environ[_FSDP_LOADS] = "false"
    try:
        yield
    finally:
        if before is not None:
            os.environ[_FSDP_LOADS] = before
        if plugin is not None:
            plugin.set_deepspeed_weakref()
