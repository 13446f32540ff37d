"""Balancers that announce their clients: what is believed, and what it changes."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from contextlib import asynccontextmanager, closing, suppress
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.pickups import Grade
from server.settings import UserSettings
from server.sftp.client import LoginAttempt, fetch_sha256, host_key
from server.sftp.proxy_protocol import LONGEST_HEADER, SIGNATURE, BadHeader, announcement, client_of, missing

from ..support.sftp import CHEAP_HASH, NAME, PASSWORD, Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

SSH = b"SSH-2.0-OpenSSH_9.2\r\n"
CLIENT, SERVER = ip_address("203.0.113.9"), ip_address("192.0.2.1")
CLIENT6, SERVER6 = ip_address("2001:db8::9"), ip_address("2001:db8::1")
PORTS = (51000).to_bytes(2, "big") + (2222).to_bytes(2, "big")
FOUR, SIX = CLIENT.packed + SERVER.packed + PORTS, CLIENT6.packed + SERVER6.packed + PORTS


def block(command: int, family: int, rest: bytes, size: int | None = None) -> bytes:
    """A header of version 2."""
    return SIGNATURE + bytes([command, family]) + (len(rest) if size is None else size).to_bytes(2, "big") + rest


def added(kind: int, value: bytes, size: int | None = None) -> bytes:
    """A piece of what version 2 may add to the addresses."""
    return bytes([kind]) + (len(value) if size is None else size).to_bytes(2, "big") + value


# HAProxy's, with an SSL client certificate's name and a unique id; its checksum was computed by another program.
SSL = added(0x20, b"\x07" + bytes(4) + added(0x21, b"TLSv1.3") + added(0x22, b"example.com"))
CHECKED = block(0x21, 0x11, FOUR + added(5, b"unique") + added(3, bytes.fromhex("5f13c798")) + added(4, b"\0\0"))

GOOD: list[tuple[bytes, Any]] = [
    (b"PROXY TCP4 203.0.113.9 192.0.2.1 51000 2222\r\n", CLIENT),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", ip_address("255.255.255.255")),
    (b"PROXY TCP6 2001:db8::9 2001:db8::1 51000 2222\r\n", CLIENT6),
    (b"PROXY TCP6 " + 2 * (b"ffff:" * 7 + b"ffff ") + b"65535 65535\r\n", IPv6Address(2**128 - 1)),
    (b"PROXY TCP6 ::ffff:203.0.113.9 ::ffff:192.0.2.1 51000 2222\r\n", CLIENT),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN " + 2 * (b"ffff:" * 7 + b"ffff ") + b"65535 65535\r\n", None),
    (announcement(CLIENT, SERVER), CLIENT),
    (announcement(CLIENT6, SERVER6), CLIENT6),
    (block(0x21, 0x11, FOUR), CLIENT),
    (block(0x21, 0x21, SIX), CLIENT6),
    (block(0x21, 0x21, IPv6Address("::ffff:203.0.113.9").packed + SIX[16:]), CLIENT),
    (block(0x21, 0x11, FOUR + SSL + added(5, b"unique")), CLIENT),
    (block(0x21, 0x21, SIX + added(0xEA, b"\x01vpce-08d2bf15fac5001c9")), CLIENT6),  # AWS
    (block(0x21, 0x11, FOUR + added(4, bytes(LONGEST_HEADER - 16 - 12 - 3))), CLIENT),
    (CHECKED, CLIENT),
    (block(0x20, 0x00, b""), None),
    (block(0x20, 0x11, FOUR), None),
    (block(0x20, 0x00, b"whatever stands here"), None),
    (block(0x21, 0x00, b"whatever stands here"), None),
    (block(0x21, 0x31, bytes(216)), None),
    (block(0x21, 0x12, FOUR), None),
]
BAD: list[tuple[bytes, str]] = [
    (SSH, "sends no PROXY header"),
    (b"\x16\x03\x01\x02\0", "sends no PROXY header"),
    (b"PROXY\r\n" + SSH, "sends no PROXY header"),
    (b"proxy TCP4 203.0.113.9 192.0.2.1 51000 2222\r\n", "sends no PROXY header"),
    (SIGNATURE[:6] + b"QUIT", "sends no PROXY header"),
    (b"PROXY " + b"x" * 200, "no end within 107 bytes"),
    (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "no end within 107 bytes"),
    *(
        (b"PROXY " + line + b"\r\n", "line is malformed")
        for line in (
            b"TCP4 203.0.113.9 192.0.2.1 51000",
            b"TCP4 203.0.113.9 192.0.2.1 51000 2222 ",
            b"TCP4 203.0.113.9  192.0.2.1 51000 2222",
            b"TCP4 203.0.113.9 192.0.2.1 51000 65536",
            b"TCP4 203.0.113.9 192.0.2.1 51000 -1",
            b"TCP4 203.0.113.9 192.0.2.1 51000 +1",
            b"TCP4 203.0.113.9 192.0.2.1 051000 22",
            b"TCP4 203.0.113.9 example.com 51000 2222",
            b"TCP4 203.0.113 192.0.2.1 51000 2222",
            b"TCP4 203.0.113.09 192.0.2.1 51000 2222",
            b"TCP4 2001:db8::9 2001:db8::1 51000 2222",
            b"TCP6 203.0.113.9 192.0.2.1 51000 2222",
            b"TCP6 fe80::9%eth0 2001:db8::1 51000 2222",
            b"UDP4 203.0.113.9 192.0.2.1 51000 2222",
            b"TCP4 203.0.113.9\t192.0.2.1\t51000\t2222",
            b"TCP4 203.0.113.\xb9 192.0.2.1 51000 2222",
            b"TCP4 203.0.113.9 192.0.2.1 51000 2222\n",
            b"         ",
        )
    ),
    (b"PROXY A\r\n" + SSH, "line is malformed"),
    (block(0x21, 0x11, b"", 0xFFFF), "65551 bytes long"),
    (block(0x21, 0x11, FOUR, LONGEST_HEADER - 15), "at most 4096 are read"),
    (block(0x11, 0x11, FOUR), "unknown version or command: 0x11"),
    (block(0x22, 0x11, FOUR), "unknown version or command: 0x22"),
    (block(0x21, 0x41, SIX), "unknown family or transport: 0x41"),
    (block(0x21, 0x13, FOUR), "unknown family or transport: 0x13"),
    (block(0x21, 0x01, FOUR), "unknown family or transport: 0x01"),
    (block(0x21, 0x11, FOUR[:-1]), "addresses in its PROXY header are cut short"),
    (block(0x21, 0x21, FOUR), "addresses in its PROXY header are cut short"),
    (block(0x21, 0x31, FOUR), "addresses in its PROXY header are cut short"),
    (block(0x21, 0x11, FOUR + b"\x05\0"), "adds to the addresses is cut short"),
    (block(0x21, 0x11, FOUR + added(5, b"unique", 7)), "adds to the addresses is cut short"),
    (CHECKED.replace(b"unique", b"unikue"), "checksum"),
    (CHECKED.replace(CLIENT.packed, SERVER.packed), "checksum"),
    (block(0x21, 0x11, FOUR + added(3, b"\0\0\0")), "checksum"),
    (block(0x21, 0x11, FOUR + added(3, bytes(4))), "checksum"),
]


def take(stream: bytes, at_once: int = 1 << 20) -> tuple[Any, bytes]:
    """The client that the header before a stream names, and what is left of the stream."""
    head = b""
    while count := missing(head):
        piece = stream[len(head) :][: min(count, at_once)]
        assert piece, "more is asked for than came"
        head += piece
    return client_of(head), stream[len(head) :]


@pytest.mark.parametrize(("header", "client"), GOOD)
def test_a_header_names_a_client_or_nobody(header: bytes, client: Any) -> None:
    """Whatever it comes in, and not a byte after it is taken."""
    assert take(header + SSH) == (client, SSH)
    assert take(header + SSH, at_once=1) == (client, SSH)


@pytest.mark.parametrize(("header", "sentence"), BAD)
def test_what_is_no_header_is_told_as_what_it_is(header: bytes, sentence: str) -> None:
    """At the first byte that shows it, or when it is whole."""
    with pytest.raises(BadHeader, match=re.escape(sentence)):
        take(header + SSH)


# --- the listener

BALANCERS = [ip_network("127.0.0.9"), ip_network("127.0.1.0/24")]
BALANCER = IPv4Address("127.0.1.7")


@asynccontextmanager
async def behind(folder: Path, keys_dir: Path, **changes: Any) -> AsyncIterator[Running]:
    """A listener behind balancers."""
    async with running(folder, keys_dir, **({"proxy_protocol_from": BALANCERS} | changes)) as it:
        it.served.add(NAME, bytes(range(256)) * 4096)
        yield it


@pytest.fixture
async def balanced(tmp_path: Path, keys_dir: Path) -> AsyncIterator[Running]:
    """A listener behind balancers, with the default limits."""
    async with behind(tmp_path, keys_dir) as it:
        yield it


async def connected(listener: Running, *said: bytes, source: str = "127.0.0.9") -> socket.socket:
    """A connection from an address, which has said that."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", listener.port))
    for data in said:
        await asyncio.get_running_loop().sock_sendall(sock, data)
    return sock


