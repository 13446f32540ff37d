"""A feed that is killed in the midst: ``python -m tests.support.crash_feed SITE SCENARIO`` dies at every step.

Touches the folder SITE. It prepares an installation there, ``start``. For every step n of the scenario's round it makes
a copy ``SITE/n``, forks, and lets the child run the round until it kills itself (SIGKILL) at that step. The number of
steps is printed, last. It is no test by itself: `test_publishing_crash` looks at what is left.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.publish import publisher
from server.publish.publisher import Publisher
from server.storage import staging
from server.storage.folder import DataFolder
from server.storage.ledger import Ledger
from server.storage.staging import Staging
from tests.support.site import DAY, Site, at, rows_of
from tests.support.warm import WARM

if TYPE_CHECKING:
    from collections.abc import Callable

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
        asyncio.run(site.round(at(1, "05:35")))
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
            asyncio.run(site.round(at(1, "05:35")))
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


def run_until(folder: Path, scenario: str, step: int) -> int:
    """Run in a child; the steps it made, or 0 when it was killed."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            fuse = Fuse(step)
            site = Site(folder, **SCENARIOS[scenario])
            fuse.lay()
            asyncio.run(act(site, scenario))
            code = fuse.steps if fuse.steps < 255 else 254
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return 0
    assert os.WEXITSTATUS(status) != 255, "the round failed by itself"
    return os.WEXITSTATUS(status)


def main(folder: Path, scenario: str) -> None:
    """Die at every step, each time in a fresh copy."""
    WARM.begin()  # before a fork: the children share it
    site = Site(folder / "start", **SCENARIOS[scenario])
    prepare(site, scenario)
    site.stop()
    step = 0
    while True:
        step += 1
        shutil.copytree(folder / "start", folder / str(step))
        if survived := run_until(folder / str(step), scenario, step):
            shutil.rmtree(folder / str(step))
            assert survived == step - 1
            print(survived)
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
