"""One SFTP session: an SSH channel's bytes become requests, the handler's replies become bytes.

Touches one channel of a connection. Promise: requests are answered one after the other; none is begun while the client
takes no replies; a reply that waits for a disk holds up no other session; and what is open when the channel ends is
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
from .registry import plain

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextlib import AbstractContextManager

    from ..pickups import Pickup
    from .connection import SshConnection
    from .handler import Reply

log = structlog.get_logger()

ONLY_SFTP = b"This service allows SFTP only.\n"
TURN = 1 << 20  # bytes answered before other connections get their turn
BATCH = 128 * 1024  # bytes of replies that are sent without waiting for more
_CLOSE = bytes([Kind.CLOSE])
REQUEST_COST = 16 * 1024  # bytes that a request counts for besides its reply: small ones take time, too
# Bytes of requests that may wait for an earlier one, as many as with OpenSSH: paramiko asks for a whole file before it
# takes the first reply. Beyond it such a client and we would wait for each other for ever.
MAX_WAITING = 2 * 1024 * 1024
CONFIRM_POLL = 0.05  # seconds between looks at what was delivered
_WHAT_TO_SWITCH_OFF = {
    "remove": 'the partner\'s client deletes after fetching; switch that off: NiFi "Delete Original: false" or '
    '"Completion Strategy: None", Camel "delete=false&noop=true"',
    "rename": 'the partner\'s client moves files after fetching; switch that off: NiFi "Completion Strategy: None", '
    'Camel "noop=true" instead of "move=…"',
    "write": "the partner's client uploads, or writes a lock or test file here; switch that off",
    "setstat": 'the partner\'s client sets times or modes; switch that off: WinSCP "Preserve timestamp"',
}
_NOT_SFTP = 'only SFTP is served here; the partner may use "sftp" or "scp -s", but not "scp -O", rsync or a shell'


class SftpSession(asyncssh.SSHServerSession[bytes]):
    """One channel: takes requests from its bytes, one after another, and sends the replies."""

    _channel: asyncssh.SSHServerChannel[bytes]
    _fast_sender: FastSender

    def __init__(self, connection: SshConnection) -> None:
        self._connection = connection
        self._handler: RequestHandler | None = None
        self._batch: list[Reply] = []  # replies not sent yet, while more requests are answered
        self._batched = 0  # bytes in it
        self._rest: memoryview | None = None  # what the client's window had no room for
        self._inbox = bytearray()
        self._arrived = False  # there is something in the inbox, and more may follow at once
        self._waiting = False  # for a disk
        self._unsent = False  # the channel holds too much
        self._ended = False  # the client has sent EOF
        self._lost = False
        self._pump_planned = False
        self._tick_planned = False
        self._reading_paused = False
        self._task: asyncio.Task[None] | None = None
        self._delivery: Delivery | None = None
        connection.sessions[self] = None

    @property
    def busy(self) -> bool:
        """Whether a transfer is under way."""
        return self._waiting or (self._handler is not None and self._handler.busy)

    @property
    def _blocked(self) -> bool:
        """Whether the next request must wait: for a disk, for a key exchange, or for the client to take replies."""
        connection = self._connection
        return self._waiting or self._unsent or self._rest is not None or connection.choked or connection.exchanging

    @property
    def _free(self) -> bool:
        """Whether the next request may be answered."""
        return not (self._lost or self._blocked)

    # -- what asyncssh calls --

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        """Take over the channel, which is now open."""
        self._channel = chan
        chan.set_write_buffer_limits(high=UNSENT_HIGH, low=UNSENT_LOW)
        self._fast_sender = FastSender(chan)

    def shell_requested(self) -> bool:
        """Accept a shell, to answer it with a sentence."""
        return self._refuse_with_a_sentence("shell")

    def exec_requested(self, command: str) -> bool:
        """Accept a command, to answer it with a sentence; what it is may hold a secret, and is not logged."""
        return self._refuse_with_a_sentence("command")

    def subsystem_requested(self, subsystem: str) -> bool:
        """Accept SFTP, and nothing else."""
        connection = self._connection
        registry = connection.registry
        if subsystem != "sftp":
            registry.refused_verb(connection, "subsystem", name=plain(subsystem, 32), hint=_NOT_SFTP)
            return False
        # Before it can open a file: find out whether this client answers questions.
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

    def _refuse_with_a_sentence(self, verb: str) -> bool:
        self._connection.registry.refused_verb(self._connection, verb, hint=_NOT_SFTP)
        return True

    def session_started(self) -> None:
        """End a shell or a command with a sentence."""
        if self._handler is None:
            self._channel.write(ONLY_SFTP)
            self._channel.exit(1)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Take in bytes of requests, and answer those that are complete."""
        if self._handler is not None and not self._lost:
            if data[4:5] == _CLOSE:
                # First the requests before it: what is acknowledged now counts only if none of those is waiting.
                self.answer_arrived()
                if self._delivery is not None and not self._inbox:
                    self._delivery.close_arrives()
            self._inbox += data
            # A planned pump will answer: one that sends a lot at once must not take the others' turn.
            if self._pump_planned:
                self._balance()
            elif self._connection.receiving:
                self._arrived = True
            else:
                self.pump()

    def answer_arrived(self) -> None:
        """Answer the requests that arrived together, kept until all were there so that the replies leave together."""
        if self._arrived and not self._lost:
            self.pump()

    def eof_received(self) -> bool:
        """Record that the client will send nothing more, and answer what it has asked."""
        self._ended = True
        self.pump()
        return True

    def pause_writing(self) -> None:
        """Stop answering: the channel holds too much that the client has not taken."""
        self._unsent = True

    def resume_writing(self) -> None:
        """Resume soon: the client has taken something."""
        self._unsent = False
        self._connection.touch()
        self.plan_pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """End with the channel; what was open is reported as interrupted."""
        # From here on nothing is marked: asyncssh may have thrown away what the channel held.
        self._lost = True
        # Now, while the socket can be queried: a thread that reads for this session may take its time.
        self.confirm_delivery()
        self._rest = None
        self._batch.clear()
        self._inbox.clear()
        self._connection.sessions.pop(self, None)
        # A thread may still be reading from an open file: `_answer_later` then ends the session once it is done.
        if not self._waiting:
            self._abandon()

    # -- requests and replies --

    def pump(self) -> None:
        """Answer what can be answered now, taking turns with the other sessions."""
        turn = TURN
        position = 0
        self._arrived = False
        inbox = self._inbox
        handler = self._handler
        if self._rest is not None or (self._delivery is not None and self._delivery.holds):
            # The rest of earlier replies comes first: replies must not overtake each other.
            with self._at_once():
                if not self._lost:
                    self._send_rest()
                if self._delivery is not None:
                    self._delivery.mark()
        free = self._free
        while handler is not None and free:
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
                # Sent first: the question about them must precede the reply to CLOSE, after which a client may leave.
                self._flush()
                free = self._free
                continue
            position += 4 + length
            reply = handler.answer(request)
            if reply is None:
                self._flush()
                self._end(Reason.PROTOCOL)
                return
            if not isinstance(reply, bytes | bytearray):
                self._flush()
                # This session answers nothing else until then; others go on.
                self._waiting = True
                self._task = asyncio.get_running_loop().create_task(self._answer_later(reply))
                break
            self._add(reply)
            if self._batched >= BATCH:
                self._flush()
                free = self._free  # asked when something was sent, not for each request
            # One session must not hog the event loop: after its turn it goes to the end of the queue.
            turn -= len(reply) + REQUEST_COST
            if turn <= 0:
                self.plan_pump()
                break
        self._flush()
        # Once, not per request: each deletion moves everything after it.
        del inbox[:position]
        if position:
            self._connection.touch()
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
            # Soon, not now: asyncssh delivers what it holds within that call, and `pump` would recurse.
            asyncio.get_running_loop().call_soon(self._resume_reading)
        elif self._ended and not (blocked or self._reading_paused):
            self._channel.exit(0)

    def _resume_reading(self) -> None:
        if not self._lost:
            self._channel.resume_reading()

    def plan_pump(self) -> None:
        """Call `pump` soon, and once, however often this is called."""
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
        except Exception:
            # Nobody awaits this task, and the client would wait for its answer for ever. The end is logged.
            self._connection.internal_error()
            return
        finally:
            # In `finally`: also if opening or reading failed, a lost session's files must be closed.
            self._waiting = False
            if self._lost:
                self._abandon()
        if not self._lost:
            self._add(answer)
            self._flush()
            self.pump()

    def _add(self, reply: Reply) -> None:
        """Add a reply to the batch: sent together, replies take fewer packets, system calls and questions."""
        if self._delivery is not None:
            # Before the reply leaves: whatever is marked later must come after it.
            self._delivery.handed_over(len(reply), data=isinstance(reply, bytearray))
        self._batch.append(reply)
        self._batched += len(reply)

    def _flush(self) -> None:
        """Send the batched replies, as far as the client's window allows."""
        if not self._batch or self._rest is not None:
            return  # the rest goes first, and waits for the client's window
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
        """Let replies leave together with the question after them: a client may leave as soon as it has the replies."""
        if self._delivery is None or not self._delivery.asks or self._connection.broken:
            return nullcontext()
        return cast("CountedTransport", self._connection.transport).at_once()

    def _send_rest(self) -> None:
        """Send more of the rest, as far as the client takes it and its window allows."""
        connection = self._connection
        transport = connection.transport
        if self._rest is None or transport is None or connection.exchanging or connection.choked:
            return
        sent = self._fast_sender.send(transport, self._rest)
        # The slow path takes it all: asyncssh keeps what the window has no room for.
        if sent is None:
            self._write(bytes(self._rest))
            self._rest = None
        else:
            self._rest = self._rest[sent:] if sent < len(self._rest) else None

    def _write(self, data: bytes) -> None:
        try:
            self._channel.write(data)
        except OSError:  # either side closed the channel; connection_lost follows
            if self._delivery is not None:
                self._delivery.reply_lost()

    def window_opened(self) -> None:
        """Resume soon: the client is about to open its window."""
        if self._rest is not None:
            self._connection.touch()
        if self._rest is not None or (self._delivery is not None and self._delivery.holds):
            self.plan_pump()

    def channel_closed(self) -> None:
        """Record that the client is closing the channel, before asyncssh throws away what it still holds."""
        self.answer_arrived()
        if self._delivery is not None:
            self._delivery.channel_closed()

    def confirm_delivery(self) -> None:
        """Record what is proven to have arrived."""
        if self._delivery is not None:
            self._delivery.confirm()

    def _held_back(self) -> int | None:
        """Return how many bytes of replies have not left for the transport; None if lost, or during a key exchange."""
        if self._lost or self._connection.exchanging:
            return None
        rest = len(self._rest) if self._rest is not None else 0
        return self._batched + rest + self._channel.get_write_buffer_size()

    def _plan_tick(self) -> None:
        """Check for proof soon, and again until there is nothing to wait for: the kernel sends no event for it."""
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
        """End the session: what arrived is not SFTP."""
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
