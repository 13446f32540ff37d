"""The conversion of one block: its rows by the kernel, and those that the kernel calls odd by the exact rules.

Pure. The promise: with a kernel or without, the outcome of every row, and the tally, are those of `RowConverter`; a
differential test holds it to that. A result depends on its job alone, not on which thread does it or when: threads may
share a `BlockConverter`.
"""

from __future__ import annotations

import codecs
import struct
import threading
from collections import Counter
from contextlib import nullcontext, suppress
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from ..triton import plain_id
from .export_row import identifier, parse_fields
from .job import FILTERED, REJECTED, Job, Reject, Rejects, Result, Task
from .kernel import CompiledRules, Equals, IdTable, Names, Rooms, filtered
from .lines import RAW_LIMIT
from .log_writer import deflate
from .row import RowConverter
from .row_ids import Partitioned, pack_id, partition, unpack
from .tally import FilterReason, PodcastBooks, RejectReason, RowRejected, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from .conversion import Conversion
    from .kernel import Kernel
    from .row import Outcome

_BEGINNING = 1 << 14  # bytes of a block that are searched for its first row
_FIRST_LINES = 8
_LARGE = 1 << 20  # bytes of a row that, in several forms, may take 30 times as many: see `BlockConverter._turn`
_WITHOUT_FIELDS = (RejectReason.MALFORMED_JSON, RejectReason.NOT_AN_OBJECT)
_UNREADABLE = (*_WITHOUT_FIELDS, RejectReason.DUPLICATE_ID)


class _Gathered:
    """The outcome of the rows of a block so far.

    ``ids`` are those of rows that have one and were not rejected, packed, 16 bytes each; ``derived`` counts rows
    without one that become lines, by the id that each would have as the first of its equals; ``counted`` are those that
    the kernel counted, see `Equals.counted`. If rows are indexed, ``cells`` and ``digests`` are those of all. ``lines``
    counts lines of the export.
    """

    def __init__(self) -> None:
        self.texts: list[bytes | memoryview] = []
        self.ids: list[bytes | memoryview] = []
        self.derived = Counter[bytes]()
        self.counted = b"", b""
        self.cells: list[bytes | memoryview] = []
        self.digests: list[bytes | memoryview] = []
        self.changed: list[bytes] = []
        self.tally = Tally()
        self.podcasts = PodcastBooks()
        self.rejects = Rejects()
        self.last_rejected = b""  # the row as it is in the export
        self.rejected_of = Counter[tuple[str, RejectReason]]()  # by podcast
        self.out_of_order: list[bytes] = []  # derived ids that rows of both have, the kernel's and the exact rules'
        self.kept_after = False  # whether a row that was not rejected follows the last rejected one
        self.lines = 0


class _Seen:
    """What the exact rules saw of rows of the same id: packed ids, and how many of those without one became lines."""

    def __init__(self, job: Job) -> None:
        self.ids = set(unpack(job.duplicates))
        self.numbers: dict[bytes, int] = dict(struct.iter_unpack("<16sQ", job.numbers))

    def number(self, packed_id: bytes) -> int:
        """Return the number of the next row that gets this id."""
        number = self.numbers.get(packed_id, 0)
        self.numbers[packed_id] = number + 1
        return number


