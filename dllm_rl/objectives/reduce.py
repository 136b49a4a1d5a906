"""Reports that stay exact when a batch is split over micro-batches and ranks: carry sums, add them, divide once."""

from __future__ import annotations

import abc
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Real
from torch import Tensor

Sums = TypeVar("Sums", bound="Report")


@dataclass(frozen=True, slots=True)
class Report(abc.ABC):
    """A number to report, as the sums it is made of; the last is how many things were summed."""

    def __add__(self: Sums, other: Sums) -> Sums:
        return type(self)(*(a + b for a, b in zip(self.sums, other.sums, strict=True)))

    @property
    def sums(self) -> tuple[Real[Tensor, ""], ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    @abc.abstractmethod
    def value(self) -> Float[Tensor, ""]:
        """NaN when nothing was counted."""


@dataclass(frozen=True, slots=True)
class Mean(Report):
    """A sum and the number of things summed. Add the parts first; a mean of means is another number."""

    total: Real[Tensor, ""]
    count: Real[Tensor, ""]

    @property
    def value(self) -> Float[Tensor, ""]:
        return self.total / self.count


@dataclass(frozen=True, slots=True)
class EffectiveShare(Report):
    """Effective sample size of weighted samples, as a share of their number: (sum w)^2 / (n sum w^2).

    1 when all weights are equal, 1 / n when one has all the weight.

    Source: Kish, Survey Sampling (1965), section 11.7.
    """

    total: Float64[Tensor, ""]
    squares: Float64[Tensor, ""]
    count: Real[Tensor, ""]

    @property
    def value(self) -> Float[Tensor, ""]:
        return self.total.square() / (self.count * self.squares)


def masked_mean(values: Float[Tensor, "*shape"], where: Bool[Tensor, "*shape"]) -> Mean:
    """The mean over the true positions of `where`; what the others hold does not matter."""
    return Mean(values.masked_fill(~where, 0.0).sum(), where.sum())


def mean_of(values: Float[Tensor, "*shape"]) -> Mean:
    """The mean over all of `values`, detached: for reports."""
    return Mean(values.detach().sum(), torch.tensor(values.numel(), device=values.device))


def effective_share(log_weight: Float[Tensor, "*shape"], where: Bool[Tensor, "*shape"]) -> EffectiveShare:
    """Of the weights whose logarithms are given, over the true positions of `where`."""
    weight = log_weight.detach().double().exp().masked_fill(~where, 0.0)
    return EffectiveShare(weight.sum(), weight.square().sum(), where.sum())


def variance_of_mean(estimates: Float[Tensor, "B M"]) -> Float[Tensor, " B"]:
    """How far the mean of M independent estimates strays: their sample variance, over M. Needs at least two."""
    return estimates.detach().var(-1) / estimates.shape[1]
