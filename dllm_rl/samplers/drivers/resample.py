"""Weights of particles, and particles drawn by their weights. Pure functions; N particles of each of P prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dllm_rl import rng


def log_mean(log_weights: Float64[Tensor, "P N"]) -> Float64[Tensor, " P"]:
    """Logarithm of the mean weight."""
    return log_weights.logsumexp(dim=1) - math.log(log_weights.shape[1])


def effective_sample_size(log_weights: Float64[Tensor, "P N"]) -> Float64[Tensor, " P"]:
    """(sum w)^2 / sum w^2: N for equal weights, exactly; 1 when one has it all.

    Source: Kong, Liu and Wong, 1994.
    """
    weights = (log_weights - log_weights.amax(dim=1, keepdim=True)).exp()
    return weights.sum(dim=1) ** 2 / (weights**2).sum(dim=1)


def at(points: Float64[Tensor, "P K"], log_weights: Float64[Tensor, "P N"]) -> Int64[Tensor, "P K"]:
    """The particle whose share of [0, 1) each point falls into, shares being proportional to weights."""
    edges = (log_weights - log_weights.amax(dim=1, keepdim=True)).exp().cumsum(dim=1)
    return torch.searchsorted(edges[:, :-1].contiguous(), points * edges[:, -1:], right=True)


def systematic(keys: Int64[Tensor, " P"], n: int) -> Float64[Tensor, "P {n}"]:
    """One number drawn, and n points at equal distances from it: the number of a particle's copies is its expectation,
    rounded up or down.

    Source: Kitagawa, 1996; Carpenter, Clifford and Fearnhead, 1999.
    """
    return (torch.arange(n, device=keys.device) + rng.uniform(keys, 1)) / n


def multinomial(keys: Int64[Tensor, " P"], n: int) -> Float64[Tensor, "P {n}"]:
    """Points drawn independently: unbiased too, with more variance."""
    return rng.uniform(keys, n)


POINTS: Mapping[str, Callable[[Int64[Tensor, " P"], int], Float64[Tensor, "P N"]]] = {
    "systematic": systematic,
    "multinomial": multinomial,
}
