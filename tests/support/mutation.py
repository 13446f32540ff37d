"""Mutations that know what they change: rows of an export, lines of a configuration, requests of an SFTP session.

No outside world. A mutation takes bytes, the most that may come of them, and random numbers, and gives other bytes.
Blind ones, for what no mutation here thinks of, are libFuzzer's own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson

from .odd_rows import GOOD, ODD_FIELD_VALUES, ODD_VALUES
from .sftp_requests import random_request

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Mutation = Callable[[bytes, int, random.Random], bytes]

_PAIR = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*("(?:[^"\\]|\\.)*"|[^,{}\[\]]+|\[[^\]]*\]|\{[^}]*\})', re.DOTALL)
_RAW = (
    b"1e400", b"-1e400", b"-0", b"-0.0", b"01", b"+1", b"1.", b".5", b"1e", b"NaN", b"Infinity", b"nul", b"tru", b"'a'",
    b"1e-400", b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616",
    b"1" * 400, b"0." + b"1" * 400, b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\\u2028"',
    b'"\xed\xa0\x80"', b'"\xff"', b'"\xc0\x80"', b'"\xf4\x90\x80\x80"', b'"\t"', b'"\x7f"', b'"\\x"', b'"\\/"', b'"',
    b"", b'"unclosed', b"[" * 1030 + b"]" * 1030, b'{"a":' * 1030 + b"1" + b"}" * 1030, b'"a" "b"', b"1 2", b"/* */1",
    b'"9223372036854775808"', b'"00000000000000000001"', b'"1000.00"', b'"\\u0031"', b'"\\u00a0"', b'"x\\u0085y"',
    b'"2026-11-20T12:00:00.999999999999Z"', b'"2026-11-20T12:00:00z"', b'"2026-11-20t12:00:00Z"', b"true ", b" null",
)  # fmt: skip
_NOISE = (
    b"\n", b"\r\n", b"\r", b"\n\n", b" ", b"\t", b"\0", b"\xef\xbb\xbf", b"\x1c", b"\x85", b"\xc2\xa0", b"\xe2\x80\xa8",
    b",", b"]", b"[", b"{", b"}", b":", b'"', b"\\", b"{}", b"[]", b"},{", b"\xff", b"\x0b", b"\x0c",
)  # fmt: skip
_FIELDS = [*GOOD, "region", "dma_name", "source", "unknown", "", "ID", "id ", "Ip"]


def mutate_rows(head: int) -> Mutation:
    """Changes rows that come after this many bytes."""

    def mutate(data: bytes, most: int, dice: random.Random) -> bytes:
        first, lines = bytearray(data[:head].ljust(head, b"\0")), data[head:].split(b"\n")
        if dice.random() < 0.15:
            first[dice.randrange(head)] = dice.randrange(256)
        for _ in range(dice.choice((1, 1, 2, 3, 5, 8))):
            place = dice.randrange(len(lines))
            lines[place : place + 1] = dice.choice(_CHANGES)(lines, place, dice)
            lines = lines or [b""]
        return (bytes(first) + b"\n".join(lines))[:most]

    return mutate


def _good(dice: random.Random) -> bytes:
    return orjson.dumps({**GOOD, "id": f"{dice.randrange(4):08x}-2222-4333-8444-555555555555"})


def _value(name: str, dice: random.Random) -> bytes:
    if dice.random() < 0.4:
        return dice.choice(_RAW)
    value = dice.choice([*ODD_VALUES, *ODD_FIELD_VALUES.get(name, []) * 3, *GOOD.values()])
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer that orjson does not write
        return str(value).encode()


def _change_field(lines: list[bytes], place: int, dice: random.Random) -> list[bytes]:
    """One value is another one."""
    line = lines[place]
    pairs = list(_PAIR.finditer(line))
    if not pairs:
        return [_good(dice)]
    pair = dice.choice(pairs)
    value = _value(pair[1].decode(errors="replace"), dice)
    return [line[: pair.start(2)] + value + line[pair.end(2) :]]


def _change_key(lines: list[bytes], place: int, dice: random.Random) -> list[bytes]:
    """One key is another one, or is spelled with an escape."""
    line = lines[place]
    pairs = list(_PAIR.finditer(line))
    if not pairs:
        return [_good(dice)]
    pair = dice.choice(pairs)
    key = pair[1]
    if key and dice.random() < 0.5:
        at = dice.randrange(len(key))
        key = key[:at] + b"\\u%04x" % key[at] + key[at + 1 :]
    else:
        key = dice.choice(_FIELDS).encode()
    return [line[: pair.start(1)] + key + line[pair.end(1) :]]


def _add_field(lines: list[bytes], place: int, dice: random.Random) -> list[bytes]:
    """One more field, perhaps a second one of its name, somewhere."""
    line, name = lines[place], dice.choice(_FIELDS)
    pairs = list(_PAIR.finditer(line))
    if not pairs:
        return [_good(dice)]
    at = dice.choice(pairs).start()
    return [line[:at] + b'"%b":%b,' % (name.encode(), _value(name, dice)) + line[at:]]


def _drop_field(lines: list[bytes], place: int, dice: random.Random) -> list[bytes]:
    line = lines[place]
    pairs = list(_PAIR.finditer(line))
    if not pairs:
        return []
    pair = dice.choice(pairs)
    return [line[: pair.start()] + line[pair.end() :].lstrip(b",")]


def _noise(lines: list[bytes], place: int, dice: random.Random) -> list[bytes]:
    line = lines[place]
    at = dice.choice((0, len(line), dice.randrange(len(line) + 1)))
    return [line[:at] + dice.choice(_NOISE) * dice.choice((1, 1, 2, 140)) + line[at:]]


def _cut(lines: list[bytes], place: int, dice: random.Random) -> list[bytes]:
    line = lines[place]
    at, end = sorted(dice.randrange(len(line) + 1) for _ in range(2))
    return [line[:at] + line[end if dice.random() < 0.5 else len(line) :]]


def _respace(lines: list[bytes], place: int, dice: random.Random) -> list[bytes]:
    blank = dice.choice((b" ", b"\t", b"\r", b"  ", b"\x0b"))
    return [re.sub(rb"(?<=[,:{])(?=[\"0-9tfn])", lambda _: blank if dice.random() < 0.3 else b"", lines[place])]


def _flip(lines: list[bytes], place: int, dice: random.Random) -> list[bytes]:
    line = bytearray(lines[place])
    for _ in range(dice.choice((1, 1, 2, 4)) if line else 0):
        line[dice.randrange(len(line))] = dice.choice((dice.randrange(256), dice.choice(b'{}[]",:\\ \t\r-.0129eEtfnu')))
    return [bytes(line)]


_CHANGES: tuple[Callable[[list[bytes], int, random.Random], list[bytes]], ...] = (
    *(_change_field,) * 6, _change_key, *(_add_field,) * 2, _drop_field, _noise, _cut, _respace, *(_flip,) * 2,
    lambda lines, place, dice: [lines[place], _good(dice)],
    lambda lines, place, dice: [lines[place], lines[dice.randrange(len(lines))]],
    lambda lines, place, dice: [lines[place] + lines[dice.randrange(len(lines))]],
    lambda lines, place, dice: [lines[place] + b","],
    lambda *_: [],
)  # fmt: skip


def mutate_config(data: bytes, most: int, dice: random.Random) -> bytes:
    """Changes keys and values of a TOML file."""
    lines = data.split(b"\n")
    for _ in range(dice.choice((1, 1, 2, 4))):
        place = dice.randrange(len(lines))
        line = lines[place]
        key, equals, value = line.partition(b"=")
        match dice.randrange(7):
            case 0 if line.startswith(b"# "):
                lines[place] = line[2:]
            case 1:
                lines.insert(place, lines[dice.randrange(len(lines))])
            case 2:
                del lines[place]
                lines = lines or [b""]
            case 3 if value:
                at = dice.randrange(len(value))
                noise = dice.choice(
                    (*_NOISE, b"\\u0000", b"\\U0010ffff", b"%00", b"%ff", b"~", b"{", b"}", b"$", b"//")
                )
                lines[place] = key + equals + value[:at] + noise + value[at + dice.randrange(2) :]
            case _ if equals:
                lines[place] = key + equals + b" " + dice.choice(_TOML)
            case _:
                lines[place] = dice.choice((b"[%b]", b"[[%b]]", b"%b = 1")) % dice.choice(
                    (b"log", b"sftp.users", b"feeds", b"x")
                )
    return b"\n".join(lines)[:most]


_TOML = (
    b'""', b'" "', b'"\\u0000"', b'"a"', b"1", b"0", b"-1", b"1.5", b"inf", b"nan", b"-inf", b"1e400", b"true",
    b"false", b"[]", b"[[]]", b"{}", b"[{}]", b'[""]', b"2026-11-20", b"2026-11-20T00:00:00Z", b"12:00:00", b'"90s"',
    b'"99999999d"',
    b'"1"', b'"\xef\xbc\x91h"', b"9" * 30, b'"' + b"9" * 5000 + b's"', b'"s3://a"', b'"s3://bucket/%00"',
    b'"file:///%ff"', b'"http://[::1"', b'"http://h:99999/"', b'"~nobody-here/x"', b'"\\ud7ff"', b'"{podcast_id}"',
    b'"24:00"', b'"04:30"', b'"203.0.113.0/24"', b'["::/0"]', b'[{name="a",value="x-metric-id"}]', b'[{name="a"},{}]',
)  # fmt: skip


def mutate_requests(data: bytes, most: int, dice: random.Random) -> bytes:
    """Adds, repeats, drops and changes requests of an SFTP session."""
    requests, at = [], 0
    while at < len(data):
        requests.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    for _ in range(dice.choice((1, 2, 4))):
        place = dice.randrange(len(requests) + 1)
        handles = [b"\0\0\0\4" + number.to_bytes(4, "big") for number in range(4)]
        match dice.randrange(5):
            case 0 if requests:
                requests.pop(dice.randrange(len(requests)))
            case 1 if requests:
                requests.insert(place, dice.choice(requests))
            case 2 if requests:
                one = bytearray(dice.choice(requests))
                if one:
                    one[dice.randrange(len(one))] = dice.randrange(256)
                requests[dice.randrange(len(requests))] = bytes(one)
            case _:
                requests.insert(place, random_request(dice, handles))
    return b"".join(bytes([len(one[:255])]) + one[:255] for one in requests)[:most]


MUTATIONS: dict[str, Mutation] = {
    "rows": mutate_rows(2),
    "day": mutate_rows(3),
    "config": mutate_config,
    "sftp": mutate_requests,
}
