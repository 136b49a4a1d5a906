"""The grid of the learning ledger: tasks, methods and what each method changes in a task's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Task:
    """A procedural task with its starting weights, in a recipe that every method shares."""

    name: str
    """Of the evaluation task, and of the recipe: recipes/tiny_NAME.yaml."""
    title: str
    rates: tuple[str, ...]
    """Learning rates that the search tries for every method."""

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
    own: str = ""
    """The one change of a setting of its own that the search tries."""
    note: str = ""
    """What a reader of its line must know."""

    def changes(self, task: Task) -> tuple[str, ...]:
        """All that it changes in a task's recipe."""
        return (*self.overrides, *self.by_task.get(task.name, ()))

    def changed(self, task: Task, more: Sequence[str]) -> Method:
        """The same with further changes, for one task."""
        return replace(self, by_task={task.name: (*self.by_task.get(task.name, ()), *more)})

    def recorded(self, overrides: Sequence[str]) -> Method:
        """The same with exactly these changes, as a run records them."""
        return replace(self, overrides=tuple(overrides), by_task={})


def _rates(*rates: str) -> tuple[str, ...]:
    return tuple(f"train.learning_rate={rate}" for rate in rates)


TASKS = (
    Task("column_sum", "Sums with a written trace", _rates("1e-4", "2e-4", "4e-4")),
    Task("small_sudoku", "Sudoku of four rows", _rates("2e-4", "4e-4", "8e-4")),
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
        by_task={"column_sum": ("train.learning_rate=1e-4",)},
        own="algorithm.beta=1.0",
        first=("-m", "results.tiny.pairs", "$recipe", "$folder/pairs.jsonl"),
        note="learns from pairs of the starting model's own rollouts, best against worst of a group, drawn beforehand",
    ),
    Method("diffu_grpo", "diffu-GRPO", own="algorithm.scale=group_std"),
    Method(
        "cj_grpo",
        "CJ-GRPO",
        ("algorithm={type: cj_grpo, clip_low: 0.2, clip_high: 0.2, kl_coefficient: 0.0}",),
        own="algorithm.reduction=sum",
    ),
    Method(
        "mdpo",
        "MDPO",
        ("algorithm={type: mdpo, kl_coefficient: 0.0}", "rollout.sampler=rcr"),
        own="algorithm.scale=none",
    ),
    Method(
        "igpo",
        "IGPO",
        (
            "algorithm={type: igpo, kl_coefficient: 0.0, ratio_level: token, corruption: {type: fixed_count}, "
            "num_draws: 4}",
        ),
        by_task={
            "column_sum": ("algorithm.hints={min_chunk: 2, max_chunk: 4}",),
            # The last row of the grid stands for the answer: hints never show it.
            "small_sudoku": (
                "algorithm.hints={min_chunk: 2, max_chunk: 4, reference_column: solution, answer_column: solution, "
                "answer_pattern: '(....)$$'}",
            ),
        },
        own="algorithm.entropy_share=1.0",
        note="writes groups that fail a second time, around hints; these rollouts come on top",
    ),
    Method(
        "co_grpo",
        "Co-GRPO",
        (
            "algorithm={type: co_grpo, clip_low: 0.2, clip_high: 0.2, kl_coefficient: 0.0, network_updates: 3, "
            "schedule_updates: 1, schedule_reduction: sum}",
            "model.head={type: schedule, features: 15, actions: 1}",
            "reward.speed_exponent=0.7",
            "rollout.sampler=schedule",
            "rollout.options={learned: commit, sigma: 0.6, sigma_end: 0.3, sigma_updates: 40}",
            "train.head_learning_rate=3e-2",
            "eval.sampler=schedule",
            "eval.options={learned: commit}",
        ),
        own="train.head_learning_rate=1e-2",
        note="makes three updates of the network, then one of the schedule; being slow costs reward (exponent 0.7)",
    ),
    Method(
        "dultra",
        "dUltra",
        (
            "algorithm={type: dultra, baseline: leave_one_out}",
            "model.path=$folder/planner",
            "reward.speed_exponent=0.5",
            "rollout.sampler=planner",
            "rollout.steps=null",
            "train.head_learning_rate=3e-4",
            "eval.sampler=planner",
            "eval.steps=null",
        ),
        first=(
            "$recipe",
            "algorithm={type: planner_imitation}",
            "model.head={type: planner}",
            "reward=null",
            "rollout.num_generations=2",
            "rollout.sampler=threshold",
            "rollout.options={threshold: 0.9, order: max}",
            "rollout.steps=null",
            "train.max_steps=100",
            "train.per_device_train_batch_size=32",
            "train.learning_rate=1e-2",
            "eval.sampler=planner",
            "eval.steps=null",
            "eval.every=0",
            "output=$folder/planner",
        ),
        own="train.head_learning_rate=1e-3",
        note="starts after its planner has imitated a threshold sampler on 6,400 completions that nobody judges, which "
        "come on top; being slow costs reward (exponent 0.5)",
    ),
)
SEEDS = (0, 1, 2)
