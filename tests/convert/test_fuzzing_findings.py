"""What fuzzing and hostile exports found in the conversion, each as the smallest case of it."""

from __future__ import annotations

import gc
import gzip
import io
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from server.config import load_config
from server.convert import block, lines
from server.convert.block import BlockConverter
from server.convert.conversion import Conversion
from server.convert.day import SentLog, Tuning
from server.convert.job import Job, Task
from server.convert.lines import GzipText
from server.errors import ConfigError, ExportTorn
from server.triton import ColumnSpec, Layout, LogRules

from ..support.reference_conversion import DAY, KERNEL, KEY, assert_is, convert, convert_slowly, export_file
from ..support.rows import row

if TYPE_CHECKING:
    from pathlib import Path

ID_FIRST = Layout(columns=(ColumnSpec("id", value="x-metric-id"), ColumnSpec("day", value="date")))


def own(number: object, **changes: object) -> bytes:
    return row(**{"id": f"{number}", "created_at": f"{DAY}T12:00:00Z", **changes})


@pytest.mark.parametrize("blank", ["\u00a0\u3000", "\u2028", "\x1c", "\x85"])
def test_an_element_of_an_array_that_is_only_blanks_is_a_malformed_row(tmp_path: Path, blank: str) -> None:
    """It was taken for a blank line, which is not a row: it was neither counted nor kept."""
    lines = [b"[", own(1) + b",", f"{blank},".encode(), own(2), b"]"]
    made = Conversion(LogRules(), KEY, day=DAY)
    converted, sink = convert(export_file(tmp_path, lines), made)
    assert_is(convert_slowly(lines, made, array=True), converted, sink)
    assert converted.tally.rejected == {"malformed_json": 1}


def test_a_late_row_whose_id_begins_its_line_with_a_number_sign_is_not_sent_again(tmp_path: Path) -> None:
    """In a line, a first cell that begins with # is written %23; the id was looked for without that."""
    lines = [own("#1"), own("#2"), own("plain")]
    made = Conversion(LogRules(ID_FIRST), KEY, day=DAY)
    _, before = convert(export_file(tmp_path, lines), made)
    sent = [SentLog(ID_FIRST, lambda: io.BytesIO(before.logs[0].content))]
    again, late = convert(export_file(tmp_path, [*lines, own("#3")]), made, sent=sent)
    assert again.tally.filtered == {"sent_before": 3}
    assert (again.changed, again.removed) == (0, 0)
    assert [text.splitlines()[1:] for text in late.texts] == [[f"%233\t{DAY}"]]


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"1" * 400, b"[1e400]", b'{"a":1e999}'])
@pytest.mark.parametrize("url", ["/{podcast_id}.mp3", "/{podcast_id}/{city}.mp3"])
@pytest.mark.parametrize("beside", [{}, {"user_agent": "Gerät"}])
def test_a_number_that_no_double_holds_makes_a_row_malformed_in_whatever_field(
    tmp_path: Path, number: bytes, url: str, beside: dict[str, str]
) -> None:
    """Also in a field that no line shows; and when the row's id comes twice, so that it is looked at again."""
    bad = own(2, duration="@", **beside).replace(b'"@"', number)
    lines = [own(1), bad, own(3), bad, own(1)]
    made = Conversion(LogRules(url=url), KEY, day=DAY)
    converted, sink = convert(export_file(tmp_path, lines), made)
    assert_is(convert_slowly(lines, made), converted, sink)
    assert converted.tally.rejected == {"malformed_json": 2, "duplicate_id": 1}


def test_a_key_that_is_nothing_is_named_in_its_problem(tmp_path: Path) -> None:
    """TOML lets a key be empty: a problem without a name says nothing to anybody."""
    (tmp_path / "config.toml").write_text('[""]\n[export]\n"" = 1\n')
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "config.toml")
    assert {'""', 'export.""'} <= {problem.key for problem in refused.value.problems}


@pytest.mark.parametrize("flag", [b"\x08", b"\x10"])
def test_a_gzip_header_without_an_end_is_a_torn_export(flag: bytes) -> None:
    """A name or a comment of megabytes: the library that unpacks has no room for it."""
    file = b"\x1f\x8b\x08" + flag + bytes(6) + b"n" * (2 << 20)
    with GzipText(io.BytesIO(file), "export") as text, pytest.raises(ExportTorn, match="is not a complete gzip file"):
        text.read(1 << 20)


def test_objects_nested_as_deep_as_may_be_are_read_alike_on_every_path(tmp_path: Path) -> None:
    """The reader of the exact rules stops at 1024; no faster one may go on, nor fall over."""
    lines = [
        own(n, city="@").replace(b'"@"', b"[" * depth + b"]" * depth) for n, depth in enumerate((1000, 1022, 1023))
    ]
    lines += [own(n, city="@").replace(b'"@"', b"[" * n + b"]" * n) for n in (1024, 1025, 10_000, 100_000)]
    made = Conversion(LogRules(), KEY, day=DAY)
    converted, sink = convert(export_file(tmp_path, lines), made)
    assert_is(convert_slowly(lines, made), converted, sink)
    assert orjson.loads(lines[0])
    assert converted.tally.lines + converted.tally.rejected["malformed_json"] == len(lines)


