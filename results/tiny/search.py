"""The settings of every method, found with equally many tries on problems that the ledger never uses.

For each task and method: three learning rates, then one change of the method's own at the best of them, each a whole
run from a seed that the ledger does not have. A try is worth what its method is paid for: accuracy on the search's
problems, times the speed factor of its reward where it has one. Those problems are of the training side, further on in
the endless list than any run reads, so nothing of the ledger's held-out problems is seen.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from dllm_rl.recipe.load import load_recipe
from dllm_rl.rollouts.rows import Row
from dllm_rl.toys import column_sum, small_sudoku
from results.tiny.ledger import FOLDER, Run
from results.tiny.methods import Method, Task
from results.tiny.run import ROOT, run_cell

FILE = FOLDER / "search.json"
SEED = 3
"""Of training; the ledger has 0, 1 and 2."""
PROBLEMS = 500
FIRST = 200_000
"""The problems are the training side's rows from here; runs read rows before it, those of the starting weights too."""
_ROWS: Mapping[str, Callable[..., list[Row]]] = {"column_sum": column_sum.rows, "small_sudoku": small_sudoku.rows}


@dataclass(frozen=True, slots=True)
class Try:
    """One setting of one method on one task, and how it did."""

    task: str
    method: str
    seed: int
    tried: list[str]
    """What was changed in the method's settings."""
    problems: int
    before: int
    """Problems right before training."""
    right: int
    forwards: float
    worth: float
    """Share right, times the speed factor at so many forwards where the method's reward has one."""
    cpu_seconds: float
    date: str
    device: str


def problems(task: str, count: int = PROBLEMS) -> list[Row]:
    """What the search is judged by."""
    return _ROWS[task]("train", start=FIRST, count=count)


def best(tries: Sequence[Try]) -> Try:
    """The try that is worth most; the first of equals."""
    return max(tries, key=lambda each: each.worth)


def settled(task: Task, method: Method, tries: Sequence[Try]) -> Method:
    """A method with what its search found. One whose search is not whole stays as it is."""
    mine = [each for each in tries if (each.task, each.method) == (task.name, method.name)]
    return method.changed(task, best(mine).tried) if len(mine) == len(task.rates) + 1 else method


def attempt(task: Task, method: Method, tried: Sequence[str], extra: Sequence[str] = ()) -> Try:
    """Train with these changes and judge on the search's problems.

    Args:
        extra: further overrides, which tests use to make a run short.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "problems.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in problems(task.name)), encoding="utf-8")
        judged = [f"eval.path={file}", f"eval.limit={PROBLEMS}", "eval.every=0", *extra]
        return try_of(run_cell(task, method.changed(task, tried), SEED, judged), tried)


def try_of(run: Run, tried: Sequence[str]) -> Try:
    """What a run says about what was tried."""
    return Try(
        task=run.task,
        method=run.method,
        seed=run.seed,
        tried=list(tried),
        problems=run.after.problems,
        before=run.before.right,
        right=run.after.right,
        forwards=run.after.forwards,
        worth=round(run.after.accuracy * speed_factor(run), 4),
        cpu_seconds=run.cpu_seconds,
        date=run.date,
        device=run.device,
    )


def speed_factor(run: Run) -> float:
    """((T_max - T + 1) / T_max) ** alpha, as the run's reward has it, at its mean number of forwards."""
    paid = [each for each in run.overrides if each.startswith("reward.speed_exponent=")]
    if not paid:
        return 1.0
    recipe = load_recipe(ROOT / f"recipes/tiny_{run.task}.yaml", paid)
    assert recipe.rollout is not None and recipe.reward is not None
    most = recipe.rollout.gen_length
    return float(((most - run.after.forwards + 1) / most) ** recipe.reward.speed_exponent)


def fill(cells: Sequence[tuple[Task, Method]], processes: int, file: Path = FILE) -> list[Try]:
    """Make the tries that the file lacks, this many at a time; each is in it as soon as it ends."""
    rates = [(task, method, [rate]) for task, method in cells for rate in task.rates]
    tries = _filled(read(file), rates, processes, file)
    own = [(task, method, [*best(_rates(tries, task, method)).tried, method.own]) for task, method in cells]
    return _filled(tries, own, processes, file)


def _rates(tries: Sequence[Try], task: Task, method: Method) -> list[Try]:
    return [each for each in tries if (each.task, each.method, len(each.tried)) == (task.name, method.name, 1)]


def _filled(
    tries: list[Try], wanted: Sequence[tuple[Task, Method, list[str]]], processes: int, file: Path
) -> list[Try]:
    known = [(each.task, each.method, each.tried) for each in tries]
    missing = [(task, method, tried) for task, method, tried in wanted if (task.name, method.name, tried) not in known]
    with ThreadPoolExecutor(processes) as threads:
        for done in as_completed([threads.submit(attempt, *each) for each in missing]):
            made = done.result()
            tries = [*tries, made]
            write(tries, file)
            told = f"{made.right} of {made.problems} right, {made.forwards:.2f} forwards, worth {made.worth:.3f}"
            print(f"{made.task}, {made.method}, {' '.join(made.tried)}: {told}", flush=True)
    return tries


def read(file: Path = FILE) -> list[Try]:
    """All tries so far; none where there is no file yet."""
    return [Try(**line) for line in json.loads(file.read_text(encoding="utf-8"))] if file.is_file() else []


def write(tries: Sequence[Try], file: Path = FILE) -> None:
    """One try a line; written beside and moved."""
    ordered = sorted(tries, key=lambda each: (each.task, each.method))
    lines = ",\n".join(json.dumps(asdict(each)) for each in ordered)
    beside = file.with_suffix(".part")
    beside.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    beside.replace(file)
