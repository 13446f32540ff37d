"""A running service on a disk that says no, is full, read-only or away: it goes on serving, tells, and carries on.

Real `serve`, real clients, errors by strace, file systems of `tools.volumes`. While the fault lasts a client fetches
what is published and compares it; `check` must say something new, or miss the rounds; when the fault is gone the
service must publish by itself what was delivered meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from server.config import load_config
from server.status.snapshot import Snapshot
from server.storage.ledger import Ledger
from tests.support.program import Program, ServiceSite, Serving, command, day_before, port_of

from .stock import Stock, untold
from .tools import injection, volumes, warm

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from .result import Campaign, Fault

FELT = 5.0  # seconds within which a fault must be felt: a round a second
BACK = 150.0  # seconds within which it must be over, once the fault is: tries come ever more slowly
TROUBLE = r"feed failed|feed gave up|retention gave up|service could not|alarms could not"
# What is replaced together, as one fault would: (the calls, the place that it befalls).
FAULTS = (
    (("openat",), "staging"), (("openat",), "rejects"), (("write", "pwrite64"), "staging"),
    (("write", "pwrite64", "ftruncate"), "ledger"), (("fsync", "fdatasync"), "staging"),
    (("fsync", "fdatasync"), "pickup"), (("fsync", "fdatasync"), "rejects"), (("fsync", "fdatasync"), "ledger"),
    (("linkat",), "pickup"), (("unlink",), "staging"), (("rename",), "rejects"), (("utimensat",), "staging"),
    (("getdents64",), "pickup"), (("getdents64",), "staging"), (("read", "pread64"), "ledger"),
    (("newfstatat",), "pickup"), (("openat",), "round.lock"),
    (("flock",), "round.lock"), (("openat",), "pickup"),
)  # fmt: skip


FIRST = ((("write", "pwrite64", "ftruncate"), "ledger"), (("fsync", "fdatasync"), "staging"))  # the last one first


@dataclass
class Shop:
    """A service, the client that reads from it, and what it was given."""

    stock: Stock
    serving: Serving
    row: Fault
    rows: dict[int, int] = field(default_factory=dict)
    told: int = 0
    before: set[tuple[str, str]] = field(default_factory=set)
    since: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def site(self) -> ServiceSite:
        """The installation."""
        return self.stock.site

    def deliver(self, dice: random.Random) -> None:
        """A new version of one of the two last days, with more rows."""
        back = dice.choice([1, 2])
        self.rows[back] = self.rows.get(back, 0) + dice.randrange(1, 90)
        self.stock.put(day_before(back), self.rows[back])

    async def fetches(self, what: str, *, may_fail: bool = False) -> None:
        """A client fetches the oldest and the newest file, and compares."""
        self.row.lost += [f"{what}: {wrong}" for wrong in self.stock.look()] if not may_fail else []
        names = sorted(self.stock.seen.files)
        try:
            listed = await asyncio.wait_for(self.serving.names(), 20)
            self.row.expect(set(names) & set(listed), f"{what}: nothing is served: {listed}")
            for name in {listed[0], listed[-1]} & self.site.published().keys():
                data = await asyncio.wait_for(self.serving.fetch(name), 20)
                same = data == (self.site.pickup / name).read_bytes()
                self.row.expect(same, f"{what}: {name} was served with other bytes")
        except Exception as error:
            if not may_fail:
                self.row.lost.append(f"{what}: a client could not read: {type(error).__name__}: {error}")

    async def begins(self) -> None:
        """A fault begins now: what `check` says already, and since when."""
        self.before = {(alarm.name, alarm.subject) for alarm in (await asyncio.to_thread(self._glance)).alarms}
        self.since = datetime.now(UTC)

    async def tells(self, what: str) -> None:
        """`check` says something new; or no round is noted any more, so that it misses them in a few minutes."""
        deadline, told = time.monotonic() + FELT, False
        while not told and time.monotonic() < deadline:
            glance = await asyncio.to_thread(self._glance)
            told = bool({(alarm.name, alarm.subject) for alarm in glance.alarms} - self.before)
            await asyncio.sleep(0.1)
        noted = datetime.fromisoformat(str(glance.facts.get("last_round", self.since)))
        self.row.expect(told or noted <= self.since, f"{what}: check says nothing new")
        said = await asyncio.to_thread(warm.run, self.site.config, ["check"])
        wording = re.search(r"^PICKUP-POINT (OK|WARNING|CRITICAL|UNKNOWN) - .+", said.text, re.MULTILINE)
        self.row.expect(wording and "Traceback" not in said.text, f"{what}: check said {said.text[-300:]}")

    def _glance(self) -> Snapshot:
        return Snapshot.take(load_config(self.site.config), datetime.now(UTC))

    async def felt(self, what: str) -> bool:
        """Whether the log told of trouble, in time; the service is alive in any case."""
        deadline = time.monotonic() + FELT
        while self.trouble == self.told and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.row.expect(self.serving.running.process.poll() is None, f"{what}: the service ended: {self._end}")
        return self.trouble > self.told

    @property
    def trouble(self) -> int:
        """How often the log told of trouble."""
        return self.serving.running.count(TROUBLE)

    @property
    def _end(self) -> str:
        return " | ".join(self.serving.running.err[-3:])

    async def carries_on(self, what: str) -> None:
        """It publishes by itself everything that was delivered."""
        deadline, wrong = time.monotonic() + BACK, ["?"]
        while wrong and time.monotonic() < deadline and self.serving.running.process.poll() is None:
            with suppress(OSError):
                wrong = await asyncio.to_thread(self._at_rest)
            await asyncio.sleep(0.1)
        self.row.lost += [f"{what}: it did not carry on: {one} | {self._end}" for one in wrong]
        self.told = self.trouble
        self.row.lost += [f"{what}: {one}" for one in untold("\n".join(self.serving.running.err), ())]

    def _at_rest(self) -> list[str]:
        """What is wrong between two rounds."""
        with closing(Ledger.read(self.site.folder / "data" / "ledger.sqlite3")) as ledger:
            sent = sum(log.lines for log in ledger.logs() if log.state == "published")
        if sent < sum(len(ids) for ids in self.stock.ids.values()):
            return ["not all lines are published"]
        return self.stock.wrong()

    async def ends(self) -> None:
        """In order."""
        if self.serving.running.process.poll() is None:
            code = await self.serving.running.stops()
            self.row.expect(code == 0, f"the service ended with {code}: {self._end}")


async def opened(stock: Stock, row: Fault) -> Shop:
    """A service that has published its first two days."""
    shop = Shop(stock, await stock.site.serve(), row)
    for back in (1, 2):
        shop.rows[back] = 20
        stock.put(day_before(back), 20)
    await shop.carries_on("at the start")
    return shop


def site_in(campaign: Campaign, name: str) -> tuple[Stock, Program]:
    """A new installation, and what ends its processes."""
    folder = campaign.folder / name
    folder.mkdir()
    program = Program(folder)
    stock = Stock(ServiceSite(folder, campaign.folder / "keys", program))
    stock.site.configure(more="[retention]\nkeep_days = 30")
    return stock, program


# Errors in place of calls


def errors(campaign: Campaign, row: Fault) -> None:
    """Errors that last for rounds, under one running service; then at the start of others."""
    stock, program = site_in(campaign, "errors")
    try:
        asyncio.run(_errors(campaign, row, stock))
        _starts(campaign, row, stock)
    finally:
        program.end()


async def _errors(campaign: Campaign, row: Fault, stock: Stock) -> None:
    dice, log = campaign.rng("disk", "served"), campaign.folder / "served.log"
    shop = await opened(stock, row)
    faults = list(FIRST)
    felt, until = 0, campaign.seconds * 0.15 if not campaign.short else 3.0
    while (campaign.left > until or row.tried < 2) and not row.lost:
        faults = faults or dice.sample(FAULTS, len(FAULTS))
        calls, place = faults.pop()
        error = dice.choice(injection.ERRORS[calls[0]])
        what = f"{error} for {'/'.join(calls)} in {place}"
        words = injection.inject(error, calls, _paths(stock.site, place), "1+")
        await shop.begins()
        with injection.held(shop.serving.running.process.pid, log, words):
            shop.deliver(dice)
            if await shop.felt(what):
                felt += 1
                if (place, calls[0]) != ("ledger", "read"):
                    await shop.tells(what)
            await shop.fetches(what, may_fail=place == "pickup" and calls == ("openat",))
        row.tried += injection.struck(log) > 0
        await shop.carries_on(what)
        await shop.fetches(f"after {what}")
    row.figures |= {"of them in the journal": felt, "log files served": len(stock.seen.files)}
    await shop.ends()


def _paths(site: ServiceSite, place: str) -> list[Path]:
    """A place, and everything that will have a name in it; strace wants names."""
    data = site.folder / "data"
    if place == "ledger":
        return [data / f"ledger.sqlite3{end}" for end in ("", "-wal", "-shm")]
    folder, found = data / place, [data / place]
    for day in (day_before(1), day_before(2)):
        last = max((int(name.split("-")[1].split(".")[0]) for name in site.published() if f"{day:%Y%m%d}" in name),
                   default=-1)  # fmt: skip
        for number in range(last + 1, last + 3):
            found += [folder / f"TEST{day:%Y%m%d}-{number:02d}.tsv{end}" for end in (".gz", ".rejects.ndjson.gz")]
        found.append(folder / f"export-{day}.json.gz")
    return found


def _starts(campaign: Campaign, row: Fault, stock: Stock) -> None:
    """`serve` started on a disk that says no: a sentence and an exit code, or it serves."""
    dice, log = campaign.rng("disk", "starts"), campaign.folder / "start.log"
    site, starts, refused = stock.site, 0, 0
    while not row.lost and (campaign.left > 0 or not starts):
        calls, place = dice.choice(FAULTS)
        error = dice.choice(injection.ERRORS[calls[0]])
        what = f"a start with {error} for {'/'.join(calls)} in {place}"
        words = injection.inject(error, calls, _paths(site, place), dice.choice(["1", "2", "1+", "2+", "3+"]))
        running = site.program.start(
            argv=["strace", "-f", "-qq", "--seccomp-bpf", "-o", str(log), *words, *_serve(site)]
        )
        starts += 1
        try:
            serving = Serving(running, asyncio.run(port_of(running)))
        except AssertionError:
            refused += 1
            code = running.wait()
            row.expect(code not in (0, None), f"{what}: it did not listen, and ended with {code}")
            row.lost += [f"{what}: {wrong}" for wrong in untold(running.text, (code,))]
        else:
            shop = Shop(stock, serving, row)
            may_fail = place == "pickup"
            asyncio.run(shop.fetches(what, may_fail=may_fail))
            for child in _children(running.process.pid):
                with suppress(ProcessLookupError):
                    _terminate(child)
            row.expect(running.wait() == 0, f"{what}: it ended with {running.process.returncode}: {running.err[-3:]}")
            row.lost += [f"{what}: {wrong}" for wrong in untold(running.text, ())]
        row.tried += injection.struck(log) > 0
        plain = warm.run(site.config, ["feed"])
        row.expect(plain.codes == (0,), f"after {what}: {plain.text[-300:]}")
        row.lost += [f"after {what}: {wrong}" for wrong in stock.look() + stock.wrong()]
    row.figures |= {"starts": starts, "of them refused": refused}


def _serve(site: ServiceSite) -> list[str]:
    return command("serve", "--config", site.config)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


# File systems that are full, read-only or away


@contextmanager
def _volume(kind: str, site: ServiceSite) -> Iterator[None]:
    data = site.folder / "data"
    if kind == "tmpfs":
        with volumes.tmpfs(data, "6m"):
            yield
    else:
        with volumes.ext4(data, site.folder / "image", 12 << 20):
            yield


def full(campaign: Campaign, row: Fault) -> None:
    """Two services, on a tmpfs and on an ext4; each is filled, to another byte every time, and given room again."""
    until = campaign.left / 2
    for kind, bound in (("tmpfs", until), ("ext4", 0.0)):
        stock, program = site_in(campaign, f"full-{kind}")
        try:
            with _volume(kind, stock.site):
                asyncio.run(_full(campaign, row, stock, kind, bound))
                program.end()
        except OSError as error:
            row.figures[f"{kind} not run"] = str(error)
        finally:
            program.end()


async def _full(campaign: Campaign, row: Fault, stock: Stock, kind: str, until: float) -> None:
    dice, data, refused, tried = campaign.rng("disk", "full", kind), stock.site.folder / "data", 0, 0
    shop = await opened(stock, row)
    while not row.lost and (campaign.left > until or not tried):
        leave = dice.choice([0, dice.randrange(1 << 14), dice.randrange(1 << 16), dice.randrange(1 << 18)])
        what = f"{kind}, full but for {leave} bytes"
        await shop.begins()
        ballast = volumes.fill(data, leave)
        shop.deliver(dice)
        if await shop.felt(what):
            refused += 1
            await shop.tells(what)
        await shop.fetches(what)
        ballast.unlink()
        tried += 1
        await shop.carries_on(what)
    row.tried += tried
    row.figures[f"{kind}, rounds refused"] = refused
    await shop.ends()


def away(campaign: Campaign, row: Fault) -> None:
    """A service whose data folder becomes read-only, or empty, as one that is not mounted, and comes back."""
    stock, program = site_in(campaign, "away")
    try:
        with volumes.tmpfs(stock.site.folder / "data", "256m"):  # it grows with every day that is delivered
            asyncio.run(_away(campaign, row, stock))
            program.end()
    finally:
        program.end()


async def _away(campaign: Campaign, row: Fault, stock: Stock) -> None:
    dice, data = campaign.rng("disk", "away"), stock.site.folder / "data"
    shop, ways = await opened(stock, row), [volumes.read_only, volumes.hidden]
    while not row.lost and (campaign.left > 0 or row.tried < len(ways)):
        way = ways[row.tried % 2]
        what = "read-only" if way is volumes.read_only else "not mounted"
        await shop.begins()
        with way(data):
            shop.deliver(dice)
            row.expect(await shop.felt(what), f"{what}: the log says nothing")
            await shop.tells(what)
            await shop.fetches(what, may_fail=way is volumes.hidden)
        row.tried += 1
        await shop.carries_on(what)
        await shop.fetches(f"after {what}")
    await shop.ends()
