from __future__ import annotations

import math
from itertools import combinations, product

import pytest

import dllm_rl
from dllm_rl.errors import DataError
from dllm_rl.evaluation.metrics import EvalResult, Record, evaluate, pass_at_k


def test_scores_keep_their_order_and_sum_up() -> None:
    rows = [{"numbers": [1, 2], "target": 3}] * 4
    result = evaluate("countdown", [rf"\boxed{{{text}}}" for text in ("1+2", "2-1", "2+1", "1*2")], rows)
    assert result.scores == [1.0, 0.0, 1.0, 0.0]
    assert (result.accuracy, result.n) == (0.5, 4)
    assert result.std_error == pytest.approx(math.sqrt((4 * 0.25 / 3) / 4))


def test_partial_credit_counts() -> None:
    row = {"Puzzle": "3102200002100320", "Solution": "3142243142131324"}
    result = evaluate("sudoku", ["<answer>3142243142131324</answer>", "<answer>31422431</answer>"], [row, row])
    assert result.scores == [1.0, 0.5]
    assert result.accuracy == 0.75


def test_one_example_has_no_error_estimate_and_none_is_refused() -> None:
    assert math.isnan(EvalResult([1.0]).std_error)
    with pytest.raises(DataError, match="no completions"):
        evaluate("gsm8k", [], [])


def test_mean_forwards() -> None:
    record = Record(0, "p", "c", None, 1.0, "why", 8)
    assert EvalResult([1.0], (record,)).nfe == 8
    assert math.isnan(EvalResult([1.0]).nfe)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_pass_at_k_is_the_share_of_choices_with_a_right_sample(n: int) -> None:
    for c, k in product(range(n + 1), range(1, n + 1)):
        choices = list(combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == sum(map(any, choices)) / len(choices)


def test_pass_at_k_is_unbiased() -> None:
    """Averaged over all outcomes of n draws with success rate p, it is the chance that k draws hold a success."""
    n, p = 5, 0.3
    for k in range(1, n + 1):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_of_many_samples_is_exact() -> None:
    assert pass_at_k(10_000, 1, 100) == 0.01


@pytest.mark.parametrize("counts", [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(counts: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match="expected 0 <= right <= samples"):
        pass_at_k(*counts)


def test_the_names_at_the_top() -> None:
    assert dllm_rl.evaluate is evaluate
    assert dllm_rl.score("gsm8k", "#### 5", {"answer": "5"}).value == 1
