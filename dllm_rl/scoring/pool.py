"""Worker processes that decide whether expressions are equal, with a deadline per question.

Each is a plain subprocess with an interpreter of its own: it inherits no model, no lock and no main script, imports no
torch, serves any thread of the parent, and is killed when it overruns. Answers depend on the question alone.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dllm_rl.errors import RewardError

DEADLINE_SECONDS = 5.0
STARTUP_SECONDS = 120.0


class WorkerDied(Exception):
    """The worker ended, or was killed for overrunning its deadline."""


class Worker:
    """One process, one question at a time."""

    def __init__(self) -> None:
        package_parent = str(Path(__file__).parents[2])
        paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dllm_rl.scoring.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # an interrupt at the keyboard is the parent's to handle
        )
        try:
            greeting = self._read(STARTUP_SECONDS)
        except WorkerDied as error:
            raise RewardError(
                f"a math worker ({sys.executable} -m dllm_rl.scoring.worker) did not start; run that command to see why"
            ) from error
        if greeting != "ready":
            self.kill()
            raise RewardError(f"a math worker could not start: {greeting['error']}. Install math-verify.")

    def ask(self, gold: str, answer: str, seconds: float) -> bool | None:
        """The worker's verdict; None when it could not read an expression.

        Raises:
            WorkerDied: no reply within `seconds`. The worker is dead then.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"gold": gold, "answer": answer, "seconds": seconds}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            self.kill()
            raise WorkerDied from error
        verdict = self._read(seconds)
        return None if verdict is None else bool(verdict)

    def _read(self, seconds: float) -> Any:
        """One reply. `select.poll` works in any thread and for any file number."""
        assert self.process.stdout is not None
        poll, reply = select.poll(), b""
        descriptor = self.process.stdout.fileno()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + seconds
        while not reply.endswith(b"\n"):
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            chunk = os.read(descriptor, 4096) if ready else b""
            if not chunk:
                self.kill()
                raise WorkerDied
            reply += chunk
        return json.loads(reply)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # unsent bytes to a dead process
                    stream.close()


class WorkerPool:
    """Up to `size` workers, started when first needed and replaced when they die.

    Args:
        size: most questions answered at once.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(size)

    def equal(self, gold: str, answer: str, seconds: float = DEADLINE_SECONDS) -> bool | None:
        """Whether two expressions are equal; None without a verdict (unreadable, or not decided within `seconds`)."""
        with self._slots:
            worker = self._take()
            try:
                verdict = worker.ask(gold, answer, seconds)
            except WorkerDied:
                with self._lock:
                    self._all.discard(worker)
                return None
            with self._lock:
                self._idle.append(worker)
            return verdict

    def _take(self) -> Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        worker = Worker()
        with self._lock:
            self._all.add(worker)
        return worker

    def close(self) -> None:
        """End every worker. The pool starts new ones if it is asked again."""
        with self._lock:
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.kill()


POOL_SIZE = max(1, min(8, os.cpu_count() or 1))
_pool = WorkerPool(POOL_SIZE)
_owner = os.getpid()


def expressions_equal(gold: str, answer: str) -> bool | None:
    """Ask the process-wide pool. See `WorkerPool.equal`."""
    return _pool.equal(gold, answer)


def _close() -> None:
    if os.getpid() == _owner:
        _pool.close()


def _forget() -> None:
    """In a forked child: the parent's workers are not ours to talk to or to end."""
    global _pool, _owner
    _pool, _owner = WorkerPool(POOL_SIZE), os.getpid()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)
