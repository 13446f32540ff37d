"""One installation in virtual time: a folder of exports, a data folder, and the feed between them.

Real folder source, real ledger, real conversion in a process of its own, which is forked from one that has imported
everything (`warm`); only the clock is handed in. Touches what the test gives it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from collections import Counter
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
import pytest

from server.convert import process
from server.convert.export_row import with_fingerprint
from server.errors import NodesDiffer, SourceUnreachable, StoreError
from server.megaphone.exports import METRICS, DayExport, ExportKind, Listing
from server.megaphone.folder import Folder
from server.pickups import PickupProgress
from server.publish.clock import believe
from server.publish.decisions import FeedPolicy, FeedRequest, Round
from server.publish.feed import Feed
from server.publish.holds import HoldPolicy
from server.publish.publisher import Publisher
from server.publish.retention import Pruned, prune
from server.publish.shared import SharedSequence
from server.publish.window import KnownDays
from server.settings import ExportSettings
from server.status.alarms import Alarm, Measured, alarms
from server.status.days import Calendar, DayOverview, overview
from server.status.deadlines import DeadlinePolicy
from server.storage.folder import DataFolder
from server.storage.ledger import Ledger
from server.storage.sequence import Terms
from server.triton import LogFile, LogName, LogRules
from tests.support.apart import conversions_here
from tests.support.folder_shelf import FolderShelf
from tests.support.rows import KEY, row
from tests.support.warm import WARM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

DAY = date(2026, 11, 20)
COLD_START, _COMMAND = process.start, process.COMMAND
HEALTHY = Measured(0.5, 50 << 30)


def _start(descriptors: Sequence[int], environment: dict[str, str]) -> Any:
    """Start a process that converts: a warm one, unless a test put a program of its own in its place."""
    start = WARM.start_conversion if process.COMMAND == _COMMAND else COLD_START
    return start(descriptors, environment)


def at(days: int, clock: str = "00:00", day: date = DAY) -> datetime:
    """``days`` after ``day``, at a time of day in UTC: ``at(1, "05:35")`` is D+1 05:35Z."""
    return datetime.fromisoformat(f"{day + timedelta(days=days)}T{clock}+00:00")


def rows_of(day: date, count: int, first: int = 0, **changes: Any) -> list[bytes]:
    """Good rows of a day, with ids that name the day and the number of the row."""
    return [
        row(id=f"{day}-{n}", created_at=f"{day}T{n // 60 % 24:02d}:{n % 60:02d}:00.000Z", **changes)
        for n in range(first, first + count)
    ]


def broken_rows(count: int) -> list[bytes]:
    """Rows that are rejected as ``malformed_json``."""
    return [b'{"id":' for _ in range(count)]


class ClockedFolder(Folder):
    """A folder whose clock is the test's, and whose versions are told by their content, as a bucket's are."""

    def __init__(self, path: Path, kind: ExportKind = METRICS) -> None:
        super().__init__(path, kind)
        self.kind = kind
        self.now = at(0)
        self.away = False
        self.own_clock = True  # False: the folder's clock is the local one, as a real folder's is
        self.by_content = True  # False: the folder's own way, by the time of modification
        self.fault: Callable[[], None] | None = None  # called before a day is fetched
        self.fetched: list[date] = []
        self._root = path
        self.versions: dict[str, DayExport] = {}
        self._digests: dict[str, str] = {}  # by the folder's own way to tell versions

    async def day_exports(self) -> Listing:
        """The folder's listing, with content as etag and the test's clock."""
        if self.away:
            raise SourceUnreachable("the folder is away")
        listing = await super().day_exports()
        exports = {}
        for day, export in listing.exports.items():
            content = export.etag
            if self.by_content:
                if content not in self._digests:
                    self._digests[content] = hashlib.md5((self._root / export.key).read_bytes()).hexdigest()
                content = self._digests[content]
            exports[day] = export._replace(etag=content)
            self.versions[content] = export
        return Listing(exports, self.now, self.own_clock, listing.others, listing.markers)

    async def fetch(self, export: DayExport, into: BinaryIO) -> None:
        """The folder's fetch of exactly the listed version."""
        self.fetched.append(export.day)
        if self.fault is not None:
            self.fault()
        await super().fetch(self.versions[export.etag], into)


