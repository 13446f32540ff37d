"""The right to read any file, which a command typed by root keeps for our own files and puts aside for others'.

Touches the capabilities of the calling thread, capabilities(7). Promise: in `without_read_right` a file opens only if
the service's own user may open it.
"""

from __future__ import annotations

import contextlib
import os
import struct
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator

_KEEPCAPS, _CAP_AMBIENT, _CAP_AMBIENT_RAISE = 8, 47, 2  # prctl(2)
_HEADER = struct.pack("<Ii", 0x20080522, 0)  # version 3, the calling thread; capset(2)
_DAC_READ_SEARCH = 2
_RIGHT = 1 << _DAC_READ_SEARCH


@cache
def _libc() -> ctypes.CDLL:
    import ctypes  # only here: a plain convert needs none of it

    return ctypes.CDLL(None)


def keep_rights_of_root() -> None:
    """Let the next setuid keep the capabilities, which it would otherwise drop (prctl(2))."""
    _libc().prctl(_KEEPCAPS, 1, 0, 0, 0)


def keep_read_right() -> None:
    """Drop every capability except reading and searching, for this process and those it starts.

    If the kernel does not grant it, the folders must be accessible to their owner.
    """
    if _libc().capset(_HEADER, struct.pack("<6I", _RIGHT, _RIGHT, _RIGHT, 0, 0, 0)) == 0:
        _libc().prctl(_CAP_AMBIENT, _CAP_AMBIENT_RAISE, _DAC_READ_SEARCH, 0, 0)


def take_read_right() -> None:
    """Let this thread read and search, as far as root may; for a process that has just put root aside for a while."""
    effective, permitted, *rest = _capabilities()
    _libc().capset(_HEADER, struct.pack("<6I", effective | (_RIGHT & permitted), permitted, *rest))


def has_read_right() -> bool:
    """Return whether this thread may read any file."""
    return bool(_capabilities()[0] & _RIGHT)


@contextlib.contextmanager
def without_read_right() -> Iterator[None]:
    """Put the right aside in this thread, for a file that somebody else may have put there; never await inside."""
    effective, *rest = _capabilities() if os.geteuid() != 0 else (0,)
    if not effective & _RIGHT:
        yield
        return
    _libc().capset(_HEADER, struct.pack("<6I", effective & ~_RIGHT, *rest))
    try:
        yield
    finally:
        _libc().capset(_HEADER, struct.pack("<6I", effective, *rest))


def _capabilities() -> tuple[int, ...]:
    """Return this thread's effective, permitted and inheritable capabilities, then the second word of each."""
    import ctypes

    found = ctypes.create_string_buffer(24)
    _libc().capget(_HEADER, found)
    return struct.unpack("<6I", found.raw)
