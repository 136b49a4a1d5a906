"""The grid of the learning ledger: tasks, methods and what each method changes in a task's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Task:
    """A procedural task with its starting weights, in a recipe that every method shares."""

    name: str
    """Of the evaluation task, and of the recipe: recipes/tiny_NAME.yaml."""
    title: str

    @property
    def recipe(self) -> str:
        return f"recipes/tiny_{self.name}.yaml"


@dataclass(frozen=True, slots=True)
class Method:
    """One line of every table. In its texts `$folder` is a folder of the run's own and `$recipe` the task's recipe."""

    name: str
    """Its `algorithm.type`."""
    title: str
    overrides: tuple[str, ...] = ()
    """What it changes in the recipe of every task."""
    by_task: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What else it changes, by the task's name."""
    first: tuple[str, ...] = ()
    """Arguments of a Python process that makes what the run needs; the seed's override follows. Its time counts."""


TASKS = (
    Task("column_sum", "Sums with a written trace"),
    Task("small_sudoku", "Sudoku of four rows"),
)
METHODS = (
    Method(
        "vrpo",
        "VRPO",
        (
            "algorithm={type: vrpo, beta: 0.2, num_draws: 4}",
            "data={path: $folder/pairs.jsonl}",
            "reward=null",
            "rollout=null",
            "train.per_device_train_batch_size=32",
        ),
        first=("-m", "results.tiny.pairs", "$recipe", "$folder/pairs.jsonl"),
    ),
    Method("diffu_grpo", "diffu-GRPO"),
    Method("cj_grpo", "CJ-GRPO", ("algorithm={type: cj_grpo, clip_low: 0.2, clip_high: 0.2, kl_coefficient: 0.0}",)),
)
SEEDS = (0, 1, 2)
