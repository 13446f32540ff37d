"""How a password arrives: by the method `password` or as the answer to a question (`keyboard-interactive`).

Replaces asyncssh's handling of both messages, which prepares passwords for one method only, and ends the connection
over one that is not UTF-8. Promise: what the client sent reaches the login handler byte for byte, by either method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from asyncssh.auth import MSG_USERAUTH_INFO_RESPONSE, _ServerKbdIntAuth, _ServerPasswordAuth

if TYPE_CHECKING:
    from asyncssh.auth import ServerAuth
    from asyncssh.packet import SSHPacket


class PasswordTries(Protocol):
    """What is needed of a connection's login handler."""

    async def try_password(self, username: str, password: bytes) -> bool:
        """Return whether it is the user's password."""


class PasswordMethod(_ServerPasswordAuth):
    """The method `password` (RFC 4252, section 8)."""

    async def _start(self, packet: SSHPacket) -> None:
        changes = packet.get_boolean()
        password = packet.get_string()
        if changes:
            packet.get_string()
        packet.check_end()
        # Passwords cannot be changed here: such a request is not a try, and fails.
        await _answer(self, None if changes else password)


class KeyboardInteractive(_ServerKbdIntAuth):
    """The method `keyboard-interactive` (RFC 4256), which asks for the password and nothing else."""

    def _process_answers(self, _pkttype: int, _pktid: int, packet: SSHPacket) -> None:
        answers = [packet.get_string() for _ in range(packet.get_uint32())]
        packet.check_end()
        self.create_task(_answer(self, answers[0] if len(answers) == 1 else None))

    _packet_handlers = {MSG_USERAUTH_INFO_RESPONSE: _process_answers}  # noqa: RUF012  # as asyncssh declares it


METHODS: dict[bytes, type[ServerAuth]] = {b"password": PasswordMethod, b"keyboard-interactive": KeyboardInteractive}


async def _answer(auth: ServerAuth, password: bytes | None) -> None:
    tries = cast("PasswordTries", auth._conn.get_owner())  # noqa: SLF001  # as asyncssh's own methods do
    if password is not None and await tries.try_password(auth._username, password):  # noqa: SLF001
        await auth.send_success()
    else:
        auth.send_failure()
