"""Whether two evaluations differ, example by example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dllm_rl.errors import DataError
from dllm_rl.evaluation.metrics import EvalResult, std_error
from dllm_rl.evaluation.statistics import Z95, sign_flip_p
from dllm_rl.evaluation.store import read_result

OF_THE_MODEL = ("model", "revision", "dtype")
"""Parts of a protocol that two runs may differ in and still compare."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two results of one task, paired by example."""

    task: str
    first: EvalResult
    second: EvalResult
    notes: tuple[str, ...] = ()
    """What differs beside the model."""

    @property
    def differences(self) -> list[float]:
        """Second minus first, by example."""
        return [b - a for a, b in zip(self.first.scores, self.second.scores, strict=True)]

    @property
    def difference(self) -> float:
        return self.second.accuracy - self.first.accuracy

    @property
    def std_error(self) -> float:
        """Of the difference, over examples: what both runs find hard cancels."""
        return std_error(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """The difference at 95 percent, by the normal law."""
        return self.difference - Z95 * self.std_error, self.difference + Z95 * self.std_error

    @property
    def p_value(self) -> float:
        """See `sign_flip_p`."""
        return sign_flip_p(self.differences)

    @property
    def better(self) -> tuple[int, int]:
        """Examples on which the first, and on which the second scores higher."""
        return sum(each < 0 for each in self.differences), sum(each > 0 for each in self.differences)

    @property
    def other_texts(self) -> int:
        """Answers whose text is not the same in both."""
        pairs = zip(self.first.records, self.second.records, strict=True)
        return sum(a.completion != b.completion for a, b in pairs)


def compare_runs(first: Path, second: Path, *, force: bool = False) -> list[Comparison]:
    """Compare two evaluations on the tasks that both have.

    Args:
        first: what `eval --out` wrote: a folder, or a .jsonl file.
        force: also where more than the model differs; what does is noted.

    Raises:
        DataError: no task in common, not the same examples, or another protocol.
    """
    files = _pairs(first, second)
    return [compare_results(name, read_result(a), read_result(b), force=force) for name, (a, b) in files.items()]


def _pairs(first: Path, second: Path) -> dict[str, tuple[Path, Path]]:
    if first.suffix == second.suffix == ".jsonl":
        return {second.stem: (first, second)}
    here, there = ({file.name: file for file in folder.glob("*.jsonl")} for folder in (first, second))
    for folder in (first, second):
        if inside := sorted(folder.glob("eval/update-*")):
            raise DataError(f"{folder} is a run, which holds several evaluations; give one, such as {inside[-1]}")
    common = sorted(here.keys() & there.keys())
    if not common:
        raise DataError(
            f"{first} has {', '.join(sorted(here)) or 'no records'}, {second} has "
            f"{', '.join(sorted(there)) or 'no records'}; expected a task that both have, as `eval --out` writes them"
        )
    return {name.removesuffix(".jsonl"): (here[name], there[name]) for name in common}


def compare_results(task: str, first: EvalResult, second: EvalResult, *, force: bool = False) -> Comparison:
    """Pair two results by example.

    Raises:
        DataError: they are not of the same examples, or another protocol made them.
    """
    places = [[(record.index, record.sample) for record in result.records] for result in (first, second)]
    notes: tuple[str, ...] = ()
    if first.protocol is not None and second.protocol is not None:
        if first.protocol.task != second.protocol.task:
            raise DataError(f"{first.protocol.task} and {second.protocol.task} are two tasks; compare answers of one")
        notes = tuple(second.protocol.differences(first.protocol, but=OF_THE_MODEL))
    if notes and not force:
        raise DataError(
            f"{task}: more than the model differs ({'; '.join(notes)}); evaluate both in one way, or compare all the "
            "same with --force"
        )
    if places[0] != places[1]:
        raise DataError(
            f"{task}: {len(places[0])} answers in one and {len(places[1])} in the other, not of the same examples and "
            "samples; expected pairs"
        )
    return Comparison(task, first, second, notes)


def table(comparisons: Sequence[Comparison], first: str, second: str) -> str:
    """Comparisons for people: B minus A."""
    grid = Table(title=f"A: {first}\nB: {second}", title_justify="left", show_edge=False)
    headings = ("task", "n", "A", "B", "B - A", "95% interval", "A better", "B better", "p", "texts differ")
    for heading in headings:
        grid.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    for each in comparisons:
        low, high = each.interval
        ours, theirs = each.better
        grid.add_row(
            each.task,
            str(each.first.n),
            f"{each.first.accuracy:.4f}",
            f"{each.second.accuracy:.4f}",
            f"{each.difference:+.4f}",
            "" if math.isnan(low) else f"{low:+.4f} to {high:+.4f}",
            str(ours),
            str(theirs),
            f"{each.p_value:.2g}",
            f"{each.other_texts} of {len(each.first.records)}",
        )
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(grid, markup=False)
    notes = [f"{each.task}: {note}" for each in comparisons for note in each.notes]
    lines = [line.rstrip() for line in capture.get().rstrip("\n").split("\n")]
    return "\n".join([*lines, "p: paired permutation test (McNemar's exact for right and wrong)", *notes])
