"""Megaphone, as the campaign plays it: new days, late rows, changed rows, torn versions, all from a seed.

Knows the ids of every day that must have gone out in the end. Puts objects through a function that it is given.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tests.support.program import export_name
from tests.support.rows import row

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from datetime import date


@dataclass(slots=True)
class Day:
    """One day: its rows so far, and whether its newest version is whole."""

    rows: list[bytes] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    whole: bool = True


@dataclass(slots=True)
class Megaphone:
    """What is delivered; ``put`` takes a key and an object's bytes."""

    put: Callable[[str, bytes], object]
    dice: random.Random
    rows: tuple[int, int] = (100, 500)  # of a new day
    level: int = 1  # of gzip; 0 makes large objects of few rows
    days: dict[date, Day] = field(default_factory=dict)
    versions: int = 0

    @property
    def expected(self) -> dict[date, list[str]]:
        """The ids that must be in each day's files when everything has been published."""
        return {day: list(one.ids) for day, one in self.days.items()}

    def new_day(self, day: date) -> None:
        """Deliver a day for the first time."""
        self.days[day] = Day()
        self._grow(day, self.dice.randrange(*self.rows))
        self._deliver(day)

    def rewrite(self, day: date) -> None:
        """A later version of a day: more rows, sometimes with other fields in an old one, sometimes the same rows."""
        one = self.days[day]
        if self.dice.random() < 0.8:
            self._grow(day, self.dice.randrange(1, 40))
        if self.dice.random() < 0.3:
            at = self.dice.randrange(len(one.rows))
            one.rows[at] = one.rows[at].replace(b'"bytes_sent":67332401', b'"bytes_sent":1000')
        self._deliver(day)

    def tear(self, day: date) -> None:
        """A version that ends too early."""
        self._deliver(day, torn=True)

    def mend(self) -> None:
        """Every day whose newest version is torn gets a whole one."""
        for day, one in self.days.items():
            if not one.whole:
                self._deliver(day)

    def _grow(self, day: date, count: int) -> None:
        one = self.days[day]
        for number in range(len(one.ids), len(one.ids) + count):
            at = datetime.fromisoformat(f"{day}T00:00:00") + timedelta(seconds=self.dice.randrange(86_400))
            agent = self.dice.randbytes(60).hex()  # so that an export has some size on its way
            one.ids.append(f"{day}-{number}")
            one.rows.append(row(id=one.ids[-1], created_at=f"{at:%Y-%m-%dT%H:%M:%SZ}", user_agent=agent))

    def _deliver(self, day: date, *, torn: bool = False) -> None:
        one = self.days[day]
        body = gzip.compress(b"".join(line + b"\n" for line in one.rows), self.level, mtime=0)
        one.whole = not torn
        self.versions += 1
        self.put(export_name(day), body[: -self.dice.randrange(1, len(body) // 2)] if torn else body)
