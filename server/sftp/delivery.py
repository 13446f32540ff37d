"""What proves that a client has the bytes it was sent: the acknowledgements of its TCP, past a mark behind the data.

Touches the connection's socket, and only queries it. Promise: a pickup is reported as finished only when the client's
system has acknowledged the last byte of file data; whatever is uncertain counts as interrupted.

The way of a byte: a reply leaves the session for its channel (which may hold it back), the channel for the transport
(which may), the transport for the kernel, the kernel for the peer. Once session and channel
hold nothing back, `Delivery.mark` notes the position in the connection's stream where the last data ends;
`Delivery.confirm` compares it with the position that the peer has acknowledged.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any, Protocol

    from ..pickups import Pickup, PickupProgress

    class Connection(Protocol):
        """A connection with a transport, which is None before it is made."""

        transport: asyncio.Transport | None

        def get_extra_info(self, name: str) -> Any:
            """Return what the transport says, or None when there is none any more."""


class ByteStream:
    """The bytes that one connection has sent, as positions counted from its beginning.

    Every method raises `OSError` when the socket is gone.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def sent(self) -> int:
        """Return the position at which everything written so far ends."""
        transport = self._connection.transport
        waiting = transport.get_write_buffer_size() if transport is not None else 0
        while True:
            before, queued, after = self.acknowledged(), self._queued(), self.acknowledged()
            # Ask again if an acknowledgement came in between: its bytes would count twice, as queued and acknowledged.
            if before == after:
                return waiting + queued + after

    def acknowledged(self) -> int:
        """Return the position up to which the peer's system has acknowledged (tcpi_bytes_acked in Linux's tcp_info)."""
        info = self._socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        return int(struct.unpack_from("Q", info, 120)[0])

    def _queued(self) -> int:
        """Return how many bytes the kernel holds that the peer has not acknowledged (SIOCOUTQ in tcp(7))."""
        return int(struct.unpack("i", fcntl.ioctl(self._socket(), termios.TIOCOUTQ, bytes(4)))[0])

    def _socket(self) -> socket.socket:
        sock = cast("socket.socket | None", self._connection.get_extra_info("socket"))
        if sock is None or sock.fileno() < 0:
            raise OSError
        return sock


class Delivery:
    """The pickups of one session that the client has closed, until it is proven that it has their bytes."""

    def __init__(
        self,
        stream: ByteStream,
        nothing_held_back: Callable[[], bool],
        report: Callable[[Pickup], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._stream = stream
        self._nothing_held_back = nothing_held_back
        self._report = report
        self._clock = clock
        self._closed: list[PickupProgress] = []
        self._unmarked = False  # data was sent after the mark
        self._mark = 0
        self._lost = False  # a reply never left: nothing more can be proven

    @property
    def pending(self) -> bool:
        """Whether a pickup was closed and is not yet finished."""
        return bool(self._closed)

    @property
    def waits(self) -> bool:
        """Whether there is anything to prove: data behind the mark, or a closed pickup."""
        return self._unmarked or bool(self._closed)

    def closed(self, progress: PickupProgress) -> None:
        """Wait for the proof that the client has what it read on a handle that it closed."""
        self._closed.append(progress)

    def data_sent(self) -> None:
        """Note that file data was handed to the session's channel."""
        self._unmarked = True

    def reply_lost(self) -> None:
        """Note that a reply was thrown away: no position in the stream proves anything from here on."""
        self._lost = True

    def channel_closed(self) -> None:
        """Note that the channel closes: asyncssh drops what it holds, and its empty buffer looks as if all had left."""
        # The last moment at which the buffer still tells the truth; what cannot be marked now never can be.
        self.mark()
        self._lost |= self._unmarked

    def mark(self) -> None:
        """Note where in the stream the last data ends, if none of it is held back before the transport."""
        if self._unmarked and not self._lost and self._nothing_held_back():
            with suppress(OSError):  # the socket is gone
                # In this order: where the stream cannot be asked, the data stays unmarked.
                self._mark = self._stream.sent()
                self._unmarked = False

    def confirm(self) -> None:
        """Finish the closed pickups if the client's system has acknowledged everything up to the mark."""
        if not self._closed:
            return
        # Data that was held back when its reply was sent may have left since then.
        self.mark()
        with suppress(OSError):  # the socket is gone: nothing more can be proven
            if not self._unmarked and self._stream.acknowledged() >= self._mark:
                self._finish(taken=True)

    def abandon(self) -> None:
        """Finish the closed pickups as interrupted: the session is over, their bytes may be lost on the way."""
        self._finish(taken=False)

    def _finish(self, *, taken: bool) -> None:
        # Emptied first, so that a report that fails is not made twice.
        closed, self._closed = self._closed, []
        for progress in closed:
            self._report(progress.finished(self._clock(), closed=True, taken=taken))
