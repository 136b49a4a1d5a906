"""What one run of the ledger measured, and the file that holds all of them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
FILE = FOLDER / "ledger.json"
_NORMAL_975 = 1.959963984540054


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95% interval of a share, from counts. Source: Wilson, JASA 22, 1927."""
    share, z = right / total, _NORMAL_975
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return (centre - half) / (1 + z * z / total), (centre + half) / (1 + z * z / total)


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation."""

    update: int
    right: int
    problems: int
    forwards: float
    """Mean over problems."""

    @property
    def accuracy(self) -> float:
        return self.right / self.problems

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.problems)


@dataclass(frozen=True, slots=True)
class Run:
    """One task, one method, one seed."""

    task: str
    method: str
    seed: int
    rollouts: int
    """Completions sampled to learn from."""
    seconds: float
    """Wall time of everything: start-up, what the method prepares, training, evaluations."""
    cpu_seconds: float
    """The same on a core, which does not depend on what else the machine does."""
    date: str
    device: str
    overrides: list[str]
    """What the method changed in the task's recipe."""
    curve: list[Point]
    """Evaluations before the first and after the last update, and on the way; [update, right, problems, forwards]."""

    @property
    def cell(self) -> tuple[str, str, int]:
        return self.task, self.method, self.seed

    @property
    def before(self) -> Point:
        return self.curve[0]

    @property
    def after(self) -> Point:
        return self.curve[-1]


def points(metrics: list[dict[str, Any]], task: str) -> list[Point]:
    """The evaluations of a task among a run's metrics, in order."""
    name = f"eval/{task}"
    return [
        Point(
            line["update"],
            round(line[f"{name}/accuracy"] * line[f"{name}/n"]),
            line[f"{name}/n"],
            line[f"{name}/forwards"],
        )
        for line in metrics
        if f"{name}/accuracy" in line
    ]


def read(file: Path = FILE) -> list[Run]:
    """The runs of a ledger; none where there is no file yet."""
    if not file.is_file():
        return []
    names = {field.name for field in fields(Run)}
    return [
        Run(**{**{name: line[name] for name in names}, "curve": [Point(*point) for point in line["curve"]]})
        for line in json.loads(file.read_text(encoding="utf-8"))
    ]


def write(runs: list[Run], file: Path = FILE) -> None:
    """One run a line, in the order of their cells; written beside and moved, so that no reader sees half a ledger."""
    lines = ",\n".join(json.dumps(_line(run)) for run in sorted(runs, key=lambda run: run.cell))
    beside = file.with_suffix(".part")
    beside.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    beside.replace(file)


def _line(run: Run) -> dict[str, Any]:
    """A run with its first and last evaluation spelled out, for people; they are not read back."""
    spelled = {
        name: {"accuracy": point.accuracy, "interval": [round(end, 4) for end in point.interval]}
        for name, point in (("before", run.before), ("after", run.after))
    }
    return {**asdict(run), "curve": [list(asdict(point).values()) for point in run.curve], **spelled}


def replaced(runs: list[Run], new: Run) -> list[Run]:
    """The runs with one more, which takes the place of another of its cell."""
    return [run for run in runs if run.cell != new.cell] + [new]
