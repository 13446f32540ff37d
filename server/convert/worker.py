"""The work on one block; and the worker process that does it, job after job, until its pipe ends.

Reads jobs from standard input, the rows of most of them from shared memory; writes results to standard output. The
promises: a result depends on its job alone, so who does it, and when, changes nothing; and the process ends when the
service does, however that ends.
"""

from __future__ import annotations

import codecs
import gc
import os
import signal
import sys
import traceback
from collections import Counter
from contextlib import suppress
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING

import orjson

from .export_row import identifier
from .job import FILTERED, REJECTED, Job, Reject, Result, Setup, Task
from .lines import RAW_LIMIT
from .log_writer import deflate
from .render import BlockRenderer
from .row_ids import pack_id, pack_uuids, partition, unpack
from .slots import Slots
from .tally import PodcastBooks, RejectReason, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from .render import Rendered

_NICE = 5


class Hand:
    """Does jobs, one after the other."""

    def __init__(self, setup: Setup) -> None:
        self._renderer = BlockRenderer(setup.conversion, setup.fresh_after)
        self._indexer = BlockRenderer(setup.conversion)  # what a line's digest is made of knows nothing of freshness
        self._id_cell = setup.conversion.rules.layout.id_cell
        self._by_podcast = setup.by_podcast

    def do(self, job: Job) -> Result:
        """The result of a job."""
        data = b"".join(job.pieces)
        if job.too_long:
            return _too_long(job.number, data)
        if job.task is Task.INDEX_LINES:
            return _index_lines(job, data.split(b"\n"))
        offset = 1 if job.array and job.number == 0 else 0  # the line with the opening bracket
        rows = b"".join(map(_element, islice(BytesIO(data), offset, None))) if job.array else data
        renderer = self._renderer if job.task is Task.RENDER else self._indexer
        fresh = None if job.fresh is None else frozenset(unpack(job.fresh))
        block = renderer.render(rows, frozenset(unpack(job.duplicates)), fresh)
        result = Result(job.number, line_count=offset + block.tally.rows + len(block.blank), tally=block.tally)
        if block.rejected:
            self._reject(job, block, list(BytesIO(data)), offset, result)
        if job.want_ids:
            packed = block.pack()
            result.ids = partition(packed, b"".join(packed))
        if job.task is Task.RENDER:
            result.piece = deflate(b"".join(block.texts), block.tally.lines)
            if self._by_podcast:
                result.podcasts = _books_by_podcast(block, list(BytesIO(data)) if block.rejected else (), offset)
        else:
            records: list[bytes] = [
                cell + (_digest(line[:-1]) if line else FILTERED)
                for cell, line in zip(renderer.metric_cells(block), block.lines(), strict=True)
            ]
            records += self._changed_records(rows, block)
            result.records = partition(records, b"".join(record[:16] for record in records))
        return result

    def _reject(self, job: Job, block: Rendered, lines: Sequence[bytes], offset: int, result: Result) -> None:
        """Enter the rejected rows; the bracket that closes a JSON array is no row unless something follows it."""
        result.rejects = [_entry(at + offset, reason, lines[at + offset]) for at, reason in block.rejected]
        last = block.rejected[-1][0]
        if job.array and lines[last + offset].strip() == b"]" and last == max((last, *block.kept()[-1:])):
            result.closing = result.rejects.pop()
            block.rejected.pop()
            block.tally.rejected[RejectReason.MALFORMED_JSON] -= 1
            block.tally.rows -= 1

    def _changed_records(self, rows: bytes, block: Rendered) -> Iterator[bytes]:
        """Records of the rejected rows whose id can be read: if they were sent, they have changed since."""
        unreadable = (RejectReason.MALFORMED_JSON, RejectReason.NOT_AN_OBJECT, RejectReason.DUPLICATE_ID)
        rejected = {at for at, reason in block.rejected if reason not in unreadable}
        for at, row in enumerate(BytesIO(rows) if rejected else ()):
            if at in rejected:
                row_id = identifier(orjson.loads(row).get("id"))
                if row_id:
                    yield pack_id(self._id_cell(row_id)) + REJECTED


