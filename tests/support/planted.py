"""Another program in place of the conversion process."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from server.convert import process

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def planted(program: str) -> Iterator[None]:
    """Make every conversion start this Python program instead of `server.convert`, as long as the context lasts."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "planted.py")
        path.write_text(program)
        patch.setattr(process, "COMMAND", (sys.executable, "-P", "-S", str(path)))
        yield
