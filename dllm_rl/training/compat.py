"""What is taken from TRL and from the inside of accelerate, in one place: an upgrade that moves it breaks here and nowhere else."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType, fsdp2_prepare_model
from torch import nn


def prepare_frozen(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """A frozen network, held as the trained one is: on its device, in its mixed precision, sharded where it is sharded.

    The same views must give equal scores under equal weights; a reference in another precision would not.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from trl.models.utils import prepare_deepspeed

        prepared: nn.Module = prepare_deepspeed(network, accelerator)
        return prepared
    if accelerator.distributed_type == DistributedType.FSDP:
        sharded: nn.Module = fsdp2_prepare_model(accelerator, network)  # TRL's would be gathered as one piece
        return sharded
    held: nn.Module = accelerator.prepare_model(network, evaluation_mode=True)
    return held
