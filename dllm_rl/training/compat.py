"""What is taken from inside TRL and accelerate, in one place: an upgrade that moves it breaks here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedType, fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy


def prepare_frozen(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A frozen network, held as the trained one is: on its device, in its mixed precision, sharded where it is sharded.

    The same views must give equal scores under equal weights; a reference in another precision would not.
    """
    spread_now(network, accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from trl.models.utils import prepare_deepspeed

        prepared: nn.Module = prepare_deepspeed(network, accelerator)
        return prepared
    if accelerator.distributed_type == DistributedType.FSDP:
        keep_precision(network, accelerator)
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
    """Under DeepSpeed's third stage, leave every process its share of process 0's weights, one weight after another.

    DeepSpeed would first have all of them in the dtype it computes in, and on the device, on every process.
    """
    plugin = accelerator.state.deepspeed_plugin if accelerator.distributed_type == DistributedType.DEEPSPEED else None
    if plugin is None or plugin.zero_stage != 3:
        return
    import deepspeed

    spreading = deepspeed.zero.Init(config_dict_or_path=plugin.dschf.config)
    for weight in network.parameters():
        if weight.is_floating_point() and spreading.dtype != torch.float32:
            weight.data = weight.data.to(spreading.dtype)
        spreading._convert_to_zero_parameters([weight])
    for buffer in network.buffers():
        buffer.data = buffer.data.to(accelerator.device)


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
