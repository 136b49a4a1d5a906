"""The caller's side: start a run, wait for its verdict, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dllm_rl.errors import DataError, SandboxError
from dllm_rl.scoring.sandbox.limits import Limits

STARTUP_SECONDS = 60.0
_PACKAGE_PARENT = str(Path(__file__).parents[3])
_PROGRAM = "import sys; sys.path.insert(0, {!r}); from dllm_rl.scoring.sandbox.inside import main; main()"
_DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Job:
    """Code to judge and the tests to judge it by."""

    sources: Sequence[str]
    """The candidate's, run one after the other in one namespace."""
    tests: str
    """Python; the code is right if it runs to its end. Names that the tests do not define are the candidate's."""
    context: str = ""
    """Trusted code that the tests may use. The candidate does not see it."""
    entry_points: Sequence[str] = ()
    """Names that are the candidate's even where the context or Python defines them too."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run showed."""

    passed: bool
    reason: str
    isolated: bool
    """False when it ran without namespaces, which only `allow_unsandboxed` permits."""


def check(job: Job, limits: Limits = _DEFAULT_LIMITS, *, allow_unsandboxed: bool = False) -> Verdict:
    """Run a job in a sandbox of its own; `docs/code.md` says what that contains and what not.

    Safe to call from several threads. A test whose outcome depends on what the candidate did to its arguments cannot
    pass: arguments and values go to and fro as copies.

    Args:
        allow_unsandboxed: where the host offers no isolation, run with limits and a clean environment only. The code
            can then read and change whatever the user can.

    Raises:
        SandboxError: the host offers no isolation, or the run could not start.
        DataError: the tests cannot be run against another process.
    """
    try:
        return _run(job, limits, isolated=True)
    except SandboxError:
        if not allow_unsandboxed:
            raise
    return _run(job, limits, isolated=False)


def _run(job: Job, limits: Limits, *, isolated: bool) -> Verdict:
    scratch_folder = tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True)
    with scratch_folder as scratch, tempfile.TemporaryFile() as file:
        _write(file, list(job.sources))
        _write(file, {"context": job.context, "tests": job.tests, "entry_points": list(job.entry_points)})
        file.seek(0)
        process = _start(file, limits, scratch, isolated=isolated)
        try:
            return _verdict(process, limits, isolated=isolated)
        finally:
            _end(process, isolated=isolated)


def _write(file: IO[bytes], content: Any) -> None:
    payload = json.dumps(content).encode()
    file.write(len(payload).to_bytes(4, "big") + payload)


def _start(file: IO[bytes], limits: Limits, scratch: str, *, isolated: bool) -> subprocess.Popen[bytes]:
    home = "/tmp" if isolated else scratch
    environment = {"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    site = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    options: dict[str, Any] = {
        "limits": limits._asdict(),
        "isolated": isolated,
        "readable": [*_libraries(), *site],
        "site": site,
        "startup_seconds": STARTUP_SECONDS,
    }
    if places := _library_path(os.environ.get("LD_LIBRARY_PATH", ""), options["readable"]):
        environment["LD_LIBRARY_PATH"] = places
    return subprocess.Popen(
        [sys.executable, "-S", "-s", "-P", "-c", _PROGRAM.format(_PACKAGE_PARENT), json.dumps(options)],
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=scratch,
        start_new_session=True,
    )


def _library_path(places: str, readable: Sequence[str]) -> str:
    """Without places that code could fill: empty and relative ones mean the scratch folder, as do many below /tmp."""
    absolute = [place for place in places.split(":") if place.startswith("/") and ".." not in place.split("/")]
    shown = tuple(f"{path}/" for path in readable)
    return ":".join(place for place in absolute if not f"{place}/".startswith("/tmp/") or f"{place}/".startswith(shown))


def _libraries() -> list[str]:
    """What the interpreter reads while it runs, and nothing of anybody's home but that."""
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    return [*system, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_prefix}/lib"]


def _verdict(process: subprocess.Popen[bytes], limits: Limits, *, isolated: bool) -> Verdict:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    ready = _frame(descriptor, time.monotonic() + STARTUP_SECONDS) or {"unavailable": "it did not start"}
    if "unavailable" in ready:
        raise SandboxError(
            f"untrusted code cannot be isolated on this host ({ready['unavailable']}); expected Linux with "
            "unprivileged user namespaces and seccomp, see docs/code.md. allow_unsandboxed=True runs the code with the "
            "rights of this user instead"
        )
    found = _frame(descriptor, time.monotonic() + limits.wall_seconds)
    if found is None:
        return Verdict(False, f"no verdict within {limits.wall_seconds:g} s, or its judge was ended", isolated)
    if "unusable" in found:
        raise DataError(f"these tests cannot be used: {found['unusable']}")
    return Verdict(found["passed"] is True, str(found["reason"]), isolated)


def _frame(descriptor: int, deadline: float) -> dict[str, Any] | None:
    """One report; None if the stream ends or the deadline passes before it is whole."""
    poll, content = select.poll(), b""
    poll.register(descriptor, select.POLLIN)
    while len(content) < 4 or len(content) < 4 + int.from_bytes(content[:4], "big"):
        wanted = 4 if len(content) < 4 else 4 + int.from_bytes(content[:4], "big")
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        chunk = os.read(descriptor, wanted - len(content)) if ready else b""
        if not chunk:
            return None
        content += chunk
    report: dict[str, Any] = json.loads(content[4:])
    return report


def _end(process: subprocess.Popen[bytes], *, isolated: bool) -> None:
    """End every process of the run. With isolation the supervisor does it, and waits until they are gone."""
    try:
        if isolated:
            process.terminate()
            process.wait(10)
    except subprocess.TimeoutExpired:
        pass
    if process.returncode is None:  # not waited for, so the number is still its own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.stdout is not None
    process.stdout.close()
