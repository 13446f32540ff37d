"""Attempts of the network in between, of which each changes one thing and is found out."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from benchmarks.faults.result import Fault
from benchmarks.faults.attack_between import (
    CLIENT,
    SERVER,
    WHOLE,
    Change,
    at,
    downgraded,
    fetch,
    followed_by,
    replayed,
    without_front,
)
from server.pickups import Grade

from ...support.sftp import NAME, PASSWORD, Running, packet, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CONTENT = random.Random(8).randbytes(300_000)


@dataclass
class Target:
    """A listener of the tests, as the campaign's attempts want it."""

    listener: Running
    content: dict[str, bytes] = field(default_factory=lambda: {NAME: CONTENT})
    fetched: Counter[tuple[str, str]] = field(default_factory=Counter)
    came_from: set[str] = field(default_factory=set)
    big: str = NAME

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.listener.port

    @property
    def site(self) -> Any:
        """Where the host keys are."""
        return SimpleNamespace(folder=self.listener.folder)

    @property
    def serving(self) -> Any:
        """Its log, as far as it is asked for logins."""

        def count(pattern: str) -> int:
            lines = [f"[conn=1 triton {login.address}] logged in" for login in self.listener.logins]
            return sum(bool(re.search(pattern, line)) for line in lines)

        return SimpleNamespace(running=SimpleNamespace(count=count))

    def connect(self, _user: str, _dice: random.Random, _network: int, **options: Any) -> Any:
        """A client that goes where it is told."""
        settings = {"username": "triton", "password": PASSWORD, "client_keys": None, "agent_path": None, "config": None}
        return asyncssh.connect("127.0.0.1", **(settings | options))


@pytest.fixture
async def target(tmp_path: Path, keys_dir: Path) -> AsyncIterator[Target]:
    """A listener with one file, whose keys lie where the campaign looks for them."""
    (tmp_path / "keys").symlink_to(keys_dir)
    async with running(tmp_path, keys_dir) as listener:
        listener.served.add(NAME, CONTENT)
        yield Target(listener)


@pytest.mark.parametrize("sender", [CLIENT, SERVER])
@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"])
async def test_a_word_before_the_keys_and_one_less_behind_them_is_noticed(
    target: Target, sender: str, cipher: str
) -> None:
    """Terrapin: an IGNORE slipped in, the first encrypted packet taken away, so that all numbers fit again."""
    row = Fault("test")
    change = Change(of=sender, plain=followed_by(packet(b"\x02" + bytes(4))), cipher=without_front(WHOLE))
    whole, _ = await fetch(target, random.Random(1), row, change, encryption_algs=[cipher])  # type: ignore[arg-type]
    assert not whole
    assert target.listener.logins == []
    assert row.lost == []


async def test_a_downgraded_offer_is_noticed(target: Target) -> None:
    """Without strict keys, extensions or the lattice, or with one weak choice: nobody logs in over it."""
    row = Fault("test")
    for seed in (1, 2):
        assert await downgraded(target, random.Random(seed), row)  # type: ignore[arg-type]
    assert row.lost == []
    assert target.listener.logins == []


async def test_what_was_recorded_opens_no_door(target: Target) -> None:
    """A login and a fetch, said again byte by byte: the keys are others, and nobody comes in."""
    row = Fault("test")
    await replayed(target, random.Random(1), row)  # type: ignore[arg-type]
    assert row.lost == []
    assert len(target.listener.logins) == 1
    assert [pickup.grade for pickup in target.listener.finished] == [Grade.COMPLETE]


@pytest.mark.parametrize("sender", [CLIENT, SERVER])
@pytest.mark.parametrize("place", [3, 600, 1400])
async def test_one_bit_is_noticed(target: Target, sender: str, place: int) -> None:
    """Wherever a bit is changed, in lengths, data or tags, the client has its file whole or an error, and the record
    claims no more than the client had."""
    row = Fault("test")
    flip = at(place, lambda data, where: data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :])
    whole, _ = await fetch(target, random.Random(place), row, Change(of=sender, cipher=flip))  # type: ignore[arg-type]
    assert row.lost == []
    assert not (whole and sender == SERVER)
    complete = sum(pickup.grade is Grade.COMPLETE for pickup in target.listener.pickups)
    assert complete <= target.fetched["middle", NAME]


async def test_a_network_that_keeps_the_end_forges_no_pickup(target: Target) -> None:
    """It takes all from us, and our system believes that it arrived; the client closes nothing that it has not got."""
    change = Change(of=SERVER, cipher=lambda place, data: data if place < 200_000 else b"")
    whole, _ = await fetch(target, random.Random(1), Fault("test"), change)  # type: ignore[arg-type]
    assert not whole
    (pickup,) = await target.listener.finished_pickups()
    assert pickup.grade is Grade.PARTIAL
