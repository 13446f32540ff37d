"""Clients that want too much: memory stays flat, and good clients are served."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from ..support.sftp import NAME, PASSWORD, RawSftp, ServedFolder, running, string
from ..support.sftp_process import server_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRONG_PASSWORDS = 1_000
MOST_GROWTH = 64 << 20
OPEN, READ = 3, 5


def login(port: int, **options: Any) -> Any:
    settings: dict[str, Any] = {"username": "triton", "password": PASSWORD, "client_keys": None, "agent_path": None}
    return asyncssh.connect("127.0.0.1", port, known_hosts=None, config=None, **(settings | options))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that nothing signals."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def pull(port: int, name: str = NAME) -> bytes:
    """Do what a good client does: log in, list, read a whole file."""
    async with login(port) as connection, connection.start_sftp_client() as sftp:
        assert name in await sftp.listdir("/")
        async with sftp.open(name, "rb") as file:
            return bytes(await file.read())


async def test_unread_replies_do_not_fill_the_memory(tmp_path: Path, keys_dir: Path) -> None:
    """24 reads of 16 MiB that nobody takes, on eight channels: the process grows by far less than one of them."""
    served = ServedFolder(tmp_path / "pickup")
    content = served.add(NAME, os.urandom(1_000_000))
    served.add_sparse("MEGA20261121-00.tsv.gz", 1 << 30)
    async with server_process(tmp_path, keys_dir) as server:
        assert await pull(server.port) == content
        before = server.memory
        async with login(server.port) as greedy:
            for _ in range(8):
                raw = await RawSftp.open(greedy)
                handle = await raw.open_file("MEGA20261121-00.tsv.gz")
                raw.writer.channel.pause_reading()
                for number in range(24):
                    offset = number * (16 << 20)
                    raw.send(bytes([READ]) + bytes(4) + handle + offset.to_bytes(8, "big") + b"\x01\0\0\0")
            for _ in range(3):
                assert await pull(server.port) == content
            assert server.peak - before < MOST_GROWTH


async def test_a_prefetch_that_stops_reading_does_not_fill_the_memory(tmp_path: Path, keys_dir: Path) -> None:
    """32768 reads for a whole file of 1 GiB, as paramiko sends them, with an endless window and a dead socket."""
    served = ServedFolder(tmp_path / "pickup")
    content = served.add(NAME, os.urandom(1_000_000))
    served.add_sparse("MEGA20261121-00.tsv.gz", 1 << 30)
    async with server_process(tmp_path, keys_dir) as server:
        assert await pull(server.port) == content
        before = server.memory
        connection = await login(server.port)
        writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None, window=(1 << 31) - 1)
        raw = RawSftp(writer, reader)
        raw.send(b"\x01\0\0\0\x03")
        await raw.receive()
        handle = await raw.open_file("MEGA20261121-00.tsv.gz")
        connection._transport.pause_reading()
        for offset in range(0, 1 << 30, 32_768):
            raw.send(bytes([READ]) + bytes(4) + handle + offset.to_bytes(8, "big") + (32_768).to_bytes(4, "big"))
        for _ in range(3):
            assert await pull(server.port) == content
            await asyncio.sleep(0.2)
        assert server.peak - before < MOST_GROWTH
        connection.abort()
        await connection.wait_closed()
        await asyncio.sleep(0)


async def test_requests_whose_replies_nobody_takes_are_not_read(
    tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of SSH requests with replies, from a client that reads nothing: most of them stay in its own memory."""
    monkeypatch.setattr("server.sftp.connection.UNSENT_MOST", 200 * 1024)
    async with running(tmp_path, keys_dir) as it:
        it.served.add_sparse(NAME, 1 << 30)
        connection = await it.connect()
        writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None, window=(1 << 31) - 1)
        raw = RawSftp(writer, reader)
        raw.send(b"\x01\0\0\0\x03")
        await raw.receive()
        handle = await raw.open_file(NAME)
        connection._transport.pause_reading()
        for number in range(200):
            raw.send(bytes([READ]) + bytes(4) + handle + (number << 18).to_bytes(8, "big") + b"\0\x03\xfc\0")
        (ours,) = it.server.registry._connections
        await until(lambda: ours.choked)
        for _ in range(20_000):  # all answers together would be 600 KiB
            connection.send_packet(80, string(b"keepalive@openssh.com"), b"\x01")
        await until(lambda: not ours.transport.is_reading())
        await asyncio.sleep(0.2)
        assert ours.choked
        assert ours.transport.get_write_buffer_size() < 600 * 1024
        connection.abort()
        await connection.wait_closed()
        await until(lambda: it.server.registry.connected == 0)


