"""A gauge of one process: resident memory and open descriptors, second by second, and the line through them.

Reads ``/proc``. The slopes are least squares over what was seen after the warm-up.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  # the cheapest look, every second


@dataclass(slots=True)
class Gauge:
    """What was seen of a process: seconds since the start, KiB, descriptors."""

    seen: list[tuple[float, float, int]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    async def watch(self, pid: int) -> None:
        """Look every second, until cancelled or the process is gone."""
        while True:
            try:
                resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1024
                self.seen.append((time.monotonic() - self.started, resident, descriptors(pid)))
            except (FileNotFoundError, ProcessLookupError):
                return
            await asyncio.sleep(1)

    def write(self, path: Path) -> None:
        """Leave what was seen, a line a second."""
        path.write_text("".join(f"{at:.0f}\t{memory:.0f}\t{count}\n" for at, memory, count in self.seen))

    def most(self, column: int) -> float:
        """The largest value of a column: 1 is memory, 2 is descriptors."""
        return max((row[column] for row in self.seen), default=0.0)

    def slope(self, column: int, warm_up: float) -> float:
        """How much a column grows in a minute, by the line through all that was seen after the warm-up."""
        points = [(row[0] / 60, row[column]) for row in self.seen if row[0] >= warm_up]
        if len(points) < 3:
            return 0.0
        middle = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
        spread = sum((x - middle[0]) ** 2 for x, _ in points)
        return sum((x - middle[0]) * (y - middle[1]) for x, y in points) / spread


@dataclass(slots=True)
class Budget:
    """Keeps us and the processes that we watch to a share of one processor, on average."""

    share: float
    pids: list[int] = field(default_factory=list)
    ours: float = field(default_factory=lambda: sum(os.times()[:4]))
    started: float = field(default_factory=time.monotonic)
    ahead: float = 3.0  # seconds of processor time that may be used in advance

    @property
    def spent(self) -> float:
        """Processor seconds of this process, of its children that ended, and of those that are watched."""
        spent = sum(os.times()[:4]) - self.ours
        for pid in self.pids:
            try:
                spent += cpu_seconds(pid)
            except FileNotFoundError:
                continue
        return spent

    async def rest(self, least: float) -> None:
        """Wait at least this long, and until there is processor time again."""
        await asyncio.sleep(least)
        while self.spent > self.share * (time.monotonic() - self.started) + self.ahead:
            await asyncio.sleep(0.1)
