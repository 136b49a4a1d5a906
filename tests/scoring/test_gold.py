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
