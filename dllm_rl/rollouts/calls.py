"""Calling foreign functions with a deadline, so that a function that hangs becomes an error with its name.

A call runs in a daemon thread: sleeps, network waits and pure Python loops leave the caller alive to report and exit.
Code that hangs without releasing the interpreter's lock (one huge power, a regular expression that explodes) stops
every thread; for that there is a last resort, which prints where it hangs and ends the process, `GRACE_SECONDS` after
the deadline. Functions that may do worse run in processes of their own, see `workers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from dllm_rl.rollouts import last_resort

GRACE_SECONDS = 30.0


class Pending(Protocol):
    """A call that was started, in this process or in one of its own."""

    name: str

    def result(self) -> Any: ...

    def cancel(self) -> object: ...

    def place(self) -> str: ...

    def describe(self, error: Exception) -> str: ...

    def raised_at(self, error: BaseException) -> str: ...


class Call:
    """A call under way in this process."""

    def __init__(self, name: str, future: Future[Any], thread: threading.Thread, seconds: float) -> None:
        self.name = name
        self._deadline = time.monotonic() + seconds
        self._future = future
        self._thread = thread

    def result(self) -> Any:
        """What the function returns; raises what it raises.

        Raises:
            TimeoutError: it did not return in time. It may run on until the process ends.
        """
        left = max(0.0, self._deadline - time.monotonic())
        _watch(self.name, left)
        done = threading.Event()
        self._future.add_done_callback(lambda _: done.set())
        if not done.wait(left):
            raise TimeoutError
        try:
            return self._future.result()
        except TimeoutError as error:  # the function's own, not ours
            raise RuntimeError(f"TimeoutError: {error}") from error

    def cancel(self) -> None:
        self._future.cancel()

    def place(self) -> str:
        """Where the thread of the call is now."""
        frame = sys._current_frames().get(self._thread.ident or -1)
        return f"at {_site(traceback.extract_stack(frame)[-1])}" if frame is not None else "no longer running"

    def describe(self, error: Exception) -> str:
        """What the function raised."""
        return f"{type(error).__name__}: {error}"

    def raised_at(self, error: BaseException) -> str:
        """Where an error of the call came from."""
        frames = traceback.extract_tb(error.__traceback__)
        return f"at {_site(frames[-1])}" if frames else "at an unknown place"


def _site(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} in {frame.name}"


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: an `async def`, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Around calls: from the first `start` to the end of the block, code that blocks every thread ends the process."""
    try:
        yield
    finally:
        last_resort.forget("reward")


def _watch(name: str, seconds: float) -> None:
    """Expect the call that is waited for, or was started last, to be over in time."""
    clause = f"reward function {name} did not return in time (reward.workers runs it in a process of its own)"
    last_resort.expect("reward", clause, seconds + GRACE_SECONDS)


def start(name: str, function: Callable[..., Any], arguments: Mapping[str, Any], seconds: float) -> Call:
    """Call `function(**arguments)`: in a new thread, or on the shared event loop if it is asynchronous.

    Args:
        seconds: that the call may take; `Call.result` enforces them. Call within `watched`.
    """
    _watch(name, seconds)  # before the function can run: it may never give the lock back
    if is_async(function):
        loop, thread = _event_loop()
        return Call(name, asyncio.run_coroutine_threadsafe(function(**arguments), loop), thread, seconds)
    future: Future[Any] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(function, **arguments))
        except BaseException as error:  # a function that calls sys.exit must not vanish in a thread
            future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    thread = threading.Thread(target=run, name=f"reward {name}", daemon=True)
    call = Call(name, future, thread, seconds)
    thread.start()
    return call


_lock = threading.Lock()
_shared: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None


def _event_loop() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    """One loop for every asynchronous call of the process: clients that they keep stay bound to it."""
    global _shared
    with _lock:
        if _shared is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="async rewards", daemon=True)
            thread.start()
            _shared = loop, thread
        return _shared
