"""Attacks on the sandbox. Each says how it must end; one that ends otherwise, for a typo or a success, fails.

The last of them is followed by a run like any other.
"""

from __future__ import annotations

import os
import re
import socket
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from dllm_rl.scoring.sandbox.limits import Limits
from dllm_rl.scoring.sandbox.run import Job, Verdict, check
from tests.scoring.hosts import needs_isolation

pytestmark = needs_isolation
SMALL = Limits(
    wall_seconds=60, cpu_seconds=1, memory_bytes=256 << 20, scratch_bytes=8 << 20, file_bytes=4 << 20, tasks=16
)
LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
BELOW = sorted(
    {Path(sysconfig.get_path("purelib")).parts[2]} if sysconfig.get_path("purelib").startswith("/tmp/") else ()
)
"""What the scratch folder holds from the start: the way to libraries that are installed below its place."""
REFUSED = r"PermissionError: \[Errno 1\]"


def system_call(name: str, arguments: str) -> str:
    return f"""{LIBC}
def attack():
    if libc.{name}({arguments}) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


def reply(content: bytes, length: int | None = None) -> str:
    """Code that answers with these bytes, said to be so many, before it answers as it should."""
    frame = (length or len(content)).to_bytes(4, "big") + content
    count = content.count(b"[],")
    written = repr(frame) if count < 9 else f"{frame.replace(b'[],' * count, b'*')!r}.replace(b'*', b'[],' * {count})"
    return f"""
import os, time
def attack():
    for d in range(3, 64):
        left = memoryview({written})
        try:
            while left: left = left[os.write(d, left):]
        except OSError: pass"""


PAIR = "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
ATTACKS = [
    # Processes.
    ("fork bomb", "import os\ndef attack():\n    while True: os.fork()", REFUSED),
    ("fork by system call", system_call("syscall", "57 if os.uname().machine == 'x86_64' else 1079"), REFUSED),
    ("vfork", system_call("vfork", ""), REFUSED),
    ("clone without a thread", system_call("syscall", "56, 17, 0, 0, 0, 0"), REFUSED),
    ("clone of a new user namespace", system_call("syscall", "56, 0x10000011, 0, 0, 0, 0"), REFUSED),
    ("clone3", system_call("syscall", "435, ctypes.create_string_buffer(88), 88"), r"Errno 38"),
    ("a shell", "import os\ndef attack():\n    os.system('echo > made')\n    open('made')", "FileNotFoundError"),
    ("subprocess", "import subprocess\ndef attack(): subprocess.run(['/bin/true'])", REFUSED),
    ("another program", "import os, sys\ndef attack(): os.execv('/usr/bin/env', ['env'])", REFUSED),
    ("multiprocessing", "import multiprocessing as m\ndef attack(): m.Process(target=print).start()", REFUSED),
    (
        "thread bomb",
        """
import threading
def attack():
    threading.stack_size(32768)
    while True: threading.Thread(target=threading.Event().wait, daemon=True).start()
