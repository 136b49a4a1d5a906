"""Nothing waits for ever: a job in which no process gets on for too long shows where all of them are, and ends.

A process that waits for another makes no progress of its own, and may wait long with good reason. So the processes tell
each other how far they are, through the store they met over, and only a job that stands still as a whole is ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import distributed, nn

from dllm_rl.rollouts import last_resort

log = logging.getLogger(__name__)

_SHOW_STACKS = signal.SIGUSR2
_STDERR = 2
_STEPS = 8
"""How often a limit is looked at."""
_SECONDS_FOR_A_REPLY = 10.0
_SECONDS_TO_WRITE = 0.3
_boards = itertools.count()


class Board(Protocol):
    """Where processes leave a word for each other; torch's store, or one of several threads in a test."""

    def set(self, key: str, value: str) -> object: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


def board_of_processes() -> Board | None:
    """The store over which launched processes met, by a connection of its own; None for a process that is alone.

    Without one, should it not be there, each process is watched for itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=_SECONDS_FOR_A_REPLY),
        )
    except (KeyError, RuntimeError) as error:
        log.warning("the watchdog cannot reach the other processes (%s); train.stuck_after holds for each", error)
        return None
    place = (
        f"dllm_rl/watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_boards)}"  # where nothing is yet
    )
    board: Board = distributed.PrefixStore(place, store)  # type: ignore[attr-defined]
    return board


@dataclass
class Watchdog:
    """Ends the job when no process of it has made a step for `limit` seconds, or when one says that it failed.

    A step is a forward of the model, and whatever else calls `step`. Use as a context: the job is watched inside.
    Code that blocks the interpreter stops this watch too: the other processes see it stand still, and a process that is
    alone has the last resort.
    """

    limit: float
    """Seconds; longer than any reward function, checkpoint or compilation takes."""
    rank: int = 0
    world: int = 1
    board: Board | None = None
    steps: int = 0
    _seen: dict[int, str] = field(default_factory=dict)
    _since: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def step(self, *_: Any) -> None:
        """This process got on. Takes what a forward hook is given."""
        self.steps += 1

    @contextlib.contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Inside, the job is watched, and every forward of `network` is a step."""
        uncompiled = torch.compiler.disable(self.step)  # type: ignore[no-untyped-call]
        hook = network.register_forward_pre_hook(uncompiled)  # else the count would be compiled in
        faulthandler.register(_SHOW_STACKS, file=_STDERR, all_threads=True)
        self._tell(f"process/{self.rank}", f"{socket.gethostname()} {os.getpid()}")
        self._since = time.monotonic()
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        except Exception as error:
            self._tell("failed", f"{self.rank} {type(error).__name__}")
            raise
        finally:
            self._over.set()
            thread.join()
            hook.remove()
            last_resort.forget("watchdog")
            faulthandler.unregister(_SHOW_STACKS)

    def _watch(self) -> None:
        """Until training is over."""
        pause = min(self.limit / _STEPS, 5.0)
        while not self._over.wait(pause):
            last_resort.expect("watchdog", f"no step was made in {self.limit:g} s", self.limit + 2 * pause)
            with contextlib.suppress(RuntimeError):  # who kept the board may have left already
                self._compare()
            if time.monotonic() - self._since > self.limit:
                self._end_all()

    def _compare(self) -> None:
        """Note who got on since the last look, and whether one failed."""
        steps = {self.rank: str(self.steps)}
        if steps[self.rank] != self._seen.get(self.rank):
            self._tell(f"steps/{self.rank}", steps[self.rank])
        for other in range(self.world):
            if self.board is not None and other != self.rank and self.board.check([f"steps/{other}"]):
                steps[other] = self.board.get(f"steps/{other}").decode()
        if steps != self._seen:
            self._seen, self._since = steps, time.monotonic()
        if self.board is not None and self.board.check(["failed"]):
            self._follow(*self.board.get("failed").decode().split())

    def _follow(self, rank: str, error: str) -> None:
        """End with one that failed; it may be on another machine, whose launcher does not know this one."""
        if int(rank) == self.rank or self._over.wait(_SECONDS_FOR_A_REPLY):
            return
        self._say(f"rank {rank} failed ({error}, said there); this process ends with it")
        last_resort.for_summary(f"ends with rank {rank}")
        os._exit(1)

    def _end_all(self) -> None:
        """Show where every process of this machine is, and end this one; the launcher ends the others."""
        self._say(
            f"no process has made a step for {self.limit:g} s (train.stuck_after). Where this machine's are follows, "
            "the most recent call first; one that waits for others, in a collective, waits for one that does not"
        )
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        with contextlib.suppress(RuntimeError):
            self._tell("failed", f"{self.rank} stuck")
            for other, process in self._neighbours():
                self._say(f"now rank {other}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, _SHOW_STACKS)
                time.sleep(_SECONDS_TO_WRITE)
        last_resort.for_summary(f"no step for {self.limit:g} s: see where all ranks were, above")
        os._exit(1)

    def _neighbours(self) -> Iterator[tuple[int, int]]:
        """Ranks and ids of the other processes on this machine."""
        for other in range(self.world):
            if self.board is not None and other != self.rank and self.board.check([f"process/{other}"]):
                host, process = self.board.get(f"process/{other}").decode().split()
                if host == socket.gethostname():
                    yield other, int(process)

    def _tell(self, key: str, value: str) -> None:
        if self.board is not None:
            with contextlib.suppress(RuntimeError):
                self.board.set(key, value)

    def _say(self, text: str) -> None:
        who = f"rank {self.rank}: " if self.world > 1 else ""
        print(f"\ndllm-rl: {who}{text}", file=sys.stderr, flush=True)
