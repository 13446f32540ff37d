"""The scenes of the campaign: an installation, made up to the instant before one round, and what must come of it.

Makes and copies folders; the commands run in a forked child of this process, from the program that it has loaded
already, so that a try costs what the round costs. The ids that must be published at the end are known from the start.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import signal
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import TYPE_CHECKING

import server.cli.feed  # noqa: F401  # loaded before the fork
from server.cli.app import run
from server.publish.clock import believe
from server.sftp.keys import make_keys
from tests.support.program import Program, ServiceSite, day_before, export_name
from tests.support.site import Site, rows_of

from .checks import standing
from .tools.tracing import traced

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date
    from pathlib import Path

COUNT = 100
GROWTH = 25
BROKEN = b"{"
PATIENCE = 60  # seconds that a command may take

SPLIT = "max_rows_per_file = 40"


@dataclass(slots=True)
class Scene:
    """One round and what it is given. ``then`` is what follows it, by itself, when it was interrupted."""

    name: str
    folder: Path
    act: tuple[str, ...] = ("feed",)
    then: tuple[tuple[str, ...], ...] = (("feed",),)
    expected: dict[date, list[str]] = field(default_factory=dict)
    goes: frozenset[str] = frozenset()  # names that the round removes
    grows: frozenset[date] = field(default_factory=lambda: frozenset([day_before(1)]))  # days that may get late rows

    def copy(self, to: Path, *, data: bool = True) -> Path:
        """A fresh copy of the installation; its folder. The exports are the same files, as versions go by inode."""
        shutil.copytree(
            self.folder, to, ignore=lambda at, _: ["exports", *([] if data else ["data"])] * (at == str(self.folder))
        )
        shutil.copytree(self.folder / "exports", to / "exports", copy_function=os.link)
        return to

    def grow(self, folder: Path) -> dict[date, list[str]]:
        """Late rows come in, in a copy; the ids that must be published then."""
        expected = dict(self.expected)
        for day in expected.keys() & self.grows:
            count = len(expected[day]) + GROWTH
            part = folder / "part"
            part.write_bytes(_export(day, count))
            part.rename(folder / "exports" / export_name(day))
            expected[day] = _ids(day, count)
        return expected


def command(folder: Path, *arguments: str) -> int:
    """Run a command of ``pickup-point`` on an installation, here; its exit code. What it says goes to ``said``."""
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    signal.alarm(PATIENCE)
    return run([*arguments, "--config", str(folder / "config.toml")])


def carry_on(scene: Scene, folder: Path, expected: dict[date, list[str]]) -> list[str]:
    """The rounds after the next start, without a fault; what is wrong with them, or with what they left."""
    for arguments in scene.then:
        if (code := in_child(partial(command, folder, *arguments))) != 0:
            said = (folder / "said").read_text().splitlines() if (folder / "said").exists() else []
            return [f"the next {' '.join(arguments)} ended with {code}: {' / '.join(said[-3:])}"]
    try:
        return standing(folder / "data", expected)
    except Exception as error:  # whatever is in the way of looking is in a person's way, too
        return [f"the data folder cannot be read: {error!r}"]


def in_child(work: Callable[[], int]) -> int:
    """Run something in a forked child; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def make_scenes(folder: Path) -> list[Scene]:
    """All scenes, each in a folder of its own below this one."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = folder / "keys"
    keys.mkdir()
    make_keys(keys)
    return [make(_Maker(folder, keys)) for make in (_days, _files, _late, _resend, _unfinal, _adopt, _again, _prune)]


@dataclass(frozen=True, slots=True)
class _Maker:
    folder: Path
    keys: Path

    def site(self, name: str, log: str = "", more: str = "") -> ServiceSite:
        (self.folder / name).mkdir()
        site = ServiceSite(self.folder / name, self.keys, Program(self.folder / name))
        site.configure(log=log, more=more)
        return site


def put(site: ServiceSite, day: date, count: int) -> list[str]:
    """Put a day of this many rows, and a broken one; the ids."""
    site.put(day, _export(day, count))
    return _ids(day, count)


def _export(day: date, count: int) -> bytes:
    return gzip.compress(b"".join(row + b"\n" for row in [*rows_of(day, count), BROKEN]), mtime=0)


def _ids(day: date, count: int) -> list[str]:
    return [f"{day}-{n}" for n in range(count)]


def _round(site: ServiceSite) -> None:
    code = in_child(lambda: command(site.folder, "feed"))
    assert code == 0, (site.folder / "said").read_text()


def _days(maker: _Maker) -> Scene:
    site = maker.site("days")
    expected = {day_before(back): put(site, day_before(back), COUNT) for back in (2, 1)}
    return Scene("several days, a new installation", site.folder, expected=expected)


def _files(maker: _Maker) -> Scene:
    site = maker.site("files", SPLIT)
    return Scene("several files a day", site.folder, expected={day_before(1): put(site, day_before(1), COUNT)})


def _late(maker: _Maker) -> Scene:
    site = maker.site("late", "max_rows_per_file = 30")
    put(site, day_before(1), COUNT)
    _round(site)
    return Scene("late rows", site.folder, expected={day_before(1): put(site, day_before(1), COUNT + 40)})


def _resend(maker: _Maker) -> Scene:
    site, day = maker.site("resend", SPLIT), day_before(1)
    put(site, day, COUNT)
    _round(site)
    act = ("feed", "--day", str(day), "--resend", "void")
    return Scene("a day sent again", site.folder, act, expected={day: put(site, day, COUNT + 10)})


def _unfinal(maker: _Maker) -> Scene:
    """Last modified before the day's end, and given up waiting for: rows of its last two hours are withheld."""
    site, day = maker.site("unfinal", SPLIT), day_before(1)
    site.config.write_text(site.config.read_text().replace('give_up_waiting = "48h"', 'give_up_waiting = "24h"'))
    put(site, day, COUNT)
    modified = datetime.combine(day, time(2, 35), UTC).timestamp()
    os.utime(site.exports / export_name(day), (modified, modified))
    early = [f"{day}-{n}" for n in range(COUNT) if n < 35]  # row n was created at minute n
    return Scene("a day that never became final", site.folder, expected={day: early}, grows=frozenset())


