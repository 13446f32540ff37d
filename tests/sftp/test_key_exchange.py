"""What a client can do with a key exchange that it never finishes, or with packets as small as it likes."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.pickups import Ending, Grade
from server.sftp.connection import MAX_DEFERRED, MIN_PACKET

from ..support.sftp import NAME, RawSftp, Running, running, string

if TYPE_CHECKING:
    from pathlib import Path

ENDLESS = (1 << 31) - 1
CLOSE, READ = b"\x04", b"\x05"
SIZE = 20_000_000
EACH = 250_000


async def exchange_without_end(connection: Any) -> None:
    """Ask for new keys, read no reply any more, and go on sending other requests as if nothing had happened."""
    connection._transport.pause_reading()
    connection._send_kexinit()
    connection._kex_complete = True
    await asyncio.sleep(0)


async def session(connection: Any, **options: Any) -> RawSftp:
    writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None, **options)
    raw = RawSftp(writer, reader)
    raw.send(b"\x01\0\0\0\x03")
    assert (await raw.receive())[0] == 2
    return raw


async def until_exchanging(listener: Running) -> Any:
    (ours,) = listener.server.registry._connections
    async with asyncio.timeout(10):
        while not ours.exchanging:  # noqa: ASYNC110  # nobody announces it
            await asyncio.sleep(0.01)
    return ours


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"])
async def test_what_waits_for_new_keys_is_neither_kept_nor_proven(any_cipher: Running, cipher: str) -> None:
    """A whole file is asked for and closed while keys are exchanged: no byte went out, so nobody picked it up, and what
    waits is the questions, not the answers."""
    any_cipher.served.add(NAME, os.urandom(SIZE))
    connection = await any_cipher.connect(encryption_algs=[cipher])
    raw = await session(connection, window=ENDLESS)
    handle = await raw.open_file(NAME)
    await exchange_without_end(connection)
    for offset in range(0, SIZE, EACH):
        raw.send(READ + bytes(4) + handle + offset.to_bytes(8, "big") + EACH.to_bytes(4, "big"))
    raw.send(CLOSE + bytes(4) + handle)
    ours = await until_exchanging(any_cipher)
    await asyncio.sleep(0.5)
    assert sum(len(part) for _, parts in ours._deferred_packets for part in parts) < 1 << 20
    assert any_cipher.finished == []
    connection.abort()
    await connection.wait_closed()
    (pickup,) = await any_cipher.finished_pickups()
    assert (pickup.grade, pickup.ending) == (Grade.OPENED, Ending.INTERRUPTED)


async def test_requests_during_a_key_exchange_are_limited(listener: Running) -> None:
    """Replies to them wait in memory, which RFC 4253 (section 7.1) leaves no client a reason to fill."""
    connection = await listener.connect()
    await exchange_without_end(connection)
    with capture_logs() as entries:
        for _ in range(MAX_DEFERRED + 100):
            connection.send_packet(80, string(b"keepalive@openssh.com"), b"\x01")
        async with asyncio.timeout(10):
            while listener.server.registry.connected:  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.02)
    assert [entry["reason"] for entry in entries if "reason" in entry] == ["too-many-requests"]
    connection.abort()
    await connection.wait_closed()


async def test_packets_too_small_to_be_worth_a_cipher_are_refused(tmp_path: Path, keys_dir: Path) -> None:
    """With packets of one byte a single read would keep the whole service busy for seconds; the connection goes on."""
    async with running(tmp_path, keys_dir, max_sessions_per_user=1) as it, it.connect() as connection:
        it.served.add(NAME, b"content")
        for size in (1, 17, MIN_PACKET - 1):
            with pytest.raises(asyncssh.ChannelOpenError, match="packet size"):
                await session(connection, max_pktsize=size)
        raw = await session(connection, max_pktsize=MIN_PACKET)
        handle = await raw.open_file(NAME)
        assert await raw.read(handle, 0, 100) == b"content"
