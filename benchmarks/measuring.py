"""How long a command takes, and how much memory it and all its descendants hold at their peak."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import NamedTuple

EVERY = 0.02  # seconds between two looks


class Measured(NamedTuple):
    """Wall time in seconds, and the largest sum of resident memory in bytes (shared pages counted for each process)."""

    seconds: float
    peak: int


def measure(command: list[str]) -> Measured:
    """Run a command to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak, code = 0, None
        while code is None:
            peak = max(peak, _tree(process.pid))
            try:
                code = process.wait(EVERY)
            except subprocess.TimeoutExpired:
                continue
    seconds = time.perf_counter() - started
    if code:
        raise subprocess.CalledProcessError(code, command)
    return Measured(seconds, peak)


def _tree(pid: int) -> int:
    """Resident memory of a process and its descendants, in bytes."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0
    return pages * 4096 + sum(map(_tree, children))
