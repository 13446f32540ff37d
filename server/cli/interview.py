"""The interview: six answers become a configuration.

Touches the new file, and nothing else. Promise: a file that is there is never overwritten; what is written has been
loaded as the service loads it, and lies there whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import load_config
from ..errors import ConfigError, PickupPointError, Problem

if TYPE_CHECKING:
    from pathlib import Path

_MODE = 0o640  # the service's group reads it again at a reload


@dataclass(frozen=True, slots=True)
class Answers:
    """What `init` asks; the last four are asked of nobody, there are options for them.

    ``address`` is ``host`` or ``host:port``; one of ``password_hash`` and ``authorized_keys`` is not empty.
    """

    export: str
    address: str
    user: str
    prefix: str
    data_dir: str
    password_hash: str = ""
    authorized_keys: str = ""
    region: str = ""
    endpoint_url: str = ""
    first_day: str = ""


def write_config(path: Path, answers: Answers) -> None:
    """Write the configuration.

    Raises:
        PickupPointError: the file is there, or its folder cannot be written.
        ConfigError: an answer cannot be used; nothing is written.
    """
    if path.exists() or path.is_symlink():
        raise PickupPointError(
            f"{path} is there, and is not overwritten", hint=f"give another --config, or edit {path}"
        )
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(text_of(answers))
            file.flush()
            os.fsync(file.fileno())
        _check(part, path)
        if os.geteuid() == 0:
            os.chown(part, -1, path.absolute().parent.stat().st_gid)
        part.chmod(_MODE)
        path.hardlink_to(part)
    except FileExistsError as error:
        raise PickupPointError(f"{path} is there, and is not overwritten", hint=f"edit {path}") from error
    except OSError as error:
        where = path.absolute().parent
        raise PickupPointError(f"{path} cannot be written: {error.strerror}", hint=f"ls -ld {where}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _check(part: Path, path: Path) -> None:
    """Load it as the service does; what is wrong is told with the name that it would have had."""
    try:
        load_config(part)
    except ConfigError as error:
        raise ConfigError(str(path), [Problem(p.key, p.wrong, p.cure) for p in error.problems]) from error


def port_of(address: str) -> int:
    """The port of an address as the partner is told it; 2222 where it names none."""
    _, separator, port = address.rpartition(":")
    return int(port) if separator and port.isdigit() and len(port) < 6 else 2222


def text_of(answers: Answers) -> str:
    """The file."""
    address = answers.address if answers.address.rpartition(":")[2].isdigit() else f"{answers.address}:2222"
    optional = {"region": answers.region, "endpoint_url": answers.endpoint_url, "first_day": answers.first_day}
    user = {"password_hash": answers.password_hash, "authorized_keys": answers.authorized_keys}
    return "\n".join(
        [
            "# Made by `pickup-point init`. Every key that may stand here is explained in config.example.toml.",
            f"data_dir = {_quoted(answers.data_dir)}",
            'keys_dir = "keys"',
            "",
            "[export]",
            f"url = {_quoted(answers.export)}",
            *(f"{key} = {_quoted(value)}" for key, value in optional.items() if value),
            "",
            "[log]",
            f"prefix = {_quoted(answers.prefix)}",
            "",
            "[sftp]",
            f"port = {port_of(address)}",
            f"address = {_quoted(address)}",
            "",
            "[[sftp.users]]",
            f"name = {_quoted(answers.user)}",
            *(f"{key} = {_quoted(value)}" for key, value in user.items() if value),
            "",
        ]
    )


def _quoted(text: str) -> str:
    return json.dumps(text)  # a JSON string is a TOML one
