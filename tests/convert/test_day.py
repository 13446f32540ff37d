"""A day streams through: the same bytes whoever does the work, every row accounted for, nothing of a torn export."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from server.cli.samples import day_rows
from server.convert import lines as blocks
from server.convert.day import SentLog, Tuning, _Threads, convert_export
from server.convert.job import Job, Result, Task
from server.convert.lines import GzipText
from server.convert.log_writer import HISTORY, deflate, inflate
from server.errors import DataFolderError, ExportTorn, SourceError
from server.triton import Layout, LogFormat

from ..support.odd_rows import GOOD
from ..support.reference_conversion import (
    DAY,
    KERNEL,
    SMALL,
    MemorySink,
    assert_is,
    conversion,
    convert,
    convert_slowly,
    export_file,
    opened,
    sample,
    with_repetitions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from server.convert.kernel import Kernel

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("repeated", [False, True])
def test_the_bytes_are_the_same_for_any_number_of_threads(tmp_path: Path, repeated: bool) -> None:
    """One, two and three threads, on every run, with the kernel or the exact way, give the same files to the byte."""
    rows = with_repetitions(sample()) if repeated else [row for row in sample() if b"Again/1.0" not in row]
    path = export_file(tmp_path, rows)
    slow = convert_slowly(rows, conversion())
    outcomes = []
    for threads, kernel in ((1, KERNEL), (2, KERNEL), (3, KERNEL), (2, KERNEL), (1, None), (3, None)):
        converted, sink = convert(path, threads=threads, kernel=kernel)
        assert_is(slow, converted, sink)
        assert sink.restarts == repeated
        assert sink.rejects is not None
        outcomes.append((sink.logs[0].content, gzip.decompress(sink.rejects.content), converted))
    assert outcomes.count(outcomes[0]) == 6


@pytest.mark.parametrize(("size", "ahead"), [(10, 13), (40, 4), (80, 2), (1000, 2)])
def test_lines_that_are_long_are_not_gathered(size: int, ahead: int) -> None:
    """Of blocks of 10 bytes three threads have at most twelve under way, of longer ones as many bytes, but one always.

    With eight threads lines of 16 MiB filled 900 MB.
    """
    taken = []

    def jobs() -> Iterator[Job]:
        for number in range(50):
            taken.append(number)
            yield Job(number, Task.RENDER, (bytes(size),))

    with _Threads(3, lambda: lambda job: Result(job.number), 10) as pool:
        results = pool.run(jobs())
        assert next(results).number == 0
        assert len(taken) == ahead
        assert [result.number for result in results] == list(range(1, 50))


def test_equal_text_is_packed_to_equal_bytes_wherever_it_lies() -> None:
    """In a thousand places of memory; texts shorter than the part that is stored are whole, too."""
    texts = [b"%d026-11-20\t12:00:00\t192.0.2.1\n" % number * 40 for number in range(111, 999, 111)]
    first, elsewhere = [deflate(text, 40) for text in texts], []
    for _ in range(1000):
        elsewhere.append(bytearray(82_000))  # of the size of a packer
        assert [deflate(text, 40) for text in texts] == first
    assert [inflate(piece) for piece in first] == texts
    for size in (1, HISTORY - 1, HISTORY, HISTORY + 1):
        assert inflate(deflate(texts[0][:size], 0)) == texts[0][:size]


@pytest.mark.parametrize("block", [1, 7, 300, 4096, 1 << 20])
def test_the_lines_are_the_same_for_any_size_of_blocks(tmp_path: Path, block: int) -> None:
    """Rows that straddle the edges of blocks are whole rows."""
    rows = with_repetitions(sample(100 if block < 100 else 250))
    converted, sink = convert(export_file(tmp_path, rows), tuning=Tuning(block=block, held=500))
    assert_is(convert_slowly(rows, conversion()), converted, sink)


@pytest.mark.parametrize(("block", "threads"), [(1, 1), (333, 1), (333, 2), (1 << 20, 1)])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n \r\n\t\n", "\n\u3000\u2028\n\x1c\n".encode()])
def test_line_ends_and_blank_lines_of_every_kind(tmp_path: Path, block: int, threads: int, end: bytes) -> None:
    """CRLF, blank lines, and a last line without its newline; line numbers count the blank ones."""
    rows = sample(20)[:: 4 if block == 1 else 1]
    text = "\u2003\n\n".encode() + b"\r\n".join(rows) + end
    slow = convert_slowly(text.split(b"\n"), conversion())
    tuning = Tuning(block=block)
    assert_is(slow, *convert(export_file(tmp_path, text), threads=threads, tuning=tuning))


@pytest.mark.parametrize("block", [1, 500, 1 << 20])
@pytest.mark.parametrize("comma", [b",\n", b"\n", b", \r\n", b",\r\n"])
@pytest.mark.parametrize("end", [b"\n]", b"\n]\n", b"\r\n] \r\n\r\n \n", b",\n]\n", b"\n]\n]\n{}\n]\n", b"\n],\n]"])
def test_a_json_array_is_read_like_lines(tmp_path: Path, block: int, comma: bytes, end: bytes) -> None:
    """First line ``[``, elements with or without a comma, last line ``]``; any other bracket is a rejected row."""
    text = b"[\r\n" + comma.join(sample(20)[:: 4 if block == 1 else 1]) + end
    slow = convert_slowly(text.split(b"\n"), conversion(), array=True)
    assert_is(slow, *convert(export_file(tmp_path, text), tuning=Tuning(block=block)))


@pytest.mark.parametrize("text", [b"", b"\n", b"[\n]\n", b"[\n]", b"[\r\n]\r", b" \n\xc2\xa0\n", MARK])
def test_an_export_without_rows_is_one_log_with_its_header(tmp_path: Path, text: bytes) -> None:
    """Nothing in it is nothing wrong."""
    converted, sink = convert(export_file(tmp_path, text))
    assert converted.lines_per_log == [0]
    assert sink.texts == [Layout().header_lines(DAY)]
    assert converted.tally.rows == 0
    assert sink.rejects is None


ROW, LAST = (orjson.dumps({**GOOD, "id": row_id}) for row_id in ("first", "last"))


@pytest.mark.parametrize("kernel", [KERNEL, None])
@pytest.mark.parametrize(
    "rest",
    [b"", b"\n", b"\r", b"\n" + ROW, b"\n" + ROW + b",", b"\n" + ROW + b",\n\n \n", b"\n]\n" + ROW,
     b"\n" + ROW + b",\n" + LAST[:40], b'\n{"list": [1]', b"\n" + ROW + b",\n[1]", b"\n{]", b"\n" + ROW + b",]"],
)  # fmt: skip
def test_an_array_without_its_closing_bracket_is_torn(tmp_path: Path, rest: bytes, kernel: Kernel | None) -> None:
    """Whoever wrote it died, though the gzip file is whole: nothing is converted, not as late rows either."""
    path = export_file(tmp_path, b"[" + rest)
    sent = [SentLog(Layout(), lambda: io.BytesIO(gzip.compress(Layout().header_lines(DAY).encode())))]
    for more in ({}, {"sent": sent}):
        with pytest.raises(ExportTorn, match="no closing bracket") as caught:
            convert(path, kernel=kernel, tuning=Tuning(block=100), **more)  # type: ignore[arg-type]
        assert str(path) in caught.value.hint


@pytest.mark.parametrize("end", [b"]", b" ]\n", b"]\r\n\n"])
def test_a_bracket_behind_the_last_row_closes_an_array(tmp_path: Path, end: bytes) -> None:
    """The array is whole; but a row and something else in one line are not a row."""
    rows = [b"[", ROW + b",", LAST + end]
    converted, sink = convert(export_file(tmp_path, b"\n".join(rows)))
    assert_is(convert_slowly(b"\n".join(rows).split(b"\n"), conversion(), array=True), converted, sink)
    assert converted.tally.rejected == {"malformed_json": 1}


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("block", [1, 2, 5, 1 << 20])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, block: int, array: bool) -> None:
    """It says UTF-8, and nothing else; anywhere but at the beginning it is a row's fault."""
    rows = [b"[", *(row + b"," for row in sample(20)), b"]"] if array else sample(20)
    slow = convert_slowly(rows, conversion(), array=array)
    converted, sink = convert(export_file(tmp_path, [MARK + rows[0], *rows[1:]]), tuning=Tuning(block=block))
    assert_is(slow, converted, sink)
    assert slow.lines
    again, _ = convert(export_file(tmp_path, [ROW, MARK + LAST]), tuning=Tuning(block=block))
    assert (again.tally.lines, again.tally.rejected) == (1, {"malformed_json": 1})
    twice, _ = convert(export_file(tmp_path, [MARK + MARK + ROW]), tuning=Tuning(block=block))
    assert (twice.tally.lines, twice.tally.rejected) == (0, {"malformed_json": 1})


