"""From logits to the distribution that tokens are really drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Transform:
    """Forbidden ids, then temperature: what a sampler does to logits before it draws. Recorded with every rollout.

    `cfg_scale` is applied by whoever makes the logits, since it needs a second forward (`guide`). Temperature 0 is a
    point mass on the largest logit: it can be decoded with, but has no log-probability to train on.
    """

    temperature: float = 1.0
    cfg_scale: float = 0.0
    forbidden_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or a positive number")

    def permitted(self, logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
        """Logits with the forbidden ids at minus infinity."""
        if not self.forbidden_ids:
            return logits
        ids = torch.tensor(self.forbidden_ids, device=logits.device)
        return logits.index_fill(-1, ids, float("-inf"))

    def log_probs(self, logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
        """Log-probabilities of the distribution drawn from, in the precision of `logits`.

        Raises:
            ValueError: at temperature 0, where log-probabilities are 0 or minus infinity and carry no gradient.
        """
        if self.temperature == 0:
            raise ValueError("temperature 0 draws greedily and has no log-probabilities; roll out with temperature > 0")
        return torch.log_softmax(self.permitted(logits) / self.temperature, dim=-1)


def guide(
    conditional: Float[Tensor, "*batch V"], unconditional: Float[Tensor, "*batch V"], cfg_scale: float
) -> Float[Tensor, "*batch V"]:
    """Classifier-free guidance: u + (cfg_scale + 1) * (c - u).

    Source: Nie et al., https://arxiv.org/abs/2502.09992 (the unconditional input hides the prompt).
    """
    return unconditional + (cfg_scale + 1.0) * (conditional - unconditional)