def test_a_large_gzip_header_with_an_end_is_read() -> None:
    """A comment of some kilobytes is nobody's mistake."""
    whole = gzip.compress(b"row\n", mtime=0)
    file = whole[:3] + b"\x10" + whole[4:10] + b"c" * 100_000 + b"\0" + whole[10:]
    with GzipText(io.BytesIO(file), "export") as text:
        assert text.read(100) == b"row\n"
        assert text.read(100) == b""


@pytest.mark.parametrize(
    ("field", "text"),
    [("user_agent", "x" * 200_000), ("ip", "x" * 200_000), ("created_at", f"{DAY}T12:00:00.{'0' * 200_000}")],
)
def test_long_values_leave_nothing_behind(field: str, text: str) -> None:
    """Fifty thousand user agents of a megabyte would be remembered, each in its column's memo: 50 GB."""
    converter = BlockConverter(KERNEL, Conversion(LogRules(), KEY, day=DAY))

    def do(number: int) -> None:
        rows = [own(f"{number}-{n}", **{field: f"{text}{number:02}{n:02}"}) for n in range(10)]
        assert converter.do(Job(number, Task.RENDER, (b"\n".join(rows),))).tally.lines == 10

    do(0)
    tracemalloc.start()
    try:
        for number in range(1, 6):
            do(number)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 * len(text)


@pytest.mark.parametrize("more", [{"ip": None}, {"city": "@"}, {"city": "@", "id": None}])
def test_the_objects_of_a_row_are_in_memory_once(more: dict[str, Any]) -> None:
    """A line of 16 MiB can take 800 MiB as objects: twice that killed the process, and so the day, for good."""
    nested = b'{"":' * 900 + b"0" + b"}" * 900
    raw = own(1, source="!", **more).replace(b'"!"', b"[" + b",".join([nested] * 5) + b"]").replace(b"@", rb"\ud800")
    converter = BlockConverter(None, Conversion(LogRules(), KEY, day=DAY))
    job = Job(0, Task.RENDER, (raw,))
    converter.do(job)  # what it loads and keeps
    tracemalloc.start()
    try:
        fields = orjson.loads(raw.replace(rb"\ud800", b""))
        _, once = tracemalloc.get_traced_memory()
        del fields
        tracemalloc.reset_peak()
        assert converter.do(job).tally.rows == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert once < peak < 1.5 * once


def test_large_rows_are_read_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads there are: what one may take is all that the process is allowed."""
    monkeypatch.setattr(block, "_LARGE", 1)
    converter, inside, most = BlockConverter(None, Conversion(LogRules(), KEY, day=DAY)), [0], [0]
    exact = converter._exact.convert

    def counted(raw: bytes) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.001)  # lets another thread in
        inside[0] -= 1
        return exact(raw)

    monkeypatch.setattr(converter._exact, "convert", counted)
    jobs = [Job(n, Task.RENDER, (b"\n".join(own(f"{n}-{k}") for k in range(10)),)) for n in range(6)]
    with ThreadPoolExecutor(3) as threads:
        assert [result.tally.lines for result in threads.map(converter.do, jobs)] == [10] * 6
    assert most == [1]


def test_a_line_may_be_longer_than_a_row_and_is_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotes take three bytes in a line: a published line over the limit of rows was not found among those sent."""
    monkeypatch.setattr(lines, "LINE_LIMIT", 5000)
    rows = [own(1), own(2, user_agent='"' * 2000, city='"' * 200), own(3)]
    made = Conversion(LogRules(), KEY, day=DAY)
    _, before = convert(export_file(tmp_path, rows), made)
    sent = [SentLog(Layout(), lambda: io.BytesIO(before.logs[0].content))]
    tuning = Tuning(block=1000)
    again, late = convert(export_file(tmp_path, [*rows, own(4)]), made, sent=sent, tuning=tuning)
    assert (again.tally.filtered, again.changed, again.removed) == ({"sent_before": 3}, 0, 0)
    assert [text.count("\n") for text in late.texts] == [2]


def test_a_block_of_nothing_but_rejected_rows_is_small() -> None:
    """Half a million of two bytes in a mebibyte took 160 MiB, and several blocks wait for the one before them."""
    converter = BlockConverter(None, Conversion(LogRules(), KEY, day=DAY))
    converter.do(Job(0, Task.RENDER, (b"x\n",)))
    tracemalloc.start()
    try:
        result = converter.do(Job(1, Task.RENDER, (b"x\n" * 5000,)))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(result.rejects) == 5000
    assert held < 80 * 5000 and peak < 200 * 5000


def test_an_endless_line_is_no_silence(tmp_path: Path) -> None:
    """Whoever waits for the process ends one that says nothing: a terabyte without a newline takes long."""
    seen: list[int] = []
    export = export_file(tmp_path, own(1, city="x" * 20_000), members=20)
    convert(export, tuning=Tuning(block=1000), progress=seen.append)
    assert len(seen) > 20 and seen[-1] == export.stat().st_size
