from __future__ import annotations

import math

import pytest

import dllm_rl
from dllm_rl.errors import DataError
from dllm_rl.evaluation.metrics import EvalResult, Record, evaluate


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


def test_the_names_at_the_top() -> None:
    assert dllm_rl.evaluate is evaluate
    assert dllm_rl.score("gsm8k", "#### 5", {"answer": "5"}).value == 1
