"""Hostile exports whose gzip is right: bombs, endless lines, rows that JSON allows and nobody expects.

Writes what `exports_cases` is asked to make.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from tests.support.rows import row

from .exports_cases import GB, GOOD, LINE_LIMIT, MB, Outcome, bomb, good, hostile, text

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

_BOMB, _JSON = "bombs", "rows"


def _among_good(path: Path, day: date, *parts: tuple[bytes, int], lines: int = 1) -> Outcome:
    """Something that is one malformed row, after good rows and before as many; the lines it takes are given."""
    before, ids = good(day)
    after, more = good(day, first=GOOD)
    bomb(path, [(text(before), 1), *parts, (text(after), 1)])
    at = {GOOD + lines: "malformed_json"}
    return Outcome(ids=ids + more, rejected=Counter(malformed_json=1), at=at)


def _rows_among_good(path: Path, day: date, lines: list[bytes], ids: list[str], *, rejected: int = 0) -> Outcome:
    """Some rows of their own, of which this many at the end are malformed."""
    before, known = good(day, max(GOOD, 150 * rejected))
    bomb(path, [(text(before), 1), (text(lines), 1)])
    first = len(before) + len(lines) - rejected + 1
    at = dict.fromkeys(range(first, first + rejected), "malformed_json")
    return Outcome(ids=known + ids, rejected=Counter({"malformed_json": rejected} if rejected else {}), at=at)


def _own(day: date, count: int) -> list[str]:
    return [f"own-{day}-{number}" for number in range(count)]


@hostile("a line of 1 GB", _BOMB)
def line_of_a_gigabyte(path: Path, day: date) -> Outcome:
    """Of letters, without an end for a gigabyte."""
    return _among_good(path, day, (b"x" * MB, GB // MB), (b"\n", 1))


@hostile("a line of 1 GB, read by workers", _BOMB)
def line_for_workers(path: Path, day: date) -> Outcome:
    """After a line of noise that makes the file so large that processes take it on."""
    noise = random.Random(8).randbytes(4 * MB).hex().encode()
    before, ids = good(day)
    bomb(path, [(text(before), 1), (noise + b"\n", 1), (b"x" * MB, GB // MB), (b"\n", 1)])
    at = {GOOD + 1: "malformed_json", GOOD + 2: "malformed_json"}
    return Outcome(ids=ids, rejected=Counter(malformed_json=2), at=at)


@hostile("a good row but for a text of 1 GB", _BOMB)
def text_of_a_gigabyte(path: Path, day: date) -> Outcome:
    """JSON all the way: only its length is wrong."""
    head, tail = row(user_agent="@").split(b"@")
    return _among_good(path, day, (head, 1), (b"x" * MB, GB // MB), (tail + b"\n", 1))


@hostile("five texts of 100 MB", _BOMB, heavy=True)
def texts_of_a_hundred_megabytes(path: Path, day: date) -> Outcome:
    """Each in a line of its own."""
    head, tail = row(city="@").split(b"@")
    lines, ids = good(day, 1000)
    each = [(head, 1), (b"x" * MB, 100), (tail + b"\n", 1)]
    bomb(path, [(text(lines), 1), *(each * 5)])
    at = dict.fromkeys(range(1001, 1006), "malformed_json")
    return Outcome(ids=ids, rejected=Counter(malformed_json=5), at=at)


@hostile("2 GB of zero bytes", _BOMB)
def zero_bytes(path: Path, day: date) -> Outcome:
    """No newline, nothing else: one row."""
    bomb(path, [(bytes(MB), 2 * GB // MB)])
    return Outcome("held", rejected=Counter(malformed_json=1), at={1: "malformed_json"}, why="1 of 1 rows")


@hostile("a hundred million blank lines", _BOMB, heavy=True)
def blank_lines(path: Path, day: date) -> Outcome:
    """Which are not rows, but count as lines."""
    return _among_good(path, day, (b"\n" * MB, 95), (b"{\n", 1), lines=95 * MB + 1)


@hostile("200,000 malformed rows", _BOMB, heavy=True)
def malformed_rows(path: Path, _: date) -> Outcome:
    """Each is kept, with its line."""
    bomb(path, [(b"{\n" * 20_000, 10)])
    at = dict.fromkeys((1, 99_999, 200_000), "malformed_json")
    return Outcome("held", rejected=Counter(malformed_json=200_000), at=at, why="200000 of 200000 rows")


@hostile("500 podcast ids of 1 MB, all different", _BOMB, heavy=True)
def long_podcast_ids(path: Path, day: date) -> Outcome:
    """No URL has room for them."""
    head, tail = row(podcast_id="@").split(b"@")
    rows = [part for n in range(500) for part in ((head + b"%04d" % n, 1), (b"x" * MB, 1), (tail + b"\n", 1))]
    bomb(path, rows)
    return Outcome("held", rejected=Counter(url_too_long=500), at={500: "url_too_long"}, why="500 of 500 rows")


@hostile("200 user agents of 1 MB, all different", _BOMB, heavy=True)
def long_user_agents(path: Path, day: date) -> Outcome:
    """Good rows: nothing says how long a user agent may be."""
    ids = _own(day, 200)
    parts: list[tuple[bytes, int]] = []
    for one in ids:
        head, tail = row(id=one, created_at=f"{day}T12:00:00Z", user_agent=f"{one}@").split(b"@")
        parts += [(head, 1), (b"x" * MB, 1), (tail + b"\n", 1)]
    bomb(path, parts)
    return Outcome(ids=ids)


@hostile("lines of 16 MiB, one byte less, one byte more", _BOMB)
def lines_at_the_limit(path: Path, day: date) -> Outcome:
    """The longest line that is a row, and the shortest that is not."""
    lines, ids = good(day)
    parts: list[tuple[bytes, int]] = [(text(lines), 1)]
    for one, length in zip(_own(day, 3), (LINE_LIMIT - 1, LINE_LIMIT, LINE_LIMIT + 1), strict=True):
        head, tail = row(id=one, created_at=f"{day}T12:00:00Z", dma_name="@").split(b"@")
        rest = length - len(head) - len(tail)
        parts += [(head, 1), (b"x" * MB, rest // MB), (b"x" * (rest % MB), 1), (tail + b"\n", 1)]
        ids += [one] if length <= LINE_LIMIT else []
    bomb(path, parts)
    return Outcome(ids=ids, rejected=Counter(malformed_json=1), at={GOOD + 3: "malformed_json"})


@hostile("rows of 16 MiB that take the most memory", _BOMB, heavy=True)
def costliest_rows(path: Path, day: date) -> Outcome:
    """Nested objects and nothing else, an endless list of addresses, and colons that begin like one with a port."""
    lines, ids = good(day)
    nested = b'{"":' * 900 + b"0" + b"}" * 900 + b","
    parts: list[tuple[bytes, int]] = [(text(lines), 1)]
    own = _own(day, 4)
    for one, name, begin, unit, end in zip(
        own,
        ("source", "ip", "ip", "podcast_id"),
        (b"[", b'"', b'"[', b'"'),
        (nested, b"192.0.2.1,", b":", "\u00e9".encode()),
        (b"0]", b'192.0.2.2"', b'"', b'"'),
        strict=True,
    ):
        head, tail = row(id=one, created_at=f"{day}T12:00:00Z", **{name: "@"}).split(b'"@"')
        many = MB // len(unit)
        parts += [(head + begin, 1), (unit * many, 15), (end + tail + b"\n", 1)]
    bomb(path, parts)
    return Outcome(ids=ids + own[:3], rejected=Counter(url_too_long=1), at={GOOD + 4: "url_too_long"})


@hostile("100,000 unknown fields in a row", _JSON)
def unknown_fields(path: Path, day: date) -> Outcome:
    """And one of them in every row."""
    own = _own(day, 2)
    many = b",".join(b'"unknown%d":{"x":[%d]}' % (n, n) for n in range(100_000))
    lines = [row(id=own[0], created_at=f"{day}T12:00:00Z")[:-1] + b"," + many + b"}"]
    lines.append(row(id=own[1], created_at=f"{day}T12:00:00Z", unknown={"x": [1, {"y": None}]}))
    return _rows_among_good(path, day, lines, own)


@hostile("JSON 10,000 deep, and as deep as may be", _JSON)
def deep(path: Path, day: date) -> Outcome:
    """In a field that is needed, in one that is not, and as a whole line of a megabyte."""
    own = _own(day, 2)
    lines = [
        row(id=own[0], created_at=f"{day}T12:00:00Z", city="@"),
        row(id=own[1], created_at=f"{day}T12:00:00Z", user_agent="@"),
    ]
    lines = [line.replace(b'"@"', b"[" * 1000 + b"]" * 1000) for line in lines]
    lines += [row(city="@").replace(b'"@"', b"[" * 10_000 + b"]" * 10_000), b"[" * MB, b'{"a":' * 100_000]
    lines += [row(ip="@").replace(b'"@"', b'{"":' * 10_000 + b"1" + b"}" * 10_000)]
    return _rows_among_good(path, day, lines, own, rejected=4)


@hostile("NUL, BOM, surrogates, broken UTF-8", _JSON)
def bad_text(path: Path, day: date) -> Outcome:
    """What no JSON text may hold; and beside it what it may, written as escapes, halves of an emoji among them."""
    own = _own(day, 5)
    odd = ["\0\x01", "\u2028\u0085", "\U0001f3a7", "@", "@"]
    lines = [row(id=one, created_at=f"{day}T12:00:00Z", user_agent=agent) for one, agent in zip(own, odd, strict=True)]
    lines[3:] = [lines[3].replace(b"@", b"\\ud800"), lines[4].replace(b"@", b"\\udfff\\ud800")]
    plain = row(user_agent="@")
    bad = [b"\0", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\x01"]
    lines += [plain.replace(b"@", one) for one in bad]
    lines += [b"\xef\xbb\xbf" + plain, b"\0" + plain, plain + b"\0", b"\0" * 100_000]
    return _rows_among_good(path, day, lines, own, rejected=len(bad) + 4)


@hostile("numbers of 4,000 digits, 1e400, -0", _JSON)
def numbers(path: Path, day: date) -> Outcome:
    """In fields that do not matter: what orjson reads is a row."""
    own = _own(day, 4)
    values = [b"1" * 300, b"-0", b"-0.0", b"0." + b"3" * 1000]
    lines = [
        row(id=one, created_at=f"{day}T12:00:00Z", duration="@").replace(b'"@"', value)
        for one, value in zip(own, values, strict=True)
    ]
    lines += [row(duration="@").replace(b'"@"', value) for value in (b"1" * 4000, b"1e400", b"NaN", b"01")]
    return _rows_among_good(path, day, lines, own, rejected=4)


@hostile("fields that come twice", _JSON)
def twice(path: Path, day: date) -> Outcome:
    """The last one counts, also where its name is spelled with an escape."""
    own = _own(day, 2)
    at = f"{day}T12:00:00Z"
    lines = [
        row(id="no", created_at=at)[:-1] + b',"id":"%b"}' % own[0].encode(),
        row(id="no", created_at=at)[:-1] + b',"\\u0069d":null,"i\\u0064":"%b"}' % own[1].encode(),
    ]
    return _rows_among_good(path, day, lines, own)


@hostile("100,000 rows of one id", _JSON, heavy=True)
def one_id(path: Path, day: date) -> Outcome:
    """The first of them stays."""
    line = row(id="one", created_at=f"{day}T12:00:00Z") + b"\n"
    bomb(path, [(line * 1000, 100)])
    at = dict.fromkeys((2, 100_000), "duplicate_id")
    return Outcome("held", rejected=Counter(duplicate_id=99_999), at=at, why="99999 of 100000 rows")


@hostile("CRLF, and blanks around rows", _JSON)
def crlf(path: Path, day: date) -> Outcome:
    """Are good rows."""
    lines, ids = good(day)
    bomb(path, [(b"".join(b"\t " + line + b" \r\n" for line in lines), 1), (b"\r\n \r\n\xc2\xa0\n", 1)])
    return Outcome(ids=ids)


@hostile("UTF-16", _JSON)
def utf16(path: Path, day: date) -> Outcome:
    """Is not JSON, line by line."""
    lines, _ = good(day)
    bomb(path, [(text(lines).decode().encode("utf-16"), 1)])
    return Outcome("held", rejected=Counter(malformed_json=GOOD + 1), why="malformed_json")


@hostile("a JSON array", _JSON)
def array(path: Path, day: date) -> Outcome:
    """Of one row a line, with a line of 1 GB in it."""
    lines, ids = good(day)
    bomb(path, [(b"[\n" + b"".join(line + b",\n" for line in lines), 1), (b"[" * MB, GB // MB), (b"\n]\n", 1)])
    return Outcome(ids=ids, rejected=Counter(malformed_json=1), at={GOOD + 2: "malformed_json"})


@hostile("a JSON array without its end", _JSON)
def unclosed(path: Path, day: date) -> Outcome:
    """Whoever wrote it died: nothing is published."""
    lines, _ = good(day)
    bomb(path, [(b"[\n" + b"".join(line + b",\n" for line in lines), 1)])
    return Outcome("failed", why="no closing bracket")


@hostile("all rows in one line", _JSON)
def one_line(path: Path, day: date) -> Outcome:
    """Objects beside one another are not JSON."""
    lines, _ = good(day)
    bomb(path, [(b"".join(lines), 1)])
    return Outcome("held", rejected=Counter(malformed_json=1), at={1: "malformed_json"}, why="1 of 1 rows")


@hostile("one row in fifty is malformed", _JSON)
def one_in_fifty(path: Path, day: date) -> Outcome:
    """More than max_rejected: held, with the line of every one."""
    lines, _ = good(day)
    mixed = [line if number % 50 else b"{" for number, line in enumerate(lines, 1)]
    bomb(path, [(text(mixed), 1)])
    at = dict.fromkeys(range(50, GOOD + 1, 50), "malformed_json")
    return Outcome("held", rejected=Counter(malformed_json=GOOD // 50), at=at, why="8 of 400 rows")