class BlockConverter:
    """Does jobs: turns blocks of rows into lines or records, and published lines into records."""

    def __init__(
        self,
        kernel: Kernel | None,
        conversion: Conversion,
        fresh_after: str | None = None,
        *,
        by_podcast: bool = False,
        plain_ids: bool = False,
    ) -> None:
        """Prepare; with ``plain_ids`` published cells and ids are compared as `plain_id` makes them."""
        self._kernel = kernel
        self._exact = RowConverter(conversion)
        self._plain_ids = plain_ids
        # How an id is recognised among the cells of published logs; an ordinary id is its own cell either way.
        self._key: Callable[[str], str] = plain_id if plain_ids else conversion.rules.layout.id_cell
        self._fresh_after = fresh_after
        self._by_podcast = by_podcast
        self._large = threading.Lock()
        self._rooms = Rooms()
        self._kind = conversion.rules.export_kind
        self._names = Names(self._kind)
        if kernel is not None:
            self._render_rules = CompiledRules(kernel, conversion, fresh_after, by_podcast=by_podcast)
            # Only late rows need them, and a large catalogue takes long to pack; threads that ask at once may do it
            # twice. A line's digest does not depend on what is too fresh, so these rules have no ``fresh_after``.
            self._index_rules = cache(lambda: CompiledRules(kernel, conversion, index_rows=True))

    def do(self, job: Job) -> Result:
        """Return the result of a job."""
        if job.too_long:
            return _too_long(job.number, b"".join(job.pieces))
        if job.task is Task.INDEX_LINES:
            return self._index_lines(job, b"".join(job.pieces))
        try:
            return self._convert_block(job)
        finally:
            self._rooms.leave()

    def _convert_block(self, job: Job) -> Result:
        """Return the result of a block of rows."""
        text = self._rooms.load(job.pieces)
        if self._kernel is None:
            block = self._convert_exactly(job, text)
            return self._result(job, block, _joined(block.ids))
        first = _first_fields(text, array=job.array)
        # Once for both conversions, since other threads change them: what is odd must be odd in the second one as well.
        names = self._names.packed(tuple(first))
        # If the first row has an id, so will the others; a row of the other kind is only slower.
        derive = bool(self._kind.identity) and not identifier(first.get("id"))
        block = self._convert(self._kernel, job, text, names, job.duplicates, derive=derive)
        ids = _joined(block.ids)
        # The kernel does not notice an id that occurs twice in a block, or that an odd row equals one that it has
        # numbered. Both are rare, so the block is simply converted again, and the kernel leaves every row with these
        # ids to the exact rules, which reject or number all but the first.
        if block.out_of_order or not self._kernel.ids_differ(ids):
            twice = [row_id for row_id, rows in Counter(unpack(ids)).items() if rows > 1]
            repeated = job.duplicates + b"".join([*twice, *block.out_of_order])
            block = self._convert(self._kernel, job, text, names, repeated, derive=derive)
            ids = _joined(block.ids)
        return self._result(job, block, ids)

    def _convert(
        self, kernel: Kernel, job: Job, text: memoryview, names: tuple[bytes, int], repeated: bytes, *, derive: bool
    ) -> _Gathered:
        """Convert by the kernel; it leaves odd rows, and all rows of the repeated ids, to the exact rules."""
        block, rooms, seen = _Gathered(), self._rooms, _Seen(job)
        fresh = None if job.fresh is None else IdTable(kernel, job.fresh)
        exact_fresh = None if job.fresh is None else frozenset(unpack(job.fresh))
        table = IdTable(kernel, repeated) if repeated else None
        rules = self._render_rules if job.task is Task.RENDER else self._index_rules()
        equals = Equals(kernel, job.numbers, len(text)) if derive else None
        start = block.lines = _skipped(job)
        if start:
            start = bytes(text[:_BEGINNING]).find(b"\n") + 1
        while start < len(text):
            done = rooms.block(start, names, array=job.array, derive=equals, fresh=fresh, repeated=table)
            kernel.convert(rules, done)
            if equals is not None:
                equals.count = done.seen_count
            end = start + done.taken
            # The views point into this thread's rooms, which the next call overwrites: copy them, unless this call did
            # the whole block and they are used at once.
            out, ids, digests = rooms.out(done), rooms.ids(done), rooms.digests(done)
            if start or end < len(text) or done.odd_count:
                out, ids, digests = (memoryview(bytes(view)) for view in (out, ids, digests))
            # Between two odd rows the kernel wrote its lines without a gap: splice each odd row in where it stood.
            written = packed = rows = 0
            first_line = block.lines
            for odd in rooms.odd(done):
                if odd.rows > rows:
                    self._add_ordinary(job, block, out[written : odd.written], ids[16 * packed : 16 * odd.ids],
                                       digests[8 * packed : 8 * odd.ids], derived=derive)  # fmt: skip
                written, packed, rows = odd.written, odd.ids, odd.rows
                raw = bytes(text[start + odd.begin : start + odd.end])
                self._add_odd(job, block, raw, first_line + odd.line, exact_fresh, seen)
            if done.row_count > rows:
                self._add_ordinary(job, block, out[written:], ids[16 * packed :], digests[8 * packed :],
                                   derived=derive)  # fmt: skip
            block.lines += done.line_count
            block.tally.add(
                Tally(
                    rows=done.row_count,
                    lines=done.lines,
                    filtered=Counter(filtered(done)),
                    reporting=done.reporting,
                    clamped=done.clamped,
                    not_an_address=done.not_an_address,
                    ends_in_zero=done.ends_in_zero,
                    outside_day=done.outside_day,
                    unmapped_episodes=done.unmapped,
                    fallback_urls=done.fallback_urls,
                    unmatched=done.unmatched,
                )
            )
            if self._by_podcast and job.task is Task.RENDER:
                for podcast, rows, reporting, lines, reasons in rooms.podcasts(done, start):
                    block.podcasts.of(podcast).add(
                        Tally(rows=rows, reporting=reporting, lines=lines, filtered=Counter(reasons))
                    )
            start = end
        if equals is not None:
            block.counted = equals.counted()
        if block.derived:
            block.out_of_order += block.derived.keys() & unpack(block.counted[0])
        return block

    def _convert_exactly(self, job: Job, text: memoryview) -> _Gathered:
        """Convert by the exact rules alone, row by row."""
        block, lines, seen = _Gathered(), bytes(text).split(b"\n")[:-1], _Seen(job)
        fresh = None if job.fresh is None else frozenset(unpack(job.fresh))
        for number in range(_skipped(job), len(lines)):
            self._add_odd(job, block, lines[number] + b"\n", number, fresh, seen)
        block.lines = max(len(lines), _skipped(job))
        return block

    @staticmethod
    def _add_ordinary(
        job: Job, block: _Gathered, text: memoryview, ids: memoryview, digests: memoryview, *, derived: bool
    ) -> None:
        """Add rows that the kernel converted; with ``derived``, their ids are not their own."""
        block.kept_after = True
        if not derived:
            block.ids.append(ids)
        if job.task is Task.RENDER:
            block.texts.append(text)
        else:
            block.cells.append(ids)  # an ordinary id is its own cell
            block.digests.append(digests)

    def _add_odd(
        self, job: Job, block: _Gathered, raw: bytes, line: int, fresh: frozenset[bytes] | None, seen: _Seen
    ) -> None:
        """Convert one row by the exact rules; reject it if its id was seen before, ignore it if it is blank."""
        with self._turn(raw):
            row = _element(raw) if job.array else raw
            try:
                outcome = self._exact.convert(row)
                packed = pack_id(outcome.id)
                if not outcome.derived:
                    if packed in seen.ids:
                        raise RowRejected(RejectReason.DUPLICATE_ID)  # noqa: TRY301  # handled with the rules' reasons
                    seen.ids.add(packed)
            except RowRejected as rejection:
                reason = rejection.reason
            else:
                self._add_outcome(job, block, row, outcome, packed, fresh, seen)
                return
            # Only now that the error and its traceback are gone: they keep the row's fields in memory.
            self._add_rejected(job, block, raw, row, line, reason)

    def _turn(self, row: bytes) -> AbstractContextManager[Any]:
        """Return what to hold while a row is read: of large ones, only one at a time."""
        return self._large if len(row) > _LARGE else nullcontext()

    def _add_rejected(
        self, job: Job, block: _Gathered, raw: bytes, row: bytes, line: int, reason: RejectReason
    ) -> None:
        """Count and keep a row that the exact rules rejected, unless it is blank."""
        if _is_blank(row):
            return
        block.tally.rows += 1
        block.tally.rejected[reason] += 1
        fields = {} if reason in _WITHOUT_FIELDS else _fields(row)
        block.rejects.append(_entry(line, reason, raw))
        block.last_rejected = raw
        block.rejected_of[identifier(fields.get("podcast_id")), reason] += 1
        block.kept_after = False
        row_id = identifier(fields.get("id"))
        # A rejected row may have been sent in an earlier, correct form: then it counts as changed.
        if job.task is not Task.RENDER and reason not in _UNREADABLE and row_id:
            block.changed.append(pack_id(self._key(row_id)))

    def _add_outcome(
        self,
        job: Job,
        block: _Gathered,
        row: bytes,
        outcome: Outcome,
        packed: bytes,
        fresh: frozenset[bytes] | None,
        seen: _Seen,
    ) -> None:
        """Add what the exact rules made of a row; ``packed`` is its id, as the first of its equals if it has none."""
        tally = block.tally
        tally.rows += 1
        tally.reporting += outcome.reporting
        block.kept_after = True
        if not outcome.derived:
            block.ids.append(packed)
        elif outcome.filtered is None:  # rows that are left out must not shift the numbers of the others
            block.derived[packed] += 1
            if number := seen.number(packed):
                outcome = self._exact.convert(row, number)
        if job.task is Task.RENDER:
            outcome = self._freshly(outcome, fresh)
            if outcome.filtered is None:
                block.texts.append(outcome.line.encode() + b"\n")
            if self._by_podcast:
                reasons = {} if outcome.filtered is None else {0: outcome.filtered}
                block.podcasts.count((outcome.podcast_id,), (outcome.reporting,), reasons)
        elif outcome.filtered is None or not outcome.derived:
            block.cells.append(pack_id(self._key(outcome.id)))
            block.digests.append(FILTERED if outcome.filtered is not None else _digest(outcome.line.encode()))
        if outcome.filtered is not None:
            tally.filtered[outcome.filtered] += 1
            return
        tally.lines += 1
        tally.clamped += outcome.clamped
        tally.not_an_address += not outcome.is_address
        tally.ends_in_zero += outcome.ends_in_zero
        tally.outside_day += outcome.outside_day
        tally.unmapped_episodes += outcome.unmapped
        tally.readdressed += outcome.readdressed
        tally.fallback_urls += outcome.fallback_url
        tally.unmatched += outcome.unmatched

    def _freshly(self, outcome: Outcome, fresh: frozenset[bytes] | None) -> Outcome:
        """Return the outcome, filtered if the row was sent before or is too fresh."""
        if outcome.derived and outcome.filtered is not None:  # such a row was never sent, whatever has its id
            return outcome
        if fresh is not None and pack_id(self._key(outcome.id)) not in fresh:
            return outcome._replace(filtered=FilterReason.SENT_BEFORE)
        if outcome.filtered is None and self._fresh_after is not None and outcome.created_at >= self._fresh_after:
            return outcome._replace(filtered=FilterReason.TOO_FRESH)
        return outcome

    def _result(self, job: Job, block: _Gathered, ids: bytes) -> Result:
        """Return what was gathered of a block as the result of its job."""
        result = Result(job.number, line_count=block.lines, tally=block.tally, rejects=block.rejects)
        # The bracket that closes a JSON array is not a row unless something follows it, perhaps in a later block: so
        # the reject is set apart here, and whoever joins the results decides.
        if job.array and block.rejects and not block.kept_after:
            last = block.last_rejected.strip()
            if last == b"]":
                result.closing = block.rejects.pop()
                block.rejected_of["", RejectReason.MALFORMED_JSON] -= 1
                block.tally.rejected[RejectReason.MALFORMED_JSON] -= 1
                block.tally.rows -= 1
            else:
                with self._turn(last):
                    result.closed = last.endswith(b"]") and bool(_fields(last[:-1]))
        if job.want_ids:
            result.ids = self._partition(ids)
            derived, numbers = block.counted
            derived += b"".join(block.derived)
            numbers += b"".join(count.to_bytes(8, "little") for count in block.derived.values())
            if derived:
                result.derived = self._partition(derived, numbers)
        if job.task is Task.RENDER:
            text = block.texts[0] if len(block.texts) == 1 else b"".join(block.texts)
            result.piece = deflate(text, block.tally.lines)
            if self._by_podcast:
                for (podcast, reason), rows in block.rejected_of.items():
                    block.podcasts.reject(podcast, reason, rows)
                # The kernel's podcasts come in another order than those of odd rows; sorted, both agree.
                result.podcasts = PodcastBooks(dict(sorted(block.podcasts.tallies.items())))
        else:
            cells, digests = _joined([*block.cells, *block.changed]), _joined(block.digests)
            result.records = self._partition(cells, digests + REJECTED * len(block.changed))
        return result

    def _index_lines(self, job: Job, log: bytes) -> Result:
        """Return the records of a published log's lines."""
        if self._kernel is not None and not self._plain_ids:
            whole = log if log.endswith(b"\n") else log + b"\n"
            cells, digests, count = self._kernel.index_lines(whole, job.id_column)
        else:
            lines = [line for line in log.split(b"\n") if line]
            rows = [(row[job.id_column], line) for line in lines if len(row := line.split(b"\t")) > job.id_column]
            read = plain_id if self._plain_ids else str
            cells = b"".join(pack_id(read(cell.decode())) for cell, _ in rows)
            digests, count = b"".join(_digest(line) for _, line in rows), len(lines)
        return Result(job.number, line_count=count, records=self._partition(cells, digests))

    def _partition(self, ids: bytes, digests: bytes | None = None) -> Partitioned:
        if self._kernel is not None:
            return self._kernel.partition(ids, digests)
        each = unpack(ids)
        if digests is None:
            return partition(each, ids)
        return partition([row_id + digests[8 * at : 8 * at + 8] for at, row_id in enumerate(each)], ids)