def _books_by_podcast(block: Rendered, lines: Sequence[bytes], offset: int) -> PodcastBooks:
    """The books of a block by podcast; a rejected row's podcast is what can be read of it."""
    books = PodcastBooks()
    books.count(block.podcasts, block.reported, block.reasons)
    for at, reason in block.rejected:
        podcast = ""
        with suppress(orjson.JSONDecodeError):
            row = orjson.loads(_element(lines[at + offset]))
            podcast = identifier(row.get("podcast_id")) if isinstance(row, dict) else ""
        books.reject(podcast, reason)
    return books


def _index_lines(job: Job, lines: Sequence[bytes]) -> Result:
    """The records of a published log's lines."""
    lines = [line for line in lines if line]
    rows = [(cells[job.id_column], line) for line in lines if len(cells := line.split(b"\t")) > job.id_column]
    ids = [cell.decode() for cell, _ in rows]
    packed = pack_uuids(ids)
    each = unpack(packed) if packed is not None else tuple(map(pack_id, ids))
    records = [row_id + _digest(line) for row_id, (_, line) in zip(each, rows, strict=True)]
    return Result(job.number, line_count=len(lines), records=partition(records, b"".join(each)))


def _digest(line: bytes) -> bytes:
    return blake2b(line, digest_size=8).digest()


def _element(line: bytes) -> bytes:
    """A line of a JSON array without the comma after its element."""
    text = line.rstrip(b" \t\r\n")
    element = text.removesuffix(b",")
    # One that is nothing but blanks would be taken for a blank line, which is no row: its comma stays.
    return element + b"\n" if element.decode(errors="surrogateescape").strip() else line


def _too_long(number: int, beginning: bytes) -> Result:
    result = Result(number, line_count=1, rejects=[_entry(0, RejectReason.MALFORMED_JSON, beginning)])
    result.tally = Tally(rows=1, rejected=Counter({RejectReason.MALFORMED_JSON: 1}))
    result.podcasts = PodcastBooks()
    result.podcasts.reject("", RejectReason.MALFORMED_JSON)
    return result


def _entry(place: int, reason: RejectReason, raw: bytes) -> Reject:
    """The entry of a rejected row; its text is cut at 64 KiB, between two characters."""
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    text, _ = codecs.utf_8_decode(raw[:RAW_LIMIT], "backslashreplace", len(raw) <= RAW_LIMIT)
    if len(text) * 4 > RAW_LIMIT:  # it may have grown by what is escaped
        text = text.encode()[:RAW_LIMIT].decode(errors="ignore")
    return Reject(place, orjson.dumps({"reason": reason, "raw": text})[1:])


def _tell(kind: type[BaseException], _: BaseException, trace: TracebackType | None) -> None:
    """What went wrong, without the words of the error: they may hold a listener's address."""
    os.write(2, f"worker failed error={kind.__name__}\n{''.join(traceback.format_tb(trace))}".encode())


def main() -> None:
    """Read the setup, then do jobs until the pipe ends."""
    sys.excepthook = _tell
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to handle: it ends its workers itself
    with suppress(OSError):  # a sandbox may refuse it
        os.nice(_NICE)
    jobs = sys.stdin.buffer
    take = Slots(*map(int, sys.argv[1:])).take if len(sys.argv) > 1 else None
    hand = Hand(Setup.unpack(jobs.read(int.from_bytes(jobs.read(4), "little"))))
    gc.freeze()
    gc.disable()  # nothing here makes cycles
    with suppress(BrokenPipeError):
        while (job := Job.read(jobs.read, take)) is not None:
            rest = memoryview(hand.do(job).pack())
            while rest:
                rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    main()
