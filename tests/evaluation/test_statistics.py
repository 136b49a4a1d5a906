"""Intervals and the paired test against their definitions, by enumeration."""

from __future__ import annotations

import math
from itertools import product

import pytest

from dllm_rl.errors import DataError
from dllm_rl.evaluation import statistics
from dllm_rl.evaluation.statistics import Z95, interval, sign_flip_p


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (400, 1319)])
def test_wilson_interval_holds_the_means_that_are_not_rejected(right: int, n: int) -> None:
    """Its ends are where |share - p| is z standard deviations of a coin p."""
    share = right / n
    low, high = interval(share, 0.0, n)
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / n))
    assert 0 <= low <= share <= high <= 1 and low < high


def test_coins_give_the_same_interval_with_and_without_their_standard_error() -> None:
    n, share = 50, 0.3
    assert interval(share, math.sqrt(share * (1 - share) / (n - 1)), n) == pytest.approx(interval(share, math.nan, n))


def test_values_that_vary_less_give_a_narrower_interval() -> None:
    wide, narrow = interval(0.5, 0.05, 100), interval(0.5, 0.01, 100)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]


def test_an_interval_covers_as_often_as_it_says() -> None:
    """Over all outcomes of 40 coins, weighted by their chance; on average over what the coins may be."""
    n, biases = 40, [each / 50 for each in range(1, 50)]
    ends = [interval(k / n, 0.0, n) for k in range(n + 1)]
    covered = [
        sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k, (low, high) in enumerate(ends) if low <= p <= high)
        for p in biases
    ]
    assert sum(covered) / len(biases) == pytest.approx(0.95, abs=0.005)


def by_enumeration(differences: list[float]) -> float:
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(each >= abs(sum(differences)) - 1e-12 for each in sums) / len(sums)


@pytest.mark.parametrize(
    "differences",
    [
        [1.0],
        [0.0],
        [1.0, 1.0, -1.0, 0.0, 1.0],
        [0.5, -0.25, 0.125, 1.0, 0.75],
        [1 / 3, -1 / 7, 1 / 12, 5 / 12, -2 / 3, 1 / 8],
        [-0.5] * 6,
    ],
)
def test_paired_test_is_the_share_of_sign_flips_that_are_as_far(differences: list[float]) -> None:
    assert sign_flip_p(differences) == pytest.approx(by_enumeration(differences), abs=1e-12)
    assert sign_flip_p([-each for each in differences]) == sign_flip_p(differences)


def test_paired_test_of_right_and_wrong_is_mcnemars() -> None:
    for better, worse in ((5, 2), (0, 3), (4, 4), (700, 619)):
        n, more = better + worse, max(better, worse)
        binomial = min(1.0, 2 * sum(math.comb(n, k) for k in range(more, n + 1)) / 2**n)
        assert sign_flip_p([1.0] * better + [-1.0] * worse + [0.0] * 9) == pytest.approx(binomial, rel=1e-12)


def test_sampled_law_agrees_with_the_enumerated(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = [each / 8 for each in (3, -1, 5, 2, -4, 7, 1, 1, -2, 6, -3, 4)]
    exact = sign_flip_p(differences)
    monkeypatch.setattr(statistics, "EXACT_BITS", 0)
    assert sign_flip_p(differences) == pytest.approx(exact, abs=4 * math.sqrt(exact / statistics.FLIPS))
    assert sign_flip_p(differences) == sign_flip_p(differences)
    assert sign_flip_p([1.0] * 60) == 1 / (statistics.FLIPS + 1)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="no pairs"):
        sign_flip_p([])
