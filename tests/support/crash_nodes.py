"""A node that is killed in the midst: ``python -m tests.support.crash_nodes FOLDER SCENARIO FIRST STRIDE``.

Node a dies by SIGKILL at every STRIDE-th of its steps from FIRST on: before or after each operation of the shared
store, each link and fsync, each write of the ledger. Then node b carries on, in an empty folder or in one of its own,
then a is started again. What is wrong then is printed, a line each; the last line is the number of deaths. Touches
FOLDER.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import Counter
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.apart import run_here
from tests.support.crash_feed import Fuse
from tests.support.site import DAY, Site, at, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNT = 60
SETTINGS: dict[str, Any] = {"max_rows_per_file": 25, "keep_days": 20}
SCENARIOS = ("begin", "first", "late", "prune", "take over")


def node(folder: Path, word: str, **changes: Any) -> Site:
    """A node of the installation in a folder."""
    shared = {"store": folder / "store", "exports": folder / "exports"}
    return Site(folder / word, **{**shared, **SETTINGS, **changes})


def prepare(folder: Path, scenario: str) -> None:
    """What has been before the round in which a dies."""
    a = node(folder, "a", **({"store": None} if scenario == "begin" else {}))
    a.put(rows_of(DAY, COUNT), at(1, "04:10"))
    if scenario != "first":
        run_here(a.round(at(1, "05:35")))
        a.put(rows_of(DAY, COUNT + 10), at(1, "09:00"))
    if scenario in ("prune", "take over"):
        b = node(folder, "b")
        run_here(b.round(at(1, "10:15")))
        b.stop()
    if scenario == "prune":
        run_here(a.round(at(1, "10:16")))
    a.stop()


def act(a: Site, scenario: str) -> None:
    """The round in which it dies."""
    if scenario == "prune":
        a.source.now = at(22, "00:00")
        a.prune(at(22, "00:00"))
    else:
        run_here(a.round(at(1, "10:20")))


def dies(folder: Path, scenario: str, step: int) -> bool:
    """Let a die at one step, in a child; False if it came to its end before."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            fuse = Fuse(step)
            fuse.lay()
            a = node(folder, "a")
            a.shelf.weather = lambda *_: fuse.step()
            act(a, scenario)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the round failed by itself"
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
    return os.WIFSIGNALED(status)


def carry_on(folder: Path, scenario: str) -> list[str]:
    """What is wrong once b, then a, had a round."""
    now = at(22, "00:10") if scenario == "prune" else at(1, "10:30")
    if scenario == "begin" and not any((folder / "store" / "sequence").glob("*")):
        run_once(node(folder, "a"), now)  # nobody else knows what it has published
    nodes = [node(folder, word) for word in "ba"]
    wrong = []
    try:
        for site in nodes:
            run_here(site.round(now))
            if scenario == "prune":
                site.source.now = now
                site.prune(now)
        run_here(nodes[0].round(now + timedelta(minutes=1)))
        shown = [
            {log.name: (log.size, log.sha256, log.mtime, log.state, log.superseded_by) for log in site.ledger.logs()}
            for site in nodes
        ]
        wrong += ["the nodes do not know the same"] * (shown[0] != shown[1])
        for site in nodes:
            try:
                site.check_folder()
            except AssertionError as error:
                wrong.append(f"{site.root.name} is not in order: {error}")
            wanted = Counter() if scenario == "prune" else Counter(f"{DAY}-{n}" for n in range(rows_in(scenario)))
            wrong += [f"{site.root.name} has other rows"] * (Counter(site.ids()) != wanted)
        mtimes = [log.mtime for log in nodes[0].ledger.logs()]
        wrong += ["mtimes do not rise"] * (len(set(mtimes)) != len(mtimes))
        blobs = len(list((folder / "store" / "blobs").glob("*")))
        standing = sum(log.state == "published" for log in nodes[0].ledger.logs())
        wrong += [f"{blobs} contents of {standing} logs"] * (blobs < standing)
    finally:
        for site in nodes:
            site.stop()
    return wrong


def run_once(site: Site, now: Any) -> None:
    """A round, and its end."""
    run_here(site.round(now))
    site.stop()


def rows_in(scenario: str) -> int:
    """The rows of the newest export."""
    return COUNT if scenario == "first" else COUNT + 10


def deaths(folder: Path, scenario: str, first: int, stride: int) -> Iterator[list[str]]:
    """Die at every ``stride``-th step, each time in a fresh copy; yield what is wrong then."""
    start = folder / "start"
    prepare(start, scenario)
    for step in count(first, stride):
        copy = folder / str(step)
        shutil.copytree(start, copy)
        if not dies(copy, scenario, step):
            return
        yield [f"{scenario}, killed at step {step}: {sentence}" for sentence in carry_on(copy, scenario)]
        shutil.rmtree(copy)


def main(folder: Path, scenario: str, first: int, stride: int) -> None:
    """Print what is wrong after each death, then how many there were."""
    died = 0
    for wrong in deaths(folder, scenario, first, stride):
        died += 1
        print(*wrong, sep="\n", end="\n" * bool(wrong))
    print(died)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
