"""Hosts that offer no isolation, callers that die, and the filter itself."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest

from dllm_rl.scoring.sandbox import kernel, seccomp
from tests.scoring.hosts import needs_isolation

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
X86 = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
ARM = Path("/usr/include/asm-generic/unistd.h")

REFUSES = """
from dllm_rl import evaluate, score
from dllm_rl.errors import SandboxError
from dllm_rl.scoring.sandbox.limits import Limits
from dllm_rl.scoring.sandbox.run import Job, check
source = "import os\\nopen('kept', 'w').close()\\ndef f(): return os.getcwd(), dict(os.environ)"
job = Job([source], "raise RuntimeError(f())")
row = {"test_list": ["assert f() == 1"]}
right = "def f(): return 1"
for attempt in (lambda: check(job), lambda: score("mbpp", right, row), lambda: evaluate("mbpp", [right], [row])):
    try:
        attempt()
    except SandboxError as error:
        assert "allow_unsandboxed" in str(error) and "docs/code.md" in str(error), error
        print(error)
    else:
        raise AssertionError("it ran")
found = check(job, allow_unsandboxed=True)
assert not found.isolated and not found.passed, found
assert "sandbox-" in found.reason and "PYTHONPATH" not in found.reason, found
assert score("mbpp", right, row, allow_unsandboxed=True).value == 1
assert evaluate("mbpp", [right, "f = 2"], [row] * 2, allow_unsandboxed=True).scores == [1, 0]
for hang in ("import time; time.sleep(99)", "import os, time\\nos.closerange(0, 64); time.sleep(99)"):
    assert not check(Job([hang], "f()"), Limits(cpu_seconds=1, wall_seconds=0.5), allow_unsandboxed=True).passed
import glob, tempfile
assert not [f for f in glob.glob(tempfile.gettempdir() + "/sandbox-*")], "scratch folders are left"
"""


def run(program: str, *before: str, temporary: Path) -> str:
    environment = ENVIRONMENT | {"TMPDIR": str(temporary)}
    command = [*before, sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_namespaces_it_refuses_unless_told_by_name(tmp_path: Path) -> None:
    """The kernel itself denies them to this process: a filter that refuses `unshare`."""
    if os.uname().sysname != "Linux":
        pytest.skip("a filter of Linux")
    deny = "from dllm_rl.scoring.sandbox import seccomp\n"
    deny += "seccomp.install(seccomp.program(['unshare'], arguments=False))\n"
    assert run(deny + REFUSES, temporary=tmp_path).count("unshare: Operation not permitted") == 3


@needs_isolation
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_where_the_administrator_allows_no_namespaces_it_refuses(tmp_path: Path) -> None:
    shell = ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"]
    assert run(REFUSES, *shell, temporary=tmp_path).count("unshare: No space left on device") == 3


@needs_isolation
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_it_works_for_a_user_who_may_name_no_other(tmp_path: Path) -> None:
    """As an ordinary user's run does, it maps its one user to nobody; limits hold."""
    program = """
from dllm_rl.scoring.sandbox.run import Job, check
found = check(Job(["import os\\ndef f(): return os.getuid()"], "assert f() == 65534"))
assert found.passed and found.isolated, found
bomb = "import threading\\ndef f():\\n    threading.stack_size(64 << 20)\\n"
bomb += "    while True: threading.Thread(target=threading.Event().wait, daemon=True).start()"
found = check(Job([bomb], "f()"))
assert "can't start new thread" in found.reason, found
"""
    run(program, "unshare", "-Ur", temporary=tmp_path)


@needs_isolation
def test_a_caller_that_is_killed_takes_its_runs_along(tmp_path: Path) -> None:
    mark = 10**9 + os.getpid()  # a limit that no other run has
    program = (
        "from dllm_rl.scoring.sandbox.run import Job, check\nfrom dllm_rl.scoring.sandbox.limits import Limits\n"
        f"check(Job(['import time; time.sleep(300)'], 'f()'), Limits(wall_seconds=300, file_bytes={mark}))"
    )
    caller = subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT | {"TMPDIR": str(tmp_path)})
    while len(found := _processes(str(mark))) < 3:  # supervisor, judge, candidate
        assert caller.poll() is None
    watched = [os.pidfd_open(process) for process in found]
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    for descriptor in watched:
        assert select.select([descriptor], [], [], 30)[0], "a process of the run is still there"
        os.close(descriptor)


def _processes(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in words and b"sandbox.inside" in words:
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(("header", "column", "prefix"), [(X86, 0, "__NR"), (ARM, 1, "__NR(?:3264)?")])
def test_numbers_of_system_calls_are_those_of_the_kernels_headers(header: Path, column: int, prefix: str) -> None:
    if not header.is_file():
        pytest.skip(f"needs {header}")
    published = {
        name: int(number) for name, number in re.findall(rf"#define {prefix}_(\w+)\s+(\d+)\b", header.read_text())
    }
    machine = ("x86_64", "aarch64")[column]
    assert {name: published.get(name) for name in seccomp.DENIED} == {
        name: numbers[column] for name, numbers in seccomp.DENIED.items()
    }
    assert published["clone"] == seccomp._CLONE[machine]
    assert published["pivot_root"] == kernel._PIVOT_ROOT[machine]
    assert published["capset"] == kernel._CAPSET[machine]
    assert published["clone3"] == seccomp._CLONE3
    assert published["mount_setattr"] == kernel._MOUNT_SETATTR


@needs_isolation
def test_libraries_below_the_place_of_the_scratch_folder_are_seen_and_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        Path(folder, "library.py").write_text("here")
        program = f"""
import errno, os, sys
from dllm_rl.scoring.sandbox import limits, namespaces
namespaces.enter(["/lib", "/usr/lib", {folder!r}], limits.Limits())
if os.fork():
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
namespaces.become_nobody()
assert open({folder + "/library.py"!r}).read() == "here"
open("/tmp/scratch", "w").close()
try:
    open({folder + "/library.py"!r}, "w")
except OSError as error:
    os._exit(error.errno == errno.EROFS and 7)
"""
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 7, done.stderr


@needs_isolation
@pytest.mark.parametrize("before", [[], ["unshare", "-Ur"]], ids=["as root", "as a user whose the folders are"])
def test_libraries_below_the_scratch_folder_cannot_be_put_aside(before: list[str]) -> None:
    """An environment in /tmp: code that renamed a folder on the way to it could give the judge modules of its own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        venv.create(folder)
        (site,) = Path(folder).glob("lib/python*/site-packages")
        (site / "helper.py").write_text("def expected(): return 4711")
        program = f"""
import sysconfig
from dllm_rl.scoring.sandbox.run import Job, check
assert sysconfig.get_path("purelib") == {str(site)!r}
attack = '''
import os
tried = []
def attempt(work, *arguments):
    try: work(*arguments)
    except OSError as error: tried.append(error.errno)
def f():
    place = {str(site)!r}
    while place != "/tmp":
        attempt(os.chmod, place, 0o777)
        attempt(os.rename, place, place + "-aside")
        attempt(os.rmdir, place)
        place = os.path.dirname(place)
    attempt(os.makedirs, {str(site)!r})
    attempt(open, {str(site / "helper.py")!r}, "w")
    return tried
'''
found = check(Job([attack], "import helper\\nassert helper.expected() == 4711\\nassert len(f()) == 14 and helper"))
assert found.passed and found.isolated, found
found = check(Job([attack + "f()"], "import helper\\nassert helper.expected() == 0"))
assert not found.passed, found
"""
        command = [*before, f"{folder}/bin/python", "-c", program]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
