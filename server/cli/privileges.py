"""The installation that a command finds: its configuration file, the owner of its data folder, its folder of keys.

Touches the configuration file, the data folder's owner and the identity of this process. Promise: a command that root
types leaves nothing behind that the service cannot open.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..disk import translate_os_errors
from ..errors import ConfigError, Problem

if TYPE_CHECKING:
    import ctypes

    from ..settings import Config

_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2  # prctl(2)
_CAPABILITY_VERSION_3 = 0x20080522  # capset(2)
_DAC_READ_SEARCH = 2  # capabilities(7)


def config_path(given: Path | None) -> Path:
    """Return the configuration file that a command reads.

    Raises:
        ConfigError: there is none.
    """
    found = find_config(given)
    if found is None:
        wrong = f"there is no {SEARCHED[0]} here and no {SEARCHED[1]}"
        cure = "pickup-point init; or, to try it out: pickup-point demo"
        raise ConfigError("the configuration", [Problem("--config", wrong, cure)])
    return found


def become_owner(config: Config) -> None:
    """Become, as root, the owner of data_dir or of the folder that it will be created in. There is no way back.

    The privilege to read stays: systemd keeps a DynamicUser's folder below /var/lib/private, which only root may
    enter, and the keys may be root's alone. Everything written belongs to the owner.

    Raises:
        DataFolderError: the disk does not say who the owner is.
    """
    if os.geteuid() != 0:
        return
    folder = config.data_dir.absolute()
    with translate_os_errors(folder):
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        owner = folder.stat()
    if owner.st_uid != 0:
        import ctypes  # only here: a plain convert needs none of it

        libc = ctypes.CDLL(None)
        # Else setuid would take every capability away (prctl(2)). The groups go first: only root may change them.
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
        _keep_read_capability(libc)


def _keep_read_capability(libc: ctypes.CDLL) -> None:
    """Drop every capability but that of reading and searching, for this process and those it starts.

    If the kernel does not grant it, the folder must be reachable for its owner.
    """
    import struct

    right = 1 << _DAC_READ_SEARCH
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    if libc.capset(header, struct.pack("<6I", right, right, right, 0, 0, 0)) == 0:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _DAC_READ_SEARCH, 0, 0)


def find_aws_key(config: Config) -> None:
    """Let AWS's chain of credentials find ``keys/aws``, a static key, as the systemd unit does for the service."""
    path = config.keys_dir / "aws"
    if "AWS_SHARED_CREDENTIALS_FILE" not in os.environ and os.access(path, os.R_OK):
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(path.absolute())


def find_keys_dir(path: Path) -> tuple[Path, str]:
    """Return keys_dir and the public address, also of a configuration that cannot be loaded before its keys exist."""
    import tomllib  # only here, like ctypes above

    try:
        raw = tomllib.loads(path.read_bytes().decode())
    except (OSError, ValueError):
        raw = {}
    sftp = raw.get("sftp")
    address = sftp.get("address", "") if isinstance(sftp, dict) else ""
    keys = raw.get("keys_dir", "keys")
    keys_dir = Path(path.absolute().parent, Path(keys if isinstance(keys, str) else "keys").expanduser())
    return keys_dir, address if isinstance(address, str) else ""


SEARCHED = (Path("config.toml"), Path("/etc/pickup-point/config.toml"))


def find_config(given: Path | None) -> Path | None:
    """Return the configuration file to read: the given one, else the first of ``SEARCHED`` that exists, else None."""
    return given if given is not None else next((path for path in SEARCHED if path.is_file()), None)
