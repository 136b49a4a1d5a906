"""Networks whose weights are another process's business: built without reading any, and copied without doubling any."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from dllm_rl.errors import CheckpointError


def hollow_network(network_class: Any, config: Any, dtype: torch.dtype, **implementations: str | None) -> Any:
    """A network that is complete but for its weights: those are memory that was asked for and never written.

    Pages that nobody writes are not resident, so it costs next to nothing. Wrong to run, to save, or to read values
    from; right to put adapters on, to give to an optimiser, and to spread from a process that has the weights.

    Args:
        implementations: `attn_implementation` and `experts_implementation`, as of `from_pretrained`.
    """
    with no_init_weights():
        network = network_class._from_config(config, dtype=dtype, **implementations)
    network.tie_weights()
    return network


@dataclass(frozen=True, slots=True)
class Form:
    """What a hollow network must be told by one that was loaded: not all of it is decided by config.json."""

    weights: dict[str, tuple[torch.Size, torch.dtype]]
    buffers: dict[str, Tensor]

    @classmethod
    def of(cls, network: nn.Module) -> Form:
        weights = {name: (weight.shape, weight.dtype) for name, weight in network.named_parameters()}
        return cls(weights, {name: buffer.cpu() for name, buffer in network.named_buffers()})

    @torch.no_grad()
    def give_to(self, network: nn.Module) -> None:
        """Have a hollow network's weights in these dtypes, and its buffers with these values.

        Raises:
            CheckpointError: it is another network.
        """
        weights, buffers = dict(network.named_parameters()), dict(network.named_buffers())
        shapes = {name: weight.shape for name, weight in weights.items()}
        other = {*shapes.items()} ^ {(name, shape) for name, (shape, _) in self.weights.items()}
        if other or buffers.keys() != self.buffers.keys():
            raise CheckpointError(
                f"processes made different networks: {sorted(other)[:2]} are in one only; expected the same "
                "config.json, adapter and dllm_rl on every machine"
            )
        for name, (shape, dtype) in self.weights.items():
            if weights[name].dtype != dtype:
                weights[name].data = torch.empty(shape, dtype=dtype)
        for name, buffer in self.buffers.items():
            buffers[name].data = buffer


def frozen_copy(network: nn.Module, weight_of: Callable[[Tensor], Tensor] | None) -> nn.Module:
    """A copy of a network that does not train.

    Args:
        weight_of: gives the copy's weight for one of the network's, such as the same memory; None copies it.
    """
    weights = [] if weight_of is None else [(weight, weight_of(weight.data)) for weight in network.parameters()]
    twins = {id(weight): nn.Parameter(given, requires_grad=False) for weight, given in weights}
    twin: nn.Module = copy.deepcopy(network, twins)
    return twin.requires_grad_(False).eval()
