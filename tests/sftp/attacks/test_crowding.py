"""Attempts to keep the partner out, by taking every slot there is."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.sftp.limits import (
    MAX_ADDRESSES,
    MAX_OPENS_WAITING,
    MIN_LOGIN_TIME,
    OPENS,
    OPENS_BURST,
    Guard,
    Limits,
    OpenPace,
    connection_to_drop,
)

from ...support.sftp import NAME, RawSftp, Running, running, string

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ONE, TWO, THREE = (ip_address(f"203.0.113.{number}") for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("waiting", "newcomer", "now", "goes"),
    [
        ([], ONE, 100.0, None),
        ([(ONE, 1.0), (ONE, 0.0), (TWO, 0.5)], THREE, 1.1, 1),
        ([(ONE, 1.0), (ONE, 0.0), (TWO, 0.5)], ONE, 1.1, None),
        ([(ONE, 1.0), (ONE, 0.0), (TWO, 0.5)], TWO, 1.1, 1),
        ([(ONE, 1.0), (ONE, 0.0), (TWO, 0.5), (TWO, 0.6)], TWO, 1.1, None),
        ([(ONE, 1.0), (TWO, 0.5)], THREE, 1.0 + MIN_LOGIN_TIME, 1),
        ([(ONE, 1.0), (TWO, 0.5)], THREE, 0.4 + MIN_LOGIN_TIME, None),
        ([(ONE, 1.0), (TWO, 0.5)], ONE, 1000.0, None),
    ],
)
def test_which_connection_is_dropped(
    waiting: list[tuple[object, float]], newcomer: object, now: float, goes: int | None
) -> None:
    """The oldest of the address that holds most; a lone one only after its time; never for its own address."""
    assert connection_to_drop(waiting, newcomer, now) == goes  # type: ignore[arg-type]


def test_an_ipv6_network_is_one_address_here_too() -> None:
    """Addresses of one /64 count together."""
    waiting = [(ip_address(f"2001:db8::{number}"), 0.0) for number in range(1, 5)]
    assert connection_to_drop([(ONE, 0.0), *waiting], TWO, 0.1) == 1
    assert connection_to_drop([(ONE, 0.0), *waiting], ip_address("2001:db8::9"), 100.0) is None


@asynccontextmanager
async def strangers(port: int, sources: list[str]) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Connections that say nothing, one from each of these addresses."""
    pairs = [await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)) for source in sources]
    try:
        yield [reader for reader, _ in pairs]
    finally:
        for _, writer in pairs:
            writer.close()


@pytest.mark.parametrize("lone", [False, True], ids=["two addresses", "as many addresses as places"])
async def test_idle_strangers_keep_nobody_out(
    tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch, lone: bool
) -> None:
    """All slots are taken by connections that do not log in, and the partner, who is in no allow list, gets in."""
    monkeypatch.setattr("server.sftp.limits.MIN_LOGIN_TIME", 0.0)
    async with running(tmp_path, keys_dir, max_connections=8) as it:
        it.served.add(NAME, b"content")
        sources = [f"127.0.0.{2 + number if lone else 2 + number % 2}" for number in range(8)]
        async with strangers(it.port, sources) as readers:
            for reader in readers:
                assert (await reader.readline()).startswith(b"SSH-")
            assert it.server.registry.connected == 8
            for _ in range(3):
                async with it.connect() as connection, connection.start_sftp_client() as sftp:
                    assert await sftp.listdir("/") == [NAME]
                    assert it.server.registry.connected <= 8
    assert it.server.registry.counters.refusals["too-many-connections"] in (1, 2, 3)


async def test_a_logged_in_user_is_never_dropped(tmp_path: Path, keys_dir: Path) -> None:
    """Users who are logged in keep their slots, however idle; the next one is refused."""
    async with running(tmp_path, keys_dir, max_connections=2) as it, it.connect() as one, it.connect() as two:
        with pytest.raises((asyncssh.Error, OSError)):
            await it.connect(local_addr=("127.0.0.2", 0))
        for connection in (one, two):
            async with connection.start_sftp_client() as sftp:
                assert await sftp.listdir("/") == []


async def test_openings_of_sessions_that_left_do_not_pile_up(
    listener: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who opens and leaves at once, again and again, is refused when too many wait, and it is logged."""
    monkeypatch.setattr("server.sftp.limits.OPENS", 0.1)  # a second: so slow that a busy machine changes nothing
    monkeypatch.setattr("server.sftp.limits.OPENS_BURST", 1.0)
    monkeypatch.setattr("server.sftp.limits.MAX_OPENS_WAITING", 5.0)
    with capture_logs() as entries:
        async with listener.connect() as connection:
            for _ in range(12):
                raw = await RawSftp.open(connection)
                raw.send(b"\x03" + bytes(4) + string(NAME.encode()) + (1).to_bytes(4, "big") + bytes(4))
                with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
                    async with asyncio.timeout(0.01):
                        await raw.receive()
                raw.writer.channel.abort()
                await raw.writer.channel.wait_closed()
    assert "too-many-requests" in [entry.get("reason") for entry in entries]
    assert sum(pickup.ended is None for pickup in listener.pickups) < 12


def test_the_queue_of_openings_is_bounded_and_empties() -> None:
    """The wait is bounded for whoever is let in, and time makes room."""
    it = OpenPace()
    count = 0
    while not it.is_crowded("loop", 100.0):
        longest = it.turn("loop", 100.0)
        count += 1
    assert count <= OPENS_BURST + MAX_OPENS_WAITING + 1
    assert longest <= MAX_OPENS_WAITING / OPENS + 1
    assert not it.is_crowded("other", 100.0)
    assert not it.is_crowded("loop", 101.0)


def test_failures_from_thousands_of_networks_stay_in_bounds() -> None:
    """One host with a /44 has a million /64: what is remembered of them is bounded, and good addresses get in."""
    it = Guard(Limits(connections=50, ban_after=1), lambda _: False)
    for number in range(3 * MAX_ADDRESSES):
        it.failed(ip_address((0x20010DB8 << 96) + (number << 64) + 1), float(number) / 1000)
    assert len(it._failures) <= MAX_ADDRESSES
    assert len(it.bans(50.0)) <= MAX_ADDRESSES
    assert it.admit(ONE, 50.0) == 0
