"""Attempts with hostile words before login: the reply says nothing about us, the service log gets one honest line."""

from __future__ import annotations

import asyncio
import re
import struct
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncssh
import pytest
from structlog.testing import capture_logs

from server.sftp.connection import SERVER_VERSION

from ...support.sftp import packet, running, string

if TYPE_CHECKING:
    from pathlib import Path

BANNER = b"SSH-2.0-x\r\n"
CURVE, STRICT = b"curve25519-sha256", b"curve25519-sha256,kex-strict-c-v00@openssh.com"
MLKEM, GROUP16 = b"mlkem768x25519-sha256", b"diffie-hellman-group16-sha512"
LEAKS = re.compile(rb"asyncssh|python|openssl|cryptography|linux|debian|traceback|/home|/usr|\.py", re.IGNORECASE)
PROTOCOL, ALGORITHM, TIMEOUT = "protocol-error", "no-common-algorithm", "login-timeout"


def kexinit(
    kex: bytes = CURVE, host_key: bytes = b"ssh-ed25519", cipher: bytes = b"aes128-ctr", mac: bytes = b"hmac-sha2-256",
    compression: bytes = b"none", follows: bool = False,
) -> bytes:  # fmt: skip
    """What a client offers."""
    lists = (kex, host_key, cipher, cipher, mac, mac, compression, compression, b"", b"")
    return packet(b"\x14" + bytes(16) + b"".join(map(string, lists)) + bytes([follows]) + bytes(4))


def begin(public: bytes) -> bytes:
    """The client's half of a key exchange."""
    return packet(b"\x1e" + string(public))


