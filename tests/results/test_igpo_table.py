"""The table of docs/igpo.md is made by results/igpo.py from runs of a shipped recipe."""

from __future__ import annotations

import json

import pytest

from dllm_rl.recipe.load import load_recipe
from results import igpo


def test_a_line_of_the_table() -> None:
    cell = {"line": "IGPO", "seed": 1, "accuracy": [0.156, 0.28], "reward": [0.15, 0.23], "failed": [0.5625, 0.475]}
    assert igpo.table([cell]).splitlines()[-1] == "| IGPO | 1 | 0.280 | 0.150 to 0.230 | 0.562 to 0.475 |"


def test_means_are_those_of_the_first_and_the_last_ten_updates() -> None:
    metrics = [{"reward/mean": float(update)} for update in range(40)] + [{"eval/x/accuracy": 1.0}]
    assert igpo._ends(metrics, "reward/mean") == [4.5, 34.5]
    assert igpo._ends(metrics, "inpaint/correct_candidates") is None


def test_what_is_compared_differs_in_the_method_and_has_as_many_completions() -> None:
    """IGPO writes failing groups, about half of all, a second time: 40 updates of it are 60 of diffu-GRPO."""
    recipes = {line: load_recipe(igpo.ROOT / igpo.RECIPE, changes) for line, (changes, _) in igpo.RUNS.items()}
    ours, theirs = recipes["IGPO"], recipes["diffu-GRPO"]
    assert ours.rollout == theirs.rollout and ours.data == theirs.data and ours.eval == theirs.eval
    same = (
        "kl_coefficient",
        "clip_low",
        "clip_high",
        "num_draws",
        "corruption",
        "ratio_level",
        "reduction",
        "baseline",
    )
    for name in same:
        assert getattr(ours.algorithm, name) == getattr(theirs.algorithm, name), name
    assert (ours.train.arguments["max_steps"], theirs.train.arguments["max_steps"]) == (40, 60)
    if igpo.FILE.is_file():
        runs = json.loads(igpo.FILE.read_text())["runs"]
        counts = [run["completions"] for run in runs if run["line"] in ("IGPO", "diffu-GRPO")]
        assert max(counts) < 1.15 * min(counts)


def test_the_page_has_the_table_of_the_committed_runs() -> None:
    runs = json.loads(igpo.FILE.read_text(encoding="utf-8"))["runs"]
    assert [(run["line"], run["seed"]) for run in runs] == list(igpo.CELLS)
    assert igpo.table(runs) in (igpo.ROOT / "docs/igpo.md").read_text(encoding="utf-8")
    assert len({run["accuracy"][0] for run in runs}) == 1, "all start from the same weights"


@pytest.mark.slow
def test_a_short_run() -> None:
    found = igpo.run("IGPO", 0, ["train.max_steps=2", "eval.limit=40"])
    assert found["completions"] == round(2 * 128 * (1 + sum(found["failed"]) / 2))
    assert found["failed"][0] > 0.3, "groups mostly fail, which is what the task is for"
    assert found["correct_candidates"] is not None
