"""What the corruptors' draws are, to second order, without drawing: exact variances from a table of hidden sets.

An estimate of K views is Σ_k w_k / K · A(S_k), with A(S) the sum of the log-probabilities of the tokens of a completion
that S hides. Every corruptor treats positions alike, so the covariance of the coefficients of two sets S and T depends
on |S|, |T| and |S ∩ T| alone; a `Law` is that covariance, summed over the pairs of sets of a kind. With the means of
A(S) A(T) over the kinds (`pair_moments`) the variance is one dot product. With inner products of gradients of A(S) in
their place it is the trace of the gradient's covariance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Law:
    """First and second moments of an estimator's coefficients, for n scored tokens."""

    mean: Array
    """[n+1] expected weight, over K, that all views hiding l tokens have; 1 / l for every unbiased estimator."""
    covariance: Array
    """[n+1, n+1, n+1] by sizes of two sets and of their intersection: summed over all pairs of sets of that kind."""

    def variance(self, moments: Array) -> Array:
        """Of the estimate, nats², from `pair_moments` [..., n+1, n+1, n+1]."""
        return np.asarray((self.covariance * moments).sum((-3, -2, -1)))

    def expectation(self, size_means: Array) -> Array:
        """Of the estimate, nats, from `size_means` [..., n+1]."""
        return size_means @ self.mean

    def averaged(self, times: int) -> Law:
        """The law of the mean of so many independent estimates."""
        return Law(self.mean, self.covariance / times)


Draw = tuple[int, float]
"""How many tokens a view hides, and the weight of each."""
Overlap = Callable[[Sequence[Draw], int, int], dict[int, float]]
"""Given a row's draws, the law of the number of tokens that two different ones of them both hide."""


def law(n: int, cells: Iterable[Sequence[Draw]], overlap: Overlap) -> Law:
    """The law of an estimator whose draws' counts are one of `cells`, all equally likely."""
    rows = list(cells)
    mean, pairs = np.zeros(n + 1), np.zeros((n + 1,) * 3)
    for draws in rows:
        share = 1.0 / (len(rows) * len(draws))
        for i, (size, weight) in enumerate(draws):
            mean[size] += share * weight
            for j, (other, other_weight) in enumerate(draws):
                common = {size: 1.0} if i == j else overlap(draws, i, j)
                for both, chance in common.items():
                    pairs[size, other, both] += share / len(draws) * weight * other_weight * chance
    return Law(mean, pairs - _independent(mean))


def drawn_apart(n: int) -> Overlap:
    """Two sets that know nothing of each other: hypergeometric."""
    return lambda draws, i, j: _hypergeometric(n, draws[i][0], draws[j][0])


def halves_of_pairs(n: int) -> Overlap:
    """Draws 2i and 2i + 1 hide nothing in common; others know nothing of each other."""
    return lambda draws, i, j: {0: 1.0} if i // 2 == j // 2 else _hypergeometric(n, draws[i][0], draws[j][0])


def hidden_least(n: int) -> Overlap:
    """Each draw hides the tokens that the draws before it hid least often, ties broken at random.

    Between draws some tokens are `due`: hidden once less than the rest, or all if none is behind. By symmetry it is
    enough to follow how many tokens of the earlier of two sets are due until the later one is drawn.
    """

    def overlap(draws: Sequence[Draw], i: int, j: int) -> dict[int, float]:
        first, last = min(i, j), max(i, j)
        size = draws[first][0]
        due = n - sum(count for count, _ in draws[:first]) % n
        marked = {0 if size < due else due: 1.0}
        due = _due_after(n, due, size)
        for count, _ in draws[first + 1 : last]:
            marked = _law_of(1, marked, n, size, due, count)
            due = _due_after(n, due, count)
        return _law_of(0, marked, n, size, due, draws[last][0])

    return overlap


def _due_after(n: int, due: int, count: int) -> int:
    return due - count if count < due else n - (count - due)


def _law_of(which: int, marked: dict[int, float], n: int, size: int, due: int, count: int) -> dict[int, float]:
    """After one more draw: how many of the earlier set's tokens it hides (0), or how many of them are due then (1)."""
    found: dict[int, float] = {}
    for m, chance in marked.items():
        if count < due:  # the draw hides some of those that are due, m of which are the earlier set's
            outcomes = [((a, m - a), p) for a, p in _hypergeometric(due, m, count).items()]
        else:  # all of those, and some of the rest, which are then one ahead
            rest = _hypergeometric(n - due, size - m, count - due)
            outcomes = [((m + b, size - b), p) for b, p in rest.items()]
        for numbers, p in outcomes:
            found[numbers[which]] = found.get(numbers[which], 0.0) + chance * p
    return found


def _hypergeometric(n: int, size: int, other: int) -> dict[int, float]:
    possible = range(max(0, size + other - n), min(size, other) + 1)
    return {m: comb(size, m) * comb(n - size, other - m) / comb(n, other) for m in possible}


