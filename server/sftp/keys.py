"""The secrets and keys that are kept in files: host keys, the hash key, and the users' public keys.

Reads `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential) first and then ``keys_dir``; only `make_keys` writes, into
``keys_dir``. Promise: a private file that others can read is refused, the service never makes a missing key, an
existing key is never replaced, and everything is parsed and checked before it is used.
"""

from __future__ import annotations

import os
import secrets
import shlex
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncssh
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from ..config import IP_HASH_KEY, IP_HASH_KEY_BYTES, load_ip_hash_key
from ..disk import exists, read_private
from ..errors import ConfigError, Problem
from ..paths import make_folder, read_file, write_new
from .algorithms import HOST_KEY_FILES, LEGACY_HOST_KEY, RSA_HOST_SIGNATURES
from .users import Access, User, password_hash_problem

if TYPE_CHECKING:
    from pathlib import Path

    from ..settings import SftpSettings

_RSA_BITS = 3072


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key file, and whether it was ``made`` just now; ``public`` and ``fingerprint`` are '' for the hash key."""

    path: Path
    made: bool
    fingerprint: str = ""
    public: str = ""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything that logging in needs, loaded and checked: the host keys to offer, and the users."""

    host_keys: tuple[asyncssh.SSHKeyPair, ...]
    access: Access


def load_credentials(settings: SftpSettings, keys_dir: Path) -> Credentials:
    """Load the host keys and the users of a configuration.

    Raises:
        ConfigError: with every problem of every file.
    """
    problems: list[Problem] = []
    host_keys = [_host_key(name, keys_dir, problems) for name in offered_host_keys(legacy=settings.legacy_algorithms)]
    users = []
    for index, user in enumerate(settings.users):
        key = f"sftp.users[{index}]"
        if user.password_hash is not None and (wrong := password_hash_problem(user.password_hash)):
            cure = "write what this prints: pickup-point hash-password"
            problems.append(Problem(f"{key}.password_hash", wrong, cure))
        public = frozenset[bytes]()
        if user.authorized_keys is not None:
            public = _authorized_keys(user.authorized_keys, f"{key}.authorized_keys", problems)
        users.append(User(user.name, user.password_hash, public, tuple(user.allow_from)))
    if problems:
        raise ConfigError("the keys", problems)
    return Credentials(tuple(pair for pair in host_keys if pair is not None), Access(users))


def make_keys(keys_dir: Path) -> list[MadeKey]:
    """Make the keys that are missing from ``keys_dir`` (mode 0600), leave the others alone, and return all of them.

    Raises:
        ConfigError: an existing file cannot be used.
        OSError: the folder cannot be written.
    """
    make_folder(keys_dir)
    result = []
    problems: list[Problem] = []
    for name, algorithm in HOST_KEY_FILES.items():
        path = keys_dir / name
        made = False
        # Another process may make it after this check; `write_new` then leaves that file alone.
        if not exists(name, keys_dir):
            key = (
                asyncssh.generate_private_key(algorithm, key_size=_RSA_BITS, comment="pickup-point")
                if algorithm == "ssh-rsa"
                else asyncssh.generate_private_key(algorithm, comment="pickup-point")
            )
            made = write_new(path, key.export_private_key("openssh"))
        pair = _host_key(name, keys_dir, problems)
        if pair is not None:
            public = asyncssh.import_public_key(public_line(pair.public_data))
            result.append(MadeKey(path, made, public.get_fingerprint(), public_line(pair.public_data)))
    made = False
    if not exists(IP_HASH_KEY, keys_dir):
        made = write_new(keys_dir / IP_HASH_KEY, f"{secrets.token_hex(IP_HASH_KEY_BYTES)}\n".encode())
    if problems:
        raise ConfigError("the keys", problems)
    load_ip_hash_key(keys_dir)
    result.append(MadeKey(keys_dir / IP_HASH_KEY, made))
    return result


def lost_keys(keys_dir: Path, *, legacy: bool, ledger: Path) -> tuple[list[str], str]:
    """Return the names of keys that have gone missing, and the path that shows it: another key, or the ledger.

    The host key that is offered only with ``legacy`` algorithms is not missed without them.
    """
    names = [*offered_host_keys(legacy=legacy), IP_HASH_KEY]
    missing = [name for name in names if not exists(name, keys_dir)]
    shows = [keys_dir / name for name in names if name not in missing]
    if os.path.lexists(ledger):
        shows.insert(0, ledger)
    return (missing, str(shows[0])) if missing and shows else ([], "")


