"""What proves that a client has the bytes it was sent: its answer to a question that follows them in the stream.

Touches the connection's socket, and only queries it. Promise: a byte counts as delivered only when TCP has acknowledged
it and the client itself has answered a question sent after it; whatever is uncertain counts as not delivered.

An acknowledgement alone proves too little: a middlebox that terminates TCP can acknowledge bytes and never pass them
on. But SSH packets are authenticated and in order, so whoever answers a question has everything sent before it. The
question is the keepalive that every client must answer, be it with a refusal (RFC 4254, section 4). One is under way
while anything awaits proof; another follows at once when a client may have all it wants and be about to leave.

The way of a byte: a reply goes from the session to its channel (which may hold it back), to the transport (which may,
too), to the kernel, to the peer. `CountedTransport` counts what is written to the transport, so once nothing holds a
reply back, it ends, at the latest, at the count of that moment; a question asked then proves it. What a broken
transport throws away is counted too, but never answered.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from weakref import WeakSet

from ..pickups import Coverage

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator, MutableMapping
    from typing import Any

    from ..pickups import Pickup, PickupProgress
    from ..triton import LogName

# Bytes: adjacent replies up to this size become one entry, delivered together. No more, since an interrupted client may
# resume after any reply, and about an entry that is not acknowledged whole nothing is known.
MERGED = 16 * 1024
MAX_ON_THE_WAY = 4096  # entries of one session; replies beyond them are never proven
TELL_EVERY = 200  # ticks between two records of an open handle
MAX_QUESTIONS = 4  # unanswered on one connection


class CountedTransport:
    """An asyncio transport that counts the bytes written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.written = 0
        self._write = transport.write
        self._transport = transport
        self._gathered: bytearray | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write, and count."""
        # Counted first: a failure may come after a part was sent, and a count that is too high proves too little.
        self.written += len(data)
        if self._gathered is None:
            self._write(data)
        else:
            self._gathered += data

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write several parts, and count."""
        self.write(b"".join(parts))

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Gather what is written within the block, and write it in one piece at the end."""
        self._gathered = bytearray()
        try:
            yield
        finally:
            gathered, self._gathered = self._gathered, None
            if gathered:
                self._write(gathered)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class ByteStream:
    """The bytes that one connection has sent, as positions from its beginning; made before the first is written.

    Without a ``transport`` it stands for a connection that has none yet. ``send_question`` sends a question, and calls
    `asked` before that.
    """

    def __init__(
        self, transport: CountedTransport | None = None, send_question: Callable[[], None] = lambda: None
    ) -> None:
        self.proven = 0  # the position up to which the client has answered
        self.answers = False  # whether the client has ever answered
        self.last_question = 0  # its position
        self._questions: deque[int] = deque()  # the positions of unanswered ones
        self._send_question = send_question
        self._transport = transport
        self._socket: Any = None if transport is None else transport.get_extra_info("socket")
        self._before = 0
        with suppress(OSError):  # the socket is already gone: nothing will ever be acknowledged
            # What the system counted before anything was written: 0, unless it counts the handshake.
            self._before = self._acknowledged()

    @property
    def written(self) -> int:
        """The position at which everything written so far ends."""
        return 0 if self._transport is None else self._transport.written

    @property
    def asking(self) -> bool:
        """Whether a question awaits its answer."""
        return bool(self._questions)

    def ask(self) -> None:
        """Ask the client a question after everything written so far."""
        # A client that never answers is not asked for ever.
        if len(self._questions) < MAX_QUESTIONS:
            self._send_question()

    def asked(self) -> None:
        """Record that a question is about to be written."""
        self.last_question = self.written
        self._questions.append(self.written)

    def answered(self) -> None:
        """Record an answer; answers come in the order of the questions."""
        if self._questions:
            self.proven = self._questions.popleft()
            self.answers = True

    def acknowledged(self) -> int:
        """Return the position up to which the peer's system has acknowledged bytes.

        Raises:
            OSError: the socket is gone.
        """
        return self._acknowledged() - self._before

    def end(self) -> None:
        """Query the socket no more: it is about to be closed, and its descriptor may soon be another's."""
        self._socket = None

    def _acknowledged(self) -> int:
        """Return tcpi_bytes_acked of Linux's tcp_info."""
        if self._socket is None or self._socket.fileno() < 0:
            raise OSError
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        return int(struct.unpack_from("Q", info, 120)[0])


@dataclass(slots=True, eq=False)
class _Entry:
    """A range of a file in an answer, and where that ends: as a position in the channel's bytes or the connection's."""

    progress: PickupProgress
    offset: int
    length: int
    last: bool  # after it the client may have all it wants, and leave
    end: int = 0


