"""What a partner's client has really taken: unions of byte ranges, and the records made from them.

A sum of bytes proves nothing, since clients read past the end, read tails again and read in any order. What counts is
the union of the ranges proven delivered: sent, and confirmed by the client's answer to a later question. A `Pickup` is
the record of one handle. A `Delivered` is what a user has of a file, over all handles and sessions: a file is picked up
when that union covers it, so a download that was resumed or made in pieces counts, and no CLOSE is needed. Either means
"delivered to their client", never "counted by Triton".

A client that is killed and then resumes shows by where it continues what it has: `shown_by_resuming` says how much of
what was on its way that proves, and why it can be believed.

`pickup-point doctor` also logs in as a partner. It identifies itself by its client version, and what such a client
reads is a test: it is recorded, but proves nothing. A partner who uses that version loses only the proof of their own
pickups.

Pure: the caller passes the clock in. Promise: a record may claim too little, never too much.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from .triton import LogName

MAX_RANGES = 4096  # further ranges do not count: a client that reads every second byte must not fill the memory
MAX_ADDRESSES = 16  # per user and file: a client that changes its address for each piece must not fill the ledger
DOCTOR_CLIENT = "pickup-point-doctor"  # the SSH client version of `pickup-point doctor`


class Grade(StrEnum):
    """How much of a file was taken; TEST is what `doctor` read, however much, and is nobody's pickup."""

    OPENED = "opened"
    PARTIAL = "partial"
    COMPLETE = "complete"
    TEST = "test"


class Ending(StrEnum):
    """How a handle ended: closed by the client with everything read on it delivered, or interrupted."""

    CLOSED = "closed"
    INTERRUPTED = "interrupted"


