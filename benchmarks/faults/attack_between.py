"""The network's attempts: somebody in between who sees, changes, cuts, repeats and holds back what is sent.

A proxy on loopback between an asyncssh client, which knows the host key, and the service. What must hold: the client
gets the right bytes or an error; nothing is agreed on that both sides would not choose; nobody comes in by what was
recorded; and a pickup of ``middle`` is complete only if the client had the whole file and closed it.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncssh

from .attack_target import address

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from .result import Fault
    from .attack_target import Target

NETWORK = 13
KEXINIT, NEWKEYS = 20, 21
CIPHERS = ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr"]
MACS = ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-256"]
IGNORE = b"\0\0\0\x0c\x06\x02" + bytes(10)  # a whole packet, not encrypted (RFC 4253, section 11.2)
WHOLE = -1
CLIENT, SERVER = "client", "server"  # who sent it


@dataclass
class Change:
    """What is done to one of the directions; by default nothing.

    ``plain`` is given each packet before there are keys, and gives what to send in its place; ``cipher`` each piece of
    the encrypted stream with its place in it.
    """

    of: str = CLIENT
    plain: Callable[[bytes], bytes] = lambda packet: packet
    cipher: Callable[[int, bytes], bytes | None] = lambda _, data: data  # None cuts the connection
    done: bool = False


@dataclass
class Between:
    """The proxy: one connection at a time."""

    target: Target
    dice: random.Random
    change: Change
    recorded: dict[str, bytearray] = field(default_factory=lambda: {CLIENT: bytearray(), SERVER: bytearray()})
    sources: list[str] = field(default_factory=list)  # whence the service saw it come
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            source = address(self.dice, NETWORK)
            while source[0] in self.target.came_from:  # a login is known by its address: none comes twice
                source = address(self.dice, NETWORK)
            self.target.came_from.add(source[0])
            self.sources.append(source[0])
            there, back = await asyncio.open_connection("127.0.0.1", self.target.port, local_addr=source)
            writers.append(back)
            carrying = [
                asyncio.create_task(self._carry(CLIENT, reader, back)),
                asyncio.create_task(self._carry(SERVER, there, writer)),
            ]
            await asyncio.wait(carrying, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(carrying, timeout=0.2)
            for half in carrying:
                half.cancel()
            await asyncio.gather(*carrying, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:
                one.close()

    async def _carry(self, sender: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        change = self.change if self.change.of == sender else Change()
        writer.write(await self._heard(sender, reader.readline()))
        while True:  # packets that anybody can read
            head = await self._heard(sender, reader.readexactly(4))
            packet = head + await self._heard(sender, reader.readexactly(int.from_bytes(head, "big")))
            writer.write(change.plain(packet))
            if packet[5] == NEWKEYS:
                break
        place = 0
        while data := await self._heard(sender, reader.read(4096)):
            changed = change.cipher(place, data)
            place += len(data)
            if changed is None:
                return
            writer.write(changed)
            await writer.drain()

    async def _heard(self, sender: str, data: Awaitable[bytes]) -> bytes:
        got = await data
        self.recorded[sender] += got
        return got

    async def end(self) -> None:
        """Nothing is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def came_in(target: Target, sources: list[str]) -> bool:
    """Whether somebody logged in from one of these addresses, as the service tells."""
    await asyncio.sleep(0.1)  # its log comes through a pipe
    return any(target.serving.running.count(rf" {re.escape(source)}\] logged in") for source in sources)


