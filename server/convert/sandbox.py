"""The rights that the conversion process gives up, for good, before it reads a byte of an export.

Touches this process alone. The promise: afterwards it can open no socket, start no program and no further process,
send no signal to another one, limit or slow down none, and type nothing into the terminal it was started from; it
cannot gain rights by any means, leaves no core dump, and ends with its parent. If the system offers less (another
processor, a kernel without seccomp), everything else is still given up. Files it can open as its user can: the memory
of that user's processes in /proc, too, unless the system forbids it (kernel.yama.ptrace_scope).

seccomp is set by prctl(2): the systemd unit's filter allows that, but refuses seccomp(2) and Landlock. No ctypes
callback is used: that would need memory that is writable and executable, which the unit forbids.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
from contextlib import suppress
from typing import NamedTuple

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38  # prctl(2)
_SECCOMP_MODE_FILTER = 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # seccomp(2)
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h: words, constants
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24  # offsets in struct seccomp_data, of lower halves
_CLONE_THREAD = 0x10000
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15  # fcntl(2): who gets which signal when a descriptor is ready
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # ioctl_tty(2): as if somebody had typed it
_X32 = 0x40000000
_NICE = 5
# Bytes of address space. The costliest line of 16 MiB takes 550 MiB as the cells of a line, and 220 more are reserved
# for reading it, but only one thread at a time has such a line: see `block`.
_MEMORY = 1 << 30
_THREAD_MEMORY = 256 << 20  # a block of such a line as text, in several forms


class _Calls(NamedTuple):
    """A processor's numbers: its name in seccomp, some calls, and those that are refused whatever their arguments."""

    arch: int
    clone: int
    clone3: int
    tgkill: int
    prlimit: int
    fcntl: int
    ioctl: int
    refused: tuple[int, ...]


# socket, socketpair, connect, accept, accept4, bind, listen, sendto, sendmsg, sendmmsg; io_uring_setup, which could do
# all of these; execve, execveat, fork, vfork; ptrace, process_vm_readv, process_vm_writev, pidfd_getfd; kill,
# tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, pidfd_send_signal; unshare, setns; setpriority, sched_setparam,
# sched_setscheduler, sched_setaffinity, sched_setattr, ioprio_set, migrate_pages, move_pages, process_madvise,
# process_mrelease, which slow another process down; add_key, request_key, keyctl.
_CALLS = {
    "x86_64": _Calls(
        0xC000003E, 56, 435, 234, 302, 72, 16,
        (41, 53, 42, 43, 288, 49, 50, 44, 46, 307, 425, 59, 322, 57, 58, 101, 310, 311, 438, 62, 200, 129, 297, 424,
         272, 308, 141, 142, 144, 203, 314, 251, 256, 279, 440, 448, 248, 249, 250),
    ),
    "aarch64": _Calls(
        0xC00000B7, 220, 435, 131, 261, 25, 29,
        (198, 199, 203, 202, 242, 200, 201, 206, 211, 269, 425, 221, 281, 117, 270, 271, 438, 129, 130, 138, 240, 424,
         97, 268, 140, 118, 119, 122, 274, 30, 238, 239, 440, 448, 217, 218, 219),
    ),
}  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def enter() -> None:
    """Give everything up. Call this before there is a second thread: the filter binds this one and its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # a container may refuse it
        os.nice(_NICE)
    # Must come first: without it, the system lets only root set a filter (seccomp(2)).
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    calls = _CALLS.get(os.uname().machine)
    if calls is not None:
        text = _filter(calls)
        code = ctypes.create_string_buffer(text, len(text))
        program = _Program(len(text) // 8, ctypes.addressof(code))
        libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def limit_memory(threads: int) -> None:
    """Limit the address space to what this many threads may need."""
    most = _MEMORY + threads * _THREAD_MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _filter(calls: _Calls) -> bytes:
    """Return the filter as BPF instructions; what is not refused is allowed."""
    refuse, no_such_call = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    steps: list[tuple[int, int, int, int]] = [  # instruction, steps to skip if true, steps to skip if false, operand
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, calls.arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),  # x86-64's other set of numbers; no other processor has numbers this high
        (_RETURN, 0, 0, refuse),
    ]
    for call in calls.refused:
        steps += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, refuse)]
    # Only to itself: abort(3) sends a signal, and getrlimit(3) names no process.
    for call, itself in ((calls.tgkill, os.getpid()), (calls.prlimit, 0)):
        steps += [(_EQUAL, 0, 4, call), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_EQUAL, 1, 0, itself)]
        steps += [(_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)]
    for call, words in ((calls.fcntl, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX)), (calls.ioctl, (_TIOCSTI, _TIOCLINUX))):
        steps += [(_EQUAL, 0, 2 * len(words) + 2, call), (_LOAD, 0, 0, _SECOND_ARGUMENT)]
        for word in words:
            steps += [(_EQUAL, 0, 1, word), (_RETURN, 0, 0, refuse)]
        steps += [(_RETURN, 0, 0, _ALLOW)]
    # The flags of clone3 are in memory, where a filter cannot look; on ENOSYS the C library uses clone instead.
    steps += [(_EQUAL, 0, 1, calls.clone3), (_RETURN, 0, 0, no_such_call)]
    steps += [
        (_EQUAL, 1, 0, calls.clone),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, refuse),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
