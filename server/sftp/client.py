"""The client's side of SSH, for the doctor: which host key an address shows, and whether a user gets a file whole.

Touches the address that it is given. Promise: a password goes only to a server that has shown one of the expected host
keys, and what is fetched says by its client version that it is the doctor's (`pickups.DOCTOR_CLIENT`), so that it never
counts as the partner's.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncssh

from ..errors import PickupPointError
from ..pickups import DOCTOR_CLIENT
from .keys import public_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 20.0  # seconds that a server may be silent
_CHUNK = 256 * 1024


class NoAnswer(Exception):
    """An address where no SSH server answers as it should; the text says what happened instead."""


class HungUp(NoAnswer):
    """Something listens there, and closes the connection before it has shown a host key."""


class LoginRefused(Exception):
    """The server did not accept the password or the key."""


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """A user, and the password or the private key to log in with; ``file`` is where that was read."""

    user: str
    file: Path
    password: str | None = field(default=None, repr=False)
    key: asyncssh.SSHKey | None = field(default=None, repr=False)


def read_identity(path: Path) -> asyncssh.SSHKey:
    """Read a private key.

    Raises:
        PickupPointError: the file cannot be read, or is not a private key without a passphrase.
    """
    try:
        return asyncssh.read_private_key(path)
    except OSError as error:
        raise PickupPointError(f"{path} cannot be read: {error.strerror}", hint=f"ls -l {path}") from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as error:
        sentence = f"{path} is not a private key without a passphrase"
        raise PickupPointError(sentence, hint=f"ssh-keygen -y -P '' -f {path}") from error


async def host_key(host: str, port: int) -> bytes:
    """Exchange keys with a server and return the host key that it shows (SSH wire form), without logging in.

    Raises:
        NoAnswer: no SSH server answers there.
    """
    with _failures(host):
        async with asyncio.timeout(PATIENCE):
            found = await asyncssh.get_server_host_key(host, port, client_version=DOCTOR_CLIENT, config=None)
    if found is None:
        raise NoAnswer("the server has no host key")
    return found.public_data


async def fetch_sha256(
    host: str, port: int, attempt: LoginAttempt, host_keys: set[bytes], name: str | None
) -> str | None:
    """Log in, and return the SHA-256 (hex) of a file as it arrives; without a ``name`` log in, and return None.

    Raises:
        NoAnswer: the server shows none of the ``host_keys``, breaks off, or falls silent.
        LoginRefused: it does not let the user in.
        FileNotFoundError: it does not serve the file.
    """
    trusted = [asyncssh.import_public_key(public_line(key)) for key in host_keys]
    found = None
    with _failures(host):
        async with asyncio.timeout(PATIENCE):
            connection = await asyncssh.connect(
                host, port, username=attempt.user, password=attempt.password,
                client_keys=None if attempt.key is None else [attempt.key],
                preferred_auth="password" if attempt.key is None else "publickey", known_hosts=(trusted, [], []),
                client_version=DOCTOR_CLIENT, agent_path=None, config=None, x509_trusted_certs=None, gss_host=None,
            )  # fmt: skip
        async with connection:
            if name is not None:
                found = await _digest(connection, name)
    return found


async def _digest(connection: asyncssh.SSHClientConnection, name: str) -> str:
    digest = hashlib.sha256()
    async with asyncio.timeout(PATIENCE) as limit, connection.start_sftp_client() as sftp:
        try:
            async with sftp.open(name, "rb", encoding=None) as file:
                while isinstance(data := await file.read(_CHUNK), bytes) and data:
                    digest.update(data)
                    # A large day may take its time, as long as it keeps coming.
                    limit.reschedule(asyncio.get_running_loop().time() + PATIENCE)
        except asyncssh.SFTPNoSuchFile:
            raise FileNotFoundError(name) from None
    return digest.hexdigest()


@contextmanager
def _failures(host: str) -> Iterator[None]:
    """Say what went wrong in the words of an operator; and give asyncssh the home and the name it looks for."""
    # root's home is closed to the data folder's owner, who may have neither a home nor a name.
    os.environ["HOME"] = "/nonexistent"
    os.environ.setdefault("USER", "doctor")
    try:
        yield
    except TimeoutError as error:
        raise NoAnswer(f"nothing was heard for {PATIENCE:.0f} s") from error
    except socket.gaierror as error:
        raise NoAnswer(f"the name {host} is not known") from error
    except asyncssh.PermissionDenied as error:
        raise LoginRefused from error
    except asyncssh.HostKeyNotVerifiable as error:
        raise NoAnswer("the host key is not one of ours, so nothing was sent to it") from error
    except (asyncssh.ConnectionLost, ConnectionResetError) as error:
        raise HungUp("the connection was closed") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NoAnswer((error.strerror or str(error)).lower()) from error
    except asyncssh.Error as error:
        raise NoAnswer(str(error) or type(error).__name__) from error
