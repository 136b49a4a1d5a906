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

from dllm_rl.recipe.load import load_recipe
from dllm_rl.training.logging import read_metrics
from results.tiny.ledger import Run, points
from results.tiny.methods import Method, Task

ROOT = Path(__file__).resolve().parents[2]
Cell = tuple[Task, Method, int]


def run_all(cells: Sequence[Cell], processes: int, extra: Sequence[str] = ()) -> Iterator[Run]:
    """The runs of cells as they end, this many at a time, each on one thread."""
    with ThreadPoolExecutor(processes) as threads:
        for done in as_completed([threads.submit(run_cell, *cell, extra) for cell in cells]):
            yield done.result()


def run_cell(task: Task, method: Method, seed: int, extra: Sequence[str] = ()) -> Run:
    """Train and evaluate one method on one task, in a process of its own.

    Args:
        extra: further overrides, which tests use to make a run short.

    Raises:
        RuntimeError: the run failed; the last lines that it wrote are in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        changed = [*method.overrides, *method.by_task.get(task.name, ())]
        given = [f"train.seed={seed}", *extra]
        made = method.prepare(task.recipe, given, Path(folder)) if method.prepare else []
        overrides = [*changed, *made, *given]
        command = [sys.executable, task.recipe, *overrides, f"output={folder}/run"]
        done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{task.name}, {method.name}, seed {seed}: {' '.join(command)}\n{done.stderr[-3000:]}")
        metrics = read_metrics(Path(folder, "run", "metrics.jsonl"))
    return Run(
        task=task.name,
        method=method.name,
        seed=seed,
        rollouts=rollouts(task, given),
        seconds=round(seconds, 1),
        date=datetime.now(UTC).date().isoformat(),
        device=f"one of {os.cpu_count()} CPU cores, {platform.machine()}",
        overrides=changed,
        curve=points(metrics, task.name),
    )


def rollouts(task: Task, overrides: Sequence[str] = ()) -> int:
    """The budget that all methods share: completions sampled by a task's recipe."""
    recipe = load_recipe(ROOT / task.recipe, overrides)
    assert recipe.rollout is not None, "the ledger's recipes sample"
    train = recipe.train.arguments
    return int(train["max_steps"] * train["per_device_train_batch_size"] * recipe.rollout.num_generations)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
