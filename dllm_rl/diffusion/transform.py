"""From logits to the distribution that tokens are really drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Transform:
    """Forbidden ids, temperature, then top-p and top-k: what a sampler does to logits before it draws.

    Recorded with every rollout. `cfg_scale` is applied by whoever makes the logits, since it needs a second forward
    (`guide`). Temperature 0 is a point mass on the largest logit: it can be decoded with, but has no log-probability to
    train on.
    """

    temperature: float = 1.0
    cfg_scale: float = 0.0
    forbidden_ids: tuple[int, ...] = ()
    top_p: float | None = None
    """Keep the fewest most probable tokens whose mass reaches this; the token that crosses it is kept."""
    top_k: int | None = None
    """Keep this many of the most probable tokens, of equals the lowest ids."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or a positive number")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a number above 0, at most 1, or None")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; expected at least 1, or None")

    @property
    def truncates(self) -> bool:
        """True if some permitted tokens can have probability 0, depending on the logits."""
        return self.top_p is not None or self.top_k is not None

    def permitted(self, logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
        """Logits with the forbidden ids at minus infinity."""
        if not self.forbidden_ids:
            return logits
        ids = torch.tensor(self.forbidden_ids, device=logits.device)
        return logits.index_fill(-1, ids, float("-inf"))

    def log_probs(self, logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
        """Log-probabilities of the distribution drawn from, in the precision of `logits`.

        The set that top-p and top-k keep is read from these very logits and carries no gradient.

        Raises:
            ValueError: at temperature 0, where log-probabilities are 0 or minus infinity and carry no gradient.
        """
        return torch.log_softmax(self.scaled_(logits.clone()), dim=-1)

    def scaled_(self, logits: Float[Tensor, "*batch V"]) -> Float[Tensor, "*batch V"]:
        """Overwrite logits with those of the distribution drawn from; differentiable. See `log_probs`."""
        self.refuse_greedy()
        if self.forbidden_ids:
            logits.index_fill_(-1, torch.tensor(self.forbidden_ids, device=logits.device), float("-inf"))
        if self.temperature != 1:
            logits.div_(self.temperature)
        if self.truncates:
            logits.masked_fill_(~self._kept(logits.detach()), float("-inf"))
        return logits

    def refuse_greedy(self) -> None:
        """Refuse temperature 0, at which nothing has a log-probability.

        Raises:
            ValueError: the temperature is 0.
        """
        if self.temperature == 0:
            raise ValueError("temperature 0 draws greedily and has no log-probabilities; roll out with temperature > 0")

    def _kept(self, scaled: Float[Tensor, "*batch V"]) -> Tensor:
        """The most probable tokens that top-p and top-k leave: both keep a head of the sorted vocabulary."""
        order = scaled.argsort(dim=-1, descending=True, stable=True)
        kept = torch.ones_like(order, dtype=torch.bool)
        if self.top_p is not None and self.top_p < 1:  # at 1 rounding would cut the tail
            sorted_probs = torch.softmax(scaled, dim=-1).gather(-1, order)
            kept &= sorted_probs.cumsum(dim=-1) - sorted_probs < self.top_p
        if self.top_k is not None:
            kept[..., self.top_k :] = False
        return torch.zeros_like(kept).scatter(-1, order, kept)


def guide(
    conditional: Float[Tensor, "*batch V"],
    unconditional: Float[Tensor, "*batch V"],
    cfg_scale: float | Float[Tensor, "*#batch 1"],
) -> Float[Tensor, "*batch V"]:
    """Classifier-free guidance: u + (cfg_scale + 1) * (c - u).

    Source: Nie et al., https://arxiv.org/abs/2502.09992 (the unconditional input hides the prompt).
    """
    strength = cfg_scale + 1.0
    if isinstance(strength, Tensor):  # rounded once, as a number is, and not before the sum
        strength = strength.to(conditional.dtype)
    return unconditional + strength * (conditional - unconditional)
