"""What proves that a client has the bytes it was sent: the acknowledgements of its TCP, past the end of each reply.

Touches the connection's socket, and only queries it. Promise: a byte counts as delivered only when the client's system
has acknowledged it; whatever is uncertain counts as not delivered.

The way of a byte: a reply leaves the session for its channel (which may hold it back), the channel for the transport
(which may), the transport for the kernel, the kernel for the peer. `CountedTransport` counts what was written to the
transport, so a reply that nothing holds back any more ends, at the latest, at the count of that moment; it is delivered
when the peer has acknowledged so many bytes. What a broken transport throws away is counted too, but never
acknowledged.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from typing import Any

    from ..pickups import Pickup, PickupProgress

MERGED = 64 * 1024  # bytes: neighbouring replies up to this are one entry, delivered together
MAX_ON_THE_WAY = 4096  # entries of one session; what exceeds them is never proven
TELL_EVERY = 200  # ticks between two records of an open handle


class CountedTransport:
    """An asyncio transport that counts the bytes that were written to it, from its beginning."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.written = 0
        self._write = transport.write
        self._transport = transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write, and count."""
        # First: a failure may come after a part was sent, and to count too much proves too little.
        self.written += len(data)
        self._write(data)

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write several, and count."""
        self.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class ByteStream:
    """The bytes that one connection has sent, as positions counted from its beginning; made before the first one.

    Without a ``transport`` it is that of a connection that has none yet.
    """

    def __init__(self, transport: CountedTransport | None = None) -> None:
        self._transport = transport
        self._socket: Any = None if transport is None else transport.get_extra_info("socket")
        self._before = 0
        with suppress(OSError):  # gone already: nothing will ever be acknowledged
            # What the system counted before we wrote anything: nothing, unless it counts the handshake.
            self._before = self._acknowledged()

    @property
    def written(self) -> int:
        """The position at which everything written so far ends."""
        return 0 if self._transport is None else self._transport.written

    def acknowledged(self) -> int:
        """Return the position up to which the peer's system has acknowledged; raise `OSError` without a socket."""
        return self._acknowledged() - self._before

    def end(self) -> None:
        """Ask no more: the socket is about to be closed, and its descriptor may be that of another one then."""
        self._socket = None

    def _acknowledged(self) -> int:
        """Return tcpi_bytes_acked of Linux's tcp_info."""
        if self._socket is None or self._socket.fileno() < 0:
            raise OSError
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        return int(struct.unpack_from("Q", info, 120)[0])


class _Entry(NamedTuple):
    """Bytes of a file in an answer, and where they end: in the channel's bytes, or in the connection's."""

    end: int
    progress: PickupProgress
    offset: int
    length: int


class Delivery:
    """What one session has answered, until it is proven that the client's system has it.

    ``held_back`` says how many of the bytes that were handed to the channel have not left for the transport, or None
    where nobody can say.
    """

    def __init__(
        self,
        stream: ByteStream,
        held_back: Callable[[], int | None],
        report: Callable[[Pickup], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._stream = stream
        self._held_back = held_back
        self._report = report
        self._clock = clock
        self._handed = 0  # bytes of replies
        self._answer: tuple[PickupProgress, int, int] | None = None  # of the reply that comes next
        self._held: deque[_Entry] = deque()  # end: in the channel
        self._on_the_way: deque[_Entry] = deque()  # end: in the connection
        self._closed: list[PickupProgress] = []
        self._news: dict[str, PickupProgress] = {}  # open handles with something delivered that was not told
        self._ticks = 0
        self._lost = False  # a reply never left: of what is held, nothing more can be proven

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

    def answered(self, progress: PickupProgress, offset: int, count: int) -> None:
        """Note which bytes of a file the next reply carries."""
        progress.answered(offset, count)
        self._answer = progress, offset, count

    def closed(self, progress: PickupProgress) -> None:
        """Wait for the proof that the client has what it read on a handle that it closed."""
        self._news.pop(progress.id, None)
        self._closed.append(progress)

    def handed_over(self, count: int, *, data: bool) -> None:
        """Note that a reply of ``count`` bytes, of file ``data`` or not, is about to leave for the channel."""
        self._handed += count
        if data and self._answer is not None:
            self._held.append(_Entry(self._handed, *self._answer))
            self._answer = None

    def reply_lost(self) -> None:
        """Note that a reply was thrown away: where those after it end, nobody knows."""
        self._lost = True
        self._held.clear()

    def channel_closed(self) -> None:
        """Note that the channel closes: asyncssh drops what it holds, and its empty buffer looks as if all had left."""
        # The last moment at which the buffer still tells the truth.
        self.mark()
        self.reply_lost()

    def mark(self) -> None:
        """Note, of the replies that have left for the transport, where in the connection's bytes they end."""
        if self._lost or not self._held or (back := self._held_back()) is None:
            return
        left, position = self._handed - back, self._stream.written
        while self._held and self._held[0].end <= left:
            entry = self._held.popleft()
            last = self._on_the_way[-1] if self._on_the_way else None
            if (
                last is not None
                and last.progress is entry.progress
                and last.offset + last.length == entry.offset
                and last.length + entry.length <= MERGED
            ):
                self._on_the_way[-1] = _Entry(position, last.progress, last.offset, last.length + entry.length)
            elif len(self._on_the_way) < MAX_ON_THE_WAY:
                self._on_the_way.append(_Entry(position, entry.progress, entry.offset, entry.length))

    def confirm(self) -> None:
        """Take note of what the client's system has acknowledged, and finish the closed pickups that are delivered."""
        self.mark()
        if self._on_the_way:
            with suppress(OSError):  # the socket is gone: nothing more can be proven
                acknowledged = self._stream.acknowledged()
                while self._on_the_way and self._on_the_way[0].end <= acknowledged:
                    _, progress, offset, length = self._on_the_way.popleft()
                    progress.delivered(offset, length)
                    self._news[progress.id] = progress
        if self._closed:
            waiting = {entry.progress.id for entry in (*self._held, *self._on_the_way)}
            self._finish([progress for progress in self._closed if progress.id not in waiting])

    def tick(self) -> None:
        """Confirm; report open handles with news: at once if the whole file was delivered, else now and then."""
        self.confirm()
        self._ticks += 1
        for progress in list(self._news.values()):
            if progress.complete or self._ticks % TELL_EVERY == 0:
                del self._news[progress.id]
                if progress.untold:
                    self._report(progress.so_far())

    def abandon(self, still_open: Iterable[PickupProgress]) -> None:
        """Finish every pickup: the session is over, and what was not acknowledged by now may be lost on the way."""
        self.confirm()
        self._finish(list(self._closed))
        for progress in still_open:
            self._report(progress.finished(self._clock(), closed=False))
        self._news.clear()

    def _finish(self, finished: list[PickupProgress]) -> None:
        for progress in finished:
            # Taken off first, so that a report that fails is not made twice.
            self._closed.remove(progress)
            self._news.pop(progress.id, None)
            self._report(progress.finished(self._clock(), closed=True))
