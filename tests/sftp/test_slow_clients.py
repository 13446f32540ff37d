"""A client behind a slow network lives as long as it takes bytes; one that takes none does not. None waits for ever."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from ..support.sftp import NAME, RawSftp, Running, running, string

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

SIZE = 1_500_000
EACH = 150_000
STEP, PAUSE = 4096, 0.04  # about 100 KB a second
PIECE = 255 * 1024
MSG_IGNORE = 2


class SlowNetwork:
    """A relay that passes on what the server sends in small steps, until it is told to hurry, or stops."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._tasks: list[asyncio.Task[None]] = []
        self._sockets: list[socket.socket] = []
        self.hurry = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def between(self) -> socket.socket:
        """The client's end of one connection to the server."""
        loop = asyncio.get_running_loop()
        there = socket.socket()
        # Small segments and a small window, or half a megabyte would be acknowledged in one go.
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        there.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        there.setblocking(False)
        await loop.sock_connect(there, ("127.0.0.1", self._server_port))
        here, client = socket.socketpair()
        here.setblocking(False)
        self._sockets += [here, there]
        self._tasks += [loop.create_task(self._carry(here, there)), loop.create_task(self._trickle(there, here))]
        return client

    async def _carry(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, 65_536):
            await loop.sock_sendall(target, data)

    async def _trickle(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, STEP):
            await self.open.wait()
            await loop.sock_sendall(target, data)
            if not self.hurry.is_set():
                await asyncio.sleep(PAUSE)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._sockets:
            sock.close()


@asynccontextmanager
async def slow_pull(folder: Path, keys_dir: Path, **changes: Any) -> AsyncIterator[tuple[Running, SlowNetwork, Any]]:
    """A listener, a slow network, and a client behind it that has asked for a whole file at once."""
    async with running(folder, keys_dir, **changes) as it:
        it.served.add(NAME, os.urandom(SIZE))
        network = SlowNetwork(it.port)
        network.hurry.set()
        connection = await it.connect(sock=await network.between())
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        network.hurry.clear()
        for offset in range(0, SIZE, EACH):
            raw.send(b"\x05" + bytes(4) + handle + offset.to_bytes(8, "big") + EACH.to_bytes(4, "big"))
        try:
            yield it, network, raw
        finally:
            connection.abort()
            await connection.wait_closed()
            await network.end()


@pytest.mark.parametrize("limit", ["keepalive", "idle_timeout"])
async def test_a_client_that_takes_bytes_slowly_is_not_cut(tmp_path: Path, keys_dir: Path, limit: str) -> None:
    """For several times as long as a silent client may be silent it asks nothing and answers nothing: what it should
    answer comes after all that it has asked for. Then it has the whole file."""
    seconds, slow = {"keepalive": (0.3, 4 * 0.3), "idle_timeout": (1.0, 2.0)}[limit]
    async with slow_pull(tmp_path, keys_dir, **{limit: timedelta(seconds=seconds)}) as (it, network, raw):
        with capture_logs() as entries:
            await asyncio.sleep(2.5 * slow)
            network.hurry.set()
            got = b"".join([(await raw.receive())[9:] for _ in range(0, SIZE, EACH)])
        assert got == (it.served.folder / NAME).read_bytes()
        assert entries == []


async def test_a_client_that_takes_nothing_is_cut_though_much_waits_for_it(tmp_path: Path, keys_dir: Path) -> None:
    """Its system may have taken as much as it has room for; the rest proves that it hangs."""
    async with slow_pull(tmp_path, keys_dir, keepalive=timedelta(seconds=0.3)) as (it, network, _):
        network.open.clear()
        with capture_logs() as entries:
            await it.left_alone()
        assert [entry["reason"] for entry in entries if "reason" in entry] == ["keepalive-timeout"]


class WholeFile(asyncssh.SSHClientSession[bytes]):
    """A session that asks for all of a file before it takes a reply, and counts what comes."""

    def __init__(self) -> None:
        self.got = 0

    @classmethod
    async def open(cls, connection: asyncssh.SSHClientConnection) -> WholeFile:
        _, it = await connection.create_session(cls, subsystem="sftp", encoding=None, window=(1 << 31) - 1)
        return it

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def ask(self, size: int) -> None:
        first = bytes(4)  # number of a request, and the first handle
        requests = [b"\x01\0\0\0\x03", b"\x03" + first + string(NAME.encode()) + b"\0\0\0\x01" + bytes(4)]
        requests += [
            b"\x05" + first + string(first) + offset.to_bytes(8, "big") + PIECE.to_bytes(4, "big")
            for offset in range(0, size, PIECE)
        ]
        self._channel.write(b"".join(map(string, requests)))

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self.got += len(data)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that nothing signals."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_client_that_reads_nothing_while_it_sends_is_listened_to(tmp_path: Path, keys_dir: Path) -> None:
    """paramiko does that: its reader answers our keepalive first, and with that waits for a thread that sends."""
    async with running(tmp_path, keys_dir) as it, it.connect() as connection:
        it.served.add_sparse(NAME, 32 << 20)
        (await WholeFile.open(connection)).ask(32 << 20)
        socket_of_client, (ours,) = connection._transport, it.server.registry.connections()
        socket_of_client.pause_reading()
        await until(lambda: ours.choked)
        for _ in range(512):  # in all more than the two systems keep
            connection.send_packet(MSG_IGNORE, string(bytes(32_768)))
        await until(lambda: not socket_of_client.get_write_buffer_size())
        assert ours.choked
        connection.abort()


async def test_sessions_of_one_slow_connection_take_turns(tmp_path: Path, keys_dir: Path) -> None:
    """The socket has room for a few replies at a time: these are not all one session's until it has everything."""
    size = 24 << 20
    async with running(tmp_path, keys_dir) as it, it.connect() as connection:
        it.served.add_sparse(NAME, size)
        sessions = [await WholeFile.open(connection) for _ in range(3)]
        for session in sessions:
            session.ask(size)
        await until(lambda: max(session.got for session in sessions) > size)
        assert min(session.got for session in sessions) > size // 4
        connection.abort()


async def test_requests_for_a_gigabyte_are_taken_from_a_client_that_takes_no_reply_yet(
    tmp_path: Path, keys_dir: Path
) -> None:
    """paramiko may ask for a whole file, piece by piece, before it reads: if we refused to listen, both would wait."""
    async with running(tmp_path, keys_dir) as it, it.connect() as connection:
        it.served.add(NAME, os.urandom(SIZE))
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        raw.writer.channel.pause_reading()
        raw.writer.channel.set_write_buffer_limits(0)
        piece = b"\x05" + bytes(4) + handle + bytes(8) + (32_768).to_bytes(4, "big")
        raw.writer.write((len(piece).to_bytes(4, "big") + piece) * 32_768)
        async with asyncio.timeout(20):
            await raw.writer.drain()
        raw.writer.channel.resume_reading()
        assert (await raw.receive())[9:] == (it.served.folder / NAME).read_bytes()[:32_768]
