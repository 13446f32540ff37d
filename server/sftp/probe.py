"""The probe: how `doctor` logs in to the running service as a partner would, and what the service lets in for that.

Touches one file in ``data_dir``, and the service's public address over SSH. Promise: only who may write the data folder
can place the key; it is good for a minute, under a name that no user can have, for reading as any user reads; what is
fetched with it counts as picked up by nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncssh

from .users import PROBE_USER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

GOOD_FOR = 60.0  # seconds
MOST_SECONDS = 20.0  # for the whole visit
_FILE = "doctor.pub"


class ProbeKey:
    """The public key that the owner of the data folder has placed for a minute."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _FILE

    def accepts(self, key: bytes) -> bool:
        """Whether this is the key (SSH wire form), placed by the owner less than a minute ago."""
        with contextlib.suppress(OSError, ValueError, asyncssh.KeyImportError):
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(file.fileno())
                private = stat.S_ISREG(status.st_mode) and not stat.S_IMODE(status.st_mode) & 0o077
                if private and status.st_uid == os.geteuid() and -5 < time.time() - status.st_mtime < GOOD_FOR:
                    return bool(asyncssh.import_public_key(file.read(4096)).public_data == key)
        return False

    @contextlib.contextmanager
    def placed(self) -> Iterator[asyncssh.SSHKey]:
        """A new key, good inside.

        Raises:
            OSError: the data folder cannot be written.
        """
        key = asyncssh.generate_private_key("ssh-ed25519", comment="pickup-point doctor")
        self._path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(self._path, flags, 0o600), "wb") as file:
            file.write(key.export_public_key())
        try:
            yield key
        finally:
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Visit:
    """What a client found: ``trouble`` is empty when it got in, ``host_key`` is the server's in SSH wire form.

    ``fetched`` is the name of the smallest file there, with its SHA-256; None where there is no file.
    """

    trouble: str = ""
    host_key: bytes = b""
    fetched: tuple[str, str] | None = None


async def visit(host: str, port: int, key: asyncssh.SSHKey, wanted: Sequence[str]) -> Visit:
    """Log in to ``host`` and fetch the first of the ``wanted`` files that is there."""
    # asyncssh wants a home and a name: root's is closed to the data folder's owner, who may have neither.
    os.environ["HOME"] = "/nonexistent"
    os.environ.setdefault("USER", "doctor")
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async with asyncssh.connect(
                host, port, username=PROBE_USER, client_keys=[key], known_hosts=None, agent_path=None, config=None,
                preferred_auth="publickey", x509_trusted_certs=None,
            ) as connection:  # fmt: skip
                found = connection.get_server_host_key()
                return Visit("", b"" if found is None else found.public_data, await _fetch(connection, wanted))
    except TimeoutError:
        return Visit(f"nothing answered within {MOST_SECONDS:.0f} s")
    except socket.gaierror:
        return Visit(f"the name {host} is not known")
    except asyncssh.PermissionDenied:
        return Visit("something answered that is not this service, or not with this data folder: it knows no probe key")
    except (asyncssh.Error, OSError) as error:
        return Visit(str(error) or type(error).__name__)


async def _fetch(connection: asyncssh.SSHClientConnection, wanted: Sequence[str]) -> tuple[str, str] | None:
    async with connection.start_sftp_client() as sftp:
        there = {str(name) for name in await sftp.listdir("/")}
        for name in wanted:
            if name in there:
                digest = hashlib.sha256()
                async with sftp.open(name, "rb") as file:
                    while data := await file.read(1 << 18):
                        digest.update(data if isinstance(data, bytes) else data.encode())
                return name, digest.hexdigest()
    return None
