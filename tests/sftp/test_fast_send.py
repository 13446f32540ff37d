"""The fast path for file data sends what asyncssh would send, and knows when it must not be used."""

from __future__ import annotations

import os
from typing import Any

import pytest

from server.pickups import Grade
from server.sftp import fast_send
from server.sftp.algorithms import CHACHA20, DEFAULT

from ..support.sftp import NAME, RawSftp, Running, string

GCM = ["aes128-gcm@openssh.com"]
SIZE = 6_000_017


def test_the_code_that_it_repeats_is_the_code_that_runs() -> None:
    """A new asyncssh may count, encrypt or flush differently: read its send_packet, _flush_send_buf and GCMCipher, see
    that `fast_send` still does the same, and add the new fingerprint. Until then transfers go the slow path."""
    assert fast_send.code_in_use() in fast_send.KNOWN_CODE
    assert fast_send.KNOWN


def test_code_without_sources_is_unknown_code() -> None:
    """An installation may have compiled files alone: then there is nothing to compare, and nothing is assumed."""
    made: dict[str, Any] = {}
    exec(compile("def without_source(): ...", "asyncssh/connection.pyc", "exec"), made)
    assert fast_send.code_in_use([made["without_source"]]) == ""
    assert "" not in fast_send.KNOWN_CODE


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record for each reply whether it took the fast path."""
    seen: list[bool] = []
    send = fast_send.FastSender.send

    def watching(self: fast_send.FastSender, transport: Any, reply: memoryview) -> int | None:
        count = send(self, transport, reply)
        seen.append(count is not None)
        return count

    monkeypatch.setattr(fast_send.FastSender, "send", watching)
    return seen


async def pull(listener: Running, **options: Any) -> bool:
    """Fetch a new file; return whether it arrived whole."""
    content = listener.served.add(NAME, os.urandom(SIZE))
    async with (
        listener.connect(**options) as connection,
        connection.start_sftp_client() as sftp,
        sftp.open(NAME, "rb") as file,
    ):
        return bytes(await file.read()) == content


@pytest.mark.parametrize(
    ("cipher", "mac"),
    [(cipher, mac) for cipher in DEFAULT.ciphers for mac in (DEFAULT.macs if "ctr" in cipher else DEFAULT.macs[:1])],
)
async def test_aes_takes_the_fast_path(listener: Running, sent: list[bool], cipher: str, mac: str) -> None:
    """Every cipher and MAC that is offered by default: file and small replies interleave in one stream of packets, and
    all of them decrypt."""
    assert await pull(listener, encryption_algs=[cipher], mac_algs=[mac])
    assert sent
    assert all(sent)


async def test_other_ciphers_take_the_slow_path(any_cipher: Running, sent: list[bool]) -> None:
    """And the file is whole as well."""
    assert await pull(any_cipher, encryption_algs=[CHACHA20])
    assert sent
    assert not any(sent)


async def test_unknown_code_takes_the_slow_path(
    listener: Running, sent: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an asyncssh whose code was never checked, nothing is assumed."""
    monkeypatch.setattr(fast_send, "KNOWN", False)
    assert await pull(listener, encryption_algs=GCM)
    assert not any(sent)


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes256-ctr"])
async def test_new_keys_in_the_middle_of_a_file(listener: Running, sent: list[bool], cipher: str) -> None:
    """A client that exchanges keys every 200 kB gets its file whole, over both paths in turn."""
    assert await pull(listener, encryption_algs=[cipher], rekey_bytes=200_000)
    assert any(sent)


@pytest.mark.parametrize(
    "algorithms",
    [
        ("aes128-gcm@openssh.com", "hmac-sha2-256"),
        ("aes128-ctr", "hmac-sha2-256"),
        ("aes128-ctr", "hmac-sha2-512-etm@openssh.com"),
    ],
)
@pytest.mark.parametrize(("window", "packet"), [(40_000, 32_768), (300_000, 1_000), (2_000_000, 32_769), (65_536, 513)])
async def test_windows_and_packet_sizes_of_the_client_are_kept(
    listener: Running, sent: list[bool], window: int, packet: int, algorithms: tuple[str, str]
) -> None:
    """Whatever the client allows: no packet is longer, the window is never overrun, and the bytes are right."""
    content = listener.served.add(NAME, os.urandom(500_003))
    cipher, mac = algorithms
    async with listener.connect(encryption_algs=[cipher], mac_algs=[mac]) as connection:
        writer, reader, _ = await connection.open_session(
            subsystem="sftp", encoding=None, window=window, max_pktsize=packet
        )
        raw = RawSftp(writer, reader)
        raw.send(b"\x01\0\0\0\x03")
        await raw.receive()
        handle = await raw.open_file(NAME)
        got = b""
        while (part := await raw.read(handle, len(got), 50_000)) is not None:
            got += part
        assert got == content
    assert all(sent)


@pytest.mark.parametrize("window", [2_000, 40_000, 200_000, 1 << 30])
async def test_requests_that_come_together_are_answered_in_order(listener: Running, window: int) -> None:
    """Reads, ends, a close and an opening in one piece, answered in few pieces: each its own, whatever the window."""
    content = listener.served.add(NAME, os.urandom(500_003))
    async with listener.connect() as connection:
        writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None, window=window)
        raw = RawSftp(writer, reader)
        raw.send(b"\x01\0\0\0\x03")
        await raw.receive()
        handles = [await raw.open_file(NAME) for _ in range(3)]
        together: list[bytes] = []
        send, connection._send = connection._send, together.append
        expected = []
        for handle in handles:
            for offset in [*range(0, 510_000, 30_000), 600_000]:
                expected.append((101 if offset >= len(content) else 103, content[offset : offset + 30_000]))
                raw.send(b"\x05" + bytes(4) + handle + offset.to_bytes(8, "big") + (30_000).to_bytes(4, "big"))
            raw.send(b"\x03" + bytes(4) + string(NAME.encode()) + (1).to_bytes(4, "big") + bytes(4))
            raw.send(b"\x04" + bytes(4) + handle)
            expected += [(102, b""), (101, b"")]
        connection._send = send
        send(b"".join(together))
        for kind, data in expected:
            reply = await raw.receive()
            assert (reply[0], reply[9:] if kind == 103 else b"") == (kind, data)
    pickups = await listener.finished_pickups(6)
    assert [pickup.grade for pickup in pickups].count(Grade.COMPLETE) == 3


async def test_a_client_that_vanishes_in_the_middle_is_noticed(listener: Running) -> None:
    """Nothing is written to a connection that is gone."""
    listener.served.add_sparse("MEGA20261121-00.tsv.gz", 1 << 28)
    connection = await listener.connect(encryption_algs=GCM)
    raw = await RawSftp.open(connection)
    handle = await raw.open_file("MEGA20261121-00.tsv.gz")
    for offset in range(0, 1 << 28, 200_000):
        raw.send(b"\x05" + bytes(4) + handle + offset.to_bytes(8, "big") + (200_000).to_bytes(4, "big"))
    await raw.receive()
    connection.abort()
    await listener.finished_pickups()
    async with listener.connect() as other, other.start_sftp_client() as sftp:
        assert len(await sftp.listdir("/")) == 2