async def answer(sock: socket.socket) -> bytes:
    """The first thing that the server says, or b"" if it hangs up instead."""
    with suppress(ConnectionResetError):
        async with asyncio.timeout(20):
            return await asyncio.get_running_loop().sock_recv(sock, 1024)
    return b""


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # the listener signals nothing
            await asyncio.sleep(0.01)


async def log_in(listener: Running, header: bytes, **options: Any) -> asyncssh.SSHClientConnection:
    """The partner, logged in behind a balancer."""
    connection: asyncssh.SSHClientConnection = await listener.connect(sock=await connected(listener, header), **options)
    return connection


@pytest.mark.parametrize("header", [announcement(CLIENT, SERVER), block(0x21, 0x11, FOUR), CHECKED])
async def test_the_clients_own_address_counts(balanced: Running, header: bytes) -> None:
    """In the journal, in the record of the pickup, among the connections."""
    with capture_logs() as entries:
        async with await log_in(balanced, header) as connection, connection.start_sftp_client() as sftp:
            await sftp.get(NAME, balanced.folder / "got")
        (pickup,) = await balanced.finished_pickups()
    assert (pickup.address, pickup.grade, balanced.logins[0].address) == (str(CLIENT), Grade.COMPLETE, str(CLIENT))
    assert entries[-1]["event"] == f"[conn=1 triton {CLIENT}] picked up {NAME}"
    assert balanced.server.registry.counters.connections == 1


