"""The part `bucket`: random faults of the place where Megaphone delivers, against a running service.

A real `serve` reads a bucket on a server in bad weather, while new days and late versions come and a client reads; then
the feed has virtual hours of worse weather; then radosgw is killed and frozen (`bucket_ceph`). Touches its own folder
and loopback. What must hold: when the weather is fine again every row of every day is in exactly one file.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import sys
import traceback
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import asyncssh
import structlog

from server.errors import SourceError
from server.megaphone.bucket import Bucket
from server.sftp.keys import make_keys
from server.storage.ledger import Ledger
from tests.support.fault_s3 import BUCKET, fault_server
from tests.support.program import Program, ServiceSite, Serving, export_name, port_of
from tests.support.s3 import bucket_settings
from tests.support.site import ClockedFolder, Site

from . import bucket_ceph
from .bucket_hasty import HASTE
from .bucket_weather import Weather
from .checks import Seen, standing
from .deliveries import Megaphone
from .result import Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import BinaryIO

    from server.megaphone.exports import DayExport, Listing

    from .result import Campaign

FIRST = date(2026, 1, 1)
SHARES = (0.55, 0.2, 0.25)  # of the time: the service in bad weather, the virtual hours, radosgw
LAST_WORDS = 4.0  # seconds of a share that its end takes
AWS = {
    "AWS_ACCESS_KEY_ID": "AKIDTEST", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}  # fmt: skip


def run(campaign: Campaign) -> list[Fault]:
    """The rows of this part."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        del os.environ[name]  # this process is the part's own
    os.environ.update(AWS)
    make_keys(campaign.folder / "keys")
    service = Fault(
        "the bucket: answers cut, silent, slow, refused, torn, false or redirected, under a running service"
    )
    hours = Fault("the bucket: the same faults at nearly every read, hour by hour of virtual time")
    radosgw = Fault("the bucket: radosgw killed, frozen and restarted in mid-read, under a running service")
    ends = [campaign.seconds * sum(SHARES[: n + 1]) for n in range(3)]
    for row, part, end in zip((service, hours, radosgw), (_service, _hours, bucket_ceph.run), ends, strict=True):
        try:
            asyncio.run(part(campaign, row, max(1.0, campaign.left - (campaign.seconds - end))))
        except Exception as error:
            traceback.print_exc()
            row.lost.append(f"it did not come to its end: {type(error).__name__}: {error}".splitlines()[0])
    return [service, hours, radosgw]


# A running service


def configure(site: ServiceSite, where: str) -> None:
    """Tell a site of the bucket; ``look_back_days`` reaches over everything that is delivered."""
    export = f'url = "s3://{BUCKET}"\nendpoint_url = "{where}"\nregion = "us-east-1"\nlook_back_days = 365'
    site.configure(export, more="[retention]\nkeep_days = 400")


