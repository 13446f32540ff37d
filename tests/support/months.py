"""Months in virtual time, with everything that Megaphone, the network, the machine and the operator can do.

A model in this file knows what was delivered when; the feed does not. What it made of it is compared with the model: at
the end every row of every day was sent exactly once in a publication that stands, or somebody was told. Conversions run
in this process, so that a walk of a month takes seconds.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
from structlog.testing import capture_logs

from server.errors import SourceUnreachable, StoreError
from server.megaphone.exports import FinalityRule, start_of
from server.triton import Layout, LogFormat, expires
from tests.support.apart import conversions_here, one_thread
from tests.support.crash_feed import Fuse
from tests.support.rows import row, row_v2, rules
from tests.support.site import DAY, Site

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

HOUR = timedelta(hours=1)
ID_IN = re.compile(r"\d{4}-\d\d-\d\d/\d+")
DAY_IN = re.compile(r"\d{4}-\d\d-\d\d")
RULE = FinalityRule()
GIVE_UP = timedelta(hours=47)
KINDS = (
    "plain", "plain", "plain", "late", "missing", "stale", "added", "added twice", "changed", "shrunk", "torn",
    "torn rewrite", "identical", "too late", "restless", "after give-up",
)  # fmt: skip
WILD_KINDS = (*KINDS, "held", "held for good", "emptied", "restless to the end", "unfinal to the end")


@dataclass(slots=True)
class Version:
    """One state of a day's object: since when it is there, its rows, and whether its gzip is cut short."""

    at: datetime
    rows: list[bytes]
    torn: bool = False
    due: bool = False  # whether a round saw it final

    def ids(self, *, good: bool) -> set[str]:
        """The ids of the rows that become lines, or of those that are filtered."""
        rows = [orjson.loads(line) for line in self.rows if line != b"{"]
        return {fields.get("id") or fields["user_agent"] for fields in rows if fields["blacklisted_ua"] is not good}


@dataclass(slots=True)
class Plan:
    """What Megaphone delivers of a day, and when the first round could have published it."""

    day: date
    kind: str
    versions: list[Version] = field(default_factory=list)
    first_chance: datetime | None = None
    marked: datetime | None = None  # when Megaphone marks it as final, if it does

    def current(self, now: datetime) -> Version | None:
        """The version that is there now."""
        there = [version for version in self.versions if version.at <= now]
        return there[-1] if there else None


