"""The network's attempts: somebody in between who changes, cuts, repeats and swaps what is sent.

The proxy is `tests.support.between`. What must hold: the client gets the right bytes or an error; nobody comes in over
changed version lines; and a pickup of ``middle`` is complete only if the client had the whole file and closed it.
Downgrades, slipped-in words, replays and withheld ends are tests (`tests/sftp/attacks`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncssh

from tests.support.between import CLIENT, NETWORK, SERVER, Between, Change, at, came_in, fetch

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from .attack_target import Target
    from .result import Fault


async def in_the_stream(target: Target, dice: random.Random, row: Fault) -> int:
    """One change in the encrypted stream of one side: the side that hears it ends the connection."""
    sender = dice.choice([CLIENT, SERVER])
    size = len(target.content[target.big]) if sender == SERVER else 1500
    earlier = bytearray()

    def swap(data: bytes, where: int) -> bytes:
        half = max(1, where)
        return data[half:] + data[:half]

    def repeat(data: bytes, _: int) -> bytes:
        return data + bytes(earlier[-len(data) :] or data)

    changes: dict[str, Callable[[bytes, int], bytes | None]] = {
        "flip": lambda data, where: data[:where] + bytes([data[where] ^ (1 << dice.randrange(8))]) + data[where + 1 :],
        "drop": lambda data, where: data[:where] + data[where + dice.choice([1, 16, 64]) :],
        "insert": lambda data, where: data[:where] + dice.randbytes(dice.choice([1, 16, 36])) + data[where:],
        "repeat": repeat,
        "swap": swap,
        "cut": lambda *_: None,
    }
    name = dice.choice(sorted(changes))
    place = dice.randrange(size)
    whole, _ = await fetch(target, dice, row.lost, Change(of=sender, cipher=at(place, changes[name])))
    if sender == SERVER and name != "swap":
        row.expect(not whole, f"{name} at {place} of what the {sender} sent was not noticed")
    return 1


async def versions(target: Target, dice: random.Random, row: Fault) -> int:
    """The version lines are part of the exchange hash: to change one is to be found out."""

    class Changing(Between):
        async def _heard(self, sender: str, data: Awaitable[bytes]) -> bytes:
            got = await super()._heard(sender, data)
            return got.replace(b"SSH-2.0-", b"SSH-2.0-old", 1) if got.startswith(b"SSH-2.0-") else got

    between = Changing(target, dice, Change())
    listener = await asyncio.start_server(between.accept, "127.0.0.1", 0)
    try:
        with suppress(asyncssh.Error, OSError, TimeoutError):
            async with asyncio.timeout(5):
                await target.connect(
                    "middle", dice, NETWORK, port=listener.sockets[0].getsockname()[1], local_addr=None
                )
            row.lost.append("changed version lines were not noticed")
    finally:
        await between.end()
        listener.close()
        await listener.wait_closed()
    row.expect(not await came_in(target, between.sources), "changed version lines got in")
    return 1


ATTEMPTS: dict[str, Callable[[Target, random.Random, Fault], Awaitable[int | None]]] = {
    **{f"one change in the stream, {number}": in_the_stream for number in range(8)},
    "version lines": versions,
}
