"""A filter of system calls, for the candidate and for its judge.

It refuses other processes, the network, memory that no limit counts, and the parts of the kernel that plain computing
has no use for. Files are what the mounts let them be; the filter does not judge paths. Written here rather than taken
from libseccomp, which hosts may lack: it is one comparison per call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from dllm_rl.scoring.sandbox import kernel

DENIED: dict[str, tuple[int, int | None]] = {
    # Other processes: made, replaced, signalled, looked into, left behind.
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    # The network.
    "socket": (41, 198),
    "bind": (49, 200),
    "connect": (42, 203),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Memory that no limit counts.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Namespaces, mounts, roots.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # The wider surface of the kernel, and the state of the host.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
"""Refused with EPERM. Numbers on x86_64 and aarch64; None where a machine lacks the call."""

ARGUMENTS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    # A core dump is written by a program of the host's; a run must end with its parent.
    "prctl": (157, 167, 0, (1, 4)),  # PR_SET_PDEATHSIG, PR_SET_DUMPABLE
    # Signals to another process by way of a file.
    "fcntl": (72, 25, 1, (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX
}
"""Calls refused for what they are asked: numbers on x86_64 and aarch64, place of the argument, values refused."""

LIMITS_OF = (302, 261)
"""`prlimit64`, refused for any process but the caller."""

_COLUMN = {"x86_64": 0, "aarch64": 1}
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3, _CLONE_THREAD = 435, 0x10000
_NEWEST = 450
"""Of the calls that were read through for this list. Later ones do not exist here; programs then take older ones."""

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER, _MACHINE, _FIRST_ARGUMENT, _ARGUMENT_SIZE = 0, 4, 16, 8
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2

Instruction = tuple[int, int, int, int]
"""Operation, instructions to skip if it holds, instructions to skip if not, constant."""


def program(names: Iterable[str] = DENIED, *, arguments: bool = True) -> list[Instruction]:
    """The filter for this machine.

    Args:
        names: calls to refuse.
        arguments: refuse others for their arguments: `clone` makes threads and nothing else, and those of `ARGUMENTS`.
    """
    machine = kernel.machine()
    steps = [(_LOAD, 0, 0, _MACHINE), (_JUMP_EQUAL, 1, 0, _AUDIT[machine]), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER), (_JUMP_GREATER, 0, 1, _NEWEST), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    for name in names:
        number = DENIED[name][_COLUMN[machine]]
        if number is not None:
            steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    if arguments:
        steps += _by_argument(_COLUMN[machine])
        # clone3 has its flags in memory, where a filter cannot look; the C library then uses clone.
        steps += [(_JUMP_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
        steps += [(_JUMP_EQUAL, 0, 3, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
        steps += [(_JUMP_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    return [*steps, (_RETURN, 0, 0, _ALLOW)]


def _by_argument(column: int) -> list[Instruction]:
    """One block a call, left as soon as it is another. What is compared are 32 bits, as in the kernel."""
    steps: list[Instruction] = []
    for *numbers, place, values in ARGUMENTS.values():
        refuse = [(_JUMP_EQUAL, 0, 1, value) for value in values]
        block = [step for jump in refuse for step in (jump, (_RETURN, 0, 0, _FAIL | errno.EPERM))]
        load = (_LOAD, 0, 0, _FIRST_ARGUMENT + _ARGUMENT_SIZE * place)
        steps += [(_JUMP_EQUAL, 0, len(block) + 2, numbers[column]), load, *block, (_RETURN, 0, 0, _ALLOW)]
    steps += [(_JUMP_EQUAL, 0, 4, LIMITS_OF[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_EQUAL, 1, 0, 0)]
    return [*steps, (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]


def install(steps: list[Instruction]) -> None:
    """Filter this thread and all that it starts, for good.

    Raises:
        OSError: the kernel does not take it.
    """
    kernel.forbid_new_privileges()
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(header)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