""",
        "RuntimeError: can't start new thread",
    ),
    ("a new session", "import os\ndef attack(): os.setsid()", REFUSED),
    ("outliving the parent", system_call("prctl", "1, 0, 0, 0, 0"), REFUSED),
    ("a program by its file", system_call("syscall", "322, 3, b'', 0, 0, 0x1000"), REFUSED),
    ("a thread in a user namespace of its own", system_call("syscall", "56, 0x10010d00, 0, 0, 0, 0"), r"Errno 22"),
    ("calls of the x32 machine", system_call("syscall", "0x40000000 + 57"), r"Errno 38"),
    # Memory.
    ("memory at once", "def attack(): return len(bytearray(8 << 30))", "MemoryError"),
    ("memory by and by", "def attack():\n    x = []\n    while True: x.append(bytes(1 << 20))", "MemoryError"),
    ("mapped memory", "import mmap\ndef attack(): mmap.mmap(-1, 8 << 30)", r"Errno 12"),
    ("a file in memory", "import os\ndef attack(): os.memfd_create('x')", REFUSED),
    ("shared memory", system_call("shmget", "0, 1 << 30, 0o1600"), REFUSED),
    ("kernel keys", system_call("syscall", "250, 0, -3, 1, 0, 0"), REFUSED),
    ("a huge number", "def attack(): return 10 ** 10 ** 10", r"signal 9|MemoryError"),
    (
        "endless recursion",
        "import sys\nsys.setrecursionlimit(1 << 30)\ndef attack(): return attack()",
        r"signal (9|11)|MemoryError",
    ),
    # Disk.
    (
        "filling the scratch folder",
        "def attack():\n    for i in range(1000):\n        with open(str(i), 'wb') as f: f.write(bytes(1 << 20))",
        r"Errno 28",
    ),
    ("a huge file", "def attack():\n    with open('x', 'wb') as f:\n        f.truncate(1 << 40)", r"Errno 27"),
    (
        "a growing file",
        "def attack():\n    with open('x', 'wb') as f:\n        while 1: f.write(bytes(99999))",
        r"Errno 27",
    ),
    ("many files", "def attack():\n    for i in range(10**6): open(f'/tmp/{i}', 'w').close()", r"Errno 28"),
    ("many open files", "def attack():\n    kept = []\n    while True: kept.append(open('/dev/null'))", r"Errno 24"),
    ("shared memory by name", "def attack(): open('/dev/shm/x', 'wb').write(b'x')", "FileNotFoundError"),
    ("a queue of messages", system_call("syscall", "240, b'x', 0o102, 0o600, 0"), REFUSED),
    ("faults for others to answer", system_call("syscall", "323, 1"), REFUSED),
    # Time and output.
    (
        "much output without a line",
        "import os\ndef attack():\n    for _ in range(300): os.write(1, bytes(1 << 20))\n    raise OSError('done')",
        "OSError: done",
    ),
    ("real time", "import os\ndef attack(): os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))", REFUSED),
    ("endless loop", "def attack():\n    while True: pass", r"signal 9"),
    ("endless loop while loading", "while True: pass", r"signal 9"),
    ("endless output", "def attack():\n    while True: print('x' * 99999)", r"signal 9"),
    ("sleeping", "import time\ndef attack(): time.sleep(99)", r"no verdict within 1 s"),
    ("waiting for input", "def attack(): return input()", r"EOFError"),
    ("a slow pattern", "import re\ndef attack(): re.match('(a*)*b', 'a' * 64)", r"signal 9"),
    (
        "deaf to signals",
        "import signal\ndef attack():\n"
        "    for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n    while True: pass",
        r"signal 9",
    ),
    # Signals and other processes.
    ("killing everything", "import os\ndef attack(): os.kill(-1, 9)", REFUSED),
    ("killing the parent", "import os\ndef attack(): os.kill(os.getppid(), 9)", REFUSED),
    ("killing the group", "import os\ndef attack(): os.killpg(0, 9)", REFUSED),
    ("killing by file", "import os\ndef attack(): os.pidfd_open(os.getppid())", REFUSED),
    ("killing a thread", system_call("syscall", "234, 1, 1, 9"), REFUSED),
    ("tracing the judge", system_call("ptrace", "16, 1, 0, 0"), REFUSED),
    ("reading the judge's memory", system_call("process_vm_readv", "1, 0, 0, 0, 0, 0"), REFUSED),
    ("taking the judge's files", system_call("syscall", "438, 3, 1, 0"), REFUSED),
    ("slowing the judge", "import os\ndef attack(): os.setpriority(os.PRIO_PROCESS, 1, 19)", REFUSED),
    ("moving the judge", "import os\ndef attack(): os.sched_setaffinity(1, {0})", REFUSED),
    ("limits for the judge", "from resource import *\ndef attack(): prlimit(1, RLIMIT_CPU, (0, 0))", REFUSED),
    ("a signal by a file", "import fcntl, os\ndef attack(): fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, 1)", REFUSED),
    (
        "a signal to a thread by a file",
        "import fcntl, os\ndef attack(): fcntl.fcntl(os.pipe()[0], 15, bytes(8))",
        REFUSED,
    ),
    ("which signal a file sends", "import os, fcntl\ndef attack(): fcntl.fcntl(os.pipe()[0], 10, 9)", REFUSED),
    ("a core for the host's program", system_call("prctl", "4, 1, 0, 0, 0"), REFUSED),
    ("crashing the compiler", "def attack(): eval('-' * 10**6 + '1')", r"MemoryError|Recursion|Syntax|signal 11"),
    ("aborting", "import os\ndef attack(): os.abort()", r"signal 11|signal 6"),
    ("a wild pointer", "import ctypes\ndef attack(): ctypes.string_at(1)", r"signal 11"),
    # Files.
    ("reading the users", "def attack(): return open('/etc/passwd').read()", r"FileNotFoundError"),
    (
        "reading by a link",
        "import os\ndef attack():\n    os.symlink('/etc/passwd', 'x')\n    open('x')",
        r"FileNotFound",
    ),
    ("reading by dots", "def attack(): open('../../../../etc/shadow')", r"FileNotFoundError"),
    ("reading processes", "def attack(): open('/proc/self/environ')", r"FileNotFoundError"),
    ("own descriptors", "def attack(): open('/dev/fd/3', 'wb')", r"FileNotFoundError"),
    ("times of a device", "import os\ndef attack(): os.utime('/dev/null')", r"Errno 30"),
    ("typing at a terminal", "import fcntl\ndef attack(): fcntl.ioctl(0, 0x5412, b'x')", r"Errno 25"),
    ("the old root", "import os\ndef attack(): os.listdir('/.host')", r"FileNotFoundError"),
    ("writing to the library", "import os\ndef attack(): open(os.__file__, 'a')", r"Errno (30|13)"),
    (
        "writing to the library by a link",
        "import os\nos.symlink(os.__file__, 'x')\ndef attack(): open('x', 'a')",
        r"Errno",
    ),
    ("a hard link out", "import os\ndef attack(): os.link(os.__file__, '/tmp/x')", r"Errno (18|1)\b"),
    ("writing to the root", "def attack(): open('/x', 'w')", r"Errno 30"),
    ("writing beside devices", "def attack(): open('/dev/x', 'w')", r"Errno 30"),
    ("making a device", "import os\ndef attack(): os.mknod('/tmp/x', 0o20666, 259)", REFUSED),
    ("leaving the root", "import os\ndef attack(): os.chroot('/tmp')", REFUSED),
    ("mounting", system_call("mount", "b'proc', b'/tmp', b'proc', 0, None"), REFUSED),
    ("new mounts", system_call("syscall", "430, b'proc', 0"), REFUSED),
    ("opening by handle", system_call("open_by_handle_at", "3, 0, 0"), REFUSED),
    # Privileges and the kernel.
    ("becoming root", "import os\ndef attack(): os.setuid(0)", r"Errno (1|22)\b"),
    ("new namespaces", system_call("unshare", "0x10000000"), REFUSED),
    ("raising limits", "from resource import *\ndef attack(): setrlimit(RLIMIT_AS, (-1, -1))", r"ValueError"),
    ("rings", system_call("syscall", "425, 8, ctypes.create_string_buffer(120)"), REFUSED),
    ("performance counters", system_call("syscall", "298, 0, 0, 0, 0, 0"), REFUSED),
    ("kernel programs", system_call("syscall", "321, 0, 0, 0"), REFUSED),
    ("a call newer than the filter", system_call("syscall", "457, 0, 0, 0, 0"), r"Errno 38"),
    ("the clock", "import time\ndef attack(): time.clock_settime(0, 0)", REFUSED),
    (
        "calls of another machine",  # int 0x80: fork as a 32-bit program calls it
        """
