"""The part `disk`: a disk that says no, at every call that pickup-point makes on its data folder, and one that is full.

Errors in place of calls (strace) and files that may not grow (RLIMIT_FSIZE) for `feed` and `prune` run by hand; a
running service has `disk_served`. Touches its own folder. What must hold: one sentence, no traceback, an exit code; and
after one round without the fault nothing is lost, doubled, torn or left over.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from server.sftp.keys import make_keys
from tests.support.program import Program, ServiceSite, day_before

from . import disk_served
from .checks import Seen
from .result import Fault
from .stock import Stock, untold
from .tools import injection, volumes, warm

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .result import Campaign

SHARES = (0.3, 0.07, 0.35, 0.16, 0.12)  # of the time, row by row
MOST_TIMES = 12  # of one call on one path: more are drawn by lot
AT_ONCE = 2
ROWS = 100


def run(campaign: Campaign) -> list[Fault]:
    """The rows of this part."""
    no_mounts = volumes.own_mounts()
    make_keys(campaign.folder / "keys")
    rows = [
        Fault("the disk: ENOSPC, EDQUOT, EIO, EROFS, ENOLCK at every call of `feed` and `prune` on the data folder"),
        Fault("the disk: files that stop growing at any byte (short writes, then EFBIG)"),
        Fault(
            "the disk: the same errors under a running service, lasting for several rounds, then gone; and at its start"
        ),
        Fault("the disk: a file system that fills up at any page or block (tmpfs, ext4), then has room again"),
        Fault("the disk: a file system that is remounted read-only, or unmounted, and comes back"),
    ]
    works = [_by_hand, _short_writes, disk_served.errors, disk_served.full, disk_served.away]
    ended = 0.0
    for row, work, share in zip(rows, works, SHARES, strict=True):
        ended += share * campaign.seconds
        if work in (_by_hand, disk_served.errors) and injection.ABSENT:
            row.figures["not run"] = injection.ABSENT
        elif work in (disk_served.full, disk_served.away) and no_mounts:
            row.figures["not run"] = no_mounts
        else:
            bounded = replace(campaign, seconds=ended)
            try:
                work(bounded, row)
            except Exception as error:
                traceback.print_exc()
                row.lost.append(f"it did not come to its end: {type(error).__name__}: {error}".splitlines()[0])
        row.lost = [" | ".join(sentence.split("\n")) for sentence in row.lost]
    return rows


# Errors in place of calls


@dataclass(frozen=True, slots=True)
class Try:
    """One error, at one call."""

    call: injection.Call
    time: int
    error: str
    lasting: bool

    def __str__(self) -> str:
        when = f"from the {self.time}. on" if self.lasting else f"the {self.time}. time"
        return f"{self.error} for {self.call.name} of {self.call.path or 'the folder'}, {when}"

    def words(self, data_dir: Path) -> list[str]:
        """For strace."""
        when = f"{self.time}{'+' if self.lasting else ''}"
        return injection.inject(self.error, [self.call.name], [data_dir / self.call.path], when)


def tries(calls: list[injection.Call], dice: random.Random) -> Iterator[Try]:
    """Every kind of call once, then every call on every path once, then every time of it with every error."""
    every: list[Try] = []
    for call in calls:
        times = range(1, call.times + 1)
        for which in times if call.times <= MOST_TIMES else sorted(dice.sample(times, MOST_TIMES)):
            # SQLite takes every lock that is refused for one that is held, and waits for half a minute, each time.
            every += [
                Try(call, which, error, on)
                for error in injection.ERRORS[call.name]
                for on in ((False,) if error == "ENOLCK" else (False, True))
            ]
    dice.shuffle(every)
    kinds = {one.call.name: one for one in every}
    paths = {one.call: one for one in every if one not in kinds.values()}
    first = [*kinds.values(), *paths.values()]
    yield from first
    done = set(first)
    yield from (one for one in every if one not in done)


def template(folder: Path, keys: Path, rows: int = ROWS, per_file: int = 40) -> Stock:
    """An installation before a round that does everything: a new day in three files with rejects, late rows of
    another, and a file and rejects that are to be pruned."""
    folder.mkdir()
    stock = Stock(ServiceSite(folder, keys, Program(folder)), bulky=rows == ROWS)
    site, old = stock.site, day_before(5)
    stock.put(old, 150, broken=1)
    stock.put(day_before(2), 30)
    for command in (["feed", "--day", str(old)], ["feed"]):
        ended = warm.run(site.config, command)
        if ended.codes != (0,):
            raise OSError(f"no template: {ended.text}")
    for rejects in (site.folder / "data" / "rejects").iterdir():
        os.utime(rejects, (0, 0))
    with closing(sqlite3.connect(site.folder / "data" / "ledger.sqlite3")) as ledger, ledger:
        ledger.execute("UPDATE publication SET published_at = '2026-01-01T06:00:00+00:00' WHERE day = ?", (str(old),))
    site.configure(log=f'max_rows_per_file = {per_file}\nip = "truncated"', more="[retention]\nkeep_days = 4")
    stock.put(day_before(2), 45)
    stock.put(day_before(1), rows, broken=1)
    del stock.ids[old]
    return stock


def copy(stock: Stock, folder: Path) -> Stock:
    """The template again, elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(stock.site.folder, folder)
    site = object.__new__(ServiceSite)  # without making anything
    site.folder, site.program, site.config = folder, stock.site.program, folder / "config.toml"
    site.exports, site.pickup = folder / "exports", folder / "data" / "pickup"
    made = Stock(site, dict(stock.ids), Seen())
    made.look()
    return made


