"""What is fuzzed of the conversion: the engine beside the exact rules, for any bytes at all.

Touches one folder of its own in memory, for exports. A target takes bytes and raises when a promise is broken; the
first bytes choose the rules and what is around the rows, the rest are the rows. Fuzzers
(`benchmarks.faults.fuzz`) and `test_corpus` call the same functions.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import orjson

from server.cli.samples import day_rows
from server.convert import lines as blocks
from server.convert.block import BlockConverter
from server.convert.conversion import Conversion
from server.convert.day import SentLog, Tuning, convert_export
from server.convert.export_row import identifier, parse_fields
from server.convert.job import Job, Result, Task
from server.convert.lines import GzipText, cut_blocks
from server.convert.log_writer import inflate
from server.convert.row import RowConverter
from server.convert.tally import FilterReason, PodcastBooks, RejectReason, RowRejected
from server.errors import ExportTorn

from .odd_rows import CATALOGUE, RULES
from .reference_conversion import DAY, KERNEL, KEY, MemorySink, assert_is, convert_slowly, opened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from server.convert.day import Converted

    from .reference_conversion import Slow

NAMES = sorted(RULES)
_CATALOGUE, _FRESH, _ARRAY, _AMONG, _LATE, _FEW_ROWS, _MEMBERS = (1 << bit for bit in range(7))
_FRESH_AFTER = f"{DAY} 12:00:00"
_MARK = b"\xef\xbb\xbf"  # at the beginning of an export it is not a part of the first row
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
_UNREADABLE = (RejectReason.MALFORMED_JSON, RejectReason.NOT_AN_OBJECT)


@cache
def ordinary() -> tuple[bytes, ...]:
    """A few rows with nothing odd in them."""
    return tuple(row.removesuffix(b"\n") for row in day_rows(DAY, 8))


def _conversion(rules: int, flags: int) -> Conversion:
    return Conversion(RULES[NAMES[rules % len(NAMES)]], KEY, CATALOGUE if flags & _CATALOGUE else None, DAY)


def _text(rows: bytes, flags: int) -> bytes:
    if flags & _AMONG:
        some = ordinary()
        rows = b"\n".join([*some[:4], rows, *some[4:]]) + b"\n"
    return b"[\n" + rows if flags & _ARRAY else rows


def _lines(text: bytes) -> list[bytes]:
    lines = text.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def rows(data: bytes) -> None:
    """A block of rows, twice, comes out as row by row by the exact rules.

    Bytes: the rules, the flags (catalogue, fresh, array, among ordinary rows), the rows.
    """
    if len(data) < 2:
        return
    made, flags, text = _conversion(data[0], data[1]), data[1], _text(data[2:], data[1])
    lines, array = _lines(text), bool(flags & _ARRAY)
    fresh_after = _FRESH_AFTER if flags & _FRESH else None
    slow = convert_slowly(lines, made, fresh_after=fresh_after, array=array)
    assert slow.tally.balanced
    for kernel in {KERNEL, None}:
        converter = BlockConverter(kernel, made, fresh_after, by_podcast=True)
        for _ in range(2):  # the second time with names that were learned
            result = converter.do(Job(0, Task.RENDER, (text,), array=array, want_ids=True))
            _same(result, slow, lines, array=array)
        assert result.podcasts is not None
        assert _told(result.podcasts) == _told(_books(lines, made, fresh_after, array=array))


def _same(result: Result, slow: Slow, lines: Sequence[bytes], *, array: bool) -> None:
    assert inflate(result.piece).decode().split("\n") == "".join(slow.lines).split("\n")
    assert zlib.crc32(inflate(result.piece)) == result.piece.crc
    assert (result.piece.lines, result.piece.length) == (len(slow.lines), len("".join(slow.lines).encode()))
    assert result.tally.as_json() == slow.tally.as_json()
    assert result.line_count == len(lines)
    entries = [orjson.loads(reject.at(1)) for reject in result.rejects]
    assert [(entry["line"], entry["reason"]) for entry in entries] == slow.rejected
    for entry in entries:
        raw = lines[entry["line"] - 1].removesuffix(b"\r")
        assert len(raw) > 1000 or entry["raw"] == raw.decode(errors="backslashreplace")
    if result.closing is not None:
        assert array
        assert lines[result.closing.place].strip() == b"]"
    assert result.ids is not None
    assert len(result.ids.data) == 16 * (slow.tally.rows - slow.tally.rejected.total()) == 16 * sum(result.ids.counts)


def _elements(lines: Sequence[bytes], *, array: bool) -> Iterator[bytes]:
    """The rows among the lines: not the blank ones, nor the brackets of an array, nor the commas between its rows."""
    full = [number for number, line in enumerate(lines) if line.decode(errors="surrogateescape").strip()]
    brackets = {0, full[-1] if lines[full[-1]].strip() == b"]" else 0} if array else set()
    for number in full:
        if number not in brackets:
            text = lines[number].rstrip(b" \t\r\n")
            yield text[:-1] if array and text.endswith(b",") and len(text.strip()) > 1 else lines[number]


def _books(lines: Sequence[bytes], made: Conversion, fresh_after: str | None, *, array: bool) -> PodcastBooks:
    """The books by podcast, row by row."""
    converter, books, seen = RowConverter(made), PodcastBooks(), set[str]()
    for row in _elements(lines, array=array):
        try:
            outcome = converter.convert(row)
        except RowRejected as rejected:
            podcast = "" if rejected.reason in _UNREADABLE else identifier(parse_fields(row).get("podcast_id"))
            books.reject(podcast, rejected.reason)
            continue
        if outcome.id in seen:
            books.reject(outcome.podcast_id, RejectReason.DUPLICATE_ID)
            continue
        seen.add(outcome.id)
        reason = outcome.filtered
        if reason is None and fresh_after is not None and outcome.created_at >= fresh_after:
            reason = FilterReason.TOO_FRESH
        books.count([outcome.podcast_id], [outcome.reporting], {} if reason is None else {0: reason})
    return books


def _told(books: PodcastBooks) -> dict[str, Any]:
    """The books as they are kept, but for malformed rows: whose those are is a guess."""
    malformed = RejectReason.MALFORMED_JSON
    told: dict[str, Any] = {malformed: 0}
    for podcast, (rows, reporting, lines, filtered, rejected) in books.as_json().items():
        count = rejected.pop(malformed, 0)
        told[malformed] += count
        if rows > count:
            told[podcast] = rows - count, reporting, lines, filtered, rejected
    return told


def day(data: bytes) -> None:
    """An export through the whole engine in small blocks, the second half of it perhaps as late rows.

    Bytes: the rules, the flags (all of them), the size of a block, the rows.
    """
    if len(data) < 3:
        return
    made, flags, size, text = _conversion(data[0], data[1]), data[1], data[2] + 1, _text(data[3:], data[1])
    lines = _lines(text.removeprefix(_MARK))
    array = lines[:1] in ([b"["], [b"[\r"])
    if array and size < len(b"[\n"):
        size = len(b"[\n")
    tuning = Tuning(block=size * 8, held=100)
    more = {"max_rows_per_file": 3 if flags & _FEW_ROWS else 0, "fresh_after": _FRESH_AFTER if flags & _FRESH else None}
    members = 3 if flags & _MEMBERS else 1
    if array and not _is_closed(lines):
        with suppress(ExportTorn):
            _convert(text, made, members, tuning=tuning, **more)
            raise AssertionError("an array without its closing bracket was converted")
        return
    converted, sink = _convert(text, made, members, tuning=tuning, **more)
    slow = convert_slowly(lines, made, fresh_after=more["fresh_after"], array=array)
    headers = made.rules.layout.header_lines(DAY)
    if not flags & _FEW_ROWS:
        assert_is(slow, converted, sink, headers)
    assert converted.tally.as_json() == slow.tally.as_json()
    assert _told(converted.podcasts) == _told(_books(lines, made, more["fresh_after"], array=array))
    half = lines[: len(lines) // 2]
    half += [b"]"] if array and half and not _is_closed(half) else []
    if flags & _LATE and half:
        first, before = _convert(_MARK + b"".join(line + b"\n" for line in half), made, 1, tuning=tuning)
        sent = [SentLog(made.rules.layout, lambda log=log: io.BytesIO(log.content)) for log in before.logs]
        again, late = _convert(text, made, members, tuning=tuning, sent=sent, **more)
        was = convert_slowly(half, made, array=array)
        assert first.tally.lines == len(was.lines)
        slow = convert_slowly(lines, made, sent=set(was.cells), fresh_after=more["fresh_after"], array=array)
        assert again.tally.as_json() == slow.tally.as_json()
        assert "".join(late.texts).replace(headers, "").split("\n") == "".join(slow.lines).split("\n")
        sent_lines = dict(zip(was.cells, was.lines, strict=True))
        assert (again.changed, again.removed) == _changes(lines, made, sent_lines, array=array)


def _is_closed(lines: Sequence[bytes]) -> bool:
    """Whether the lines of an array end with its bracket, in a line of its own or after the last row."""
    last = next((line.strip() for line in reversed(lines[1:]) if line.decode(errors="surrogateescape").strip()), b"")
    if not last.endswith(b"]"):
        return False
    try:
        return last == b"]" or bool(parse_fields(last[:-1]))
    except RowRejected:
        return False


def _convert(text: bytes, made: Conversion, members: int, **more: Any) -> tuple[Converted, MemorySink]:
    sink = MemorySink()
    with TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder, "metrics-day-2026-11-20.json.gz")
        part = -(-len(text) // members) or 1
        pieces = [text[at : at + part] for at in range(0, len(text), part)] or [b""]
        path.write_bytes(b"".join(gzip.compress(piece, 1) for piece in pieces))
        converted = convert_export(
            opened(path), made, sink, kernel=lambda: KERNEL, scratch=Path(folder), by_podcast=True, **more
        )
        assert [path] == list(Path(folder).iterdir())
    return converted, sink


def _changes(lines: Sequence[bytes], made: Conversion, sent: Mapping[str, str], *, array: bool) -> tuple[int, int]:
    """How many lines that were sent would be others now, and how many are gone."""
    converter, cell, changed = RowConverter(made), made.rules.layout.id_cell, 0
    left, seen, rejected = dict(sent), set[str](), set[str]()
    for row in _elements(lines, array=array):
        try:
            outcome = converter.convert(row)
        except RowRejected as why:
            if why.reason not in _UNREADABLE and (row_id := identifier(parse_fields(row).get("id"))):
                rejected.add(cell(row_id))
            continue
        if outcome.id not in seen and cell(outcome.id) in left:
            changed += left.pop(cell(outcome.id)) != f"{outcome.line}\n"
        seen.add(outcome.id)
    return changed + len(left.keys() & rejected), len(left.keys() - rejected)


# A member whose header has a checksum of its own, or flags that RFC 1952 reserves: Python's module looks at neither.
_CHECKED_HEADER = re.compile(rb"\x1f\x8b\x08[%b]" % re.escape(bytes(flags for flags in range(256) if flags & 0xE2)))


def stored(data: bytes) -> None:
    """A file that may not be gzip at all is read as Python's gzip module reads it, or is torn; and cut into lines.

    Bytes: the size of a block, whether the rest is a gzip file or is to become one, the rest.
    """
    if len(data) < 2:
        return
    size, file = data[0] % 50 + 1, data[2:] if data[1] & 1 else gzip.compress(data[2:], 1, mtime=0)
    try:
        text = gzip.decompress(file) if file else None
    except (EOFError, OSError, zlib.error):
        text = None
    try:
        with GzipText(io.BytesIO(file), "export") as whole:
            read = b"".join(iter(lambda: whole.read(size), b""))
    except ExportTorn:
        assert text is None or _CHECKED_HEADER.search(file)
        return
    assert read == text
    with patch.multiple(blocks, LINE_LIMIT=50, RAW_LIMIT=20):
        there = io.BytesIO(read)
        cut = list(cut_blocks(there.read, size))
        assert [block.number for block in cut] == list(range(len(cut)))
        found = []
        for block in cut:
            joined = b"".join(block.pieces)
            assert joined
            found += [joined[:20]] if block.too_long else joined.split(b"\n")[: joined.count(b"\n") + 1]
            assert block.too_long or joined.endswith(b"\n") or block is cut[-1]
            if not block.too_long and joined.endswith(b"\n"):
                found.pop()
        assert found == [line if len(line) <= 50 else line[:20] for line in _lines(read)]
