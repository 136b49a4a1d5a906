"""Runs of a recipe in forked children of one process that has imported everything, watched and ended from outside.

Forking is safe as long as the parent has one thread: it imports, and computes nothing that would start more.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODULES = (
    *("torch", "transformers", "peft", "accelerate", "matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("dllm_rl.cli", "dllm_rl.recipe.build", "dllm_rl.recipe.evaluate", "dllm_rl.evaluation.run", "torch._dynamo"),
)
_FORKS_WELL = "jemalloc_bg_thd"
"""pyarrow's allocator, which has fork handlers of its own."""
AGENT_PATIENCE = 30.0
"""Seconds that torch's agent gives other ranks after SIGTERM, before SIGKILL."""
LIMIT = 600.0

Watch = Callable[[str, Path], None]
"""Told of each event of the child ("write", "forward", ...), and the path it is about."""


def import_everything() -> None:
    for name in MODULES:
        importlib.import_module(name)
    tasks = Path("/proc/self/task")
    threads = sorted(name.read_text().strip() for name in tasks.glob("*/comm"))
    others = [name for name in threads if name != _FORKS_WELL][1:]
    assert not others, f"threads {others}: a child would inherit their locks; set OMP_NUM_THREADS=1 before the start"


@dataclass(frozen=True)
class Moment:
    """A signal at the `count`-th event of a kind on one rank, or so long after it."""

    kind: str
    """forward, reward, write (any change to the output's files), save (a checkpoint begins), final."""
    count: int
    delay: float = 0.0
    signal: signal.Signals = signal.SIGKILL
    rank: int = 0
    everyone: bool = False
    """The signal goes to all ranks, not only to the one that is watched."""

    def __str__(self) -> str:
        after = f" + {1000 * self.delay:.0f} ms" if self.delay else ""
        return f"{self.kind} {self.count}{after}"


@dataclass
class Job:
    """The children of one run."""

    pids: list[int]
    log: Path
    pipe: int
    codes: dict[int, int] = field(default_factory=dict)
    """By rank: exit code, or minus the signal that ended it."""

    def interrupt(self, moment: Moment) -> bool:
        """Wait for the moment and send its signal; false if the run ended before it."""
        ready, _, _ = select.select([self.pipe], [], [], LIMIT)
        assert ready, f"no moment and no end in {LIMIT} s; see {self.log}"
        if os.read(self.pipe, 1) != b"!":
            return False
        if moment.delay:
            time.sleep(moment.delay)
            self.send(moment.signal, [moment.rank])
        if moment.everyone:
            self.send(moment.signal, [rank for rank in range(len(self.pids)) if rank != moment.rank])
        return True

    def send(self, number: int, ranks: list[int]) -> None:
        for rank in ranks:
            if rank not in self.codes:
                os.kill(self.pids[rank], number)

    def wait(self) -> list[int]:
        """Codes of all ranks; when one fails the others are ended as torch's agent would."""
        deadline, told = time.monotonic() + LIMIT, False
        while len(self.codes) < len(self.pids):
            for rank, pid in enumerate(self.pids):
                if rank not in self.codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    self.codes[rank] = os.waitstatus_to_exitcode(ended[1])
            failed = any(code != 0 for code in self.codes.values())
            if failed and not told:
                told, deadline = True, time.monotonic() + AGENT_PATIENCE
                self.send(signal.SIGTERM, [*range(len(self.pids))])
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL, [*range(len(self.pids))])
            time.sleep(0.01)
        os.close(self.pipe)
        return [self.codes[rank] for rank in range(len(self.pids))]


def start(
    recipe: Path,
    output: Path,
    log: Path,
    ranks: int = 1,
    moment: Moment | None = None,
    inside: Callable[[], None] | None = None,
) -> Job:
    """Fork a run; with more than one rank, as torchrun would start them.

    Without a moment, how many events of each kind rank 0 had is in LOG.json when it has ended.

    Args:
        inside: called in the child before the run, in place of counting events.
    """
    reading, writing = os.pipe()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _child(recipe, output, log, (rank, ranks, port), moment, writing, inside)
        pids.append(pid)
    os.close(writing)
    return Job(pids, log, reading)


def _child(
    recipe: Path,
    output: Path,
    log: Path,
    place: tuple[int, int, int],
    moment: Moment | None,
    pipe: int,
    inside: Callable[[], None] | None,
) -> None:
    code, tally = 1, Counter[str]()
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        _environment(*place)
        if inside is not None:
            inside()
        elif moment is None:
            count_events(output, lambda kind, path: tally.update([kind]))
        elif moment.rank == place[0]:
            count_events(output, _announce(moment, pipe))
        from dllm_rl.cli import main

        code = main(["run", str(recipe)])
        if place[0] == 0:
            log.with_suffix(".json").write_text(json.dumps(tally))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _environment(rank: int, world: int, port: int) -> None:
    if world > 1:
        os.environ |= {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"},
        }


def _announce(moment: Moment, pipe: int) -> Watch:
    """Tells the parent of the moment; without a delay the signal is sent here, so that it finds the very event."""
    seen = 0

    def watch(kind: str, path: Path) -> None:
        nonlocal seen
        seen += kind == moment.kind
        if kind == moment.kind and seen == moment.count:
            os.write(pipe, b"!")
            if not moment.delay:
                os.kill(os.getpid(), moment.signal)

    return watch


def count_events(output: Path, watch: Watch) -> None:
    """Tell `watch` of every forward, reward call and change to the output's files, from now on."""
    from torch.nn.modules.module import register_module_forward_pre_hook
    from transformers import PreTrainedModel

    prefix = str(output)

    def forward(module: Any, args: Any) -> None:
        if isinstance(module, PreTrainedModel):
            watch("forward", output)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "kills.reward":
            watch("reward", output)
        elif event in _CHANGES and str(path := args[_CHANGES[event]]).startswith(prefix) and _changes(event, args):
            name = str(path).rstrip("/").rpartition("/")[2]
            watch("write", Path(str(path)))
            if event == "os.mkdir" and name.endswith(".writing") and not Path(str(path)).exists():
                watch("final" if "final" in name else "save", Path(str(path)))

    register_module_forward_pre_hook(forward)
    sys.addaudithook(audit)


_CHANGES = {"open": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0, "shutil.rmtree": 0}


def _changes(event: str, args: tuple[Any, ...]) -> bool:
    if event != "open":
        return True
    _, mode, flags = args
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
