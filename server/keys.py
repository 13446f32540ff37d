"""The secrets and keys in files: host keys, the hash key, and the users' public keys.

Reads `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential) first and then ``keys_dir``; only `make_keys` writes, into
``keys_dir``. Promise: a private file that others can read is refused, a missing key is never made by the service, a key
that exists is never replaced, and everything is a checked object before anything uses it.
"""

from __future__ import annotations

import os
import secrets
import stat
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncssh

from .access import Access, User, password_hash_problem
from .algorithms import LEGACY_HOST_KEY, RSA_HOST_SIGNATURES
from .errors import ConfigError, Problem

if TYPE_CHECKING:
    from pathlib import Path

    from .settings import SftpSettings

IP_HASH_KEY = "ip_hash.key"
IP_HASH_KEY_BYTES = 32
_RSA_BITS = 3072
_HOST_KEYS = {  # file: asyncssh's name of the algorithm
    "ssh_host_ed25519_key": "ssh-ed25519",
    "ssh_host_ecdsa_key": LEGACY_HOST_KEY,
    "ssh_host_rsa_key": "ssh-rsa",
}
_MOST_BYTES = 1 << 20  # of a key file
_PRIVATE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key file after `make_keys`: ``public`` and ``fingerprint`` are empty for the hash key, which has none."""

    path: Path
    made: bool
    fingerprint: str = ""
    public: str = ""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Everything that logging in needs, loaded and checked: host keys to offer, and the users."""

    host_keys: tuple[asyncssh.SSHKeyPair, ...]
    access: Access


def load_credentials(settings: SftpSettings, keys_dir: Path) -> Credentials:
    """Load the host keys and the users of a configuration.

    Raises:
        ConfigError: with every problem of every file.
    """
    problems: list[Problem] = []
    host_keys = [_host_key(name, keys_dir, problems) for name in _offered(settings)]
    users = []
    for index, user in enumerate(settings.users):
        key = f"sftp.users[{index}]"
        if user.password_hash is not None and (wrong := password_hash_problem(user.password_hash)):
            cure = "make a new one: pickup-point hash-password"
            problems.append(Problem(f"{key}.password_hash", wrong, cure))
        public = frozenset[bytes]()
        if user.authorized_keys is not None:
            public = _authorized_keys(user.authorized_keys, f"{key}.authorized_keys", problems)
        users.append(User(user.name, user.password_hash, public, tuple(user.allow_from)))
    if problems:
        raise ConfigError("the keys", problems)
    return Credentials(tuple(pair for pair in host_keys if pair is not None), Access(users))


def load_ip_hash_key(keys_dir: Path) -> bytes:
    """The 32 bytes of the site's secret for hashed addresses.

    Raises:
        ConfigError: the file is missing, can be read by others, or is not 64 hex digits.
    """
    problems: list[Problem] = []
    data = _read_private(IP_HASH_KEY, keys_dir, problems)
    if data is not None:
        try:
            key = bytes.fromhex(data.decode("ascii").strip())
        except ValueError:
            key = b""
        if len(key) == IP_HASH_KEY_BYTES:
            return key
        cure = "restore it from the backup; a new key would give every listener a new hash"
        problems.append(Problem(IP_HASH_KEY, "is not 64 hex digits", cure))
    raise ConfigError("the keys", problems)


def make_keys(keys_dir: Path) -> list[MadeKey]:
    """Make what is missing in ``keys_dir``; existing files are left alone. All are mode 0600.

    Raises:
        ConfigError: a file that exists cannot be used.
        OSError: the folder cannot be written.
    """
    keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    result = []
    problems: list[Problem] = []
    for name, algorithm in _HOST_KEYS.items():
        path = keys_dir / name
        made = False
        if not _exists(name, keys_dir):
            key = (
                asyncssh.generate_private_key(algorithm, key_size=_RSA_BITS, comment="pickup-point")
                if algorithm == "ssh-rsa"
                else asyncssh.generate_private_key(algorithm, comment="pickup-point")
            )
            made = _write_new(path, key.export_private_key("openssh"))
        pair = _host_key(name, keys_dir, problems)
        if pair is not None:
            public = asyncssh.import_public_key(_public_line(pair))
            result.append(MadeKey(path, made, public.get_fingerprint(), _public_line(pair)))
    made = False
    if not _exists(IP_HASH_KEY, keys_dir):
        made = _write_new(keys_dir / IP_HASH_KEY, f"{secrets.token_hex(IP_HASH_KEY_BYTES)}\n".encode())
    if problems:
        raise ConfigError("the keys", problems)
    load_ip_hash_key(keys_dir)
    result.append(MadeKey(keys_dir / IP_HASH_KEY, made))
    return result


