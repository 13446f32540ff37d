"""The least configuration there is, and text read as one. No outside world."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from server.config import parse_config

if TYPE_CHECKING:
    from server.settings import Config

HASH = "$argon2id$v=19$m=65536,t=3,p=4$cmVwbGFjZS10aGlzLWhhc2g$" + "A" * 43
EXPORT = '[export]\nurl = "s3://bucket"\n'
USER = f'[[sftp.users]]\nname = "triton"\npassword_hash = "{HASH}"\n'
MINIMAL = EXPORT + USER


def parse(text: str, folder: Path = Path("/srv/point")) -> Config:
    return parse_config(tomllib.loads(text), folder / "config.toml")
