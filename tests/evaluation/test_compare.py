"""Comparisons by hand, and what must not be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dllm_rl.errors import DataError
from dllm_rl.evaluation.compare import compare_results, compare_runs, table
from dllm_rl.evaluation.metrics import EvalResult, Record, result_of
from dllm_rl.evaluation.store import write_evaluation, write_records
from tests.evaluation.test_protocol import protocol


def result(*scores: float, model: str = "a", **changes: object) -> EvalResult:
    records = [Record(i, f"{i}?", f"{score}", None, score, "", 8) for i, score in enumerate(scores)]
    return result_of(records, protocol(model=model, revision=model, **changes))


def test_pairs_by_hand() -> None:
    found = compare_results("gsm8k", result(1, 0, 0, 1, 0), result(1, 1, 1, 0, 0, model="b"))
    assert found.differences == [0, 1, 1, -1, 0]
    assert (found.difference, found.better, found.other_texts) == (pytest.approx(0.2), (1, 2), 3)
    assert found.std_error == pytest.approx((2.8 / 4 / 5) ** 0.5)
    assert found.p_value == 1.0
    assert found.interval == pytest.approx((0.2 - 1.959964 * found.std_error, 0.2 + 1.959964 * found.std_error))


def test_pairing_sees_what_separate_intervals_do_not() -> None:
    """Eight examples more are right and none fewer: p = 2 / 2^8, although both intervals overlap."""
    first, second = result(*[1] * 40, *[0] * 60), result(*[1] * 48, *[0] * 52, model="b")
    assert first.interval[1] > second.interval[0]
    assert compare_results("gsm8k", first, second).p_value == 2 / 2**8


def test_folders_and_files(tmp_path: Path) -> None:
    for name, other in (("a", result(1, 0)), ("b", result(1, 1, model="b"))):
        write_evaluation(tmp_path / name / "gsm8k.jsonl", other)
    write_evaluation(tmp_path / "a" / "math500.jsonl", result(1))
    (one,) = compare_runs(tmp_path / "a", tmp_path / "b")
    (two,) = compare_runs(tmp_path / "a/gsm8k.jsonl", tmp_path / "b/gsm8k.jsonl")
    assert one == two and (one.task, one.difference) == ("gsm8k", 0.5)
    shown = table([one], "a", "b")
    assert all(part in shown for part in ("A: a", "B: b", "gsm8k", "0.5000", "1.0000", "+0.5000", "1 of 2"))
    assert all(line == line.rstrip() for line in shown.split("\n"))


def test_two_tasks_do_not_compare_whatever_is_forced() -> None:
    with pytest.raises(DataError, match="^gsm8k and sudoku are two tasks"):
        compare_results("sudoku", result(1, 0), result(1, 0, task="sudoku"), force=True)


def test_a_run_is_no_evaluation_but_holds_some(tmp_path: Path) -> None:
    for update in ("000000", "000100"):
        (tmp_path / f"run/eval/update-{update}").mkdir(parents=True)
    with pytest.raises(DataError, match=r"run is a run, .* such as .*run/eval/update-000100$"):
        compare_runs(tmp_path / "run/eval/update-000000", tmp_path / "run")


def test_what_does_not_compare(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"temperature is 0.0 there, 1.0 here"):
        compare_results("gsm8k", result(1), result(1, temperature=1.0))
    forced = compare_results("gsm8k", result(1), result(1, temperature=1.0), force=True)
    assert "temperature" in table([forced], "a", "b")
    with pytest.raises(DataError, match="2 answers in one and 1 in the other"):
        compare_results("gsm8k", result(1, 0), result(1))
    moved = replace(result(1, 0), records=result(1, 0).records[::-1])
    with pytest.raises(DataError, match="not of the same examples"):
        compare_results("gsm8k", result(1, 0), moved)
    write_evaluation(tmp_path / "a" / "gsm8k.jsonl", result(1))
    write_evaluation(tmp_path / "b" / "math500.jsonl", result(1))
    with pytest.raises(DataError, match=r"a has gsm8k\.jsonl, .*b has math500\.jsonl"):
        compare_runs(tmp_path / "a", tmp_path / "b")
    write_records(tmp_path / "c" / "gsm8k.jsonl", result(1).records)
    with pytest.raises(DataError, match=r"expected records and gsm8k\.json beside them"):
        compare_runs(tmp_path / "a", tmp_path / "c")
