"""The work on one block and its result: what `day` and `block` hand each other. Pure."""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from .log_writer import Piece
from .tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .row_ids import Partitioned
    from .tally import PodcastBooks


FILTERED, REJECTED = bytes(8), b"\xff" * 8  # in the records of rows, in place of a line's digest


class Task(IntEnum):
    """What to do with a block."""

    RENDER = 0  # rows to lines
    INDEX_ROWS = 1  # rows to (packed cell of x-metric-id, digest of the line)
    INDEX_LINES = 2  # lines of a published log to the same


class Job(NamedTuple):
    """A block and what to do with it.

    ``array``: the rows are elements of a JSON array, whose opening line is the first of block 0. ``want_ids``: the
    result must have the ids of the rows. ``duplicates`` are packed ids that occurred in an earlier block, ``fresh``
    packed cells that were not sent before. ``numbers`` are derived ids, packed, each followed by 8 bytes: how many rows
    with it became lines in earlier blocks. ``id_column`` is the index of the column ``x-metric-id`` in a published log.
    """

    number: int
    task: Task
    pieces: Sequence[bytes | memoryview]
    too_long: bool = False
    array: bool = False
    want_ids: bool = False
    duplicates: bytes = b""
    numbers: bytes = b""
    fresh: bytes | None = None
    id_column: int = 0


class Reject(NamedTuple):
    """A rejected row: the index of its line in the block, and its entry in the rejects file after the line number."""

    place: int
    entry: bytes

    def at(self, first_line: int) -> bytes:
        """Return the whole entry, with its newline, for a block that begins at this line of the file."""
        return b'{"line":%d,%b\n' % (first_line + self.place, self.entry)


class Rejects:
    """The rejected rows of a block, in order. It may have half a million, so each takes little more than its entry."""

    def __init__(self) -> None:
        self._places = array("I")
        self._entries = bytearray()  # each with a newline, which JSON text does not contain

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Reject]:
        begin = 0
        for place in self._places:
            end = self._entries.index(b"\n", begin)
            yield Reject(place, bytes(self._entries[begin:end]))
            begin = end + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rejects) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def append(self, reject: Reject) -> None:
        """Add one more."""
        self._places.append(reject.place)
        self._entries += reject.entry + b"\n"

    def pop(self) -> Reject:
        """Remove the last one and return it."""
        begin = self._entries.rfind(b"\n", 0, -1) + 1
        reject = Reject(self._places.pop(), bytes(self._entries[begin:-1]))
        del self._entries[begin:]
        return reject


class Result:
    """The result of a block.

    ``line_count`` counts its lines in the export, blank ones included. ``closing`` is the last row of a block of a JSON
    array, if it is nothing but ``]``: not a row if nothing follows it in the file, else one more rejected row.
    ``closed``: the last row, which is rejected, has that bracket after it on its line.
    ``ids`` are the rows' own, packed; ``derived`` those of rows without one, see `Job.numbers`, with their count here.
    """

    def __init__(
        self,
        number: int,
        *,
        line_count: int = 0,
        tally: Tally | None = None,
        rejects: Rejects | None = None,
        records: Partitioned | None = None,
    ) -> None:
        self.number = number
        self.line_count = line_count
        self.piece = Piece(b"", 0, 0, 0)
        self.tally = tally if tally is not None else Tally()
        self.rejects = rejects if rejects is not None else Rejects()
        self.closing: Reject | None = None
        self.closed = False
        self.ids: Partitioned | None = None
        self.derived: Partitioned | None = None
        self.records = records
        self.podcasts: PodcastBooks | None = None
