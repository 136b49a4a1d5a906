"""Stopping on a signal: at the end of a window, where a run can be gone on with, and on all processes at once."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ONE_REQUEST = 1.0
"""Seconds in which signals are one request: a launcher may pass on what the terminal has sent already."""
_LAUNCHERS = {"accelerate", "torchrun", "accelerate.commands.launch", "torch.distributed.run"}
_PR_SET_PDEATHSIG = 1


class StopRequest:
    """What signals have asked of this process.

    The first one is noted, and said on stderr; a second one, a second or more later, ends the process at once, as it
    would any other.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at = 0.0
        self._owner, self._parent = os.getpid(), os.getppid()
        self._finished = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside, signals are requests to stop. Only the main thread can arrange that; elsewhere nothing changes."""
        try:
            before = {number: signal.signal(number, self._asked) for number in SIGNALS}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def finish(self) -> None:
        """All is saved, and the process about to end: there is nothing left to ask for."""
        self._finished = True

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a worker that was forked is its pool's to end
            _die_of(number)
        if self._finished or self._launcher_died():
            return
        if self.signal is None:
            self.signal, self._at = signal.Signals(number), time.monotonic()
            _say(f"\n{self.signal.name}: stopping at the end of this rollout's updates; once more to stop at once\n")
        elif time.monotonic() - self._at >= _ONE_REQUEST:
            _die_of(number)

    def _launcher_died(self) -> bool:
        """A launcher that the same request ended, once it is asked for, is not a second one."""
        died, self._parent = os.getppid() != self._parent, os.getppid()
        return died and self.signal is not None


class StopAtWindowEnd(TrainerCallback):
    """Ends training, with a checkpoint, at the first update after which all processes can, once one of them was asked.

    Args:
        request: of this process.
        num_iterations: updates made from one rollout. Within such a window a run cannot be gone on with.
        any_asked: whether a request was made to one of the processes; all call it together.
    """

    def __init__(self, request: StopRequest, num_iterations: int, any_asked: Callable[[bool], bool]) -> None:
        self.request, self.num_iterations, self.any_asked = request, num_iterations, any_asked
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._must_stop(state):
            control.should_save = control.should_training_stop = True

    on_evaluate = on_step_end  # an evaluation may take long, and the checkpoint comes after it

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._must_stop(state):
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.stopped:
            self.request.finish()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.stopped:  # saved already; writing over a whole checkpoint could lose it
            control.should_save = False

    def _must_stop(self, state: TrainerState) -> bool:
        if state.global_step == 0 or state.global_step % self.num_iterations:
            return False
        self.stopped = self.stopped or self.any_asked(self.request.signal is not None)
        return self.stopped


def follow_launcher() -> None:
    """Be told (SIGTERM) when the launcher dies: accelerate's, for one process, passes no signal on before it does."""
    parent = os.getppid()
    try:
        command = Path(f"/proc/{parent}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return
    if _LAUNCHERS & {Path(word).name for word in command[:3]}:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            _die_of(signal.SIGTERM)


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _say(text: str) -> None:
    """Printing is not safe within a signal handler; this is. A bar may be in the middle of its line."""
    os.write(2, text.encode())