def _joined(pieces: Sequence[bytes | memoryview]) -> bytes:
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


def _skipped(job: Job) -> int:
    """Return how many lines at the beginning are not rows: the one with the opening bracket of an array."""
    return int(job.array and job.number == 0)


def _first_fields(text: memoryview, *, array: bool) -> dict[str, object]:
    """Return the fields of the first object among a block's first lines; none if there is no object."""
    for line in bytes(text[:_BEGINNING]).split(b"\n", _FIRST_LINES)[:_FIRST_LINES]:
        fields = _fields(_element(line) if array else line)
        if fields:
            return fields
    return {}


def _fields(row: bytes) -> dict[str, object]:
    """Return the fields of a row; none if it is not a JSON object."""
    with suppress(RowRejected):
        return parse_fields(row)
    return {}


def _digest(line: bytes) -> bytes:
    return blake2b(line, digest_size=8).digest()


def _element(line: bytes) -> bytes:
    """Return a line of a JSON array without the comma after its element."""
    text = line.rstrip(b" \t\r\n")
    element = text.removesuffix(b",")
    # An element of blanks alone keeps its comma: without it, it would pass for a blank line, which is not a row.
    return element + b"\n" if element.decode(errors="surrogateescape").strip() else line


def _is_blank(raw: bytes) -> bool:
    try:
        return not raw.decode().strip()
    except UnicodeDecodeError:
        return False


def _too_long(number: int, beginning: bytes) -> Result:
    """Return the result of a block that is a single line over the limit: one rejected row."""
    result = Result(number, line_count=1)
    result.rejects.append(_entry(0, RejectReason.MALFORMED_JSON, beginning))
    result.tally = Tally(rows=1, rejected=Counter({RejectReason.MALFORMED_JSON: 1}))
    result.podcasts = PodcastBooks()
    result.podcasts.reject("", RejectReason.MALFORMED_JSON)
    return result


def _entry(place: int, reason: RejectReason, raw: bytes) -> Reject:
    """Return the entry of a rejected row; its text is cut at 64 KiB, between two characters."""
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    text, _ = codecs.utf_8_decode(raw[:RAW_LIMIT], "backslashreplace", len(raw) <= RAW_LIMIT)
    if len(text) * 4 > RAW_LIMIT:  # escapes may have made it longer
        text = text.encode()[:RAW_LIMIT].decode(errors="ignore")
    return Reject(place, orjson.dumps({"reason": reason, "raw": text})[1:])
