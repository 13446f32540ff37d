"""Those who come to the page: visitors, guessers, slow and broken ones, more of them than it lets in.

Connects to the page's port of 127.0.0.1 from addresses of 127.1.0.0/16. Each attack is a coroutine that ends by itself;
what the page does to it is no matter here, but what it shows to those who know the password.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.support.program import day_before, log_of
from tests.support.sftp import PASSWORD

from .network_strangers import address, connected

if TYPE_CHECKING:
    import random

    from .network_strangers import Attack

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n" + bytes(60_000),
    b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n" + bytes(30_000),
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 500) for n in range(500)) + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(1000),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
]


def _request(path: str, password: str) -> bytes:
    """A request with a password."""
    secret = b64encode(f"me:{password}".encode()).decode()
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {secret}\r\n\r\n".encode()


def paths() -> list[str]:
    """Everything that the page shows of this installation, and some that it does not."""
    days = [str(day_before(back)) for back in range(5)]
    return ["/", "/status.json", "/metrics", "/healthz", "/style.css", "/nothing", f"/files/{log_of(3)}",
            *(f"/days/{day}" for day in days), *(f"/days/{day}/podcasts.csv" for day in days)]  # fmt: skip


async def visit(port: int, dice: random.Random) -> None:
    """Somebody who knows the password, from time to time in a hurry or from afar; what is answered is the page's."""
    async with connected(port, dice) as (reader, writer):
        writer.write(_request(dice.choice(paths()), PASSWORD))
        if dice.random() < 0.2:
            return
        answer = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(60):
                answer = await reader.read()
        if answer and answer.split(b" ", 2)[1] not in (b"200", b"404"):
            raise AssertionError(f"the page answered {answer[:200]!r}")


async def broken(port: int, dice: random.Random) -> None:
    """What is not a request, or is too long, or has a body that never ends."""
    async with connected(port, dice) as (reader, writer):
        writer.write(dice.choice([*REQUESTS, dice.randbytes(dice.choice([1, 1000, 100_000]))]))
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(dice.random()):
                await reader.read()


async def slow(port: int, dice: random.Random) -> None:
    """A header that comes byte by byte, or an answer that is not taken."""
    async with connected(port, dice) as (reader, writer):
        request = _request("/", PASSWORD)
        if dice.random() < 0.5:
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket
            writer.write(request)
            await asyncio.sleep(15 * dice.random())
            return
        for byte in request[: dice.randrange(len(request))]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.2)
        await reader.read()


async def crowd(port: int, dice: random.Random) -> None:
    """Sixty connections at once, from one address or from many, silent or all with a request."""
    one, silent = address(dice) if dice.random() < 0.5 else None, dice.random() < 0.5

    async def come() -> None:
        with suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=one or address(dice))
            if not silent:
                writer.write(_request("/", PASSWORD))
            async with asyncio.timeout(dice.choice([1, 15])):
                await reader.read()
            writer.close()

    await asyncio.gather(*(come() for _ in range(60)))


async def guess(port: int, dice: random.Random) -> None:
    """Wrong passwords; none opens the page."""
    for _ in range(dice.randrange(1, 5)):
        async with connected(port, dice) as (reader, writer):
            writer.write(_request("/", dice.choice(["", "wrong", "x" * 2000, "correct horsE"])))
            answer = b""
            with suppress(TimeoutError):
                async with asyncio.timeout(20):
                    answer = await reader.read()
            if b"200 OK" in answer[:20]:
                raise AssertionError("a wrong password opened the page")


async def works(port: int) -> bool:
    """Whether the page is shown to one who comes alone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request("/", PASSWORD))
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200 ")


ATTACKS: dict[str, tuple[Attack, float, int]] = {  # what, the least pause after it in seconds, how many at a time
    "visits to the page": (visit, 0.05, 3),
    "broken requests to the page": (broken, 0.2, 1),
    "slow visitors of the page": (slow, 0.1, 6),
    "crowds of 60 at the page": (crowd, 2.0, 1),
    "wrong passwords at the page": (guess, 0.5, 1),
}
