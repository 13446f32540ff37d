"""Attempts to keep the service busy with packets that ask for nothing, or only for work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.sftp.connection import (
    FREE_EXCHANGES,
    MAX_EXCHANGES_BEFORE_LOGIN,
    MAX_PACKETS_BEFORE_LOGIN,
    PIECE,
    RECEIVE_WINDOW,
    SshConnection,
)
from server.sftp.handler import RequestHandler
from server.sftp.session import MAX_WAITING, REQUEST_COST, TURN, SftpSession

from ...support.sftp import NAME, RawSftp, Running, string

if TYPE_CHECKING:
    from collections.abc import MutableMapping

IGNORE = struct.pack(">IB", 12, 6) + b"\x02" + bytes(10)  # a whole packet, not encrypted

MSG_IGNORE = 2
SMALLEST_PACKET = 36  # bytes on the wire: length, one block, and the tag of AES-GCM


def reasons(entries: list[MutableMapping[str, Any]]) -> list[str]:
    return [str(entry["reason"]) for entry in entries if "reason" in entry]


async def until_alone(listener: Running) -> None:
    async with asyncio.timeout(20):
        while listener.server.registry.connected:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.02)


async def test_a_stranger_s_ignored_packets_are_limited(listener: Running) -> None:
    """A hundred thousand IGNORE packets before login: the connection ends after a few hundred, in one line."""
    with capture_logs() as entries:
        _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        with contextlib.suppress(ConnectionError):
            writer.write(b"SSH-2.0-x\r\n" + IGNORE * 100_000)
            await writer.drain()
        await until_alone(listener)
        writer.close()
    assert reasons(entries) == ["too-many-requests"]
    assert MAX_PACKETS_BEFORE_LOGIN < 1000


class Rekeying(asyncssh.SSHClient):
    """Asks for new keys again and again, without or with having logged in."""

    async def exchange(self, connection: Any, most: int) -> int:
        """Return how many exchanges it gets, out of at most this many."""
        for done in range(most):
            connection._send_kexinit()
            connection._kexinit_sent = True
            async with asyncio.timeout(20):
                while not connection._kex_complete:
                    if connection._transport is None:
                        return done
                    await asyncio.sleep(0)
            await asyncio.sleep(0.005)
        return most


async def test_a_user_s_key_exchanges_without_data_are_limited(listener: Running) -> None:
    """Each costs our loop more than the client: one that takes no data between them gets twenty."""
    with capture_logs() as entries:
        async with listener.connect() as connection:
            done = await Rekeying().exchange(connection, 10 * FREE_EXCHANGES)
            assert done in range(FREE_EXCHANGES - 2, FREE_EXCHANGES + 4)
        await until_alone(listener)
    assert reasons(entries) == ["too-many-requests"]


async def test_key_exchanges_between_data_are_no_flood(listener: Running) -> None:
    """New keys after every 100 kB, sixty times over: the file is whole."""
    content = listener.served.add(NAME, os.urandom(6_000_000))
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        got = b""
        while len(got) < len(content):
            got += await raw.read(handle, len(got), 100_000) or b""
            assert await Rekeying().exchange(connection, 1) == 1
    assert got == content


async def test_a_stranger_s_key_exchanges_are_limited(listener: Running) -> None:
    """Before login nobody needs a second one; more would only be work for our loop."""

    class Stranger(Rekeying):
        def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
            self.connection = conn

        async def public_key_auth_requested(self) -> None:
            self.done = await self.exchange(self.connection, 50)

    client = Stranger()
    with capture_logs() as entries, pytest.raises(asyncssh.Error):
        await listener.connect(client_factory=lambda: client, password=None, client_keys=[], username="nobody")
    await until_alone(listener)
    assert client.done < MAX_EXCHANGES_BEFORE_LOGIN + 2
    assert "too-many-requests" in reasons(entries)


async def test_a_flood_of_small_requests_takes_turns(listener: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them: all are answered, in many turns between which others get theirs, and those that wait
    stay in the client's memory."""
    pump, answer = SftpSession.pump, RequestHandler.answer
    turns: list[int] = []
    most_waiting = 0

    def counting(view: RequestHandler, request: bytes) -> Any:
        turns[-1] += 1
        return answer(view, request)

    def watching(session: SftpSession) -> None:
        nonlocal most_waiting
        turns.append(0)
        most_waiting = max(most_waiting, len(session._inbox))
        pump(session)

    monkeypatch.setattr(RequestHandler, "answer", counting)
    monkeypatch.setattr(SftpSession, "pump", watching)
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        raw.writer.write(string(b"\x11" + bytes(4) + string(b"/")) * 5_000)
        for _ in range(5_000):
            assert (await raw.receive())[0] == 105
    assert sum(turns) == 5_001
    assert max(turns) <= TURN // REQUEST_COST + 1
    assert most_waiting <= MAX_WAITING + RECEIVE_WINDOW


async def test_a_flood_of_messages_takes_turns(listener: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands that no session sees, taken from the socket in one go: others get their turn between few of them."""
    see = SshConnection.log_received_packet
    seen = in_turn = most = 0

    def counting(connection: SshConnection, *packet: Any) -> None:
        nonlocal seen, in_turn, most
        seen, in_turn = seen + 1, in_turn + 1
        most = max(most, in_turn)
        see(connection, *packet)

    async with listener.connect() as connection:
        monkeypatch.setattr(SshConnection, "log_received_packet", counting)
        for _ in range(5_000):
            connection.send_packet(MSG_IGNORE, string(b""))
        async with asyncio.timeout(20):
            while seen < 5_000:
                in_turn = 0
                await asyncio.sleep(0)
    assert most <= PIECE // SMALLEST_PACKET + 1
