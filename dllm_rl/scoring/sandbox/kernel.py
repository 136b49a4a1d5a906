"""The system calls of Linux that Python 3.11 has no name for."""

from __future__ import annotations

import ctypes
import os
import struct
import sys

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x1000, 0x4000, 0x40000, 2, 4
READ_ONLY, NO_SUID, NO_DEV = 1, 2, 4
_MNT_DETACH, _AT_RECURSIVE, _AT_FDCWD = 2, 0x8000, -100
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION = 0x20080522
_MOUNT_SETATTR = 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}


def machine() -> str:
    """The architecture, if it is one whose system calls are known here.

    Raises:
        OSError: it is not.
    """
    name = os.uname().machine
    if sys.platform != "linux" or name not in _PIVOT_ROOT or sys.byteorder != "little":
        raise OSError(f"{sys.platform} on {name}; isolation needs Linux on {' or '.join(_PIVOT_ROOT)}")
    return name


def _call(function: str, *arguments: int | bytes | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [ctypes.c_long(each) if isinstance(each, int) else ctypes.c_char_p(each) for each in arguments]
    if getattr(libc, function)(*converted) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name for new ones."""
    _call("unshare", flags)


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system, bind a folder, or change how mounts spread."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    _call("mount", *words[:3], flags, words[3])


def unmount(target: str) -> None:
    """Detach a mount and all below it."""
    _call("umount2", os.fsencode(target), _MNT_DETACH)


def restrict_mount(target: str, attributes: int, *, recursive: bool) -> None:
    """Add attributes to a mount, and to all below it. Linux 5.12."""
    request = struct.pack("=4Q", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), flags, request, len(request))


def pivot_root(new: str, old: str) -> None:
    """Make the mount `new` the root, and hang the root it was before at `old`."""
    _call("syscall", _PIVOT_ROOT[machine()], os.fsencode(new), os.fsencode(old))


def name_host(name: str) -> None:
    """Call this machine so, in its namespace."""
    _call("sethostname", name.encode(), len(name.encode()))


def drop_capabilities() -> None:
    """Give up every capability of this thread."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _call("syscall", _CAPSET[machine()], header, bytes(24))


def die_with_parent(signal: int) -> None:
    """Have the kernel send this signal here when the parent ends. Cleared by a change of user."""
    _call("prctl", _PR_SET_PDEATHSIG, signal, 0, 0, 0)


def forbid_tracing() -> None:
    """No process of the same user may look into this one or take its descriptors."""
    _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def forbid_new_privileges() -> None:
    """No program run from here gains any."""
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
