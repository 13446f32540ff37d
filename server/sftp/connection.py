"""One SSH connection: its transport, its limits, and the sessions on it.

Touches one accepted socket through asyncssh. Promise: nothing but SFTP is served on it; while the peer does not take
replies, no requests are answered, and nothing is read any more once the answers to other SSH messages pile up in
memory; every login, refusal and pickup is reported to the registry, and every pickup ends with the connection at the
latest.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

import asyncssh

from .algorithms import SIGNATURES, Offer, Profile, ciphers_for
from .delivery import ByteStream, CountedTransport
from .limits import Reason
from .password_methods import METHODS
from .registry import plain
from .users import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncssh.packet import SSHPacket

    from ..settings import SftpSettings
    from .keys import Credentials
    from .limits import Address
    from .registry import Registry

SERVER_VERSION = "pickup-point"  # gives away no version number
# RFC 4344, section 3.2: a key of a cipher with 16-byte blocks may serve 2**32 of them. This is half of that, since
# asyncssh does not count packet lengths (4 bytes of at least 16) or what it sends during a key exchange; and it is more
# than the largest file, since some clients break when the server starts rekeying.
REKEY_BYTES = 1 << 35
REKEY_SECONDS = 24 * 3600
KEEPALIVES_MISSED = 3
KEEPALIVES_LENGTH = 2048  # bytes on the wire: more than all keepalives take that may be waiting for an answer

UNSENT_HIGH = 256 * 1024  # bytes, each for a channel and for the socket
UNSENT_LOW = 64 * 1024
# Bytes unsent at which reading stops, for the connection and for each session on it: more than a session's replies take
# on their own (UNSENT_HIGH and what is answered at once), so that only answers to other SSH messages get there.
UNSENT_MOST = 768 * 1024
# Bytes of the client's that are processed before other connections get their turn: more than most ask for at once.
# The system hands over up to 256 KiB, which can hold thousands of packets, and those take a second.
PIECE = 8 * 1024
RECEIVE_WINDOW = 64 * 1024  # bytes: requests are small; this bounds what waits unread in a channel
MSG_DISCONNECT, MSG_SERVICE_REQUEST, MSG_KEXINIT = 1, 5, 20  # RFC 4253, section 12
MSG_EXT_INFO = 7  # RFC 8308, section 2.3
LARGEST_EXCHANGE = 65_536  # bytes: more than a version and the largest packet, RFC 4253, section 6.1
GREETING = 12  # bytes: enough to tell SSH from a PROXY header
MSG_USERAUTH_REQUEST, MSG_USERAUTH_INFO_RESPONSE = 50, 61  # RFC 4252, section 6; RFC 4256, section 5
MAX_PACKETS_BEFORE_LOGIN = 500  # IGNORE and the like included: each takes time of the one event loop
MAX_EXCHANGES_BEFORE_LOGIN = 3  # key exchanges: each costs the event loop up to 20 ms, and an attacker nothing
# After login: this many key exchanges, and one more for each EXCHANGE_BYTES acknowledged or EXCHANGE_SECONDS passed.
FREE_EXCHANGES = 20
EXCHANGE_BYTES, EXCHANGE_SECONDS = 32 * 1024, 60.0
MAX_AUTH_REQUESTS = 100  # on one connection, including those that try nothing ("none", a change of password)
MAX_DEFERRED = 4096  # packets that wait for the end of a key exchange, during which a client may send no requests
MIN_PACKET = 512  # bytes of data; all known clients take 16 KiB or more, and each packet sets up the cipher again
MSG_REQUEST_SUCCESS, MSG_REQUEST_FAILURE = 81, 82  # RFC 4254, section 4
MSG_CHANNEL_WINDOW_ADJUST, MSG_CHANNEL_CLOSE, MSG_CHANNEL_REQUEST = 93, 97, 98  # RFC 4254, section 9
MAX_CHANNEL_REQUESTS = 64  # "env" and the like, on one channel


class TooManyRequests(asyncssh.ProtocolError):
    """A client asks for more on one connection than any client has reason to."""

    def __init__(self) -> None:
        super().__init__("Too many requests")


class Session(Protocol):
    """What a connection needs of a session on it."""

    @property
    def busy(self) -> bool:
        """Whether a transfer is under way."""

    def pump(self) -> None:
        """Answer what can be answered now."""

    def plan_pump(self) -> None:
        """Call `pump` soon."""

    def confirm_delivery(self) -> None:
        """Record what is proven to have arrived."""

    def window_opened(self) -> None:
        """Resume soon: the client is about to open its window."""

    def channel_closed(self) -> None:
        """Record that the client is closing the channel."""

    def answer_arrived(self) -> None:
        """Answer the requests that have arrived together."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End with the channel."""


