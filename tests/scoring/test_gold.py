"""Published solutions must score 1: a scorer that refuses the gold answer measures nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest

from dllm_rl.scoring.score import score, score_all
from tests.scoring.hosts import needs_isolation


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("split", ["test", pytest.param("train", marks=pytest.mark.slow)])
def test_gsm8k_solutions(shared: Path, split: str) -> None:
    rows = _rows(shared / f"data/gsm8k/{split}.jsonl")
    assert {each.value for each in score_all("gsm8k", [row["answer"] for row in rows], rows)} == {1.0}


def test_gsm8k_is_not_generous(shared: Path) -> None:
    rows = _rows(shared / "data/gsm8k/test.jsonl")
    answers = [row["answer"].rpartition("#### ")[2] for row in rows]
    scores = score_all("gsm8k", [f"<answer>{answer}</answer>" for answer in answers[1:] + answers[:1]], rows)
    same = [
        float(a.replace(",", "")) == float(b.replace(",", ""))
        for a, b in zip(answers, answers[1:] + answers[:1], strict=True)
    ]
    assert [each.value == 1 for each in scores] == same


def test_math500_solutions_and_answers(shared: Path) -> None:
    rows = _rows(shared / "data/math500/test.jsonl")
    for completions in ([row["solution"] for row in rows], [f"<answer>${row['answer']}$</answer>" for row in rows]):
        scores = score_all("math500", completions, rows)
        assert [row["answer"] for row, each in zip(rows, scores, strict=True) if each.value != 1] == []


@pytest.mark.slow
def test_math500_is_not_generous(shared: Path) -> None:
    rows = _rows(shared / "data/math500/test.jsonl")
    shifted = rows[1:] + rows[:1]
    scores = score_all("math500", [rf"\boxed{{{row['answer']}}}" for row in shifted], rows)
    right = [(row["answer"], other["answer"]) for row, other, s in zip(rows, shifted, scores, strict=True) if s.value]
    assert right == [("5", "x=5"), ("7", "7"), ("3", "3")]


def test_sudoku_solutions(shared: Path) -> None:
    with (shared / "data/sudoku/4x4_test.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert {
        each.value for each in score_all("sudoku", [f"<answer>{row['Solution']}</answer>" for row in rows], rows)
    } == {1}
    assert {score("sudoku", f"<answer>{row['Puzzle']}</answer>", row).value for row in rows} == {0}


def _expressions(numbers: list[str]) -> Iterator[str]:
    for (a, b, c), (first, second) in product(permutations(numbers), product("+-*/", repeat=2)):
        yield f"({a} {first} {b}) {second} {c}"
        yield f"{a} {first} ({b} {second} {c})"


def test_countdown_problems_can_be_solved(shared: Path) -> None:
    rows = _rows(shared / "data/countdown/test.jsonl")[:60]
    for row in rows:
        candidates = _expressions(row["input"].split(","))
        assert any(score("countdown", f"<answer>{each}</answer>", row).value == 1 for each in candidates), row


@needs_isolation
@pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_humaneval_solutions(shared: Path, every: int) -> None:
    rows = _rows(shared / "data/humaneval/HumanEval.jsonl")[::every]
    bodies = [row["canonical_solution"] for row in rows]
    whole = [f"So:\n```python\n{row['prompt']}{row['canonical_solution']}```\nDone." for row in rows]
    for completions in (bodies, whole) if every > 1 else (bodies,):
        scores = score_all("humaneval", completions, rows)
        assert [row["task_id"] for row, each in zip(rows, scores, strict=True) if each.value != 1] == []


@needs_isolation
@pytest.mark.parametrize("every", [83, pytest.param(1, marks=pytest.mark.slow)])
def test_mbpp_solutions(shared: Path, every: int) -> None:
    rows = [row for row in _rows(shared / "data/mbpp/mbpp.jsonl") if 11 <= row["task_id"] <= 510][::every]
    scores = score_all("mbpp", [row["code"] for row in rows], rows)
    assert [row["task_id"] for row, each in zip(rows, scores, strict=True) if each.value != 1] == []


@needs_isolation
def test_mbpp_where_tests_use_the_codes_own_classes_and_names(shared: Path) -> None:
    """367, 927: a set-up that builds the code's objects; 601: objects in tests; 126: like a built-in; 596: `sys`."""
    rows = [row for row in _rows(shared / "data/mbpp/mbpp.jsonl") if row["task_id"] in (126, 367, 596, 601, 927)]
    assert [each.value for each in score_all("mbpp", [row["code"] for row in rows], rows)] == [1.0] * 5


@needs_isolation
@pytest.mark.slow
def test_code_tasks_are_not_generous(shared: Path) -> None:
    """The solution of the next problem, under the name of this one."""
    rows = _rows(shared / "data/humaneval/HumanEval.jsonl")[:60]
    others = [
        f"{other['prompt']}{other['canonical_solution']}\n{row['entry_point']} = {other['entry_point']}\n"
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    right = [
        row["entry_point"] for row, each in zip(rows, score_all("humaneval", others, rows), strict=True) if each.value
    ]
    assert right == []
