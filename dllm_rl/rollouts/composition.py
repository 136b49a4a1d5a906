"""From the values of several reward functions to one number per completion: weights, gates, speed, normalisation.

Pure functions of numbers; which functions they came from, and whom to tell about it, is the panel's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Values = list[float | None]
"""[B]: what one function gives; None where it does not apply."""


def weighted_sum(values: Sequence[Values], weights: Sequence[float]) -> Values:
    """[B]: sum of weight times value over the functions that apply to a row; None where no weighted one does.

    A function of weight 0 is watched and never counted, so it cannot make a row worth something by itself.
    """
    counted = [(column, weight) for column, weight in zip(values, weights, strict=True) if weight != 0]
    totals: Values = []
    for row in zip(*(column for column, _ in counted), strict=True):
        terms = [weight * value for value, (_, weight) in zip(row, counted, strict=True) if value is not None]
        totals.append(math.fsum(terms) if terms else None)
    return totals


def gate_product(gates: Sequence[Values], num_rows: int) -> list[float]:
    """[B]: product over gates; one that does not apply to a row lets it pass."""
    return [math.prod(1.0 if gate[row] is None else gate[row] for gate in gates) for row in range(num_rows)]  # type: ignore[misc]


def speed_factor(forwards: Sequence[int], gen_length: Sequence[int], exponent: float) -> list[float]:
    """[B]: ((T_max - T + 1) / T_max) ** exponent, 1 for one forward, T_max ** -exponent for one token a forward.

    Args:
        forwards: T, network evaluations of each completion; more than T_max count as T_max.
        gen_length: T_max, positions of each completion.
        exponent: alpha, at least 0; 0 gives 1.

    Source: Jazbec et al., https://arxiv.org/abs/2512.09106, section 3; their code, too, stops T at T_max.
    """
    return [
        ((longest - min(taken, longest) + 1) / longest) ** exponent
        for taken, longest in zip(forwards, gen_length, strict=True)
    ]


def normalized_in_groups(values: Values, group_size: int) -> Values:
    """[B]: each value minus its group's mean, over its group's standard deviation (with n - 1).

    Only the rows of a group to which the function applies are compared; where these are all equal, or one, they get
    exactly 0. Nothing is added to the deviation.

    Args:
        values: of whole groups, one after the other.

    Source: Liu et al., GDPO, https://arxiv.org/abs/2601.05242, eq. 4. Its second step, which divides the sum by its
        deviation over the batch, is left out: it only rescales an update.
    """
    normalized: Values = []
    for start in range(0, len(values), group_size):
        group = values[start : start + group_size]
        given = [value for value in group if value is not None]
        deviation = standard_deviation(given)
        mean = math.fsum(given) / len(given) if given else 0.0
        normalized += [
            None if value is None else (value - mean) / deviation if deviation > 0 else 0.0 for value in group
        ]
    return normalized


def statistics(values: Values, group_size: int) -> dict[str, list[float]]:
    """Numbers whose means tell of one function: what it gives, where it applies, how far it tells a group apart.

    Returns:
        "": the values given; "/applies": 1 or 0 for each row; "/group_std": the standard deviation in each group.
    """
    groups = [values[start : start + group_size] for start in range(0, len(values), group_size)]
    return {
        "": [value for value in values if value is not None],
        "/applies": [float(value is not None) for value in values],
        "/group_std": [standard_deviation([value for value in group if value is not None]) for group in groups],
    }


def standard_deviation(values: Sequence[float]) -> float:
    """With n - 1; exactly 0 for values that are all equal, for one and for none."""
    if not values or max(values) == min(values):
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
