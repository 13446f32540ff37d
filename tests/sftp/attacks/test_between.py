"""Attempts of the network in between, each of which changes one thing and is noticed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from server.pickups import Coverage, Grade, shown_by_resuming

from ...support.between import CLIENT, KEXINIT, SERVER, Change, HeldAnswers, at, came_in, fetch, unused_address
from ...support.sftp import NAME, PASSWORD, RawSftp, Running, packet, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

CONTENT = random.Random(8).randbytes(300_000)


@dataclass
class Target:
    """A listener of the tests, as the network in between wants it."""

    listener: Running
    content: dict[str, bytes] = field(default_factory=lambda: {NAME: CONTENT})
    fetched: Counter[tuple[str, str]] = field(default_factory=Counter)
    came_from: set[str] = field(default_factory=set)
    big: str = NAME

    @property
    def port(self) -> int:
        """The address that it listens on."""
        return self.listener.port

    @property
    def host_key(self) -> Path:
        """The file of its private host key."""
        return self.listener.folder / "keys" / "ssh_host_ed25519_key"

    def logged_in(self, source: str) -> bool:
        """Return whether it reports a login from this address."""
        return any(login.address == source for login in self.listener.logins)

    def connect(self, _user: str, _dice: random.Random, _network: int, **options: Any) -> Any:
        """Connect a client to an address."""
        settings = {"username": "triton", "password": PASSWORD, "client_keys": None, "agent_path": None, "config": None}
        return asyncssh.connect("127.0.0.1", **(settings | options))


@pytest.fixture
async def target(tmp_path: Path, keys_dir: Path) -> AsyncIterator[Target]:
    """A listener with one file, whose keys lie beside it."""
    (tmp_path / "keys").symlink_to(keys_dir)
    async with running(tmp_path, keys_dir, chacha20=True) as listener:
        listener.served.add(NAME, CONTENT)
        yield Target(listener)


def _offer(packet: bytes, *without: bytes, only: bytes | None = None) -> bytes:
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


DOWNGRADES: dict[str, Callable[[bytes], bytes]] = {
    "no strict keys": lambda packet: _offer(packet, b"kex-strict"),
    "no extensions": lambda packet: _offer(packet, b"ext-info"),
    "no lattice": lambda packet: _offer(packet, b"mlkem"),
    "group 16": lambda packet: _offer(packet, only=b"diffie-hellman-group16-sha512"),
    "group 1": lambda packet: _offer(packet, only=b"diffie-hellman-group1-sha1"),
}


def followed_by(injected: bytes) -> Callable[[bytes], bytes]:
    """With a packet of ours after the offer."""
    return lambda packet: packet + injected if packet[5] == KEXINIT else packet


def without_first_piece(place: int, data: bytes) -> bytes:
    """Without the first piece, which holds the EXT_INFO packet alone."""
    return data if place else b""


@pytest.mark.parametrize("sender", [CLIENT, SERVER])
@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"])
async def test_a_word_before_the_keys_and_one_less_behind_them_is_noticed(
    target: Target, sender: str, cipher: str
) -> None:
    """Terrapin: an IGNORE slipped in, the first encrypted packet taken away, so that all numbers fit again."""
    lost: list[str] = []
    change = Change(of=sender, plain=followed_by(packet(b"\x02" + bytes(4))), cipher=without_first_piece)
    whole, _ = await fetch(target, random.Random(1), lost, change, encryption_algs=[cipher])
    assert not whole
    assert target.listener.logins == []
    assert lost == []


async def test_a_downgraded_offer_is_noticed(target: Target) -> None:
    """Without strict keys, extensions or the lattice, or with one weak choice: nobody logs in over it."""
    lost: list[str] = []
    for name, plain in DOWNGRADES.items():
        for sender in (CLIENT, SERVER):
            whole, between = await fetch(target, random.Random(1), lost, Change(of=sender, plain=plain))
            assert not whole, name
            assert not await came_in(target, between.sources), name
    assert lost == []
    assert target.listener.logins == []


async def test_a_recorded_login_lets_nobody_in(target: Target) -> None:
    """A login and a fetch, replayed at once and in pieces: the keys differ, and nobody gets in."""
    dice = random.Random(1)
    lost: list[str] = []
    whole, between = await fetch(target, dice, lost, Change())
    assert whole
    assert await came_in(target, between.sources)
    said = bytes(between.recorded[CLIENT])
    sources = [unused_address(target, dice) for _ in range(2)]
    for source, step in zip(sources, (len(said), 500), strict=True):
        with suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=source)
            async with asyncio.timeout(1):
                for start in range(0, len(said), step):
                    writer.write(said[start : start + step])
                    await writer.drain()
                while await reader.read(1 << 16):
                    pass
            writer.close()
    assert not await came_in(target, [host for host, _ in sources])
    assert lost == []
    assert len(target.listener.logins) == 1
    assert [pickup.grade for pickup in target.listener.finished] == [Grade.COMPLETE]


@pytest.mark.parametrize("sender", [CLIENT, SERVER])
@pytest.mark.parametrize("place", [3, 600, 1400])
async def test_one_bit_is_noticed(target: Target, sender: str, place: int) -> None:
    """Wherever a bit is changed, in lengths, data or tags, the client has its file whole or an error, and the record
    claims no more than the client had."""
    lost: list[str] = []
    flip = at(place, lambda data, where: data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :])
    whole, _ = await fetch(target, random.Random(place), lost, Change(of=sender, cipher=flip))
    assert lost == []
    assert not (whole and sender == SERVER)
    # A handle may be reported as complete while it is open, and again when it is closed.
    complete = {pickup.id for pickup in target.listener.pickups if pickup.grade is Grade.COMPLETE}
    assert len(complete) <= target.fetched["middle", NAME]


async def test_a_network_that_keeps_the_end_forges_no_pickup(target: Target) -> None:
    """It takes all from us, and our system believes that it arrived; the client gives up, and closes."""
    change = Change(of=SERVER, cipher=lambda place, data: data if place < 200_000 else b"")
    whole, _ = await fetch(target, random.Random(1), [], change)
    assert not whole
    (pickup,) = await target.listener.finished_pickups()
    assert pickup.grade is Grade.PARTIAL


async def test_a_network_that_keeps_the_end_gains_nothing_by_a_resumption(target: Target) -> None:
    """It takes all from us, lets a part of it through, and cuts: the client goes on where that part ended, and shows
    that it has that much. What was kept from it is not picked up before it came."""
    listener, each, had = target.listener, 30_000, 90_000
    async with HeldAnswers(target.port, after=20_000, kept_after=120_000) as port:
        connection = await target.connect("", random.Random(1), 0, port=port, known_hosts=None)
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        for offset in range(0, len(CONTENT), each):
            raw.send(b"\x05" + bytes(4) + handle + offset.to_bytes(8, "big") + each.to_bytes(4, "big"))
        got = b"".join([(await raw.receive())[9:] for _ in range(0, had, each)])
        assert got == CONTENT[:had]
        (served,) = listener.server.registry.connections()
        async with asyncio.timeout(20):
            while served.stream.written < len(CONTENT) or served.stream.acknowledged() < served.stream.written:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        connection.abort()
    (first,) = await listener.finished_pickups()
    assert first.tail is not None and first.tail[0] < had < first.tail[1] == len(CONTENT)
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        await raw.read(handle, had, 10)
        await raw.read(handle, len(CONTENT) - 10, 10)
    second = (await listener.finished_pickups(2))[1]
    union = Coverage([*first.ranges, *second.ranges])
    union.add(*shown_by_resuming(first.tail, second.first_read or 0, alone=second.alone))
    assert union.ranges == ((0, had + 10), (len(CONTENT) - 10, len(CONTENT)))
