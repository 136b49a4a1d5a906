"""A schedule policy: the head that says how to take the next step, from a few statistics of the present one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dllm_rl.errors import ModelContractError


class ScheduleHead(nn.Module):
    """Means of a Gaussian policy's actions, from pooled features of a step.

    Its last layer starts at zero: a new head changes nothing of the manual schedule that its actions are added to.

    Args:
        features: numbers it is shown at every step.
        actions: numbers it decides.
        width: of its two hidden layers.

    Source: the policy network of AdaNAT, https://arxiv.org/abs/2409.00342, of the same authors as Co-GRPO,
    https://arxiv.org/abs/2512.22288. Deviation: pooled statistics in place of the network's hidden states, so that
    learning the schedule takes no forward of the network.
    """

    def __init__(self, features: int, actions: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, actions)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Float[Tensor, "R F"]) -> Float[Tensor, "R A"]:
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        if features.shape[1] != first.in_features:
            raise ModelContractError(
                f"the schedule head was made for {first.in_features} features and is shown {features.shape[1]}; make "
                f"it for as many (model.head.features: {features.shape[1]})"
            )
        with torch.autocast(features.device.type, enabled=False):
            means: Tensor = self.layers(features.to(first.weight.dtype))
        return means.float()
