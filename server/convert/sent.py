"""Which rows of a new version of an export were sent before: a join with the published logs, partition by partition.

Reads published logs through the functions it is handed. The promise: the result is exact, and memory holds no more than
one partition at a time.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DataFolderError, ExportTorn, SourceError
from ..triton import Layout, LogFormat
from .job import REJECTED, Job, Task
from .lines import GzipText, cut_blocks
from .torn import damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from .row_ids import BlockIds, BlockRecords


class SentLog(NamedTuple):
    """A published log of the day: its layout, a function that opens its gzip file, and its name in error sentences."""

    layout: Layout
    open: Callable[[], BinaryIO]
    name: str = "a published log"


class Comparison(NamedTuple):
    """How a new version of an export differs from what was sent: see `day.Converted`."""

    changed: int
    removed: int


def log_jobs(sent: Sequence[SentLog], block_size: int) -> Iterator[Job]:
    """Yield the lines of published logs, without their headers, as jobs to index them.

    Raises:
        DataFolderError: a published log is damaged.
    """
    number = 0
    for log in sent:
        with closing(log.open()) as file:
            try:
                with GzipText(file, log.name) as text:
                    head = _after_header(text, log.layout)
                    for block in cut_blocks(text.read, block_size, head, limited=False):
                        yield Job(number, Task.INDEX_LINES, block.pieces, id_column=log.layout.id_column())
                        number += 1
            except ExportTorn as error:
                raise damaged(log.name, error.word) from error
            except SourceError as error:  # the same fault, but it is a published log, not an export
                raise DataFolderError(str(error), hint=error.hint) from error


def _after_header(text: GzipText, layout: Layout) -> bytes:
    """Skip the header lines; return the first line after them."""
    line = text.readline()
    if layout.format is LogFormat.TSV and layout.header == "plain":
        return text.readline()
    while line.startswith(b"#"):  # no log line begins like that: see Layout.render
        line = text.readline()
    return line


def compare(rows: BlockRecords, sent: BlockRecords, fresh: BlockIds) -> Comparison:
    """Add to ``fresh``, for every block, the packed cells of rows that were not sent before; count what differs.

    Records are a packed cell of ``x-metric-id`` (16 bytes) and 8 bytes that stand for the line.
    """
    changed = removed = 0
    for new_group, sent_group in rows.groups_with(sent):
        lines: dict[bytes, bytes | None] = {record[:16]: record[16:] for _, record in sent_group.positions()}
        rejected: set[bytes] = set()
        block_of = new_group.block_of()
        for position, record in new_group.positions():
            cell, line = record[:16], record[16:]
            if cell not in lines:
                if line != REJECTED:
                    fresh.add(block_of(position), cell)
            elif line == REJECTED:
                rejected.add(cell)
            else:  # the first row with this id decides (then its line is None); a later one is a duplicate
                was = lines[cell]
                changed += was is not None and was != line
                lines[cell] = None
        gone = {cell for cell, line in lines.items() if line is not None}
        changed += len(gone & rejected)
        removed += len(gone - rejected)
    return Comparison(changed, removed)
