"""A block converted by the kernel and by the exact rules: the result must be the same, whatever the job.

Touches no outside world but the kernel's library; the environment may name another build of it (`LIBRARY`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import re
import struct
from collections import deque
from functools import cache
from itertools import count, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from server import triton
from server.convert import kernel as binding
from server.convert import row
from server.convert.block import BlockConverter
from server.convert.export_row import ExportRow
from server.convert.job import Job, Task
from server.convert.kernel import Kernel
from server.convert.log_writer import inflate
from server.convert.row import RowConverter
from server.convert.tally import RowRejected
from server.episodes.catalogue import Catalogue, Episode
from server.triton import ColumnSpec, DerivedValue, Layout, LogFormat, LogRules

from .odd_rows import CATALOGUE, GOOD, RULES, nasty_rows, with_ids
from .reference_conversion import DAY
from .rows import ABSENT, GOOD_V2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from server.convert.conversion import Conversion
    from server.convert.job import Result

LIBRARY = "PICKUP_POINT_TEST_KERNEL"  # the path of a kernel that was built with sanitizers, or by another compiler


@cache
def kernel() -> Kernel:
    """Return the kernel that is tested."""
    found = Kernel.open(Path(os.environ.get(LIBRARY, binding.LIBRARY)))
    assert found is not None, "no kernel was built: pip install -e ."
    return found


FRESH_AFTER = f"{DAY} 12:00:00"

EVERY_VALUE = tuple(ColumnSpec(f"c{n}", value=str(value)) for n, value in enumerate(reversed(DerivedValue)))

EVERY_FIELD = tuple(ColumnSpec(name, field=name) for name in sorted({*GOOD, "region", "dma_name", "source"}))

MORE_RULES = RULES | {
    "token": LogRules(url="https://h.example/{token}.mp3"),
    "enclosure": LogRules(url="{enclosure_url}"),
    "in enclosure": LogRules(Layout(LogFormat.W3C), url="/{podcast_id}?u={enclosure_url}&t={token}&g={guid}"),
    "every value": LogRules(Layout(columns=EVERY_VALUE), ip="truncated"),
    "every field": LogRules(Layout(columns=(*EVERY_FIELD, *EVERY_VALUE)), url="/{id}/{ip}/{created_at}/{source}"),
    "every field, percent": LogRules(Layout(columns=(*EVERY_FIELD, *EVERY_VALUE), text="percent"), rows="all"),
    "comment": LogRules(Layout(columns=(ColumnSpec("a", field="city"), *EVERY_VALUE)), rows="all"),
    "constant comment": LogRules(Layout(columns=(ColumnSpec("a", constant="#x"), *EVERY_VALUE))),
    "long": LogRules(Layout(columns=(ColumnSpec("a", constant="ä" * 3000), *EVERY_VALUE)), url="/" + "u" * 1990),
    "odd url": LogRules(url="/ü x/{city}?{user_agent}#"),
    "question": LogRules(Layout(LogFormat.W3C), url="{city}?"),
}

EPISODES = Catalogue(
    {
        **CATALOGUE.episodes,
        "plain": Episode("plain-guid", "", "ABC1234567", "https://h.example/ABC1234567.mp3?x=1 2"),
        "token": Episode("", "", "ABC7", ""),
        "long": Episode("g" * 3000, "", "T" * 2100, "https://h.example/" + "x" * 2100),
        "blank": Episode(" \t", "", " ", "\u00a0"),
        "e" * 200: Episode("two hundred", ""),
        "e" * 201: Episode("one more", ""),
        "not plain/ü": Episode("never looked for", ""),
        "sized": Episode("sized", "", "ABC1", "https://h.example/ABC1.mp3", "48123456"),
        "huge": Episode("huge", "", "ABC1", "https://h.example/ABC1.mp3", "4" * 5000),
        **{f"number-{n}": Episode(f"guid {n}", "") for n in range(500)},
    }
)


# What a text cell blanks, encodes or strips.
CHANGED = [c for c in range(0x3100) if chr(c).isspace() or c < 0x20 or 0x7F <= c < 0xA0 or c in (0x22, 0x25, 0x5C)]


def more_rows() -> list[bytes]:
    """Return rows for what the kernel does itself, in addition to those of `nasty_rows`."""

    def good(**fields: Any) -> bytes:
        return orjson.dumps({**GOOD, **fields})

    def raw(name: str, value: bytes) -> bytes:
        return orjson.dumps({**GOOD, name: "HERE"}).replace(b'"HERE"', value)

    rows = [good(episode_id=key) for key in (*EPISODES.episodes, "PLAIN", "Number-17", "E" * 200, "number-500")]
    texts = [
        "\x00",
        "\x01\x02",
        "\x1c",
        "\x85",
        "\u2028",
        "\u200b",
        " \x00 ",
        "\u00a0",
        "#",
        "#x",
        "?",
        "a?b?",
        "%",
        '"',
    ]
    texts += [
        "é" * 3,
        "€",
        "🎧",
        "\U0010ffff",
        "\ud7ff\ue000",
        "a" * 15 + "é",
        "a" * 16 + "\x7f",
        "x" * 5000,
        "ü" * 5000,
    ]
    texts += [
        "\n" * 700,
        '"' * 700,
        "\x80\x9f\xa0",
        "\u1680\u2000\u200a\u2029\u202f\u205f\u3000",
        "\ufeff",
        "\u07ff\u0800\uffff",
        "x".join(map(chr, sorted({code + step for code in CHANGED for step in (-1, 0, 1)} - {-1}))),
    ]
    rows += [good(**{name: text}) for name in ("user_agent", "city", "country", "region") for text in texts]
    rows += [orjson.dumps({**GOOD, "city": text}).decode().encode("ascii", "backslashreplace") for text in texts]
    escapes = [
        rb'"\u%04x"' % unit for unit in (0, 0x1F, 0x20, 0x22, 0x5C, 0x7F, 0x80, 0x85, 0x9F, 0xA0, 0x7FF, 0x800, 0x2028)
    ]
    escapes += [
        rb'"\b\f\n\r\t\/\\\""',
        rb'"\ud83d\ude00"',
        rb'"\uD83D\uDE00"',
        rb'"\ud83d"',
        rb'"\ude00"',
        rb'"\ud83d\ud83d"',
    ]
    escapes += [rb'"\ud83dx"', rb'"\u12"', rb'"\u12g4"', rb'"\u"', rb'"\x"', rb'"\ "', b'"\\', rb'"a\\"', rb'"\\\"']
    escapes += [rb'"\uFFFF\uE000"']
    utf8 = [
        b"\xc2\x80",
        b"\xdf\xbf",
        b"\xe0\xa0\x80",
        b"\xed\x9f\xbf",
        b"\xee\x80\x80",
        b"\xf0\x90\x80\x80",
        b"\xf4\x8f\xbf\xbf",
    ]
    utf8 += [
        b"\x80",
        b"\xbf",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80",
    ]
    utf8 += [
        b"\xf5\x80\x80\x80",
        b"\xff",
        b"\xc2",
        b"\xe2\x80",
        b"\xf0\x9f\x8e",
        b"\xc2\xc2\x80",
        b"\xe2\x28\xa1",
        b"\xfe",
    ]
    escapes += [b'"%b"' % bytes_ for bytes_ in utf8] + [
        b'"' + b"a" * n + bytes_ + b'"' for n in (13, 14, 15, 16) for bytes_ in utf8
    ]
    rows += [raw(name, value) for name in ("user_agent", "city", "other", "id", "episode_id") for value in escapes]
    numbers = [
        b"0",
        b"-0",
        b"-1",
        b"00",
        b"-01",
        b"1.",
        b"1.0",
        b"1.10",
        b"-0.0",
        b"0.001",
        b"0.0001",
        b"0.00012",
        b"0.00001",
        b"0.000001",
        b"1e5",
        b"1E5",
        b"1.5e3",
    ]
    numbers += (
        [b"9" * n for n in (15, 16, 17, 18, 19, 20, 40)]
        + [b"1" + b"0" * n for n in (14, 15, 16, 17)]
        + [b"1" * 14 + b".5"]
    )
    numbers += (
        [b"0." + b"1" * n for n in (14, 15, 16, 17, 30, 400)]
        + [b"59." + b"9" * n for n in range(1, 20)]
        + [b"1.2.3", b"--1", b"-", b"1-"]
    )
    numbers += [
        b"59.0",
        b"60.0",
        b"59.5",
        b"-60",
        b"-59.99999999999999999",
        b"60",
        b"123456.78901234",
        b"12345678.90123456",
        b"0.1234567890123456",
    ]
    rows += [
        raw(name, value)
        for name in ("filesize", "bytes_sent", "seconds_downloaded", "duration", "city", "other")
        for value in numbers
    ]
    times = [
        f"2026-11-20T{clock}Z"
        for clock in ("00:00:00", "23:59:59", "24:00:00", "19:60:00", "12:00:60", "1:00:00", "::::::::", "12-00-00")
    ]
    times += [
        f"{day}T00:00:00Z"
        for day in ("2000-02-29", "1900-02-29", "2100-02-29", "2024-02-30", "2026-04-31", "2026-12-31", "2026-00-01")
    ]
    times += [
        f"{day}T00:00:00Z"
        for day in ("2026-13-01", "2026-01-00", "0001-01-01", "0000-01-01", "9999-12-31", "2026/11/20", "20261120  ")
    ]
    times += [
        f"2026-11-20T12:00:00{end}"
        for end in ("", ".", ".1", ".1Z", "Z", "ZZ", "z", " UTC", "+00:00", "+0000", "-00:00", "+01:00", ".1+00:00")
    ]
    rows += [
        good(created_at=time)
        for time in (*times, "2026-11-20T11:59:59.9Z", "2026-11-20 12:00:00", "2026-11-20t12:00:00Z")
    ]
    ips = [
        "203.0.113.9:5678",
        "[2001:db8::1]:443",
        "1.2.3.4, 5.6.7.8",
        "a, b",
        "a,b",
        "[",
        "::ffff:0:1",
        "::fffe:1.2.3.4",
        "0:0:0:0:0:ffff:0:0",
    ]
    ips += [
        "1:2:3:4:5:6:7:8",
        "1:2:3:4:5:6:7",
        ":1:2:3:4:5:6:7",
        "1::2:3:4:5:6:7:8",
        "::1:2:3:4:5:6:7",
        "1:2:3:4:5:6:7::",
        "::1:2:3:4:5:6:7:8",
    ]
    ips += [
        "0:0:1:0:0:1:0:0",
        "1:0:0:1:0:0:1:0",
        "1:0:0:0:1:0:0:0",
        "0:1:1:1:1:1:1:1",
        "1:1:1:1:1:1:1:0",
        "ABCD:EF01::",
        "00001::",
        "1:::2",
        "1:",
    ]
    ips += ["t" * n for n in (1, 31, 32, 54, 55, 56, 63, 64, 65, 119, 120, 128, 199, 200, 201, 300)] + [
        "t\x7f",
        "é",
        "0.0.0.0",
        "00.0.0.0",
        "1..2.3",
    ]
    ips += [
        "1.2.3.256",
        "1.2.3.1000",
        "1.2.3.-4",
        "1.2.3.4.",
        ".1.2.3.4",
        "1.2.3.0x0",
        "c19af70f3fb71c0f7adfb4d89dacccd3",
        "999.0.0.0",
    ]
    rows += [good(ip=ip) for ip in ips]
    own = ["11111111-2222-4333-8444-555555555555"[:n] for n in range(36)] + [
        "x" * n for n in (15, 16, 17, 127, 128, 129, 199, 200, 201)
    ]
    own += [
        "11111111-2222-4333-8444-55555555555:",
        "11111111-2222-4333-8444-55555555555`",
        "1111111@-2222-4333-8444-555555555555",
    ]
    own += [
        "11111111-2222-4333-8444-5555555555g5",
        "11111111-2222-4333-8444-55555555555O",
        "11111111-2222-4333-8444_555555555555",
        "a" * 36,
        "a:" * 8,
    ]
    rows += [good(id=row_id) for row_id in own] + [
        good(podcast_id=name) for name in ("a:b", "p" * 200, "p" * 201, "p" * 16, "~._-")
    ]
    rows += [good(), good()[:-1] + b',"other":1,"another":"x","third":null}', good()[:-1] + b',"other":1,"other":2}']
    rows += [
        orjson.dumps(dict(reversed(GOOD.items()))),
        good().replace(b",", b" , "),
        good().replace(b'":', b'" :'),
        good().replace(b",", b",\t"),
    ]
    return rows


ROWS = with_ids([*nasty_rows(), *more_rows()])

V2_RULES = {
    "v2": LogRules(kind="delivery-v2"),
    "v2 w3c, all, truncated": LogRules(Layout(LogFormat.W3C), rows="all", ip="truncated", kind="delivery-v2"),
    "v2 reporting, rss": LogRules(
        Layout(columns=(*EVERY_FIELD, *EVERY_VALUE, ColumnSpec("m", field="media_type"))),
        rows="reporting", url="/{id}/{media_type}/{delivery_type}", kind="delivery-v2", object_size="rss",
    ),
}  # fmt: skip


def v2_rows() -> list[bytes]:
    """Return rows of the Delivery export V2: some nasty ones, with an id and without, and what this kind alone has."""
    of_kind = [row.replace(b"{", b'{"delivery_type":"download",', 1) for row in ROWS[::17] if b"\n" not in row]
    bare = [re.sub(rb'"(?:id|filesize|bytes_sent)":(?:"[^"\\]*"|\d+),?', b"", row) for row in of_kind]

    def good(**fields: Any) -> bytes:
        return orjson.dumps({name: value for name, value in (GOOD_V2 | fields).items() if value is not ABSENT})

    rows = [good(delivery_type=value) for value in (ABSENT, None, "", "play", "downloads", "Play", 1, True, ["play"])]
    rows += [good(media_type=value) for value in (ABSENT, None, "video", "\t", 7, {})]
    rows += [
        good(user_agent=value)
        for value in (ABSENT, None, "", " ", "a\\b", "\u00fc", 5, True, [], "x" * 1700, "y" * 5000)
    ]
    rows += [good(id=value) for value in (None, "", " ", "own", 7, 7.5, [], "11111111-2222-4333-8444-555555555555")]
    sizes = (ABSENT, None, 0, 1, 1000, "5", -1, 1.5, [])
    rows += [good(filesize=size, bytes_sent=sent) for size in sizes for sent in sizes]
    rows += [good(seconds_downloaded=value) for value in (None, 59, 60, "60", 59.9, "x")]
    rows += [good(ip=ip) for ip in ("203.0.113.7", "2001:db8::1", " 1.2.3.4", "1.2.3.4:5", "", None)]
    rows += [
        good(created_at=f"{DAY}{rest}")
        for rest in ("T12:00:00Z", " 12:00:00", "T12:00:00.5+00:00", "T1", "T12:00:00 UTC")
    ]
    rows += [good(created_at=f"{DAY}T12:00:00.{'1' * n}Z") for n in (1500, 2100)]
    rows += [good(episode_id=key) for key in ("sized", "SIZED", "huge", "plain", None, ABSENT)]
    rows += [good(podcast_id=value) for value in (None, "a b", 7)]
    rows += [good(blacklisted_ip=ip, blacklisted_ua=ua) for ip in (True, "true", None) for ua in (True, False)]
    many = random.Random(7)
    equal = [
        good(created_at=f"{DAY}T13:00:0{many.randrange(3)}Z", blacklisted_ua=many.random() < 0.2) for _ in range(60)
    ]
    return [*of_kind, *bare, *rows, *equal, *rows[::3]]


class _Remembering:
    """A function that remembers what it returned, or which `RowRejected` it raised."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work
        self._known: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Return the outcome, or raise the rejection, of the first time."""
        key = (*args, *more.values())
        known = self._known.get(key)
        if known is None:
            try:
                known = self._work(*args, **more)
            except RowRejected as rejected:
                known = RowRejected(rejected.reason)
            self._known[key] = known
        if isinstance(known, RowRejected):
            raise RowRejected(known.reason)  # itself, it would keep each frame in which it was raised
        return known


_asked: deque[tuple[Conversion, _Remembering]] = deque(maxlen=8)  # not all: each takes megabytes


def ask_once(made: Conversion, *rules: RowConverter) -> None:
    """Let these exact rules, and others of this conversion before, share what they make of a row: it is asked once."""
    known = (remembered for conversion, remembered in _asked if conversion is made)
    remembered = next(known, None) or _Remembering(RowConverter(made).convert)
    _asked.append((made, remembered))
    for one in rules:
        one.convert = remembered  # type: ignore[method-assign]


_parse, _address = _Remembering(ExportRow.parse), _Remembering(row.sent_address)
_safe, _percent = _Remembering(triton.safe_text), _Remembering(triton.percent_text)


def parse_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exact rules remember what no setting changes: what a row, an address and a text are."""

    def text_by(remembered: _Remembering) -> Callable[[Any], str]:  # 1, 1.0 and True would be one
        return lambda value: remembered(value) if isinstance(value, str) else remembered._work(value)

    monkeypatch.setattr(ExportRow, "parse", _parse)
    monkeypatch.setattr(row, "sent_address", _address)
    monkeypatch.setattr(triton, "safe_text", text_by(_safe))
    monkeypatch.setattr(triton, "percent_text", text_by(_percent))


