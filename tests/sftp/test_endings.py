"""What the service log says about a connection that ended before anybody logged in."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.settings import UserSettings
from server.sftp.registry import KEY_ONLY_HINT

from ..support.sftp import CHEAP_HASH, NAME, PASSWORD, RawSftp, Running, packet, running, string

if TYPE_CHECKING:
    from pathlib import Path

KEXINIT, DISCONNECT = b"\x14", b"\x01"
BANNER = b"SSH-2.0-JSCH-0.1.54\r\n"


def kexinit(kex: str = "curve25519-sha256", cipher: str = "aes128-ctr") -> bytes:
    """A client's KEXINIT with one name in each list."""
    lists = (kex, "ssh-ed25519", cipher, cipher, "hmac-sha2-256", "hmac-sha2-256", "none", "none", "", "")
    return packet(KEXINIT + bytes(16) + b"".join(string(names.encode()) for names in lists) + bytes(5))


def disconnect(code: int) -> bytes:
    return packet(DISCONNECT + code.to_bytes(4, "big") + string(b"Algorithm negotiation fail") + string(b""))


async def say(listener: Running, *parts: bytes, leave: str = "when told") -> list[Any]:
    """Say all that and leave, when told, at once, or by a reset, even of one who waited for nothing.

    Return the lines of the service log.
    """
    with capture_logs() as entries:
        if leave == "by a reset before our word":
            with socket.create_connection(("127.0.0.1", listener.port)) as hasty:
                hasty.sendall(b"".join(parts))
                hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            async with asyncio.timeout(20):
                while not listener.server.registry.connected:  # noqa: ASYNC110  # the listener signals nothing
                    await asyncio.sleep(0)
            await listener.left_alone()
            return entries
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        await reader.readline()
        writer.write(b"".join(parts))
        if leave == "by a reset":
            ours = writer.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif leave == "when told":
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
        await listener.left_alone()
    return entries


@pytest.mark.parametrize("leave", ["when told", "at once", "by a reset", "by a reset before our word"])
@pytest.mark.parametrize("last", [b"", disconnect(3), disconnect(2)])
async def test_offers_that_disagree_are_told_however_the_client_leaves(
    listener: Running, leave: str, last: bytes
) -> None:
    """With a word or without, properly or by a reset that overtakes the exchange: always, and not most of the time."""
    (line,) = await say(listener, BANNER, kexinit(cipher="aes128-cbc"), last, leave=leave)
    assert (line["reason"], line["missing"], line["client"]) == ("no-common-algorithm", "cipher", "JSCH-0.1.54")


async def test_a_failed_exchange_of_offers_that_agree_is_another_thing(listener: Running) -> None:
    """JSch calls whatever it does not like a failed key exchange; nothing is missing from its offer."""
    (line,) = await say(listener, BANNER, kexinit(), disconnect(3))
    assert (line["reason"], line["client"]) == ("protocol-error", "JSCH-0.1.54")
    assert "missing" not in line


@pytest.mark.parametrize("leave", ["at once", "by a reset"])
@pytest.mark.parametrize("words", [(), (BANNER,), (BANNER, kexinit())])
async def test_who_merely_hangs_up_is_no_line(listener: Running, words: tuple[bytes, ...], leave: str) -> None:
    """Health checks, port scanners, networks that fail."""
    assert await say(listener, *words, leave=leave) == []


