"""The exact laws of `benchmarks/laws.py` against our corruptors' own draws, against quadrature and by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from benchmarks import laws
from dllm_rl.diffusion.corruption import (
    AntitheticLevels,
    Balanced,
    Bernoulli,
    Complementary,
    Corruptor,
    FixedCount,
)
from dllm_rl.diffusion.likelihood import elbo, exact_elbo
from dllm_rl.diffusion.sequences import sequences_from_ids
from dllm_rl.rng import sample_keys
from tests.diffusion.tabular import Tabular

PAIRS = [
    (FixedCount(stratified=False), laws.fixed_count_independent),
    (FixedCount(), laws.fixed_count),
    (AntitheticLevels(), laws.antithetic),
    (Complementary(), laws.complementary),
    (Balanced(), laws.balanced),
    (Bernoulli(floor=0.05), lambda n, draws: laws.bernoulli(n, draws, floor=0.05)),
]
UNBIASED = PAIRS[:-1]
NAMES = [repr(corruptor) for corruptor, _ in PAIRS]


def some_table(n: int, seed: int = 0) -> np.ndarray:
    """A(S) of a made-up text: tokens of unequal difficulty that grow harder as more is hidden, and noise."""
    generator = np.random.default_rng(seed)
    sizes = laws.hidden_sizes(n)
    difficulty = (((np.arange(2**n)[:, None] >> np.arange(n)) & 1) * generator.exponential(1.0, n)).sum(1)
    return -difficulty * (0.3 + sizes / n) - sizes * generator.uniform(0, 0.5, 2**n)


def drawn(corruptor: Corruptor, table: np.ndarray, draws: int, rows: int) -> np.ndarray:
    """`rows` independent estimates made of the corruptor's real views."""
    n = len(table).bit_length() - 1
    sequences = sequences_from_ids([[]] * rows, [list(range(1, n + 1))] * rows, 0)
    views = corruptor.views(sequences, draws, sample_keys(7, torch.arange(rows)), 99)
    numbers = (views.scored.long() << torch.arange(n)).sum(-1).numpy()
    return (views.weight.amax(-1).numpy() * table[numbers]).reshape(rows, draws).mean(1)


@pytest.mark.parametrize(("corruptor", "law"), PAIRS, ids=NAMES)
@pytest.mark.parametrize(("n", "draws"), [(1, 2), (3, 4), (5, 8), (7, 4)])
def test_the_variance_of_real_draws_is_the_laws(corruptor: Corruptor, law: object, n: int, draws: int) -> None:
    table = some_table(n)
    seen, exact = drawn(corruptor, table, draws, rows=2500), law(n, draws)
    mean = float(exact.expectation(laws.size_means(table[None]))[0])
    variance = float(exact.variance(laws.pair_moments(np.outer(table, table))))
    squares = (seen - mean) ** 2
    assert abs(seen.mean() - mean) <= 4 * seen.std() / len(seen) ** 0.5 + 1e-9
    assert abs(squares.mean() - variance) <= 4 * squares.std() / len(seen) ** 0.5 + 1e-9


@pytest.mark.parametrize(("corruptor", "law"), UNBIASED, ids=NAMES[:-1])
def test_estimates_of_a_model_vary_as_the_law_says(corruptor: Corruptor, law: object) -> None:
    model, words = Tabular(), [2, 0, 1]
    table = np.zeros(8)
    for hidden in [u for size in (1, 2, 3) for u in combinations(range(3), size)]:
        canvas = torch.tensor([[3 if i in hidden else token for i, token in enumerate(words)]])
        logp = model.logits(canvas)[0].log_softmax(-1)
        table[sum(1 << i for i in hidden)] = sum(float(logp[i, words[i]]) for i in hidden)
    exact = law(3, 4)
    assert float(exact.expectation(laws.size_means(table[None]))[0]) == pytest.approx(exact_elbo(model, [], words))
    values = elbo(model, [[]] * 2000, [words] * 2000, num_draws=4, corruptor=corruptor, views_per_forward=8000).value
    squares = (values - exact_elbo(model, [], words)) ** 2
    variance = float(exact.variance(laws.pair_moments(np.outer(table, table))))
    assert abs(float(squares.mean()) - variance) < 4 * float(squares.std()) / 2000**0.5


