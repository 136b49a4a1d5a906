"""What an evaluation measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dllm_rl.errors import DataError
from dllm_rl.scoring.score import score_all


@dataclass(frozen=True, slots=True)
class Record:
    """One example, what the model wrote and what it was worth."""

    index: int
    """Place of the example in the task."""
    prompt: str
    completion: str
    answer: str | None
    score: float
    explanation: str
    nfe: int | None
    """Network evaluations; None when the completion was not generated here."""


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Scores of a task's examples, in their order."""

    scores: list[float]
    """Each in [0, 1]."""
    records: tuple[Record, ...] = ()
    """One per example; empty when only scores were asked for."""

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def accuracy(self) -> float:
        """Mean score, in [0, 1]."""
        return math.fsum(self.scores) / self.n

    @property
    def std_error(self) -> float:
        """Standard error of `accuracy` over examples (sample variance, n - 1); NaN for a single example."""
        return statistics.stdev(self.scores) / math.sqrt(self.n) if self.n > 1 else math.nan

    @property
    def nfe(self) -> float:
        """Mean network evaluations per example; NaN when nothing was generated."""
        counts = [record.nfe for record in self.records if record.nfe is not None]
        return statistics.fmean(counts) if counts else math.nan


def evaluate(task: str, completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> EvalResult:
    """Score completions of a task's rows, in parallel; the order is kept.

    Args:
        task: see `score`, also for what the rows hold.
        completions: one text per row.

    Raises:
        RecipeError: the task is unknown.
        DataError: no rows, not one per completion, or one without what the task needs.
    """
    if not completions:
        raise DataError(f"task {task!r}: no completions; expected at least one")
    return EvalResult([each.value for each in score_all(task, completions, rows)])
