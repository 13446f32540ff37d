"""A conversion in a process of its own that puts its files into one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.convert.apart import Outputs, convert_apart
from server.convert.messages import FileNames

from .reference_conversion import conversion

if TYPE_CHECKING:
    from pathlib import Path

    from server.convert.answer import Answer
    from server.convert.row import Conversion

LOG_NAMES = FileNames("log-", 0, ".gz")


def apart_from(
    export: Path, folder: Path, made: Conversion | None = None, names: FileNames = LOG_NAMES, **more: Any
) -> Answer:
    """Convert an export in a process of its own; logs and rejects go to ``folder``."""
    made = made or conversion()
    outputs = Outputs(folder, lambda: names, (folder, "rejects"))
    return convert_apart(export, lambda: made, outputs, scratch=folder, **more)