async def fetch(
    target: Target, dice: random.Random, row: Fault, change: Change, **options: Any
) -> tuple[bool, Between]:
    """Fetch a file through the proxy as ``middle``; whether the client had it whole and closed it."""
    between = Between(target, dice, change)
    listener = await asyncio.start_server(between.accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    key = asyncssh.read_private_key(target.site.folder / "keys" / "ssh_host_ed25519_key")
    public = key.export_public_key().decode()
    settings = {
        "port": port, "known_hosts": asyncssh.import_known_hosts(f"[127.0.0.1]:{port} {public}"), "login_timeout": 5,
        "encryption_algs": [dice.choice(CIPHERS)], "mac_algs": [dice.choice(MACS)], "local_addr": None,
        "server_host_key_algs": ["ssh-ed25519"],
    }  # fmt: skip
    name = target.big
    whole, connection = False, None
    try:
        async with asyncio.timeout(3):
            connection = await target.connect("middle", dice, NETWORK, **(settings | options))
            sftp = await connection.start_sftp_client()
            file = await sftp.open(name, "rb")
            data = await file.read()
            row.expect(data == target.content[name], f"the client got {len(data)} other bytes")
            # From here on the service may know that it was taken whole, whatever becomes of the client.
            target.fetched["middle", name] += 1
            await file.close()
            whole = True
    except (
        asyncssh.Error,
        OSError,
        TimeoutError,
        EOFError,
        ValueError,
    ):  # ValueError: asyncssh's, of what makes no sense
        pass
    finally:
        if connection is not None:
            connection.abort()
            await connection.wait_closed()
        await between.end()
        listener.close()
        await listener.wait_closed()
    return whole, between


def at(place: int, what: Callable[[bytes, int], bytes | None]) -> Callable[[int, bytes], bytes | None]:
    """Do something to the one piece that holds this place of the stream."""

    def change(start: int, data: bytes) -> bytes | None:
        return what(data, place - start) if start <= place < start + len(data) else data

    return change


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
    whole, _ = await fetch(target, dice, row, Change(of=sender, cipher=at(place, changes[name])))
    if sender == SERVER and name != "swap":
        row.expect(not whole, f"{name} at {place} of what the {sender} sent was not noticed")
    return 1


def _names(packet: bytes, *without: bytes, only: bytes | None = None) -> bytes:
    """A KEXINIT without some names in its lists, or with only one in its first; other packets as they are."""
    if packet[5] != KEXINIT:
        return packet
    body, position, lists = packet[5:22], 22, []
    for _ in range(10):
        length = int.from_bytes(packet[position : position + 4], "big")
        lists.append(packet[position + 4 : position + 4 + length].split(b","))
        position += 4 + length
    for number, names in enumerate(lists):
        lists[number] = [name for name in names if not any(name.startswith(one) for one in without)]
    if only is not None:
        lists[0] = [only]
    body += b"".join(len(one := b",".join(names)).to_bytes(4, "big") + one for names in lists) + bytes(5)
    padding = 8 - (len(body) + 5) % 8
    padding += 8 * (padding < 4)
    return (len(body) + padding + 1).to_bytes(4, "big") + bytes([padding]) + body + bytes(padding)


async def downgraded(target: Target, dice: random.Random, row: Fault) -> int:
    """An offer without its best, without strict keys, with one choice only: the exchange hash tells."""
    changes: dict[str, Callable[[bytes], bytes]] = {
        "no strict keys": lambda packet: _names(packet, b"kex-strict"),
        "no extensions": lambda packet: _names(packet, b"ext-info"),
        "no lattice": lambda packet: _names(packet, b"mlkem"),
        "group 16": lambda packet: _names(packet, only=b"diffie-hellman-group16-sha512"),
        "group 1": lambda packet: _names(packet, only=b"diffie-hellman-group1-sha1"),
    }
    for name, plain in changes.items():
        whole, between = await fetch(target, dice, row, Change(of=dice.choice([CLIENT, SERVER]), plain=plain))
        row.expect(not whole, f"a downgrade was not noticed: {name}")
        row.expect(not await came_in(target, between.sources), f"a downgrade got in: {name}")
    return len(changes)


def followed_by(injected: bytes) -> Callable[[bytes], bytes]:
    """With a packet of ours behind the offer."""
    return lambda packet: packet + injected if packet[5] == KEXINIT else packet


def without_front(count: int) -> Callable[[int, bytes], bytes]:
    """Without the first bytes; all of the first piece, which holds the EXT_INFO packet alone, if count is WHOLE."""
    return lambda place, data: data[count if count != WHOLE else len(data) :] if place == 0 else data


async def truncated_prefix(target: Target, dice: random.Random, row: Fault) -> int:
    """Terrapin: a word slipped in before there are keys, and as many encrypted packets taken from the front."""
    count = 0
    for sender in (CLIENT, SERVER):
        for cipher, mac in (("chacha20-poly1305@openssh.com", MACS[0]), ("aes256-ctr", MACS[0])):
            for code in (b"\x02", b"\x04", b"\x03"):
                injected = IGNORE[:5] + code + IGNORE[6:]
                taken = WHOLE if code == b"\x02" else dice.choice([0, 36, 44, 52])
                whole, _ = await fetch(
                    target, dice, row,
                    Change(
                        of=sender,
                        plain=followed_by(injected), cipher=without_front(taken),
                    ),
                    encryption_algs=[cipher], mac_algs=[mac],
                )  # fmt: skip
                count += 1
                row.expect(not whole, f"a word slipped in before the keys was not noticed ({sender}, {cipher})")
    return count


async def replayed(target: Target, dice: random.Random, row: Fault) -> int:
    """A whole login and fetch, recorded, and said again to the service, at once and in pieces."""
    whole, between = await fetch(target, dice, row, Change())
    row.expect(whole, "a fetch through a proxy that changes nothing failed")
    row.expect(await came_in(target, between.sources), "a login through a proxy that changes nothing was not told")
    sources = [one for one in (address(dice, NETWORK) for _ in range(9)) if one[0] not in target.came_from][:3]
    target.came_from.update(host for host, _ in sources)
    for source in sources:
        with suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=source)
            async with asyncio.timeout(1):
                said = bytes(between.recorded[CLIENT])
                step = dice.choice([len(said), 500])
                for start in range(0, len(said), step):
                    writer.write(said[start : start + step])
                    await writer.drain()
                while await reader.read(1 << 16):
                    pass
            writer.close()
    row.expect(not await came_in(target, [host for host, _ in sources]), "a recorded login opened the door")
    return 4


async def held_back(target: Target, dice: random.Random, row: Fault) -> int:
    """Everything is taken from the service, so that its system believes it, and the end is kept from the client."""
    size = len(target.content[target.big])
    keep = dice.randrange(size // 2, size)
    await fetch(target, dice, row, Change(of=SERVER, cipher=lambda place, data: data if place < keep else b""))
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
    "downgrades": downgraded,
    "a truncated prefix": truncated_prefix,
    "replays": replayed,
    "held back": held_back,
    "version lines": versions,
}