def judge(stock: Stock, ended: warm.Ended) -> list[str]:
    """What is wrong after a try, and after a round without the fault."""
    lost = untold(ended.text, ended.codes) + stock.look()
    if ended.codes == (0, 0):
        lost += [f"told as done: {wrong}" for wrong in stock.wrong() if "were lost" in wrong]
    again = warm.run(stock.site.config, ["feed"], ["prune"])
    if again.codes != (0, 0):
        lost.append(f"the round without the fault ended with {again.codes}: {again.text[-300:]}")
    return lost + untold(again.text, again.codes) + stock.look() + stock.wrong()


def _by_hand(campaign: Campaign, row: Fault) -> None:
    whole = template(campaign.folder / "template", campaign.folder / "keys")
    traced = copy(whole, campaign.folder / "traced")
    log = campaign.folder / "calls.log"
    ended = _traced(traced, log, injection.watch())
    if ended.codes != (0, 0) or (wrong := traced.look() + traced.wrong()):
        row.lost.append(f"without any fault: {ended.text[-300:]} {wrong}")
        return
    calls = injection.calls_on(traced.site.folder / "data", log)
    planned = iter([*tries(calls, campaign.rng("disk", "calls"))])  # threads may share a list, not a generator
    kinds = len({call.name for call in calls})
    places: Counter[tuple[str, str]] = Counter()

    def work(number: int) -> None:
        log = campaign.folder / f"strace-{number}.log"
        while (campaign.left > 0 or row.tried < kinds) and (one := next(planned, None)) is not None:
            stock = copy(whole, campaign.folder / f"hand-{number}")
            words = one.words(stock.site.folder / "data")
            ended = _traced(stock, log, words)
            if not injection.struck(log):  # the calls were spread over other threads this time
                continue
            row.tried += 1
            places[one.call.name, one.call.path] += 1
            row.lost += [f"{one}: {wrong}" for wrong in judge(stock, ended)]

    _in_threads(work)
    row.figures["calls tried"] = f"{len(places)} of {len({(call.name, call.path) for call in calls})}"


def _short_writes(campaign: Campaign, row: Fault) -> None:
    # With a keyed hash in every line a log file is larger than the export it comes from, which would be cut first.
    whole = template(campaign.folder / "template-2", campaign.folder / "keys", rows=9000, per_file=8000)
    refused = Counter[bool]()
    unhurt = copy(whole, campaign.folder / "unhurt")
    warm.run(unhurt.site.config, ["feed"])
    sizes = [len(data) for data, _ in unhurt.site.published().values() if len(data) > 200_000]

    def work(number: int) -> None:
        dice = campaign.rng("disk", "short writes", number)
        for turn in count(number):
            if campaign.left == 0 and turn >= number + 2:
                break
            # The first befall a log file alone, and the very first its last write; the others the ledger, too.
            near = dice.choice(sizes) - dice.randrange(1, 10)
            most = [near, dice.randrange(near), dice.randrange(6000), dice.randrange(250_000)][turn % 4]
            stock = copy(whole, campaign.folder / f"short-{number}")
            ended = warm.run(stock.site.config, ["feed"], ["prune"], most=most)
            row.tried += 1
            refused[any(ended.codes)] += 1
            row.lost += [f"files of at most {most} bytes: {wrong}" for wrong in judge(stock, ended)]

    _in_threads(work)
    row.figures["rounds refused"] = refused[True]


def _traced(stock: Stock, log: Path, words: list[str]) -> warm.Ended:
    return warm.run(stock.site.config, ["feed"], ["prune"], hold=lambda pid: injection.held(pid, log, words))


def _in_threads(work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(work, number) for number in range(AT_ONCE)]:
            done.result()
