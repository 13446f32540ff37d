"""Every message code, with whatever flags, lengths, handles and paths: nothing changes, nothing crashes."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

import asyncssh
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.sftp.handler import MUTATING, Client, Events, RequestHandler, ServedFiles
from server.sftp.protocol import Fields, Kind, Malformed

from ..support.sftp import NAME, PASSWORD, RawSftp, ServedFolder, acknowledged, string
from ..support.sftp_process import server_process
from ..support.sftp_requests import random_request

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

PACKETS = 100_000 if os.environ.get("CI") else 10_000
SESSIONS = 4


async def _fuzz(port: int, seed: int, count: int) -> dict[int, int]:
    dice = random.Random(seed)
    seen: dict[int, int] = {}
    login = {"username": "triton", "password": PASSWORD, "known_hosts": None, "client_keys": None, "config": None}
    async with asyncssh.connect("127.0.0.1", port, agent_path=None, **login) as connection:
        raw = await RawSftp.open(connection)
        handles: list[bytes] = []
        sent = 0
        while sent < count:
            batch = [random_request(dice, handles) for _ in range(min(50, count - sent))]
            for request in batch:
                raw.send(request)
            for request in batch:
                reply = await raw.receive()
                assert reply[1:5] == request[1:5], "every request has its reply, in order"
                seen[reply[0]] = seen.get(reply[0], 0) + 1
                if reply[0] == Kind.HANDLE:
                    handles = [*handles[-20:], reply[5:]]
                if request[0] in (*MUTATING, Kind.LINK, Kind.BLOCK, Kind.UNBLOCK):
                    assert reply[0] == Kind.STATUS
                    assert int.from_bytes(reply[5:9], "big") in (3, 8)
            sent += len(batch)
    return seen


@pytest.mark.timeout(600)
async def test_no_packet_changes_the_tree_or_crashes_the_process(tmp_path: Path, keys_dir: Path) -> None:
    """Many thousand seeded packets on four sessions: each is answered, the tree is as before, the memory is flat."""
    served = ServedFolder(tmp_path / "pickup")
    served.add(NAME, os.urandom(500_000))
    served.add("MEGA20261121-00.tsv.gz", b"short")
    before = served.state()
    async with server_process(tmp_path, keys_dir) as server:
        await _fuzz(server.port, 1, 500)
        memory = server.memory
        results = await asyncio.gather(*(_fuzz(server.port, seed, PACKETS // SESSIONS) for seed in range(SESSIONS)))
        assert server.memory - memory < 64 << 20
        assert server.process.returncode is None
    seen = set().union(*results)
    assert {Kind.STATUS, Kind.HANDLE, Kind.DATA, Kind.NAME, Kind.ATTRS, Kind.EXTENDED_REPLY} <= seen
    assert served.state() == before


class _Nobody:
    """What a request handler works with, in memory."""

    def __init__(self) -> None:
        self.refusals: list[str] = []

    def view(self, threads: Executor) -> RequestHandler:
        def closed(_: object) -> int:
            raise FileNotFoundError

        return RequestHandler(
            ServedFiles(dict, closed),
            Client("triton", "203.0.113.9", "test"),
            Events(lambda _: None, lambda verb, _: self.refusals.append(verb), lambda *_: None),
            delivery=acknowledged(lambda _: None),
            max_handles=8,
            threads=threads,
        )


@given(code=st.integers(0, 255), number=st.integers(0, 2**32 - 1), body=st.binary(max_size=200))
@settings(max_examples=2000, suppress_health_check=list(HealthCheck), deadline=None)
def test_any_bytes_get_one_reply_with_their_number(code: int, number: int, body: bytes) -> None:
    """Noise under any message code is answered with exactly one packet that bears the request's number."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        view = _Nobody().view(threads)
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
    ServedFolder(tmp_path / "pickup").add(NAME, b"x" * 1000)
    login = {"username": "triton", "password": PASSWORD, "known_hosts": None, "client_keys": None, "config": None}
    async with (
        server_process(tmp_path, keys_dir) as server,
        asyncssh.connect("127.0.0.1", server.port, agent_path=None, **login) as connection,
    ):
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
