"""The export as blocks of whole lines, and gzip read with all its checks.

Reads one gzip file. Two promises: a file that is not a complete, correct gzip file (members one after the other, zero
padding at the end) raises `ExportTorn` before its end is reached; and the division of lines into blocks depends on the
bytes alone. No line of an export over 16 MiB is ever held whole.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from typing import TYPE_CHECKING, NamedTuple

from isal import igzip, isal_zlib
from isal.isal_zlib import IsalError

from .torn import torn, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import BinaryIO, Self

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAGIC = b"\x1f\x8b"
_CHUNK = 256 << 10  # bytes, packed or unpacked, that are processed at a time
LINE_LIMIT = 16 << 20  # bytes; a longer line is malformed
RAW_LIMIT = 64 << 10  # bytes of a rejected line that are kept


class Block(NamedTuple):
    """Whole lines, in pieces to be joined; every line has its newline, except perhaps the last one of a file.

    ``too_long`` marks a single line over 16 MiB, of which only the beginning is kept.
    """

    number: int
    pieces: Sequence[bytes | memoryview]
    too_long: bool = False


class GzipText:
    """A gzip file that is read once, from beginning to end. Reading raises these:

    Raises:
        ExportTorn: the file is empty, not gzip, truncated or damaged, or something else follows its end.
        SourceError: the file cannot be read at all.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._text = igzip.IGzipFile(fileobj=file, mode="rb")  # type: ignore[no-untyped-call]  # isal annotates in part

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._text.close()
        self._file.close()

    @property
    def position(self) -> int:
        """The number of compressed bytes read so far."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes; fewer only at the end, when all checks have passed."""
        return self._checked(lambda: self._text.read(size))

    def readline(self) -> bytes:
        """Return the next line with its newline; meant for headers."""
        return self._checked(lambda: self._text.readline())  # type: ignore[no-untyped-call]  # isal

    def _checked(self, read: Callable[[], bytes]) -> bytes:
        """Read, and translate every error."""
        try:
            data = read()
        except EOFError as error:
            # The library asks for ten bytes of a header before it looks at the first one.
            raise torn(self._name, _word_of_the_end(self._file)) from error
        except gzip.BadGzipFile as error:
            # The library has one class for all of these; its text alone tells bad magic bytes from a bad checksum.
            strange = str(error).startswith("Not a gzipped file")
            first = self._text.tell() == 0
            raise torn(self._name, ("not gzip" if first else "followed") if strange else "damaged") from error
        except (zlib.error, IsalError, OverflowError) as error:  # type: ignore[misc]  # isal's stub says instance
            raise torn(self._name, "damaged") from error
        except OSError as error:
            raise unreadable(self._name, error.errno) from error
        if not data and self._file.tell() == 0:
            raise torn(self._name, "empty")
        return data


def _word_of_the_end(file: BinaryIO) -> str:
    """Return the word of `TORN` for a file that the library finds too short for a header or a member."""
    file.seek(0)
    if not _MAGIC.startswith(file.read(len(_MAGIC))):
        return "not gzip"
    return "followed" if _is_followed(file) else "truncated"


def _is_followed(file: BinaryIO) -> bool:
    """Return whether something that is not a gzip member follows one; read the file again, from its beginning."""
    file.seek(0)
    data = b""
    while not data or data.startswith(_MAGIC[: len(data)]):
        member = isal_zlib.decompressobj(31)
        while not member.eof:
            data = data or file.read(_CHUNK)
            if not data:
                return False
            try:
                member.decompress(data, _CHUNK)
            except IsalError:  # type: ignore[misc]  # isal's stub says instance
                return False
            data = member.unused_data if member.eof else member.unconsumed_tail
        # Zeros may follow a member; what comes after them is needed from its first byte on.
        while not (data := data.lstrip(b"\0")) and (more := file.read(_CHUNK)):
            data = more
        data += file.read(len(_MAGIC)) if data else b""
        if not data:
            return False
    return True


def after_mark(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return a function that reads the same, except for a UTF-8 byte order mark at the beginning."""
    begun = False

    def read_on(size: int) -> bytes:
        nonlocal begun
        if begun:
            return read(size)
        begun = True
        data = read(max(size, len(_BYTE_ORDER_MARK)))
        return (data[len(_BYTE_ORDER_MARK) :] or read(size)) if data.startswith(_BYTE_ORDER_MARK) else data

    return read_on


def cut_blocks(
    read: Callable[[int], bytes], block_size: int, head: bytes = b"", *, limited: bool = True
) -> Iterator[Block]:
    """Yield whole lines in blocks of about ``block_size`` bytes; ``head`` is a line that was already read.

    Unless ``limited``, no line is too long: those of a log that was made here may be longer than their rows.
    """
    limit = LINE_LIMIT if limited else sys.maxsize
    # The start of a line that the last read cut off, and the length so far, of which only a part may be kept.
    carried: list[bytes | memoryview] = [head] if head else []
    length, number = len(head), 0
    while data := read(block_size):
        end = data.rfind(b"\n") + 1
        if end:
            # Only near the limit does the first line's end matter; otherwise the carried line joins the block as it is.
            start = data.find(b"\n") + 1 if length + block_size > limit else 0
            if length + start - 1 > limit:
                yield Block(number, (_beginning([*carried, memoryview(data)[:start]]),), too_long=True)
                number += 1
                carried, length = [], 0
            else:
                start = 0
            if start < end:
                yield Block(number, (*carried, memoryview(data)[start:end]))
                number += 1
            carried, length = [], 0
        if end < len(data):
            carried.append(data[end:])
            length += len(data) - end
            # Over the limit, the rest of the line is counted but not kept, or it could fill the memory.
            if length > limit:
                carried = [_beginning(carried)]
    if length > limit:
        yield Block(number, (_beginning(carried),), too_long=True)
    elif length:
        yield Block(number, carried)


def _beginning(pieces: Sequence[bytes | memoryview]) -> bytes:
    """Return the part of a line that is kept, and a few bytes more, which show that it was cut."""
    kept = bytearray()
    for piece in pieces:
        kept += piece[: RAW_LIMIT + 8 - len(kept)]
        if len(kept) > RAW_LIMIT:
            break
    return bytes(kept)
