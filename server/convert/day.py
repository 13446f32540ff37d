"""The streaming of a day: blocks of rows go out to threads, pieces of log files come back in order and are counted.

Reads one export, writes into the files of a `LogSink` and into nameless temporary files in ``scratch``. The promises:
the same bytes for the same export and rules, whatever the number of threads; every row counted in exactly one place of
the tally; memory that does not grow with the day; nothing reported as converted unless the whole export is sound.

The kernel and gunzip release the interpreter's lock, so threads do as well as processes. Without the kernel they take
turns.
"""

from __future__ import annotations

import re
import shlex
import threading
from collections import Counter, deque
from contextlib import ExitStack
from functools import cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from isal import isal_zlib

from ..errors import DataFolderError
from .job import Job, Task
from .lines import GzipText, after_mark, cut_blocks
from .log_writer import LogFiles, LogSink
from .row_ids import BlockIds, BlockRecords, find_duplicates, find_numbers, ids_differ
from .sent import SentLog, compare, log_jobs
from .tally import PodcastBooks, RejectReason, Tally
from .torn import torn, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO, Self

    from .conversion import Conversion
    from .job import Result
    from .kernel import Kernel

__all__ = ["Converted", "Export", "LogSink", "SentLog", "Tuning", "convert_export"]

AHEAD = 2  # blocks under way per thread, and as many finished ones that wait for an earlier one


class Export(NamedTuple):
    """An export: its name in error sentences, and a function that opens its file at the beginning."""

    name: str
    open: Callable[[], BinaryIO]


class Tuning(NamedTuple):
    """Sizes in bytes, found by measurement; a log's lines depend on neither, its bytes on ``block`` alone."""

    block: int = 1 << 20  # of rows, for one job
    held: int = 2 << 20  # of ids in memory, before they go to disk


class Converted(NamedTuple):
    """The result of an export.

    ``lines_per_log`` has an entry for each log that was opened. ``changed`` counts rows sent before whose line would be
    different now (or none); ``removed`` counts lines sent before whose row is gone. ``podcasts`` is empty unless the
    books by podcast were asked for. ``one_line``: the export's rows are in one JSON array on one line, so that none
    of them could be read.
    """

    tally: Tally
    lines_per_log: list[int]
    changed: int
    removed: int
    podcasts: PodcastBooks
    one_line: bool


def convert_export(
    export: Export,
    conversion: Conversion,
    sink: LogSink,
    *,
    kernel: Callable[[], Kernel | None],
    scratch: Path | str,
    threads: int = 1,
    max_rows_per_file: int = 0,
    sent: Sequence[SentLog] = (),
    fresh_after: str | None = None,
    by_podcast: bool = False,
    progress: Callable[[int], None] | None = None,
    tuning: Tuning | None = None,
) -> Converted:
    """Convert one export into log files.

    ``kernel`` returns the kernel, or None to go without one; it is not called for an export without rows.
    With ``sent``, rows that are in these logs are filtered as ``sent_before``, and no log is opened if nothing is
    left. Rows created at or after ``fresh_after`` (``YYYY-MM-DD HH:MM:SS``, UTC) are filtered as ``too_fresh``.
    ``progress`` is called with the number of bytes of the export read so far, from 0 again in every pass.

    Raises:
        ExportTorn: the export is not one whole, correct gzip file, or a JSON array without its closing bracket.
        SourceError: the export cannot be read.
        DataFolderError: a file cannot be written, or a log in ``sent`` is damaged.
    """
    tuning = tuning or Tuning()
    kernel = cache(kernel)
    # Cells alone identify rows only in logs whose ids are encoded as this one's are.
    plain_ids = not all(log.layout.same_ids(conversion.rules.layout) for log in sent)

    def prepare() -> Callable[[Job], Result]:
        from .block import BlockConverter  # only here: an empty export needs neither the rules of rows nor the kernel

        return BlockConverter(kernel(), conversion, fresh_after, by_podcast=by_podcast, plain_ids=plain_ids).do

    try:
        with _Threads(threads, prepare, tuning.block) as pool:
            source = _Source(export, tuning.block, progress)
            header = conversion.rules.layout.header_lines(conversion.day)
            run = _Conversion(
                source,
                pool,
                scratch,
                tuning,
                lambda: _Books(sink, header, max_rows_per_file, bool(sent)),
                kernel,
            )
            return run.late(sent) if sent else run.whole(sink)
    except OSError as error:
        sentence = f"the conversion of {export.name} could not be written: {error.strerror or error}"
        raise DataFolderError(sentence, hint=f"df -h {shlex.quote(str(scratch))}") from error


