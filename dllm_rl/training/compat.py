"""What is taken from inside TRL and accelerate, in one place: an upgrade that moves it breaks here and nowhere else."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedType, fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy


def prepare_frozen(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A frozen network, held as the trained one is: on its device, in its mixed precision, sharded where it is sharded.

    The same views must give equal scores under equal weights; a reference in another precision would not.
    """
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
