"""One cell of the ledger, made small, through the real command line; and the pairs that VRPO learns from."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template

import pytest

from dllm_rl.recipe.load import load_recipe
from dllm_rl.toys.column_sum import rows
from dllm_rl.training.source import Sample
from results.tiny.methods import METHODS, TASKS
from results.tiny.pairs import best_against_worst, main, preference_pairs
from results.tiny.run import ROOT, rollouts, run_cell, run_python

TASK = TASKS[0]
SMALL = ["train.max_steps=2", "eval.limit=40", "eval.every=1"]


def sample(completion: str, reward: float) -> Sample:
    return Sample("1+1=", completion, reward, 0.0)


def test_the_best_of_a_group_is_preferred_to_its_worst() -> None:
    group = [sample("a", 0.5), sample("b", 0.0), sample("c", 1.0), sample("d", 1.0), sample("e", 0.0)]
    assert best_against_worst(group) == {"prompt": "1+1=", "chosen": "c", "rejected": "b"}
    assert best_against_worst([sample("a", 1.0), sample("b", 1.0)]) is None


def test_the_budget_of_rollouts_is_that_of_the_recipe() -> None:
    assert rollouts(TASK, ["train.max_steps=3", "train.per_device_train_batch_size=5"]) == 3 * 5 * 8


@pytest.mark.slow
def test_pairs_are_the_starting_models_own_and_the_same_every_time(tmp_path: Path) -> None:
    small = ["train.max_steps=1", "train.per_device_train_batch_size=8", "train.seed=3"]
    pairs = preference_pairs(TASK.recipe, small)
    answers = {row["prompt"]: row["answer"] for row in rows("train", count=5000)}
    assert 1 <= len(pairs) <= 8
    for pair in pairs:
        assert pair["chosen"].partition("#")[2] == answers[pair["prompt"]] != pair["rejected"].partition("#")[2]
    main(TASK.recipe, str(tmp_path / "pairs.jsonl"), *small)
    assert [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()] == pairs
    assert preference_pairs(TASK.recipe, [*small[:2], "train.seed=4"]) != pairs


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_small_cell(method: object) -> None:
    """Every method of the table runs on the ledger's recipe as its entry says."""
    run = run_cell(TASK, method, 1, SMALL)  # type: ignore[arg-type]
    assert run.cell == ("column_sum", method.name, 1)  # type: ignore[attr-defined]
    assert [point.update for point in run.curve] == [0, 1, 2]
    assert {point.problems for point in run.curve} == {40}
    assert run.rollouts == rollouts(TASK, SMALL)
    assert run.before.forwards > 0
    assert 0 < run.cpu_seconds < 2 * run.seconds


def test_a_run_that_fails_says_which_and_why(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit('there is no such thing')")
    with pytest.raises(RuntimeError, match=r"program.py x\nended with 1:\nthere is no such thing"):
        run_python([str(program), "x"], str(tmp_path))


def test_every_method_is_one_of_the_library_and_changes_what_a_recipe_has() -> None:
    """Overrides are checked against the recipe's sections before anything is run."""
    for task in TASKS:
        for method in METHODS:
            changed = [*method.overrides, *method.by_task.get(task.name, ())]
            recipe = load_recipe(ROOT / task.recipe, [Template(each).substitute(folder="/f") for each in changed])
            assert recipe.algorithm.type == method.name
            assert recipe.train.arguments["max_steps"] == 40
