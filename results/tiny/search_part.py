"""The page's part on how settings were found."""

from __future__ import annotations

from collections.abc import Sequence

from results.tiny.ledger import Run
from results.tiny.markdown import table
from results.tiny.methods import METHODS, TASKS, Method, Task
from results.tiny.search import Try, best, settled

SEARCHED = """\
Settings were found by a search with equally many tries for every method, four a task, on 500 problems of the training
side that no run reads, with a training seed of its own ([search.json](search.json), the last table).
"""
BY_SEED_0 = """\
This is no ranking. Settings were chosen by the accuracy of seed 0 on these same problems, with unequal care: about 14
were tried for Co-GRPO and for dUltra, 4 for diffu-GRPO, 3 for VRPO, 2 for CJ-GRPO, one per task for MDPO and IGPO.
"""
INTRODUCTION = """\
## The search

What each try was worth: accuracy on the search's problems, for Co-GRPO and dUltra times the speed factor of their
reward. The own change is tried at the best of the three learning rates; the best of the four is in bold."""


def how(runs: Sequence[Run], tries: Sequence[Try]) -> str:
    """How the settings of these runs were found."""
    if runs and all(_is_searched(run, tries) for run in runs):
        return SEARCHED + _edges(tries)
    whole = sum(len(task.rates) + 1 for task in TASKS) * len(METHODS)
    more = (
        f"A search with equal care has {len(tries)} of its {whole} tries ([search.json](search.json), the last table)"
    )
    return BY_SEED_0 + (f"{more}:\nthe runs here do not use them yet.\n" if tries else "")


def _edges(tries: Sequence[Try]) -> str:
    """How often the search ended where it could not look further."""
    cells = [(task, mine) for task in TASKS for method in METHODS if (mine := _of(tries, task, method))]
    edges = sum(best(mine).tried[0] in (task.rates[0], task.rates[-1]) for task, mine in cells)
    return f"In {edges} of {len(cells)} cases the best learning rate is the lowest or the highest of the three tried.\n"


def _of(tries: Sequence[Try], task: Task, method: Method) -> list[Try]:
    return [each for each in tries if (each.task, each.method) == (task.name, method.name)]


def _is_searched(run: Run, tries: Sequence[Try]) -> bool:
    task = next(task for task in TASKS if task.name == run.task)
    method = next(method for method in METHODS if method.name == run.method)
    found = settled(task, method, tries)
    return found != method and list(found.changes(task)) == run.overrides


def part(tries: Sequence[Try]) -> str:
    """One table per task of what every try was worth. Empty if there were none."""
    parts = [_table(task, [each for each in tries if each.task == task.name]) for task in TASKS]
    if not any(parts):
        return ""
    return "\n\n".join([INTRODUCTION, *(each for each in parts if each)]) + "\n"


def _table(task: Task, tries: Sequence[Try]) -> str:
    rows = [_cells(task, method, mine) for method in METHODS if (mine := [t for t in tries if t.method == method.name])]
    rates = [rate.rpartition("=")[2] for rate in task.rates]
    return table([task.title, *rates, "own change"], rows) if rows else ""


def _cells(task: Task, method: Method, tries: Sequence[Try]) -> list[str]:
    whole = len(tries) == len(task.rates) + 1
    cells = {" ".join(each.tried): f"{each.worth:.3f}" for each in tries}
    if whole:
        chosen = " ".join(best(tries).tried)
        cells[chosen] = f"**{cells[chosen]}**"
    own = next((cells[" ".join(each.tried)] for each in tries if method.own in each.tried), "")
    return [method.title, *(cells.get(rate, "") for rate in task.rates), f"{own} (`{method.own}`)".strip()]
