"""What a partner's client has really taken: the union of byte ranges, and the record made from it.

A sum of bytes proves nothing, since clients read past the end, read tails again and read in any order. A pickup is
complete when the union of the ranges answered on one handle is the whole file, the client closed the handle, and it had
every byte. It means "delivered to their client", never "counted by Triton".

`pickup-point doctor` logs in as a partner, too. It identifies itself by its client version, and what such a client
reads is a test: it is recorded, and proves nothing. A partner who uses that version loses only the proof of their own
pickups.

Pure: no outside world, the caller passes the clock in. Promise: a record may claim too little, never too much.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from datetime import datetime

    from .triton import LogName

MAX_RANGES = 4096  # a client that reads every second byte must not fill the memory: further ranges are not counted
DOCTOR_CLIENT = "pickup-point-doctor"  # the SSH client version of `pickup-point doctor`


class Grade(StrEnum):
    """How much of a file was taken; TEST is what the doctor read, however much, and counts as nobody's pickup."""

    OPENED = "opened"
    PARTIAL = "partial"
    COMPLETE = "complete"
    TEST = "test"


class Ending(StrEnum):
    """How a pickup ended."""

    CLOSED = "closed"
    INTERRUPTED = "interrupted"


class Coverage:
    """A union of half-open byte ranges, kept as disjoint, sorted, non-touching ones.

    >>> union = Coverage(); union.add(0, 10); union.add(5, 20); (union.bytes, union.covers(20))
    (20, True)
    """

    __slots__ = ("_ends", "_starts", "bytes")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.bytes = 0

    def add(self, start: int, end: int) -> None:
        """Add the range ``[start, end)``; an empty one changes nothing."""
        if end <= start:
            return
        starts, ends = self._starts, self._ends
        if ends and ends[-1] == start:  # a client that reads from the front to the end: the common case
            ends[-1] = end
            self.bytes += end - start
            return
        first = bisect_left(ends, start)  # the first range that ends at or after our start
        last = bisect_right(starts, end)  # one past the last range that starts at or before our end
        # A full table still takes ranges that touch a known one, so that gaps filled later count.
        if first == last and len(starts) >= MAX_RANGES:
            return
        if first < last:
            start = min(start, starts[first])
            end = max(end, ends[last - 1])
            self.bytes -= sum(ends[first:last]) - sum(starts[first:last])
        starts[first:last] = [start]
        ends[first:last] = [end]
        self.bytes += end - start

    def covers(self, size: int) -> bool:
        """Return whether the union is exactly ``[0, size)``."""
        return size == 0 or (len(self._starts) == 1 and self._starts[0] == 0 and self._ends[0] == size)


@dataclass(frozen=True, slots=True)
class Pickup:
    """What was read on one handle, as the ledger keeps it; ``ended`` and ``ending`` are None while it is open.

    ``bytes_answered`` counts every byte each time it was sent; ``covered`` counts each byte of the file once.
    """

    id: str
    name: LogName
    size: int
    user: str
    address: str
    client: str
    started: datetime
    ended: datetime | None
    bytes_answered: int
    covered: int
    grade: Grade
    ending: Ending | None


@dataclass(slots=True)
class PickupProgress:
    """A pickup while its handle is open."""

    name: LogName
    size: int
    user: str
    address: str
    client: str
    started: datetime
    id: str = field(default_factory=lambda: uuid4().hex)
    bytes_answered: int = 0
    coverage: Coverage = field(default_factory=Coverage)

    def answered(self, offset: int, count: int) -> None:
        """Note that ``count`` bytes from ``offset`` on were answered."""
        self.bytes_answered += count
        self.coverage.add(offset, offset + count)

    def opened(self) -> Pickup:
        """Return the record of the moment of opening."""
        return self._record(Grade.OPENED, None, None)

    def finished(self, now: datetime, *, closed: bool, taken: bool) -> Pickup:
        """Return the final record; ``closed``: the client closed the handle; ``taken``: it had every byte by then."""
        clean = closed and taken
        if clean and self.coverage.covers(self.size):
            grade = Grade.COMPLETE
        elif self.bytes_answered:
            grade = Grade.PARTIAL
        else:
            grade = Grade.OPENED
        return self._record(grade, now, Ending.CLOSED if clean else Ending.INTERRUPTED)

    def _record(self, grade: Grade, ended: datetime | None, ending: Ending | None) -> Pickup:
        return Pickup(
            id=self.id,
            name=self.name,
            size=self.size,
            user=self.user,
            address=self.address,
            client=self.client,
            started=self.started,
            ended=ended,
            bytes_answered=self.bytes_answered,
            covered=self.coverage.bytes,
            grade=Grade.TEST if self.client == DOCTOR_CLIENT else grade,
            ending=ending,
        )