class Site:
    """An installation; `start` and `stop` are those of the service. ``skew`` is the local clock's error."""

    def __init__(self, root: Path, *, first: date = DAY, **settings: Any) -> None:
        self.root = root
        self.settings: dict[str, Any] = {
            "prefix": "MEGA", "rules": LogRules(), "keep_days": 60, "max_rows_per_file": 0, "max_rejected": 0.01,
            "tokens": None, "first_day": first, "look_back_days": 3, "pull_every": timedelta(hours=24),
            "kind": "metrics", "hash_key": KEY, "store": None,
        } | settings  # fmt: skip
        self.exports = self.settings.pop("exports", root / "exports")
        self.exports.mkdir(parents=True, exist_ok=True)
        self.skew = timedelta()
        self.stop_event = threading.Event()
        self.start()

    def start(self) -> None:
        """Open everything, as a start of the service does."""
        process.start = _start
        known = {key: value for key, value in self.settings.items() if key in ExportSettings.model_fields}
        self.export_settings = ExportSettings(url=self.exports.absolute().as_uri(), **known)
        kind = self.export_settings.export_kind
        if not hasattr(self, "source") or self.source.kind is not kind:
            self.source: Any = self.settings.get("source") or ClockedFolder(self.exports, kind)
        self.holds = HoldPolicy(self.settings["max_rejected"], self.settings["tokens"])
        self.point = DataFolder(self.root / "data")
        self.point.prepare()
        self.ledger = Ledger.open(self.point.ledger_path)
        # Processes die here, power never fails: what was written is there without being on the disk.
        self.ledger._connection.execute("PRAGMA synchronous=OFF")
        self.shared: SharedSequence | None = None
        if self.settings["store"] is not None:
            opened = self.settings.get("open_shelf")
            if opened is None:
                self.shelf = FolderShelf(self.settings["store"], lambda: self.source.now)
            rules, prefix = self.settings["rules"].as_json(), self.settings["prefix"]
            terms = Terms(hashlib.sha256(self.settings["hash_key"]).hexdigest()[:16], rules, prefix)
            self.shared = SharedSequence(
                opened or (lambda: self.shelf.opened()), self.ledger, self.point, terms, self.root.name
            )
        self.publisher = Publisher(
            self.ledger, self.point, hash_key=self.settings["hash_key"], policy=self.holds, workers=1,
            max_rows_per_file=self.settings["max_rows_per_file"], stop=self.stop_event, shared=self.shared,
        )  # fmt: skip
        rules = with_fingerprint(self.settings["rules"]._replace(kind=kind.name), self.settings["hash_key"])
        policy = FeedPolicy(
            self.export_settings, rules, self.settings["prefix"], self.holds,
            self.settings["keep_days"], self.settings["pull_every"],
        )  # fmt: skip
        self.feed = Feed(
            policy, self.source, self.publisher, self.ledger, self.point, catalogue=lambda: None, stop=self.stop_event
        )

    def stop(self) -> None:
        """Let go of the ledger."""
        process.start = COLD_START
        self.ledger.close()

    def restart(self, **settings: Any) -> None:
        """End and start again, with some settings changed."""
        self.stop()
        self.settings |= settings
        self.start()

    # The source

    def put(self, rows: Iterable[bytes], modified: datetime, day: date = DAY, *, cut: int = 0) -> Path:
        """Write a day's export, last modified then; ``cut`` takes that many bytes off its end."""
        path = self.exports / self.export_settings.export_kind.file_name.replace("YYYY-MM-DD", str(day))
        data = gzip.compress(b"".join(line + b"\n" for line in rows), 1, mtime=0)
        part = path.with_suffix(".part")
        part.write_bytes(data[: len(data) - cut])
        os.utime(part, (modified.timestamp(), modified.timestamp()))
        part.replace(path)
        return path

    def mark(self, modified: datetime, day: date = DAY, between: str = "_") -> Path:
        """Write the object that proves a day final, last modified then; ``between`` separates the parts of its date."""
        path = self.exports / f"_finalized_delivery_{str(day).replace('-', between)}_{modified.timestamp():.0f}"
        path.touch()
        os.utime(path, (modified.timestamp(), modified.timestamp()))
        return path

    # The feed and retention

    async def round(self, now: datetime, *days: date, accept: bool = False, resend: str = "") -> Round:
        """One round, when it is ``now`` by the source's clock."""
        self.source.now = now if self.source.own_clock else now + self.skew
        return await self.feed.run_round(now + self.skew, FeedRequest(days, accept, resend))

    async def word(self, now: datetime, *days: date, day: date = DAY, accept: bool = False, resend: str = "") -> str:
        """What one round made of one day."""
        outcome = await self.round(now, *days, accept=accept, resend=resend)
        return {result.day: result.word for result in outcome.results}[day]

    def prune(self, now: datetime, *, dry_run: bool = False) -> Pruned:
        """One retention pass by hand, as `prune` does it."""
        if self.source.own_clock:
            believe(self.ledger, now - self.skew)
        keep_days = self.settings["keep_days"]
        return prune(self.ledger, self.point, keep_days, now, dry_run=dry_run, shared=self.shared)

    # What became of it

    def days(self, now: datetime, users: Sequence[tuple[str, bool]] = (("triton", True),)) -> dict[date, DayOverview]:
        """The days at a glance."""
        records, publications = self.ledger.days(), self.ledger.publications()
        known = KnownDays.of(records, publications, self.ledger.facts())
        calendar = Calendar.of(self.export_settings, self.settings["keep_days"], known, now)
        delivered = self.ledger.pickups.delivered([log.name for log in self.ledger.logs()])
        checks = self.ledger.newest_late_checks()
        found = overview(
            records,
            publications,
            delivered,
            users,
            DeadlinePolicy(),
            now,
            checks,
            calendar,
            self.ledger.unsent_checks(),
            self.ledger.facts(),
        )
        return {day.day: day for day in found}

    def state(self, now: datetime, day: date = DAY) -> str:
        """A day's one word."""
        return self.days(now)[day].state

    def alarms(self, now: datetime, measured: Measured = HEALTHY) -> list[Alarm]:
        """What `check` would say; the last round is said to be just now."""
        facts = {"last_round": now.isoformat()} | self.ledger.facts()
        days, first_day = list(self.days(now).values()), self.export_settings.first_day
        return alarms(days, facts, measured, self.holds, timedelta(minutes=10), now, first_day=first_day)

    def alarm_names(self, now: datetime) -> set[str]:
        """The names of the alarms."""
        return {alarm.name for alarm in self.alarms(now)}

    def files(self) -> list[str]:
        """The names in the pickup folder."""
        return sorted(path.name for path in self.point.pickup_dir.iterdir())

    def served(self) -> list[str]:
        """The names that a client sees."""
        return sorted(self.point.served)

    def lines(self, name: str) -> list[str]:
        """A published file's lines, the header among them; it must be one whole gzip member."""
        text = gzip.decompress((self.point.pickup_dir / name).read_bytes()).decode()
        assert text == "" or text.endswith("\n")
        return text.splitlines()

    def ids(self, *names: str) -> list[str]:
        """The ids of the rows in these files, or in all files, in order."""
        return [line.split("\t")[12] for name in names or self.files() for line in self.lines(name)[1:]]

    def standing_ids(self) -> Counter[str]:
        """How often each id occurs in a published file that was not superseded."""
        return Counter(self.ids(*(str(log.name) for log in self.ledger.logs() if log.superseded_by is None)))

    def rejects(self, name: str) -> list[dict[str, Any]]:
        """The entries of a rejects file."""
        text = gzip.decompress((self.point.rejects_dir / f"{name}.rejects.ndjson.gz").read_bytes())
        return [orjson.loads(line) for line in text.splitlines()]

    def pick_up(self, now: datetime, *names: str, user: str = "triton", whole: bool = True) -> None:
        """A partner's client reads files, or all of them."""
        for name in names or self.served():
            file: LogFile = self.point.served[name]
            progress = PickupProgress(file.name, file.size, user, "198.51.100.7", "Client 1.0", now)
            self.ledger.pickups.record(progress.opened())
            count = file.size if whole else file.size // 2
            progress.answered(0, count)
            progress.delivered(0, count)
            self.ledger.pickups.record(progress.finished(now, closed=True))

    def check_folder(self) -> None:
        """What holds after every round: whole files, known and served; spent names; nothing left in staging."""
        published = [log for log in self.ledger.logs() if log.state == "published"]
        assert self.files() == sorted(str(log.name) for log in published) == self.served()
        assert not [log for log in self.ledger.logs() if log.state == "intended"]
        for log in published:
            path = self.point.pickup_dir / str(log.name)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == log.sha256
            assert (path.stat().st_size, path.stat().st_mtime, path.stat().st_nlink) == (log.size, log.mtime, 1)
            assert path.stat().st_mode & 0o777 == 0o440
            assert len(self.lines(str(log.name))) == log.lines + 1
        assert list(self.point.staging_dir.iterdir()) == []


