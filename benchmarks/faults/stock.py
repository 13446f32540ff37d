"""What an installation was given: the exports that were delivered to it, and the ids that therefore must go out.

Touches the folder of a `tests.support.program.ServiceSite`.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.program import GARBAGE
from tests.support.rows import row

from .checks import Seen, standing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date
    from pathlib import Path

    from tests.support.program import ServiceSite


@dataclass(slots=True)
class Stock:
    """The days of a site. ``seen`` is what a client could see so far."""

    site: ServiceSite
    ids: dict[date, list[str]] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)
    bulky: bool = True  # disks must get full

    def put(self, day: date, rows: int, *, broken: int = 0) -> None:
        """Deliver a day, or its next version: this many good rows and some that are rejected."""
        self.ids[day] = [f"{day}-{n}" for n in range(rows)]
        lines = [*(_row(day, n, self.bulky) for n in range(rows)), *GARBAGE[:broken]]
        self.site.put(day, gzip.compress(b"".join(line + b"\n" for line in lines), 1, mtime=0))

    def look(self, data_dir: Path | None = None) -> list[str]:
        """What is wrong with what a client sees now."""
        return self.seen.look((data_dir or self.site.folder / "data") / "pickup")

    def wrong(self, data_dir: Path | None = None) -> list[str]:
        """What is wrong with the installation at rest."""
        return standing(data_dir or self.site.folder / "data", self.ids)


def _row(day: date, number: int, bulky: bool) -> bytes:
    """A good row; a bulky one takes half a kilobyte of a log file, however well that is compressed."""
    bulk = hashlib.shake_256(f"{day}-{number}".encode()).hexdigest(500 if bulky else 0)
    at = f"{day}T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.000Z"
    address = f"198.18.{number >> 8 & 255}.{number & 255}"
    return row(id=f"{day}-{number}", created_at=at, user_agent=f"Player/{bulk}", ip=address)


def untold(text: str, codes: Sequence[int | None]) -> list[str]:
    """What is wrong with how commands told of a fault: each ends by itself, with a sentence and no traceback."""
    wrong = []
    for words, what in (
        ("Traceback (most recent call last)", "a traceback"),
        ("please report it", "a fault of the disk was reported as one of the program"),
        ("the same with -v shows where", "a fault of the disk was reported as one of the program"),
    ):
        if words in text:
            at = text.index(words)
            wrong.append(f"{what}: {text[max(0, at - 200) : at + 40]}")
    if None in codes:
        wrong.append(f"a command did not end by itself: {text[-200:]}")
    if any(codes) and "pickup-point: " not in text and "failed" not in text:
        wrong.append(f"a command failed without a sentence: {text[-200:]}")
    return wrong
