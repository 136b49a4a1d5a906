"""Processes that share the weights make equally many forwards, whatever each of them has to sample or to score."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import distributed

from dllm_rl.models.denoiser import DiffusionModel


def weights_are_spread(accelerator: Accelerator) -> bool:
    """Whether a forward gathers weights from the other processes, so that it waits for theirs."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return bool(accelerator.state.deepspeed_plugin.zero_stage == 3)
    return bool(accelerator.distributed_type == DistributedType.FSDP)


@contextmanager
def in_step(model: DiffusionModel, spread: bool) -> Iterator[None]:
    """Inside, no forward without gradient of one process waits for ever for one that others do not make.

    Before each forward of its own a process says that it makes one; a process that has left the block keeps company,
    with a forward of one token that counts for nothing, until all have left. So rollouts may differ in their number,
    their lengths and their steps: a second rollout for failed groups may happen on some processes only. Other
    collectives must not be called inside.

    Args:
        spread: whether the weights are; if not, there is nothing to wait for and nothing is done.
    """
    if not spread:
        yield
        return
    company = False

    def say(*_: Any) -> None:
        if not company:
            _anyone_works(model, works=True)

    hook = model.network.register_forward_pre_hook(say, prepend=True)
    try:
        yield
        company = True
        token = torch.full((1, 1), model.spec.mask_id, device=model.device)
        while _anyone_works(model, works=False):
            model.logits_at(token, torch.ones_like(token, dtype=torch.bool))
    finally:
        hook.remove()


def _anyone_works(model: DiffusionModel, *, works: bool) -> bool:
    busy = torch.tensor(float(works), device=model.device)
    distributed.all_reduce(busy)
    return bool(busy > 0)
