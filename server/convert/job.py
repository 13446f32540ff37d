"""One block's work and what came of it, and both as bytes for the pipes between the service and its workers.

No outside world. The promise: what `pack` makes, `unpack` gives back, byte for byte.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from datetime import date
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import orjson

from ..triton import LogRules, UrlTemplate
from .log_writer import Piece
from .row import Conversion
from .row_ids import PARTITIONS, Partitioned
from .tally import PodcastBooks, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..episodes.catalogue import Catalogue

_JOB = struct.Struct("<IBBBiIII")  # number, task, flags, slot, id column, lengths of data, duplicates and fresh
_RESULT = struct.Struct("<IIIIIi7I")  # number, lines, CRC, length, log lines, place of `]`, lengths of the parts
_REJECT = struct.Struct("<II")
FILTERED, REJECTED = bytes(8), b"\xff" * 8  # in the place of the digest of a line, in the records of rows
_NO_SLOT = 255
_TOO_LONG, _ARRAY, _WANT_IDS, _FRESH = 1, 2, 4, 8


class Task(IntEnum):
    """What to do with a block."""

    RENDER = 0  # rows to lines
    INDEX_ROWS = 1  # rows to (packed cell of x-metric-id, digest of the line)
    INDEX_LINES = 2  # lines of a published log to the same


@dataclass(frozen=True, slots=True)
class Job:
    """A block and what to do with it.

    ``array``: the rows are elements of a JSON array, whose opening line is the first of block 0. ``want_ids``: give the
    ids of the rows. ``duplicates`` and ``fresh`` are packed ids, as `BlockRenderer.render` wants them. ``id_column`` is
    the place of ``x-metric-id`` in a published log.
    """

    number: int
    task: Task
    pieces: Sequence[bytes | memoryview]
    too_long: bool = False
    array: bool = False
    want_ids: bool = False
    duplicates: bytes = b""
    fresh: bytes | None = None
    id_column: int = 0

    def pack(self, slot: int | None = None) -> list[bytes | memoryview]:
        """As bytes, in pieces, without the rows if they lie in a slot."""
        flags = (
            self.too_long * _TOO_LONG
            | self.array * _ARRAY
            | self.want_ids * _WANT_IDS
            | (self.fresh is not None) * _FRESH
        )
        fresh, length = self.fresh or b"", sum(map(len, self.pieces))
        place = _NO_SLOT if slot is None else slot
        head = _JOB.pack(self.number, self.task, flags, place, self.id_column, length, len(self.duplicates), len(fresh))
        return [head, *(self.pieces if slot is None else ()), self.duplicates, fresh]

    @classmethod
    def read(cls, read: Callable[[int], bytes], take: Callable[[int, int], bytes] | None = None) -> Job | None:
        """The next job from a pipe, or None at its end; ``take`` gives so many bytes of a slot."""
        head = read(_JOB.size)
        if len(head) < _JOB.size:
            return None
        number, task, flags, slot, id_column, length, duplicates, fresh = _JOB.unpack(head)
        return cls(
            number=number,
            task=Task(task),
            pieces=(take(slot, length) if take is not None and slot != _NO_SLOT else read(length),),
            too_long=bool(flags & _TOO_LONG),
            array=bool(flags & _ARRAY),
            want_ids=bool(flags & _WANT_IDS),
            duplicates=read(duplicates),
            fresh=read(fresh) if flags & _FRESH else None,
            id_column=id_column,
        )


@dataclass(frozen=True, slots=True)
class Reject:
    """A rejected row: its place in its block, from 0, and the rest of its entry in the rejects file."""

    place: int
    entry: bytes

    def at(self, first_line: int) -> bytes:
        """The whole entry, with its newline, for a block that begins at this line of the file."""
        return b'{"line":%d,%b\n' % (first_line + self.place, self.entry)


@dataclass(slots=True)
class Result:
    """What came of a block.

    ``line_count`` counts its lines in the export, blank ones too. ``closing`` is the last row of a block of a JSON
    array that is nothing but ``]``: it is no row if nothing follows in the file, else one more rejected row.
    """

    number: int
    line_count: int = 0
    piece: Piece = field(default_factory=lambda: Piece(b"", 0, 0, 0))
    tally: Tally = field(default_factory=Tally)
    rejects: list[Reject] = field(default_factory=list)
    closing: Reject | None = None
    ids: Partitioned | None = None
    records: Partitioned | None = None
    podcasts: PodcastBooks | None = None

    def pack(self) -> bytes:
        """As bytes: a length, then that many."""
        parts = (
            orjson.dumps(self.tally.as_json()),
            self.piece.data,
            b"".join(_REJECT.pack(r.place, len(r.entry)) + r.entry for r in self.rejects),
            self.closing.entry if self.closing is not None else b"",
            _pack_partitioned(self.ids),
            _pack_partitioned(self.records),
            b"" if self.podcasts is None else orjson.dumps(self.podcasts.as_json()),
        )
        head = _RESULT.pack(
            self.number, self.line_count, self.piece.crc, self.piece.length, self.piece.lines,
            self.closing.place if self.closing is not None else -1, *map(len, parts),
        )  # fmt: skip
        body = b"".join((head, *parts))
        return len(body).to_bytes(4, "little") + body

    @classmethod
    def unpack(cls, data: bytes) -> Result:
        """What `pack` gave, without the length."""
        number, line_count, crc, length, lines, closing, *sizes = _RESULT.unpack_from(data)
        parts, start = [], _RESULT.size
        for size in sizes:
            parts.append(data[start : start + size])
            start += size
        rejects, at = [], 0
        while at < len(parts[2]):
            place, size = _REJECT.unpack_from(parts[2], at)
            at += _REJECT.size + size
            rejects.append(Reject(place, parts[2][at - size : at]))
        return cls(
            number=number,
            line_count=line_count,
            piece=Piece(parts[1], crc, length, lines),
            tally=Tally.from_json(orjson.loads(parts[0])),
            rejects=rejects,
            closing=Reject(closing, parts[3]) if closing >= 0 else None,
            ids=_unpack_partitioned(parts[4]),
            records=_unpack_partitioned(parts[5]),
            podcasts=PodcastBooks.from_json(orjson.loads(parts[6])) if parts[6] else None,
        )


def _pack_partitioned(records: Partitioned | None) -> bytes:
    return b"" if records is None else records.counts.tobytes() + records.data


def _unpack_partitioned(data: bytes) -> Partitioned | None:
    if not data:
        return None
    counts = array("I")
    size = PARTITIONS * counts.itemsize
    counts.frombytes(data[:size])
    return Partitioned(counts, data[size:])


def _pack_catalogue(catalogue: Catalogue, template: str) -> dict[str, tuple[str, ...]]:
    """The episodes, with the parts of their URLs only where the template asks for them."""
    if {"token", "enclosure_url"}.isdisjoint(UrlTemplate(template).fields):
        return {key: (e.guid, e.url) for key, e in catalogue.episodes.items()}
    return {key: (e.guid, e.url, e.token, e.enclosure_url) for key, e in catalogue.episodes.items()}


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker must know before its first job."""

    conversion: Conversion
    fresh_after: str | None = None
    by_podcast: bool = False

    def pack(self) -> bytes:
        """As bytes: a length, then that many."""
        conversion, catalogue = self.conversion, self.conversion.catalogue
        fields = {
            "rules": conversion.rules.as_json(),
            "hash_key": conversion.hash_key.hex(),
            "catalogue": None if catalogue is None else _pack_catalogue(catalogue, conversion.rules.url),
            "day": conversion.day,
            "fresh_after": self.fresh_after,
            "by_podcast": self.by_podcast,
        }
        data = orjson.dumps(fields)
        return len(data).to_bytes(4, "little") + data

    @classmethod
    def unpack(cls, data: bytes) -> Setup:
        """What `pack` gave, without the length."""
        fields: dict[str, Any] = orjson.loads(data)
        catalogue: Catalogue | None = None
        if fields["catalogue"] is not None:
            from ..episodes.catalogue import PackedCatalogue  # only here: without one, a worker starts the sooner

            catalogue = PackedCatalogue(fields["catalogue"])
        conversion = Conversion(
            rules=LogRules.from_json(fields["rules"]),
            hash_key=bytes.fromhex(fields["hash_key"]),
            catalogue=catalogue,
            day=None if fields["day"] is None else date.fromisoformat(fields["day"]),
        )
        return cls(conversion, fields["fresh_after"], fields["by_podcast"])
