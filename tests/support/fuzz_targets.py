"""The fuzzed functions by name. The corpus of each lies in ``tests/corpus``, under that name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .fuzz_rows import day, rows, stored
from .fuzz_texts import config, names, rss, sftp

if TYPE_CHECKING:
    from collections.abc import Callable

CORPUS = Path(__file__).parent.parent / "corpus"
TARGETS: dict[str, Callable[[bytes], None]] = {
    "rows": rows,
    "day": day,
    "stored": stored,
    "names": names,
    "config": config,
    "rss": rss,
    "sftp": sftp,
}