async def test_an_allow_from_is_about_the_client(tmp_path: Path, keys_dir: Path) -> None:
    """A client in it gets in, another not even a banner, though both come from the balancer's address."""
    users = [UserSettings(name="triton", password_hash=CHEAP_HASH, allow_from=[ip_network(f"{CLIENT}")])]
    async with behind(tmp_path, keys_dir, users=users) as it:
        with capture_logs() as entries:
            with closing(await connected(it, announcement(SERVER, SERVER), SSH)) as sock:
                assert await answer(sock) == b""
            async with await log_in(it, announcement(CLIENT, SERVER)):
                pass
        assert (entries[0]["event"], entries[0]["reason"]) == (f"sftp refused {SERVER}", "address-not-allowed")


async def test_a_ban_hits_the_client_and_neither_the_balancer_nor_its_others(tmp_path: Path, keys_dir: Path) -> None:
    """Nor, whatever happens, a balancer that announces itself."""
    async with behind(tmp_path, keys_dir, ban_after=1) as it:
        for address in (CLIENT, ip_address("127.0.0.9")):
            with pytest.raises(asyncssh.PermissionDenied):
                await log_in(it, announcement(address, SERVER), password="wrong")
        assert [ban.address for ban in it.server.registry.bans()] == [str(CLIENT)]
        with closing(await connected(it, announcement(CLIENT, SERVER), SSH)) as sock:
            assert await answer(sock) == b""
        async with await log_in(it, announcement(SERVER, SERVER)), await log_in(it, announcement(BALANCER, SERVER)):
            assert it.server.registry.connected == 1  # the balancer's own is not counted
    assert it.server.registry.connected == 0