class Together:
    """What one user was sent of one file, over all connections that have a handle on it.

    Any piece of a file that is fetched in parallel may be the last, after which the client leaves on all connections.
    """

    def __init__(self) -> None:
        self.deliveries: WeakSet[Delivery] = WeakSet()
        self._coverage = Coverage()
        self._whole = False  # the coverage is that of the file
        self._readers: dict[str, PickupProgress] = {}

    def joined(self, progress: PickupProgress) -> None:
        """Record that a handle is being read from now on; with others, none of them is ``alone`` any more."""
        self._readers[progress.id] = progress
        if len(self._readers) > 1:
            for reader in self._readers.values():
                reader.alone = False

    def left(self, progress: PickupProgress) -> None:
        """Record that a handle is no longer read."""
        self._readers.pop(progress.id, None)

    def completed_by(self, start: int, end: int, size: int) -> bool:
        """Add the range ``[start, end)``; return whether it completed the file of ``size`` bytes."""
        self._coverage.add(start, end)
        before, self._whole = self._whole, self._whole or self._coverage.covers(size)
        return self._whole and not before


class Delivery:
    """What one session has answered, until it is proven to have been delivered.

    ``held_back`` returns how many bytes handed to the channel have not left for the transport, or None if that cannot
    be known; ``together`` is shared by all sessions, by user and file, and holds its values weakly.
    """

    def __init__(
        self,
        stream: ByteStream,
        held_back: Callable[[], int | None],
        report: Callable[[Pickup], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        together: MutableMapping[tuple[str, LogName], Together] | None = None,
    ) -> None:
        self._together = {} if together is None else together
        self._parts: dict[str, Together] = {}  # by id of an unfinished pickup, what it is a part of
        self._stream = stream
        self._held_back = held_back
        self._report = report
        self._clock = clock
        self._handed = 0  # bytes of replies
        self._answer: _Entry | None = None  # the next reply's, whose end is not known yet
        self._held: deque[_Entry] = deque()  # ends are positions in the channel
        self._on_the_way: deque[_Entry] = deque()  # ends are positions in the connection
        self._closed: list[PickupProgress] = []
        self._before_close = 0  # the position acknowledged before the last CLOSE arrived
        self._acknowledged = 0  # the position acknowledged when the socket could last be queried
        self._news: dict[str, PickupProgress] = {}  # open handles with deliveries that were not reported yet
        self._ticks = 0
        self._lost = False  # a reply never left, so nothing after it can be proven

    @property
    def pending(self) -> bool:
        """Whether a pickup was closed and is not yet finished."""
        return bool(self._closed)

    @property
    def waits(self) -> bool:
        """Whether `tick` has anything to do."""
        return bool(self._held or self._on_the_way or self._closed or self._news)

    @property
    def holds(self) -> bool:
        """Whether file data has not left for the transport."""
        return bool(self._held)

    @property
    def asks(self) -> bool:
        """Whether a question must follow the file data that has not left."""
        return bool(self._held) and (not self._stream.asking or any(entry.last for entry in self._held))

    def begins(self, progress: PickupProgress, offset: int) -> None:
        """Record where a handle is first read: it may be where an interrupted pickup is resumed."""
        progress.first_read = offset
        part = self._together.setdefault((progress.user, progress.name), Together())
        part.deliveries.add(self)
        part.joined(progress)
        self._parts[progress.id] = part

    def answered(self, progress: PickupProgress, offset: int, count: int) -> None:
        """Record which bytes of a file the next reply carries."""
        if progress.first_read is None:
            self.begins(progress, offset)
        part = self._parts[progress.id]
        before = progress.coverage.bytes
        progress.answered(offset, count)
        whole = part.completed_by(offset, offset + count, progress.size)
        if whole:
            for other in part.deliveries - {self}:
                other.ask(again=True)
        # Only if it is new: a client that reads the last bytes again and again is not asked each time.
        last = offset + count >= progress.size and progress.coverage.bytes > before
        self._answer = _Entry(progress, offset, count, last or whole)

    def close_arrives(self) -> None:
        """Record what was acknowledged when a CLOSE arrives; call it only if no earlier request is waiting.

        Some clients never answer questions (SSH.NET did not: its issue 709), but close when they have everything. From
        others a CLOSE proves nothing: a client that has the bytes has answered, and one that gave up closes, too.
        """
        if not self._stream.answers:
            with suppress(OSError):  # the socket is gone
                self._before_close = self._stream.acknowledged()

    def closed(self, progress: PickupProgress) -> None:
        """Keep the pickup of a closed handle until it is proven that the client has what it read."""
        self._news.pop(progress.id, None)
        self._closed.append(progress)
        if not self._stream.answers:
            mine = [e for e in self._on_the_way if e.progress is progress and e.end <= self._before_close]
            for entry in mine:
                self._on_the_way.remove(entry)
                progress.delivered(entry.offset, entry.length)
        # Before the reply to CLOSE: clients wait for that before they leave.
        self.ask(again=True)

    def handed_over(self, count: int, *, data: bool) -> None:
        """Record that a reply of ``count`` bytes, with file ``data`` or not, is about to leave for the channel."""
        self._handed += count
        if data and self._answer is not None:
            self._answer.end = self._handed
            self._held.append(self._answer)
            self._answer = None

    def reply_lost(self) -> None:
        """Record that a reply was thrown away, so that the ends of those after it are unknown."""
        self._lost = True
        self._held.clear()

    def channel_closed(self) -> None:
        """Record that the channel is closing: asyncssh drops what it holds, and the empty buffer will look sent."""
        # Now, while the buffer still tells the truth.
        self.mark()
        self.reply_lost()

    def mark(self) -> None:
        """Record, for the replies that have left for the transport, where in the connection's bytes they end."""
        if self._lost or not self._held or (back := self._held_back()) is None:
            return
        left, written, again = self._handed - back, self._stream.written, False
        while self._held and self._held[0].end <= left:
            entry = self._held.popleft()
            again |= entry.last
            # The latest possible position: whatever was handed over later and has left follows it.
            entry.end = written - (left - entry.end)
            last = self._on_the_way[-1] if self._on_the_way else None
            if (
                last is not None
                and last.progress is entry.progress
                and last.offset + last.length == entry.offset
                and last.length + entry.length <= MERGED
            ):
                last.end = entry.end
                last.length += entry.length
            elif len(self._on_the_way) < MAX_ON_THE_WAY:
                self._on_the_way.append(entry)
        self.ask(again=again)

    def ask(self, *, again: bool = False) -> None:
        """Ask about what is on the way, unless that was done; while a question is under way, only if ``again``."""
        stream = self._stream
        if self._on_the_way and self._on_the_way[-1].end > stream.last_question and (again or not stream.asking):
            stream.ask()

    def confirm(self) -> None:
        """Record what is proven, finish the closed pickups that are delivered, and ask about the rest."""
        self.mark()
        if self._on_the_way:
            with suppress(OSError):  # the socket is gone: nothing more can be proven
                # Both are needed: a client that cheats can answer early, but not before its system has the bytes.
                self._acknowledged = self._stream.acknowledged()
                proven = min(self._stream.proven, self._acknowledged)
                while self._on_the_way and self._on_the_way[0].end <= proven:
                    entry = self._on_the_way.popleft()
                    entry.progress.delivered(entry.offset, entry.length)
                    self._news[entry.progress.id] = entry.progress
        self.ask()
        if self._closed:
            waiting = {entry.progress.id for entry in (*self._held, *self._on_the_way)}
            self._finish([progress for progress in self._closed if progress.id not in waiting])

    def tick(self) -> None:
        """Confirm, and report open handles with news: at once if the whole file is delivered, else now and then."""
        self.confirm()
        self._ticks += 1
        for progress in list(self._news.values()):
            if progress.complete or self._ticks % TELL_EVERY == 0:
                del self._news[progress.id]
                if progress.untold:
                    self._report(progress.so_far())

    def abandon(self, still_open: Iterable[PickupProgress]) -> None:
        """Finish every pickup: the session is over, and what is not proven by now may have been lost on the way."""
        self.confirm()
        self._finish(list(self._closed))
        for progress in still_open:
            self._end(progress, closed=False)
        self._news.clear()

    def _finish(self, finished: list[PickupProgress]) -> None:
        for progress in finished:
            # Removed first, so that a report that fails is not repeated.
            self._closed.remove(progress)
            self._end(progress, closed=True)

    def _end(self, progress: PickupProgress, *, closed: bool) -> None:
        """Report a handle that has ended, with the tail that its client may have but did not answer for."""
        self._news.pop(progress.id, None)
        start, end = None, 0
        for entry in self._on_the_way:
            if entry.progress is progress:
                if entry.end > self._acknowledged or (start is not None and entry.offset != end):
                    break
                start = entry.offset if start is None else start
                end = entry.offset + entry.length
        if start is not None:
            progress.leave_tail(start, end)
        if (part := self._parts.pop(progress.id, None)) is not None:
            part.left(progress)
        self._report(progress.finished(self._clock(), closed=closed))
