"""One SFTP session: an SSH channel's bytes become requests, the handler's replies become bytes.

Touches one channel of a connection. Promise: requests are answered one after the other, none is begun while the client
does not take replies, a reply that waits for a disk holds up nobody else, and what was open when the channel ends is
reported as interrupted.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

import asyncssh
import structlog

from .connection import UNSENT_HIGH, UNSENT_LOW
from .delivery import CountedTransport, Delivery
from .fast_send import FastSender
from .handler import Client, Events, RequestHandler
from .limits import Reason
from .protocol import MAX_PACKET, Kind

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextlib import AbstractContextManager

    from ..pickups import Pickup
    from .connection import SshConnection
    from .handler import Reply

log = structlog.get_logger()

ONLY_SFTP = b"This service allows SFTP only.\n"
TURN = 1 << 20  # bytes answered before other connections get their turn
BATCH = 128 * 1024  # bytes of replies, from which on they leave, though more requests have come together
_CLOSE = bytes([Kind.CLOSE])
REQUEST_COST = 16 * 1024  # bytes that a request counts for besides its reply: small ones take time too
MAX_WAITING = 32 * 1024  # bytes of requests that may wait for an earlier one
CONFIRM_POLL = 0.05  # seconds
_WHAT_TO_SWITCH_OFF = {
    "remove": 'the partner\'s client deletes after fetching; switch that off: NiFi "Delete Original: false" or '
    '"Completion Strategy: None", Camel "delete=false&noop=true"',
    "rename": 'the partner\'s client moves files after fetching; switch that off: NiFi "Completion Strategy: None", '
    'Camel "noop=true" instead of "move=…"',
    "write": "the partner's client uploads, or writes a lock or test file here; switch that off",
    "setstat": 'the partner\'s client sets times or modes; switch that off: WinSCP "Preserve timestamp"',
}


class SftpSession(asyncssh.SSHServerSession[bytes]):
    """One channel: takes requests from its bytes, one after the other, and sends the replies."""

    _channel: asyncssh.SSHServerChannel[bytes]
    _fast_sender: FastSender

    def __init__(self, connection: SshConnection) -> None:
        self._connection = connection
        self._handler: RequestHandler | None = None
        self._batch: list[Reply] = []  # replies that have not left yet, while more requests are answered
        self._batched = 0  # bytes of them
        self._rest: memoryview | None = None  # of replies that the client's window was too small for
        self._inbox = bytearray()
        self._arrived = False  # something is in the inbox that more may follow at once
        self._waiting = False  # for a disk
        self._unsent = False  # the channel holds too much
        self._ended = False  # the client has said that it will send nothing more
        self._lost = False
        self._pump_planned = False
        self._tick_planned = False
        self._reading_paused = False
        self._task: asyncio.Task[None] | None = None
        self._delivery: Delivery | None = None
        connection.sessions.add(self)

    @property
    def busy(self) -> bool:
        """Whether a transfer is under way."""
        return self._waiting or (self._handler is not None and self._handler.busy)

    @property
    def _blocked(self) -> bool:
        """Whether the next request must wait: for a disk, for new keys, or for the client to take the last reply."""
        connection = self._connection
        return self._waiting or self._unsent or self._rest is not None or connection.choked or connection.exchanging

    # -- what asyncssh calls --

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """Take over the channel, which is open."""
        self._channel = chan
        chan.set_write_buffer_limits(high=UNSENT_HIGH, low=UNSENT_LOW)
        self._fast_sender = FastSender(chan)

    def shell_requested(self) -> bool:
        """Accept a shell, to answer it with a sentence."""
        return True

    def exec_requested(self, command: str) -> bool:
        """Accept a command, to answer it with a sentence."""
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """Accept SFTP, and nothing else."""
        if subsystem != "sftp":
            return False
        connection = self._connection
        registry = connection.registry
        # Before it can open a file: whether it is a client that answers.
        if not (connection.stream.answers or connection.stream.asking):
            connection.stream.ask()
        self._delivery = Delivery(connection.stream, self._held_back, self._pickup, together=registry.together)
        self._handler = RequestHandler(
            delivery=self._delivery,
            files=registry.files,
            client=Client(connection.user, str(connection.address), connection.client),
            events=Events(pickup=self._pickup, refused=self._refused, failed=self._failed),
            max_handles=registry.limits.handles,
            threads=registry.disk_threads,
            may_open=lambda: registry.may_open_file(connection),
            turn=lambda: registry.turn_to_open(connection.user),
        )
        return True

    def session_started(self) -> None:
        """End a shell or a command with a sentence."""
        if self._handler is None:
            self._channel.write(ONLY_SFTP)
            self._channel.exit(1)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Take in bytes of requests, and answer those that are whole."""
        if self._handler is not None and not self._lost:
            if data[4:5] == _CLOSE:
                # Before it: what is acknowledged now counts only where nothing that was asked before waits.
                self.answer_arrived()
                if self._delivery is not None and not self._inbox:
                    self._delivery.close_arrives()
            self._inbox += data
            # A planned pump answers later: who sends a lot at once must not take the others' turn.
            if self._pump_planned:
                self._balance()
            elif self._connection.receiving:
                self._arrived = True
            else:
                self.pump()

    def answer_arrived(self) -> None:
        """Answer what has come together, and was kept until all of it was there: the replies can leave together."""
        if self._arrived and not self._lost:
            self.pump()

    def eof_received(self) -> bool:
        """Note that the client sends nothing more, and answer what it has asked."""
        self._ended = True
        self.pump()
        return True

    def pause_writing(self) -> None:
        """Answer nothing more: the channel holds enough that the client does not take."""
        self._unsent = True

    def resume_writing(self) -> None:
        """Go on soon: the client has taken something."""
        self._unsent = False
        self._connection.touch()
        self.plan_pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """End with the channel; what was open is reported as interrupted."""
        # From here on nothing is marked: asyncssh may have thrown away what the channel held.
        self._lost = True
        # Now, while the socket can be asked: a thread that reads for this session may take its time.
        self.confirm_delivery()
        self._rest = None
        self._batch.clear()
        self._inbox.clear()
        self._connection.sessions.discard(self)
        # A thread may still read into an open file: then `_answer_later` ends the session when it is back.
        if not self._waiting:
            self._abandon()

    # -- requests and replies --

    def pump(self) -> None:
        """Answer what can be answered now, in turn with the other sessions."""
        turn = TURN
        position = 0
        self._arrived = False
        inbox = self._inbox
        handler = self._handler
        # The rest of the last reply comes first: replies may not overtake each other.
        with self._at_once():
            if self._rest is not None and not (self._lost or self._connection.choked):
                self._send_rest()
            if self._delivery is not None:
                self._delivery.mark()
        while handler is not None and not (self._lost or self._blocked):
            if len(inbox) - position < 4:
                break
            length = int.from_bytes(inbox[position : position + 4], "big")
            if not 0 < length <= MAX_PACKET:
                self._flush()
                self._end(Reason.PROTOCOL)
                return
            if len(inbox) - position < 4 + length:
                break
            request = bytes(inbox[position + 4 : position + 4 + length])
            if self._batch and request[:1] == _CLOSE:
                # First: the question about them must leave before the reply to CLOSE, after which a client may leave.
                self._flush()
                continue
            position += 4 + length
            self._connection.touch()
            reply = handler.answer(request)
            if reply is None:
                self._flush()
                self._end(Reason.PROTOCOL)
                return
            if not isinstance(reply, bytes | bytearray):
                self._flush()
                # Nothing else is answered until this one is; the loop goes on with other sessions.
                self._waiting = True
                self._task = asyncio.get_running_loop().create_task(self._answer_later(reply))
                break
            self._add(reply)
            if self._batched >= BATCH:
                self._flush()
            # One session must not keep the loop: after its turn it goes to the end of the queue.
            turn -= len(reply) + REQUEST_COST
            if turn <= 0:
                self.plan_pump()
                break
        self._flush()
        # Once, not per request: each cut moves everything behind it.
        del inbox[:position]
        self._balance()

    def _balance(self) -> None:
        """Pause reading while earlier requests wait, resume it after them, and end the session when all is done."""
        if self._lost or self._handler is None:
            return
        blocked = self._blocked or self._pump_planned
        if blocked and len(self._inbox) > MAX_WAITING and not self._reading_paused:
            self._reading_paused = True
            self._channel.pause_reading()
        elif self._reading_paused and not blocked and len(self._inbox) <= MAX_WAITING:
            self._reading_paused = False
            # Soon, not now: asyncssh delivers what it holds within this call, and so `pump` would call itself.
            asyncio.get_running_loop().call_soon(self._resume_reading)
        elif self._ended and not (blocked or self._reading_paused):
            self._channel.exit(0)

    def _resume_reading(self) -> None:
        if not self._lost:
            self._channel.resume_reading()

    def plan_pump(self) -> None:
        """Pump soon, once, however often this is called."""
        if not self._pump_planned:
            self._pump_planned = True
            asyncio.get_running_loop().call_soon(self._planned_pump)

    def _planned_pump(self) -> None:
        self._pump_planned = False
        if not self._lost:
            self.pump()

    async def _answer_later(self, reply: Awaitable[Reply]) -> None:
        try:
            answer = await reply
        finally:
            # In `finally`: also when opening or reading failed, the files of a lost session must be closed.
            self._waiting = False
            if self._lost:
                self._abandon()
        if not self._lost:
            self._add(answer)
            self._flush()
            self.pump()

    def _add(self, reply: Reply) -> None:
        """Let a reply leave with those before it: packets, system calls and questions are fewer for many together."""
        if self._delivery is not None:
            # Before the reply leaves: what is marked from here on must lie behind it.
            self._delivery.handed_over(len(reply), data=isinstance(reply, bytearray))
        self._batch.append(reply)
        self._batched += len(reply)

    def _flush(self) -> None:
        """Send the replies that have not left yet, as far as the client's window allows."""
        if not self._batch or self._rest is not None:
            return  # after the rest, which has the client's window to wait for
        replies, count = self._batch, self._batched
        self._batch, self._batched = [], 0
        with self._at_once():
            self._rest = memoryview(replies[0] if len(replies) == 1 else b"".join(replies))
            self._send_rest()
            if self._delivery is not None and self._delivery.waits:
                self._delivery.mark()
                self._plan_tick()
        self._connection.registry.counters.bytes_sent += count

    def _at_once(self) -> AbstractContextManager[None]:
        """Let a reply and the question behind it leave together: a client may leave as soon as it has the reply."""
        if self._delivery is None or not self._delivery.asks or self._connection.broken:
            return nullcontext()
        return cast("CountedTransport", self._connection.transport).at_once()

    def _send_rest(self) -> None:
        """Send on the rest of the replies, as far as the client's window allows."""
        transport = self._connection.transport
        if self._rest is None or transport is None or self._connection.exchanging:
            return
        sent = self._fast_sender.send(transport, self._rest)
        # The slow path takes all of it: asyncssh keeps what the window has no room for.
        if sent is None:
            self._write(bytes(self._rest))
            self._rest = None
        else:
            self._rest = self._rest[sent:] if sent < len(self._rest) else None

    def _write(self, data: bytes) -> None:
        try:
            self._channel.write(data)
        except OSError:  # one of the sides closed the channel; connection_lost follows
            if self._delivery is not None:
                self._delivery.reply_lost()

    def window_opened(self) -> None:
        """Go on soon: the client is about to open its window."""
        if self._rest is not None:
            self._connection.touch()
        if self._rest is not None or (self._delivery is not None and self._delivery.holds):
            self.plan_pump()

    def channel_closed(self) -> None:
        """Note that the client closes the channel, before asyncssh throws away what it still holds."""
        self.answer_arrived()
        if self._delivery is not None:
            self._delivery.channel_closed()

    def confirm_delivery(self) -> None:
        """Take note of what is proven to have arrived."""
        if self._delivery is not None:
            self._delivery.confirm()

    def _held_back(self) -> int | None:
        """Return how many bytes of replies have not left for the transport; None during a key exchange or after."""
        if self._lost or self._connection.exchanging:
            return None
        rest = len(self._rest) if self._rest is not None else 0
        return self._batched + rest + self._channel.get_write_buffer_size()

    def _plan_tick(self) -> None:
        """Look at what is proven soon, and again until there is nothing to wait for: the kernel reports none."""
        if not self._tick_planned:
            self._tick_planned = True
            asyncio.get_running_loop().call_later(CONFIRM_POLL, self._tick)

    def _tick(self) -> None:
        self._tick_planned = False
        if self._delivery is not None and not self._lost:
            self._delivery.tick()
            if self._delivery.waits:
                self._plan_tick()

    def _end(self, reason: Reason) -> None:
        """End the session: what came is not SFTP."""
        self._connection.registry.refused(self._connection.address, reason, self._connection.user)
        self._inbox.clear()
        self._channel.exit(1)

    def _abandon(self) -> None:
        if self._handler is not None:
            self._handler.abandon()

    # -- what the handler reports --

    def _pickup(self, pickup: Pickup) -> None:
        self._connection.registry.picked_up(self._connection, pickup)

    def _refused(self, verb: str, name: str) -> None:
        connection = self._connection
        if verb == "handles":
            connection.registry.refused(connection.address, Reason.HANDLES, connection.user)
            return
        details = {"verb": verb}
        if name:
            details["name"] = name
        details["hint"] = _WHAT_TO_SWITCH_OFF.get(verb, "this service is read-only; have the partner switch that off")
        connection.registry.refused_verb(connection, **details)

    def _failed(self, name: str, error: OSError) -> None:
        log.error(f"{self._connection.label} could not read {name}", error=error.strerror or type(error).__name__)
