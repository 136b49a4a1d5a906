"""What runs in the fresh interpreter: first the supervisor, then, forked from it, judge and candidate."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from dllm_rl.scoring.sandbox import kernel, limits, namespaces, seccomp, wire
from dllm_rl.scoring.sandbox.candidate import serve
from dllm_rl.scoring.sandbox.judge import Channel, candidate_end, verdict

JOB, REPORT = 0, 1
"""Descriptors: two frames to read, the candidate's sources and the judge's tests; two to write, ready and verdict."""


def main() -> None:
    """Serve one run: `python -c ... OPTIONS`, options in JSON."""
    options = json.loads(sys.argv[1])
    ceilings = limits.Limits(**options["limits"])
    isolated: bool = options["isolated"]
    if isolated:
        try:
            namespaces.enter(options["readable"], ceilings)
        except OSError as error:
            _report({"unavailable": str(error)})
            return
    _supervise(ceilings, isolated, options["site"], options["startup_seconds"])


def _report(message: dict[str, Any], descriptor: int = REPORT) -> None:
    wire.send(descriptor, json.dumps(message).encode())


def _supervise(ceilings: limits.Limits, isolated: bool, site: Sequence[str], startup_seconds: float) -> None:
    """Start the judge and end it, with all it started, when asked to or when time is up."""
    ending = {signal.SIGTERM, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    if sys.platform == "linux":
        kernel.die_with_parent(signal.SIGTERM)
    judge = os.fork()
    if judge == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)
        try:
            _judge(ceilings, isolated, site)
        finally:
            os._exit(1)  # without a verdict

    def end(*_: Any) -> None:
        os.kill(judge, signal.SIGKILL)

    for number in ending:
        signal.signal(number, end)
    signal.setitimer(signal.ITIMER_REAL, startup_seconds + ceilings.wall_seconds + 5)  # for a caller that is gone
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)
    os.waitpid(judge, 0)


def _judge(ceilings: limits.Limits, isolated: bool, site: Sequence[str]) -> None:
    """Prepare, split off the candidate before the tests are read, run them and report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _confine(ceilings, isolated, site)
        sources = json.loads(wire.receive(JOB))
        _report({"ready": True})
    except (OSError, wire.Closed) as error:
        _report({"unavailable": str(error)})
        return
    requests, to_candidate = os.pipe()
    from_candidate, replies = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _candidate(sources, requests, replies, isolated)
        finally:
            os._exit(1)
    os.close(requests)
    os.close(replies)
    _filter(isolated)
    job = json.loads(wire.receive(JOB))
    report = os.dup(REPORT)
    _cut_off()  # a test may print what the code returned: it must not be read as a report
    found = verdict(**job, channel=Channel(to_candidate, from_candidate, ceilings.reply_bytes))
    if not found.get("passed", True) and (end := _ended(child)):
        found["reason"] += f" (its process: {end})"
    _report(found, report)
    os._exit(0)


def _confine(ceilings: limits.Limits, isolated: bool, site: Sequence[str]) -> None:
    """Everything that judge and candidate share: no privileges, limits, an empty environment, where modules are."""
    if isolated:
        namespaces.become_nobody()
        os.listdir(os.path.dirname(os.__file__))  # if nobody may read the library, every verdict would be wrong
    if sys.platform == "linux":
        kernel.die_with_parent(signal.SIGKILL)
        kernel.forbid_tracing()
    limits.apply(ceilings, isolated=isolated)
    sys.path.pop(0)  # where this package is
    sys.path.extend(site)


def _candidate(sources: Sequence[str], requests: int, replies: int, isolated: bool) -> None:
    """Keep two pipes and nothing else that is open."""
    if sys.platform == "linux":
        kernel.die_with_parent(signal.SIGKILL)
    _cut_off()
    first, second = sorted((requests, replies))
    os.closerange(3, first)
    os.closerange(first + 1, second)
    os.closerange(second + 1, 1 << 16)
    _filter(isolated)
    sys.argv[:] = [""]
    serve(sources, requests, replies)


def _cut_off() -> None:
    """Input is empty and output is discarded from here on."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)


def _filter(isolated: bool) -> None:
    """Without isolation, whatever the kernel takes is better than nothing."""
    with contextlib.nullcontext() if isolated else contextlib.suppress(OSError):
        seccomp.install(seccomp.program())


def _ended(child: int) -> str | None:
    """How the candidate ended, if it does within a moment: its pipe closes a little before."""
    for _ in range(20):
        if end := candidate_end(child):
            return end
        time.sleep(0.001)
    return None
