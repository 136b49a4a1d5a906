"""Which parameters a run trains, and which of them an update leaves alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from dllm_rl.algorithms.base import Algorithm, Trained
from dllm_rl.errors import RecipeError
from dllm_rl.models.policy_head import head_of, is_head_parameter


def freeze(network: nn.Module, algorithm: Algorithm) -> None:
    """Make only what the algorithm learns trainable, of what was.

    Raises:
        RecipeError: the model lacks the head that the algorithm needs, the head cannot learn, or nothing is left to
            train.
    """
    found = head_of(network)
    name = getattr(algorithm, "type", type(algorithm).__name__)
    if algorithm.head is not None and found != algorithm.head:
        raise RecipeError(
            f"model.head: {name} trains a {algorithm.head} head and the model has {found or 'none'}; set "
            f"model.head={{type: {algorithm.head}}}, or start from a model that has one"
        )
    learned: Trained = algorithm.learns if algorithm.head is not None else "network"
    for parameter in idle_parameters(network, learned):
        parameter.requires_grad_(False)
    head = [parameter.requires_grad for name, parameter in network.named_parameters() if is_head_parameter(name)]
    if algorithm.head is not None and learned != "network" and not any(head):
        raise RecipeError(
            f"model.adapter: {name} trains a {found}, and the adapter was made without one, so it has no place to keep "
            "what that learns; make the adapter with the head (model.lora and model.head together)"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise RecipeError(f"{name} leaves nothing of this model to train; check model.lora and model.adapter")


def idle_parameters(network: nn.Module, trained: Trained) -> list[nn.Parameter]:
    """Trainable parameters outside of `trained`."""
    if trained == "all":
        return []
    keep_head = trained == "head"
    return [
        parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and is_head_parameter(name) != keep_head
    ]


def zero_share(parameters: Iterable[nn.Parameter]) -> torch.Tensor | None:
    """Zero, with a gradient of zero for every parameter: data-parallel wrappers wait for a gradient of each.

    None where there are none that are whole on every process: nobody waits for those that FSDP has spread.
    """
    sums = [parameter.sum() for parameter in parameters if not isinstance(parameter.data, DTensor)]
    return 0.0 * torch.stack([each.double() for each in sums]).sum() if sums else None


def split_head(optimizer: torch.optim.Optimizer, network: nn.Module, learning_rate: float | None) -> None:
    """Give the policy head parameter groups of its own, with a learning rate of its own if one is given."""
    head = {id(parameter) for name, parameter in network.named_parameters() if is_head_parameter(name)}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        for of_head in (False, True):
            members = [parameter for parameter in group["params"] if (id(parameter) in head) == of_head]
            own = {"lr": learning_rate} if of_head and learning_rate is not None else {}
            groups += [{**group, "params": members, **own}] if members else []
    optimizer.param_groups = groups


class LeaveIdle(TrainerCallback):
    """Takes the gradient of what an update does not train away, so that the optimiser passes it over."""

    def __init__(self, network: nn.Module, algorithm: Algorithm) -> None:
        self.network, self.algorithm = network, algorithm

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for parameter in idle_parameters(self.network, self.algorithm.trains(state.global_step)):
            parameter.grad = None
