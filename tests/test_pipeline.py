"""A day streams through: the same bytes whoever does the work, every row accounted for, nothing of a torn export."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from server import blocks
from server.convert import Conversion, LogRules
from server.crew import Workers
from server.errors import ConversionFailed, DataFolderError, ExportTorn, SourceError
from server.job import Setup
from server.pipeline import Converted, SentLog, Tuning, convert_export
from server.samples import day_rows
from server.triton import ColumnSpec, Layout, LogFormat

from .reference_conversion import MemorySink, Slow, convert_slowly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

DAY = date(2026, 11, 20)
KEY = bytes(range(32))
SMALL = Tuning(block=20_000, small_export=0, held=1000)  # many blocks, always processes, everything spilled


def conversion(**rules: Any) -> Conversion:
    return Conversion(LogRules(**rules), KEY, day=DAY)


def export_file(folder: Path, data: bytes | Sequence[bytes], *, members: int = 1) -> Path:
    """A gzip file of these lines (or this text), in so many members."""
    text = data if isinstance(data, bytes) else b"".join(row + b"\n" for row in data)
    path = folder / "metrics-day-2026-11-20.json.gz"
    size = -(-len(text) // members) or 1
    pieces = [text[at : at + size] for at in range(0, len(text), size)] or [b""]
    path.write_bytes(b"".join(gzip.compress(piece, 1) for piece in pieces))
    return path


def convert(
    path: Path, made: Conversion | None = None, *, tuning: Tuning = SMALL, workers: int = 1, **more: Any
) -> tuple[Converted, MemorySink]:
    """Convert into memory; nothing may be left in the scratch folder."""
    sink = MemorySink()
    scratch = path.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    converted = convert_export(
        path, made or conversion(), sink, scratch=scratch, tuning=tuning, workers=workers, **more
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
    return [row.removesuffix(b"\n") for row in day_rows(DAY, rows, broken=True, **options)]


def with_repetitions(rows: list[bytes]) -> list[bytes]:
    """Rows near and far repeated, one with other fields, and a rejected row whose id comes again in a good one."""
    changed = orjson.dumps({**orjson.loads(rows[3]), "bytes_sent": 7, "filesize": 9})
    broken = orjson.dumps({**orjson.loads(rows[80]), "ip": None})
    filtered = orjson.dumps({**orjson.loads(rows[90]), "bytes_sent": 0})
    return [broken, filtered, *rows[:10], rows[9], changed, *rows[10:], *rows[100:200], changed, rows[5]]


@pytest.mark.parametrize("repeated", [False, True])
def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path, repeated: bool) -> None:
    """One, two and three workers, on every run, give the same files to the byte."""
    rows = with_repetitions(sample()) if repeated else [row for row in sample() if b"Again/1.0" not in row]
    path = export_file(tmp_path, rows)
    slow = convert_slowly(rows, conversion())
    outcomes = []
    for workers in (1, 2, 3, 2):
        converted, sink = convert(path, workers=workers)
        assert_is(slow, converted, sink)
        assert sink.restarts == repeated
        assert sink.rejects is not None
        outcomes.append((sink.logs[0].content, sink.rejects.content, converted))
    assert outcomes.count(outcomes[0]) == 4


@pytest.mark.parametrize("block", [1, 7, 300, 4096, 1 << 20])
def test_the_lines_are_the_same_for_any_size_of_blocks(tmp_path: Path, block: int) -> None:
    """Rows that straddle the edges of blocks are whole rows."""
    rows = with_repetitions(sample(250))
    converted, sink = convert(export_file(tmp_path, rows), tuning=Tuning(block=block, held=500))
    assert_is(convert_slowly(rows, conversion()), converted, sink)


@pytest.mark.parametrize(("block", "workers"), [(1, 1), (333, 1), (333, 2), (1 << 20, 1)])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n \r\n\t\n", "\n\u3000\u2028\n\x1c\n".encode()])
def test_line_ends_and_blank_lines_of_every_kind(tmp_path: Path, block: int, workers: int, end: bytes) -> None:
    """CRLF, blank lines, and a last line without its newline; line numbers count the blank ones."""
    rows = sample(20)
    text = "\u2003\n\n".encode() + b"\r\n".join(rows) + end
    slow = convert_slowly(text.split(b"\n"), conversion())
    tuning = Tuning(block=block, small_export=0)
    assert_is(slow, *convert(export_file(tmp_path, text), workers=workers, tuning=tuning))


@pytest.mark.parametrize("block", [1, 500, 1 << 20])
@pytest.mark.parametrize("comma", [b",\n", b"\n", b", \r\n", b",\r\n"])
@pytest.mark.parametrize(
    "end", [b"\n]", b"\n]\n", b"\r\n] \r\n\r\n \n", b",\n]\n", b"\n]\n]\n{}\n]\n", b"\n],\n]", b""]
)
def test_a_json_array_is_read_like_lines(tmp_path: Path, block: int, comma: bytes, end: bytes) -> None:
    """First line ``[``, elements with or without a comma, last line ``]``; any other bracket is a rejected row."""
    text = b"[\r\n" + comma.join(sample(20)) + end
    slow = convert_slowly(text.split(b"\n"), conversion(), array=True)
    assert_is(slow, *convert(export_file(tmp_path, text), tuning=Tuning(block=block)))


@pytest.mark.parametrize("text", [b"", b"\n", b"[\n]\n", b"[\n]", b"[", b"[\n", b"[\r", b" \n\xc2\xa0\n"])
def test_an_export_without_rows_is_one_log_with_its_header(tmp_path: Path, text: bytes) -> None:
    """Nothing in it is nothing wrong."""
    converted, sink = convert(export_file(tmp_path, text))
    assert converted.lines_per_log == [0]
    assert sink.texts == [Layout().header_lines(DAY)]
    assert converted.tally.rows == 0
    assert sink.rejects is None


@pytest.mark.parametrize("first", [b"[ ", b" [", b"[]", b"[{}", b"\n["])
def test_a_file_that_only_looks_like_an_array_is_read_as_lines(tmp_path: Path, first: bytes) -> None:
    """Only a first line that is exactly ``[`` begins an array."""
    text = first + b"\n" + b"\n".join(sample(5)) + b"\n]\n"
    slow = convert_slowly(text.split(b"\n"), conversion())
    assert slow.rejected[-1][1] == "malformed_json"
    assert_is(slow, *convert(export_file(tmp_path, text)))


def test_when_every_row_is_filtered_there_is_one_log_with_its_header(tmp_path: Path) -> None:
    """Rows without bytes leave a header and a tally."""
    rows = [orjson.dumps({**orjson.loads(row), "bytes_sent": 0}) for row in day_rows(DAY, 10)]
    converted, sink = convert(export_file(tmp_path, rows))
    assert (converted.lines_per_log, converted.tally.filtered) == ([0], {"no_bytes": 10})
    assert sink.texts == [Layout().header_lines(DAY)]


def test_several_gzip_members_and_zero_padding_are_one_export(tmp_path: Path) -> None:
    """As gzip itself reads them."""
    rows = sample(300)
    path = export_file(tmp_path, rows, members=7)
    path.write_bytes(path.read_bytes() + bytes(1000))
    assert_is(convert_slowly(rows, conversion()), *convert(path, workers=2))


def _damaged(whole: bytes) -> dict[str, bytes]:
    wrong_crc, wrong_size, wrong_bit = bytearray(whole), bytearray(whole), bytearray(whole)
    wrong_crc[-8] ^= 1
    wrong_size[-4] ^= 1
    wrong_bit[len(whole) // 2] ^= 0x10
    return {
        "empty": b"",
        "one byte": whole[:1],
        "half a header": whole[:6],
        "header only": whole[:10],
        "half": whole[: len(whole) // 2],
        "no trailer": whole[:-8],
        "half a trailer": whole[:-1],
        "wrong CRC": bytes(wrong_crc),
        "wrong size": bytes(wrong_size),
        "a flipped bit": bytes(wrong_bit),
        "something after it": whole + b"x",
        "padding and something after it": whole + bytes(20) + b"more",
        "half a second member": whole + whole[: len(whole) // 2],
        "a second member's beginning": whole + whole[:3],
        "not gzip": b'{"id": "not compressed"}\n',
        "zeros": bytes(100),
        "zlib": zlib.compress(b"{}\n"),
    }


@pytest.mark.parametrize(
    ("damage", "workers"),
    [*((damage, 1) for damage in _damaged(bytes(100))), ("half", 2), ("wrong CRC", 2), ("empty", 2)],
)
def test_a_damaged_export_is_never_converted(tmp_path: Path, damage: str, workers: int) -> None:
    """Cut, flipped, padded with something else, or no gzip at all: one sentence that names the file, and a hint."""
    path = export_file(tmp_path, sample(300))
    path.write_bytes(_damaged(path.read_bytes())[damage])
    with pytest.raises(ExportTorn, match=path.name) as caught:
        convert(path, workers=workers)
    assert "gzip -t" in caught.value.hint
    assert list((tmp_path / "scratch").iterdir()) == []


def test_an_export_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    """A missing file, and a folder, are no torn exports."""
    for path in (tmp_path / "nothing.json.gz", tmp_path):
        with pytest.raises(SourceError, match="cannot be read"):
            convert_export(path, conversion(), MemorySink(), scratch=tmp_path)


@pytest.mark.parametrize(("most", "workers"), [(1, 1), (7, 1), (100, 1), (100, 3), (569, 1), (10_000, 3)])
@pytest.mark.parametrize("layout", [Layout(), Layout(LogFormat.W3C), Layout(header="none")])
def test_logs_are_cut_exactly_by_lines(tmp_path: Path, most: int, workers: int, layout: Layout) -> None:
    """Every file but the last has exactly so many lines, its own header, and the order goes on from file to file."""
    rows = sample(600)
    made = conversion(layout=layout)
    slow = convert_slowly(rows, made)
    converted, sink = convert(export_file(tmp_path, rows), made, workers=workers, max_rows_per_file=most)
    count = len(slow.lines)
    assert converted.lines_per_log == [min(most, count - at) for at in range(0, count, most)]
    header = layout.header_lines(DAY)
    for number, text in enumerate(sink.texts):
        assert text == header + "".join(slow.lines[number * most : (number + 1) * most])


def test_cutting_by_lines_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    """The bytes of every file, too."""
    path = export_file(tmp_path, sample(500))
    contents = [[log.content for log in convert(path, workers=w, max_rows_per_file=111)[1].logs] for w in (1, 2, 3)]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("block", [100_003, 1 << 20])
@pytest.mark.parametrize("extra", [0, 1])
def test_a_line_over_16_mib_is_malformed_and_its_beginning_is_kept(tmp_path: Path, block: int, extra: int) -> None:
    """Exactly 16 MiB is still read; one byte more is not, wherever it stands."""
    row = orjson.dumps({**orjson.loads(next(day_rows(DAY, 1))), "id": "long", "x": ""})
    long = row[:-2] + b"x" * (blocks.LINE_LIMIT + extra - len(row)) + row[-2:]
    assert len(long) == blocks.LINE_LIMIT + extra
    rows = sample(50)
    text = b"\n".join([*rows[:25], long, *rows[25:], long])
    path = tmp_path / "metrics-day-2026-11-20.json.gz"
    path.write_bytes(gzip.compress(text, 1))
    converted, sink = convert(path, tuning=Tuning(block=block))
    plain = convert_slowly(rows, conversion()).tally
    assert converted.tally.rows == plain.rows + 2
    assert converted.tally.rejected["malformed_json"] == plain.rejected["malformed_json"] + 2 * extra
    assert converted.tally.rejected["duplicate_id"] == plain.rejected["duplicate_id"] + (not extra)
    entries = {entry["line"]: entry for entry in sink.reject_entries}
    for number in (26, len(rows) + 2) if extra else (len(rows) + 2,):
        assert entries[number]["raw"] == long[: 64 << 10].decode()


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b"\xff{\\\x00\x9f", "\\xff{\\\x00\\x9f"),
        (b"a\r", "a"),
        (b"x" * 70_000, "x" * 65_536),
        (b"x" * 65_535 + "é".encode() + b"y", "x" * 65_535),
        ("é".encode() * 40_000, "é" * 32_768),
        (b"\xe2\x82", "\\xe2\\x82"),
    ],
)
def test_the_text_of_a_rejected_row_is_at_most_64_kib(tmp_path: Path, raw: bytes, kept: str) -> None:
    """Bytes that are no text are written as ``\\xNN``, and a character is never cut in two."""
    converted, sink = convert(export_file(tmp_path, b"\n" + raw + b"\n"))
    assert converted.tally.rejected == {"malformed_json": 1}
    assert sink.reject_entries == [{"line": 2, "reason": "malformed_json", "raw": kept}]


def test_bytes_that_are_no_text_never_make_the_kept_text_longer_than_64_kib(tmp_path: Path) -> None:
    """Escaping makes it longer, so it is cut after that."""
    _, sink = convert(export_file(tmp_path, b"\xff" * 60_000))
    (entry,) = sink.reject_entries
    assert entry["raw"] == "\\xff" * 16_384


def test_progress_tells_how_much_of_the_export_was_read(tmp_path: Path) -> None:
    """It never goes back within a pass, and ends at the size of the file."""
    path, told = export_file(tmp_path, sample(600)), list[int]()
    convert(path, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == path.stat().st_size


def published(sink: MemorySink, layout: Layout) -> list[SentLog]:
    """The logs of a conversion, as the service hands them back."""
    return [SentLog(layout, lambda content=log.content: BytesIO(content)) for log in sink.logs]  # type: ignore[misc]


LAYOUTS = [
    Layout(),
    Layout(LogFormat.W3C),
    Layout(header="comment"),
    Layout(header="none", text="percent"),
    Layout(columns=(ColumnSpec("id", value="x-metric-id"), ColumnSpec("ua", value="user-agent"))),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("workers", [1, 2])
def test_late_rows_are_the_ones_that_were_not_sent(tmp_path: Path, layout: Layout, workers: int) -> None:
    """A first version, then the whole day: together every line once; changed and removed rows are counted."""
    made = conversion(layout=layout)
    day = with_repetitions(sample(500))
    odd = [orjson.dumps({**orjson.loads(day[30]), "id": f'o"d{n}\t%', "user_agent": f"odd {n}"}) for n in range(6)]
    first = [*day[:350], *odd[:4]]
    _, sent = convert(export_file(tmp_path, first), made, workers=workers, max_rows_per_file=100)
    cells = convert_slowly(first, made).cells
    second = [*odd[1:], *day[20:60], *[_changed(row) for row in day[60:70]], *day[70:]]
    slow = convert_slowly(second, made, sent=cells)
    converted, sink = convert(
        export_file(tmp_path, second), made, workers=workers, sent=published(sent, layout), max_rows_per_file=150
    )
    header = layout.header_lines(DAY)
    assert "".join(text.removeprefix(header) for text in sink.texts) == "".join(slow.lines)
    assert converted.tally.as_json() == slow.tally.as_json()
    assert [(entry["line"], entry["reason"]) for entry in sink.reject_entries] == slow.rejected
    lines_now = {line.removesuffix("\n") for line in convert_slowly(second, made).lines}
    sent_lines = {line for text in sent.texts for line in text.removeprefix(header).splitlines()}
    now_cells = set(convert_slowly(second, made).cells)
    gone = set(cells) - now_cells - _filtered_cells(second, made)
    assert converted.removed == len(gone) > 0
    assert converted.changed == len(sent_lines - lines_now) - len(gone) > 0


def _changed(row: bytes) -> bytes:
    try:
        fields = orjson.loads(row)
    except orjson.JSONDecodeError:
        return row
    return orjson.dumps({**fields, "user_agent": "changed"}) if isinstance(fields, dict) else row


def _filtered_cells(rows: list[bytes], made: Conversion) -> set[str]:
    every = Conversion(LogRules(layout=made.rules.layout, rows="all"), KEY, day=DAY)
    no_bytes = [row.replace(b'"bytes_sent":0,', b'"bytes_sent":1,') for row in rows]
    return set(convert_slowly(no_bytes, every).cells)


def test_when_nothing_is_late_no_log_is_opened(tmp_path: Path) -> None:
    """The same version again has no new line, no changed and no removed one."""
    rows = with_repetitions(sample(300))
    path = export_file(tmp_path, rows)
    first, sent = convert(path)
    again, sink = convert(path, sent=published(sent, Layout()), workers=2)
    assert (again.lines_per_log, sink.logs, again.changed, again.removed) == ([], [], 0, 0)
    assert again.tally.filtered["sent_before"] == first.tally.lines
    assert again.tally.reporting == first.tally.reporting
    assert again.tally.rejected == first.tally.rejected


def test_a_sent_row_that_would_now_be_filtered_or_rejected_is_changed(tmp_path: Path) -> None:
    """Neither is sent again, and neither is taken for removed."""
    rows = [row.removesuffix(b"\n") for row in day_rows(DAY, 40, tokens_share=0)]
    _, sent = convert(export_file(tmp_path, rows), conversion(rows="all"))
    rows[5] = orjson.dumps({**orjson.loads(rows[5]), "bytes_sent": 0})
    rows[6] = orjson.dumps({**orjson.loads(rows[6]), "ip": ""})
    del rows[7]
    again, sink = convert(export_file(tmp_path, rows), conversion(rows="all"), sent=published(sent, Layout()))
    assert (again.changed, again.removed, sink.logs) == (2, 1, [])
    assert again.tally.filtered == {"sent_before": 38}
    assert again.tally.rejected == {"no_ip": 1}


def test_rows_created_too_late_are_held_back_and_come_with_the_next_file(tmp_path: Path) -> None:
    """Filtered as too fresh the first time, sent the second: every line once."""
    rows = sample(400)
    path = export_file(tmp_path, rows)
    made, limit = conversion(), "2026-11-20 18:00:00"
    first, sent = convert(path, workers=2, fresh_after=limit)
    slow = convert_slowly(rows, made, fresh_after=limit)
    assert_is(slow, first, sent)
    assert first.tally.filtered["too_fresh"] > 50
    late, sink = convert(path, sent=published(sent, Layout()))
    assert late.changed == late.removed == 0
    assert sorted(slow.lines + sink.texts[0].splitlines(keepends=True)[1:]) == sorted(convert_slowly(rows, made).lines)
    still, _ = convert(path, sent=published(sent, Layout()), fresh_after=limit)
    assert still.tally.filtered["sent_before"] == first.tally.lines
    assert still.tally.filtered["too_fresh"] == first.tally.filtered["too_fresh"]
    assert still.lines_per_log == []


def test_a_damaged_published_log_is_the_data_folders_fault(tmp_path: Path) -> None:
    """It is not the export that is torn."""
    path = export_file(tmp_path, sample(50))
    _, sent = convert(path)
    torn = SentLog(Layout(), lambda: BytesIO(sent.logs[0].content[:-4]))
    with pytest.raises(DataFolderError, match="damaged"):
        convert(path, sent=[torn])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_told_as_such(tmp_path: Path, workers: int) -> None:
    """What the sink's file says becomes a sentence with a hint."""

    class FullSink(MemorySink):
        """Its disk takes nothing."""

        def open_log(self, index: int) -> BinaryIO:  # type: ignore[override]  # a real file this time
            return Path("/dev/full").open("wb", buffering=0)

    with pytest.raises(DataFolderError, match="No space left") as caught:
        convert_export(
            export_file(tmp_path, sample(300)),
            conversion(),
            FullSink(),
            scratch=tmp_path,
            workers=workers,
            tuning=SMALL,
        )
    assert caught.value.hint.startswith("df -h")


def _all_children() -> set[int]:
    """The processes that any thread of this one has started and not waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_fails_the_conversion_and_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    """One sentence that names the signal; no process and no file remains."""
    path = export_file(tmp_path, sample(2000))
    before = _all_children()

    def kill(_: int) -> None:
        for child in _all_children() - before:
            os.kill(child, how)

    with pytest.raises(ConversionFailed, match=f"signal {how.value}"):
        convert(path, workers=2, progress=kill)
    assert _all_children() == before
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_from_another_thread_ends_everything_at_once(tmp_path: Path, workers: int) -> None:
    """The conversion raises, and its processes are gone."""
    path, stop, before = export_file(tmp_path, sample(3000)), threading.Event(), _all_children()
    with pytest.raises(ConversionFailed, match="stopped"):
        convert(path, workers=workers, stop=stop, progress=lambda _: stop.set())
    assert _all_children() == before


def test_an_error_of_the_sink_ends_the_workers(tmp_path: Path) -> None:
    """Whatever ends the conversion, no process outlives it."""
    path, before = export_file(tmp_path, sample(2000)), _all_children()

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, workers=2, progress=fail)
    assert _all_children() == before


_ORPHANS = """
import sys, time
from pathlib import Path
from tests.test_pipeline import SMALL, conversion
from tests.reference_conversion import MemorySink
from server.pipeline import convert_export

def wait(_):
    import os
    children = [c for task in Path("/proc/self/task").iterdir() for c in (task / "children").read_text().split()]
    print(*children, flush=True)
    time.sleep(60)

export, scratch = map(Path, sys.argv[1:])
convert_export(export, conversion(), MemorySink(), scratch=scratch, workers=2, tuning=SMALL, progress=wait)
"""


def test_workers_end_when_the_service_is_killed(tmp_path: Path) -> None:
    """Even kill -9, which no process can handle, leaves no worker behind, and no file."""
    path, scratch = export_file(tmp_path, sample(2000)), tmp_path / "scratch"
    scratch.mkdir()
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", _ORPHANS, str(path), str(scratch)], stdout=subprocess.PIPE, cwd=root
    ) as service:
        assert service.stdout is not None
        workers = [int(word) for word in service.stdout.readline().split()]
        assert len(workers) == 2
        service.kill()
    deadline = time.monotonic() + 20
    while any(_is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_is_running(worker) for worker in workers)
    assert list(scratch.iterdir()) == []


def _is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_workers_know_nothing_of_systemd_and_need_no_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get no notify socket, and a folder with a server.py of its own is no trap."""
    (tmp_path / "server.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "server").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"):
        monkeypatch.setenv(name, "1")
    rows = sample(100)
    assert_is(convert_slowly(rows, conversion()), *convert(export_file(tmp_path, rows), workers=2))
    with Workers(1, Setup(conversion()), threading.Event()):
        (worker,) = _all_children()
        environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
        assert not [entry for entry in environment if entry.startswith((b"NOTIFY_", b"WATCHDOG_", b"LISTEN_"))]
        descriptors = [Path(f"/proc/{worker}/fd/{n}").resolve() for n in (0, 1)]
        assert all(path.name.startswith("pipe:") for path in descriptors)


def test_a_small_export_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a few megabytes the calling thread does it all."""

    def refuse(*_: object, **__: object) -> Callable[[], None]:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    rows = sample(50)
    path = export_file(tmp_path, rows)
    assert_is(convert_slowly(rows, conversion()), *convert(path, workers=4, tuning=Tuning()))
    assert_is(convert_slowly(rows, conversion()), *convert(path, workers=1, tuning=SMALL))


def test_the_engine_needs_neither_the_network_nor_ssh() -> None:
    """A conversion by hand imports neither asyncssh nor aiobotocore, nor asyncio itself."""
    code = (
        "import sys, server.pipeline; "
        "print([m for m in ('asyncssh', 'aiobotocore', 'asyncio', 'pydantic', 'structlog') if m in sys.modules])"
    )
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"
