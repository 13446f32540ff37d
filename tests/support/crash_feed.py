"""A feed that is killed in the midst: what it leaves on disk, whichever of its steps was the last.

`left_at_every_step` runs a scenario's round once and copies the folder at every step. That is what a kill leaves there:
nothing of a process outlives it but what it has written. `killed` is a process that kills itself (SIGKILL) at one step,
for comparison. Both touch the folder they are given. A real kill between any two steps is `benchmarks/faults`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from server.publish import publisher
from server.publish.publisher import Publisher
from server.storage import staging
from server.storage.folder import DataFolder
from server.storage.ledger import Ledger
from server.storage.staging import Staging
from tests.support.apart import run_here
from tests.support.site import DAY, Site, at, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Before and after each of these the process may die.
STEPS: tuple[tuple[Any, str], ...] = (
    (publisher, "convert_apart"),
    (Staging, "keep_rejects"),
    (staging, "_check"),
    (staging, "discard"),
    (Staging, "discard"),
    (os, "link"),
    (os, "fsync"),
    (Publisher, "adopt"),
    (DataFolder, "add_served"),
    (Ledger, "intend"),
    (Ledger, "published"),
    (Ledger, "finish_interrupted"),
    (Ledger, "adopt"),
    (Ledger, "late_checked"),
)

SCENARIOS: dict[str, dict[str, Any]] = {
    "one": {},
    "several": {"max_rows_per_file": 40},
    "late": {"max_rows_per_file": 4},
    "resend": {"max_rows_per_file": 40},
    "unfinal": {"max_rows_per_file": 40},
    "adopt": {},
    "again": {"max_rows_per_file": 40},
}
COUNT = 100


def prepare(site: Site, scenario: str) -> None:
    """What the installation has done before the round in which it dies."""
    rejected = [b"{"]
    if scenario == "unfinal":
        site.put([*rows_of(DAY, COUNT), *rejected], at(0, "23:30"))
        return
    site.put([*rows_of(DAY, COUNT), *rejected], at(1, "04:10"))
    if scenario == "again":
        kill_after_a_link(site)
    if scenario in ("late", "resend", "adopt"):
        run_here(site.round(at(1, "05:35")))
        site.put([*rows_of(DAY, COUNT + 10), *rejected], at(1, "09:00"))
    if scenario == "adopt":
        for file in site.point.data_dir.glob("ledger.sqlite3*"):
            file.unlink()


def kill_after_a_link(site: Site) -> None:
    """Leave what a crash leaves that came when the first of three files had been linked."""
    link = os.link

    def link_and_die(*args: Any, **kwargs: Any) -> None:
        link(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    site.stop()
    if (child := os.fork()) == 0:
        try:
            os.link = link_and_die  # a stand-in for this process only
            site.start()
            run_here(site.round(at(1, "05:35")))
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    site.start()


async def act(site: Site, scenario: str) -> None:
    """The round in which it dies."""
    if scenario == "unfinal":
        await site.round(at(1, "23:00"))
    elif scenario == "late":
        await site.round(at(2, "23:55"))
    elif scenario == "resend":
        await site.round(at(4, "10:05"), DAY, resend="void")
    else:
        await site.round(at(1, "10:05"))


class Fuse:
    """Counts the steps; at the one that was given the process is gone, without a word to anybody."""

    def __init__(self, at_step: int) -> None:
        self.steps = 0
        self._at_step = at_step

    def step(self) -> None:
        """One more; perhaps the last."""
        self.steps += 1
        if self.steps == self._at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same work with a step before and after it."""
        if asyncio.iscoroutinefunction(work):

            @wraps(work)
            async def with_steps(*args: Any, **kwargs: Any) -> Any:
                self.step()
                result = await work(*args, **kwargs)
                self.step()
                return result

            return with_steps

        @wraps(work)
        def stepped(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = work(*args, **kwargs)
            self.step()
            return result

        return stepped

    def lay(self) -> None:
        """Into everything that is a step; into a store besides where there is one, see `FolderShelf.weather`."""
        for owner, attribute in STEPS:
            setattr(owner, attribute, self.around(getattr(owner, attribute)))

    @contextmanager
    def laid(self) -> Iterator[None]:
        """Lie in everything that is a step until the block ends."""
        bare = [(owner, attribute, getattr(owner, attribute)) for owner, attribute in STEPS]
        self.lay()
        try:
            yield
        finally:
            for owner, attribute, work in bare:
                setattr(owner, attribute, work)


class Left(NamedTuple):
    """A copy of a folder, and the steps at which it was so: where nothing was written in between, there are several."""

    folder: Path
    steps: list[int]


class Copying(Fuse):
    """Copies the folder at every step at which it is another one than at the step before."""

    def __init__(self, folder: Path) -> None:
        super().__init__(0)
        self._folder = folder
        self._link = os.link  # without steps
        self._last: dict[str, Any] = {}
        self.left: list[Left] = []

    def step(self) -> None:
        """One more."""
        super().step()
        found = contents(self._folder)
        if found != self._last:
            copy = self._folder.with_name(str(self.steps))
            self._copy(copy)
            self._last = found
            self.left.append(Left(copy, []))
        self.left[-1].steps.append(self.steps)

    def _copy(self, into: Path) -> None:
        """Copy the folder; files with several names have them there too."""
        made: dict[int, str] = {}

        def copy(source: str, target: str) -> None:
            number = Path(source).stat().st_ino
            if number in made:
                self._link(made[number], target)
            else:
                shutil.copy2(source, target)
            made.setdefault(number, target)

        shutil.copytree(self._folder, into, copy_function=copy)


def contents(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is in a folder, by name: mode; of a file also which other name it has, bytes and mtime.

    The ledger's shared memory is left out: whoever opens a ledger alone makes it anew.
    """
    files: dict[int, str] = {}
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name, status = str(path.relative_to(folder)), path.lstat()
        if path.is_file() and not name.endswith("-shm"):
            same = files.setdefault(status.st_ino, name)
            found[name] = status.st_mode, same, path.read_bytes(), status.st_mtime_ns
        elif path.is_dir():
            found[name] = (status.st_mode,)
    return found


def left_at_every_step(folder: Path, scenario: str) -> list[Left]:
    """Prepare an installation in ``folder/start``, run the scenario's round in a copy of it, and return what was left.

    Ends with what is left when no step is the last.
    """
    site = Site(folder / "start", **SCENARIOS[scenario])
    prepare(site, scenario)
    site.stop()
    shutil.copytree(folder / "start", folder / "run")
    copying = Copying(folder / "run")
    site = Site(folder / "run", **SCENARIOS[scenario])
    with copying.laid():
        run_here(act(site, scenario))
    site.stop()
    return copying.left


def killed(folder: Path, scenario: str, step: int) -> Path:
    """Let a process kill itself at a step of the same round; return its folder."""
    copy = folder / f"killed at {step}"
    shutil.copytree(folder / "start", copy)
    if (child := os.fork()) == 0:
        try:
            fuse = Fuse(step)
            site = Site(copy, **SCENARIOS[scenario])
            fuse.lay()
            run_here(act(site, scenario))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return copy
