"""The client's side of SSH, for `doctor`: which host key an address shows, and whether a user gets a whole file.

Touches the address that it is given. Promise: a password goes only to a server that has shown one of the expected host
keys, and every connection identifies itself by its client version (`pickups.DOCTOR_CLIENT`), so that it never counts as
the partner's.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncssh

from ..errors import PickupPointError
from ..paths import read_file
from ..pickups import DOCTOR_CLIENT
from .keys import public_line
from .limits import parse_address
from .proxy_protocol import announcement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ..settings import Network

SILENCE_TIMEOUT = 20.0  # seconds without a byte after which a server counts as silent
_CHUNK = 256 * 1024


class NoAnswer(Exception):
    """No SSH server answers properly at an address; the text says what happened instead."""


class HungUp(NoAnswer):
    """Something listens there, but closes the connection before it shows a host key."""


class LoginRefused(Exception):
    """The server rejected the password or the key; the text is the SSH method that was used."""


@dataclass(frozen=True, slots=True)
class LoginAttempt:
    """A user, and the password or the private key to log in with; ``file`` is where it was read from."""

    user: str
    file: Path
    password: str | None = field(default=None, repr=False)
    key: asyncssh.SSHKey | None = field(default=None, repr=False)

    @property
    def methods(self) -> tuple[str, ...]:
        """The SSH methods that a partner's client may use; each must let it in."""
        return ("password", "keyboard-interactive") if self.key is None else ("publickey",)


def read_identity(path: Path) -> asyncssh.SSHKey:
    """Read a private key.

    Raises:
        PickupPointError: the file cannot be read, or is not a private key without a passphrase.
    """
    try:
        return asyncssh.import_private_key(read_file(path))
    except OSError as error:
        raise PickupPointError(
            f"{path} cannot be read: {error.strerror}", hint=f"ls -l {shlex.quote(str(path))}"
        ) from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError) as error:
        sentence = f"{path} is not a private key without a passphrase"
        raise PickupPointError(sentence, hint=f"ssh-keygen -y -P '' -f {shlex.quote(str(path))}") from error


async def host_key(host: str, port: int, balancers: Sequence[Network] = ()) -> bytes:
    """Exchange keys with a server and return its host key (SSH wire form), without logging in.

    The server expects a PROXY header from addresses in ``balancers``: if ours is one, it is sent.

    Raises:
        NoAnswer: no SSH server answers there.
    """
    with _translate_ssh_errors(host):
        async with asyncio.timeout(SILENCE_TIMEOUT):
            sock = await _connected(host, port, balancers)
            found = await asyncssh.get_server_host_key(host, port, sock=sock, client_version=DOCTOR_CLIENT, config=None)
    if found is None:
        raise NoAnswer("the server has no host key")
    return found.public_data


async def _connected(host: str, port: int, balancers: Sequence[Network]) -> socket.socket:
    """Return a socket connected to a server, with a PROXY header sent if the server expects one from us."""
    connecting = asyncio.get_running_loop().run_in_executor(
        None, socket.create_connection, (host, port), SILENCE_TIMEOUT
    )
    sock = await connecting
    ours, theirs = (parse_address(name[0]) for name in (sock.getsockname(), sock.getpeername()))
    if any(ours in network for network in balancers):
        sock.sendall(announcement(ours, theirs))
    sock.setblocking(False)
    return sock


async def fetch_sha256(
    host: str,
    port: int,
    attempt: LoginAttempt,
    host_keys: set[bytes],
    name: str | None,
    balancers: Sequence[Network] = (),
) -> str | None:
    """Log in by every method, and return the SHA-256 (hex) of the file as it arrives; None without a ``name``.

    ``balancers`` are as in `host_key`.

    Raises:
        NoAnswer: the server shows none of the ``host_keys``, breaks off, or falls silent.
        LoginRefused: it does not let the user in.
        FileNotFoundError: it does not serve the file.
    """
    trusted = [asyncssh.import_public_key(public_line(key)) for key in host_keys]
    found = None
    for method in attempt.methods:
        with _translate_ssh_errors(host, method):
            async with asyncio.timeout(SILENCE_TIMEOUT):
                connection = await asyncssh.connect(
                    host, port, sock=await _connected(host, port, balancers),
                    username=attempt.user, password=attempt.password,
                    client_keys=None if attempt.key is None else [attempt.key], preferred_auth=method,
                    known_hosts=(trusted, [], []), client_version=DOCTOR_CLIENT, agent_path=None, config=None,
                    x509_trusted_certs=None, gss_host=None,
                )  # fmt: skip
            async with connection:
                if name is not None and found is None:
                    found = await _digest(connection, name)
    return found


async def _digest(connection: asyncssh.SSHClientConnection, name: str) -> str:
    digest = hashlib.sha256()
    async with asyncio.timeout(SILENCE_TIMEOUT) as limit, connection.start_sftp_client() as sftp:
        try:
            async with sftp.open(name, "rb", encoding=None) as file:
                while isinstance(data := await file.read(_CHUNK), bytes) and data:
                    digest.update(data)
                    # A large file may take its time, as long as it keeps coming.
                    limit.reschedule(asyncio.get_running_loop().time() + SILENCE_TIMEOUT)
        except asyncssh.SFTPNoSuchFile:
            raise FileNotFoundError(name) from None
    return digest.hexdigest()


@contextmanager
def _translate_ssh_errors(host: str, method: str = "") -> Iterator[None]:
    """Turn failures into sentences for an operator; give asyncssh the home and the user name that it looks up."""
    # The data folder's owner cannot enter root's home, and may have neither a home nor a name of its own.
    os.environ["HOME"] = "/nonexistent"
    os.environ.setdefault("USER", "doctor")
    try:
        yield
    except TimeoutError as error:
        raise NoAnswer(f"no answer within {SILENCE_TIMEOUT:.0f} s") from error
    except socket.gaierror as error:
        raise NoAnswer(f"the name {host} cannot be resolved") from error
    except asyncssh.PermissionDenied as error:
        raise LoginRefused(method) from error
    except asyncssh.HostKeyNotVerifiable as error:
        raise NoAnswer("the host key is not one of ours, so no password was sent") from error
    except (asyncssh.ConnectionLost, ConnectionResetError) as error:
        raise HungUp("the server closed the connection") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NoAnswer((error.strerror or str(error)).lower()) from error
    except asyncssh.Error as error:
        raise NoAnswer(str(error) or type(error).__name__) from error
