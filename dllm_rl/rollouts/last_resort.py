"""The end of a process that cannot end as others do, above all one whose interpreter is blocked.

Code in C that holds the interpreter's lock stops every thread. `faulthandler` needs no lock, but has one timer per
process, so all that may hang in a process share it here. When a deadline passes, the stacks of all threads go to stderr
after one line that says what overran, and the process ends with exit code 1.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

_TELL = """
trap '' INT TERM HUP
while IFS= read -r line; do
  case $line in
    "next "*) what=${line#next } ;;
    Timeout*) printf 'dllm-rl: %s%s; nothing in this process can interrupt it. It ends here:\\n' "$1" "$what" ;;
    *) printf '%s\\n' "$line" ;;
  esac
done
"""
"""A shell that outlives the process: faulthandler's own words do not say what overran."""

_lock = threading.Lock()
_deadlines: dict[str, tuple[float, str]] = {}
_teller: subprocess.Popen[str] | None = None


def expect(owner: str, clause: str, seconds: float) -> None:
    """End the process unless its `owner` forgets this, or expects anew, within so many seconds.

    Args:
        clause: what to say then, such as "reward function f did not return".
    """
    with _lock:
        _deadlines[owner] = (time.monotonic() + seconds, clause)
        _arm()


def forget(owner: str) -> None:
    """It returned."""
    with _lock:
        _deadlines.pop(owner, None)
        _arm()


def _arm() -> None:
    """Set the one timer to what is due first."""
    if not _deadlines:
        faulthandler.cancel_dump_traceback_later()
        return
    due, clause = min(_deadlines.values())
    told = _told()
    print(f"next {clause}", file=told, flush=True)
    faulthandler.dump_traceback_later(max(0.001, due - time.monotonic()), exit=True, file=told)


def _told() -> IO[str]:
    """Where faulthandler writes: the shell's input, or stderr where there is no shell."""
    global _teller
    if _teller is None:
        rank = os.environ.get("RANK")
        who = f"rank {rank}: " if rank is not None else ""
        try:
            _teller = subprocess.Popen(
                ["/bin/sh", "-c", _TELL, "sh", who], stdin=subprocess.PIPE, stdout=2, text=True, start_new_session=True
            )
        except OSError:
            return sys.__stderr__ or sys.stderr
        atexit.register(_dismiss, _teller)
    assert _teller.stdin is not None
    return _teller.stdin


def _dismiss(teller: subprocess.Popen[str]) -> None:
    faulthandler.cancel_dump_traceback_later()
    if teller.stdin is not None:
        teller.stdin.close()
    teller.wait()


def for_summary(text: str) -> None:
    """What torchrun's summary is to show of this process, which is about to end; by itself it shows no reason."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        Path(file).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}), encoding="utf-8")


def _forget_all() -> None:
    """In a forked child: timers do not pass on, and the shell is the parent's."""
    global _teller, _lock
    _lock, _teller = threading.Lock(), None
    _deadlines.clear()


os.register_at_fork(after_in_child=_forget_all)
