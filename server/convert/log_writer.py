"""Log files as gzip: pieces deflated separately and joined into one member, split at an exact number of lines.

Writes into the files that a `LogSink` opens. The promise: the bytes depend on the lines and on their division into
pieces, never on which thread deflated them; every file is a single gzip member without a time or a name, with header
lines of its own.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from isal import isal_zlib

if TYPE_CHECKING:
    from typing import BinaryIO

LEVEL = 1  # chosen by measurement: benchmarks/convert.py
HISTORY = 64  # bytes at the front of a piece that are stored as they are, see `deflate`
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # RFC 1952: deflate, no flags, no time, unknown system
_END = b"\x03\x00"  # RFC 1951: a final block without content


class LogSink(Protocol):
    """Where the files of a conversion go."""

    def restart(self) -> None:
        """Discard everything opened so far, because a second pass begins."""

    def open_log(self, index: int) -> BinaryIO:
        """Open the file for the log with this index (0, 1, … in order); it is closed when its log is complete."""

    def open_rejects(self) -> BinaryIO:
        """Open the file for rejected rows; called at most once per pass, and only if a row was rejected."""


class Piece(NamedTuple):
    """Lines as raw deflate that ends on a byte boundary, so that any other piece can follow.

    ``crc`` and ``length`` (bytes) are those of the text.
    """

    data: bytes
    crc: int
    length: int
    lines: int


def deflate(text: bytes | memoryview, lines: int) -> Piece:
    """Return ``text``, which has this many lines, as a piece."""
    if not text:
        return Piece(b"", 0, 0, 0)
    # Without history, igzip puts the third byte into a table slot chosen by whatever a register happens to hold
    # (igzip_icf_body_h1_gr_bt.asm, write_first_byte), so that once in thousands of times equal text is packed
    # differently. So the first bytes are stored (RFC 1951, 3.2.4), and are the history of the rest.
    first, rest = bytes(text[:HISTORY]), memoryview(text)[HISTORY:]
    stored = struct.pack("<BHH", 0, len(first), len(first) ^ 0xFFFF) + first
    packer = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -15, zdict=first)
    # A full flush ends on a byte boundary and clears the window, so pieces can be joined in any order.
    data = b"".join((stored, packer.compress(rest), packer.flush(isal_zlib.Z_FULL_FLUSH)))
    return Piece(data, isal_zlib.crc32(text), len(text), lines)


def inflate(piece: Piece) -> bytes:
    """Return the text of a piece."""
    return isal_zlib.decompressobj(-15).decompress(piece.data)


class LogFiles:
    """The log files of one pass: at most ``max_rows`` lines each (0: no limit) after the header lines."""

    def __init__(self, sink: LogSink, header: str, max_rows: int = 0) -> None:
        self.lines: list[int] = []
        self._sink = sink
        self._header = deflate(header.encode(), 0)
        self._max_rows = max_rows
        self._file: BinaryIO | None = None
        self._crc = self._length = 0

    def write(self, piece: Piece) -> None:
        """Add a piece's lines."""
        if not piece.lines:
            return
        room = self._max_rows - (self.lines[-1] if self._file is not None else 0)
        if not self._max_rows or piece.lines <= room:
            self._write(piece)
            return
        # Rare: a piece that crosses the boundary of a file is inflated, split and deflated again.
        rows = inflate(piece).split(b"\n")[:-1]
        start = 0
        while start < len(rows):
            room = self._max_rows - (self.lines[-1] if self._file is not None else 0)
            if room == 0:
                self.close()
                continue
            part = rows[start : start + room]
            self._write(deflate(b"\n".join(part) + b"\n", len(part)))
            start += len(part)

    def _write(self, piece: Piece) -> None:
        """Write a piece into the open file, or into the next one if none is open."""
        file = self._file or self.open()
        file.write(piece.data)
        # The member's checksum is combined from those of its pieces: nothing is read twice.
        self._crc = isal_zlib.crc32_combine(self._crc, piece.crc, piece.length)
        self._length += piece.length
        self.lines[-1] += piece.lines

    def open(self) -> BinaryIO:
        """Begin the next file."""
        self._file = file = self._sink.open_log(len(self.lines))
        self.lines.append(0)
        file.write(GZIP_HEADER + self._header.data)
        self._crc, self._length = self._header.crc, self._header.length
        return file

    def close(self) -> None:
        """Complete and close the open file, if there is one."""
        if self._file is not None:
            self._file.write(_END + struct.pack("<II", self._crc, self._length & 0xFFFFFFFF))
            self.abandon()

    def abandon(self) -> None:
        """Close the open file as it is, incomplete."""
        # Cleared first: if closing fails, nothing may write to it again.
        file, self._file = self._file, None
        if file is not None:
            file.close()
