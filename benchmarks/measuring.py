"""How long a command takes, and how much memory it and all its descendants hold at their peak."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

EVERY = 0.05  # seconds between two looks; more often costs what is measured


class Measured(NamedTuple):
    """Wall time in seconds, and the largest sum of resident memory in bytes (shared pages counted for each process)."""

    seconds: float
    peak: int


def measure(command: list[str]) -> Measured:
    """Run a command to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    peaks, ended = [0], threading.Event()
    # An installed program has its modules compiled, so it must be allowed to keep them here, too.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:

        def watch() -> None:
            while not ended.wait(EVERY):
                peaks.append(max(peaks.pop(), _tree(process.pid)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        ended.set()
        watcher.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    return Measured(seconds, peaks[0])


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