import ctypes, mmap
def attack():
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex("b802000000cd80c3"))
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
""",
        r"signal 31",
    ),
    # The network.
    ("looking up a name", "import socket\ndef attack(): socket.getaddrinfo('example.com', 80)", r"gaierror"),
    ("a datagram", "import socket\ndef attack(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", REFUSED),
    ("a local socket", "import socket\ndef attack(): socket.socket(socket.AF_UNIX).connect('\\0x')", REFUSED),
    ("a name for one of a pair", f"{PAIR}def attack(): a.bind('\\0x')", REFUSED),
    ("a call from one of a pair", f"{PAIR}def attack(): a.connect('\\0x')", REFUSED),
    ("a datagram from one of a pair", f"{PAIR}def attack(): a.sendto(b'x', '\\0x')", r"Errno 111"),
    # Replies.
    ("an object that never was", reply(b'v{"object": 4711}'), "TypeError"),
    ("an object of no number", reply(b'v{"object": [1]}'), "something else than a value"),
    ("an exception that is none", reply(b'e{"int": "0x1"}'), "TypeError"),
    ("half a reply, then the end", f"{reply(b'v1', 99)}\n    os._exit(0)", "the code did not answer: it ended"),
    ("half a reply, then silence", f"{reply(b'v1', 99)}\n    time.sleep(99)", r"no verdict within 1 s"),
    ("lists of lists of nothing", reply(b"v[" + b"[]," * 2_600_000 + b"[]]"), "MemoryError"),
    ("a huge reply", "def attack(): return 'x' * (9 << 20)", r"at most 8388608 are read"),
    ("a deep reply", "def attack():\n    x = []\n    for _ in range(10**5): x = [x]\n    return x", r"RecursionError"),
    ("a circle", "def attack():\n    x = []\n    x.append(x)\n    return x", r"RecursionError|ValueError"),
    ("an endless reply", "import itertools\ndef attack(): return itertools.count()", r"no verdict|MemoryError|signal"),
    (
        "bytes that are no reply",
        "import os\ndef attack():\n    for d in range(3, 64):\n"
        "        try: os.write(d, b'\\0\\0\\0\\5v[[[[')\n        except OSError: pass",
        r"something else than a value",
    ),
]
"""Name, code, pattern of the reason. The test is that `list(attack() or [0])` comes back."""
assert len({name for name, *_ in ATTACKS}) == len(ATTACKS) >= 40
A_SECOND_EACH = {
    *("a huge number", "endless recursion", "endless loop while loading", "endless output", "a slow pattern"),
    *("deaf to signals", "an endless reply", "endless loop", "lists of lists of nothing"),
}

ENDLESS = {"sleeping", "half a reply, then silence"}
NUMBERS_OF_X86 = re.compile(r"syscall\((?!42\d|43\d|44\d|45\d|57 if)")


def run(source: str, tests: str, limits: Limits = SMALL) -> Verdict:
    return check(Job([source], tests, entry_points=["attack"]), limits)


def attack(name: str) -> Verdict:
    limits = SMALL._replace(wall_seconds=1) if name in ENDLESS else SMALL
    return run({name: source for name, source, _ in ATTACKS}[name], "list(attack() or [0])", limits)


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Verdict]]]:
    """Of the attacks that were asked for, several at once."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    names = [call.params["name"] for call in calls if call is not None and "name" in call.params]
    with ThreadPoolExecutor(4) as threads:
        yield {name: threads.submit(attack, name) for name in names}


