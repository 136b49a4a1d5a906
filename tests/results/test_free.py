"""What is free: the ways, what the page says of them, and that the numbers are the ledger's where they meet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from results.tiny import free_part, ledger
from results.tiny.free import TRAINED, WAYS, Decoded, decode, read, write
from results.tiny.ledger import Point, Run
from results.tiny.methods import METHODS, TASKS
from results.tiny.run import ROOT

TASK = TASKS[0]
EVEN, THRESHOLD = WAYS[1].title, "threshold, threshold 0.9"


def decoded(way: str, right: int, forwards: float, seed: int | None = None) -> Decoded:
    return Decoded("column_sum", "start" if seed is None else TRAINED, seed, way, right, 500, forwards)


FOUND = [
    decoded(EVEN, 170, 7.0),
    decoded(THRESHOLD, 200, 4.13),
    *(decoded(EVEN, 430 + seed, 7.0, seed) for seed in range(2)),
    *(decoded(THRESHOLD, 420 + seed, 3.5 + seed / 10, seed) for seed in range(2)),
]


def fast(method: str, right: int, forwards: float) -> Run:
    curve = [Point(0, 170, 500, 7.0), Point(40, right, 500, forwards)]
    return Run("column_sum", method, 0, 5120, 80.0, 40.0, "2026-11-26", "2 CPU cores", [], curve)


def test_an_even_split_takes_the_steps_of_its_name_and_the_others_decide() -> None:
    steps = [way.settings(14, 7).steps for way in WAYS[:3]]
    assert steps == [14, 7, 4]
    assert {way.settings(14, 7).steps for way in WAYS if way.sampler in ("threshold", "factor", "eb")} == {None}
    assert len({way.title for way in WAYS}) == len(WAYS)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(FOUND, tmp_path / "free.json")
    assert read(tmp_path / "free.json") == FOUND
    assert read(tmp_path / "none.json") == []
    first = json.loads((tmp_path / "free.json").read_text())[0]
    assert first["accuracy"] == 0.34 and first["interval"] == [0.2998, 0.3826]


def test_the_page_has_a_line_for_every_way_that_was_tried() -> None:
    text = free_part.part("column_sum", FOUND, [])
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| decoded with | starting weights | forwards | CJ-GRPO, seed 0 | CJ-GRPO, seed 1 | forwards |",
        "|---|---|---|---|---|---|",
        f"| {EVEN} | 0.340 (0.300-0.383) | 7.00 | 0.860 (0.827-0.888) | 0.862 (0.829-0.889) | 7.00 |",
        f"| {THRESHOLD} | 0.400 (0.358-0.444) | 4.13 | 0.840 (0.805-0.870) | 0.842 (0.807-0.871) | 3.55 |",
    ]
    assert free_part.part("small_sudoku", FOUND, []) == ""


@pytest.mark.parametrize(
    ("right", "forwards", "said"),
    [
        (425, 4.0, f"under `{THRESHOLD}` are at 0.841 with 3.55: as good (0.009 apart), and free."),
        (380, 4.0, f"under `{THRESHOLD}` are at 0.841 with 3.55: 0.081 better, and free."),
        (495, 4.0, f"under `{THRESHOLD}` are at 0.841 with 3.55: 0.149 worse, and free."),
        (495, 7.0, f"under `{EVEN}` are at 0.861 with 7.00: 0.129 worse, and free."),
        (495, 3.0, "No free way on CJ-GRPO's weights is as fast."),
    ],
)
def test_fast_methods_are_compared_with_what_is_free(right: int, forwards: float, said: str) -> None:
    text = free_part.part("column_sum", FOUND, [fast("dultra", right, forwards)])
    assert text.endswith(f"{said}\n")
    assert f"dUltra ends at {right / 500:.3f} with {forwards:.2f} forwards" in text


def test_the_committed_numbers_are_the_ledgers_where_they_meet() -> None:
    """The even split of two is what the ledger evaluates with: the start, and CJ-GRPO's runs made again."""
    runs = {run.cell: run for run in ledger.read()}
    for each in read():
        if each.way == EVEN:
            run = runs[each.task, TRAINED, each.seed or 0]
            meets = run.before if each.seed is None else run.after
            assert (each.right, each.problems, each.forwards) == (meets.right, meets.problems, meets.forwards)


def test_a_run_can_be_made_again_from_its_record() -> None:
    run = next(run for run in ledger.read() if run.method == TRAINED)
    method = next(method for method in METHODS if method.name == TRAINED)
    assert method.recorded(run.overrides).changes(TASK) == tuple(run.overrides)


@pytest.mark.slow
def test_weights_are_decoded_in_every_way() -> None:
    found = decode(TASK, ROOT / "recipes/weights/column_sum", "start", None, limit=20)
    assert [each.way for each in found] == [way.title for way in WAYS]
    assert {each.problems for each in found} == {20}
    assert found[0].forwards == 14.0 and 1 <= found[3].forwards < 14
