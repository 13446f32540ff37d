"""A real listener over a real folder, and what its tests share: keys, users, clients' homes."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from argon2 import PasswordHasher

from server.settings import SftpSettings, UserSettings
from server.sftp.connection import SshConnection
from server.sftp.delivery import Delivery
from server.sftp.keys import load_credentials, make_keys
from server.sftp.server import SftpServer
from server.triton import LogFile, LogName

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from server.pickups import Pickup
    from server.sftp.registry import Login

PASSWORD = "correct horse"
REKEYED = 2_000_000  # bytes
NAME = "MEGA20261120-00.tsv.gz"
# As cheap as Argon2id can be: the tests log in often. The real cost has a test of its own.
CHEAP_HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)


class ServedFolder:
    """A small pickup point: a folder of published files, listed from memory and opened by the folder's descriptor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.files: dict[str, LogFile] = {}

    def add(self, name: str, content: bytes, mtime: int = 1_795_000_000) -> bytes:
        """Publish a file; gives the content back."""
        return self._publish(name, lambda path: path.write_bytes(content), mtime) and content

    def add_sparse(self, name: str, size: int, mtime: int = 1_795_000_000) -> None:
        """Publish a file of zeros that takes no room."""

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.truncate(size)

        self._publish(name, write, mtime)

    def _publish(self, name: str, write: Callable[[Path], Any], mtime: int) -> bool:
        path = self.folder / name
        write(path)
        path.chmod(0o440)
        os.utime(path, (mtime, mtime))
        log_name = LogName.parse(name)
        assert log_name is not None
        self.files[name] = LogFile(log_name, path.stat().st_size, mtime)
        return True

    def prune(self, name: str) -> None:
        """Take a file away."""
        del self.files[name]
        (self.folder / name).unlink()

    def list_files(self) -> dict[str, LogFile]:
        """What is published."""
        return dict(self.files)

    def open_file(self, file: LogFile) -> int:
        """Open a published file, and nothing else."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(str(file.name), flags, dir_fd=folder)
        finally:
            os.close(folder)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
            os.close(descriptor)
            raise FileNotFoundError
        return descriptor

    def state(self) -> list[tuple[str, int, int, int, int]]:
        """Names, sizes, mtimes, inodes and modes of everything in the folder."""
        found = []
        for path in sorted(self.folder.iterdir()):
            status = path.lstat()
            found.append((path.name, status.st_size, status.st_mtime_ns, status.st_ino, status.st_mode))
        return found


@dataclass
class Running:
    """A listener that runs, and what it reported."""

    server: SftpServer
    served: ServedFolder
    keys_dir: Path
    folder: Path
    pickups: list[Pickup] = field(default_factory=list)
    logins: list[Login] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self.server.port

    @property
    def finished(self) -> list[Pickup]:
        """The pickups that are over."""
        return [pickup for pickup in self.pickups if pickup.ended is not None]

    async def finished_pickups(self, count: int = 1) -> list[Pickup]:
        """Wait until this many pickups are over."""
        async with asyncio.timeout(20):
            while len(self.finished) < count:  # noqa: ASYNC110  # the listener calls back, it signals nothing
                await asyncio.sleep(0.01)
        return self.finished

    async def left_alone(self) -> None:
        """Wait until nobody is connected."""
        async with asyncio.timeout(20):
            while self.server.registry.connected:  # noqa: ASYNC110  # the listener signals nothing
                await asyncio.sleep(0.01)

    def connect(self, **options: Any) -> Any:
        """An asyncssh client, logged in as the partner unless told otherwise."""
        settings: dict[str, Any] = {
            "username": "triton",
            "password": PASSWORD,
            "known_hosts": None,
            "client_keys": None,
            "agent_path": None,
            "config": None,
            # As OpenSSH does; asyncssh would rather have RSA, whose signature takes as long as all of the rest.
            "server_host_key_algs": ["ssh-ed25519"],
        }
        return asyncssh.connect("127.0.0.1", self.port, **(settings | options))


class RawSftp:
    """A client that sends what it is told, byte for byte, and reads packets."""

    def __init__(self, writer: asyncssh.SSHWriter[bytes], reader: asyncssh.SSHReader[bytes]) -> None:
        self.writer = writer
        self.reader = reader
        self.number = 0

    @classmethod
    async def open(cls, connection: asyncssh.SSHClientConnection, *, greet: bool = True) -> RawSftp:
        """Open a session and, unless told not to, say hello."""
        writer, reader, _ = await connection.open_session(subsystem="sftp", encoding=None)
        it = cls(writer, reader)
        if greet:
            it.send(b"\x01" + (3).to_bytes(4, "big"))
            assert (await it.receive())[0] == 2
        return it

    def send(self, packet: bytes) -> None:
        """Send one packet, its length put before it."""
        self.writer.write(len(packet).to_bytes(4, "big") + packet)

    async def receive(self) -> bytes:
        """The next packet, without its length."""
        async with asyncio.timeout(20):
            length = int.from_bytes(await self.reader.readexactly(4), "big")
            return await self.reader.readexactly(length)

    async def ask(self, kind: int, payload: bytes) -> bytes:
        """Send a request and wait for its reply."""
        self.number = (self.number + 1) & 0xFFFFFFFF
        number = self.number.to_bytes(4, "big")
        self.send(bytes([kind]) + number + payload)
        reply = await self.receive()
        assert reply[1:5] == number
        return reply

    async def status(self, kind: int, payload: bytes) -> int:
        """The status code that a request gets."""
        reply = await self.ask(kind, payload)
        assert reply[0] == 101, reply
        return int.from_bytes(reply[5:9], "big")

    async def open_file(self, name: str) -> bytes:
        """The handle of an open file, as it is in requests."""
        reply = await self.ask(3, string(name.encode()) + (1).to_bytes(4, "big") + bytes(4))
        assert reply[0] == 102, reply
        return reply[5:]

    async def read(self, handle: bytes, offset: int, length: int) -> bytes | None:
        """The bytes that one READ gets; None at the end."""
        reply = await self.ask(5, handle + offset.to_bytes(8, "big") + length.to_bytes(4, "big"))
        return reply[9:] if reply[0] == 103 else None


def string(data: bytes) -> bytes:
    """A byte string with its length before it."""
    return len(data).to_bytes(4, "big") + data


def packet(payload: bytes) -> bytes:
    """A packet as it is before there are keys (RFC 4253, section 6)."""
    padding = 8 - (len(payload) + 5) % 8
    padding += 8 * (padding < 4)
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


def sftp_settings(**changes: Any) -> SftpSettings:
    """The defaults, on 127.0.0.1 and a free port, with one user."""
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "users": [UserSettings(name="triton", password_hash=CHEAP_HASH)],
    }
    return SftpSettings(**(values | changes))


@asynccontextmanager
async def running(
    folder: Path, keys_dir: Path, *, sock: socket.socket | None = None, **changes: Any
) -> AsyncIterator[Running]:
    """A listener for the length of a block."""
    served = ServedFolder(folder / "pickup")
    settings = sftp_settings(**changes)
    pickups: list[Pickup] = []
    logins: list[Login] = []
    server = SftpServer(
        settings,
        load_credentials(settings, keys_dir),
        list_files=served.list_files,
        open_file=served.open_file,
        on_pickup=pickups.append,
        on_login=logins.append,
    )
    await server.start(sock)
    try:
        yield Running(server, served, keys_dir, folder, pickups, logins)
    finally:
        await server.drain(0)


@pytest.fixture(scope="session")
def keys_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Host keys, made once: an RSA key takes its time."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder)
    return folder


@pytest.fixture
async def listener(tmp_path: Path, keys_dir: Path) -> AsyncIterator[Running]:
    """A listener with the default limits and one small file."""
    async with running(tmp_path, keys_dir) as it:
        it.served.add(NAME, bytes(range(256)) * 4096)
        yield it


@pytest.fixture
async def any_cipher(tmp_path: Path, keys_dir: Path) -> AsyncIterator[Running]:
    """A listener that offers every cipher that there is a setting for, with one small file."""
    async with running(tmp_path, keys_dir, chacha20=True) as it:
        it.served.add(NAME, bytes(range(256)) * 4096)
        yield it


@pytest.fixture
def served_by_key(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the server renew its keys every `REKEYED` bytes; the bytes on the wire that each had served, when renewed."""
    served: list[int] = []
    began: dict[SshConnection, int] = {}
    send_newkeys = SshConnection.send_newkeys

    def watching(self: SshConnection, k: bytes, h: bytes) -> None:
        position = self.stream.written
        served.append(position - began.get(self, 0))
        began[self] = position
        send_newkeys(self, k, h)

    monkeypatch.setattr(SshConnection, "send_newkeys", watching)
    monkeypatch.setattr("server.sftp.connection.REKEY_BYTES", REKEYED)
    return served


class _AtOnce:
    """A stream whose every byte is acknowledged, and every question answered, as soon as it is sent."""

    written = proven = last_question = 0
    asking = answers = True

    def acknowledged(self) -> int:
        return 0


def acknowledged(report: Callable[[Pickup], None]) -> Delivery:
    """For a request handler without a connection: everything sent has arrived."""
    return Delivery(_AtOnce(), lambda: 0, report)  # type: ignore[arg-type]  # what it asks of a stream
