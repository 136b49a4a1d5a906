"""The search for settings: equal care for every method, on problems that nothing else reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template

import pytest

from dllm_rl.recipe.load import load_recipe
from dllm_rl.toys import arithmetic, column_sum, small_sudoku
from results.tiny import ledger, search_part
from results.tiny.ledger import Point, Run
from results.tiny.methods import METHODS, SEEDS, TASKS, Method, Task
from results.tiny.run import ROOT
from results.tiny.search import (
    FIRST,
    PROBLEMS,
    SEED,
    Try,
    attempt,
    best,
    fill,
    problems,
    read,
    settled,
    speed_factor,
    try_of,
    write,
)

TASK = TASKS[0]
VRPO = METHODS[0]


def tried(worth: float, *changes: str, task: Task = TASK, method: Method = VRPO) -> Try:
    return Try(
        task.name, method.name, SEED, list(changes), 500, 170, 250, 7.0, worth, 40.0, "2026-11-26", "2 CPU cores"
    )


def whole(task: Task, method: Method, worths: Sequence[float], at: int) -> list[Try]:
    """Three rates, then the own change at one of them."""
    settings = [(rate,) for rate in task.rates] + [(task.rates[at], method.own)]
    return [tried(worth, *changes, task=task, method=method) for worth, changes in zip(worths, settings, strict=True)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_its_problems_are_no_ones_else(task: Task) -> None:
    """Of the training side, from a row that neither training nor the starting weights' demonstrations reach."""
    rows = problems(task.name)
    assert len(rows) == PROBLEMS
    for recipe in (f"recipes/tiny_{task.name}.yaml", f"recipes/tiny_{task.name}_sft.yaml"):
        assert load_recipe(ROOT / recipe).data.options["count"] <= FIRST
    made = {"column_sum": column_sum, "small_sudoku": small_sudoku}[task.name].rows
    held_out = {row["prompt"] for row in made("test", count=500)}
    assert not held_out & {row["prompt"] for row in rows}
    assert made("train", start=FIRST, count=2) == rows[:2]
    assert arithmetic.split_size("train") > FIRST + PROBLEMS, "sums do not come again"
    assert SEED not in SEEDS


def test_every_method_is_tried_equally_often_and_with_settings_that_it_has() -> None:
    for task in TASKS:
        assert len(task.rates) == 3
        for method in METHODS:
            assert method.own
            changed = method.changed(task, [task.rates[0], method.own]).changes(task)
            recipe = load_recipe(ROOT / task.recipe, [Template(each).substitute(folder="/f") for each in changed])
            assert recipe.train.arguments["learning_rate"] == float(task.rates[0].partition("=")[2])
            plain = method.changed(task, [task.rates[0]]).changes(task)
            assert recipe != load_recipe(ROOT / task.recipe, [Template(each).substitute(folder="/f") for each in plain])


def test_the_best_is_worth_most_and_the_first_of_equals() -> None:
    tries = [tried(0.5, "a=1"), tried(0.7, "b=1"), tried(0.7, "c=1")]
    assert best(tries) is tries[1]


def test_a_method_takes_what_a_whole_search_found_and_nothing_before() -> None:
    tries = whole(TASK, VRPO, [0.4, 0.6, 0.5, 0.7], at=1)
    found = settled(TASK, VRPO, tries)
    assert found.changes(TASK) == (*VRPO.changes(TASK), TASK.rates[1], "algorithm.beta=1.0")
    assert found.changes(TASKS[1]) == VRPO.overrides, "of this task alone"
    assert settled(TASK, VRPO, whole(TASK, VRPO, [0.4, 0.6, 0.5, 0.3], at=1)).changes(TASK)[-1] == TASK.rates[1]
    assert settled(TASK, VRPO, tries[:3]) == VRPO
    assert settled(TASKS[1], VRPO, tries) == VRPO
    assert settled(TASK, METHODS[1], tries) == METHODS[1]


def run(forwards: float, overrides: list[str], method: str = "co_grpo") -> Run:
    curve = [Point(0, 170, 500, 7.0), Point(40, 400, 500, forwards)]
    return Run("column_sum", method, SEED, 5120, 80.0, 40.0, "2026-11-26", "2 CPU cores", overrides, curve)


def test_a_try_is_worth_what_its_method_is_paid_for() -> None:
    assert speed_factor(run(4.0, ["reward.speed_exponent=0.7"])) == pytest.approx((11 / 14) ** 0.7)
    assert speed_factor(run(4.0, ["train.learning_rate=1e-4"])) == 1.0
    found = try_of(run(4.0, ["reward.speed_exponent=0.7"]), ["x=1"])
    assert found.worth == round(0.8 * (11 / 14) ** 0.7, 4)
    assert (found.right, found.before, found.problems, found.forwards) == (400, 170, 500, 4.0)


def test_tries_are_read_as_they_were_written_and_none_is_made_twice(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    assert read(file) == []
    tries = whole(TASK, VRPO, [0.4, 0.6, 0.5, 0.7], at=1)
    write(tries, file)
    assert read(file) == tries
    assert fill([(TASK, VRPO)], 1, file) == tries
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


def test_the_page_shows_every_try_and_which_was_taken() -> None:
    tries = [*whole(TASK, VRPO, [0.4, 0.6, 0.5, 0.7], at=1), tried(0.3, TASK.rates[2], method=METHODS[1])]
    lines = [line for line in search_part.part(tries).splitlines() if line.startswith("|")]
    assert lines == [
        "| Sums with a written trace | 1e-4 | 2e-4 | 4e-4 | own change |",
        "|---|---|---|---|---|",
        "| VRPO | 0.400 | 0.600 | 0.500 | **0.700** (`algorithm.beta=1.0`) |",
        "| diffu-GRPO |  |  | 0.300 | (`algorithm.scale=group_std`) |",
    ]
    assert search_part.part([]) == ""


def test_the_page_says_how_settings_were_found() -> None:
    tries = whole(TASK, VRPO, [0.4, 0.6, 0.5, 0.7], at=1)
    searched = run(7.0, list(settled(TASK, VRPO, tries).changes(TASK)), "vrpo")
    said = search_part.how([searched], tries)
    assert said.startswith(search_part.SEARCHED) and "In 0 of 1 cases" in said
    edge = [*tries, *whole(TASKS[1], VRPO, [0.4, 0.5, 0.6, 0.5], at=2)]
    assert "In 1 of 2 cases" in search_part.how([searched], edge)
    by_seed_0 = replace(searched, overrides=list(VRPO.changes(TASK)))
    assert search_part.how([by_seed_0], []) == search_part.BY_SEED_0
    assert "4 of its 56 tries" in search_part.how([by_seed_0], tries)
    assert search_part.how([searched, by_seed_0], tries).startswith("This is no ranking.")


def test_the_committed_search_is_of_the_settings_that_it_names() -> None:
    by_name = {method.name: method for method in METHODS}
    for each in read():
        task = next(task for task in TASKS if task.name == each.task)
        assert each.tried[0] in task.rates
        assert each.tried[1:] in ([], [by_name[each.method].own])
        assert (each.seed, each.problems) == (SEED, PROBLEMS)
    assert {run.seed for run in ledger.read()} == set(SEEDS)


@pytest.mark.slow
def test_a_try_is_judged_on_the_searchs_problems() -> None:
    found = attempt(TASK, METHODS[2], [TASK.rates[0]], ["train.max_steps=1", "eval.limit=30"])
    assert (found.method, found.seed, found.problems, found.forwards) == ("cj_grpo", SEED, 30, 7.0)
    assert found.worth == round(found.right / 30, 4)
