"""docs/metrics.md lists what runs log, no more and no less."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

import dllm_rl
from dllm_rl.algorithms import AlgorithmSection
from tests.e2e import runs

PAGE = Path(__file__).resolve().parents[2] / "docs/metrics.md"
ALGORITHMS: dict[str, dict[str, Any]] = {
    "sft": {"num_draws": 2},
    "vrpo": {"num_draws": 2},
    "diffu_grpo": {"num_draws": 2},
    "cj_grpo": {},
    "mask_grpo": {},
    "mdpo": {},
    "igpo": {"hints": runs.HINTS},
    "co_grpo": {"network_updates": 1, "schedule_updates": 1},
    "dultra": {},
    "planner_imitation": {},
}
"""Settings under which every method logs all it can."""


def generic(name: str) -> str:
    """A name with what the recipe chose replaced by what it stands for."""
    return re.sub(r"^eval/[^/]+/", "eval/TASK/", name).replace("reward/reward.digits", "reward/FUNCTION")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names by method, of one update each; the first with an evaluation."""
    folder = runs.workshop(tmp_path_factory.mktemp("runs"))
    names = {}
    for method, settings in ALGORITHMS.items():
        steps = 2 if method == "co_grpo" else 1  # a turn each
        tree = runs.recipe(folder, {"type": method, **settings}, method, max_steps=steps, save_strategy="no")
        if method == "sft":
            tree["eval"] = {"tasks": ["arithmetic"], "limit": 2, "gen_length": 2}
        lines = dllm_rl.train(tree).metrics
        names[method] = {generic(name) for line in lines for name in line}
    return names


def test_every_method_is_run() -> None:
    (union, *_) = get_args(AlgorithmSection)
    assert {method.model_fields["type"].default for method in get_args(union)} == set(ALGORITHMS)


ROWS = re.findall(r"^\| `([^|]+)` \|.*?\| ([^|]*) \| [^|]*\|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.slow
def test_the_page_lists_exactly_what_runs_log(logged: dict[str, set[str]]) -> None:
    listed = [name for names, _ in ROWS for name in names.split("`, `")]
    assert len(listed) == len(set(listed))
    assert set(listed) == set.union(*logged.values())


@pytest.mark.slow
def test_every_method_that_samples_logs_what_the_page_says_of_rollouts(logged: dict[str, set[str]]) -> None:
    shared = {name for name, methods in ROWS if methods.startswith("rollouts")}
    assert len(shared) > 10
    for method, names in logged.items():
        assert method in ("sft", "vrpo", "planner_imitation") or shared <= names, method
