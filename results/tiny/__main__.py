"""Fills the learning ledger and makes its table and figure: `python -m results.tiny` from the root; `make results`.

`--search` finds the settings first, on problems of its own (results/tiny/search.py); the ledger uses what was found.
`--free` decodes the starting weights and those of CJ-GRPO with samplers that need no training (results/tiny/free.py);
it follows the ledger, so it comes after `--again`.

Runs that the ledger already holds are not repeated, so methods can be run apart, and an interrupted ledger goes on.
"""

from __future__ import annotations

import argparse
import time

from results.tiny import figure, free, ledger, search, table
from results.tiny.methods import METHODS, SEEDS, TASKS
from results.tiny.run import Cell, run_all

PAGE = ledger.FOLDER / "table.md"


def main() -> None:
    """Run the missing cells, then write the page and the picture."""
    options = _parser().parse_args()
    tasks = [task for task in TASKS if task.name in options.tasks]
    methods = [method for method in METHODS if method.name in options.methods]
    runs = ledger.read()
    if options.search:
        search.fill([(task, method) for method in methods for task in tasks], options.processes)
    elif options.free:
        free.fill(tasks, runs)
    else:
        known = set() if options.again else {run.cell for run in runs}
        tries = search.read()
        cells = [
            (task, search.settled(task, method, tries), seed)
            for seed in options.seeds
            for task in tasks
            for method in methods
            if (task.name, method.name, seed) not in known
        ]
        runs = _fill(runs, cells, options.processes)
        figure.draw(runs)
    _make_page(runs)


def _make_page(runs: list[ledger.Run]) -> None:
    text = table.page(runs, free.read(), search.read())
    PAGE.write_text(text, encoding="utf-8")
    print(text)


def _fill(runs: list[ledger.Run], cells: list[Cell], processes: int) -> list[ledger.Run]:
    """Run cells; each is in the file as soon as it ends."""
    start = time.monotonic()
    for number, run in enumerate(run_all(cells, processes), 1):
        runs = ledger.replaced(runs, run)
        ledger.write(runs)
        print(
            f"{number} of {len(cells)} after {time.monotonic() - start:.0f} s: "
            f"{run.task}, {run.method}, seed {run.seed}: "
            f"{run.before.accuracy:.3f} to {run.after.accuracy:.3f}, "
            f"{run.before.forwards:.2f} to {run.after.forwards:.2f} forwards, "
            f"{run.seconds:.0f} s, {run.cpu_seconds:.0f} on a core",
            flush=True,
        )
    return runs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m results.tiny", description=__doc__)
    tasks, methods = [task.name for task in TASKS], [method.name for method in METHODS]
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--again", action="store_true", help="repeat runs that the ledger already holds")
    parser.add_argument("--search", action="store_true", help="find settings instead, and keep them in search.json")
    parser.add_argument("--free", action="store_true", help="decode with samplers that need no training instead")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, each on one thread")
    return parser


if __name__ == "__main__":
    main()