class LoginTries(Protocol):
    """What a connection needs of its login handler."""

    async def begin_try(self, username: str) -> None:
        """Count a try before it is made."""

    async def failed(self, username: str, reason: Reason) -> None:
        """Count a failure."""

    def key_refused(self, username: str, key: bytes, why: Verdict) -> None:
        """Count an offered key that does not let the user in."""

    def signature_refused(self, username: str, algorithm: str) -> None:
        """Log a signature whose algorithm is not accepted."""


class SshConnection(asyncssh.SSHServerConnection):
    """asyncssh's connection with back-pressure, without configuration files, and with our own checks."""

    def __init__(
        self,
        options: asyncssh.SSHServerConnectionOptions,
        registry: Registry,
        number: int,
        address: Address,
        *,
        counted: bool = True,
        named: bool = True,
    ) -> None:
        super().__init__(asyncio.get_running_loop(), options)
        self.registry = registry
        self.number = number
        self.address = address
        self.counted = counted  # False: it is the balancer's own
        self.named = named  # False: the balancer does not name a client, so nobody can be let in
        self.choked = False
        self.sessions: dict[Session, None] = {}  # in the order in which they take their turns
        self.receiving = False  # bytes are being processed: more of the client's packets may follow
        self._unprocessed = bytearray()  # what arrived, and waits for its turn
        self.transport: asyncio.Transport | None = None
        self.last_active = asyncio.get_running_loop().time()
        self.user = ""
        self._auth_requests = 0
        self._packets_before_login = 0
        self._exchanges = 0
        self.born = self.last_active
        self.stream = ByteStream()
        self.greeting = b""  # the peer's first bytes
        self.keys_sent = False  # the client has seen our host key
        self.wants_login = False  # and has accepted it
        self._client_offer: Offer | None = None
        self._taken = 0  # bytes acknowledged when last looked at
        self._has_taken = False  # some were acknowledged since the last keepalive

    @property
    def exchanging(self) -> bool:
        """Whether a key exchange is under way: asyncssh then keeps whatever is written in memory, unsent."""
        return not self._kex_complete

    @property
    def broken(self) -> bool:
        """Whether the socket was given up: writes to it go nowhere, and no buffer shows that."""
        return self.transport is None or self.transport.is_closing()

    @property
    def label(self) -> str:
        """The words that open every journal line of this connection."""
        return f"[conn={self.number} {self.user or '-'} {self.address}]"

    @property
    def client(self) -> str:
        """The client's name and version as it states them, without the protocol's."""
        version = str(self.get_extra_info("client_version", ""))
        return plain(version.removeprefix("SSH-2.0-"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the socket."""
        counted = CountedTransport(cast("asyncio.Transport", transport))
        self.transport = cast("asyncio.Transport", counted)
        # Before anything is written: it counts from the first byte.
        self.stream = ByteStream(counted, self._send_question)
        self.transport.set_write_buffer_limits(high=UNSENT_HIGH, low=UNSENT_LOW)
        super().connection_made(self.transport)

    def pause_writing(self) -> None:
        """Answer no requests of a peer that does not take what we send, or replies would fill the memory.

        Reading goes on: paramiko reads nothing while another of its threads waits to send, and if we did the same, both
        would wait for ever. What the sessions take in meanwhile is bounded by their windows.
        """
        self.choked = True

    def _balance_reading(self) -> None:
        """Read on, unless earlier bytes wait for their turn, or too many answers that are no session's replies."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        most = UNSENT_MOST * (1 + len(self.sessions))
        if self._unprocessed or (self.choked and transport.get_write_buffer_size() > most):
            transport.pause_reading()
        elif not transport.is_reading():
            transport.resume_reading()

    def resume_writing(self) -> None:
        """Read again and resume the sessions: the peer takes bytes again."""
        self.choked = False
        self.touch()
        self._balance_reading()
        for session in list(self.sessions):
            if self.choked:
                break
            # A session goes to the end of the queue first: one that fills the socket again must not take every turn.
            self.sessions[session] = self.sessions.pop(session)
            session.pump()

    def _send_kexinit(self) -> None:
        """Offer what suits the client, whose version is known by now."""
        ciphers = ciphers_for(self.client, tuple(name.decode() for name in self._enc_algs))
        self._enc_algs = [name.encode() for name in ciphers]
        super()._send_kexinit()

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        """Finish a key exchange, and resume the sessions that waited for it."""
        super().send_newkeys(k, h)
        self.keys_sent = True
        # Soon, not now: asyncssh calls this in the middle of handling a packet.
        for session in list(self.sessions):
            session.plan_pump()

    async def _make_global_request(self, request: bytes, *args: bytes) -> tuple[int, SSHPacket]:
        """Send a global request, as asyncssh's keepalives do; the answer proves that everything before it arrived."""
        self.stream.asked()
        return await super()._make_global_request(request, *args)

    def _send_question(self) -> None:
        """Send a keepalive within this call: a client may leave as soon as it has the bytes before it."""
        if self._transport is None or self.broken:
            return
        self.stream.asked()
        # asyncssh takes the answer's waiter off this list; a cancelled one is ignored.
        answer = asyncio.get_running_loop().create_future()
        answer.cancel()
        self._global_request_waiters.append(answer)
        self._send_global_request(b"keepalive@openssh.com", want_reply=True)

    def touch(self) -> None:
        """Record activity of the client, for the idle timeout."""
        self.last_active = asyncio.get_running_loop().time()

    def look_for_progress(self) -> None:
        """Count it as activity if the client's system has acknowledged some of what we sent.

        A slow client may neither ask nor answer anything until it has taken all that was written before our keepalive.
        """
        if self.transport is None:  # not yet
            return
        with suppress(OSError):  # the socket is gone
            taken = self.stream.acknowledged()
            # The system of a client that hangs still acknowledges keepalives, but nothing else is waiting then.
            if taken > self._taken and self.stream.written - taken > KEEPALIVES_LENGTH:
                self._has_taken = True
                self.touch()
            self._taken = taken

    def _keepalive_timer_callback(self) -> None:
        """Send a silent client a keepalive, unless it is still taking what was sent before."""
        self.look_for_progress()
        if not self._has_taken:
            super()._keepalive_timer_callback()
            return
        self._has_taken = False
        self._keepalive_count = 0
        self._set_keepalive_timer()

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:
        """Process the peer's bytes, taking turns with the other connections."""
        waiting = bool(self._unprocessed)
        self._unprocessed += data
        if not waiting:
            self._process_piece()

    def _process_piece(self) -> None:
        """Process some of the peer's bytes, and count them with ours; plan the next piece."""
        if self._transport is None:  # asyncssh has given up the connection
            self._unprocessed.clear()
        data = bytes(self._unprocessed[:PIECE])
        if not data:
            return
        del self._unprocessed[:PIECE]
        self.greeting += data[: GREETING - len(self.greeting)]
        # The same limit holds for the client's key, and both are replaced together (RFC 4344, section 3.2).
        self._rekey_bytes_sent += len(data)
        # Many clients ask for many small pieces at a time: such requests are answered once all have arrived.
        self.receiving = True
        try:
            super().data_received(data)
        finally:
            self.receiving = False
            for session in list(self.sessions):
                session.answer_arrived()
            self._balance_reading()
        if self._unprocessed:
            asyncio.get_running_loop().call_soon(self._process_piece)

    def connection_lost(self, exc: Exception | None = None) -> None:
        """Confirm deliveries a last time, then let asyncssh end the sessions."""
        # While the socket is still open: whatever is not confirmed now counts as not delivered.
        if isinstance(exc, OSError) and not self.keys_sent:
            self._read_the_rest()
        # What arrived before the end may prove something.
        while self._unprocessed:
            self._process_piece()
        for session in self.sessions:
            session.confirm_delivery()
        self.stream.end()
        super().connection_lost(exc)

    def _read_the_rest(self) -> None:
        """Read what a client sent before it reset the connection: our writing may have failed before that was read."""
        if self.transport is None:
            return
        with suppress(OSError), os.fdopen(os.dup(self.transport.get_extra_info("socket").fileno()), "rb", 0) as rest:
            self.data_received(rest.read(LARGEST_EXCHANGE) or b"")

    async def reload_config(self) -> None:
        """Do nothing: there are no configuration files, and a stranger's user names must not cause work."""

    async def _finish_userauth(self, begin_auth: bool, method: bytes, packet: SSHPacket) -> None:
        """Handle the methods that carry a password here, and leave the others to asyncssh."""
        handler = METHODS.get(method)
        if handler is None or not self.get_owner() or not handler.supported(self):
            await super()._finish_userauth(begin_auth, method, packet)
            return
        if self._auth:
            self._auth.cancel()  # the previous try, if the client did not wait for its answer
        self._auth = handler(self, self._username, method, packet)

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """Accept only registered keys, and only the signatures that we advertise: asyncssh would accept RSA with SHA-1.

        A key that is not registered is no failure, whether the client asks first or signs at once, as paramiko does
        with every key it has. Only a bad signature with a registered key is one.
        """
        owner = cast("LoginTries", self.get_owner())
        # First: an unknown key is not worth parsing, nor its signature checking.
        if (verdict := self.registry.check_key(username, self.address, key_data)) is not Verdict.GRANTED:
            owner.key_refused(username, key_data, verdict)
            return False
        if not msg:
            return await super().validate_public_key(username, key_data, msg, signature)
        length = int.from_bytes(signature[:4], "big")
        algorithm = signature[4 : 4 + min(length, 64)].decode("ascii", "replace")
        if algorithm not in SIGNATURES:
            owner.signature_refused(username, algorithm)
            return False
        await owner.begin_try(username)
        valid = await super().validate_public_key(username, key_data, msg, signature)
        if not valid:
            await owner.failed(username, Reason.SIGNATURE)
        return valid

    def log_sent_packet(self, *_: Any, **__: Any) -> None:
        """Log nothing: that would cost more than the packet."""

    def log_received_packet(self, pkttype: int, _pktid: int | None, packet: SSHPacket, *_: Any) -> None:  # type: ignore[override]  # asyncssh calls it like this
        """Log nothing, but limit what one connection may ask, and allow what asyncssh is too strict about.

        Raises:
            TooManyRequests: the connection must be ended.
        """
        self._auth_requests += pkttype in (MSG_USERAUTH_REQUEST, MSG_USERAUTH_INFO_RESPONSE)
        if pkttype == MSG_SERVICE_REQUEST and self._auth_in_progress and not self.user:
            # paramiko requests the service before every try; asyncssh expects that once, and would disconnect.
            self._next_service = b"ssh-userauth"
        if pkttype == MSG_EXT_INFO and self._recv_encryption:
            # asyncssh 2.5 to 2.7 sends this a packet too late; it says nothing that a server needs.
            self._can_recv_ext_info = True
        if pkttype == MSG_KEXINIT:
            # Now: asyncssh looks at it in a task, which never runs if the client resets the connection.
            self._client_offer = Offer.parse(packet.get_full_payload())
        if pkttype == MSG_DISCONNECT:
            for session in list(self.sessions):
                session.answer_arrived()
        if pkttype in (MSG_REQUEST_SUCCESS, MSG_REQUEST_FAILURE):
            # At once: the next packet may end the connection.
            self.stream.answered()
            for session in list(self.sessions):
                session.confirm_delivery()
        self.wants_login |= pkttype == MSG_SERVICE_REQUEST
        self._packets_before_login += not self.user
        self._exchanges += pkttype == MSG_KEXINIT
        if (
            self._auth_requests > MAX_AUTH_REQUESTS
            or len(self._deferred_packets) > MAX_DEFERRED
            or self._packets_before_login > MAX_PACKETS_BEFORE_LOGIN
            or (pkttype == MSG_KEXINIT and self._exchanges > self._allowed_exchanges())
        ):
            raise TooManyRequests

    def _allowed_exchanges(self) -> int:
        """Return how many key exchanges the client may have begun by now."""
        if not self.user:
            return MAX_EXCHANGES_BEFORE_LOGIN
        bytes_taken = 0
        with suppress(OSError):  # the socket is gone
            bytes_taken = self.stream.acknowledged()
        seconds = asyncio.get_running_loop().time() - self.born
        return FREE_EXCHANGES + bytes_taken // EXCHANGE_BYTES + int(seconds / EXCHANGE_SECONDS)

    def new_channel(self, session: Session) -> asyncssh.SSHServerChannel[bytes]:
        """Make the channel of a session: a small window, a minimum packet size, a limit on channel requests.

        The hooks see each packet before asyncssh acts on it, which is why a closing channel can still be marked.
        """
        channel = self.create_server_channel(encoding=None, window=RECEIVE_WINDOW)
        seen = 0

        def count(pkttype: int, *_: Any) -> None:
            nonlocal seen
            if pkttype == MSG_CHANNEL_WINDOW_ADJUST:
                session.window_opened()
            elif pkttype == MSG_CHANNEL_CLOSE:
                session.channel_closed()
            seen += pkttype == MSG_CHANNEL_REQUEST  # each "env" is kept in memory
            if seen > MAX_CHANNEL_REQUESTS or len(self._deferred_packets) > MAX_DEFERRED:
                raise TooManyRequests

        channel.log_received_packet = count  # type: ignore[assignment,method-assign]  # asyncssh has no hook for this
        channel.log_sent_packet = lambda *_, **__: None  # type: ignore[method-assign]  # costs more than the packet
        process_open = channel.process_open

        async def refuse() -> Any:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "The maximum packet size is too small")

        def check_size(number: int, window: int, packet_size: int, opened: Any) -> None:
            if packet_size < MIN_PACKET:
                self.registry.refused(self.address, Reason.PROTOCOL, self.user)
                # The channel never opens, so nothing else would remove the session from the connection.
                session.connection_lost(None)
                opened = refuse()
            process_open(number, window, packet_size, opened)

        channel.process_open = check_size  # type: ignore[assignment,method-assign]  # nothing else sees the size
        return channel

    def offers(self) -> tuple[Offer, Offer] | None:
        """Return what the client and we offered in the last key exchange, or None before there was one."""
        data = self.get_hash_prefix()  # RFC 4253, section 8: both versions and both KEXINITs, each as a string
        for _ in range(3):
            data = data[4 + int.from_bytes(data[:4], "big") :]
        server = Offer.parse(data[4:])
        return (self._client_offer, server) if self._client_offer and server else None


def connection_options(
    settings: SftpSettings, credentials: Credentials, login_handler: Callable[[], asyncssh.SSHServer]
) -> asyncssh.SSHServerConnectionOptions:
    """Return asyncssh's options: the algorithms, the ways to log in, and everything else switched off."""
    # asyncssh looks for a configuration folder in the home even with config=None, and a systemd service with
    # DynamicUser has no home.
    os.environ.setdefault("HOME", "/nonexistent")
    # cryptography warns that it will drop finite-field DH. A test checks what is offered, so this need not be logged.
    warnings.filterwarnings("ignore", message="Diffie-Hellman over finite fields")
    profile = Profile.of(legacy=settings.legacy_algorithms, chacha20=settings.chacha20)
    return asyncssh.SSHServerConnectionOptions(
        config=None,
        server_factory=login_handler,
        server_version=SERVER_VERSION,
        server_host_keys=list(credentials.host_keys),
        kex_algs=list(profile.kex),
        encryption_algs=list(profile.ciphers),
        mac_algs=list(profile.macs),
        signature_algs=list(profile.signatures),
        compression_algs=["none"],
        host_based_auth=False,
        public_key_auth=True,
        password_auth=True,
        kbdint_auth=True,  # asks for the password: some JVM clients try nothing else
        gss_host=None,
        gss_kex=False,
        gss_auth=False,
        allow_pty=False,
        line_editor=False,
        x11_forwarding=False,
        agent_forwarding=False,
        rdns_lookup=False,
        allow_scp=False,
        encoding=None,
        login_timeout=settings.login_timeout.total_seconds(),
        keepalive_interval=settings.keepalive.total_seconds(),
        keepalive_count_max=KEEPALIVES_MISSED,
        rekey_bytes=REKEY_BYTES,
        rekey_seconds=REKEY_SECONDS,
        tcp_keepalive=True,
        sftp_version=3,
    )
