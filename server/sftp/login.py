"""Who may log in on a connection: tries, waits, and what asyncssh asks.

Touches no world of its own: asyncssh calls it, and it asks the listener. Promise: every try counts, made in turn or all
at once; every login and every refusal is told to the listener, and the count of connections is right however one ends.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

import asyncssh
import structlog

from .algorithms import agreed, disagreement
from .limits import Reason
from .session import SftpSession
from .users import Verdict

if TYPE_CHECKING:
    from .connection import SshConnection

log = structlog.get_logger()

MOST_KEY_OFFERS = 30  # on one connection: agents hold many keys
# What a scanner, a browser or a broken client ends in; a client that hangs up by itself is none of them.
NO_SSH = (
    asyncssh.IllegalUserName,
    asyncssh.MACError,
    asyncssh.ProtocolError,
    asyncssh.ProtocolNotSupported,
    asyncssh.ServiceNotAvailable,
    ValueError,  # asyncssh's parsers, and the mathematics under them, say so of bytes that make no sense
)


class TooManyRequests(asyncssh.ProtocolError):
    """A client asks more on one connection than any needs."""

    def __init__(self) -> None:
        super().__init__("Too many requests")


@dataclass(frozen=True, slots=True)
class Login:
    """A successful login, for the records."""

    number: int
    user: str
    address: str
    client: str
    method: str
    kex: str
    host_key: str
    cipher: str
    mac: str


def plain(text: str, longest: int = 64) -> str:
    """A client's words, fit for one field of a log line: nothing in them can look like another field or line."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._@-+/") else "_" for c in text[:longest])
    return kept or "-"


class LoginHandler(asyncssh.SSHServer):
    """What asyncssh asks about a connection: who may log in, and what they get."""

    _connection: SshConnection

    def __init__(self) -> None:
        self._tries = 0
        self._next_try = 0.0  # the loop's time
        self._key_offers = 0
        self._method = "publickey"

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """The socket is open, nothing was said yet."""
        self._connection = cast("SshConnection", conn)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        connection = self._connection
        connection.registry.left(connection)  # first: asyncssh swallows what is raised here
        if isinstance(exc, asyncssh.KeyExchangeFailed):
            self._diagnose()
        elif not connection.user and "Login timeout" in str(exc):
            connection.registry.refused(connection.address, Reason.LOGIN_TIMEOUT)
        elif isinstance(exc, TooManyRequests):
            connection.registry.refused(connection.address, Reason.FLOOD, connection.user)
        elif isinstance(exc, NO_SSH) and not connection.user:
            connection.registry.refused(connection.address, Reason.PROTOCOL, client=connection.client)
        elif isinstance(exc, asyncssh.DisconnectError | ValueError) and not isinstance(exc, asyncssh.ConnectionLost):
            connection.registry.ended(connection, type(exc).__name__)
        elif exc is None or isinstance(exc, asyncssh.Error | OSError):
            pass  # the client hung up, or we did
        elif connection.registry.may_log("broke-off", connection.address):  # a traceback is long
            log.error(f"{connection.label} broke off", error=type(exc).__name__, exc_info=exc)

    def _diagnose(self) -> None:
        connection = self._connection
        offers = connection.offers()
        legacy = connection.registry.legacy_algorithms
        found = disagreement(*offers, legacy=legacy) if offers else None
        details = {}
        if found is not None:
            theirs, ours = (",".join(plain(name) for name in names[:40]) for names in (found.client, found.server))
            details = {"missing": found.what, "client_offers": theirs, "we_offer": ours, "hint": found.hint}
        connection.registry.refused(connection.address, Reason.KEY_EXCHANGE, client=connection.client, **details)

    def begin_auth(self, username: str) -> bool:
        """Everybody must log in, and every name is asked for the same proof."""
        return True

    def password_auth_supported(self) -> bool:
        """Passwords are what Triton's activation sheet asks for."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Keys are better."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether the user may log in with this key; asked before and again with the signature."""
        connection = self._connection
        return connection.registry.knows_key(username, connection.address, key.public_data)

    async def validate_password(self, username: str, password: str) -> bool:
        """Whether it is the user's password."""
        connection = self._connection
        await self.begin_try(username)
        verdict = await connection.registry.check_password(username, connection.address, password)
        if verdict is Verdict.GRANTED:
            self._method = "password"
            return True
        await self.failed(username, Reason(verdict.value))
        return False

    async def begin_try(self, username: str) -> None:
        """Count a try before it is made: asyncssh cancels one, and the wait after it, when the next request comes."""
        self._tries += 1
        if self._tries > self._connection.registry.limits.auth_tries:
            self._no_more(username)
        await self._wait_for_turn()

    async def _wait_for_turn(self) -> None:
        await asyncio.sleep(max(0.0, self._next_try - asyncio.get_running_loop().time()))

    def _no_more(self, username: str) -> NoReturn:
        self._connection.registry.refused(self._connection.address, Reason.TRIES, username)
        raise asyncssh.DisconnectError(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many failures")

    async def failed(self, username: str, reason: Reason) -> None:
        """Count a failure, wait as long as the address has earned, and end the connection when it was one too many."""
        connection = self._connection
        penalty = connection.registry.login_failed(connection.address, reason, username)
        if penalty.banned:
            raise asyncssh.DisconnectError(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many failures")
        self._next_try = asyncio.get_running_loop().time() + penalty.delay
        await self._wait_for_turn()
        if self._tries >= connection.registry.limits.auth_tries:
            self._no_more(username)

    def key_refused(self) -> None:
        """An offered key that is not known: no failure, but not without end either."""
        self._key_offers += 1
        if self._key_offers > MOST_KEY_OFFERS:
            raise asyncssh.DisconnectError(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many keys")

    def auth_completed(self) -> None:
        """The user is in."""
        connection = self._connection
        connection.user = str(connection.get_extra_info("username"))
        connection.touch()
        offers = connection.offers()
        cipher = str(connection.get_extra_info("send_cipher"))
        login = Login(
            number=connection.number,
            user=connection.user,
            address=str(connection.address),
            client=connection.client,
            method=self._method,
            kex=(offers and agreed(offers[0].kex, offers[1].kex)) or "-",
            host_key=(offers and agreed(offers[0].host_keys, offers[1].host_keys)) or "-",
            cipher=cipher,
            mac=cipher if "gcm" in cipher or "poly1305" in cipher else str(connection.get_extra_info("send_mac")),
        )
        connection.registry.logged_in(connection, login)

    def session_requested(self) -> Any:
        """A session, unless the user has too many."""
        connection = self._connection
        if not connection.registry.has_room_for_session(connection):
            return False
        session = SftpSession(connection)
        return connection.new_channel(session), session