def _independent(mean: Array) -> Array:
    """Products of mean coefficients, by kind of pair."""
    n = len(mean) - 1
    product = np.zeros((n + 1,) * 3)
    for size in range(n + 1):
        for other in range(n + 1):
            for both, chance in _hypergeometric(n, size, other).items():
                product[size, other, both] = mean[size] * mean[other] * chance
    return product


def stratified_counts(n: int, draws: int) -> list[list[int]]:
    """Counts of levels u, u + 1/draws, ... for u in each of the equal cells in which they are constant, ascending."""
    cells = math.lcm(n, draws)
    step = cells // draws
    return [[1 + (cell + k * step) * n // cells for k in range(draws)] for cell in range(step)]


def fixed_count(n: int, num_draws: int) -> Law:
    """`FixedCount(stratified=True)`."""
    return law(n, [[(c, n / c) for c in counts] for counts in stratified_counts(n, num_draws)], drawn_apart(n))


def fixed_count_independent(n: int, num_draws: int) -> Law:
    """`FixedCount(stratified=False)`: the mean of single draws."""
    return fixed_count(n, 1).averaged(num_draws)


def antithetic(n: int, num_draws: int) -> Law:
    """`AntitheticLevels`."""
    cells = [
        [(size, n / size) for count in counts for size in (count, n + 1 - count)]
        for counts in stratified_counts(n, num_draws // 2)
    ]
    return law(n, cells, drawn_apart(n))


def complementary(n: int, num_draws: int) -> Law:
    """`Complementary`; a view that hides nothing is a draw of weight 0, and its forward counts."""
    pairs = {count: [(count, n / count), (n - count, n / (n - count))] for count in range(1, n)}
    pairs[n] = [(n, 2.0), (0, 0.0)]
    cells = [[draw for count in counts for draw in pairs[count]] for counts in stratified_counts(n, num_draws // 2)]
    return law(n, cells, halves_of_pairs(n))


def balanced(n: int, num_draws: int) -> Law:
    """`Balanced`; counts ascend, as it draws them."""
    return law(n, [[(c, n / c) for c in counts] for counts in stratified_counts(n, num_draws)], hidden_least(n))


def bernoulli(n: int, num_draws: int, floor: float = 1e-3) -> Law:
    """`Bernoulli(floor)`. At floor 0 the entry of two equal sets of one token is infinite.

    E[w] = C(n, l) ∫ t^(l-1) (1-t)^(n-l) dt and E[w²] with t^(l-2), over (floor, 1) and divided by its length: for
    l = 1 the second holds ∫ 1/t dt = log(1 / floor).
    """
    mean, pairs = np.zeros(n + 1), np.zeros((n + 1,) * 3)
    for size in range(1, n + 1):
        mean[size] = comb(n, size) * _mean_of_powers(size - 1, n - size, floor)
        pairs[size, size, size] = comb(n, size) * _mean_of_powers(size - 2, n - size, floor)
    return Law(mean, pairs - _independent(mean)).averaged(num_draws)


def _mean_of_powers(power: int, other: int, floor: float) -> float:
    """Mean of t^power (1 - t)^other for t uniform on (floor, 1), in closed form; power is at least -1."""
    signed = [(-comb(other, j) if j % 2 else comb(other, j)) * _integral(power + j, floor) for j in range(other + 1)]
    return sum(signed) / (1.0 - floor)


def _integral(power: int, floor: float) -> float:
    if power == -1:
        return math.log(1.0 / floor) if floor > 0 else math.inf
    return (1.0 - math.pow(floor, power + 1)) / (power + 1)


def hidden_sizes(n: int) -> NDArray[np.int64]:
    """[2^n] how many tokens each set hides; bit i of a set's number is token i."""
    return np.array([number.bit_count() for number in range(2**n)])


def size_means(table: Array) -> Array:
    """[B, n+1] mean of A(S) over the sets of each size, from [B, 2^n]."""
    sizes = hidden_sizes(table.shape[1].bit_length() - 1)
    return np.stack([table[:, sizes == size].mean(1) for size in range(sizes.max() + 1)], axis=1)


def pair_moments(products: Array) -> Array:
    """[n+1, n+1, n+1] means over the pairs of sets of each kind, from the [2^n, 2^n] products of two sets' values."""
    n = len(products).bit_length() - 1
    kind, count = _kinds_of_pairs(n)
    total = np.bincount(kind, weights=products.ravel(), minlength=len(count))
    return (total / np.maximum(count, 1)).reshape((n + 1,) * 3)


@cache
def _kinds_of_pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The kind of each pair of sets, as one number, and how many pairs there are of each kind."""
    sizes, sets = hidden_sizes(n), np.arange(2**n)
    kind = ((sizes[:, None] * (n + 1) + sizes) * (n + 1) + sizes[sets[:, None] & sets]).ravel()
    return kind, np.bincount(kind, minlength=(n + 1) ** 3)
