"""Hostile exports: each made where it is wanted, small on disk whatever comes out of it, with what must become of it.

Writes the one file that it is asked for. No file here holds more than a few megabytes; what is long in it is one
deflated piece, repeated.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from isal import isal_zlib

from tests.support.rows import row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import date
    from pathlib import Path

MB, GB = 1 << 20, 1 << 30
LINE_LIMIT = 16 << 20  # manual, logs: a line over 16 MiB is malformed
GOOD = 400  # good rows around what is hostile: one bad row among them is less than max_rejected
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


@dataclass(slots=True)
class Outcome:
    """What must become of an export: the day's state, the ids that are published, the rejected rows.

    ``at`` holds some of the rejected rows by their line. ``why`` occurs in what is said of the day.
    """

    state: str = "published"
    ids: list[str] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    at: dict[int, str] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Hostile:
    """One hostile export: what it is called, of which group, and how it is made."""

    name: str
    group: str
    make: Callable[[Path, date], Outcome]
    heavy: bool = False  # takes seconds: not for the short form


HOSTILE: list[Hostile] = []


def hostile(
    name: str, group: str, *, heavy: bool = False
) -> Callable[[Callable[[Path, date], Outcome]], Callable[[Path, date], Outcome]]:
    """Enter a hostile export."""

    def enter(make: Callable[[Path, date], Outcome]) -> Callable[[Path, date], Outcome]:
        HOSTILE.append(Hostile(name, group, make, heavy))
        return make

    return enter


def bomb(path: Path, parts: Iterable[tuple[bytes, int]]) -> None:
    """A gzip file of one member: every part this many times."""
    total, length = 0, 0
    deflated = cache(_deflated)
    with path.open("wb") as file:
        file.write(_HEADER)
        for part, times in parts:
            piece = (deflated if len(part) > 10_000 else _deflated)(part)
            total = isal_zlib.crc32_combine(total, _repeated(zlib.crc32(part), len(part), times), times * len(part))
            length += times * len(part)
            for _ in range(times):
                file.write(piece)
        file.write(b"\x03\0" + struct.pack("<II", total, length & 0xFFFFFFFF))


def _deflated(part: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH)


def _repeated(crc: int, length: int, times: int) -> int:
    """The CRC of a text repeated this many times, by doubling."""
    repeated = count = 0
    for bit in f"{times:b}":
        repeated, count = isal_zlib.crc32_combine(repeated, repeated, count * length), count * 2
        if bit == "1":
            repeated, count = isal_zlib.crc32_combine(repeated, crc, length), count + 1
    return repeated


def good(day: date, count: int = GOOD, first: int = 0, **changes: object) -> tuple[list[bytes], list[str]]:
    """This many good rows of a day, and their ids."""
    ids = [f"{day}-{number}" for number in range(first, first + count)]
    return [row(id=one, created_at=f"{day}T12:00:00.000Z", **changes) for one in ids], ids


def text(lines: Iterable[bytes]) -> bytes:
    """Lines, each with its newline."""
    return b"".join(line + b"\n" for line in lines)
