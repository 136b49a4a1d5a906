"""Processes that share the weights make equally many forwards, whatever each of them has to sample or to score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntFlag
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import distributed, nn

from dllm_rl.models.denoiser import DiffusionModel


def weights_are_spread(accelerator: Accelerator) -> bool:
    """Whether a forward gathers weights from the other processes, so that it waits for theirs."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return bool(accelerator.state.deepspeed_plugin.zero_stage == 3)
    return bool(accelerator.distributed_type == DistributedType.FSDP)


class Kind(IntFlag):
    """What a forward runs, and so whose weights it gathers."""

    NETWORK = 1
    TWICE = 2
    """Once more, without the prompt."""
    PLANNER = 4
    SCHEDULE = 8
    """The schedule head, and nothing else."""

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> Kind:
        """Of a forward of `ScoresRows` with these arguments."""
        if inputs.get("features") is not None:
            return cls.SCHEDULE
        twice, planned = (inputs.get(name) is not None for name in ("unconditional_ids", "open"))
        return cls.NETWORK | (cls.TWICE if twice else cls(0)) | (cls.PLANNER if planned else cls(0))


@contextmanager
def in_step(model: DiffusionModel, spread: bool) -> Iterator[None]:
    """Inside, no forward without gradient of one process waits for ever for one that others do not make.

    Before each forward of its own a process says of what kind it is; a process that has left the block keeps company,
    with a forward of that kind of one token that counts for nothing, until all have left. So rollouts may differ in
    their number, their lengths and their steps: a second rollout for failed groups may happen on some processes only.
    All of them must follow one order of kinds, as rollouts of one sampler do. Other collectives must not be called
    inside.

    Args:
        spread: whether the weights are; if not, there is nothing to wait for and nothing is done.
    """
    if not spread:
        yield
        return
    company = False

    def say(module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if not company:
            _what_others_do(model, Kind.of(inputs))

    hook = model.network.register_forward_pre_hook(say, prepend=True, with_kwargs=True)
    try:
        yield
        company = True
        while kind := _what_others_do(model, Kind(0)):
            _keep_company(model, kind)
    finally:
        hook.remove()


def _what_others_do(model: DiffusionModel, mine: Kind) -> Kind:
    """The kind of the forward that is to be made now; none when all have left."""
    kind = torch.tensor(int(mine), device=model.device)
    distributed.all_reduce(kind, op=distributed.ReduceOp.MAX)
    return Kind(int(kind))


def _keep_company(model: DiffusionModel, kind: Kind) -> None:
    if kind == Kind.SCHEDULE:
        model.schedule_at(torch.zeros(1, model.config.policy_head["features"], device=model.device))
        return
    token = torch.full((1, 1), model.spec.mask_id, device=model.device)
    there = torch.ones_like(token, dtype=torch.bool)
    model.score(
        token,
        torch.zeros_like(token),
        there,
        prompt=torch.zeros_like(there),
        open=there if Kind.PLANNER in kind else None,
        cfg_scale=torch.zeros(1, dtype=torch.float64, device=model.device) if Kind.TWICE in kind else None,
    )