@pytest.fixture(scope="module", autouse=True)
def healthy_afterwards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After all attacks: nothing is left, and the next run is as good as the first."""
    folder, before = tmp_path_factory.mktemp("scratch"), tempfile.tempdir
    tempfile.tempdir = str(folder)  # of these runs alone
    yield
    assert run("def attack(): return [1]", "assert attack() == [1]").passed
    assert not run("def attack(): return [2]", "assert attack() == [1]").passed
    assert list(folder.iterdir()) == []
    tempfile.tempdir = before


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [pytest.param(*case, id=case[0], marks=[pytest.mark.slow] if case[0] in A_SECOND_EACH else []) for case in ATTACKS],
)
def test_contained(name: str, source: str, reason: str, verdicts: dict[str, Future[Verdict]]) -> None:
    if os.uname().machine != "x86_64" and (NUMBERS_OF_X86.search(source) or "another machine" in name):
        pytest.skip("written in the numbers of x86_64")
    found = verdicts[name].result()
    assert not found.passed
    assert found.isolated
    assert re.search(reason, found.reason), found.reason


COUNTS = {
    "threads": "    threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "files": "    kept.append(open('/dev/null'))",
    "megabytes": "    with open(str(count), 'wb') as file: file.write(bytes(1 << 20))",
}


@pytest.mark.parametrize(("what", "most"), [("threads", 13), ("files", 59), ("megabytes", 8)])
def test_each_limit_is_the_one_that_was_set(what: str, most: int) -> None:
    """Tasks: judge, candidate and, of the caller's own user, the supervisor; files: five are open from the start."""
    source = "import threading\nthreading.stack_size(32768)\nkept = []\ndef attack():\n    count = 0\n    while True:\n"
    source += f"        try:\n        {COUNTS[what]}\n        except (RuntimeError, OSError): return count\n"
    source += "        count += 1\n"
    found = run(source, f"count = attack()\nassert {most} <= count <= {most + 1}, count")
    assert found.passed, found.reason


