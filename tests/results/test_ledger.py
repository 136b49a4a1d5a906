from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from results.tiny import figure, free, ledger, search, table
from results.tiny.ledger import Point, Run, points, read, replaced, wilson, write
from results.tiny.methods import METHODS, TASKS


def run(task: str, method: str, seed: int, right: int, forwards: float = 7.0) -> Run:
    curve = [Point(0, 300, 1000, 7.0), Point(10, 400, 1000, 6.5), Point(20, right, 1000, forwards)]
    return Run(task, method, seed, 6400, 80.0, 40.0 + seed, "2026-11-26", "2 CPU cores, x86_64", ["a=b"], curve)


RUNS = [
    run("column_sum", "vrpo", 0, 700),
    run("column_sum", "cj_grpo", 1, 910, 4.25),
    run("column_sum", "cj_grpo", 0, 900, 3.75),
    run("small_sudoku", "diffu_grpo", 0, 1000),
]


@pytest.mark.parametrize(("right", "total"), [(0, 20), (3, 20), (500, 1000), (1000, 1000)])
def test_wilson_bounds_are_where_the_share_is_1_96_deviations_away(right: int, total: int) -> None:
    """The interval's definition: the shares p with (right / total - p)^2 <= z^2 p (1 - p) / total."""
    z = 1.959963984540054
    low, high = wilson(right, total)
    assert -1e-12 <= low <= right / total <= high <= 1 + 1e-12
    for bound in (low, high):
        if 1e-12 < bound < 1 - 1e-12:
            assert abs(right / total - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / total))


def test_a_published_interval() -> None:
    """Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_points_are_the_evaluations_of_one_task() -> None:
    name = "eval/column_sum"
    lines = [
        {"update": 0, f"{name}/accuracy": 0.3, f"{name}/n": 500, f"{name}/forwards": 7.0, f"{name}/std_error": 0.02},
        {"update": 1, "loss": 2.0},
        {"update": 5, "eval/other/accuracy": 1.0, "eval/other/n": 1, "eval/other/forwards": 1.0},
        {"update": 9, f"{name}/accuracy": 0.57, f"{name}/n": 500, f"{name}/forwards": 4.5},
    ]
    found = points(lines, "column_sum")
    assert found == [Point(0, 150, 500, 7.0), Point(9, 285, 500, 4.5)]
    assert found[1].accuracy == 0.57


def test_a_ledger_is_read_as_it_was_written_and_says_what_people_want(tmp_path: Path) -> None:
    file = tmp_path / "ledger.json"
    assert read(file) == []
    write(RUNS, file)
    assert read(file) == sorted(RUNS, key=lambda each: each.cell)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]
    first = json.loads(file.read_text())[0]
    assert (first["method"], first["seed"]) == ("cj_grpo", 0)
    assert first["before"] == {"accuracy": 0.3, "interval": [round(end, 4) for end in wilson(300, 1000)]}
    assert first["after"]["accuracy"] == 0.9


def test_a_repeated_run_takes_the_place_of_the_old_one() -> None:
    again = replace(RUNS[0], seconds=1.0)
    assert replaced(RUNS, again) == [*RUNS[1:], again]
    assert replaced(RUNS[1:], RUNS[0]) == [*RUNS[1:], RUNS[0]]


def test_the_page_has_a_line_per_method_with_means_over_seeds_and_an_interval_per_run() -> None:
    text = table.page(RUNS)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert (
        lines[0]
        == "| method | before | after, seed 0 | after, seed 1 | forwards before | forwards after | wall s | CPU s |"
    )
    before = "0.300 (0.272-0.329)"
    assert lines[1] == f"| VRPO | {before} | 0.700 (0.671-0.728) |  | 7.00 | 7.00 | 80 | 40 |"
    assert lines[2] == f"| CJ-GRPO | {before} | 0.900 (0.880-0.917) | 0.910 (0.891-0.926) | 7.00 | 4.00 | 80 | 40 |"
    assert lines[4] == f"| diffu-GRPO | {before} | 1.000 (0.996-1.000) | 7.00 | 7.00 | 80 | 40 |"
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == [*(f"## {task.title}" for task in TASKS), "## Notes"]
    assert "6400 rollouts a run, 1000 held-out problems; 2026-11-26, 2 CPU cores, x86_64." in text


def test_notes_are_those_of_methods_that_ran() -> None:
    notes = [line for line in table.page(RUNS).splitlines() if line.startswith("- ")]
    assert notes == [f"- VRPO {METHODS[0].note}."]
    assert "## Notes" not in table.page(RUNS[1:])


def test_seeds_that_start_apart_are_told_apart() -> None:
    other = replace(RUNS[1], curve=[Point(0, 320, 1000, 7.0), *RUNS[1].curve[1:]])
    assert "| CJ-GRPO | 0.300, 0.320 | 0.900" in table.page([RUNS[0], other, RUNS[2]])


def test_the_page_keeps_to_the_columns_of_its_head() -> None:
    for block in table.page(RUNS).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1


def test_the_figure_is_drawn_from_whatever_there_is(tmp_path: Path) -> None:
    for number, runs in enumerate((RUNS, [])):
        figure.draw(runs, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_a_colour_for_every_method() -> None:
    assert len(METHODS) <= len(set(figure._COLOURS))


def test_the_committed_page_is_made_from_the_committed_ledger() -> None:
    runs = ledger.read()
    page = table.page(runs, free.read(), search.read())
    assert runs
    assert (ledger.FOLDER / "table.md").read_text(encoding="utf-8") == page
    assert re.search(r"\d", page)


def test_every_run_of_the_committed_ledger_had_the_same_start_and_budget() -> None:
    for task in TASKS:
        mine = [each for each in ledger.read() if each.task == task.name]
        assert len({each.rollouts for each in mine}) == 1
        assert {each.after.problems for each in mine} == {mine[0].before.problems}
        assert mine[0].before.problems >= 500
