"""Attempts of a user to have a pickup recorded as complete that was not.

In each, every byte of a file is asked for, or all but one, and the handle mostly closed; and something is done so that
the client's system cannot have taken all of it: its TCP window or its SSH window is far smaller than the file, and
nothing is read. So whatever is recorded as complete for ``evil`` is false; and of the first half of the larger file
`RESUMER` never has more than that.
"""

# ruff: noqa: SLF001  # a client that behaves has no way to do this

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import asyncssh

from server.sftp.protocol import Kind
from tests.support.sftp import RawSftp

from .attack_target import RESUMER, address

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable

    from .attack_target import Target
    from .result import Fault

NETWORK = 12
SMALL, ENDLESS = 2000, (1 << 31) - 1  # bytes of an SSH window
PIECE = 60_000
SOME = 16_384  # of a TCP window, which the system doubles: some whole answers are acknowledged, far less than a half
CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"]


@asynccontextmanager
async def opened(
    target: Target, dice: random.Random, window: int, *, user: str = "evil", buffer: int = 4096
) -> AsyncIterator[tuple[Any, RawSftp, bytes]]:
    """A connection with a small TCP window, a session on it, and the handle of the larger file."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.bind(address(dice, NETWORK))
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", target.port))
    cipher = [dice.choice(CIPHERS)]
    connection = await target.connect(user, dice, NETWORK, sock=sock, local_addr=None, encryption_algs=cipher)
    try:
        writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None, window=window)
        raw = RawSftp(writer, reader)
        raw.send(b"\x01\0\0\0\x03")
        await raw.receive()
        yield connection, raw, await raw.open_file(target.big)
    finally:
        if dice.random() < 0.5:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.abort()
        with suppress(asyncssh.Error, OSError):
            await connection.wait_closed()


def read(handle: bytes, offset: int, length: int) -> bytes:
    """A READ, to be sent without waiting."""
    return bytes([Kind.READ]) + bytes(4) + handle + struct.pack(">QI", offset, length)


def ask_for_all(target: Target, raw: RawSftp, handle: bytes, *, close: bool = True, piece: int = PIECE) -> None:
    """Everything in one breath."""
    size = len(target.content[target.big])
    for offset in range(0, size, piece):
        raw.send(read(handle, offset, min(piece, size - offset)))
    if close:
        raw.send(bytes([Kind.CLOSE]) + bytes(4) + handle)


async def end_of_input(target: Target, dice: random.Random, _: Fault) -> None:
    """Asked, closed, end of input, and the answers left where they are."""
    async with opened(target, dice, SMALL) as (_connection, raw, handle):
        raw.writer.channel.pause_reading()
        ask_for_all(target, raw, handle)
        raw.writer.write_eof()
        await asyncio.sleep(0.2)
        if dice.random() < 0.5:
            raw.writer.channel.close()
            await asyncio.sleep(0.1)


async def exchange(target: Target, dice: random.Random, _: Fault) -> None:
    """New keys are asked for and never agreed on; the file is asked for meanwhile."""
    async with opened(target, dice, ENDLESS) as (connection, raw, handle):
        connection._transport.pause_reading()
        connection._send_kexinit()
        connection._kex_complete = True
        ask_for_all(target, raw, handle)
        await asyncio.sleep(0.2)


async def windows(target: Target, dice: random.Random, _: Fault) -> None:
    """The SSH window is opened to the utmost again and again, the TCP window stays shut."""
    async with opened(target, dice, SMALL) as (connection, raw, handle):
        connection._transport.pause_reading()
        ask_for_all(target, raw, handle)
        for _number in range(20):
            raw.writer.channel.send_packet(93, struct.pack(">I", dice.choice([0, 1, ENDLESS, (1 << 32) - 1])))
        await asyncio.sleep(0.2)


async def never_closed(target: Target, dice: random.Random, _: Fault) -> None:
    """Taken in truth, and the handle left open until the session, or the connection, ends."""
    size = len(target.content[target.big])
    async with opened(target, dice, ENDLESS) as (_connection, raw, handle):
        for at in range(0, size, PIECE):
            await raw.read(handle, at, PIECE)
        target.fetched["evil", target.big] += 1  # no CLOSE is needed for that
        if dice.random() < 0.5:
            raw.writer.write_eof()
            await asyncio.sleep(0.1)


async def false_resumption(target: Target, dice: random.Random, _: Fault) -> None:
    """Cut off with next to nothing taken, and resumed far beyond that, as if all before had arrived.

    Sometimes beside the first handle, sometimes twice, sometimes with nothing before it.
    """
    size = len(target.content[target.big])
    at, times = dice.randrange(size // 2, size), dice.choice([0, 1, 1, 2])
    async with AsyncExitStack() as cut_off:
        for _number in range(times):
            connection, raw, handle = await cut_off.enter_async_context(
                opened(target, dice, ENDLESS, user=RESUMER, buffer=SOME)
            )
            connection._transport.pause_reading()
            ask_for_all(target, raw, handle, close=dice.random() < 0.3, piece=dice.choice([1000, 8000]))
            await asyncio.sleep(0.2)
            if dice.random() < 0.8:
                await cut_off.aclose()
        # In truth from there on: the first half never arrived.
        async with (
            target.connect(RESUMER, dice, NETWORK) as honest,
            honest.start_sftp_client() as sftp,
            sftp.open(target.big, "rb") as file,
        ):
            await file.read(-1, at)


FORGERIES: dict[str, Callable[[Target, random.Random, Fault], Awaitable[int | None]]] = {
    "end of input": end_of_input,
    "a key exchange": exchange,
    "windows": windows,
    "never closed": never_closed,
    "a false resumption": false_resumption,
}