def test_the_code_holds_two_pipes_and_nothing_else() -> None:
    source = "import os\ndef attack():\n    found = []\n    for d in range(1024):\n        try: os.fstat(d)\n"
    source += "        except OSError: continue\n        found.append(d)\n    return found"
    found = run(source, "found = attack()\nassert found[:3] == [0, 1, 2] and len(found) == 5, found")
    assert found.passed, found.reason


def test_the_host_is_not_named() -> None:
    found = run("import os\ndef attack(): return os.uname().nodename", "assert attack() == 'sandbox', attack()")
    assert found.passed, found.reason


def test_the_network_of_the_host_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = f"import socket\ndef attack(): socket.create_connection(('127.0.0.1', {port}), 1)"
        assert re.search(REFUSED, run(connect, "attack()").reason)


def test_secrets_stay_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "sesame")
    (tmp_path / "key").write_text("sesame")
    found = run("import os\ndef attack(): return dict(os.environ)", "raise RuntimeError(attack())")
    assert "sesame" not in found.reason
    assert "HOME" in found.reason
    for path in (tmp_path / "key", Path.home() / ".bashrc", Path(__file__)):
        assert "FileNotFoundError" in run(f"def attack(): open({str(path)!r})", "attack()").reason
    assert run(
        "import os\ndef attack(): return os.listdir(os.path.expanduser('~'))", f"assert attack() == {BELOW}"
    ).passed


def test_libraries_are_not_looked_for_where_the_code_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty place is the working folder: what a judge imports after the code has run could be the code's."""
    source = "import os\ndef attack(): return os.environ.get('LD_LIBRARY_PATH')"
    monkeypatch.setenv("LD_LIBRARY_PATH", ":/usr/lib:lib:/tmp/mine:/usr/lib/../../tmp:/opt/x/lib:/tmpx/y:")
    found = run(source, "assert attack() == '/usr/lib:/opt/x/lib:/tmpx/y', attack()")
    assert found.passed, found.reason
    monkeypatch.setenv("LD_LIBRARY_PATH", ":")
    assert run(source, "assert attack() is None").passed


def test_nothing_of_the_host_is_shown_but_libraries() -> None:
    source = "import os\ndef attack(): return [os.getpid(), os.getuid(), os.path.exists('/proc'), os.listdir('/tmp')]"
    assert run(source, f"assert attack() == [2, 65534, False, {BELOW}]").passed


def test_what_one_run_writes_is_gone_in_the_next(tmp_path: Path) -> None:
    assert run("def attack(): return open('/tmp/kept', 'w').write('x')", "assert attack() == 1").passed
    assert "FileNotFoundError" in run("def attack(): return open('/tmp/kept').read()", "attack()").reason
    assert not Path("/tmp/kept").exists()


def test_plain_computing_is_not_disturbed() -> None:
    source = """
from __future__ import annotations
import asyncio, collections, concurrent.futures, dataclasses, decimal, hashlib, heapq, itertools, json, math, random, re
import string, threading, typing, zoneinfo
@dataclasses.dataclass
class Point:
    x: int
def attack():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        total = sum(pool.map(lambda i: i * i, range(100)))
    async def one(): return 1
    with open('/tmp/file', 'w') as file: file.write('ab' * 1000)
    return total + asyncio.run(one()) + Point(1).x + len(open('/tmp/file').read())
"""
    found = run(source, "assert attack() == 328350 + 1 + 1 + 2000")
    assert found.passed, found.reason
