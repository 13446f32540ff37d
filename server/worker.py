"""The work on one block; and the worker process that does it, job after job, until its pipe ends.

Reads jobs from standard input, writes results to standard output. The promises: a result depends on its job alone, so
who does it, and when, changes nothing; and the process ends when the service does, however that ends.
"""

from __future__ import annotations

import codecs
import gc
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson

from .blocks import RAW_LIMIT
from .ids import pack_id, pack_uuids, partition, unpack
from .job import FILTERED, REJECTED, Job, Reject, Result, Setup, Task
from .megaphone import identifier
from .member import deflate
from .render import BlockRenderer
from .tally import RejectReason, Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .render import Rendered

_NICE = 5


class Hand:
    """Does jobs, one after the other."""

    def __init__(self, setup: Setup) -> None:
        self._renderer = BlockRenderer(setup.conversion, setup.fresh_after)
        self._indexer = BlockRenderer(setup.conversion)  # what a line's digest is made of knows nothing of freshness
        self._clean = setup.conversion.rules.layout.clean

    def do(self, job: Job) -> Result:
        """The result of a job."""
        data = job.pieces[0] if len(job.pieces) == 1 else b"".join(job.pieces)
        if job.too_long:
            return _too_long(job.number, bytes(data))
        lines = bytes(data).split(b"\n")
        if not lines[-1]:
            lines.pop()
        if job.task is Task.INDEX_LINES:
            return _index_lines(job, lines)
        result = Result(job.number, line_count=len(lines))
        offset = 1 if job.array and job.number == 0 else 0  # the line with the opening bracket
        rows = [_element(line) for line in lines[offset:]] if job.array else lines
        renderer = self._renderer if job.task is Task.RENDER else self._indexer
        fresh = None if job.fresh is None else frozenset(unpack(job.fresh))
        block = renderer.render(rows, frozenset(unpack(job.duplicates)), fresh)
        result.tally = block.tally
        result.rejects = [_reject(at + offset, reason, lines[at + offset]) for at, reason in block.rejected]
        if job.array and block.rejected and _is_closing(block, lines[block.rejected[-1][0] + offset]):
            result.closing = result.rejects.pop()
            block.tally.rejected[RejectReason.MALFORMED_JSON] -= 1
            block.tally.rows -= 1
        if job.want_ids:
            packed = block.pack()
            result.ids = partition(packed, b"".join(packed))
        if job.task is Task.RENDER:
            result.piece = deflate("".join(block.texts).encode(), block.tally.lines)
        else:
            records = [
                cell + (_digest(line[:-1].encode()) if line else FILTERED)
                for cell, line in zip(renderer.metric_cells(block), block.lines(), strict=True)
            ]
            records += self._rejected_records(rows, block.rejected)
            result.records = partition(records, b"".join(record[:16] for record in records))
        return result

    def _rejected_records(self, rows: Sequence[bytes], rejected: Sequence[tuple[int, RejectReason]]) -> list[bytes]:
        """Records of the rejected rows whose id can be read: if they were sent, they have changed since."""
        records = []
        for at, reason in rejected:
            if reason in (RejectReason.MALFORMED_JSON, RejectReason.NOT_AN_OBJECT, RejectReason.DUPLICATE_ID):
                continue
            row_id = identifier(orjson.loads(rows[at]).get("id"))
            if row_id:
                records.append(pack_id(self._clean(row_id)) + REJECTED)
        return records


def _index_lines(job: Job, lines: Sequence[bytes]) -> Result:
    """The records of a published log's lines."""
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
    text = line.rstrip(b" \t\r")
    return text[:-1] if text.endswith(b",") and len(text.strip()) > 1 else line


def _is_closing(block: Rendered, line: bytes) -> bool:
    """Whether the last row of a block, a rejected one, is the bracket that closes a JSON array."""
    return line.strip() == b"]" and block.rejected[-1][0] == max((*block.kept()[-1:], block.rejected[-1][0]))


def _too_long(number: int, beginning: bytes) -> Result:
    result = Result(number, line_count=1, rejects=[_reject(0, RejectReason.MALFORMED_JSON, beginning)])
    result.tally = Tally(rows=1, rejected=Counter({RejectReason.MALFORMED_JSON: 1}))
    return result


def _reject(place: int, reason: RejectReason, raw: bytes) -> Reject:
    """The entry of a rejected row; its text is cut at 64 KiB, between two characters."""
    text, _ = codecs.utf_8_decode(raw.removesuffix(b"\r")[:RAW_LIMIT], "backslashreplace", len(raw) <= RAW_LIMIT)
    if len(text) * 4 > RAW_LIMIT:  # it may have grown by what is escaped
        text = text.encode()[:RAW_LIMIT].decode(errors="ignore")
    return Reject(place, orjson.dumps({"reason": reason, "raw": text})[1:])


def main() -> None:
    """Read the setup, then do jobs until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to handle: it ends its workers itself
    with suppress(OSError):  # a sandbox may refuse it
        os.nice(_NICE)
    jobs = sys.stdin.buffer
    hand = Hand(Setup.unpack(jobs.read(int.from_bytes(jobs.read(4), "little"))))
    gc.freeze()
    gc.disable()  # nothing here makes cycles
    with suppress(BrokenPipeError):
        while (job := Job.read(jobs.read)) is not None:
            rest = memoryview(hand.do(job).pack())
            while rest:
                rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    main()
