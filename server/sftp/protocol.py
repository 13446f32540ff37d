"""The SFTP protocol, version 3, as bytes: how requests are read and replies are built.

From draft-ietf-secsh-filexfer-02, and OpenSSH's PROTOCOL for ``limits@openssh.com``. Pure. Promise: no reply gives away
the text of an exception, a user of this machine, its time zone, or a version number.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from ..triton import LogFile

VERSION = 3
MAX_PACKET = 256 * 1024  # bytes, as OpenSSH accepts; a longer one ends the session
MAX_READ = 255 * 1024  # bytes, as OpenSSH answers at most
OWNER = "pickup"
FILE_MODE = 0o100440
FOLDER_MODE = 0o040550
LIMITS = b"limits@openssh.com"

_U32 = struct.Struct(">I")
_DATA_HEADER = struct.Struct(">IBII")
_READ = struct.Struct(">BII4sQI")
HANDLE_SIZE = 4  # bytes of every handle that is given out
DATA_HEADER_SIZE = _DATA_HEADER.size
_SIZE_PERMISSIONS_TIMES = 0x1 | 0x4 | 0x8


class Kind(IntEnum):
    """The message codes of versions 3 to 6; those that version 3 does not have are answered as unsupported."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    SYMLINK = 20
    LINK = 21
    BLOCK = 22
    UNBLOCK = 23
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Status(IntEnum):
    """The status codes of version 3."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    OP_UNSUPPORTED = 8


_TEXTS = {
    Status.OK: "",
    Status.EOF: "End of file",
    Status.NO_SUCH_FILE: "No such file",
    Status.PERMISSION_DENIED: "Permission denied: this service is read-only",
    Status.FAILURE: "Failure",
    Status.BAD_MESSAGE: "Bad message",
    Status.OP_UNSUPPORTED: "Operation unsupported",
}

OPEN_READ = 0x1  # SSH_FXF_READ; not a flag of os.open


class Malformed(Exception):
    """A request is too short for its fields."""


class Fields:
    """The fields of one request, taken from the front. Every method raises `Malformed` if the request is too short."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self._data = data
        self._position = position

    def _take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise Malformed
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def u32(self) -> int:
        """Take a 32-bit number."""
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        """Take a 64-bit number."""
        return int.from_bytes(self._take(8), "big")

    def string(self) -> bytes:
        """Take a byte string, which is preceded by its length."""
        return self._take(self.u32())

    def skip_attrs(self) -> None:
        """Skip file attributes, which no request here needs."""
        flags = self.u32()
        self._take(8 * bool(flags & 0x1) + 8 * bool(flags & 0x2) + 4 * bool(flags & 0x4) + 8 * bool(flags & 0x8))
        if flags & 0x80000000:
            for _ in range(self.u32()):
                self.string()
                self.string()


def read_fields(request: bytes) -> tuple[int, bytes, int, int] | None:
    """Return number, handle, offset and length of a READ with a handle like those given out, or None for anything else.

    Most requests are these, and `Fields` takes three times as long.
    """
    if len(request) < _READ.size or request[0] != Kind.READ:
        return None
    _, number, size, handle, offset, length = _READ.unpack_from(request)
    return (number, handle, offset, length) if size == HANDLE_SIZE else None


def string(data: bytes) -> bytes:
    """Encode a byte string, preceded by its length."""
    return _U32.pack(len(data)) + data


def packet(kind: Kind, *parts: bytes) -> bytes:
    """Build a whole packet: length, message code, and the parts."""
    body = b"".join(parts)
    return struct.pack(">IB", len(body) + 1, kind) + body


def version_reply() -> bytes:
    """Build the reply to INIT: version 3, and the one extension that is supported."""
    return packet(Kind.VERSION, _U32.pack(VERSION), string(LIMITS), string(b"1"))


def status_reply(request: int, code: Status, text: str | None = None) -> bytes:
    """Build a STATUS reply, with a fixed English text."""
    message = _TEXTS[code] if text is None else text
    return packet(Kind.STATUS, struct.pack(">II", request, code), string(message.encode()), string(b"en"))


def handle_reply(request: int, handle: bytes) -> bytes:
    """Build a HANDLE reply."""
    return packet(Kind.HANDLE, _U32.pack(request), string(handle))


def data_buffer(request: int, count: int) -> bytearray:
    """Build a DATA reply whose ``count`` bytes are still to be filled in, after DATA_HEADER_SIZE."""
    buffer = bytearray(DATA_HEADER_SIZE + count)
    set_data_header(buffer, request, count)
    return buffer


def set_data_header(buffer: bytearray, request: int, count: int) -> None:
    """Write the header for ``count`` bytes of data at the front of the buffer."""
    _DATA_HEADER.pack_into(buffer, 0, count + 9, Kind.DATA, request, count)


def file_attrs(file: LogFile) -> bytes:
    """Encode size, mode and times of a log file; the owner's numeric ids are left out on purpose."""
    times = _clamp(file.mtime)
    return struct.pack(">IQIII", _SIZE_PERMISSIONS_TIMES, file.size, FILE_MODE, times, times)


def open_attrs(status: os.stat_result) -> bytes:
    """Encode size, mode and times of an open file that is no longer listed."""
    times = _clamp(int(status.st_mtime))
    return struct.pack(">IQIII", _SIZE_PERMISSIONS_TIMES, status.st_size, FILE_MODE, times, times)


def folder_attrs(mtime: int) -> bytes:
    """Encode mode and times of the one directory."""
    return struct.pack(">IQIII", _SIZE_PERMISSIONS_TIMES, 0, FOLDER_MODE, _clamp(mtime), _clamp(mtime))


def attrs_reply(request: int, attrs: bytes) -> bytes:
    """Build an ATTRS reply."""
    return packet(Kind.ATTRS, _U32.pack(request), attrs)


def names_reply(request: int, entries: Sequence[tuple[bytes, bytes, bytes]]) -> bytes:
    """Build a NAME reply of (name, long name, attributes) entries."""
    parts = [struct.pack(">II", request, len(entries))]
    for name, longname, attrs in entries:
        parts += (string(name), string(longname), attrs)
    return packet(Kind.NAME, *parts)


def limits_reply(request: int, handles: int) -> bytes:
    """Build the reply to ``limits@openssh.com``: longest packet, read and write (bytes), and open handles."""
    # Nothing can be written, but OpenSSH wants a number for that, too.
    return packet(Kind.EXTENDED_REPLY, struct.pack(">IQQQQ", request, MAX_PACKET, MAX_READ, MAX_READ, handles))


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def longname(file: LogFile, now: datetime) -> bytes:
    """Return a file's line as ``ls -l`` prints it, in UTC and English; a year replaces the time after half a year."""
    when = datetime.fromtimestamp(_clamp(file.mtime), UTC)
    near = abs(now - when) < timedelta(days=182)
    clock = f"{when:%H:%M}" if near else f" {when.year}"
    date = f"{_MONTHS[when.month - 1]} {when.day:2d} {clock}"
    return f"-r--r-----    1 {OWNER:<8} {OWNER:<8} {file.size:12d} {date} {file.name}".encode()


def _clamp(seconds: int) -> int:
    return max(0, min(seconds, 0xFFFFFFFF))  # version 3 has 32 bits for times
