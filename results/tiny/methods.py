"""The grid of the learning ledger: tasks, methods and what each method changes in a task's recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from results.tiny.pairs import with_pairs


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
    """One line of every table."""

    name: str
    """Its `algorithm.type`."""
    title: str
    overrides: tuple[str, ...] = ()
    """What it changes in the recipe of every task."""
    by_task: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What else it changes, by the task's name."""
    prepare: Callable[[str, Sequence[str], Path], list[str]] | None = None
    """What it makes beforehand, from (recipe, overrides of the cell, a folder), and the overrides that use it."""


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
            "reward=null",
            "rollout=null",
            "train.per_device_train_batch_size=32",
        ),
        prepare=with_pairs,
    ),
    Method("diffu_grpo", "diffu-GRPO"),
    Method("cj_grpo", "CJ-GRPO", ("algorithm={type: cj_grpo, clip_low: 0.2, clip_high: 0.2, kl_coefficient: 0.0}",)),
)
SEEDS = (0, 1, 2)