class Coverage:
    """A union of half-open byte ranges, kept sorted, disjoint and not touching each other.

    >>> union = Coverage(); union.add(0, 10); union.add(5, 20); (union.bytes, union.covers(20))
    (20, True)
    """

    __slots__ = ("_ends", "_starts", "bytes", "fragmented")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        # A client may have thousands of ranges on each of hundreds of handles: a list would take five times the memory.
        self._starts = array("Q")
        self._ends = array("Q")
        self.bytes = 0
        self.fragmented = False  # a range was not counted, because there were `MAX_RANGES` already
        for start, end in ranges:
            self.add(start, end)

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The disjoint ranges, in order."""
        return tuple(zip(self._starts, self._ends, strict=True))

    def add(self, start: int, end: int) -> None:
        """Add the range ``[start, end)``; an empty one changes nothing."""
        if end <= start:
            return
        starts, ends = self._starts, self._ends
        if ends and ends[-1] == start:  # a client that reads from beginning to end: the common case
            ends[-1] = end
            self.bytes += end - start
            return
        first = bisect_left(ends, start)  # the first range that ends at or after our start
        last = bisect_right(starts, end)  # one past the last range that starts at or before our end
        # A full table still takes ranges that touch a known one, so that gaps filled later count.
        if first == last and len(starts) >= MAX_RANGES:
            self.fragmented = True
            return
        if first < last:
            start = min(start, starts[first])
            end = max(end, ends[last - 1])
            self.bytes -= sum(ends[first:last]) - sum(starts[first:last])
        starts[first:last] = array("Q", (start,))
        ends[first:last] = array("Q", (end,))
        self.bytes += end - start

    def covers(self, size: int) -> bool:
        """Return whether the union is exactly ``[0, size)``."""
        return size == 0 or (len(self._starts) == 1 and self._starts[0] == 0 and self._ends[0] == size)


def shown_by_resuming(tail: tuple[int, int] | None, first_read: int, *, alone: bool) -> tuple[int, int]:
    """Return the range that a user's next handle on a file proves delivered by where it first reads, or (0, 0).

    ``tail`` is `Pickup.tail` of the handle before it; ``alone``: no other handle of the user was read besides the new
    one. A client that was killed cannot answer for what its system had received, but resumes at the end of what it has:
    reading at N says "I have everything before N". For bytes sent to it and acknowledged, that is believed, up to N and
    never beyond.

    Who could forge a pickup like this?

    - A middlebox can acknowledge and keep what we send, and cut connections. It cannot choose N, which arrives under
      the keys of the user's own login, and an honest client's N is where the bytes that it was given end.
    - A stranger cannot say anything without that login.
    - The user could say N without having the bytes, and would gain what reading and discarding them gains: a record of
      a pickup against themselves. Nobody else is deceived, and nobody else's record is touched.
    - A client that fetches pieces and lost one of them must not pass for one that resumes. Therefore only a handle that
      was read in one run, with no other beside it, leaves a tail; and only the next one that is read can use it, and
      only alone. A client that fetches pieces one after another, loses one, continues after it and never comes back for
      it is believed: its own file then has a hole, where its system had acknowledged the bytes.
    """
    if tail is None or not alone or not tail[0] < first_read <= tail[1]:
        return 0, 0
    return tail[0], first_read


@dataclass(frozen=True, slots=True)
class Pickup:
    """What was read on one handle; ``ended`` and ``ending`` are None while it is open.

    ``bytes_answered`` counts every byte each time it was sent; ``covered`` counts each byte of the file once, and
    ``delivered`` those of them proven to have arrived. ``ranges`` are the latter, half-open; ``fragmented``: there were
    more of them than are kept.

    ``first_read`` is the offset of the first READ, None before it; ``alone``: no other handle of the user on this file
    was read while this one was. ``tail`` is left by a handle that was interrupted: the range that the client's system
    had acknowledged but the client had not answered for. A pickup read from the ledger has none of these and no ranges.
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
    delivered: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    fragmented: bool = False
    first_read: int | None = None
    alone: bool = True
    tail: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one user has of one file, over all handles and sessions: ``bytes`` of its ``size``, each counted once.

    ``completed`` is when the union covered the file, or None. ``pieces`` is the number of ranges in the union;
    ``fragmented``: there were more than `MAX_RANGES`, and some do not count. ``handles`` counts the opened handles,
    ``addresses`` are those from which bytes were fetched, at most `MAX_ADDRESSES`. ``nodes`` are the other nodes of a
    shared store that reported some of it.
    """

    name: LogName
    user: str
    size: int
    bytes: int
    pieces: int
    fragmented: bool
    handles: int
    addresses: tuple[str, ...]
    first: datetime
    last: datetime
    completed: datetime | None
    nodes: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """One of complete, too fragmented, partial, opened."""
        if self.completed is not None:
            return "complete"
        if self.fragmented:
            return "too fragmented"
        return "partial" if self.bytes else "opened"


@dataclass(slots=True)
class PickupProgress:
    """A pickup while its handle is open: ``coverage`` is what was answered, ``proven`` what of that was delivered."""

    name: LogName
    size: int
    user: str
    address: str
    client: str
    started: datetime
    id: str = field(default_factory=lambda: uuid4().hex)
    bytes_answered: int = 0
    bytes_delivered: int = 0
    coverage: Coverage = field(default_factory=Coverage)
    proven: Coverage = field(default_factory=Coverage)
    recorded: int = 0  # bytes of ``proven`` in the last record
    first_read: int | None = None
    alone: bool = True
    tail: tuple[int, int] | None = None
    run: tuple[int, int] = (0, 0)  # the range of the last answers that followed each other without a gap

    def answered(self, offset: int, count: int) -> None:
        """Record that ``count`` bytes, beginning at ``offset``, were answered."""
        self.bytes_answered += count
        self.coverage.add(offset, offset + count)
        self.run = (self.run[0] if offset == self.run[1] else offset, offset + count)

    def leave_tail(self, start: int, end: int) -> None:
        """Keep ``[start, end)``, which the client's system has acknowledged but the client has not answered for."""
        if self.alone and self.run[0] <= start < end <= self.run[1]:
            self.tail = (start, end)

    def delivered(self, offset: int, count: int) -> None:
        """Record that an answer is proven to have arrived."""
        self.bytes_delivered += count
        self.proven.add(offset, offset + count)

    @property
    def complete(self) -> bool:
        """Whether the whole file was delivered on this handle alone."""
        return self.size > 0 and self.proven.covers(self.size)

    @property
    def taken(self) -> bool:
        """Whether everything that was answered was delivered."""
        return self.bytes_delivered == self.bytes_answered

    @property
    def untold(self) -> bool:
        """Whether something was delivered since the last record."""
        return self.proven.bytes > self.recorded

    def opened(self) -> Pickup:
        """Return the record of a handle just opened."""
        return self._record(Grade.OPENED, None, None)

    def so_far(self) -> Pickup:
        """Return the record of an open handle."""
        return self._record(self._grade(), None, None)

    def finished(self, now: datetime, *, closed: bool) -> Pickup:
        """Return the final record; ``closed``: the client closed the handle."""
        return self._record(self._grade(), now, Ending.CLOSED if closed and self.taken else Ending.INTERRUPTED)

    def _grade(self) -> Grade:
        if self.complete:
            return Grade.COMPLETE
        return Grade.PARTIAL if self.bytes_answered else Grade.OPENED

    def _record(self, grade: Grade, ended: datetime | None, ending: Ending | None) -> Pickup:
        self.recorded = self.proven.bytes
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
            delivered=self.proven.bytes,
            ranges=self.proven.ranges,
            fragmented=self.proven.fragmented,
            first_read=self.first_read,
            alone=self.alone,
            tail=self.tail,
        )
