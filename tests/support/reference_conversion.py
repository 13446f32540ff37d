"""A day converted the slow way, row by row and by the exact rules, and what it takes to compare the engine with it."""

from __future__ import annotations

import gzip
import io
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson

from server.cli.samples import day_rows
from server.convert.conversion import Conversion
from server.convert.day import Converted, Export, Tuning, convert_export
from server.convert.kernel import load_kernel
from server.convert.row import RowConverter
from server.convert.tally import FilterReason, RejectReason, RowRejected, Tally
from server.triton import Layout, LogRules

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from server.convert.kernel import Kernel
    from server.convert.row import Outcome

DAY = date(2026, 11, 20)
KEY = bytes(range(32))
SMALL = Tuning(block=20_000, held=1000)  # many blocks, everything spilled
KERNEL = load_kernel()


@dataclass
class Slow:
    """What came of a day."""

    lines: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)


def convert_slowly(
    rows: Sequence[bytes],
    conversion: Conversion,
    *,
    sent: Collection[str] = (),
    fresh_after: str | None = None,
    array: bool = False,
    exact: RowConverter | None = None,
) -> Slow:
    """The lines, the tally, and number and reason of each rejected row; ``rows`` are the lines of the export."""
    converter, slow, seen, numbers = exact or RowConverter(conversion), Slow(), set[str](), Counter[str]()
    closing = None
    if array:
        last = max((n for n, row in enumerate(rows) if row.decode(errors="replace").strip()), default=-1)
        closing = last if rows[last].strip() == b"]" else None
    for number, raw in enumerate(rows):
        text = raw.decode(errors="surrogateescape")
        if not text.strip() or (array and number in (0, closing)):
            continue
        slow.tally.rows += 1
        row = raw
        if array and len(raw.strip()) > 1 and raw.rstrip(b" \t\r\n").endswith(b","):
            row = raw.rstrip(b" \t\r\n")[:-1]
        try:
            outcome = converter.convert(row)
            if outcome.derived and outcome.filtered is None:
                numbers[outcome.id] += 1
                outcome = converter.convert(row, numbers[outcome.id] - 1)
            elif not outcome.derived:
                outcome = _first_of_its_id(outcome, seen)
        except RowRejected as rejection:
            slow.tally.rejected[rejection.reason] += 1
            slow.rejected.append((number + 1, str(rejection.reason)))
            continue
        cell = conversion.rules.layout.id_cell(outcome.id)
        known = not (outcome.derived and outcome.filtered is not None)
        _count(outcome, slow, cell, sent_before=known and cell in sent, fresh_after=fresh_after)
    return slow


def _first_of_its_id(outcome: Outcome, seen: set[str]) -> Outcome:
    if outcome.id in seen:
        raise RowRejected(RejectReason.DUPLICATE_ID)
    seen.add(outcome.id)
    return outcome


def _count(outcome: Outcome, slow: Slow, cell: str, *, sent_before: bool, fresh_after: str | None) -> None:
    tally = slow.tally
    tally.reporting += outcome.reporting
    reason = FilterReason.SENT_BEFORE if sent_before else outcome.filtered
    if reason is None and fresh_after is not None and outcome.created_at >= fresh_after:
        reason = FilterReason.TOO_FRESH
    if reason is not None:
        tally.filtered[reason] += 1
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
    slow.lines.append(f"{outcome.line}\n")
    slow.cells.append(cell)


class MemorySink:
    """A sink that keeps what is written, and how often it was begun again."""

    def __init__(self) -> None:
        self.logs: list[KeptFile] = []
        self.rejects: KeptFile | None = None
        self.restarts = 0

    def restart(self) -> None:
        self.logs, self.rejects = [], None
        self.restarts += 1

    def open_log(self, index: int) -> KeptFile:
        assert index == len(self.logs)
        assert not self.logs or self.logs[-1].closed
        self.logs.append(KeptFile())
        return self.logs[-1]

    def open_rejects(self) -> KeptFile:
        assert self.rejects is None
        self.rejects = KeptFile()
        return self.rejects

    @property
    def texts(self) -> list[str]:
        """The text of each log; each must be one gzip member without time and name."""
        for log in self.logs:
            assert log.closed
            assert log.content.startswith(b"\x1f\x8b\x08\x00\x00\x00\x00\x00")
        return [gzip.decompress(log.content).decode() for log in self.logs]

    @property
    def reject_entries(self) -> list[dict[str, object]]:
        """The entries of the rejects file."""
        if self.rejects is None:
            return []
        assert self.rejects.closed
        return [orjson.loads(line) for line in gzip.decompress(self.rejects.content).splitlines()]


class KeptFile(io.BytesIO):
    """A file whose content is still there when it is closed."""

    content = b""

    def close(self) -> None:
        if not self.closed:
            self.content = self.getvalue()
        super().close()


def conversion(**rules: Any) -> Conversion:
    return Conversion(LogRules(**rules), KEY, day=DAY)


def export_file(folder: Path, data: bytes | Sequence[bytes], *, members: int = 1) -> Path:
    """A gzip file of these lines (or this text), in this many members."""
    text = data if isinstance(data, bytes) else b"".join(row + b"\n" for row in data)
    path = folder / "metrics-day-2026-11-20.json.gz"
    size = -(-len(text) // members) or 1
    pieces = [text[at : at + size] for at in range(0, len(text), size)] or [b""]
    path.write_bytes(b"".join(gzip.compress(piece, 1) for piece in pieces))
    return path


def opened(path: Path) -> Export:
    """An export on disk."""
    return Export(str(path), lambda: path.open("rb", buffering=0))


def convert(
    path: Path, made: Conversion | None = None, *, tuning: Tuning = SMALL, kernel: Kernel | None = KERNEL, **more: Any
) -> tuple[Converted, MemorySink]:
    """Convert into memory; nothing may be left in the scratch folder."""
    sink = MemorySink()
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    converted = convert_export(
        opened(path), made or conversion(), sink, kernel=lambda: kernel, scratch=scratch, tuning=tuning, **more
    )
    assert list(scratch.iterdir()) == []
    assert converted.lines_per_log == [
        text.count("\n") - len((made or conversion()).rules.layout.header_lines(DAY).splitlines())
        for text in sink.texts
    ]
    assert converted.tally.balanced
    return converted, sink


def assert_is(slow: Slow, converted: Converted, sink: MemorySink, header: str | None = None) -> None:
    """The outcome is that of the slow conversion."""
    header = Layout().header_lines(DAY) if header is None else header
    assert "".join(sink.texts).split("\n") == (header + "".join(slow.lines)).split("\n")
    assert converted.tally.as_json() == slow.tally.as_json()
    assert [(entry["line"], entry["reason"]) for entry in sink.reject_entries] == slow.rejected


def sample(rows: int = 600, **options: Any) -> list[bytes]:
    return list(_sampled(rows, **options))


@cache
def _sampled(rows: int, **options: Any) -> tuple[bytes, ...]:
    return tuple(row.removesuffix(b"\n") for row in day_rows(DAY, rows, broken=True, **options))


def with_repetitions(rows: list[bytes]) -> list[bytes]:
    """Rows near and far repeated, one with other fields, and a rejected row whose id comes again in a good one."""
    changed = orjson.dumps({**orjson.loads(rows[3]), "bytes_sent": 7, "filesize": 9})
    broken = orjson.dumps({**orjson.loads(rows[80]), "ip": None})
    filtered = orjson.dumps({**orjson.loads(rows[90]), "bytes_sent": 0})
    return [broken, filtered, *rows[:10], rows[9], changed, *rows[10:], *rows[100:200], changed, rows[5]]