class Ways:
    """The two ways to do one conversion."""

    def __init__(self, made: Conversion, fresh_after: str | None = None, *, by_podcast: bool = True) -> None:
        self.by_kernel = BlockConverter(kernel(), made, fresh_after, by_podcast=by_podcast)
        self.exactly = BlockConverter(None, made, fresh_after, by_podcast=by_podcast)
        ask_once(made, self.by_kernel._exact, self.exactly._exact)

    def agree(self, job: Job) -> Result:
        """Do a job both ways and return the result, which must be the same."""
        result = self.by_kernel.do(job)
        expected = result_values(self.exactly.do(job))
        for name, value in result_values(result).items():
            if value != expected[name]:
                raise AssertionError(f"{name}: {_difference(value, expected[name])}")
        return result


def _difference(one: Any, other: Any) -> str:
    """Return where two values begin to differ, in few words."""
    if isinstance(one, list) and isinstance(other, list):
        for number, (mine, its) in enumerate(zip_longest(one, other)):
            if mine != its:
                return f"entry {number}: {mine!r:.2000} instead of {its!r:.2000}"
    return f"{one!r:.2000} instead of {other!r:.2000}"


def result_values(result: Result) -> dict[str, Any]:
    """Return everything that a result holds, to be compared by value."""
    return {
        "number": result.number,
        "line_count": result.line_count,
        "text": inflate(result.piece).split(b"\n"),
        "piece": result.piece,
        "tally": result.tally.as_json(),
        "rejects": result.rejects,
        "closing": result.closing,
        "ids": result.ids,
        # Both ways count the same ones; in which order is of no account.
        "derived": sorted(struct.iter_unpack("<16sQ", result.derived.data)) if result.derived is not None else None,
        "records": result.records,
        "podcasts": result.podcasts,
    }


