"""What this host offers, found out without the library's own code."""

from __future__ import annotations

import ctypes
import functools
import os

import pytest


@functools.cache
def has_namespaces() -> bool:
    """Whether a child of this process may enter new user, mount, pid and network namespaces."""
    child = os.fork()
    if child == 0:
        os._exit(ctypes.CDLL(None).unshare(0x10000000 | 0x20000 | 0x20000000 | 0x40000000) & 1)
    return os.waitpid(child, 0)[1] == 0


needs_isolation = pytest.mark.skipif(not has_namespaces(), reason="this host lets nobody make namespaces")
