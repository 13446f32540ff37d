"""Those who are not let in: noise, half-open connections, floods, wrong passwords, packets of a broken key exchange.

Connects to one port of 127.0.0.1 from addresses of 127.1.0.0/16 and 127.2.0.0/16, as many strangers would. Each attack
is a coroutine that ends by itself; what the server does to it is no matter here.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import asyncssh

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable

    Attack = Callable[[int, random.Random], Awaitable[None]]

ADDRESSES = 200  # in each network: what is remembered of an address has its bound, and it is reached soon
BANNERS = [
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"SSH-1.5-old\r\n",
    b"SSH-2.0-" + b"x" * 300 + b"\r\n",
    b"\r\n" * 50,
    b"SSH-2.0-\0\r\n",
]
KEX = b"curve25519-sha256,ecdh-sha2-nistp256,diffie-hellman-group14-sha256,ext-info-c"
LISTS = [KEX, b"ssh-ed25519,rsa-sha2-512,ecdsa-sha2-nistp256", *[b"aes128-ctr,aes256-ctr,aes128-gcm@openssh.com"] * 2,
         *[b"hmac-sha2-256,hmac-sha2-512"] * 2, *[b"none"] * 2, b"", b""]  # fmt: skip


def address(dice: random.Random, network: int = 1) -> tuple[str, int]:
    """A stranger's address to bind to."""
    return f"127.{network}.0.{dice.randrange(1, ADDRESSES + 1)}", 0


@asynccontextmanager
async def connected(port: int, dice: random.Random) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection, which ends with FIN or RST."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=address(dice))
    try:
        yield reader, writer
    finally:
        if dice.random() < 0.5:
            sock: socket.socket = writer.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _hear(reader: asyncio.StreamReader, seconds: float) -> None:
    """Read what comes, for a while or to its end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while await reader.read(1 << 16):
                pass


def packet(payload: bytes, dice: random.Random, *, broken: float = 0.3) -> bytes:
    """An SSH packet before any keys (RFC 4253, section 6); now and then with lengths that are not true."""
    padding = 8 - (len(payload) + 5) % 8
    padding += 8 if padding < 4 else 0
    length = len(payload) + padding + 1
    if dice.random() < broken:
        length = dice.choice([0, 1, 5, length + 8, 35_000, 1 << 18, (1 << 32) - 1])
    if dice.random() < broken / 3:
        padding = dice.randrange(256)
    return struct.pack(">IB", length, padding) + payload + bytes(min(padding, 32))


def kexinit(dice: random.Random, *, broken: float = 0.5) -> bytes:
    """A KEXINIT as a client would send it; now and then cut, stretched, with other lists or bytes of noise."""
    lists = list(LISTS)
    if dice.random() < broken:
        lists[dice.randrange(10)] = dice.choice([b"", b",", b"x" * 5000, b"none", b",".join([b"a"] * 2000), b"\xff\0"])
    body = b"\x14" + dice.randbytes(16) + b"".join(struct.pack(">I", len(one)) + one for one in lists) + bytes(5)
    shape = dice.random() / broken if broken else 1.0
    if shape < 0.2:
        return body[: dice.randrange(1, len(body))]
    if shape < 0.4:
        noisy = bytearray(body)
        for _ in range(dice.randrange(1, 9)):
            noisy[dice.randrange(len(noisy))] = dice.randrange(256)
        return bytes(noisy)
    return body + dice.randbytes(dice.randrange(40)) if shape < 0.5 else body


async def noise(port: int, dice: random.Random) -> None:
    """Bytes that are not SSH, with or without a banner before them."""
    async with connected(port, dice) as (reader, writer):
        if dice.random() < 0.6:
            writer.write(dice.choice(BANNERS))
        writer.write(dice.randbytes(dice.choice([0, 1, 100, 5_000, 65_536, 300_000])))
        await _hear(reader, dice.random())


async def broken_exchange(port: int, dice: random.Random) -> None:
    """A banner, then packets: key exchange, user authentication, channels, anything, in any order and shape."""
    async with connected(port, dice) as (reader, writer):
        writer.write(BANNERS[0])
        for _ in range(dice.randrange(1, 30)):
            payload = bytes([dice.randrange(256)]) + dice.randbytes(dice.randrange(200))
            writer.write(packet(kexinit(dice) if dice.random() < 0.4 else payload, dice))
        await _hear(reader, dice.random())


async def half_open(port: int, dice: random.Random) -> None:
    """A connection that stops: at once, after the banner, in the middle of a packet, in the middle of the exchange."""
    async with connected(port, dice) as (reader, writer):
        whole = BANNERS[0] + packet(kexinit(dice, broken=0), dice, broken=0)
        writer.write(whole[: dice.choice([0, 5, len(BANNERS[0]), len(BANNERS[0]) + 30, len(whole)])])
        await _hear(reader, 1 + 14 * dice.random())


async def flood(port: int, dice: random.Random) -> None:
    """Sixty connections at once, from one address or from many, held for a moment or until they are thrown out."""
    one = address(dice, 2) if dice.random() < 0.5 else None
    seconds = dice.choice([1, 60])

    async def hold() -> None:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=one or address(dice, 2))
            await _hear(reader, seconds)
            writer.close()

    await asyncio.gather(*(hold() for _ in range(60)))


class _Guesser(asyncssh.SSHClient):
    """Tries wrong passwords until it is thrown out."""

    def __init__(self, dice: random.Random) -> None:
        self._left, self._dice = dice.randrange(1, 8), dice

    def password_auth_requested(self) -> str | None:
        self._left -= 1
        return self._dice.choice(["", "wrong", "x" * 1000, "correct horsE"]) if self._left >= 0 else None


async def wrong_passwords(port: int, dice: random.Random) -> None:
    """A few guesses for a name that there is, or is not."""
    name = dice.choice(["good", "slow", "root", "triton", "a" * 300])
    with suppress(TimeoutError):
        async with asyncio.timeout(6):
            connection = await asyncssh.connect(
                "127.0.0.1", port, username=name, client_factory=lambda: _Guesser(dice), known_hosts=None,
                client_keys=None, agent_path=None, config=None, local_addr=address(dice), preferred_auth="password",
                kex_algs=["curve25519-sha256"], server_host_key_algs=["ssh-ed25519"],
            )  # fmt: skip
            connection.abort()
            raise AssertionError("a wrong password opened the door")


ATTACKS: dict[str, tuple[Attack, float, int]] = {  # what, the least pause after it in seconds, how many at a time
    "noise before login": (noise, 0.2, 1),
    "broken key exchanges": (broken_exchange, 0.2, 1),
    "half-open connections": (half_open, 0.1, 12),
    "floods of 60 connections": (flood, 2.0, 1),
    "rounds of wrong passwords": (wrong_passwords, 0.5, 2),
}
