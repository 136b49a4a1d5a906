"""One cell of the ledger through the real command line, and many of them side by side."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from string import Template

from dllm_rl.recipe.load import load_recipe
from dllm_rl.training.logging import read_metrics
from results.tiny.ledger import Run, points
from results.tiny.methods import Method, Task

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
Cell = tuple[Task, Method, int]


def run_all(cells: Sequence[Cell], processes: int, extra: Sequence[str] = ()) -> Iterator[Run]:
    """The runs of cells as they end, this many at a time, each on one thread."""
    with ThreadPoolExecutor(processes) as threads:
        for done in as_completed([threads.submit(run_cell, *cell, extra) for cell in cells]):
            yield done.result()


def run_cell(task: Task, method: Method, seed: int, extra: Sequence[str] = ()) -> Run:
    """Train and evaluate one method on one task, in a process of its own. See `run_in`."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(folder, task, method, seed, extra)


def run_in(folder: str, task: Task, method: Method, seed: int, extra: Sequence[str] = ()) -> Run:
    """As `run_cell`; the run is left in FOLDER/run.

    Args:
        extra: further overrides, which tests use to make a run short.

    Raises:
        RuntimeError: the run failed; the last lines that it wrote are in the message.
    """
    changed = list(method.changes(task))
    given = [f"train.seed={seed}", *extra]
    commands = [[task.recipe, *changed, *given, f"output={folder}/run"]]
    if method.first:
        commands.insert(0, [*method.first, *given])
    names = {"folder": folder, "recipe": task.recipe}
    times = [run_python([Template(word).substitute(names) for word in command], folder) for command in commands]
    return Run(
        task=task.name,
        method=method.name,
        seed=seed,
        rollouts=rollouts(task, given),
        seconds=round(sum(wall for wall, _ in times), 1),
        cpu_seconds=round(sum(cpu for _, cpu in times), 1),
        date=datetime.now(UTC).date().isoformat(),
        device=f"{os.cpu_count()} CPU cores, {platform.machine()}",
        overrides=changed,
        curve=points(read_metrics(Path(folder, "run", "metrics.jsonl")), task.name),
    )


def run_python(arguments: Sequence[str], folder: str) -> tuple[float, float]:
    """Run Python on one thread; its seconds by the clock, and on a core."""
    command, start = [sys.executable, *arguments], time.perf_counter()
    with open(f"{folder}/errors", "w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)  # the usage of this process, whatever runs beside it
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}\nended with {process.returncode}:\n{errors.read()[-3000:]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def rollouts(task: Task, overrides: Sequence[str] = ()) -> int:
    """The budget that all methods share: completions sampled by a task's recipe."""
    recipe = load_recipe(ROOT / task.recipe, overrides)
    assert recipe.rollout is not None, "the ledger's recipes sample"
    train = recipe.train.arguments
    return int(train["max_steps"] * train["per_device_train_batch_size"] * recipe.rollout.num_generations)
