"""strace: which calls a process makes on a folder, and errors in place of them.

Touches the processes that it is told of, which go on when it lets them go. The count of a call is strace's: by thread.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ABSENT = "" if shutil.which("strace") else "apt-get install strace"
PATIENCE = 20.0  # seconds

# Every call by which a disk can say no, and what it says. Calls of one kind stand together.
ERRORS: dict[str, tuple[str, ...]] = {
    "openat": ("ENOSPC", "EDQUOT", "EROFS", "EIO"),
    "write": ("ENOSPC", "EDQUOT", "EIO"),
    "pwrite64": ("ENOSPC", "EDQUOT", "EIO", "EROFS"),
    "fsync": ("EIO", "ENOSPC", "EDQUOT"),
    "fdatasync": ("EIO", "ENOSPC", "EDQUOT"),
    "linkat": ("ENOSPC", "EDQUOT", "EROFS", "EIO"),
    "unlink": ("EROFS", "EIO"),
    "rename": ("ENOSPC", "EDQUOT", "EROFS", "EIO"),
    "utimensat": ("EROFS", "EIO"),
    "ftruncate": ("EIO", "ENOSPC"),
    "mkdir": ("ENOSPC", "EROFS", "EIO"),
    "chmod": ("EROFS", "EIO"),
    "fchown": ("EROFS", "EIO"),
    "flock": ("EIO", "ENOLCK"),
    "fcntl": ("EIO", "ENOLCK"),
    "read": ("EIO",),
    "pread64": ("EIO",),
    "newfstatat": ("EIO",),
    "getdents64": ("EIO",),
    "mmap": ("ENOMEM", "EIO"),
}
_LINE = re.compile(r"(\d+) +(?:<\.\.\. )?([a-z]\w*)(?:\(| resumed)(.*)")


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a process makes on a path, and how often the busiest thread makes it."""

    name: str
    path: str
    times: int


def inject(error: str, calls: Sequence[str], paths: Sequence[Path | str], when: str) -> list[str]:
    """strace's words for an error in place of calls on these paths; ``when`` is ``3`` or ``3+``."""
    names = ",".join(calls)
    places = [word for path in paths for word in ("-P", str(path))]
    return [*places, "-e", f"trace={names}", "-e", f"inject={names}:error={error}:when={when}"]


def watch(calls: Sequence[str] = tuple(ERRORS)) -> list[str]:
    """strace's words for writing calls down."""
    return ["-y", "-s", "300", "-e", f"trace={','.join(calls)}"]


@contextmanager
def held(pid: int, log: Path, options: Sequence[str]) -> Iterator[None]:
    """A process and its threads under strace, which writes to ``log``."""
    errors = log.with_suffix(".err")
    with errors.open("wb") as said:
        strace = subprocess.Popen(["strace", "-f", "-qq", "-p", str(pid), "-o", str(log), *options], stderr=said)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _traced(pid):
            if strace.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"strace does not hold {pid}: {errors.read_text().strip()}")
            time.sleep(0.002)
        yield
    finally:
        strace.terminate()
        strace.wait()


def _traced(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks)


def struck(log: Path) -> int:
    """How many calls were replaced by an error."""
    return log.read_text(errors="replace").count("(INJECTED)")


def calls_on(folder: Path, log: Path) -> list[Call]:
    """The calls on anything in a folder, or on itself, that a log of `watch` holds, by name and path below it."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None or match[2] not in ERRORS:
            continue
        thread, name, rest = match.groups()
        paths = re.findall(rf'[<"]{re.escape(str(folder))}((?:/[^>"]*)?)[>"]', rest.rpartition(" = ")[0] or rest)
        if paths:
            found.setdefault((name, paths[-1].lstrip("/")), Counter())[thread] += 1
    return [Call(name, path, max(threads.values())) for (name, path), threads in sorted(found.items())]
