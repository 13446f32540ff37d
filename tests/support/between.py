"""The network in between: a proxy on loopback that sees, changes, cuts, repeats and holds back what is sent.

It stands between an asyncssh client, which knows the host key, and a service.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import asyncssh

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Awaitable, Callable
    from pathlib import Path

NETWORK = 13
KEXINIT, NEWKEYS = 20, 21
CIPHERS = ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr"]
MACS = ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-256"]
IGNORE = b"\0\0\0\x0c\x06\x02" + bytes(10)  # a whole packet, not encrypted (RFC 4253, section 11.2)
CLIENT, SERVER = "client", "server"  # who sent it


class Target(Protocol):
    """A service with a user ``middle``, and what is known of it."""

    fetched: Counter[tuple[str, str]]  # whole, by user and name
    came_from: set[str]  # the addresses that the network in between has used

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""

    @property
    def content(self) -> dict[str, bytes]:
        """Its files."""

    @property
    def big(self) -> str:
        """The name of the file that is fetched."""

    @property
    def host_key(self) -> Path:
        """The file of its private host key."""

    def connect(self, user: str, dice: random.Random, network: int, **options: Any) -> Any:
        """An asyncssh client, logged in with the password."""

    def logged_in(self, source: str) -> bool:
        """Whether the service reports a login from this address."""


def unused_address(target: Target, dice: random.Random) -> tuple[str, int]:
    """An address to come from. A login is known by its address, so none is given twice."""
    while (host := f"127.{NETWORK}.{dice.randrange(256)}.{dice.randrange(1, 255)}") in target.came_from:
        pass
    target.came_from.add(host)
    return host, 0


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
            source = unused_address(self.target, self.dice)
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
    """Whether somebody logged in from one of these addresses, as the service reports."""
    await asyncio.sleep(0.1)  # its log comes through a pipe
    return any(target.logged_in(source) for source in sources)


async def fetch(
    target: Target, dice: random.Random, lost: list[str], change: Change, **options: Any
) -> tuple[bool, Between]:
    """Fetch a file through the proxy as ``middle``; whether the client had it whole and closed it.

    Other bytes than the file's are a sentence in ``lost``.
    """
    between = Between(target, dice, change)
    listener = await asyncio.start_server(between.accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    key = asyncssh.read_private_key(target.host_key)
    public = key.export_public_key().decode()
    settings = {
        "port": port, "known_hosts": asyncssh.import_known_hosts(f"[127.0.0.1]:{port} {public}"), "login_timeout": 5,
        "encryption_algs": [dice.choice(CIPHERS)], "mac_algs": [dice.choice(MACS)], "local_addr": None,
        "server_host_key_algs": ["ssh-ed25519"],
    }  # fmt: skip
    name = target.big
    whole, connection, file = False, None, None
    try:
        async with asyncio.timeout(3):
            connection = await target.connect("middle", dice, NETWORK, **(settings | options))
            sftp = await connection.start_sftp_client()
            file = await sftp.open(name, "rb")
            data = await file.read()
            if data != target.content[name]:
                lost.append(f"the client got {len(data)} other bytes")
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
        if file is not None and not whole:
            # Who gives up closes, too.
            with suppress(asyncssh.Error, OSError, TimeoutError):
                async with asyncio.timeout(0.1):
                    await file.close()
        if connection is not None:
            connection.abort()
            await connection.wait_closed()
        await between.end()
        listener.close()
        await listener.wait_closed()
    del file
    # asyncssh leaves tasks that failed; their complaint, with a traceback, must not come amid an `ast.parse`, which
    # then fails under CPython 3.11.
    gc.collect()
    return whole, between


class HeldAnswers:
    """A line so slow that from one moment on nothing of the client's comes through, while it is still sent to.

    ``held`` is set when ``after`` bytes have come to the client: what follows them is acknowledged, and never answered.
    What follows ``kept_after`` is acknowledged, and never comes.
    """

    def __init__(self, port: int, after: int, kept_after: float = float("inf")) -> None:
        self._server_port = port
        self._after = after
        self._kept_after = kept_after
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.held = asyncio.Event()

    async def __aenter__(self) -> int:
        """Listen for one connection; return the port."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._listener.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        """Cut the connection."""
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        await self._listener.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers += [writer, back]
        self._tasks += [asyncio.create_task(self._to_client(there, writer)),
                        asyncio.create_task(self._to_server(reader, back))]  # fmt: skip

    async def _to_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried = 0
        while data := await reader.read(16_384):
            if carried + len(data) > self._after:
                self.held.set()
            carried += len(data)
            if carried <= self._kept_after:
                writer.write(data)
                await writer.drain()

    async def _to_server(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (data := await reader.read(16_384)) and not self.held.is_set():
            writer.write(data)
            await writer.drain()
        await asyncio.Event().wait()  # nor does anything tell that the client is gone


def at(place: int, what: Callable[[bytes, int], bytes | None]) -> Callable[[int, bytes], bytes | None]:
    """Do something to the one piece that holds this place of the stream."""

    def change(start: int, data: bytes) -> bytes | None:
        return what(data, place - start) if start <= place < start + len(data) else data

    return change