@asynccontextmanager
async def _elsewhere(row: Fault) -> AsyncIterator[str]:
    """A server to which redirects lead, and which nobody may ever ask."""
    visits = 0

    async def visited(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.close()

    server = await asyncio.start_server(visited, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/exports/elsewhere"
    row.expect(visits == 0, f"{visits} redirects led to another host")


@dataclass
class Watch:
    """The service from outside: the client that reads, the folder, the log."""

    site: ServiceSite
    row: Fault
    serving: Serving
    seen: Seen = field(default_factory=Seen)
    fetched: int = 0

    async def read_for_ever(self, dice: Any) -> None:
        """Log in, list, fetch one file, compare; look at the folder."""
        while True:
            with suppress(FileNotFoundError):
                self.row.lost += await asyncio.to_thread(self.seen.look, self.site.pickup)
            try:
                names = await self.serving.names()
                if names:
                    name = dice.choice(names)
                    data = await self.serving.fetch(name)
                    self.fetched += 1
                    known = self.seen.files.get(name, (hashlib.sha256(data).hexdigest(), 0, 0))
                    self.row.expect(hashlib.sha256(data).hexdigest() == known[0], f"{name} came with other bytes")
                    gzip.decompress(data)
            except (OSError, asyncssh.Error, EOFError) as error:
                self.row.lost.append(f"a client could not read: {type(error).__name__}: {error}")
            await asyncio.sleep(0.5)

    async def ends_well(self, expected: dict[date, list[str]]) -> None:
        """Fine weather: a round by hand, then all of it is published; the service ends properly."""
        fed = await asyncio.to_thread(self.site.run, "feed")
        self.row.expect(fed.returncode == 0, f"the last round said {fed.stdout[-300:]}{fed.stderr[-300:]}")
        self.row.lost += self.seen.look(self.site.pickup)
        self.row.lost += standing(self.site.folder / "data", expected)
        await self.serving.sees(*self.seen.files)
        await self.stopped()

    async def stopped(self) -> None:
        """It ends properly, and never was at a loss."""
        running = self.serving.running
        code = await running.stops()
        self.row.expect(code == 0, f"the service ended with {code}: {running.err[-1:]}")
        self.row.expect("Traceback" not in running.text, "the service had a traceback in its log")
        self.row.expect("secret message" not in running.text, "the service logged what the server said")

    def count(self, figures: Counter[str]) -> None:
        """Add what the log tells."""
        figures["rounds failed"] += self.serving.running.count("feed lost the source|feed gave up on a round")
        figures["days failed"] += self.serving.running.count(r"feed failed \d")


async def _service(campaign: Campaign, row: Fault, seconds: float) -> None:
    """`serve` on a bucket in bad weather: first with little patience, in the whole form also with its own."""
    folder = campaign.folder / "service"
    folder.mkdir()
    program, figures, started = Program(folder), Counter[str](), asyncio.get_running_loop().time()
    dice = campaign.rng("bucket", "service")
    weather = Weather(dice=campaign.rng("bucket", "weather"))
    async with AsyncExitStack() as stack:
        stack.callback(program.end)
        weather.elsewhere = await stack.enter_async_context(_elsewhere(row))
        await stack.enter_async_context(fault_server(weather))
        site = ServiceSite(folder, campaign.folder / "keys", program)
        configure(site, weather.url)
        world = _World(weather, Megaphone(weather.put_version, dice), site.folder / "data" / "ledger.sqlite3")
        seen = Seen()
        turns = [("benchmarks.faults.bucket_hasty", 1.0)] if campaign.short else [
            ("benchmarks.faults.bucket_hasty", 0.6), ("server", 1.0)]  # fmt: skip
        for module, until in turns:
            argv = [sys.executable, "-P", "-m", module, "serve", "--config", str(site.config)]
            running = program.start(argv=argv)
            watch = Watch(site, row, Serving(running, await port_of(running)), seen)
            reading = asyncio.create_task(watch.read_for_ever(campaign.rng("bucket", "client")))
            end = started + (seconds - LAST_WORDS) * until
            while asyncio.get_running_loop().time() < end or len(world.megaphone.days) < 3 or weather.untried:
                weather.rate = dice.choice([0.5, 0.8, 0.8, 1.0] if campaign.short else [0.2, 0.5, 0.5, 0.8])
                await world.step()
                await asyncio.sleep(dice.random() * (0.3 if campaign.short else 1))
                row.expect(running.process.poll() is None, "the service died")
                if row.lost or asyncio.get_running_loop().time() > end + 20:
                    break
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            watch.count(figures)
            figures["files fetched by a client"] += watch.fetched
            if until < 1.0:
                await watch.stopped()
        weather.rate = 0.0
        world.megaphone.mend()
        await watch.ends_well(world.megaphone.expected)
    row.tried = weather.tried.total()
    row.figures = {"requests": weather.requests, "days": len(world.megaphone.days),
                   "versions": world.megaphone.versions, **figures, **_kinds(weather.tried)}  # fmt: skip


def _kinds(tried: Counter[str]) -> dict[str, int]:
    return dict(sorted(tried.items()))


@dataclass
class _World:
    """The source's side: the clock, and what is delivered when.

    A day's late rows count until its third midnight, so the clock goes on to the next day only when the service has
    taken up the last version of the day whose time is then over.
    """

    weather: Weather
    megaphone: Megaphone
    ledger: Path
    live: list[date] = field(default_factory=list)  # days that may still be rewritten

    def __post_init__(self) -> None:
        self.weather.rewrite = self._rewrite
        self._next_day()

    def _rewrite(self, key: str) -> None:
        for day in self.live:
            if key == export_name(day):
                self.megaphone.rewrite(day)

    def _next_day(self) -> None:
        day = FIRST + timedelta(days=len(self.megaphone.days))
        self.weather.clock = datetime.combine(day + timedelta(days=1), time(6), UTC)
        self.live = [*self.live[-1:], day]
        self.megaphone.new_day(day)

    async def step(self) -> None:
        """Something happens on Megaphone's side."""
        dice = self.weather.dice
        self.weather.clock += timedelta(seconds=1)
        match dice.choice(["day", "day", "late", "torn", "nothing", "nothing"]):
            case "late" if self.live:
                self.megaphone.rewrite(dice.choice(self.live))
            case "torn" if self.live:
                self.megaphone.tear(dice.choice(self.live))
            case "day":
                oldest = min(self.megaphone.days) if len(self.megaphone.days) == 1 else sorted(self.megaphone.days)[-2]
                self.live = [day for day in self.live if day != oldest]
                if not self.megaphone.days[oldest].whole:
                    self.megaphone.mend()
                elif await asyncio.to_thread(self._taken_up, oldest):
                    self._next_day()

    def _taken_up(self, day: date) -> bool:
        if not self.ledger.exists():
            return False
        with closing(Ledger.read(self.ledger)) as ledger:
            record = ledger.days().get(day)
        return record is not None and record.checked_etag == self.weather.objects[export_name(day)].etag


# Virtual hours


class _OverTheNet(ClockedFolder):
    """The bucket as the source of a site in virtual time."""

    def __init__(self, path: Path, weather: Weather, bucket: Bucket) -> None:
        super().__init__(path)
        self._weather = weather
        self._bucket = bucket

    async def day_exports(self) -> Listing:
        self._weather.clock = self.now
        return await self._bucket.day_exports()

    async def fetch(self, export: DayExport, into: BinaryIO) -> None:
        await self._bucket.fetch(export, into)


class _NetSite(Site):
    """An installation in virtual time whose exports lie in a bucket."""

    def __init__(self, root: Path, weather: Weather, bucket: Bucket) -> None:
        self._net = (weather, bucket)
        super().__init__(root, first=FIRST, settle=timedelta(minutes=20))

    def start(self) -> None:
        self.source = _OverTheNet(self.exports, *self._net)
        super().start()


async def _hours(campaign: Campaign, row: Fault, seconds: float) -> None:
    """One seed after the other: an hour of rounds in bad weather, then fine weather, and everything must be there."""
    with (campaign.folder / "hours.log").open("w") as told:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(told))
        try:
            await _seeds(campaign, row, seconds)
        finally:
            structlog.reset_defaults()


async def _seeds(campaign: Campaign, row: Fault, seconds: float) -> None:
    end = asyncio.get_running_loop().time() + seconds
    figures: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    while not figures["virtual hours"] or asyncio.get_running_loop().time() < end:
        figures["virtual hours"] += 1
        weather = Weather(dice=campaign.rng("bucket", "hour", figures["virtual hours"]), rate=0.9)
        async with _elsewhere(row) as weather.elsewhere, fault_server(weather):
            bucket = await Bucket.open(bucket_settings(f"s3://{BUCKET}", weather.url).place, retry=HASTE)
            root = campaign.folder / f"hour-{figures['virtual hours']}"
            site = _NetSite(root, weather, bucket)
            try:
                wrong = await _hour(site, weather, figures)
            finally:
                site.stop()
        row.lost += [f"hour {figures['virtual hours']}: {sentence}" for sentence in wrong]
        kinds += weather.tried
        figures["requests"] += weather.requests
    row.tried = kinds.total()
    row.figures = {**figures, **_kinds(kinds)}


async def _hour(site: _NetSite, weather: Weather, figures: Counter[str]) -> list[str]:
    """D+1 04:20 to 05:20 with two days that live; rounds every ten minutes or more often."""
    dice, days = weather.dice, [FIRST, FIRST + timedelta(days=1)]
    megaphone = Megaphone(weather.put_version, dice, rows=(20, 200))
    names = {export_name(day): day for day in days}
    weather.rewrite = lambda key: megaphone.rewrite(names[key])
    now = datetime.combine(days[-1] + timedelta(days=1), time(4, 20), UTC)
    weather.clock = now - timedelta(minutes=dice.randrange(19, 60))
    for day in days:
        megaphone.new_day(day)
    over, seen = now + timedelta(hours=1), Seen()
    wrong: list[str] = []
    while now < over:
        weather.clock = now
        if dice.random() < 0.25:
            dice.choice([megaphone.rewrite, megaphone.rewrite, megaphone.tear])(dice.choice(days))
        await _round(site, now, figures)
        wrong += seen.look(site.point.pickup_dir)
        if dice.random() < 0.1:
            site.restart()
        now += timedelta(minutes=dice.choice([1, 2, 5, 10, 10]))
    weather.rate = 0.0
    weather.clock = now
    megaphone.mend()
    now += timedelta(hours=2)  # longer than the longest pause after a failure
    await _round(site, now, figures)
    wrong += seen.look(site.point.pickup_dir)
    site.check_folder()
    return wrong + standing(site.root / "data", megaphone.expected)


async def _round(site: _NetSite, now: datetime, figures: Counter[str]) -> None:
    figures["rounds"] += 1
    try:
        outcome = await site.round(now)
    except SourceError:
        figures["rounds failed"] += 1
    else:
        figures["days failed"] += sum(result.word == "failed" for result in outcome.results)
        figures["files published"] += len(outcome.published)
