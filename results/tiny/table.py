"""The ledger as a page: one table per task, one line per method."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from results.tiny import free_part, search_part
from results.tiny.free import Decoded
from results.tiny.ledger import Run
from results.tiny.markdown import accuracy, table
from results.tiny.methods import METHODS, TASKS, Method
from results.tiny.search import Try

HEAD = """\
# The learning ledger

Every method from the same starting weights with the same number of rollouts, on procedural tasks. Made by
`make results` from [ledger.json](ledger.json); ![accuracy and forwards along the way](curves.png)

Accuracy is that of answers of greedy tokens to held-out problems, with its 95% interval (Wilson). Forwards are network
evaluations per answer, means over problems; nothing here is guided. Seconds are those of a whole run on one thread,
evaluations and what the method prepares included, by the clock and on a core: they differ where other work shares the
cores.
"""
FREE = """\
Forwards before training are those of an even split of about two positions a forward. Samplers that write as many as the
network is sure of take fewer without any training; each task has a table of them, on the starting weights and on those
that CJ-GRPO trained ([free.json](free.json), `python -m results.tiny --free`), since what Co-GRPO and dUltra learn must
be compared with what is free. Under each table the best way that takes no more forwards is named, after the fact and on
these same problems, which favours it a little.
"""


def page(runs: Sequence[Run], decoded: Sequence[Decoded] = (), tries: Sequence[Try] = ()) -> str:
    """Markdown with the tables of all tasks that have runs."""
    parts = [HEAD, search_part.how(runs, tries), FREE]
    for task in TASKS:
        if mine := [run for run in runs if run.task == task.name]:
            parts.append(f"## {task.title}\n\n{_budget(mine)}\n\n{_table(mine)}\n")
            parts.append(free_part.part(task.name, decoded, runs))
    there = {run.method for run in runs}
    notes = [f"- {method.title} {method.note}.\n" for method in METHODS if method.note and method.name in there]
    parts += ["## Notes\n", "".join(notes)] if notes else []
    parts.append(search_part.part(tries))
    return "\n".join(part for part in parts if part)


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
    rows = []
    for method in METHODS:
        mine = {run.seed: run for run in sorted(runs, key=lambda run: run.seed) if run.method == method.name}
        if mine:
            rows.append(_cells(method, mine, seeds))
    return table(titles, rows)


def _cells(method: Method, runs: dict[int, Run], seeds: Sequence[int]) -> list[str]:
    each = list(runs.values())
    return [
        method.title,
        _start(each),
        *(accuracy(runs[seed].after) if seed in runs else "" for seed in seeds),
        f"{fmean(run.before.forwards for run in each):.2f}",
        f"{fmean(run.after.forwards for run in each):.2f}",
        f"{fmean(run.seconds for run in each):.0f}",
        f"{fmean(run.cpu_seconds for run in each):.0f}",
    ]


def _start(runs: Sequence[Run]) -> str:
    """Where all seeds start, or where each does."""
    starts = {accuracy(run.before) for run in runs}
    return starts.pop() if len(starts) == 1 else ", ".join(f"{run.before.accuracy:.3f}" for run in runs)