def _adopt(maker: _Maker) -> Scene:
    site, day = maker.site("adopt", SPLIT), day_before(1)
    put(site, day, COUNT)
    _round(site)
    for file in (site.folder / "data").glob("ledger.sqlite3*"):
        file.unlink()
    return Scene("adoption, the ledger lost", site.folder, expected={day: put(site, day, COUNT + 10)})


def _again(maker: _Maker) -> Scene:
    """What a crash leaves that came when the first of three files had been linked."""
    site, day = maker.site("again", SPLIT), day_before(1)
    expected = {day: put(site, day, COUNT)}
    with_copy = site.folder.with_name("again-dry")
    shutil.copytree(site.folder, with_copy)
    calls = traced(lambda: command(with_copy, "feed"), with_copy / "data").calls
    link = next(index for index, call in enumerate(calls) if "/pickup/" in (call.to or call.path))
    shutil.rmtree(with_copy)
    died = traced(lambda: command(site.folder, "feed"), site.folder / "data", kill_at=link, after=True)
    assert died.code == -signal.SIGKILL
    return Scene("recovery, killed again", site.folder, expected=expected)


def _prune(maker: _Maker) -> Scene:
    """Two days of long ago, published in time, are due to go."""
    site = maker.site("prune", SPLIT)
    old = [day_before(back) for back in (71, 70)]

    def past() -> int:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        it = Site(site.folder, first=old[0], prefix="TEST", max_rows_per_file=40)
        for day in old:
            at = datetime.combine(day + timedelta(days=1), time(6), UTC)
            path = it.put([*rows_of(day, COUNT), BROKEN], at - timedelta(hours=2), day)
            asyncio.run(it.round(at))
            path.unlink()
        believe(it.ledger, datetime.now(UTC))  # as if it had run all the while: a leap of the clock would stop pruning
        it.stop()
        return 0

    assert in_child(past) == 0
    goes = [path.name for path in site.pickup.iterdir()]
    assert len(goes) == 6
    then = (("prune",), ("feed",))
    expected = {day_before(1): put(site, day_before(1), COUNT)}
    return Scene("retention", site.folder, ("prune",), then, expected, frozenset(goes))