def public_host_keys(settings: SftpSettings, keys_dir: Path) -> list[MadeKey]:
    """Return the host keys that are offered to clients, without making any.

    Raises:
        ConfigError: one is missing or cannot be used.
    """
    found = []
    problems: list[Problem] = []
    for name in offered_host_keys(legacy=settings.legacy_algorithms):
        pair = _host_key(name, keys_dir, problems)
        if pair is not None:
            public = asyncssh.import_public_key(public_line(pair.public_data))
            found.append(MadeKey(keys_dir / name, False, public.get_fingerprint(), public_line(pair.public_data)))
    if problems:
        raise ConfigError("the keys", problems)
    return found


def known_hosts_lines(keys: list[MadeKey], address: str) -> list[str]:
    """Return a known_hosts line for each host key; ``address`` is ``host`` or ``host:port``."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or (":" in host and not host.startswith("[")):
        host, port = address, "22"
    host = host.strip("[]")
    name = host if port == "22" else f"[{host}]:{port}"
    return [f"{name} {key.public}" for key in keys if key.public]


def offered_host_keys(*, legacy: bool) -> list[str]:
    """Return the file names of the host keys that clients are offered."""
    return [name for name, algorithm in HOST_KEY_FILES.items() if legacy or algorithm != LEGACY_HOST_KEY]


def public_line(data: bytes) -> str:
    """Return a public key (SSH wire form) as OpenSSH writes it: algorithm and base64."""
    algorithm = data[4 : 4 + int.from_bytes(data[:4], "big")]
    return f"{algorithm.decode('ascii')} {b64encode(data).decode('ascii')}"


def _host_key(name: str, keys_dir: Path, problems: list[Problem]) -> asyncssh.SSHKeyPair | None:
    data = read_private(name, keys_dir, problems)
    if data is None:
        return None
    try:
        # OpenSSL's validation tests an RSA key's primes, which takes an eighth of a second; `_fits` takes no time.
        key = asyncssh.import_private_key(data, unsafe_skip_rsa_key_validation=True)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError):
        key = None
    if key is None or not _fits(key):
        cure = "restore it from a backup: to the partner's client, a new host key looks like an attack"
        problems.append(Problem(name, "is not a private key without a passphrase", cure))
        return None
    expected = HOST_KEY_FILES[name]
    if key.get_algorithm() != expected:
        cure = f"put the {expected} key there, or move the file away and run: pickup-point keygen"
        problems.append(Problem(name, f"is a key of type {key.get_algorithm()}, not {expected}", cure))
        return None
    pair = asyncssh.load_keypairs([key])[0]
    if expected == "ssh-rsa":
        # asyncssh would offer SHA-1 signatures with this key, too.
        pair.host_key_algorithms = [name.encode("ascii") for name in RSA_HOST_SIGNATURES]
    return pair


def _fits(key: asyncssh.SSHKey) -> bool:
    """Return whether the numbers of an RSA key belong together, so that no damaged file is signed with (RFC 8017, 3.2).

    That its factors are primes is taken from whoever made the key, as it is with every other secret of the folder.
    """
    private = key.pyca_key
    if not isinstance(private, RSAPrivateKey):
        return True
    numbers = private.private_numbers()
    public, p, q = numbers.public_numbers, numbers.p, numbers.q
    return (
        p * q == public.n
        and all(public.e * numbers.d % (prime - 1) == 1 for prime in (p, q))
        and q * numbers.iqmp % p == 1
    )


def _authorized_keys(path: Path, key: str, problems: list[Problem]) -> frozenset[bytes]:
    """Read the public keys of an authorized_keys file; options before a key are a problem, since none are obeyed."""
    found = set()
    try:
        lines = read_file(path).decode("utf-8", "replace").splitlines()
    except OSError as error:
        problems.append(
            Problem(key, f"cannot read {path}: {error.strerror or error}", f"ls -l {shlex.quote(str(path))}")
        )
        return frozenset()
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            found.add(asyncssh.import_public_key(line).public_data)
        except (asyncssh.KeyImportError, ValueError):
            cure = 'write one key per line, without options: "ssh-ed25519 AAAA… comment"'
            problems.append(Problem(key, f"line {number} of {path} is not a public key", cure))
    if not found and not problems:
        problems.append(Problem(key, f"{path} holds no key", "put the partner's public key there"))
    return frozenset(found)
