"""All curves of the ledger in one picture: accuracy and forwards along the way, a task a column, a method a colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from results.tiny.ledger import FOLDER, Run
from results.tiny.methods import METHODS, TASKS

FILE = FOLDER / "curves.png"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw(runs: Sequence[Run], file: Path = FILE) -> None:
    """Thin lines are runs, thick ones their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    axes = figure.subplots(2, len(TASKS), sharex="col", sharey="row", squeeze=False, height_ratios=(2, 1))
    for column, task in enumerate(TASKS):
        above, below = axes[0][column], axes[1][column]
        for method, colour in zip(METHODS, _COLOURS, strict=False):
            mine = [run for run in runs if (run.task, run.method) == (task.name, method.name)]
            if mine:
                _curves(above, mine, "accuracy", colour, method.title)
                _curves(below, mine, "forwards", colour, method.title)
        above.set_title(task.title)
        below.set_xlabel("update")
        above.grid(alpha=0.3)
        below.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy, held out")
    axes[1][0].set_ylabel("forwards per answer")
    axes[0][0].set_ylim(0, 1)
    axes[1][0].set_ylim(bottom=0)
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), frameon=False
    )
    figure.savefig(file, dpi=110)


def _curves(axes: Any, runs: Sequence[Run], name: str, colour: str, title: str) -> None:
    for run in runs:
        updates = [point.update for point in run.curve]
        axes.plot(updates, [getattr(point, name) for point in run.curve], color=colour, alpha=0.3, linewidth=0.8)
    together = zip(*(run.curve for run in runs), strict=True)
    means = [(same[0].update, fmean(getattr(point, name) for point in same)) for same in together]
    axes.plot(*zip(*means, strict=True), color=colour, linewidth=2, marker=".", label=title)
