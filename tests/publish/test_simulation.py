"""Thirty days in virtual time, an hour a step, with everything that Megaphone, the network and the disk can do.

A model in this file knows what was delivered when; the feed does not. What it made of it is compared with the model.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import orjson
import pytest

from server.errors import SourceUnreachable
from server.megaphone.exports import FinalityRule, start_of
from tests.support.rows import row
from tests.support.site import DAY, Site

if TYPE_CHECKING:
    from collections.abc import Callable

DAYS = 30
HOUR = timedelta(hours=1)
RULE = FinalityRule()
GIVE_UP = timedelta(hours=47)
KINDS = (
    "plain", "plain", "plain", "late", "missing", "stale", "added", "added twice", "changed", "shrunk", "torn",
    "torn rewrite", "identical", "too late", "restless", "after give-up",
)  # fmt: skip


@dataclass(slots=True)
class Version:
    """One state of a day's object: from when on it is there, its rows, and whether its gzip is cut short."""

    at: datetime
    rows: list[bytes]
    torn: bool = False
    due: bool = False  # whether a round saw it final

    def ids(self, *, good: bool) -> set[str]:
        """The ids of the rows that become lines, or of those that are filtered."""
        rows = [orjson.loads(line) for line in self.rows if line != b"{"]
        return {fields["id"] for fields in rows if fields["blacklisted_ua"] is not good}


@dataclass(slots=True)
class Plan:
    """What Megaphone delivers of a day, and when the first round could have published it."""

    day: date
    kind: str
    versions: list[Version] = field(default_factory=list)
    first_chance: datetime | None = None

    def current(self, now: datetime) -> Version | None:
        """The version that is there now."""
        there = [version for version in self.versions if version.at <= now]
        return there[-1] if there else None


def planned(day: date, kind: str, rng: random.Random) -> Plan:
    """A day of one kind, with a few bots and a broken row in it."""
    start, number = start_of(day), 0

    def rows(count: int, **changes: object) -> list[bytes]:
        nonlocal number
        made = []
        for _ in range(count):
            number += 1
            second = rng.randrange(86400)
            made.append(
                row(
                    id=f"{day}/{number}",
                    created_at=f"{start + timedelta(seconds=second):%Y-%m-%dT%H:%M:%SZ}",
                    **changes,
                )
            )
        return made

    def after(hours: float) -> datetime:
        return start + timedelta(hours=hours, minutes=rng.randrange(50))

    base = [*rows(rng.randrange(20, 40)), *rows(2, blacklisted_ua=True), *[b"{"] * rng.randrange(2)]
    half, more = base[:10], [*base, *rows(5)]
    plan = Plan(day, kind, [Version(after(12), half)])
    add = plan.versions.append
    if kind == "missing":
        plan.versions.clear()
    elif kind == "stale":
        plan.versions[:] = [Version(start + timedelta(hours=23, minutes=rng.randrange(59)), base)]
    elif kind == "late":
        add(Version(after(rng.randrange(30, 46)), base))
    elif kind == "torn":
        add(Version(after(27), base, torn=True))
        add(Version(after(rng.randrange(32, 44)), more))
    elif kind == "restless":
        for hour in range(25, 50):
            add(Version(start + timedelta(hours=hour, minutes=40), base[: 10 + hour - 25] if hour < 49 else more))
    elif kind == "after give-up":
        plan.versions[:] = [Version(start + timedelta(hours=23, minutes=30), base), Version(after(50), more)]
    else:
        add(Version(after(27), base))
        later = rng.randrange(30, 65)
        if kind == "added":
            add(Version(after(later), more))
        elif kind == "added twice":
            add(Version(after(33), more))
            add(Version(after(60), [*more, *rows(3)]))
        elif kind == "changed":
            changed = [line.replace(b'"bytes_sent":67332401', b'"bytes_sent":1000') for line in more[:7]]
            add(Version(after(later), [*changed, *more[7:]]))
        elif kind == "shrunk":
            add(Version(after(later), more[6:]))
        elif kind == "torn rewrite":
            add(Version(after(32), more, torn=True))
            add(Version(after(40), more))
        elif kind == "identical":
            add(Version(after(later), list(base)))
        elif kind == "too late":
            add(Version(after(76), more))
    return plan