def name(number: int = 0, day: date = DAY, prefix: str = "MEGA") -> str:
    """A log's name."""
    return f"{prefix}{day:%Y%m%d}-{number:02d}.tsv.gz"


def log_name(number: int = 0, day: date = DAY) -> LogName:
    """A log's name, parsed."""
    parsed = LogName.parse(name(number, day))
    assert parsed is not None
    return parsed


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """An installation with the default settings, whose first day is `DAY`."""
    site = Site(tmp_path)
    yield site
    site.stop()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Installations with settings of their own."""
    made: list[Site] = []

    def make(folder: str = "site", **settings: Any) -> Site:
        made.append(Site(tmp_path / folder, **settings))
        return made[-1]

    yield make
    for site in made:
        site.stop()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes nodes on one store, which read the same exports; ``store=None``: one that is alone."""
    made: list[Site] = []

    def make(folder: str, **settings: Any) -> Site:
        shared = {"store": tmp_path / "store", "exports": tmp_path / "exports"}
        made.append(Site(tmp_path / folder, **{**shared, **settings}))
        return made[-1]

    yield make
    for site in made:
        site.stop()


@pytest.fixture
def _conversions_here() -> Iterator[None]:
    """Convert in this process: for tests that are about other things than the process of its own."""
    with conversions_here():
        yield


def seen(site: Site) -> dict[str, tuple[int, int, str]]:
    """What a client of a node sees: size, mtime and digest of every file, by name."""
    served = site.point.served
    return {
        file: (log.size, log.mtime, hashlib.sha256((site.point.pickup_dir / file).read_bytes()).hexdigest())
        for file, log in served.items()
    }


def same_everywhere(*sites: Site) -> dict[str, tuple[int, int, str]]:
    """What all of them show, which is the same, and in order in their folders."""
    for site in sites:
        site.check_folder()
        assert seen(site) == seen(sites[0])
    return seen(sites[0])


async def publish(site: Site, day: date = DAY, count: int = 20, clock: str = "05:35") -> None:
    """Deliver a day, and publish it."""
    site.put(rows_of(day, count), at(1, "04:10", day), day)
    await site.round(at(1, clock, day))


def store_of(site: Site) -> Path:
    """The folder that is the store."""
    store: Path = site.settings["store"]
    return store


async def words(site: Site, now: Any) -> str:
    """What a round says of the days, or why it can take no part in the sequence."""
    try:
        return "; ".join(result.sentence for result in (await site.round(now)).results)
    except (StoreError, NodesDiffer) as error:
        return str(error)
