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


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The probability that at least one of k samples is right, unbiased from n samples of which c are.

    The share of all choices of k of the n samples that hold a right one; average it over problems.

    Args:
        num_samples: n.
        num_correct: c, at most n.
        k: at least 1 and at most n.

    Raises:
        DataError: the counts are not in these ranges.

    Source: Chen et al., https://arxiv.org/abs/2107.03374, equation 1; here in exact integers.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise DataError(
            f"pass@{k} of {num_correct} right among {num_samples} samples; expected 0 <= right <= samples and "
            "1 <= k <= samples"
        )
    all_choices = math.comb(num_samples, k)
    return (all_choices - math.comb(num_samples - num_correct, k)) / all_choices


def evaluate(
    task: str, completions: Sequence[str], rows: Sequence[Mapping[str, Any]], *, allow_unsandboxed: bool = False
) -> EvalResult:
    """Score completions of a task's rows, in parallel; the order is kept.

    Args:
        task: see `score`, also for what the rows hold.
        completions: one text per row.
        allow_unsandboxed: see `score`.

    Raises:
        RecipeError: the task is unknown.
        SandboxError: the task runs code, and the host offers no isolation.
        DataError: no rows, not one per completion, or one without what the task needs.
    """
    if not completions:
        raise DataError(f"task {task!r}: no completions; expected at least one")
    return EvalResult([each.value for each in score_all(task, completions, rows, allow_unsandboxed=allow_unsandboxed)])
