"""Every message code, with whatever flags, lengths, handles and paths: nothing changes, nothing crashes."""

from __future__ import annotations

import asyncio
import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import asyncssh
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.sftp.handler import MUTATING, Client, Events, RequestHandler, ServedFiles
from server.sftp.protocol import Fields, Kind, Malformed

from ..support.sftp import NAME, PASSWORD, RawSftp, ServedFolder, acknowledged, running, string
from ..support.sftp_process import server_process
from ..support.sftp_requests import random_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from concurrent.futures import Executor
    from pathlib import Path

PACKETS = 10_000
SESSIONS = 4
MORE_PACKETS = 90_000


async def _fuzz(dice: random.Random, count: int, ask: Callable[[list[bytes]], AsyncIterator[bytes]]) -> set[int]:
    """Ask this many things, in batches; the kinds of the replies. ``ask`` yields replies, without their lengths."""
    seen: set[int] = set()
    handles: list[bytes] = []
    for begin in range(0, count, 50):
        batch = [random_request(dice, handles) for _ in range(min(50, count - begin))]
        asked = iter(batch)
        async for reply in ask(batch):
            request = next(asked)
            assert reply[1:5] == request[1:5], "every request has its reply, in order"
            seen.add(reply[0])
            if reply[0] == Kind.HANDLE:
                handles = [*handles[-20:], reply[5:]]
            if request[0] in (*MUTATING, Kind.LINK, Kind.BLOCK, Kind.UNBLOCK):
                assert reply[0] == Kind.STATUS
                assert int.from_bytes(reply[5:9], "big") in (3, 8)
        assert next(asked, None) is None
    return seen


async def _fuzz_over_ssh(port: int, seed: int, count: int) -> set[int]:
    login = {"username": "triton", "password": PASSWORD, "known_hosts": None, "client_keys": None, "config": None}
    async with asyncssh.connect("127.0.0.1", port, agent_path=None, **login) as connection:
        raw = await RawSftp.open(connection)

        async def ask(batch: list[bytes]) -> AsyncIterator[bytes]:
            for request in batch:
                raw.send(request)
            for _ in batch:
                yield await raw.receive()

        return await _fuzz(random.Random(seed), count, ask)


def _published(folder: Path) -> ServedFolder:
    served = ServedFolder(folder / "pickup")
    served.add(NAME, os.urandom(500_000))
    served.add("MEGA20261121-00.tsv.gz", b"short")
    return served


def _every_kind(seen: set[int]) -> bool:
    return {Kind.STATUS, Kind.HANDLE, Kind.DATA, Kind.NAME, Kind.ATTRS, Kind.EXTENDED_REPLY} <= seen


async def test_no_packet_changes_the_tree_or_crashes_the_process(tmp_path: Path, keys_dir: Path) -> None:
    """Many thousand seeded packets on four sessions: each is answered, the tree is as before, the memory is flat."""
    served = _published(tmp_path)
    before = served.state()
    async with server_process(tmp_path, keys_dir) as server:
        await _fuzz_over_ssh(server.port, 1, 500)
        memory = server.memory
        sessions = (_fuzz_over_ssh(server.port, seed, PACKETS // SESSIONS) for seed in range(SESSIONS))
        results = await asyncio.gather(*sessions)
        assert server.memory - memory < 8 << 20
        assert server.process.poll() is None
    assert _every_kind(set().union(*results))
    assert served.state() == before


async def test_no_packet_of_many_more_changes_the_tree(tmp_path: Path) -> None:
    """The same dice without SSH in between, which would cost ten times as much as the answers."""
    served = _published(tmp_path)
    before = served.state()
    with ThreadPoolExecutor(1) as threads:
        view = _handler(ServedFiles(served.list_files, served.open_file), threads, max_handles=64)
        view.answer(b"\x01\0\0\0\x03")

        async def ask(batch: list[bytes]) -> AsyncIterator[bytes]:
            for request in batch:
                reply = view.answer(request)
                assert reply is not None
                yield bytes(reply if isinstance(reply, bytes | bytearray) else await reply)[4:]

        assert _every_kind(await _fuzz(random.Random(5), MORE_PACKETS, ask))
        view.abandon()
    assert served.state() == before


def _handler(files: ServedFiles, threads: Executor, *, max_handles: int) -> RequestHandler:
    return RequestHandler(
        files,
        Client("triton", "203.0.113.9", "test"),
        Events(lambda _: None, lambda *_: None, lambda *_: None),
        delivery=acknowledged(lambda _: None),
        max_handles=max_handles,
        threads=threads,
    )


def _gone(_: object) -> int:
    raise FileNotFoundError


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    """One for all examples: to start a thread takes longer than an answer."""
    with ThreadPoolExecutor(1) as made:
        yield made


@given(code=st.integers(0, 255), number=st.integers(0, 2**32 - 1), body=st.binary(max_size=200))
@settings(max_examples=2000, suppress_health_check=list(HealthCheck))
def test_any_bytes_get_one_reply_with_their_number(code: int, number: int, body: bytes, threads: Executor) -> None:
    """Noise under any message code is answered with exactly one packet that bears the request's number."""
    view = _handler(ServedFiles(dict, _gone), threads, max_handles=8)
    assert view.answer(b"\x01\0\0\0\x03") is not None
    reply = view.answer(bytes([code]) + number.to_bytes(4, "big") + body)
    assert isinstance(reply, bytes | bytearray)
    assert int.from_bytes(reply[:4], "big") == len(reply) - 4
    assert reply[5:9] == number.to_bytes(4, "big")


@given(st.binary(max_size=64))
def test_fields_never_reach_past_their_request(data: bytes) -> None:
    """Whatever lengths a request claims, reading it ends in fields or in one error."""
    fields = Fields(data)
    try:
        fields.string()
        fields.skip_attrs()
    except Malformed:
        return


async def test_what_is_not_a_packet_ends_only_its_session(tmp_path: Path, keys_dir: Path) -> None:
    """A length of zero, of gigabytes, a packet without a number, no INIT first: that channel ends, others go on."""
    async with running(tmp_path, keys_dir) as it, it.connect() as connection:
        it.served.add(NAME, b"x" * 1000)
        good = await RawSftp.open(connection)
        for greet, noise in (
            (True, bytes(4)),
            (True, b"\xff\xff\xff\xff"),
            (True, b"\0\4\0\1" + bytes(100)),
            (True, b"\0\0\0\3abc"),
            (False, b"\0\0\0\5\x03\0\0\0\1"),
        ):
            raw = await RawSftp.open(connection, greet=greet)
            raw.writer.write(noise)
            assert await asyncio.wait_for(raw.reader.read(), 10) == b""
        assert (await good.ask(Kind.STAT, string(NAME.encode())))[0] == Kind.ATTRS
