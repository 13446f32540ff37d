"""The most memory that a process and those of its descendants that live beside it took, each at its own worst moment.

Reads /proc. The kernel keeps every process's own peak, so nothing that comes and goes between two looks is missed; the
sum is never less than what was held at once (but for shared memory, which counts once).
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_EVERY = 0.05  # seconds between two looks for new processes


class Peak:
    """Watches while it is entered; ``bytes`` is the largest sum so far."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.bytes = 0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        with suppress(OSError):
            Path(f"/proc/{self._pid}/clear_refs").write_text("5")  # what it held before is not asked for
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        over = False
        while not over:
            over = self._over.wait(_EVERY)
            self.bytes = max(self.bytes, _held(self._pid))


def _held(pid: int, *, child: bool = False) -> int:
    """The peaks of a process and its descendants, added up; what children share with it is counted once."""
    held = 0
    with suppress(OSError):
        told = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
        held = int(told["VmHWM"]) - child * int(told["RssShmem"]) << 10 if "VmHWM" in told else 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            held += sum(_held(int(one), child=True) for one in (task / "children").read_text().split())
    return held
