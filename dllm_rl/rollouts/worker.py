"""What a process does that runs reward functions, one call after another.

Whatever a function does to its process, it does here. Such a process sees no GPU and is the first to go when memory
runs out.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from dllm_rl.rollouts.functions import load_function

_ORPHAN_SECONDS = 60.0


class Job(NamedTuple):
    """A call of a function that is named, not sent: the file is loaded here, once."""

    reference: str
    base: str | None
    arguments: dict[str, list[Any]] | None
    """None: only load it."""
    seconds: float


class Values(NamedTuple):
    """What the function returned, whatever it is."""

    values: Any


class Raised(NamedTuple):
    """What it raised."""

    kind: str
    text: str
    place: str


def answer(job: Job) -> Values | Raised:
    """Call the function."""
    try:
        function = load_function(job.reference, Path(job.base) if job.base is not None else None)
        values = function(**job.arguments) if job.arguments is not None else None
        pickle.dumps(values)  # what cannot be sent is an error of the function's
        return Values(values)
    except BaseException as error:  # sys.exit too is something that the function did
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Raised(type(error).__name__, str(error), f"at {last.filename}:{last.lineno} in {last.name}")


def main() -> None:
    """Serve until the other end is gone. Arguments of the program: file numbers of a connection, over which jobs and
    replies go as pickles, and of a pipe, to which goes where the function is when SIGUSR1 asks.
    """
    connection, stacks = Connection(int(sys.argv[1])), int(sys.argv[2])
    faulthandler.enable()  # a crash shows where it was
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at the keyboard; the trainer's to handle
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    with open(os.devnull, "w") as nowhere, contextlib.suppress(EOFError, ConnectionError):
        while True:
            job: Job = pickle.loads(connection.recv_bytes())
            # The trainer kills what is late; this is for a trainer that is gone.
            faulthandler.dump_traceback_later(job.seconds + _ORPHAN_SECONDS, exit=True, file=nowhere)
            reply = answer(job)
            faulthandler.cancel_dump_traceback_later()
            connection.send_bytes(pickle.dumps(reply))
