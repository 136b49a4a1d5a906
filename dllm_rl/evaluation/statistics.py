"""How sure a mean is, and whether two runs differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from dllm_rl.errors import DataError

Z95 = 1.959963984540054
"""The 97.5 percent quantile of the standard normal law."""
EXACT_BITS = 50_000_000
"""Size of the enumerated law of a sum beyond which it is sampled."""
FLIPS = 20_000


def interval(mean: float, std_error: float, n: int) -> tuple[float, float]:
    """Wilson's interval at 95 percent for a mean of n values in [0, 1].

    Unlike mean +- 2 standard errors it stays inside [0, 1] and has a width where all n values are the same. Values
    between 0 and 1 vary less than coins of that mean; they count as the n' = 1 + mean (1 - mean) / std_error^2 coins
    that would have this standard error (n' = n for coins).

    Args:
        std_error: of the mean; 0 or NaN: n coins.

    Source: Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953. Deviation: n' in the place of n.
    """
    coins = 1 + mean * (1 - mean) / std_error**2 if std_error > 0 else n
    shift = Z95**2 / coins
    centre = (mean + shift / 2) / (1 + shift)
    half = Z95 / (1 + shift) * math.sqrt(max(0.0, mean * (1 - mean) / coins) + shift / (4 * coins))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def sign_flip_p(differences: Sequence[float]) -> float:
    """The chance of a sum at least as far from 0 as that of the differences, if each sign were a fair coin.

    The two-sided paired permutation test. For right and wrong answers it is McNemar's exact test: only examples on
    which two runs disagree count. The law of the sum is enumerated; where it has very many values it is drawn 20,000
    times with fixed keys, and then p is never below 1 / 20,001.

    Raises:
        DataError: there are no differences.

    Source: Fisher, The Design of Experiments, 1935, section 21; McNemar, https://doi.org/10.1007/BF02295996.
    """
    if not differences:
        raise DataError("no pairs to compare; expected at least one")
    steps = [Fraction(value).limit_denominator(10_000) for value in differences if value]
    unit = math.lcm(*(step.denominator for step in steps))
    signed = [int(step * unit) for step in steps]
    common = math.gcd(*signed) or 1
    sizes, observed = [abs(step) // common for step in signed], abs(sum(signed)) // common
    if sum(sizes) * len(sizes) > EXACT_BITS:
        return _sampled(sizes, observed)
    total = sum(sizes)
    ways = _subset_sums(sizes)
    extreme = sum(count for positive, count in enumerate(ways) if abs(2 * positive - total) >= observed)
    return float(Fraction(extreme, 1 << len(sizes)))


def _subset_sums(sizes: Sequence[int]) -> list[int]:
    """How many subsets have the sum 0, 1, ..., all: coefficients of the product of (1 + x^size).

    The polynomial is held in one integer, with a fixed number of bytes for each coefficient: multiplying is a shift and
    an addition.
    """
    width = len(sizes) // 8 + 1  # no count exceeds 2^len(sizes)
    packed = 1
    for size in sizes:
        packed += packed << (8 * width * size)
    data = packed.to_bytes(width * (sum(sizes) + 1), "little")
    return [int.from_bytes(data[at : at + width], "little") for at in range(0, len(data), width)]


def _sampled(sizes: Sequence[int], observed: int) -> float:
    import torch

    from dllm_rl.rng import sample_keys, uniform

    weights, extreme = torch.tensor(sizes), 0
    for start in range(0, FLIPS, 1000):
        keys = sample_keys(0, torch.arange(start, start + 1000))
        signs = (uniform(keys, len(sizes)) < 0.5).to(torch.int64) * 2 - 1
        extreme += int(((signs * weights).sum(dim=1).abs() >= observed).sum())
    return (extreme + 1) / (FLIPS + 1)