async def test_idle_connections_of_one_address_leave_room_for_others(tmp_path: Path, keys_dir: Path) -> None:
    """300 connections from 127.0.0.2 that say nothing: ten are held, and 127.0.0.1 logs in and pulls."""
    served = ServedFolder(tmp_path / "pickup")
    content = served.add(NAME, os.urandom(1_000_000))
    async with server_process(tmp_path, keys_dir) as server:
        assert await pull(server.port) == content
        before = server.memory
        pairs = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.0.2", 0)) for _ in range(300))
        )
        assert await pull(server.port) == content
        await asyncio.sleep(1.5)
        held = 0
        for reader, _ in pairs:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.02):
                    held += (await reader.read(4)) == b"SSH-"
        assert held == 10
        assert await pull(server.port) == content
        assert server.peak - before < MOST_GROWTH
        for _, writer in pairs:
            writer.close()


class Guesser(asyncssh.SSHClient):
    """Tries wrong passwords until it is thrown out."""

    def __init__(self, counter: list[int]) -> None:
        self.counter = counter

    def password_auth_requested(self) -> str:
        self.counter[0] += 1
        return f"wrong {self.counter[0]}"


async def test_a_thousand_wrong_passwords_change_nothing(tmp_path: Path, keys_dir: Path) -> None:
    """From hundreds of addresses at once, each banned in turn: the memory is flat, and the good client is served."""
    served = ServedFolder(tmp_path / "pickup")
    content = served.add(NAME, os.urandom(1_000_000))
    async with server_process(tmp_path, keys_dir, ban_after=3) as server:
        assert await pull(server.port) == content
        before = server.memory
        counter = [0]
        address = iter(range(256 + 1, 65_536))

        async def guess() -> None:
            while counter[0] < WRONG_PASSWORDS:
                number = next(address)
                with contextlib.suppress(asyncssh.Error, OSError):
                    connection = await login(
                        server.port,
                        local_addr=(f"127.1.{number >> 8}.{number & 255}", 0),
                        client_factory=lambda: Guesser(counter),
                        password=None,
                        preferred_auth="password",
                        kex_algs=["curve25519-sha256"],
                        server_host_key_algs=["ssh-ed25519"],
                    )
                    connection.abort()
                    await connection.wait_closed()
                    await asyncio.sleep(0)
                    raise AssertionError("a wrong password opened the door")

        async def good() -> int:
            pulls = 0
            while counter[0] < WRONG_PASSWORDS:
                assert await pull(server.port) == content
                pulls += 1
                await asyncio.sleep(0.3)
            return pulls

        pulls, *_ = await asyncio.gather(good(), *(guess() for _ in range(6)))
        assert pulls > 0
        assert server.peak - before < MOST_GROWTH // 10  # none of them leaves more than a few KiB, whatever it leaves
        assert await pull(server.port) == content


async def test_sessions_of_a_user_are_limited(tmp_path: Path, keys_dir: Path) -> None:
    """Over all of the user's connections; a closed session makes room."""
    async with running(tmp_path, keys_dir, max_sessions_per_user=3) as it:
        async with it.connect() as one, it.connect() as two:
            first = await RawSftp.open(one)
            await RawSftp.open(one)
            await RawSftp.open(two)
            with capture_logs() as entries:
                for connection in (one, two):
                    with pytest.raises(asyncssh.ChannelOpenError):
                        await connection.open_session(subsystem="sftp")
            assert [entry["reason"] for entry in entries] == ["too-many-sessions"] * 2
            first.writer.close()
            await first.writer.channel.wait_closed()
            await RawSftp.open(two)
            assert it.server.registry.sessions == 3
        await until(lambda: it.server.registry.sessions == 0)


async def test_handles_of_a_session_are_limited(tmp_path: Path, keys_dir: Path) -> None:
    """Files and listings together; the session goes on and a closed handle makes room."""
    async with running(tmp_path, keys_dir, max_handles_per_session=4) as it:
        it.served.add(NAME, b"x")
        async with it.connect() as connection:
            raw = await RawSftp.open(connection)
            handles = [await raw.open_file(NAME) for _ in range(3)]
            await raw.ask(11, string(b"/"))
            with capture_logs() as entries:
                for _ in range(100):
                    assert await raw.status(OPEN, string(NAME.encode()) + b"\0\0\0\1" + bytes(4)) == 4
            assert [entry["reason"] for entry in entries] == ["too-many-handles"]
            assert await raw.status(4, handles[0]) == 0
            await raw.open_file(NAME)


