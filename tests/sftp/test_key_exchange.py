"""When keys are renewed, and what a client can do with a key exchange that it never finishes, or with tiny packets."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.pickups import Ending, Grade
from server.sftp.algorithms import Profile
from server.sftp.connection import MAX_DEFERRED, MIN_PACKET, REKEY_BYTES

from ..support.sftp import NAME, REKEYED, RawSftp, Running, packet, running, string

if TYPE_CHECKING:
    from pathlib import Path

ENDLESS = (1 << 31) - 1
IGNORE, EXT_INFO = 2, 7
CLOSE, READ = b"\x04", b"\x05"
SIZE = 20_000_000
EACH = 250_000


@pytest.mark.parametrize("cipher", Profile.of(chacha20=True).ciphers)
@pytest.mark.parametrize("mac", ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-256"])
async def test_no_key_serves_more_than_its_share(
    served_by_key: list[int], any_cipher: Running, cipher: str, mac: str
) -> None:
    """Of every cipher, over the fast path and the slow one: the server renews its keys, and the file is whole."""
    content = any_cipher.served.add(NAME, os.urandom(3 * REKEYED))
    async with (
        any_cipher.connect(encryption_algs=[cipher], mac_algs=[mac]) as connection,
        connection.start_sftp_client() as sftp,
        sftp.open(NAME, "rb") as file,
    ):
        assert await file.read() == content
    assert len(served_by_key) >= 3
    # One packet may be written when a single byte of the share is left; an exchange and the MACs are not counted.
    assert max(served_by_key) < REKEYED + 64 * 1024


def test_the_share_is_what_rfc_4344_allows() -> None:
    """2**32 blocks of 16 bytes (section 3.2), of which asyncssh counts 12 of 16 bytes in the smallest packets; and not
    so little that a large file meets a key exchange which its client does not survive."""
    assert REKEY_BYTES * 16 / 12 < 16 * 2**32
    assert REKEY_BYTES > 16 << 30


async def test_what_a_client_sends_uses_up_its_key_too(served_by_key: list[int], any_cipher: Running) -> None:
    """It should renew its key itself; one that does not is made to (RFC 4344, section 3.2)."""
    async with any_cipher.connect() as connection:
        raw = await session(connection)
        assert len(served_by_key) == 1
        for _ in range(REKEYED // 30_000 + 1):
            connection.send_packet(IGNORE, string(bytes(30_000)))
        await raw.open_file(NAME)
        await raw.open_file(NAME)
    assert len(served_by_key) == 2


@pytest.mark.skipif(shutil.which("sftp") is None, reason="sftp is missing: apt-get install openssh-client")
@pytest.mark.parametrize("cipher", Profile.of(chacha20=True).ciphers)
async def test_openssh_goes_through_key_exchanges_of_both_sides(
    served_by_key: list[int], any_cipher: Running, tmp_path: Path, cipher: str
) -> None:
    """With RekeyLimit 5M, and the server's own limit: half a dozen key exchanges, and the file is whole."""
    content = any_cipher.served.add(NAME, os.urandom(6 * REKEYED))
    askpass = tmp_path / "askpass"
    askpass.write_text("#!/bin/sh\necho 'correct horse'\n")
    askpass.chmod(0o700)
    process = await asyncio.create_subprocess_exec(
        *("sftp", "-q", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", f"-oCiphers={cipher}"),
        *("-oRekeyLimit=5M", "-P", str(any_cipher.port), f"triton@127.0.0.1:{NAME}", str(tmp_path / "got")),
        env={"PATH": os.environ["PATH"], "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"},
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert (tmp_path / "got").read_bytes() == content
    assert len(served_by_key) >= 6
    assert max(served_by_key) < REKEYED + 64 * 1024


async def test_an_ext_info_at_the_wrong_moment_is_tolerated(listener: Running) -> None:
    """asyncssh 2.5 to 2.7 sends it after its request for the login; before there are keys it stays an error."""
    async with listener.connect() as connection:
        connection.send_packet(EXT_INFO, bytes(4))
        raw = await session(connection)
        connection.send_packet(EXT_INFO, b"\0\0\0\1" + string(b"ext") + string(b""))
        await raw.open_file(NAME)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(b"SSH-2.0-test\r\n" + packet(bytes([EXT_INFO]) + bytes(4)))
    assert b"Unexpected ext_info received" in await reader.read()
    writer.close()


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