class Simulation:
    """The plans, the hours, the outages; and what was published, as it appeared."""

    def __init__(self, site: Site, seed: int) -> None:
        self.site = site
        self.rng = random.Random(seed)
        kinds = [*KINDS, *self.rng.choices(KINDS, k=DAYS - len(KINDS))]
        self.rng.shuffle(kinds)
        self.plans = {
            DAY + timedelta(days=n): planned(DAY + timedelta(days=n), kinds[n], self.rng) for n in range(DAYS)
        }
        self.outages = [
            (start, start + self.rng.randrange(2, 30) * HOUR)
            for start in (start_of(DAY) + timedelta(hours=self.rng.randrange(24 * DAYS)) for _ in range(5))
        ]
        self.published: list[tuple[str, int, list[str]]] = []  # name, mtime, ids
        self._shown: dict[date, Version] = {}

    async def run(self) -> None:
        """Every hour: the source moves, and a round; now and then retention, and a new start."""
        now = start_of(DAY) + timedelta(minutes=55)
        end = start_of(DAY) + timedelta(days=DAYS + 5)
        while now < end:
            up = not any(start <= now < stop for start, stop in self.outages)
            if up:
                self._deliver(now)
                self._observe(now)
            await self._round(now, up)
            if now.hour % 6 == 0:
                self.site.prune(now)
            if self.rng.random() < 0.02:
                self.site.restart()
            now += HOUR

    def _deliver(self, now: datetime) -> None:
        for day, plan in self.plans.items():
            version = plan.current(now)
            if version is not None and self._shown.get(day) is not version:
                self.site.put(version.rows, version.at, day, cut=9 if version.torn else 0)
                self._shown[day] = version

    def _observe(self, now: datetime) -> None:
        """Update the model for this hour."""
        for day, plan in self.plans.items():
            version = plan.current(now)
            if version is None or now.date() > day + timedelta(days=3):
                continue
            final = RULE.final_time(day) <= now and version.at >= start_of(day + timedelta(days=1))
            due = final and now - version.at >= RULE.settle
            version.due |= due
            given_up = now >= start_of(day) + GIVE_UP
            if plan.first_chance is None and not version.torn and (due or given_up):
                plan.first_chance = now

    async def _round(self, now: datetime, up: bool) -> None:
        self.site.source.away = not up
        if not up:
            with pytest.raises(SourceUnreachable):
                await self.site.round(now)
            return
        for name in (await self.site.round(now)).published:
            mtime = int((self.site.point.pickup_dir / str(name)).stat().st_mtime)
            self.published.append((str(name), mtime, self.site.ids(str(name))))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_thirty_days_lose_nothing_and_send_nothing_twice(make_site: Callable[..., Site], seed: int) -> None:
    """Every row of every final version goes out exactly once or is counted, and every day that can be is in time."""
    site = make_site(max_rejected=0.2, keep_days=6, max_rows_per_file=(0, 15, 0)[seed - 1])
    simulation = Simulation(site, seed)
    await simulation.run()
    names = [name for name, _, _ in simulation.published]
    assert len(names) == len(set(names)) > DAYS
    assert all(later > earlier for (_, earlier, _), (_, later, _) in pairwise(simulation.published))
    sent = Counter(i for _, _, ids in simulation.published for i in ids)
    assert set(sent.values()) == {1}
    for plan in simulation.plans.values():
        check_day(site, plan, set(sent))
    pruned = [log for log in site.ledger.logs() if log.state == "pruned"]
    assert len(pruned) > 20 and len(pruned) + len(site.files()) == len(names)
    site.check_folder()


def check_day(site: Site, plan: Plan, sent: set[str]) -> None:
    """One day's files against what was delivered."""
    publications, checks = site.ledger.publications(plan.day), site.ledger.late_checks(plan.day)
    if plan.first_chance is None:
        assert publications == []
        return
    assert publications[0].published_at == plan.first_chance, plan
    whole = [version for version in plan.versions if version.due and not version.torn]
    last = whole[-1] if whole else next(v for v in reversed(plan.versions) if not v.torn)
    unsent = checks[-1].unsent if checks else 0
    assert len(last.ids(good=True) - sent) == unsent, plan
    assert unsent == 0 or plan.versions[-1].at + RULE.settle >= start_of(plan.day + timedelta(days=3)) - HOUR
    tallies = [p.tally for p in publications] + [c.tally for c in checks]
    for tally in tallies:
        assert tally is not None and tally.balanced
    books = [t for t in tallies if t is not None and t.rows == len(last.rows)]
    assert books, plan
    assert books[-1].rejected.total() == last.rows.count(b"{")
    assert books[-1].filtered["blacklisted_ua"] == len(last.ids(good=False))
    assert books[-1].lines + books[-1].filtered["sent_before"] == len(last.ids(good=True))