async def test_limits_are_the_clients(tmp_path: Path, keys_dir: Path) -> None:
    """One client's connections leave another its own."""
    async with (
        behind(tmp_path, keys_dir, max_connections_per_address=1) as it,
        await log_in(it, announcement(CLIENT, SERVER)),
    ):
        with closing(await connected(it, announcement(CLIENT, SERVER), SSH)) as sock:
            assert await answer(sock) == b""
        with closing(await connected(it, announcement(SERVER, SERVER), SSH)) as sock:
            assert (await answer(sock)).startswith(b"SSH-2.0-")
        assert it.server.registry.counters.refusals == {"too-many-connections-from-address": 1}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (SSH, "it sends no PROXY header"),
        (b"PROXY TCP4 300.0.0.1 192.0.2.1 1 1\r\n", "its PROXY line is malformed"),
        (block(0x21, 0x11, b"", 0xFFFF), "its PROXY header is 65551 bytes long, and at most 4096 are read"),
        (b"PROXY TCP4 203.0.113.9", "its PROXY header did not come within 0.3 s (login_timeout)"),
        (b"", "its PROXY header did not come within 0.3 s (login_timeout)"),
    ],
)
async def test_a_bad_header_is_one_line_and_harms_nobody(tmp_path: Path, keys_dir: Path, said: bytes, why: str) -> None:
    """It is required of a balancer, whole and in time; a client who comes meanwhile gets in."""
    async with behind(tmp_path, keys_dir, login_timeout=timedelta(seconds=0.3), max_connections=1, ban_after=1) as it:
        with capture_logs() as entries, closing(await connected(it, said)) as sock:
            assert await answer(sock) == b""
        (line,) = entries
        assert line["event"] == "sftp refused 127.0.0.9"
        assert (line["reason"], line["why"]) == ("proxy-protocol", why)
        assert "send-proxy" in line["hint"]
        it.server.settings = it.server.settings.model_copy(update={"login_timeout": timedelta(seconds=30)})
        async with await log_in(it, announcement(CLIENT, SERVER)):
            assert it.server.registry.bans() == []


async def test_a_header_that_is_cut_short_is_a_line_and_a_mere_look_is_none(balanced: Running) -> None:
    """Many balancers only see whether somebody listens."""
    with capture_logs() as entries:
        for said in (b"", b"PROXY T"):
            (await connected(balanced, said)).close()
        await until(lambda: entries)
    assert [entry["why"] for entry in entries] == ["its PROXY header ends after 7 bytes"]


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", block(0x20, 0, b""), block(0x21, 0x31, bytes(216))])
async def test_a_health_check_may_look_and_is_not_counted(balanced: Running, header: bytes) -> None:
    """It sees the banner, says what it likes, and leaves no line and no count."""
    with capture_logs() as entries:
        for _ in range(3):
            with closing(await connected(balanced, header)) as sock:
                assert (await answer(sock)).startswith(b"SSH-2.0-")
                assert balanced.server.registry.connected == 0
                sock.send(b"QUIT\r\n")
                while await answer(sock):
                    pass
        await until(lambda: not list(balanced.server.registry.connections()))
    assert entries == []
    assert balanced.server.registry.counters.connections == 0


async def test_nobody_logs_in_without_an_address(balanced: Running) -> None:
    """Or passwords could be guessed for ever: there is nobody to ban."""
    with capture_logs() as entries, pytest.raises(asyncssh.DisconnectError):
        await log_in(balanced, b"PROXY UNKNOWN\r\n")
    (line,) = entries
    assert (line["event"], line["reason"], line["user"]) == ("sftp refused 127.0.0.9", "proxy-protocol", "triton")
    assert "names no client" in line["why"]