ATTEMPTS: dict[str, tuple[bytes, str | None]] = {
    "version with control characters": (b"SSH-2.0-\0\x1b[2J\x1b[31m\x07\r\n" + packet(b"\x15"), PROTOCOL),
    "version that looks like a refusal": (
        b"SSH-2.0-x sftp refused 198.51.100.7 reason=wrong-password\r\n" + packet(b"\x15"),
        PROTOCOL,
    ),
    "version that is not ASCII": (b"SSH-2.0-\xff\xfe\r\n", PROTOCOL),
    "version of 256 bytes": (b"SSH-2.0-" + b"a" * 300 + b"\r\n", PROTOCOL),
    "banner of 100 kB": (b"a" * 100_000, PROTOCOL),
    "version 1": (b"SSH-1.5-x\r\n", PROTOCOL),
    "curve point of zeros": (BANNER + kexinit() + begin(bytes(32)), PROTOCOL),
    "curve point of small order": (BANNER + kexinit() + begin(b"\1" + bytes(31)), PROTOCOL),
    "curve point cut short": (BANNER + kexinit() + begin(bytes(31)), PROTOCOL),
    "no curve point": (BANNER + kexinit() + begin(b""), PROTOCOL),
    "lattice key of zeros": (BANNER + kexinit(MLKEM) + begin(bytes(1216)), PROTOCOL),
    "lattice key of ones": (BANNER + kexinit(MLKEM) + begin(b"\xff" * 1216), PROTOCOL),
    "lattice key cut short": (BANNER + kexinit(MLKEM) + begin(bytes(32)), PROTOCOL),
    "group element 0": (BANNER + kexinit(GROUP16) + begin(b""), PROTOCOL),
    "group element 1": (BANNER + kexinit(GROUP16) + begin(b"\1"), PROTOCOL),
    "group element -1": (BANNER + kexinit(GROUP16) + begin(b"\xff"), PROTOCOL),
    "group element of 20 kB": (BANNER + kexinit(GROUP16) + begin(b"\x7f" * 20_000), PROTOCOL),
    "the server's half from a client": (BANNER + kexinit() + packet(b"\x1f" + string(b"a") * 3), PROTOCOL),
    "new keys before any": (BANNER + kexinit() + packet(b"\x15"), PROTOCOL),
    "two offers at once": (BANNER + kexinit() + kexinit(), PROTOCOL),
    "half an offer": (BANNER + packet(kexinit()[5:65]), PROTOCOL),
    "offer of control characters": (BANNER + kexinit(b"\xff\x1b[2J\nreason=wrong-password"), PROTOCOL),
    "offer of fifteen thousand names": (BANNER + kexinit(b"a," * 15_000), ALGORITHM),
    "offer of nothing": (BANNER + kexinit(b""), ALGORITHM),
    "compression": (BANNER + kexinit(compression=b"zlib"), ALGORITHM),
    "cipher none": (BANNER + kexinit(cipher=b"none"), ALGORITHM),
    "CBC": (BANNER + kexinit(cipher=b"aes128-cbc"), ALGORITHM),
    "MAC none": (BANNER + kexinit(mac=b"none"), ALGORITHM),
    "MAC of MD5": (BANNER + kexinit(mac=b"hmac-md5"), ALGORITHM),
    "SHA-1 and 1024 bits": (BANNER + kexinit(b"diffie-hellman-group1-sha1"), ALGORITHM),
    "group exchange": (BANNER + kexinit(b"diffie-hellman-group-exchange-sha256"), ALGORITHM),
    "host key ssh-rsa": (BANNER + kexinit(host_key=b"ssh-rsa,ssh-dss"), ALGORITHM),
    "login before keys": (BANNER + packet(b"\x32" + string(b"triton") + string(b"ssh-connection") * 2), PROTOCOL),
    "success claimed by the client": (BANNER + packet(b"\x34"), PROTOCOL),
    "channel before keys": (BANNER + packet(b"\x5a" + string(b"session") + bytes(12)), PROTOCOL),
    "a word before strict keys": (BANNER + packet(b"\x02" + bytes(4)) + kexinit(STRICT), PROTOCOL),
    "a word within strict keys": (BANNER + kexinit(STRICT) + packet(b"\x02" + bytes(4)), PROTOCOL),
    "an unknown word within strict keys": (BANNER + kexinit(STRICT) + packet(b"\xc0" + bytes(4)), PROTOCOL),
    "packet of no length": (BANNER + bytes(64), PROTOCOL),
    "packet of 4 GiB": (BANNER + b"\xff" * 16, PROTOCOL),
    "packet of padding": (BANNER + struct.pack(">IB", 12, 255) + bytes(11), PROTOCOL),
    "packet without a word": (BANNER + struct.pack(">IB", 12, 11) + bytes(11), PROTOCOL),
    "endless extensions": (BANNER + kexinit() + packet(b"\x07" + b"\xff" * 4), PROTOCOL),
    "a hostile good-bye": (
        BANNER + packet(b"\x01" + bytes(4) + string(b"\xff\n\x1b[2Jreason=x") + string(b"")),
        PROTOCOL,
    ),
    "half a packet, and silence": (BANNER + kexinit()[:20], TIMEOUT),
    "silence": (b"", TIMEOUT),
    "a version, and silence": (BANNER, TIMEOUT),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
async def test_hostile_words_are_one_refusal(tmp_path: Path, keys_dir: Path, attempt: str) -> None:
    """The connection ends, one line says why in our words, and the reply names no program or folder of ours."""
    words, reason = ATTEMPTS[attempt]
    async with running(tmp_path, keys_dir, login_timeout=timedelta(seconds=1)) as it:
        with capture_logs() as entries:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            writer.write(words)
            said = b""
            async with asyncio.timeout(20):
                try:
                    while data := await reader.read(65_536):
                        said += data
                except ConnectionError:
                    pass
                while it.server.registry.connected:  # noqa: ASYNC110  # nobody announces it
                    await asyncio.sleep(0.01)
            writer.close()
    assert said.startswith(f"SSH-2.0-{SERVER_VERSION}\r\n".encode()) or not said
    assert LEAKS.search(said.replace(b"@openssh.com", b"")) is None, said[-300:]
    assert [entry.get("reason") for entry in entries] == [reason]
    for entry in entries:
        assert entry["event"] == "sftp refused 127.0.0.1"
        for value in entry.values():
            assert re.fullmatch(r"[ -~]*", str(value)), value
            assert len(str(value)) < 3000
        assert re.fullmatch(r"[\w.@+/-]*", str(entry.get("client", "")))


@pytest.mark.parametrize(
    "name",
    [
        "tri\nton",
        "triton\0",
        "\x1b[2Jtriton",
        "triton reason=idle-timeout",
        "root;rm",
        "x" * 1000,
        "\uff34\uff32\uff29\uff34\uff2f\uff2e",
        "",
    ],
    ids=["line end", "NUL", "escape", "field", "shell", "long", "wide letters", "empty"],
)
async def test_hostile_user_names_are_one_field_of_one_line(
    tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever a name holds, the refusal is one line with the real address, and the client hears what others hear."""
    async with running(tmp_path, keys_dir) as it:
        with capture_logs() as entries, monkeypatch.context() as patch:
            patch.setattr("asyncssh.connection.saslprep", str)
            with pytest.raises(asyncssh.Error) as caught:
                await it.connect(username=name, password="wrong")
    assert caught.type in (asyncssh.PermissionDenied, asyncssh.IllegalUserName, asyncssh.DisconnectError)
    assert {entry["event"] for entry in entries} == {"sftp refused 127.0.0.1"}
    for entry in entries:
        assert re.fullmatch(r"[\w.@+/-]{0,32}", str(entry.get("user", "")), re.ASCII)
