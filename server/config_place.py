"""Where the configuration is looked for. Touches the file system only to see whether a file is there."""

from __future__ import annotations

from pathlib import Path

SEARCHED = (Path("config.toml"), Path("/etc/pickup-point/config.toml"))


def find_config(given: Path | None) -> Path | None:
    """The configuration file to read: the one given, else the first of the usual places that exists."""
    return given if given is not None else next((path for path in SEARCHED if path.is_file()), None)
