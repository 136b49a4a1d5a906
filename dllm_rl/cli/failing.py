"""How one of several processes says what ended it: once, with its rank; those that fail for the lack of it say so."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from dllm_rl.errors import DllmRlError, RunStoppedError, one_line
from dllm_rl.rollouts.last_resort import for_summary

Result = TypeVar("Result")

_LOST = re.compile(r"closed by peer|reset by peer|broken pipe|remote process exited|connection was likely closed", re.I)
_SECONDS_FOR_THE_FIRST = 10.0
"""What a process that lost another waits, so that the launcher sees the one that failed first end first."""

_SECONDS_TO_LEAVE = 20.0
"""What a failed process may take to leave the others in good order; its end is what tells them."""


def who() -> str:
    """The process, where there are several: "rank 1: "."""
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    return f"rank {rank}: " if rank is not None and world != "1" else ""


def say(text: str) -> None:
    """The one line of a failure, on a line of its own: among several processes one may be drawing a bar."""
    print(f"{os.linesep if who() else ''}dllm-rl: {who()}{text}", file=sys.stderr, flush=True)


def as_one_of_several(function: Callable[[], Result]) -> Result:
    """Call it. What it raises is raised, and the launcher's summary refers to it without repeating it.

    A process whose connection to another broke ends here, after one line: its traceback would look like the cause.
    """
    try:
        return function()
    except RunStoppedError:  # all of them stopped, as they were asked to
        raise
    except DllmRlError as error:
        for_summary(f"{type(error).__name__}: see the line of this rank above")
        _leave_soon(2)
        raise
    except Exception as error:
        if who() and isinstance(error, RuntimeError) and _LOST.search(str(error)):  # torch's; not one of a download
            _lost_another(error)
        for_summary(f"{type(error).__name__}: see the traceback of this rank above")
        _leave_soon(1)
        raise


def _lost_another(error: Exception) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how the launcher ends those who are left
    told = one_line(error)[:100]
    say(f"lost another process, which ended first; what it said, or its exit code, is the reason ({told} ...)")
    time.sleep(_SECONDS_FOR_THE_FIRST)
    for_summary("lost the connection to another process; this is not the cause")
    sys.stdout.flush()
    os._exit(1)  # leaving the process group would wait for those who are gone


def _leave_soon(code: int) -> None:
    """Leaving may wait for processes that wait for this one."""
    if who():
        timer = threading.Timer(_SECONDS_TO_LEAVE, os._exit, [code])
        timer.daemon = True
        timer.start()
