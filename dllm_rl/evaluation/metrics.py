"""What an evaluation measured."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllm_rl.errors import DataError
from dllm_rl.evaluation.statistics import interval
from dllm_rl.scoring.score import score_all

if TYPE_CHECKING:
    from dllm_rl.evaluation.protocol import EvalProtocol


@dataclass(frozen=True, slots=True)
class Record:
    """One answer to one example, and what it was worth."""

    index: int
    """Place of the example in the task."""
    prompt: str
    completion: str
    answer: str | None
    score: float
    explanation: str
    nfe: int | None
    """Network evaluations; None when the completion was not generated here."""
    sample: int = 0
    """Number of the answer among those to this example."""
    tokens: int | None = None
    """Tokens that the model wrote, ends of text included; None when it is not known."""
    length: int | None = None
    """Tokens of the completion, before its first end of text; None when it was not generated here."""


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Scores of a task's examples, in their order."""

    scores: list[float]
    """Each in [0, 1]; of several answers to an example, the mean."""
    records: tuple[Record, ...] = ()
    """One per answer; empty when only scores were asked for."""
    protocol: EvalProtocol | None = None
    """How they were measured; None for completions of unknown origin."""

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def accuracy(self) -> float:
        """Mean score, in [0, 1]. Of k answers each, this is avg@k."""
        return math.fsum(self.scores) / self.n

    @property
    def std_error(self) -> float:
        """Standard error of `accuracy` over examples (sample variance, n - 1); NaN for a single example."""
        return std_error(self.scores)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the accuracy on all such examples lies, at 95 percent; see `statistics.interval`."""
        return interval(self.accuracy, self.std_error, self.n)

    @property
    def nfe(self) -> float:
        """Mean network evaluations per answer; NaN when nothing was generated."""
        counts = [record.nfe for record in self.records if record.nfe is not None]
        return statistics.fmean(counts) if counts else math.nan

    @property
    def tokens_per_forward(self) -> float:
        """Tokens written per network evaluation, over all answers; NaN when it is not known."""
        known = [(each.tokens, each.nfe) for each in self.records if each.tokens is not None and each.nfe]
        forwards = sum(nfe for _, nfe in known)
        return sum(tokens for tokens, _ in known) / forwards if forwards else math.nan

    @property
    def length(self) -> float:
        """Mean tokens of an answer; NaN when nothing was generated."""
        lengths = [record.length for record in self.records if record.length is not None]
        return statistics.fmean(lengths) if lengths else math.nan

    @property
    def samples(self) -> int:
        """Answers to an example; the fewest, where examples differ."""
        return min(Counter(record.index for record in self.records).values(), default=1)

    def pass_at(self, k: int) -> EvalResult:
        """pass@k of each example, from its samples; right is a score of 1.

        Raises:
            DataError: there are fewer than k samples of each example.
        """
        right: dict[int, list[bool]] = {}
        for record in self.records:
            right.setdefault(record.index, []).append(record.score == 1)
        scores = [pass_at_k(len(each), sum(each), k) for each in right.values()]
        return EvalResult(scores, protocol=self.protocol)


def result_of(records: Sequence[Record], protocol: EvalProtocol | None = None) -> EvalResult:
    """The result that records make: one score per example, in the order in which the examples first occur."""
    by_index: dict[int, list[float]] = {}
    for record in records:
        by_index.setdefault(record.index, []).append(record.score)
    return EvalResult([math.fsum(each) / len(each) for each in by_index.values()], tuple(records), protocol)


def std_error(values: Sequence[float]) -> float:
    """Standard error of a mean (sample variance, n - 1); NaN for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


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