def odd_rows(
    made: Conversion, text: bytes, *, derive: bool = False, numbers: bytes = b"", **options: Any
) -> list[bytes]:
    """Return the rows of a block that the kernel leaves to the exact rules; ``derive``: they have no ids."""
    rules = options.pop("rules", None)
    rules = rules or binding.CompiledRules(kernel(), made, options.pop("fresh_after", None), **options)
    rooms, found, start = binding.Rooms(), [], 0
    loaded = rooms.load([text])
    names = binding.Names(made.rules.export_kind).packed(())
    equals = binding.Equals(kernel(), numbers, len(loaded)) if derive else None
    while start < len(loaded):
        block = rooms.block(start, names, array=False, derive=equals)
        kernel().convert(rules, block)
        if equals is not None:
            equals.count = block.seen_count
        found += [bytes(loaded[start + odd.begin : start + odd.end]) for odd in rooms.odd(block)]
        start += block.taken
    return found


def worth_comparing(made: Conversion, rows: list[bytes], rules: binding.CompiledRules) -> list[bytes]:
    """Return the rows that the kernel takes, and every tenth of those it leaves, which go the exact way both times."""
    left = {row.removesuffix(b"\n") for row in odd_rows(made, b"".join(row + b"\n" for row in rows), rules=rules)}
    number = count()
    return [row for row in rows if row not in left or next(number) % 10 == 0]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded_room(size: int, *, at_end: bool = True) -> ctypes.Array[ctypes.c_char]:
    """Return this many bytes that end (or begin) at a page that can be neither read nor written."""
    page = mmap.PAGESIZE
    pages = -(-size // page) * page
    memory = mmap.mmap(-1, pages + 2 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = (ctypes.c_char * len(memory)).from_buffer(memory)
    for guard in (0, page + pages):
        if _libc.mprotect(ctypes.addressof(whole) + guard, page, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return (ctypes.c_char * size).from_buffer(memory, page + (pages - size if at_end else 0))


def cuts(text: bytes, most: int) -> Iterator[bytes]:
    """Yield the text in blocks of whole lines, of about ``most`` bytes."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + most) + 1 or len(text)
        yield text[start:end]
        start = end


def job(text: bytes, task: Task = Task.RENDER, **more: Any) -> Job:
    """Return a job with this block."""
    return Job(more.pop("number", 0), task, (text,), **{"want_ids": True, **more})
