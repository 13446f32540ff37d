"""Who may log in on a connection: tries, delays, and the callbacks that asyncssh makes.

Touches nothing outside: asyncssh calls it, and it asks the registry. Promise: every try counts, whether tries are made
in turn or all at once; every login and refusal is reported to the registry, and the count of connections is right
however one ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn, cast

import asyncssh

from .algorithms import authenticates, negotiate
from .endings import LoginAttempt, report_end
from .limits import Reason
from .registry import NO_CLIENT, Login, plain
from .session import SftpSession
from .users import Verdict

if TYPE_CHECKING:
    from .connection import SshConnection

ORDINARY_OFFERS = 30  # unknown keys on one connection: agents hold many; more than this are worth a line
KEYS_HINT = "the partner's client offers every key it has: name one (IdentitiesOnly=yes, look_for_keys=False)"
SHA1_HINT = "the partner's client signs with SHA-1: update it (rsa-sha2-256), or register an Ed25519 key"
FORWARDING_HINT = "nothing is forwarded here; have the partner switch that off (ssh: no -L, -R, -D)"
SIGNATURE_HINT = "register an Ed25519 key of the partner's"


class LoginHandler(asyncssh.SSHServer):
    """Answers what asyncssh asks about a connection: who may log in, and what they get."""

    _connection: SshConnection

    def __init__(self) -> None:
        self._attempt = LoginAttempt()
        self._next_try = 0.0  # the loop's time
        self._method = "publickey"

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Remember the connection: its socket is open, and nothing has been exchanged yet."""
        self._connection = cast("SshConnection", conn)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection out, and log why it ended if that is worth a line."""
        connection = self._connection
        # First: asyncssh swallows exceptions here, and the count must be right whatever follows.
        connection.registry.left(connection)
        report_end(connection, exc, self._attempt)

    def begin_auth(self, username: str) -> bool:
        """Return that a login is needed, whatever the user name: all are asked for the same proof.

        Raises:
            asyncssh.DisconnectError: a balancer does not say whose connection it is.
        """
        connection = self._connection
        self._attempt.user = username
        if not connection.named:
            # Without an address to ban, or to look up in an allow_from, passwords could be guessed here for ever.
            why = "a login came on a connection that names no client"
            connection.registry.refused(connection.address, Reason.BALANCER, username, why=why, hint=NO_CLIENT)
            raise asyncssh.DisconnectError(asyncssh.DISC_BY_APPLICATION, "No client's address")
        return True

    def password_auth_supported(self) -> bool:
        """Allow passwords: Triton's activation sheet asks for one."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Allow public keys, which are better."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Return whether the user may log in with this key; called before the signature is checked, and again after."""
        connection = self._connection
        return connection.registry.check_key(username, connection.address, key.public_data) is Verdict.GRANTED

    async def try_password(self, username: str, password: bytes) -> bool:
        """Return whether ``password`` (as sent) is the user's; a wrong one is answered with a delay."""
        connection = self._connection
        await self.begin_try(username)
        verdict = await connection.registry.check_password(username, connection.address, password)
        if verdict is Verdict.GRANTED:
            self._method = "password"
            return True
        await self.failed(username, Reason(verdict.value))
        return False

    async def begin_try(self, username: str) -> None:
        """Count a try, and wait until it may be made.

        Raises:
            asyncssh.DisconnectError: it is one too many.
        """
        # Counted before it is made: asyncssh cancels a try, and the wait after it, when the next request arrives.
        self._attempt.tries += 1
        if self._attempt.tries > self._connection.registry.limits.auth_tries:
            self._refuse_more_tries(username)
        await self._wait_for_turn()

    async def _wait_for_turn(self) -> None:
        await asyncio.sleep(max(0.0, self._next_try - asyncio.get_running_loop().time()))

    def _refuse_more_tries(self, username: str) -> NoReturn:
        self._connection.registry.refused(self._connection.address, Reason.TRIES, username)
        raise asyncssh.DisconnectError(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many failures")

    async def failed(self, username: str, reason: Reason) -> None:
        """Count a failure and wait out its delay.

        Raises:
            asyncssh.DisconnectError: it was one too many, for the connection or for the address.
        """
        connection = self._connection
        penalty = connection.registry.login_failed(connection.address, reason, username)
        if penalty.banned:
            raise asyncssh.DisconnectError(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many failures")
        # Remembered for the next try, since asyncssh cancels this wait if the client tries again at once.
        self._next_try = asyncio.get_running_loop().time() + penalty.delay
        await self._wait_for_turn()
        if self._attempt.tries >= connection.registry.limits.auth_tries:
            self._refuse_more_tries(username)

    def key_refused(self, username: str, key: bytes, why: Verdict) -> None:
        """Count an offered key that does not let the user in: that is no failure, however many there are."""
        attempt = self._attempt
        attempt.keys += 1
        # A key that is only offered from the wrong address tells more than one that nobody knows.
        if attempt.refused_key is None or why is Verdict.WRONG_ADDRESS:
            attempt.refused_key = key, why
        if attempt.keys == ORDINARY_OFFERS + 1:
            attempt.told = True
            connection = self._connection
            connection.registry.refused(
                connection.address, Reason.KEYS, username, client=connection.client, hint=KEYS_HINT
            )

    def signature_refused(self, username: str, algorithm: str) -> None:
        """Log that a registered key signed with an algorithm that is not accepted: no failure, nothing was guessed."""
        connection = self._connection
        self._attempt.told = True
        sha1 = algorithm == "ssh-rsa"
        reason, hint = (Reason.SHA1, SHA1_HINT) if sha1 else (Reason.SIGNATURE_ALGORITHM, SIGNATURE_HINT)
        details = {"client": connection.client, "algorithm": plain(algorithm), "hint": hint}
        connection.registry.refused(connection.address, reason, username, **details)

    def auth_completed(self) -> None:
        """Record the login, with the algorithms that were negotiated."""
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
            kex=(offers and negotiate(offers[0].kex, offers[1].kex)) or "-",
            host_key=(offers and negotiate(offers[0].host_keys, offers[1].host_keys)) or "-",
            cipher=cipher,
            mac=cipher if authenticates(cipher) else str(connection.get_extra_info("send_mac")),
        )
        connection.registry.logged_in(connection, login)

    def _refuse_forwarding(self, *_: Any) -> bool:
        self._connection.registry.refused_verb(self._connection, "forwarding", hint=FORWARDING_HINT)
        return False

    # From the client's side to ours, and back.
    connection_requested = unix_connection_requested = _refuse_forwarding  # type: ignore[assignment]  # by position
    server_requested = unix_server_requested = _refuse_forwarding  # type: ignore[assignment]  # by position

    def session_requested(self) -> Any:
        """Open a session, or return False if the user has too many."""
        connection = self._connection
        if not connection.registry.has_room_for_session(connection):
            return False
        session = SftpSession(connection)
        return connection.new_channel(session), session
