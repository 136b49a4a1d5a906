"""Runs by the real command line, ended after the line of an update."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from pathlib import Path

from tests.e2e import runs
from tests.tools.forked import LIMIT, Moment


def launch(door: str, processes: int, recipe: Path, moment: Moment) -> tuple[bool, list[int]]:
    """Start a run, send the moment's signal, wait until all of it is gone.

    Args:
        door: "launch": accelerate launch; "run": dllm-rl run.
        moment: kind "launcher" (the signal goes to the process that was started) or "process" (to one that trains),
            `count`: after the line of which update.

    Returns:
        Whether the run was still going, and the exit code of what was started.
    """
    options = runs.TWO_PROCESSES if processes == 2 else runs.ONE_PROCESS
    command = [*runs.ACCELERATE, *options] if door == "launch" else [runs.PYTHON, "-m", "dllm_rl", "run"]
    if door == "run":
        command = [str(Path(runs.PYTHON).parent / "dllm-rl"), "run"]
    output = Path(json.loads(recipe.read_text().removeprefix("---\n"))["output"])
    environment = runs.environment() | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}  # the agent's patience, 30 by default
    with (recipe.parent / f"{recipe.stem}-launched.log").open("w") as log:
        started = subprocess.Popen([*command, str(recipe)], stdout=log, stderr=log, env=environment, cwd=runs.ROOT)
        going = _await_update(output, moment.count, started)
        if going:
            time.sleep(moment.delay)
            os.kill(started.pid if moment.kind == "launcher" else _trains(started.pid, moment.rank), moment.signal)
        code = started.wait(LIMIT)
    _await_unlocked(output)
    return going, [code]


def _await_update(output: Path, update: int, started: subprocess.Popen[bytes]) -> bool:
    wanted = f'{{"update": {update}, "'
    metrics = output / "metrics.jsonl"
    deadline = time.monotonic() + LIMIT
    while started.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and wanted in metrics.read_text():
            return True
        time.sleep(0.02)
    return False


def _trains(launcher: int, rank: int) -> int:
    """Process id of a rank: a child of the launcher with that rank, or what was started itself."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables or not any(v.startswith(b"RANK=") for v in variables):
            return int(child)
    return launcher


def _await_unlocked(output: Path) -> None:
    """A process whose launcher is gone holds the run's folder until it has stopped."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with (output / ".lock").open("a") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.05)
    raise AssertionError(f"{output} is still written to after {LIMIT} s")
