"""A root of its own for one run: read-only libraries, an empty scratch folder in memory, no network, no other process.

Needs no privilege: a user namespace gives what the set-up takes, and all of it is given up before any code runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence

from dllm_rl.scoring.sandbox import kernel
from dllm_rl.scoring.sandbox.limits import Limits

NOBODY = 65534
SCRATCH = "/tmp"
_OLD = "/.host"
_DEVICES = ("null", "zero", "random", "urandom")
_ALL = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)


def enter(readable: Sequence[str], limits: Limits) -> None:
    """Move this process into new namespaces and a new root. Its next child is process 1 of the pid namespace.

    Args:
        readable: folders and files that stay visible, at their own places, read-only.

    Raises:
        OSError: the host does not allow it. The process is in no usable state then.
    """
    kernel.machine()
    _new_namespaces()
    kernel.name_host("sandbox")
    os.umask(0)
    sources = {path: os.path.realpath(path) for path in readable if os.path.exists(path)}
    links = {path: os.readlink(path) for path in readable if os.path.islink(path) and path.count("/") == 1}
    _new_root()
    _tmpfs(SCRATCH, f"mode=1777,size={limits.scratch_bytes},nr_inodes=4096")
    below = _below_scratch(sources)
    for folder in below:
        _tmpfs(folder, "mode=0755,size=1m,nr_inodes=4096")
    for path, source in sources.items():
        _show(path, source, links)
    for name in _DEVICES:
        _bind(f"/dev/{name}", f"/dev/{name}")
        kernel.restrict_mount(f"/dev/{name}", kernel.READ_ONLY | kernel.NO_SUID, recursive=False)  # its times, too
    kernel.unmount(_OLD)
    os.rmdir(_OLD)
    for folder in ("/", *below):
        kernel.restrict_mount(folder, kernel.READ_ONLY, recursive=False)
    os.chdir(SCRATCH)


def become_nobody() -> None:
    """Give up every privilege, inside and outside of the namespace."""
    if os.getuid() != NOBODY:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    kernel.drop_capabilities()
    kernel.forbid_new_privileges()


def _new_namespaces() -> None:
    """A helper outside writes who is who: only there may root name a user that is not root.

    The limit on processes does not hold for the host's root, so its runs are the host's nobody.
    """
    ours, uid, gid = os.getpid(), os.geteuid(), os.getegid()
    entered, enter_now = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(enter_now)
            os.read(entered, 1)
            _write_maps(ours, uid, gid)
        except BaseException as error:
            os._exit((error.errno or 255) & 255 if isinstance(error, OSError) else 255)
        os._exit(0)
    os.close(entered)
    try:
        kernel.unshare(_ALL)
        os.write(enter_now, b"x")
    except BaseException:
        os.kill(helper, signal.SIGKILL)
        os.waitpid(helper, 0)
        raise
    os.close(enter_now)
    if status := os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]):
        raise OSError(status, f"mapping users: {os.strerror(status)}")


def _write_maps(process: int, uid: int, gid: int) -> None:
    as_root = uid == 0 and _is_mapped(NOBODY)
    if not as_root:
        _write(f"/proc/{process}/setgroups", "deny")
    for name, own in (("uid_map", uid), ("gid_map", gid)):
        lines = f"0 {own} 1\n{NOBODY} {NOBODY} 1\n" if as_root else f"{NOBODY} {own} 1\n"
        _write(f"/proc/{process}/{name}", lines)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _is_mapped(uid: int) -> bool:
    with open("/proc/self/uid_map") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= uid < first + count for first, _, count in ranges)


def _new_root() -> None:
    """An empty file system in memory; the host's hangs below it until everything visible is taken from there."""
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    _tmpfs(SCRATCH, "mode=0755,size=1m,nr_inodes=4096")
    os.mkdir(SCRATCH + _OLD)
    kernel.pivot_root(SCRATCH, SCRATCH + _OLD)
    os.chdir("/")


def _below_scratch(paths: Iterable[str]) -> list[str]:
    """First folders on the way to libraries that lie below the scratch folder.

    Each is a mount of its own, read-only: one that code could rename would let it put modules of its own in its place,
    and the judge would import them.
    """
    below = [path.removeprefix(f"{SCRATCH}/") for path in paths if path.startswith(f"{SCRATCH}/")]
    return sorted({f"{SCRATCH}/{path.partition('/')[0]}" for path in below} - set(paths))


def _tmpfs(target: str, options: str) -> None:
    os.makedirs(target, exist_ok=True)
    kernel.mount("tmpfs", target, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, options)


def _show(path: str, source: str, links: dict[str, str]) -> None:
    if path in links:
        os.symlink(links[path], path)
    elif not os.path.exists(path):  # else it lies in one shown before
        _bind(source, path)
        kernel.restrict_mount(path, kernel.READ_ONLY | kernel.NO_SUID | kernel.NO_DEV, recursive=True)


def _bind(source: str, target: str) -> None:
    source = _OLD + source
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
