"""Private files: where a secret lies, who may read it, and how a new one is written.

Touches ``$CREDENTIALS_DIRECTORY`` (systemd's) and then ``keys_dir``. Promise: a private file that others can read is
refused, a new one appears whole with mode 0600, and one that is there is never replaced.
"""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING

from .disk import fsync_folder
from .errors import ConfigError, Problem

if TYPE_CHECKING:
    from pathlib import Path

IP_HASH_KEY = "ip_hash.key"
IP_HASH_KEY_BYTES = 32
MOST_BYTES = 1 << 20  # of a key file
_PRIVATE_MODE = 0o600


def load_ip_hash_key(keys_dir: Path) -> bytes:
    """The 32 bytes of the site's secret for hashed addresses.

    Raises:
        ConfigError: the file is missing, can be read by others, or is not 64 hex digits.
    """
    problems: list[Problem] = []
    data = read_private(IP_HASH_KEY, keys_dir, problems)
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


def _places(name: str, keys_dir: Path) -> list[tuple[Path, bool]]:
    """Where a private file may be, in order, and whether its mode is ours to judge."""
    places = [(keys_dir / name, True)]
    if folder := os.environ.get("CREDENTIALS_DIRECTORY"):
        places.insert(0, (type(keys_dir)(folder, name), False))  # systemd sets the modes there
    return places


def exists(name: str, keys_dir: Path) -> bool:
    """Whether a private file is in one of its places."""
    return any(path.exists() or path.is_symlink() for path, _ in _places(name, keys_dir))


def read_private(name: str, keys_dir: Path, problems: list[Problem]) -> bytes | None:
    """A private file's content, or None with the reason added to ``problems``."""
    for path, judged in _places(name, keys_dir):
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if judged and stat.S_IMODE(mode) & 0o077:
                    problems.append(Problem(str(path), "can be read by others", f"chmod 600 {path}"))
                    return None
                return file.read(MOST_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(Problem(str(path), f"cannot be read: {error.strerror}", f"ls -l {path}"))
            return None
    cure = "make what is missing: pickup-point keygen"
    problems.append(Problem(str(keys_dir / name), "there is no such file", cure))
    return None


def write_new(path: Path, data: bytes) -> bool:
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
    fsync_folder(path.parent)
    return True
