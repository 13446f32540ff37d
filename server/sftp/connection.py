"""One SSH connection: its transport, its limits, and the sessions on it.

Touches one accepted socket through asyncssh. Promise: nothing but SFTP is served on it; while the peer does not take
replies, neither requests nor SSH messages are read, so that no replies pile up in memory; every login, refusal and
pickup is reported to the registry, and every pickup ends with the connection.
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

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncssh.packet import SSHPacket

    from ..settings import SftpSettings
    from .keys import Credentials
    from .limits import Address
    from .registry import Registry

SERVER_VERSION = "pickup-point"  # gives away no version number
# RFC 4344, section 3.2: no key of a cipher with blocks of 16 bytes serves more than 2**32 of them. This is half of it,
# since asyncssh counts no lengths (4 bytes of at least 16) and nothing that it sends during a key exchange; and it is
# above the largest file, since some clients break when the server starts a rekeying.
REKEY_BYTES = 1 << 35
REKEY_SECONDS = 24 * 3600
KEEPALIVES_MISSED = 3
KEEPALIVES_LENGTH = 2048  # bytes on the wire: more than all questions that wait for an answer have

UNSENT_HIGH = 256 * 1024  # bytes, of one channel and of the socket
UNSENT_LOW = 64 * 1024
RECEIVE_WINDOW = 64 * 1024  # requests are small; this bounds what waits unread in a channel
MSG_DISCONNECT, MSG_SERVICE_REQUEST, MSG_KEXINIT = 1, 5, 20  # RFC 4253, section 12
MSG_EXT_INFO = 7  # RFC 8308, section 2.3
LARGEST_EXCHANGE = 65_536  # bytes: a version and the largest packet, RFC 4253, section 6.1
GREETING = 12  # bytes: enough to tell SSH from a balancer's header
MSG_USERAUTH_REQUEST, MSG_USERAUTH_INFO_RESPONSE = 50, 61  # RFC 4252, section 6; RFC 4256, section 5
MAX_PACKETS_BEFORE_LOGIN = 500  # including IGNOREs and the like: each takes time of the one event loop
MAX_EXCHANGES_BEFORE_LOGIN = 3  # of keys: each costs the loop up to 20 ms, and costs a client that cheats nothing
FREE_EXCHANGES = 20  # after login, and one more for this many bytes acknowledged, or this many seconds:
EXCHANGE_BYTES, EXCHANGE_SECONDS = 32 * 1024, 60.0
MAX_AUTH_REQUESTS = 100  # on one connection, including those that try nothing ("none", a change of password)
MAX_DEFERRED = 4096  # packets that wait for the end of a key exchange, during which a client may ask for nothing
MIN_PACKET = 512  # bytes of data; all known clients take 16 KiB or more, and each packet sets up the cipher anew
MSG_REQUEST_SUCCESS, MSG_REQUEST_FAILURE = 81, 82  # RFC 4254, section 4
MSG_CHANNEL_WINDOW_ADJUST, MSG_CHANNEL_CLOSE, MSG_CHANNEL_REQUEST = 93, 97, 98  # RFC 4254, section 9
MAX_CHANNEL_REQUESTS = 64  # "env" and the like, on one channel


class TooManyRequests(asyncssh.ProtocolError):
    """A client asks for more on one connection than any client needs."""

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
        """Pump soon."""

    def confirm_delivery(self) -> None:
        """Take note of what is proven to have arrived."""

    def window_opened(self) -> None:
        """Go on soon: the client is about to open its window."""

    def channel_closed(self) -> None:
        """Note that the client closes the channel."""

    def answer_arrived(self) -> None:
        """Answer what has come together."""

    def connection_lost(self, exc: Exception | None) -> None:
        """End with the channel."""


class LoginTries(Protocol):
    """What a connection needs of the handler of its login."""

    async def begin_try(self, username: str) -> None:
        """Count a try before it is made."""

    async def failed(self, username: str, reason: Reason) -> None:
        """Count a failure."""

    def key_refused(self, username: str) -> None:
        """Count an offered key that is not registered."""

    def signature_refused(self, username: str, algorithm: str) -> None:
        """Log a signature of a kind that is not accepted."""


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
        self.counted = counted  # False: a balancer's own
        self.named = named  # False: the balancer does not say for whom it is, so nobody can be let in
        self.choked = False
        self.sessions: set[Session] = set()
        self.receiving = False  # more of the client's packets may follow within this call
        self.transport: asyncio.Transport | None = None
        self.last_active = asyncio.get_running_loop().time()
        self.user = ""
        self._auth_requests = 0
        self._packets_before_login = 0
        self._exchanges = 0
        self.born = self.last_active
        self.stream = ByteStream()
        self.greeting = b""  # the first bytes that the peer sent
        self.keys_sent = False  # we have shown our host key
        self.wants_login = False  # the client has accepted it
        self._client_offer: Offer | None = None
        self._taken = 0  # bytes acknowledged when we last looked
        self._has_taken = False  # some of them since the last keepalive

    @property
    def exchanging(self) -> bool:
        """Whether keys are being exchanged: asyncssh keeps all that is written meanwhile in memory, unsent."""
        return not self._kex_complete

    @property
    def broken(self) -> bool:
        """Whether the socket was given up: what is written to it goes nowhere, and no buffer shows that."""
        return self.transport is None or self.transport.is_closing()

    @property
    def label(self) -> str:
        """The words that every log line of this connection begins with."""
        return f"[conn={self.number} {self.user or '-'} {self.address}]"

    @property
    def client(self) -> str:
        """The client's version in its own words, without the protocol's."""
        version = str(self.get_extra_info("client_version", ""))
        return plain(version.removeprefix("SSH-2.0-"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the socket."""
        counted = CountedTransport(cast("asyncio.Transport", transport))
        self.transport = cast("asyncio.Transport", counted)
        # Before anything is written.
        self.stream = ByteStream(counted, self._send_question)
        self.transport.set_write_buffer_limits(high=UNSENT_HIGH, low=UNSENT_LOW)
        super().connection_made(self.transport)

    def pause_writing(self) -> None:
        """Stop reading from a peer that does not take what we send, or replies would fill the memory."""
        self.choked = True
        # At the socket: asyncssh would answer other SSH requests too, and keep the answers.
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read again, and resume the sessions: the peer takes bytes again."""
        self.choked = False
        self.touch()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        for session in list(self.sessions):
            session.pump()

    def _send_kexinit(self) -> None:
        """Offer what suits the client, which has told its version by now."""
        ciphers = ciphers_for(self.client, tuple(name.decode() for name in self._enc_algs))
        self._enc_algs = [name.encode() for name in ciphers]
        super()._send_kexinit()

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        """Finish a key exchange, and resume the sessions that waited for it."""
        super().send_newkeys(k, h)
        self.keys_sent = True
        # Soon, not now: asyncssh calls this while it handles a packet.
        for session in list(self.sessions):
            session.plan_pump()

    async def _make_global_request(self, request: bytes, *args: bytes) -> tuple[int, SSHPacket]:
        """Ask the client something, as asyncssh's keepalives do: its answer proves what lies before it."""
        self.stream.asked()
        return await super()._make_global_request(request, *args)

    def _send_question(self) -> None:
        """Send a keepalive now, within this call: a client may leave as soon as it has the bytes before it."""
        if self._transport is None or self.broken:
            return
        self.stream.asked()
        # asyncssh takes an answer off this list, and does nothing with it.
        answer = asyncio.get_running_loop().create_future()
        answer.cancel()
        self._global_request_waiters.append(answer)
        self._send_global_request(b"keepalive@openssh.com", want_reply=True)

    def touch(self) -> None:
        """Note that the client did something, for the idle timeout."""
        self.last_active = asyncio.get_running_loop().time()

    def look_for_progress(self) -> None:
        """Take it for a sign of life when the client's system has acknowledged a part of what waits for it.

        A slow client may ask for nothing, and answer nothing, until it has all that we wrote before our question.
        """
        if self.transport is None:  # not yet
            return
        with suppress(OSError):  # the socket is gone
            taken = self.stream.acknowledged()
            # Our own questions are acknowledged by the system of a client that hangs, but nothing waits behind them.
            if taken > self._taken and self.stream.written - taken > KEEPALIVES_LENGTH:
                self._has_taken = True
                self.touch()
            self._taken = taken

    def _keepalive_timer_callback(self) -> None:
        """Ask a silent client whether it is still there, unless it is taking what we sent before."""
        self.look_for_progress()
        if not self._has_taken:
            super()._keepalive_timer_callback()
            return
        self._has_taken = False
        self._keepalive_count = 0
        self._set_keepalive_timer()

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:
        """Process the peer's bytes, and count them with ours."""
        self.greeting += data[: GREETING - len(self.greeting)]
        # The client's key serves no more bytes than ours: both are replaced together (RFC 4344, section 3.2).
        self._rekey_bytes_sent += len(data)
        # Many clients ask for small pieces, many at a time: these requests are answered when all of them are there.
        self.receiving = True
        try:
            super().data_received(data, datatype)
        finally:
            self.receiving = False
            for session in list(self.sessions):
                session.answer_arrived()

    def connection_lost(self, exc: Exception | None = None) -> None:
        """Confirm deliveries for the last time, then let asyncssh end the sessions."""
        # While the socket is still open: what is not confirmed by then counts as not delivered.
        if isinstance(exc, OSError) and not self.keys_sent:
            self._read_the_rest()
        for session in self.sessions:
            session.confirm_delivery()
        self.stream.end()
        super().connection_lost(exc)

    def _read_the_rest(self) -> None:
        """Read what a client said before it reset the connection: our own writing may fail before that was read."""
        if self.transport is None:
            return
        with suppress(OSError), os.fdopen(os.dup(self.transport.get_extra_info("socket").fileno()), "rb", 0) as rest:
            self.data_received(rest.read(LARGEST_EXCHANGE) or b"")

    async def reload_config(self) -> None:
        """Do nothing: there are no configuration files, and a stranger's user names must not cost work."""

    async def _finish_userauth(self, begin_auth: bool, method: bytes, packet: SSHPacket) -> None:
        """Handle the methods that carry a password here, and leave the others to asyncssh."""
        handler = METHODS.get(method)
        if handler is None or not self.get_owner() or not handler.supported(self):
            await super()._finish_userauth(begin_auth, method, packet)
            return
        if self._auth:
            self._auth.cancel()  # the last try, if the client did not wait for its answer
        self._auth = handler(self, self._username, method, packet)

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        """Accept registered keys only, and only signatures that we advertise: asyncssh takes SHA-1 from RSA keys.

        A key that is not registered is no failure, whether the client asks first or signs at once, as paramiko does
        with every key that it has. Only a bad signature by a registered key is one.
        """
        owner = cast("LoginTries", self.get_owner())
        # First: a stranger's key is not worth parsing, nor its signature checking.
        if not self.registry.knows_key(username, self.address, key_data):
            owner.key_refused(username)
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
        """Log nothing: it costs more than the packet."""

    def log_received_packet(self, pkttype: int, _pktid: int | None, packet: SSHPacket, *_: Any) -> None:  # type: ignore[override]  # it is called so
        """Log nothing, but limit what one connection may ask, and allow what asyncssh is too strict about.

        Raises:
            TooManyRequests: the connection is to be ended.
        """
        self._auth_requests += pkttype in (MSG_USERAUTH_REQUEST, MSG_USERAUTH_INFO_RESPONSE)
        if pkttype == MSG_SERVICE_REQUEST and self._auth_in_progress and not self.user:
            # paramiko asks for the service before every try; asyncssh expects that once, and would disconnect.
            self._next_service = b"ssh-userauth"
        if pkttype == MSG_EXT_INFO and self._recv_encryption:
            # asyncssh 2.5 to 2.7 sends it a packet too late, and it tells a server nothing that it needs.
            self._can_recv_ext_info = True
        if pkttype == MSG_KEXINIT:
            # Now: asyncssh looks at it in a task, which never runs when the client resets the connection.
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
        """Make the channel of a session: a small window, a least packet size, few requests before the session starts.

        The hooks look at each packet before asyncssh acts on it, which is why a closing channel can still be marked.
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

        channel.log_received_packet = count  # type: ignore[assignment,method-assign]  # asyncssh has no hook for it
        channel.log_sent_packet = lambda *_, **__: None  # type: ignore[method-assign]  # costs more than the packet
        process_open = channel.process_open

        async def refuse() -> Any:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "The maximum packet size is too small")

        def check_size(number: int, window: int, packet_size: int, opened: Any) -> None:
            if packet_size < MIN_PACKET:
                self.registry.refused(self.address, Reason.PROTOCOL, self.user)
                # The channel never opens, so nobody else would take the session off the connection.
                session.connection_lost(None)
                opened = refuse()
            process_open(number, window, packet_size, opened)

        channel.process_open = check_size  # type: ignore[assignment,method-assign]  # nothing else learns the size
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
    # asyncssh looks for a configuration folder in the home even with config=None, and a service that systemd
    # runs with DynamicUser has no home.
    os.environ.setdefault("HOME", "/nonexistent")
    # cryptography warns that it will drop finite-field DH; a test holds what is offered, so keep it out of the journal.
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