def known_hosts_lines(keys: list[MadeKey], address: str) -> list[str]:
    """A known_hosts line for each host key; ``address`` is ``host`` or ``host:port``."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or (":" in host and not host.startswith("[")):
        host, port = address, "22"
    host = host.strip("[]")
    name = host if port == "22" else f"[{host}]:{port}"
    return [f"{name} {key.public}" for key in keys if key.public]


def _offered(settings: SftpSettings) -> list[str]:
    legacy = settings.legacy_algorithms
    return [name for name, algorithm in _HOST_KEYS.items() if legacy or algorithm != LEGACY_HOST_KEY]


def _public_line(pair: asyncssh.SSHKeyPair) -> str:
    data = pair.public_data
    algorithm = data[4 : 4 + int.from_bytes(data[:4], "big")]
    return f"{algorithm.decode('ascii')} {b64encode(data).decode('ascii')}"


def _host_key(name: str, keys_dir: Path, problems: list[Problem]) -> asyncssh.SSHKeyPair | None:
    data = _read_private(name, keys_dir, problems)
    if data is None:
        return None
    try:
        key = asyncssh.import_private_key(data)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError):
        cure = "restore it from the backup: a new host key looks like an attack to the partner's client"
        problems.append(Problem(name, "is not a private key without a passphrase", cure))
        return None
    expected = _HOST_KEYS[name]
    if key.get_algorithm() != expected:
        cure = f"put the {expected} key there, or move the file away and type: pickup-point keygen"
        problems.append(Problem(name, f"is a key of type {key.get_algorithm()}, not {expected}", cure))
        return None
    pair = asyncssh.load_keypairs([key])[0]
    if expected == "ssh-rsa":
        pair.host_key_algorithms = [name.encode("ascii") for name in RSA_HOST_SIGNATURES]
    return pair


def _authorized_keys(path: Path, key: str, problems: list[Problem]) -> frozenset[bytes]:
    """The public keys of an authorized_keys file; options before a key are a problem, since none is kept."""
    found = set()
    try:
        with path.open("rb") as file:
            lines = file.read(_MOST_BYTES).decode("utf-8", "replace").splitlines()
    except OSError as error:
        problems.append(Problem(key, f"is {path}: {error.strerror or error}", f"ls -l {path}"))
        return frozenset()
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            found.add(asyncssh.import_public_key(line).public_data)
        except (asyncssh.KeyImportError, ValueError):
            cure = 'one key a line, without options: "ssh-ed25519 AAAA… comment"'
            problems.append(Problem(key, f"has no public key in line {number} of {path}", cure))
    if not found and not problems:
        problems.append(Problem(key, f"is {path}: there is no key in it", "put the partner's public key there"))
    return frozenset(found)


def _places(name: str, keys_dir: Path) -> list[tuple[Path, bool]]:
    """Where a private file may be, in order, and whether its mode is ours to judge."""
    places = [(keys_dir / name, True)]
    if folder := os.environ.get("CREDENTIALS_DIRECTORY"):
        places.insert(0, (type(keys_dir)(folder, name), False))  # systemd sets the modes there
    return places


def _exists(name: str, keys_dir: Path) -> bool:
    return any(path.exists() or path.is_symlink() for path, _ in _places(name, keys_dir))


def _read_private(name: str, keys_dir: Path, problems: list[Problem]) -> bytes | None:
    for path, judged in _places(name, keys_dir):
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if judged and stat.S_IMODE(mode) & 0o077:
                    problems.append(Problem(str(path), "can be read by others", f"chmod 600 {path}"))
                    return None
                return file.read(_MOST_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(Problem(str(path), f"cannot be read: {error.strerror}", f"ls -l {path}"))
            return None
    cure = "make what is missing: pickup-point keygen"
    problems.append(Problem(str(keys_dir / name), "there is no such file", cure))
    return None


def _write_new(path: Path, data: bytes) -> bool:
    """Write a private file whole or not at all; False when another process made it first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)  # a link refuses a name that is there, a rename would replace it
        except FileExistsError:
            return False
    finally:
        temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True