@pytest.mark.parametrize(
    "greeting",
    [
        b"PROXY TCP4 203.0.113.9 192.0.2.1 51000 2222\r\nSSH-2.0-OpenSSH_9.2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12) + b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
async def test_a_balancer_that_announces_the_client_is_told_as_one(listener: Running, greeting: bytes) -> None:
    """It is not one of ours: the line says where to name it, or where to switch that off."""
    (line,) = await say(listener, greeting)
    assert line["reason"] == "proxy-protocol"
    assert "send-proxy" in line["hint"]


@pytest.mark.parametrize(
    ("greeting", "spoken"),
    [
        (b"GET / HTTP/1.1\r\nHost: sftp.example.com\r\n\r\n", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(507) + b"\n", "TLS"),
        (b"hello\r\n" * 2000, None),
    ],
)
async def test_who_speaks_another_protocol_is_told_by_it(
    listener: Running, greeting: bytes, spoken: str | None
) -> None:
    """FTPS or HTTPS in the partner's settings, a monitor's wrong check: the line names what came."""
    (line,) = await say(listener, greeting)
    assert (line["reason"], line.get("speaks")) == ("protocol-error", spoken)
    assert spoken is None or "SFTP over SSH" in line["hint"]


class Code3(asyncssh.SSHClient):
    """Leaves as JSch does, with the code of a failed key exchange: at an unknown host key, after a wrong password."""

    connection: Any
    tried = False

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        raise asyncssh.KeyExchangeFailed("reject HostKey")

    def password_auth_requested(self) -> str:
        if self.tried:
            raise asyncssh.KeyExchangeFailed("Auth fail")
        self.tried = True
        return "wrong"


UNKNOWN: Any = {"known_hosts": ([], [], [])}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (UNKNOWN, "left-at-host-key"),
        (UNKNOWN | {"client_factory": Code3}, "left-at-host-key"),
        (UNKNOWN | {"client_version": "OpenSSH-keyscan"}, None),
        ({"client_factory": Code3, "password": None, "preferred_auth": "password"}, "wrong-password"),
    ],
)
async def test_the_code_of_a_failed_key_exchange_is_not_believed(
    listener: Running, options: dict[str, Any], expected: str | None
) -> None:
    """An unknown host key and a wrong password are reported as such; a look at the host key alone is no line."""
    with capture_logs() as entries:
        with pytest.raises((asyncssh.Error, OSError)):
            await listener.connect(**options)
        await listener.left_alone()
    assert list(listener.server.registry.counters.refusals) == ([expected] if expected else [])
    assert len(entries) == (expected is not None)
    if expected == "left-at-host-key":
        assert "left at the host key" in entries[0]["event"]
        assert entries[0]["host_key"] in ("ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256")


KEY, OTHER = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"client_keys": [OTHER]}, {"reason": "unknown-key", "user": "triton", "keys": 1}),
        ({"client_keys": [OTHER], "username": "tritn"}, {"reason": "unknown-key", "user": "tritn"}),
        ({"client_keys": [OTHER, KEY], "username": "elsewhere"}, {"reason": "address-not-allowed", "keys": 2}),
        ({"client_keys": [OTHER, KEY]}, None),
        ({"client_keys": [OTHER], "password": PASSWORD}, None),
        ({"client_keys": [OTHER], "password": "wrong"}, {"reason": "wrong-password"}),
        ({"password": "its own", "username": "elsewhere"}, {"reason": "address-not-allowed"}),
        ({"password": "its own", "username": "keyed"}, {"reason": "wrong-password", "hint": KEY_ONLY_HINT}),
        ({}, {"reason": "no-credentials", "user": "triton"}),
        (UNKNOWN, {"host_key": "ssh-ed25519"}),
    ],
)
async def test_a_client_whose_keys_let_nobody_in_is_one_line_and_no_failure(
    tmp_path: Path, keys_dir: Path, options: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    """Whatever it had and we do not take is logged, so that somebody can say why the partner was refused."""
    public = tmp_path / "triton.pub"
    public.write_bytes(KEY.export_public_key())
    there = [ipaddress.ip_network("203.0.113.0/24")]
    users = [
        UserSettings(name="triton", password_hash=CHEAP_HASH, authorized_keys=public),
        UserSettings(name="elsewhere", authorized_keys=public, allow_from=there),
        UserSettings(name="keyed", authorized_keys=public),
    ]
    async with running(tmp_path, keys_dir, users=users) as it:
        with capture_logs() as entries:
            with contextlib.suppress(asyncssh.Error, OSError):
                async with it.connect(**{"password": None, **options}):
                    pass
            await it.left_alone()
        told = [entry for entry in entries if "logged in" not in entry["event"]]
        assert len(told) == (expected is not None)
        assert not expected or told[0].items() >= expected.items()
        if expected and "keys" in expected:
            offered = KEY if expected["keys"] == 2 else OTHER
            assert told[0]["key"] == offered.get_fingerprint()
        assert len(it.server.registry._guard._failures) == ("password" in options and expected is not None)


async def test_a_request_whose_answer_fails_in_a_way_nobody_thought_of_ends_the_connection(listener: Running) -> None:
    """The client would wait for ever: here no thread can be started to open the file."""
    listener.server.registry.disk_threads.shutdown()
    async with listener.connect() as connection:
        raw = await RawSftp.open(connection)
        with capture_logs() as entries, pytest.raises((asyncssh.Error, asyncio.IncompleteReadError)):
            await raw.open_file(NAME)
        await listener.left_alone()
    assert [(entry["log_level"], entry["error"]) for entry in entries] == [("error", "RuntimeError")]