async def test_connections_that_do_not_say_for_whom_they_are_bounded(tmp_path: Path, keys_dir: Path) -> None:
    """As many as there may be clients; when they are over there is room again, and clients are not hindered."""
    async with behind(tmp_path, keys_dir, max_connections=2) as it:
        async with await log_in(it, announcement(CLIENT, SERVER)), await log_in(it, announcement(CLIENT, SERVER)):
            waiting = [await connected(it, b"PROXY "), await connected(it, b"PROXY UNKNOWN\r\n")]
            assert (await answer(waiting[1])).startswith(b"SSH-2.0-")
            with capture_logs() as entries, closing(await connected(it, b"PROXY UNKNOWN\r\n")) as sock:
                assert await answer(sock) == b""
            assert entries[0]["why"] == "too many connections have not named their client"
            for sock in waiting:
                sock.close()
        await it.left_alone()
        async with await log_in(it, announcement(CLIENT, SERVER)):
            pass


async def test_from_anybody_else_a_header_is_not_believed(balanced: Running) -> None:
    """It is reported as a balancer's, with what to set."""
    with capture_logs() as entries, closing(await connected(balanced, CHECKED + SSH, source="127.0.0.8")) as sock:
        while await answer(sock):
            pass
        await balanced.left_alone()
    (line,) = entries
    assert (line["event"], line["reason"]) == ("sftp refused 127.0.0.8", "proxy-protocol")
    assert "proxy_protocol_from" in line["hint"]


async def test_balancers_are_those_of_the_last_reload(balanced: Running) -> None:
    """And connections that exist stay."""
    async with await log_in(balanced, announcement(CLIENT, SERVER)) as connection:
        settings = balanced.server.settings.model_copy(update={"proxy_protocol_from": []})
        balanced.server.replace(settings, balanced.server._credentials)
        async with balanced.connect(sock=await connected(balanced)):
            pass
        async with connection.start_sftp_client() as sftp:
            assert await sftp.listdir() == [NAME]
    assert [login.address for login in balanced.logins] == [str(CLIENT), "127.0.0.9"]


async def test_the_doctor_announces_itself_where_it_must(balanced: Running, tmp_path: Path) -> None:
    """On a machine that has the balancer, too, its own address is one of those that are asked for a header."""
    networks = [ip_network("127.0.0.1/32")]
    balanced.server.replace(
        balanced.server.settings.model_copy(update={"proxy_protocol_from": networks}), balanced.server._credentials
    )
    shown = await host_key("127.0.0.1", balanced.port, networks)
    attempt = LoginAttempt("triton", tmp_path, PASSWORD)
    assert await fetch_sha256("127.0.0.1", balanced.port, attempt, {shown}, NAME, networks) is not None
    assert {pickup.grade for pickup in await balanced.finished_pickups()} == {Grade.TEST}


HAPROXY = """
global
    log 127.0.0.1:9 local0
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend in
    bind 127.0.0.1:{front}
    default_backend out
backend out
    server one 127.0.0.1:{port} source 127.0.0.9 check inter 50ms fastinter 50ms rise 1 fall 1 {option}
"""


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is missing: apt-get install haproxy")
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
async def test_haproxy(balanced: Running, tmp_path: Path, option: str) -> None:
    """It checks our health again and again, and a client pulls through it meanwhile, under its own address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        front = free.getsockname()[1]
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(HAPROXY.format(front=front, port=balanced.port, option=option))
    with capture_logs() as entries:
        haproxy = await asyncio.create_subprocess_exec("haproxy", "-db", "-f", configuration)
        try:
            await until(lambda: balanced.server.arrived >= 3)  # health checks
            sock = socket.create_connection(("127.0.0.1", front), source_address=("127.0.0.5", 0))
            sock.setblocking(False)
            async with balanced.connect(sock=sock) as connection, connection.start_sftp_client() as sftp:
                await sftp.get(NAME, tmp_path / "got")
                arrived = balanced.server.arrived
                await until(lambda: balanced.server.arrived >= arrived + 2)
            (pickup,) = await balanced.finished_pickups()
        finally:
            haproxy.terminate()
            await haproxy.wait()
    assert (pickup.address, pickup.grade) == ("127.0.0.5", Grade.COMPLETE)
    assert [entry["event"].partition("] ")[2] for entry in entries] == ["logged in", f"picked up {NAME}"]
    assert balanced.server.registry.counters.refusals == {}
    assert balanced.server.registry.counters.connections == 1
