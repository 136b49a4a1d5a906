"""The ledger as a page: one table per task, one line per method."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from results.tiny.ledger import Point, Run
from results.tiny.methods import METHODS, TASKS, Method

HEAD = """\
# The learning ledger

Every method from the same starting weights with the same number of rollouts, on procedural tasks. Made by
`make results` from [ledger.json](ledger.json); ![accuracy and forwards along the way](curves.png)

Accuracy is that of answers of greedy tokens to held-out problems, with its 95% interval (Wilson). Forwards are network
evaluations per answer, means over problems. Seconds are those of a whole run on one thread, evaluations and what the
method prepares included, by the clock and on a core: they differ where other work shares the cores.

This is no ranking. Settings were chosen by the accuracy of seed 0 on these same problems, with unequal care: about 14
were tried for Co-GRPO and for dUltra, 4 for diffu-GRPO, 3 for VRPO, 2 for CJ-GRPO, one per task for MDPO and IGPO.
Forwards compare with an even split of about two positions a forward, not with threshold decoding, which has no row:
with threshold 0.9 the starting weights for sums take 4.1 forwards, at 0.42 on 400 problems.
"""


def page(runs: Sequence[Run]) -> str:
    """Markdown with the tables of all tasks that have runs."""
    parts = [HEAD]
    for task in TASKS:
        if mine := [run for run in runs if run.task == task.name]:
            parts.append(f"## {task.title}\n\n{_budget(mine)}\n\n{_table(mine)}\n")
    there = {run.method for run in runs}
    notes = [f"- {method.title} {method.note}.\n" for method in METHODS if method.note and method.name in there]
    return "\n".join(parts + (["## Notes\n", "".join(notes)] if notes else []))


def _budget(runs: Sequence[Run]) -> str:
    def span(values: Sequence[str | int]) -> str:
        return " or ".join(str(value) for value in sorted(set(values), key=str))

    return (
        f"{span([run.rollouts for run in runs])} rollouts a run, {span([run.after.problems for run in runs])} held-out "
        f"problems; {span([run.date for run in runs])}, {span([run.device for run in runs])}."
    )


def _table(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs})
    titles = [
        "method",
        "before",
        *(f"after, seed {seed}" for seed in seeds),
        "forwards before",
        "forwards after",
        "wall s",
        "CPU s",
    ]
    lines = [_line(titles), "|" + "---|" * len(titles)]
    for method in METHODS:
        mine = {run.seed: run for run in sorted(runs, key=lambda run: run.seed) if run.method == method.name}
        if mine:
            lines.append(_line(_cells(method, mine, seeds)))
    return "\n".join(lines)


def _cells(method: Method, runs: dict[int, Run], seeds: Sequence[int]) -> list[str]:
    each = list(runs.values())
    return [
        method.title,
        _start(each),
        *(_accuracy(runs[seed].after) if seed in runs else "" for seed in seeds),
        f"{fmean(run.before.forwards for run in each):.2f}",
        f"{fmean(run.after.forwards for run in each):.2f}",
        f"{fmean(run.seconds for run in each):.0f}",
        f"{fmean(run.cpu_seconds for run in each):.0f}",
    ]


def _start(runs: Sequence[Run]) -> str:
    """Where all seeds start, or where each does."""
    starts = {_accuracy(run.before) for run in runs}
    return starts.pop() if len(starts) == 1 else ", ".join(f"{run.before.accuracy:.3f}" for run in runs)


def _accuracy(point: Point) -> str:
    low, high = point.interval
    return f"{point.accuracy:.3f} ({low:.3f}-{high:.3f})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
