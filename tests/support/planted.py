"""Another program in the place of the process that converts."""

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
    """While this lasts, every conversion starts this program (Python) instead of `server.convert`."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "planted.py")
        path.write_text(program)
        patch.setattr(process, "COMMAND", (sys.executable, str(path)))
        yield
