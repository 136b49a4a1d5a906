"""What is taken from inside TRL and accelerate, in one place: an upgrade that moves it breaks here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedType, fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy


def prepare_frozen(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A frozen network, held as the trained one is: on its device, in its mixed precision, sharded where it is sharded.

    The same views must give equal scores under equal weights; a reference in another precision would not.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from trl.models.utils import prepare_deepspeed

        spread_now(network, accelerator)
        prepared: nn.Module = prepare_deepspeed(network, accelerator)
        return prepared
    if accelerator.distributed_type == DistributedType.FSDP:
        keep_precision(network, accelerator)
        with _buffers_apart(network):
            sharded: nn.Module = fsdp2_prepare_model(accelerator, network)  # TRL's would be gathered as one piece
        return sharded
    held: nn.Module = accelerator.prepare_model(network, evaluation_mode=True)
    return held


def weight_of_copy(accelerator: Accelerator, from_one: bool) -> Callable[[Tensor], Tensor] | None:
    """How a copy that is to be spread from process 0 comes by its weights without a second whole model anywhere."""
    if not from_one:
        return None
    if accelerator.is_main_process:
        return lambda weight: weight
    return torch.empty_like


def spread_now(network: nn.Module, accelerator: Accelerator) -> None:
    """Under DeepSpeed's third stage, leave every process its share of process 0's weights, one after another.

    Left to do it by itself, DeepSpeed would first have all of them in the dtype that it computes in, and on the device,
    on every process.
    """
    plugin = accelerator.state.deepspeed_plugin
    if accelerator.distributed_type != DistributedType.DEEPSPEED or plugin.zero_stage != 3:
        return
    import deepspeed

    spreading = deepspeed.zero.Init(config_dict_or_path=plugin.dschf.config)
    for weight in network.parameters():
        if weight.is_floating_point() and spreading.dtype != torch.float32:
            weight.data = weight.data.to(spreading.dtype)
        spreading._convert_to_zero_parameters([weight])
    for buffer in network.buffers():
        buffer.data = buffer.data.to(accelerator.device)


def spread_weights_only(network: nn.Module, accelerator: Accelerator) -> None:
    """Have FSDP, when accelerate prepares this network, pass over the buffers that are saved with its weights."""
    prepare = accelerator.prepare

    def prepare_apart(*parts: Any, **options: Any) -> Any:
        with _buffers_apart(network):
            return prepare(*parts, **options)

    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.prepare = prepare_apart


@contextmanager
def _buffers_apart(network: nn.Module) -> Iterator[None]:
    """FSDP spreads no buffers, and accelerate takes what is saved for spread."""
    saved = [(module, set(module._buffers) - module._non_persistent_buffers_set) for module in network.modules()]
    for module, names in saved:
        module._non_persistent_buffers_set |= names
    try:
        yield
    finally:
        for module, names in saved:
            module._non_persistent_buffers_set -= names


def keep_precision(network: nn.Module, accelerator: Accelerator) -> None:
    """Have FSDP compute in mixed precision as every other launcher does: under autocast, gradients summed in float32.

    accelerate's policy for it rounds all that goes into a layer or comes out of it: temperatures, policy heads, and the
    log-probabilities that ratios are made of.
    """
    if accelerator.distributed_type != DistributedType.FSDP or accelerator.mixed_precision == "no":
        return
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)  # else rounded weights of all layers stay
    accelerator.prepare_model(network, evaluation_mode=True)