@pytest.mark.parametrize("kernel", [KERNEL, None])
@pytest.mark.parametrize("limit", [blocks.LINE_LIMIT, 300])
@pytest.mark.parametrize(
    ("text", "one_line"),
    [
        (b"[" + ROW + b"," + LAST + b"]", True),
        (b"\n [ " + ROW + b" , " + LAST + b" ]\r\n\n", True),
        (MARK + b"[" + ROW + b"]", True),
        (b"[" + ROW + b",", True),
        (b"[]", False),
        (b"[1, 2]", False),
        (b"[" + ROW + b",\n" + LAST + b"]", False),
        (b"[\n" + ROW + b"\n]", False),
        (b"[\n{}\n]", False),
        (ROW, False),
    ],
)
def test_an_array_on_one_line_is_told_as_that(
    tmp_path: Path, text: bytes, one_line: bool, limit: int, kernel: Kernel | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is converted; however long the line is."""
    monkeypatch.setattr(blocks, "LINE_LIMIT", limit)
    converted, _ = convert(export_file(tmp_path, text), kernel=kernel)
    assert converted.one_line is one_line
    assert not (one_line and converted.tally.lines)


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
    assert_is(convert_slowly(rows, conversion()), *convert(path, threads=2))


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
    ("damage", "threads"),
    [*((damage, 1) for damage in _damaged(bytes(100))), ("half", 2), ("wrong CRC", 2), ("empty", 2)],
)
def test_a_damaged_export_is_never_converted(tmp_path: Path, damage: str, threads: int) -> None:
    """Cut, flipped, padded with something else, or not gzip: one sentence that names the file, and a hint."""
    path = export_file(tmp_path, sample(300))
    path.write_bytes(_damaged(path.read_bytes())[damage])
    with pytest.raises(ExportTorn, match=path.name) as caught:
        convert(path, threads=threads)
    assert "gzip -t" in caught.value.hint
    assert list((tmp_path / "scratch").iterdir()) == []


def read_all(file: bytes) -> bytes:
    """What `GzipText` makes of a file, some bytes at a time."""
    with GzipText(io.BytesIO(file), "export") as text:
        return b"".join(iter(lambda: text.read(700), b""))


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("zeros", [0, 5, 300_000])
@pytest.mark.parametrize(
    ("end", "word"),
    [
        *((b"junk and more"[:length], "followed") for length in (1, 2, 3, 4, 8, 9, 10, 13)),
        (b"\x1f", "truncated"), (b"\x1f\x8b", "truncated"), (b"\x1f\x8b\x08\x00", "truncated"), (b"\x1fx", "followed"),
        (b"\n", "followed"), (b"x\0\0", "followed"),
    ],
)  # fmt: skip
def test_what_follows_a_gzip_file_is_called_that(members: int, zeros: int, end: bytes, word: str) -> None:
    """However short it is: nothing is cut off. What begins like another member is one that is cut off."""
    whole = gzip.compress(b"x" * 1000, mtime=0) * members + bytes(zeros)
    with pytest.raises(ExportTorn) as caught:
        read_all(whole + end)
    assert caught.value.word == word
    assert len(read_all(whole)) == 1000 * members


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 20])
def test_a_gzip_file_that_is_cut_off_is_called_that(cut: int) -> None:
    """In its trailer or before, in the first member or a later one."""
    one = gzip.compress(bytes(range(256)), mtime=0)
    for whole in (one, one + one):
        with pytest.raises(ExportTorn) as caught:
            read_all(whole[:-cut])
        assert caught.value.word == "truncated"


@pytest.mark.parametrize("file", [b"p", b"plain\n", b"\x1fx", b"x" * 9, b"x" * 10, bytes(5)])
def test_a_file_that_is_no_gzip_is_called_that(file: bytes) -> None:
    """However short it is."""
    with pytest.raises(ExportTorn) as caught:
        read_all(file)
    assert caught.value.word == "not gzip"


def test_an_export_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    """A missing file, and a folder, are not torn exports."""
    for path in (tmp_path / "nothing.json.gz", tmp_path):
        with pytest.raises(SourceError, match="cannot be read"):
            convert_export(opened(path), conversion(), MemorySink(), kernel=lambda: KERNEL, scratch=tmp_path)


@pytest.mark.parametrize(("most", "threads"), [(1, 1), (7, 1), (100, 1), (100, 3), (569, 1), (10_000, 3)])
@pytest.mark.parametrize("layout", [Layout(), Layout(LogFormat.W3C), Layout(header="none")])
def test_logs_are_cut_exactly_by_lines(tmp_path: Path, most: int, threads: int, layout: Layout) -> None:
    """Every file but the last has exactly that many lines, its own header, and the order goes on from file to file."""
    rows = sample(100 if most == 1 else 600)
    made = conversion(layout=layout)
    slow = convert_slowly(rows, made)
    converted, sink = convert(export_file(tmp_path, rows), made, threads=threads, max_rows_per_file=most)
    count = len(slow.lines)
    assert converted.lines_per_log == [min(most, count - at) for at in range(0, count, most)]
    header = layout.header_lines(DAY)
    for number, text in enumerate(sink.texts):
        assert text == header + "".join(slow.lines[number * most : (number + 1) * most])


def test_cutting_by_lines_is_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    """The bytes of every file, too."""
    path = export_file(tmp_path, sample(500))
    contents = [[log.content for log in convert(path, threads=w, max_rows_per_file=111)[1].logs] for w in (1, 2, 3)]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("block", [100_003, 1 << 20])
@pytest.mark.parametrize("extra", [0, 1])
def test_a_line_over_16_mib_is_malformed_and_its_beginning_is_kept(tmp_path: Path, block: int, extra: int) -> None:
    """Exactly 16 MiB is still read; one byte more is not, wherever it is."""
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
    """Bytes that are not text are written as ``\\xNN``, and a character is never cut in two."""
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


@pytest.mark.parametrize("threads", [1, 2])
def test_a_full_disk_is_told_as_such(tmp_path: Path, threads: int) -> None:
    """What the sink's file says becomes a sentence with a hint."""

    class FullSink(MemorySink):
        """Its disk takes nothing."""

        def open_log(self, index: int) -> BinaryIO:  # type: ignore[override]  # a real file this time
            return Path("/dev/full").open("wb", buffering=0)

    with pytest.raises(DataFolderError, match="No space left") as caught:
        convert_export(
            opened(export_file(tmp_path, sample(300))),
            conversion(),
            FullSink(),
            kernel=lambda: KERNEL,
            scratch=tmp_path,
            threads=threads,
            tuning=SMALL,
        )
    assert caught.value.hint.startswith("df -h")
