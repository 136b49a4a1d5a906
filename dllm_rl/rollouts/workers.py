"""Reward functions in processes of their own, so that one that crashes, hangs in C or eats all memory takes only that.

A function is called there as it would be here, with all completions at once, so that its values are the same; several
functions run at once. Importing this does not import torch.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import logging
import multiprocessing
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dllm_rl.errors import RewardError
from dllm_rl.rollouts.worker import Job, Raised, Values

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""Of a call whose process ends: the first end may be bad luck, such as a shortage of memory."""

STARTUP_SECONDS = 120.0
"""For starting a process and importing the file of a function."""
_PROGRAM = "from dllm_rl.rollouts.worker import main; main()"


class Ended(Exception):
    """The process of a call ended under it."""

    def __init__(self, how: str, row: int | None = None) -> None:
        super().__init__(how)
        self.how = how
        self.row = row
        """The first row on which it ends by itself; None: only on all together."""


class RaisedThere(Exception):
    """The function raised, in its process."""

    def __init__(self, raised: Raised) -> None:
        super().__init__(raised.text)
        self.kind, self.place = raised.kind, raised.place


class Worker:
    """One process and what it is asked; started when first needed, and again when it has ended."""

    def __init__(self) -> None:
        self.ends = 0
        """How often the process ended by itself."""
        self.busy = False
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded: set[str] = set()

    def send(self, job: Job) -> None:
        """Ask; one reply is to be received before the next."""
        assert not self.busy
        if self._process is None or self._process.poll() is not None:
            self._start()
        if job.reference not in self._loaded:  # not within the time of the call
            self._loaded.add(job.reference)
            self._post(job._replace(arguments=None, seconds=STARTUP_SECONDS))
            with contextlib.suppress(TimeoutError, Ended):  # then the call will not do better
                self.receive(STARTUP_SECONDS)
            if self._process is None:
                self._start()
        self._post(job)

    def _post(self, job: Job) -> None:
        self.busy = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ends, which the reply will say
            self._connection.send_bytes(pickle.dumps(job))

    def receive(self, seconds: float) -> Values | Raised:
        """The reply.

        Raises:
            TimeoutError: none came within so many seconds; it says where the function was. The process is killed.
            Ended: the process ended.
        """
        try:
            if not self._connection.poll(max(0.0, seconds)):
                place = self._place()
                self.kill()
                raise TimeoutError(place)
            reply: Values | Raised = pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            raise Ended(self._how_it_ended()) from None
        self.busy = False
        return reply

    def kill(self) -> None:
        """End the process and what it was asked."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
            os.close(self._stacks)
        self._process, self.busy = None, False
        self._loaded.clear()

    def _start(self) -> None:
        self.kill()
        self._connection, theirs = multiprocessing.Pipe()
        self._stacks, stacks = os.pipe()
        command = [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno()), str(stacks)]
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])  # modules are found as here
        environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(command, env=environment, pass_fds=(theirs.fileno(), stacks))
        theirs.close()
        os.close(stacks)

    def _how_it_ended(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self.kill()
        self.ends += 1
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _place(self) -> str:
        """Where the function is now."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        told = b""
        while select.select([self._stacks], [], [], 1.0)[0] and (more := os.read(self._stacks, 1 << 16)):
            told += more  # line by line
            if site := re.search(r'File "(.*)", line (\d+) in (.*)\n', told.decode(errors="replace")):
                return "at {}:{} in {}".format(*site.groups())
        return "at an unknown place"


class RemoteFunction:
    """A reward function to be called in a process; called here it does what it always did."""

    def __init__(self, reference: str, base: Path | None, function: Callable[..., Any], worker: Worker) -> None:
        self.reference, self.base, self.function, self.worker = reference, base, function, worker
        with contextlib.suppress(ValueError):  # a callable without a signature, written in C
            self.__signature__ = inspect.signature(function)

    def __call__(self, **arguments: Any) -> Any:
        return self.function(**arguments)

    def start(self, name: str, arguments: Mapping[str, list[Any]], seconds: float) -> RemoteCall:
        base = str(self.base) if self.base is not None else None
        return RemoteCall(name, Job(self.reference, base, dict(arguments), seconds), self.worker)


class RemoteCall:
    """A call in a process, under way or waiting for the one before it. Results are to be asked for in order."""

    def __init__(self, name: str, job: Job, worker: Worker) -> None:
        self.name, self.job, self.worker = name, job, worker
        self._sent: float | None = None
        if not worker.busy:
            self._send(job)

    def result(self) -> Any:
        """What the function returns.

        Raises:
            TimeoutError: it did not return in time.
            Ended: its process ended, ATTEMPTS times.
            RaisedThere: it raised.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._received(self.job)
            except Ended as end:
                log.warning(
                    "reward function %s ended its process (%s), attempt %d of %d; such ends so far: %d",
                    *(self.name, end.how, attempt, ATTEMPTS, self.worker.ends),
                )
                how = end.how
        raise Ended(how, self._first_deadly_row())

    def cancel(self) -> None:
        """Not to be waited for any more."""
        if self._sent is not None:
            self.worker.kill()

    def place(self) -> str:
        return self._place

    def describe(self, error: Exception) -> str:
        return f"{error.kind}: {error}" if isinstance(error, RaisedThere) else f"{type(error).__name__}: {error}"

    def raised_at(self, error: BaseException) -> str:
        return error.place if isinstance(error, RaisedThere) else "in its process"

    def _send(self, job: Job) -> None:
        self.worker.send(job)
        self._sent = time.monotonic()

    def _received(self, job: Job) -> Any:
        if self._sent is None:
            self._send(job)
        assert self._sent is not None
        try:
            reply = self.worker.receive(self._sent + job.seconds - time.monotonic())
        except TimeoutError as late:
            self._place = str(late)
            raise TimeoutError from None
        finally:
            self._sent = None
        if isinstance(reply, Raised):
            raise RaisedThere(reply)
        return reply.values

    def _first_deadly_row(self) -> int | None:
        """The first row that ends the process by itself; found by trying them, at most as long as a call may take."""
        until = time.monotonic() + self.job.seconds
        arguments = self.job.arguments or {}
        for row in range(len(arguments["prompts"])):
            alone = {name: column[row : row + 1] for name, column in arguments.items()}
            try:
                self._received(self.job._replace(arguments=alone, seconds=until - time.monotonic()))
            except Ended:
                return row
            except RaisedThere:
                continue
            except TimeoutError:
                return None
        return None


class RewardWorkers:
    """So many processes. A function stays with one of them, so that what it keeps between calls is kept.

    Args:
        size: functions that can run at once.

    Raises:
        RewardError: on a machine whose processes cannot be started this way.
    """

    def __init__(self, size: int) -> None:
        if os.name != "posix":
            raise RewardError("reward.workers: needs Linux or macOS; set it to 0")
        self.workers = [Worker() for _ in range(size)]
        self._given = 0
        self._owner = os.getpid()
        atexit.register(self.close)

    def take(self, reference: str, base: Path | None, function: Callable[..., Any]) -> RemoteFunction:
        """The function that `reference` names, to be called in one of the processes."""
        worker = self.workers[self._given % len(self.workers)]
        self._given += 1
        return RemoteFunction(reference, base, function, worker)

    def close(self) -> None:
        """End all processes; they start again when they are needed."""
        if os.getpid() == self._owner:  # a forked child has none
            for worker in self.workers:
                worker.kill()
