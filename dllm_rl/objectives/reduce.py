"""Means that stay exact when a batch is split over micro-batches and ranks: carry total and count, divide once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mean:
    """A sum and the number of things summed. Add the parts first; a mean of means is another number."""

    total: Real[Tensor, ""]
    count: Real[Tensor, ""]

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> Float[Tensor, ""]:
        """NaN when nothing was counted."""
        return self.total / self.count


def masked_mean(values: Float[Tensor, "*shape"], where: Bool[Tensor, "*shape"]) -> Mean:
    """The mean over the true positions of `where`; what the others hold does not matter."""
    return Mean(values.masked_fill(~where, 0.0).sum(), where.sum())


def mean_of(values: Float[Tensor, "*shape"]) -> Mean:
    """The mean over all of `values`, detached: for reports."""
    return Mean(values.detach().sum(), torch.tensor(values.numel(), device=values.device))
