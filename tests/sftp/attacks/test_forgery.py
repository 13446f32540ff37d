"""Attempts to have a pickup recorded that never was: everything requested, nothing taken."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from server.pickups import Coverage, Ending, Grade, shown_by_resuming

from ...support.sftp import NAME, RawSftp, Running

if TYPE_CHECKING:
    from server.pickups import Pickup

SIZE = 200_000  # so small that the whole of it waits in a buffer without being too much
OTHER = "MEGA20261121-00.tsv.gz"
CIPHERS = ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr"]
CLOSE, READ = b"\x04", b"\x05"


def read(handle: bytes, offset: int = 0, length: int = SIZE) -> bytes:
    return READ + bytes(4) + handle + offset.to_bytes(8, "big") + length.to_bytes(4, "big")


async def session(connection: Any, window: int) -> RawSftp:
    writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None, window=window)
    raw = RawSftp(writer, reader)
    raw.send(b"\x01\0\0\0\x03")
    await raw.receive()
    return raw


def of(pickups: list[Pickup], name: str) -> list[tuple[Grade, Ending | None]]:
    return [(pickup.grade, pickup.ending) for pickup in pickups if str(pickup.name) == name]


@pytest.mark.parametrize("cipher", CIPHERS)
async def test_a_reset_right_after_the_requests_proves_nothing(any_cipher: Running, cipher: str) -> None:
    """READ and CLOSE, then a TCP reset: replies go to a dead socket, whose buffers are empty as if all were taken."""
    any_cipher.served.add(NAME, os.urandom(SIZE))
    for attempt in range(1, 6):
        connection = await any_cipher.connect(encryption_algs=[cipher])
        raw = await session(connection, 1 << 30)
        handle = await raw.open_file(NAME)
        ours = connection.get_extra_info("socket")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection._transport.pause_reading()
        raw.send(read(handle))
        raw.send(CLOSE + bytes(4) + handle)
        connection._transport.abort()
        pickups = await any_cipher.finished_pickups(attempt)
        assert of(pickups, NAME)[-1] in [(Grade.PARTIAL, Ending.INTERRUPTED), (Grade.OPENED, Ending.INTERRUPTED)]


@pytest.mark.parametrize("cipher", CIPHERS)
async def test_a_channel_closed_over_unsent_bytes_proves_nothing(any_cipher: Running, cipher: str) -> None:
    """A small window keeps the file in the channel, a heap of requests keeps the channel from being read, and its
    close empties the buffer: the record waits for bytes that are not on their way, and never becomes complete."""
    any_cipher.served.add(NAME, os.urandom(SIZE))
    any_cipher.served.add(OTHER, os.urandom(SIZE))
    async with any_cipher.connect(encryption_algs=[cipher]) as connection:
        raw = await session(connection, 2000)
        handle, other = await raw.open_file(NAME), await raw.open_file(OTHER)
        raw.writer.channel.pause_reading()
        raw.send(read(handle))
        raw.send(CLOSE + bytes(4) + handle)
        for _ in range(1500):
            raw.send(read(other))
        await asyncio.sleep(0.2)
        raw.writer.channel.abort()
        await asyncio.sleep(0.3)
    pickups = await any_cipher.finished_pickups(2)
    assert of(pickups, NAME) == [(Grade.PARTIAL, Ending.INTERRUPTED)]


async def test_requests_after_noise_prove_nothing(listener: Running) -> None:
    """What ends the session leaves later requests unanswered: to have sent them is not a pickup."""
    listener.served.add(NAME, os.urandom(SIZE))
    async with listener.connect(encryption_algs=[CIPHERS[2]]) as connection:
        raw = await session(connection, 2000)
        handle, other = await raw.open_file(NAME), await raw.open_file(NAME)
        raw.writer.channel.pause_reading()
        for _ in range(1200):
            raw.send(read(other))
        await asyncio.sleep(0.2)
        raw.writer.write(bytes(4))
        raw.send(read(handle))
        raw.send(CLOSE + bytes(4) + handle)
        await asyncio.sleep(0.1)
        raw.writer.channel.resume_reading()
        await asyncio.sleep(0.3)
    pickups = await listener.finished_pickups(2)
    assert Grade.COMPLETE not in [grade for grade, _ in of(pickups, NAME)]


@pytest.mark.parametrize("missing", [0, SIZE // 2, SIZE - 1])
async def test_all_but_one_byte_is_not_all(listener: Running, missing: int) -> None:
    """A hundred reads of everything around one byte: partial, whichever byte it is."""
    listener.served.add(NAME, os.urandom(SIZE))
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        for _ in range(100 // 20):
            for _ in range(10):
                raw.send(read(handle, 0, missing))
                raw.send(read(handle, missing + 1))
            for _ in range(20):
                await raw.receive()
        await raw.status(CLOSE[0], handle)
        (pickup,) = await listener.finished_pickups()
    assert (pickup.grade, pickup.covered) == (Grade.PARTIAL, SIZE - 1)


async def test_pieces_that_nobody_took_add_up_to_nothing(listener: Running) -> None:
    """Every part of a file asked for, each on a handle of its own, by a client that takes no more than one window."""
    size, parts, window = 8_000_000, 16, 65_536
    listener.served.add(NAME, bytes(size))
    connection = await listener.connect()
    for _ in range(2):
        raw = await session(connection, window)
        handles = [await raw.open_file(NAME) for _ in range(parts)]
        raw.writer.channel.pause_reading()
        for number, handle in enumerate(handles):
            for offset in range(number * size // parts, (number + 1) * size // parts, 100_000):
                raw.send(read(handle, offset, 100_000))
            raw.send(CLOSE + bytes(4) + handle)
    await asyncio.sleep(0.3)
    connection.abort()
    pickups = await listener.finished_pickups(2 * parts)
    union = Coverage(piece for pickup in pickups for piece in pickup.ranges)
    assert union.bytes <= 2 * window
    assert Grade.COMPLETE not in {pickup.grade for pickup in listener.pickups}
    assert {pickup.tail for pickup in pickups} == {None}, "who fetches pieces may go on elsewhere without one of them"


@pytest.mark.parametrize("said", [4_000_000, 7_999_999, 8_000_000])
async def test_what_never_came_cannot_be_resumed(listener: Running, said: int) -> None:
    """Everything asked for, one window taken and none of it answered for; then the client goes on as if it had all."""
    size, window = 8_000_000, 65_536
    listener.served.add(NAME, bytes(size))
    connection = await listener.connect()
    connection._process_keepalive_at_openssh_dot_com_global_request = lambda _: None
    raw = await session(connection, window)
    handle = await raw.open_file(NAME)
    raw.writer.channel.pause_reading()
    for offset in range(0, size, 30_000):
        raw.send(read(handle, offset, 30_000))
    await asyncio.sleep(0.3)
    connection.abort()
    (first,) = await listener.finished_pickups()
    assert first.ranges == ()
    assert first.tail is not None and first.tail[1] <= 2 * window
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        await raw.read(handle, said, 100)
    second = (await listener.finished_pickups(2))[1]
    assert second.first_read == said
    assert shown_by_resuming(first.tail, said, alone=second.alone) == (0, 0)


async def test_one_handle_cannot_be_read_by_two_names(listener: Running) -> None:
    """Halves of one file read over two handles are two partial handles, each with its half, also in overlapping turns;
    a closed handle answers nothing more, and adds nothing to a record."""
    listener.served.add(NAME, os.urandom(SIZE))
    half = SIZE // 2
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        one, two = await raw.open_file(NAME), await raw.open_file(NAME)
        assert await raw.read(one, 0, half) is not None
        assert await raw.read(two, half, half) is not None
        assert await raw.status(CLOSE[0], one) == 0
        assert await raw.read(one, half, half) is None
        assert await raw.status(CLOSE[0], one) == 4
        assert await raw.status(CLOSE[0], two) == 0
        pickups = await listener.finished_pickups(2)
    assert [(pickup.grade, pickup.covered) for pickup in pickups] == [(Grade.PARTIAL, half)] * 2
    assert [pickup.ranges for pickup in pickups] == [((0, half),), ((half, SIZE),)]
