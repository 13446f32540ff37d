"""The installation that a command finds: whose the data folder is, and where keys belong that are yet to be made.

Touches the data folder's owner, the identity of this process, and the configuration file. Promise: a command that root
types leaves nothing behind that the service cannot open.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from .config import SEARCHED, find_config
from .errors import ConfigError, Problem

if TYPE_CHECKING:
    from .settings import Config


def config_path(given: Path | None) -> Path:
    """The configuration file that a command reads.

    Raises:
        ConfigError: there is none.
    """
    found = find_config(given)
    if found is None:
        wrong = f"there is no {SEARCHED[0]} here and no {SEARCHED[1]}"
        cure = "pickup-point demo; or copy config.example.toml to config.toml and change it"
        raise ConfigError("the configuration", [Problem("--config", wrong, cure)])
    return found


def become_owner(config: Config) -> None:
    """As root: become the owner of data_dir, or of the folder that it will be made in. There is no way back.

    Root's secrets must have been read before.
    """
    if os.geteuid() != 0:
        return
    folder = config.data_dir.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    owner = folder.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def keys_place(path: Path) -> tuple[Path, str]:
    """keys_dir and the public address, also of a configuration that cannot be loaded before its keys are made."""
    try:
        raw = tomllib.loads(path.read_bytes().decode())
    except (OSError, ValueError):
        raw = {}
    sftp = raw.get("sftp")
    address = sftp.get("address", "") if isinstance(sftp, dict) else ""
    keys = raw.get("keys_dir", "keys")
    keys_dir = Path(path.absolute().parent, Path(keys if isinstance(keys, str) else "keys").expanduser())
    return keys_dir, address if isinstance(address, str) else ""