async def test_a_client_that_does_not_log_in_in_time_is_disconnected(tmp_path: Path, keys_dir: Path) -> None:
    """A silent connection ends with the login timeout and one line."""
    async with running(tmp_path, keys_dir, login_timeout=timedelta(seconds=0.5)) as it:
        with capture_logs() as entries:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"SSH-2.0-pickup-point\r\n")
            writer.close()
        assert [(entry["reason"], entry["waited_at"]) for entry in entries] == [("login-timeout", "key exchange")]
        assert it.server.registry.connected == 0


async def test_an_idle_session_ends_and_a_busy_one_does_not(tmp_path: Path, keys_dir: Path) -> None:
    """A client that asks for something stays; one that asks for nothing for idle_timeout is disconnected."""
    async with running(tmp_path, keys_dir, idle_timeout=timedelta(seconds=1.5)) as it:
        it.served.add(NAME, b"x")
        async with it.connect() as busy, it.connect() as idle:
            raw = await RawSftp.open(busy)
            with capture_logs() as entries:
                for _ in range(8):
                    await raw.ask(17, string(b"/"))
                    await asyncio.sleep(0.5)
            assert [entry["reason"] for entry in entries] == ["idle-timeout"]
            assert idle.is_closed()
            assert not busy.is_closed()


async def test_a_peer_that_vanished_is_noticed(tmp_path: Path, keys_dir: Path) -> None:
    """A client that answers no keepalive is gone after three of them."""
    async with running(tmp_path, keys_dir, keepalive=timedelta(seconds=0.2)) as it:
        connection = await it.connect()
        connection._transport.pause_reading()
        await until(lambda: it.server.registry.connected == 0)
        connection.abort()
        await connection.wait_closed()
        await asyncio.sleep(0)


async def test_a_flood_of_channel_requests_ends_the_connection(tmp_path: Path, keys_dir: Path) -> None:
    """Environment variables are kept in memory, so their number is limited."""
    async with running(tmp_path, keys_dir) as it, it.connect() as connection:
        with capture_logs() as entries, pytest.raises((asyncssh.Error, OSError)):
            await connection.run("x", env={f"V{number}": "x" * 1000 for number in range(100)}, check=True)
        assert [entry["reason"] for entry in entries if "reason" in entry] == ["too-many-requests"]


async def test_a_flood_of_refusals_is_a_few_lines(tmp_path: Path, keys_dir: Path) -> None:
    """A hundred refused connections are five lines; the rest are counted."""
    async with running(tmp_path, keys_dir, max_connections_per_address=1) as it:
        with capture_logs() as entries:
            async with it.connect():
                for _ in range(100):
                    reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
                    assert await reader.read() == b""
                    writer.close()
        lines = [entry for entry in entries if entry.get("reason") == "too-many-connections-from-address"]
        assert len(lines) == 5
        assert it.server.registry.counters.refusals["too-many-connections-from-address"] == 100


async def test_without_descriptors_it_warns_once(
    tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can be accepted until one is free; a line every fifth of a second would fill the disk as well."""
    async with running(tmp_path, keys_dir) as it:
        it.served.add(NAME, b"content")
        loop = asyncio.get_running_loop()
        accept, tries = loop.sock_accept, []

        async def refuse(sock: Any) -> Any:
            tries.append(sock)
            if len(tries) < 4:
                raise OSError(errno.EMFILE, "Too many open files")
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", refuse)
        with capture_logs() as entries:
            for _ in range(2):  # the first is accepted by the call that is under way
                assert await pull(it.port) == b"content"
        lines = [entry for entry in entries if "could not accept" in entry["event"]]
        assert len(tries) >= 4
        assert len(lines) == 1
        assert "LimitNOFILE" in lines[0]["hint"]


async def test_a_listener_that_dies_says_so(tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends accepting or housekeeping is raised to whoever waits for the listener."""
    async with running(tmp_path, keys_dir) as it:

        def broken() -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(it.server.registry, "summarize", broken)
        with pytest.raises(RuntimeError, match="broken"):
            await asyncio.wait_for(it.server.wait(), 5)