@pytest.mark.parametrize(("corruptor", "law"), UNBIASED, ids=NAMES[:-1])
@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_every_hidden_set_weighs_on_average_what_it_does_in_the_elbo(corruptor: Corruptor, law: object, n: int) -> None:
    assert law(n, 8).mean[1:] == pytest.approx(1 / np.arange(1, n + 1), rel=1e-12)


@pytest.mark.parametrize(("corruptor", "law"), PAIRS, ids=NAMES)
def test_what_is_constant_has_no_variance(corruptor: Corruptor, law: object) -> None:
    """If every token costs 1 nat in every context, every estimate is n nats; but under Bernoulli, whose counts vary."""
    constant = -laws.hidden_sizes(5).astype(float)
    variance = float(law(5, 8).variance(laws.pair_moments(np.outer(constant, constant))))
    assert variance > 0.1 if isinstance(corruptor, Bernoulli) else abs(variance) < 1e-12


def test_independent_draws_split_into_within_and_between_counts() -> None:
    """By hand: (mean over l of the variance at l, plus the variance over l of the mean at l) / K."""
    table, n = some_table(5), 5
    values = [table[laws.hidden_sizes(n) == size] * n / size for size in range(1, n + 1)]
    by_hand = (np.mean([v.var() for v in values]) + np.var([v.mean() for v in values])) / 8
    moments = laws.pair_moments(np.outer(table, table))
    assert float(laws.fixed_count_independent(n, 8).variance(moments)) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("n", [1, 4, 10])
@pytest.mark.parametrize("floor", [0.1, 1e-3])
def test_bernoulli_moments_are_those_of_quadrature(n: int, floor: float) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    span = math.log(1 / floor)
    t = np.exp(-span * (nodes + 1) / 2)
    density = weights / 2 * span * t / (1 - floor)
    exact = laws.bernoulli(n, 1, floor)
    for size in range(1, n + 1):
        chance = math.comb(n, size) * t**size * (1 - t) ** (n - size)
        assert exact.mean[size] == pytest.approx((density * chance / t).sum(), rel=1e-9)
        second = exact.covariance[size, size, size] + exact.mean[size] ** 2 / math.comb(n, size)
        assert second == pytest.approx((density * chance / t**2).sum(), rel=1e-9)


def test_without_a_floor_bernoullis_variance_is_infinite_and_grows_as_the_logarithm_says() -> None:
    table, n = some_table(4), 4
    moments = laws.pair_moments(np.outer(table, table))
    assert laws.bernoulli(n, 8, floor=0.0).covariance[1, 1, 1] == math.inf
    low, lower = (float(laws.bernoulli(n, 8, floor=floor).variance(moments)) for floor in (1e-7, 1e-9))
    single = (table[[1, 2, 4, 8]] ** 2).sum()
    assert lower - low == pytest.approx(math.log(100) * single / 8, rel=1e-4)


def test_stratified_counts_by_hand() -> None:
    assert laws.stratified_counts(3, 2) == [[1, 2], [1, 3], [2, 3]]
    assert laws.stratified_counts(2, 4) == [[1, 1, 2, 2]]
    assert laws.stratified_counts(4, 1) == [[1], [2], [3], [4]]


def test_gradients_vary_as_their_inner_products_say() -> None:
    """The trace of a vector's covariance is the sum of its components' variances."""
    parts = [some_table(4, seed) for seed in range(3)]
    law = laws.balanced(4, 8)
    apart = sum(float(law.variance(laws.pair_moments(np.outer(part, part)))) for part in parts)
    gram = np.stack(parts, 1) @ np.stack(parts)
    assert float(law.variance(laws.pair_moments(gram))) == pytest.approx(apart, rel=1e-12)
