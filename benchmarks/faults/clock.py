"""The part `clock`: clocks that jump, days that come out of order, and two services where there should be one.

Virtual time for the walks (`tests.support.site`); real processes under libfaketime for jumps (`clock_jumps`), and real
services for the twins. Touches its own folder and loopback. What must hold after every round: files whole, names spent
once, mtimes in the order of publication, nothing before it is final, nothing pruned before its time.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import shutil
import signal
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import structlog

from server.errors import DataFolderBusy
from server.megaphone.exports import start_of
from server.sftp.keys import make_keys
from tests.support.program import Program, ServiceSite, Serving, day_before, port_of
from tests.support.site import Site, rows_of

from . import clock_jumps
from .result import Fault
from .stock import Stock
from .tools import warm

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from pathlib import Path

    from tests.support.program import Running

    from .result import Campaign

SHARES = (0.4, 0.25, 0.2, 0.15)  # of the time, row by row
FIRST_DAYS = (date(2028, 2, 26), date(2026, 12, 28), date(2027, 2, 26), date(2100, 2, 26), date(2026, 6, 28))
KEEP = timedelta(days=60)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def run(campaign: Campaign) -> list[Fault]:
    """The rows of this part."""
    make_keys(campaign.folder / "keys")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # of virtual time
    rows = [
        Fault("the clock: jumps by hours, days and months, leap days, ends of years, days out of order (virtual time)"),
        Fault("the clock: the local clock set back and forth under a running service that reads a bucket"),
        Fault("the clock: two services on one data folder, started at the same instant, the first killed in between"),
        Fault("the clock: two services on one source of exports, each with a folder of its own"),
    ]
    works, ended = [_walks, clock_jumps.jumps, _twins, _neighbours], 0.0
    for row, work, share in zip(rows, works, SHARES, strict=True):
        ended += share * campaign.seconds
        try:
            work(replace(campaign, seconds=ended), row)
        except Exception as error:
            traceback.print_exc()
            row.lost.append(f"it did not come to its end: {type(error).__name__}: {error}")
        row.lost = [" | ".join(sentence.split("\n")) for sentence in row.lost]
    return rows


# Walks through virtual time


@dataclass
class Walk:
    """One installation on its way through some days; the model of what it may do."""

    site: Site
    dice: random.Random
    first: date
    row: Fault
    delivered: dict[date, tuple[datetime, int]] = field(default_factory=dict)  # when, by the source; rows
    appeared: dict[str, datetime] = field(default_factory=dict)  # by the source's clock
    gone: set[str] = field(default_factory=set)
    rounds: int = 0

    async def go(self, days: int) -> None:
        """Deliver the days in any order, and have rounds with a clock that jumps."""
        now = start_of(self.first) + self.dice.random() * DAY
        plan = self._plan(days)
        end = start_of(self.first + timedelta(days=days)) + 2 * DAY + 12 * HOUR
        while now < end and not self.row.lost:
            while plan and plan[0][0] <= now:
                when, day, count = plan.pop(0)
                self.delivered[day] = (when, count)
                self.site.put(rows_of(day, count), when, day)
            self._jump()
            if self.dice.random() < 0.1:
                self.site.restart()
            outcome = await self.site.round(now)
            self.rounds += 1
            self._look(now, [str(name) for name in outcome.published])
            self.row.lost += [f"at {now}: {one.day} failed: {one.sentence}" for one in outcome.results if one.bad]
            if self.dice.random() < 0.3:
                self._prune(now)
            now += self.dice.choice([MINUTE, 10 * MINUTE, HOUR, 3 * HOUR]) * (0.5 + self.dice.random())
        self.site.skew = timedelta()
        await self.site.round(end)
        self._look(end, [])
        sent = self.site.standing_ids()
        wanted = Counter({f"{day}-{n}": 1 for day, (_, count) in self.delivered.items() for n in range(count)})
        self.row.expect(sent == wanted, f"{self.first}: sent {sent - wanted} too much and {wanted - sent} too little")
        await self._sixty_days_later(end)

    def _plan(self, days: int) -> list[tuple[datetime, date, int]]:
        plan = []
        for n in range(days):
            day = self.first + timedelta(days=n)
            first = start_of(day) + 25 * HOUR + self.dice.random() * 12 * HOUR
            plan.append((first, day, 5 + self.dice.randrange(20)))
            if self.dice.random() < 0.4:  # late rows, still in time
                plan.append((first + self.dice.random() * 18 * HOUR, day, plan[-1][2] + 1 + self.dice.randrange(9)))
        return sorted(plan)

    def _jump(self) -> None:
        throw = self.dice.random()
        if throw < 0.2:
            self.site.skew = timedelta()
        elif throw < 0.6:
            self.site.skew += (self.dice.random() - 0.5) * 12 * HOUR
        elif throw < 0.7:
            self.site.skew = self.dice.choice([-400, -61, -3, 3, 61, 400]) * DAY

    def _look(self, now: datetime, published: Iterable[str]) -> None:
        try:
            self.site.check_folder()
        except AssertionError as error:
            self.row.lost.append(f"at {now}: the folder is not in order: {error}")
        for name in published:
            self.row.expect(name not in self.appeared, f"at {now}: {name} was used a second time")
            self.appeared[name] = now
        logs = sorted(self.site.ledger.logs(), key=lambda log: (log.publication, log.name.number))
        for before, after in pairwise(logs):
            self.row.expect(
                after.mtime >= before.mtime + 1, f"at {now}: {after.name} is not younger than {before.name}"
            )
        for publication in self.site.ledger.publications():
            early = self.appeared[str(publication.logs[0].name)]
            final = start_of(publication.day) + DAY + timedelta(hours=4, minutes=30)
            self.row.expect(early >= final, f"{publication.day} was published at {early}, not final")
        for day, seen in self.site.days(now).items():
            by = (seen.deadlines.published.by, seen.deadlines.picked_up.by)
            self.row.expect(by == (start_of(day) + 2 * DAY, start_of(day) + 3 * DAY), f"{day} has deadlines {by}")

    def _prune(self, now: datetime) -> None:
        for name in map(str, self.site.prune(now + self.site.skew).logs):
            age = now - self.appeared[name]
            self.gone.add(name)
            self.row.expect(
                age > KEEP, f"at {now}, the local clock {self.site.skew} off, {name} was pruned after {age}"
            )

    async def _sixty_days_later(self, now: datetime) -> None:
        """Everything goes when it is old, by whatever clock it was published, and never comes back."""
        for name, log in [(str(log.name), log) for log in self.site.ledger.logs()]:
            published = next(p.published_at for p in self.site.ledger.publications() if p.id == log.publication)
            assert published is not None
            late = max(published, now) + KEEP + DAY  # a clock that ran ahead keeps its files longer
            await self.site.round(late)
            self.row.expect(name in map(str, self.site.prune(late).logs) or name not in self.site.files(),
                            f"{name} is still there at {late}")  # fmt: skip
        outcome = await self.site.round(now + 2 * KEEP)
        self.row.expect(not outcome.published, f"pruned days came back: {outcome.published}")


def _walks(campaign: Campaign, row: Fault) -> None:
    walks = 0
    while campaign.left > 0 or walks < len(FIRST_DAYS[:2]):
        dice = campaign.rng("clock", "walk", walks)
        first = FIRST_DAYS[walks % len(FIRST_DAYS)]
        folder = campaign.folder / f"walk-{walks}"
        walk = Walk(Site(folder, first=first), dice, first, row)
        try:
            asyncio.run(walk.go(4 if campaign.short else 8))
            asyncio.run(_half_past_four(folder / "first", dice, first, row))
        finally:
            walk.site.stop()
        shutil.rmtree(folder)
        walks += 1
        row.tried += walk.rounds
        if row.lost:
            break
    row.figures["walks"] = walks


async def _half_past_four(folder: Path, dice: random.Random, first: date, row: Fault) -> None:
    """A first start a second before a day is final, and a second one when it is."""
    site = Site(folder, first=first)
    site.skew = dice.choice([timedelta(), (dice.random() - 0.5) * 9 * HOUR])
    final = start_of(first) + DAY + timedelta(hours=4, minutes=30)
    site.put(rows_of(first, 5), final - 2 * HOUR, first)
    early = await site.round(final - timedelta(seconds=1))
    row.expect(not early.published, f"{first} was published at 04:29:59")
    site.restart()
    row.expect(len((await site.round(final)).published) == 1, f"{first} was not published at 04:30:00")
    site.stop()


# Two services


def _twins(campaign: Campaign, row: Fault) -> None:
    folder = campaign.folder / "twins"
    folder.mkdir()
    program, dice = Program(folder), campaign.rng("clock", "twins")
    stock = Stock(ServiceSite(folder, campaign.folder / "keys", program))
    stock.put(day_before(1), 20)
    try:
        holder = program.start("serve", "--config", stock.site.config)
        asyncio.run(port_of(holder))
        while (campaign.left > 0 or row.tried < 2) and not row.lost:
            if dice.random() < 0.6:
                holder.send(signal.SIGKILL)
                holder.wait()
                holder = _race(stock.site, dice.choice([2, 3]), row)
            else:
                _refused(program.start("serve", "--config", stock.site.config), row)
            row.tried += 1
        asyncio.run(Serving(holder, asyncio.run(port_of(holder))).sees(*stock.site.published()))
        _waits_for_round(stock.site, row)
        row.expect(holder.stop() == 0, f"the service that had the folder did not end in order: {holder.text[-300:]}")
        row.lost += stock.look() + stock.wrong()
    finally:
        program.end()


def _race(site: ServiceSite, runners: int, row: Fault) -> Running:
    """Some services started at the same instant: exactly one of them gets the folder."""
    racing = [site.program.start("serve", "--config", site.config) for _ in range(runners)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        alive = [one for one in racing if one.process.poll() is None]
        if len(alive) <= 1 and any(one.count("service started listening") for one in alive or racing):
            break
        time.sleep(0.05)
    winners = [one for one in racing if one.process.poll() is None]
    row.expect(len(winners) == 1, f"{len(winners)} of {runners} services hold one folder")
    for one in racing:
        if one not in winners:
            _refused(one, row)
    return winners[0]


def _refused(second: Running, row: Fault) -> None:
    code = second.wait()
    told = f"ended with {code}: {second.text[-300:]}"
    row.expect(code == DataFolderBusy.exit_code and "another pickup-point already serves" in second.text
               and "Traceback" not in second.text and not second.count("service started listening"),
               f"a second service {told}")  # fmt: skip


def _waits_for_round(site: ServiceSite, row: Fault) -> None:
    """`feed` by hand while somebody has a round: it waits, says so, and goes on."""
    with (site.folder / "data" / "round.lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        feed = site.program.start("feed", "--config", site.config)
        feed.said("waited for another round to end")
        row.expect(feed.process.poll() is None, "feed did not wait for the round of another")
    row.expect(feed.wait() == 0, f"feed ended badly after it had waited: {feed.text[-300:]}")


def _neighbours(campaign: Campaign, row: Fault) -> None:
    """Two installations that read one folder of exports, at once: the same names and bytes in both."""
    dice, program = campaign.rng("clock", "neighbours"), Program(campaign.folder)
    stocks = []
    for number in (1, 2):
        folder = campaign.folder / f"neighbour-{number}"
        folder.mkdir()
        stocks.append(Stock(ServiceSite(folder, campaign.folder / "keys", program)))
    delivery = stocks[0].site.exports
    # Keys are the publisher's: both have copies of one set. The one has no workers, the other two.
    stocks[1].site.configure(f'url = "{delivery}"', log='text = "safe"')
    text = stocks[1].site.config.read_text()
    stocks[1].site.config.write_text(text.replace("workers = 1", "workers = 2"))
    counts = {1: 0, 2: 0}
    while (campaign.left > 0 or row.tried < 3) and not row.lost:
        back = dice.choice([1, 2])
        counts[back] += dice.randrange(1, 200)
        stocks[0].put(day_before(back), counts[back])
        stocks[1].ids = stocks[0].ids
        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(warm.run, stock.site.config, ["feed"]) for stock in stocks]
            row.lost += [f"a round failed: {end.result().text[-300:]}" for end in ends if end.result().codes != (0,)]
        row.tried += 1
        one, other = ({name: data for name, (data, _) in stock.site.published().items()} for stock in stocks)
        row.expect(one == other, f"they differ: {sorted(one)} and {sorted(other)}")
        for stock in stocks:
            row.lost += stock.look() + stock.wrong()
    row.figures["log files compared"] = len(stocks[0].site.published())
