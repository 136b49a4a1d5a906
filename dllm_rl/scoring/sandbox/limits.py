"""What one run may use."""

from __future__ import annotations

import resource
from typing import NamedTuple


class Limits(NamedTuple):
    """Ceilings of one run. The candidate is one process: it cannot make others, so they hold for all it does.

    No dataclass: importing those would take a fifth of what a run takes to start.
    """

    wall_seconds: float = 20.0
    """From the moment the sandbox is ready; then every process of the run is killed. Four times the processor time, so
    that a busy machine fails few right answers; only code that waits takes all of it."""
    cpu_seconds: int = 5
    """Of the candidate with its threads, and again of the judge."""
    memory_bytes: int = 1 << 30
    """Address space of the candidate, and again of the judge."""
    tasks: int = 16
    """Threads and processes of the run together; not enforced without isolation."""
    open_files: int = 64
    file_bytes: int = 16 << 20
    """Of any one file that is written."""
    scratch_bytes: int = 32 << 20
    """Of all files together, which live in memory; not enforced without isolation."""
    reply_bytes: int = 8 << 20
    """Of one value that the candidate returns, encoded. What it prints is discarded."""


def apply(limits: Limits, *, isolated: bool) -> None:
    """Lower the limits of this process and of its future children; nothing can raise them again."""
    ceilings = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 0,
    }
    if isolated:  # elsewhere it would count every process of the user
        ceilings[resource.RLIMIT_NPROC] = limits.tasks
    for kind, ceiling in ceilings.items():
        _, hard = resource.getrlimit(kind)
        most = ceiling if hard == resource.RLIM_INFINITY else min(ceiling, hard)
        resource.setrlimit(kind, (most, most))