class _Threads:
    """Threads that do jobs; with a count of 1, the calling thread does them itself.

    ``prepare`` returns the function that does a job; it is called when the first one arrives. ``block`` is the usual
    size of one, in bytes.
    """

    def __init__(self, count: int, prepare: Callable[[], Callable[[Job], Result]], block: int) -> None:
        self._do = cache(prepare)
        self._block = block
        self._jobs: SimpleQueue[tuple[Job, SimpleQueue[Result | BaseException]] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count if count > 1 else 0)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error jobs may still be queued. Remove them first, or the threads would do them all before they reach
        # the None that ends each.
        try:
            while True:
                self._jobs.get_nowait()
        except Empty:
            pass
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def run(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """Yield the results of the jobs, in order; only a few jobs are under way at a time."""
        if not self._threads:
            for job in jobs:
                yield self._do()(job)
            return
        waiting: deque[tuple[SimpleQueue[Result | BaseException], int]] = deque()
        most, held = 2 * AHEAD * len(self._threads), 0
        for job in jobs:
            self._do()  # prepared here, before two threads can ask for it at once
            size = sum(map(len, job.pieces))
            # The results must come in order: wait for the oldest job before giving out more, or memory would grow. A
            # block that one huge line fills counts for as many as it is long.
            while waiting and (len(waiting) >= most or held + size > most * self._block):
                result, its_size = waiting.popleft()
                held -= its_size
                yield _taken(result)
            result = SimpleQueue()
            self._jobs.put((job, result))
            waiting.append((result, size))
            held += size
            del job  # or it would be held while the next one is read
        while waiting:
            yield _taken(waiting.popleft()[0])

    def _work(self) -> None:
        """Do jobs until there is a None among them."""
        while (work := self._jobs.get()) is not None:
            job, result = work
            try:
                result.put(self._do()(job))
            except BaseException as error:  # raised again by whoever takes the result
                result.put(error)
            # Otherwise an idle thread would keep a whole block in memory.
            del work, job, result


def _taken(result: SimpleQueue[Result | BaseException]) -> Result:
    """Wait for a result and return it; raise the error that took its place."""
    found = result.get()
    if isinstance(found, BaseException):
        raise found
    return found


class _Conversion:
    """The passes over one export."""

    def __init__(
        self,
        source: _Source,
        threads: _Threads,
        scratch: Path | str,
        tuning: Tuning,
        books: Callable[[], _Books],
        kernel: Callable[[], Kernel | None],
    ) -> None:
        self._source = source
        self._kernel = kernel
        self._threads = threads
        self._scratch = scratch
        self._held = tuning.held
        self._block = tuning.block
        self._books = books

    def whole(self, sink: LogSink) -> Converted:
        """Render; if an id occurs in two blocks (which is rare), start over, knowing which ids those are."""
        with ExitStack() as stack:
            ids = stack.enter_context(_Ids(self._scratch, self._held))
            converted = self._render(ids)
            # Only at the end is it known whether an id occurs in two blocks; no file is published before that.
            repeated = ids.repeated(stack, self._differ)
            if not repeated.duplicates.count and not repeated.numbers.count:
                return converted
            sink.restart()
            return self._render(repeated=repeated)

    def _differ(self, ids: bytes) -> bool:
        """Return whether all ids (16 bytes each) are different."""
        kernel = self._kernel()
        return ids_differ(ids) if kernel is None else kernel.ids_differ(ids)

    def late(self, sent: Sequence[SentLog]) -> Converted:
        """Index the rows sent before and the rows of this version; then render those that were not sent."""
        with ExitStack() as stack:
            ids = stack.enter_context(_Ids(self._scratch, self._held))
            lines = stack.enter_context(BlockRecords(self._scratch, 24, self._held))
            for result in self._threads.run(log_jobs(sent, self._block)):
                lines.add(result.records)
            rows = self._index(stack, ids)
            repeated = ids.repeated(stack, self._differ)
            # A row without an id gets one by its number among its equals; how many are in earlier blocks is known now.
            if repeated.numbers.count:
                rows = self._index(stack, None, repeated)
            fresh = stack.enter_context(BlockIds(self._scratch, rows.blocks, self._held))
            comparison = compare(rows, lines, fresh)
            converted = self._render(repeated=repeated, fresh=fresh)
            return converted._replace(changed=comparison.changed, removed=comparison.removed)

    def _index(self, stack: ExitStack, ids: _Ids | None, repeated: _Repeated | None = None) -> BlockRecords:
        """Return the records of the rows of this version; add to ``ids``, if given, those of every block."""
        rows = stack.enter_context(BlockRecords(self._scratch, 24, self._held))
        jobs = self._source.jobs(Task.INDEX_ROWS, want_ids=ids is not None, repeated=repeated)
        for result in self._threads.run(jobs):
            rows.add(result.records)
            if ids is not None:
                ids.add(result)
        return rows

    def _render(
        self,
        ids: _Ids | None = None,
        *,
        repeated: _Repeated | None = None,
        fresh: BlockIds | None = None,
    ) -> Converted:
        """Write the log files in one pass; add to ``ids``, if given, those of every block."""
        source = self._source
        with self._books() as books:
            for result in self._threads.run(source.jobs(want_ids=ids is not None, repeated=repeated, fresh=fresh)):
                books.add(result)
                if ids is not None:
                    ids.add(result)
            if source.array and not books.array_closed:
                raise torn(source.export.name, "unclosed")
            books.close()
        tally = books.tally
        one_line = source.begins_rows and tally.rows == tally.rejected.total() == 1
        return Converted(tally, books.logs.lines, 0, 0, books.podcasts, one_line)


class _Repeated(NamedTuple):
    """By block, what occurred in earlier ones: ids of their own, and derived ids with how often they occurred."""

    duplicates: BlockIds
    numbers: BlockIds


class _Ids:
    """The ids of all rows: their own, and the derived ones, by which equal rows are numbered."""

    def __init__(self, scratch: Path | str, held: int) -> None:
        self._scratch, self._held = scratch, held
        self._own, self._derived = BlockRecords(scratch, 16, held), BlockRecords(scratch, 24, held)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own.__exit__(kind, error, trace)
        self._derived.__exit__(kind, error, trace)

    def add(self, result: Result) -> None:
        """Add the ids of the next block."""
        self._own.add(result.ids)
        self._derived.add(result.derived)

    def repeated(self, stack: ExitStack, differ: Callable[[bytes], bool]) -> _Repeated:
        """Return what occurs in more than one block; ``stack`` closes it."""
        blocks = self._own.blocks
        found = _Repeated(
            stack.enter_context(BlockIds(self._scratch, blocks, self._held)),
            stack.enter_context(BlockIds(self._scratch, blocks, self._held, 24)),
        )
        find_duplicates(self._own, found.duplicates, differ)
        find_numbers(self._derived, found.numbers, differ)
        return found


class _Source:
    """An export, cut into jobs the same way in every pass.

    Known from its first block on: ``array``, it is a JSON array with one element per line; ``begins_rows``, its first
    line begins an array and has a row in it.
    """

    def __init__(self, export: Export, block_size: int, progress: Callable[[int], None] | None) -> None:
        self.export, self.block_size, self.progress = export, block_size, progress
        self.array = self.begins_rows = False

    def jobs(
        self,
        task: Task = Task.RENDER,
        *,
        want_ids: bool = False,
        repeated: _Repeated | None = None,
        fresh: BlockIds | None = None,
    ) -> Iterator[Job]:
        """Yield a job for every block."""
        with self._text() as text:
            for block in cut_blocks(after_mark(self._told(text)), self.block_size):
                # Whether the export is a JSON array shows in its first line alone, and holds for every later block.
                if block.number == 0:
                    beginning = b"".join(bytes(piece[:_BEGINNING]) for piece in block.pieces[:3])
                    self.array = not block.too_long and re.match(_ARRAY, beginning) is not None
                    self.begins_rows = re.match(_ARRAY_WITH_ROWS, beginning) is not None
                yield Job(
                    number=block.number,
                    task=task,
                    pieces=block.pieces,
                    too_long=block.too_long,
                    array=self.array,
                    want_ids=want_ids,
                    duplicates=repeated.duplicates.of(block.number) if repeated is not None else b"",
                    numbers=repeated.numbers.of(block.number) if repeated is not None else b"",
                    fresh=fresh.of(block.number) if fresh is not None else None,
                )

    def _told(self, text: GzipText) -> Callable[[int], bytes]:
        """Return a function that reads and reports progress: an endless line yields no block for a long time."""
        progress = self.progress
        if progress is None:
            return text.read

        def read(size: int) -> bytes:
            data = text.read(size)
            progress(text.position)
            return data

        return read

    def _text(self) -> GzipText:
        """Open the export and return its text."""
        try:
            return GzipText(self.export.open(), self.export.name)
        except OSError as error:
            raise unreadable(self.export.name, error.errno) from error


_BEGINNING = 1 << 10
_ARRAY = rb"\[(?:\r?\n|\r?\Z)"  # a first line that is nothing but a bracket
_ARRAY_WITH_ROWS = rb"\s*\[[ \t\r]*\{"


class _Books:
    """The files and the tally of one pass, filled block by block, in order."""

    def __init__(self, sink: LogSink, header: str, max_rows: int, late: bool) -> None:
        self.tally = Tally()
        self.podcasts = PodcastBooks()
        self.logs = LogFiles(sink, header, max_rows)
        self._sink = sink
        self._late = late
        self._line = 1  # the number of the next block's first line
        self._closing: bytes | None = None  # see Result.closing
        self._closed = False  # see Result.closed
        self._rejects: BinaryIO | None = None
        self._packer = isal_zlib.compressobj(2, isal_zlib.DEFLATED, 31)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.logs.abandon()
        if self._rejects is not None:
            self._rejects.close()
            self._rejects = None

    def add(self, result: Result) -> None:
        """Add the result of the next block."""
        # The last row of an earlier block was a lone ``]``, and something follows it, so it did not close the array: it
        # is a rejected row after all, and comes before those of this block.
        if self._closing is not None and (result.tally.rows or result.closing is not None):
            self._write_reject(self._closing)
            self.tally.add(Tally(rows=1, rejected=Counter({RejectReason.MALFORMED_JSON: 1})))
            if result.podcasts is not None:
                self.podcasts.reject("", RejectReason.MALFORMED_JSON)
            self._closing = None
        for reject in result.rejects:
            self._write_reject(reject.at(self._line))
        if result.closing is not None:
            self._closing = result.closing.at(self._line)
        if result.tally.rows:
            self._closed = result.closed
        self._line += result.line_count
        self.tally.add(result.tally)
        if result.podcasts is not None:
            self.podcasts.add(result.podcasts)
        self.logs.write(result.piece)

    @property
    def array_closed(self) -> bool:
        """Whether the last row so far closes a JSON array."""
        return self._closed or self._closing is not None

    def _write_reject(self, entry: bytes) -> None:
        """Write a rejected row; the first one opens the file."""
        if self._rejects is None:
            self._rejects = self._sink.open_rejects()
        self._rejects.write(self._packer.compress(entry))

    def close(self) -> None:
        """Complete every file. A day without lines still gets a log, unless its rows are late ones."""
        if not self.logs.lines and not self._late:
            self.logs.open()
        self.logs.close()
        if self._rejects is not None:
            self._rejects.write(self._packer.flush())
            self.__exit__()