def planned(day: date, kind: str, rng: random.Random, *, v2: bool = False) -> Plan:
    """A day of one kind, with a few bots and a broken row in it.

    In a Delivery export V2 rows have no id; what tells them apart is the user agent. Some are not downloads.
    """
    start, number = start_of(day), 0

    def rows(count: int, **changes: object) -> list[bytes]:
        nonlocal number
        made = []
        for _ in range(count):
            number += 1
            second = rng.randrange(86400)
            created = f"{start + timedelta(seconds=second):%Y-%m-%dT%H:%M:%SZ}"
            if v2:
                made.append(row_v2(user_agent=f"{day}/{number}", created_at=created, **changes))
            else:
                made.append(row(id=f"{day}/{number}", created_at=created, **changes))
        return made

    def after(hours: float) -> datetime:
        return start + timedelta(hours=hours, minutes=rng.randrange(50))

    base = [*rows(rng.randrange(20, 40)), *rows(2, blacklisted_ua=True), *[b"{"] * rng.randrange(2)]
    if v2:
        base += rows(1, blacklisted_ua=True, delivery_type="play")
    half, more = base[:10], [*base, *rows(5)]
    plan = Plan(day, kind, [Version(after(12), half)])
    if v2 and rng.random() < 0.8:  # before its last version, after it, much later, or never
        plan.marked = after(rng.choice((26, 28, 36, 50, 70)))
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
    elif kind == "restless to the end":
        for hour in range(25, 71):
            add(Version(start + timedelta(hours=hour, minutes=40), [*base, *rows(hour - 25)]))
    elif kind == "unfinal to the end":
        plan.versions[:] = [Version(start + timedelta(hours=23, minutes=rng.randrange(30)), base)]
    elif kind.startswith("held"):
        add(Version(after(27), [*base, *[b"{"] * (len(base) * (2 if kind == "held for good" else 1) // 2)]))
        if kind == "held" and rng.random() < 0.5:
            add(Version(after(rng.randrange(30, 65)), more))
    elif kind == "emptied":
        plan.versions[:] = [Version(after(27), [])]
        if rng.random() < 0.5:
            add(Version(after(rng.randrange(30, 65)), more))
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


@dataclass(slots=True)
class Sent:
    """A log file as it appeared: when, its mtime, the ids of its rows."""

    name: str
    day: date
    at: datetime
    mtime: int
    ids: list[str]


class Walk:
    """One installation on its way through some days: its plans, its outages, and what appeared.

    A ``wild`` walk changes settings, loses the source, single exports and the ledger, and has an operator who accepts
    and sends again; with ``kills`` some rounds are forked, and killed in their midst.
    """

    def __init__(
        self,
        root: Path,
        dice: random.Random,
        days: int = 30,
        *,
        wild: bool = False,
        kills: bool = False,
        **settings: Any,
    ) -> None:
        self.site = Site(root, **({"keep_days": 15} if wild else {"keep_days": 6}), max_rejected=0.2, **settings)
        self.dice = dice
        self.wild = wild
        self.kills = 0.1 if kills else 0.0
        kinds = WILD_KINDS if wild else KINDS
        plans = [*kinds, *dice.choices(kinds, k=max(0, days - len(kinds)))]
        dice.shuffle(plans)
        every = [DAY + timedelta(days=n) for n in range(days)]
        v2 = settings.get("kind") == "delivery-v2"
        self.plans = {day: planned(day, kind, dice, v2=v2) for day, kind in zip(every, plans, strict=False)}
        self.end = start_of(DAY) + timedelta(days=days + 6)
        longest = 24 * min(8, 1 + days // 4) if wild else 30  # so that a short walk is not one outage
        self.outages = [
            (start, start + dice.randrange(2, longest) * HOUR)
            for start in (start_of(DAY) + timedelta(hours=dice.randrange(24 * days)) for _ in range(5))
        ]
        self.sent: list[Sent] = []
        self.superseded: set[str] = set()
        self.sent_again: set[date] = set()  # by an operator
        self.muddled: set[date] = set()  # sent again, and then the ledger was lost, which knew what stands
        self.told: dict[date, set[str]] = {}  # what was said of a day
        self.rounds = self.killed = self._steps = 0
        self.good_rounds: list[tuple[Site, datetime]] = []
        self.rows = 0  # that were sent, when the books were made up
        self.wrong: list[str] = []
        self._shown: dict[date, Version] = {}
        self._marked: set[date] = set()
        self._gone: dict[date, datetime] = {}  # until when a day's export is away
        self._loop = one_thread()

    def run(self) -> None:
        """Step by step until some days after the last one."""
        with conversions_here():
            now = start_of(DAY) + timedelta(minutes=55)
            while now < self.end and not self.wrong:
                self._step(now)
                now += HOUR * (self.dice.choice((1, 1, 2, 5)) if self.wild else 1)
            # In the end everything works for some days.
            self.site.source.away = False
            for _ in range(8 if self.wild else 0):
                now += 12 * HOUR
                self._deliver(now)
                self._round(now)
                self._look(now)
        self._loop.close()

    def _step(self, now: datetime) -> None:
        up = not any(start <= now < stop for start, stop in self.outages)
        if up:
            self._deliver(now)
            self._observe(now)
        self.site.source.away = not up
        if self.wild:
            self._mischief(now)
        self._round(now)
        self._look(now)
        if self._steps % 3 == 0:
            with capture_logs(), suppress(StoreError):
                self.site.prune(now)
        self._steps += 1
        if self.dice.random() < 0.02:
            self.site.restart(**(self._settings() if self.wild else {}))

    def _settings(self) -> dict[str, Any]:
        choose = self.dice.choice
        layout = choose((Layout(), Layout(header="comment"), Layout(LogFormat.W3C)))
        return {
            "max_rows_per_file": choose((0, 7, 15)), "prefix": choose(("MEGA", "NEW")), "rules": rules(layout),
            "look_back_days": choose((1, 2, 3, 5)), "pull_every": HOUR * choose((1, 6, 24)),
        }  # fmt: skip

    def _deliver(self, now: datetime) -> None:
        for day, plan in self.plans.items():
            if self._gone.get(day, now) > now:
                continue
            if self._gone.pop(day, None):
                self._shown.pop(day)
            version = plan.current(now)
            if version is not None and self._shown.get(day) is not version:
                self.site.put(version.rows, version.at, day, cut=9 if version.torn else 0)
                self._shown[day] = version
            if plan.marked is not None and plan.marked <= now and day not in self._marked:
                self.site.mark(plan.marked, day, self.dice.choice("-_"))
                self._marked.add(day)

    def _observe(self, now: datetime) -> None:
        """Update the model for this hour."""
        for day, plan in self.plans.items():
            version = plan.current(now)
            # A published day stays in the rounds until what changed was compared, outages included.
            if version is None or (now.date() > day + timedelta(days=3) and plan.first_chance is None):
                continue
            final = RULE.final_time(day) <= now and version.at >= start_of(day + timedelta(days=1))
            due = final and now - version.at >= RULE.settle
            version.due |= due
            given_up = now >= start_of(day) + GIVE_UP
            if plan.first_chance is None and not version.torn and (due or given_up):
                plan.first_chance = now

    def _mischief(self, now: datetime) -> None:
        if self.dice.random() < self.kills:
            self._killed_in(now)
        day = now.date() - timedelta(days=self.dice.randrange(4))
        if self.dice.random() < 0.05 and day in self._shown:
            self.site.put([], now, day).unlink()
            self._gone[day] = now + self.dice.randrange(1, 30) * HOUR
        throw = self.dice.random()
        if throw < 0.004:
            self._lose_the_ledger()
        elif throw < 0.03:
            day = now.date() - timedelta(days=self.dice.randrange(1, 4))
            self._round(now, day, **self.dice.choice(({"accept": True}, {"resend": "void"})))
            self._look(now)

    def _killed_in(self, now: datetime) -> None:
        """A round in a child that is gone at one of its steps."""
        at_step = self.dice.randrange(1, 60)
        self.site.stop()
        if (child := os.fork()) == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                fuse = Fuse(at_step)
                fuse.lay()
                self.site.start()
                if self.site.shared is not None:
                    self.site.shelf.weather = lambda *_: fuse.step()
                with one_thread() as runner:
                    runner.run(self.site.round(now))
            finally:
                os._exit(0)
        self.killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        self.site.start()

    def _lose_the_ledger(self) -> None:
        self.site.stop()
        for path in self.site.point.data_dir.glob("ledger.sqlite3*"):
            path.unlink()
        self.site.start()
        self.muddled |= self.sent_again

    def _round(self, now: datetime, *days: date, **words: Any) -> None:
        self.rounds += 1
        with capture_logs() as entries, suppress(SourceUnreachable, StoreError):
            self._loop.get_loop().run_until_complete(self.site.round(now, *days, **words))
            self.good_rounds += [] if days else [(self.site, now)]
        for entry in entries:
            event = entry["event"]
            for text in DAY_IN.findall(event):
                self.told.setdefault(date.fromisoformat(text), set()).add(event.partition(text)[0].strip())
            if event.startswith("feed passed over"):
                first, last = date.fromisoformat(event[-10:]), date.fromisoformat(entry["to"])
                for n in range((last - first).days + 1):
                    self.told.setdefault(first + timedelta(days=n), set()).add("feed passed over")

    def _look(self, now: datetime) -> None:
        """Take in what has appeared, and what holds after every round."""
        known = {sent.name for sent in self.sent}
        # Nothing is new of a log that was seen, unless an operator sends its day again.
        unchanged = not self.wild and known.issuperset(self.site.files())
        for log in () if unchanged else self.site.ledger.logs():
            name = str(log.name)
            if log.superseded_by is not None and name not in self.superseded:
                self.superseded.add(name)
                self.sent_again.add(log.name.day)
            path = self.site.point.pickup_dir / name
            if name not in known and path.exists():
                found = Sent(name, log.name.day, now, int(path.stat().st_mtime), list(self._ids(name)))
                self.wrong += [f"at {now}: {name} is not younger than its elders"] * (
                    bool(self.sent) and found.mtime <= max(sent.mtime for sent in self.sent)
                    and log.publication != 0 and not self._together(found)
                )  # fmt: skip
                self.sent.append(found)
        if self.rounds % 20 == 0 or self.wrong:
            try:
                self.site.check_folder() if not self.wild else self._check_folder()
            except AssertionError as error:
                self.wrong.append(f"at {now}: the folder is not in order: {error}")

    def _together(self, found: Sent) -> bool:
        """Whether a file appeared at one look with the one before it: a listing has no order of time."""
        return self.sent[-1].at == found.at

    def _check_folder(self) -> None:
        files, published = self.site.files(), [str(e.name) for e in self.site.ledger.logs() if e.state == "published"]
        assert files == sorted(published) == self.site.served()
        assert not list(self.site.point.staging_dir.iterdir())

    def _ids(self, name: str) -> Iterator[str]:
        for line in self.site.lines(name):
            match = ID_IN.search(line)
            if match is not None and not line.startswith("#"):
                yield match[0]

    # The books at the end

    def accounts(self) -> list[str]:
        """Return a sentence for every row that was sent twice, or neither sent nor reported."""
        found, self.rows = list(self.wrong), 0
        records = self.site.ledger.days()
        for day, plan in self.plans.items():
            files = [sent for sent in self.sent if sent.day == day]
            standing = files if day in self.muddled else [sent for sent in files if sent.name not in self.superseded]
            counts = Counter(i for sent in standing for i in sent.ids)
            self.rows += len(counts)
            twice = [i for i, count in counts.items() if count > 1]
            if twice and day not in self.muddled:
                found.append(f"{day} ({plan.kind}): {len(twice)} rows were sent twice: {sorted(twice)[:3]}")
            lost = self._lost(plan, set(counts), records.get(day))
            if lost:
                found.append(f"{day} ({plan.kind}): {lost}; told: {sorted(self.told.get(day, ()))}; files: {files}")
        return found

    def _lost(self, plan: Plan, sent: set[str], record: Any) -> str:
        """Return what of the day's last version was neither sent nor reported, or ''."""
        told = self.told.get(plan.day, set())
        if not plan.versions or record is None:  # never there; or settled before its ledger was lost
            return ""
        last, out_of_reach = plan.versions[-1], start_of(plan.day) + timedelta(days=self.site.settings["keep_days"] - 1)
        if not any(site is self.site and last.at <= at < out_of_reach for site, at in self.good_rounds):
            return ""
        published = any(found.day == plan.day for found in self.sent)
        if not published:
            version = record.export.etag if record.export is not None else ""
            judged = [judged.etag for judged in (record.hold, record.failure) if judged is not None]
            if not version or version in judged or "feed passed over" in told:
                return ""
            return f"it was not published, and nobody was told (it is {record.seen})"
        missing = last.ids(good=True) - sent
        checks = self.site.ledger.late_checks(plan.day)
        unsent = checks[-1].unsent if checks else 0
        if record.withheld:
            return f"{record.withheld} rows are withheld for ever"
        export = record.export
        if export is None or (export.etag, export.last_modified) == (record.checked_etag, last.at):
            return "" if len(missing) in (0, unsent) else f"{len(missing)} rows are missing, {unsent} were told"
        over = record.checked_at is not None and record.checked_at >= expires(plan.day)
        said = {"feed ignored late rows of", "feed failed", "feed lost the rows withheld from"}
        if over or last.torn or told & said or not missing:
            return ""
        return f"{len(missing)} rows of a version that was never compared are missing"
