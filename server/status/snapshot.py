"""A snapshot of an installation from outside: what `status`, `check`, `trace`, `reconcile` and the page read.

Touches the ledger (read-only), the data folder's disk and the modes of the key files. Works whether or not the service
is running.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from ..config import IP_HASH_KEY, load_ip_hash_key
from ..convert.apart import kernel_lack
from ..convert.export_row import with_fingerprint
from ..disk import translate_os_errors
from ..episodes.rss import safe_url
from ..errors import ConfigError, LedgerError, PickupPointError
from ..publish.clock import before_leap
from ..publish.decisions import incomparable, standing
from ..publish.holds import HoldPolicy
from ..publish.retention import ages
from ..publish.store_state import HEARD, NODE, NODES, StoreState
from ..publish.window import KnownDays
from ..sftp.algorithms import HOST_KEY_FILES
from ..storage.folder import DataFolder
from ..storage.ledger import LEDGER_FILE, Ledger
from ..storage.records import matched_share
from .alarms import Alarm, Level, Measured, Partner, Store, alarms
from .days import Calendar, DayOverview, overview, rounded
from .deadlines import DeadlinePolicy
from .reconcile import reconcile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from ..convert.tally import Tally
    from ..episodes.rss import RssFeed
    from ..pickups import Delivered, Pickup
    from ..settings import Config
    from ..storage.records import LateCheck, LedgerLog, Publication
    from ..triton import LogName
    from .reconcile import PodcastLine

AWS_KEY = "aws"  # in keys_dir: a static key of the AWS credential chain
_PRIVATE = (*HOST_KEY_FILES, IP_HASH_KEY, AWS_KEY)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Days (newest first), the service's facts, and alarms (worst first).

    The days are those since the ledger's horizon. ``logins`` are, by user, (instant, address, client, longest silence
    so far in seconds). ``row_totals`` counts the rows of everything published, by outcome.
    """

    at: datetime
    days: list[DayOverview]
    facts: dict[str, Any]
    running: bool
    logins: dict[str, tuple[datetime, str, str, int]]
    measured: Measured
    alarms: list[Alarm]
    rss_feeds: tuple[RssFeed, ...] = ()
    row_totals: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def take(cls, config: Config, now: datetime, newest: int = 0) -> Snapshot:
        """Read everything once; with ``newest``, only that many days: `ALARMING_DAYS` are enough for alarms.

        Raises:
            DataFolderError: this user may not look into the data folder.
        """
        days: list[DayOverview] = []
        facts: dict[str, Any] = {}
        logins: dict[str, tuple[datetime, str, str, int]] = {}
        rss_feeds: tuple[RssFeed, ...] = ()
        row_totals: dict[str, int] = {}
        damage = ""
        lost: tuple[LogName, ...] = ()
        away: LedgerError | None = None
        path = config.data_dir / LEDGER_FILE
        with translate_os_errors(path):
            there = path.exists()
        # Before the first start there is no ledger, and looking must not create one.
        if there:
            try:
                with contextlib.closing(Ledger.read(path)) as ledger:
                    damage = _damage_of(ledger, now.date())
                    facts = ledger.facts()
                    today = before_leap(facts, now).date()
                    since = ledger.newest_days(newest, today=today) if newest else ledger.horizon(today=today)
                    records, publications = ledger.live_days(since), ledger.live_publications(since)
                    names = [entry.name for publication in publications for entry in publication.logs]
                    logins, row_totals = ledger.logins(), ledger.row_totals()
                    if config.store is not None and config.store.shared:
                        facts[NODES] = dict.fromkeys(facts.get(HEARD, ()), (0, 0)) | ledger.entries.nodes()
                    known = KnownDays.of(records, publications, facts, since)
                    days = overview(
                        records,
                        publications,
                        ledger.pickups.delivered(names),
                        [(user.name, user.required) for user in config.sftp.users],
                        DeadlinePolicy.of(config.alerts),
                        now,
                        ledger.newest_late_checks(since),
                        Calendar.of(config.export, config.retention.keep_days, known, now),
                        ledger.unsent_checks(since),
                        facts,
                    )
                    lost = _lost_logs(config, publications, now)
                    if config.feeds.configured:
                        rss_feeds = tuple(ledger.rss.feeds().values())
            except LedgerError as error:
                sentence = str(error)
                # SQLite's words for a damaged file. Rights, a full or read-only disk, or another schema are not damage:
                # restoring a backup would not help.
                if "malformed" in sentence or "not a database" in sentence:
                    damage = sentence
                else:
                    away = error
        measured = replace(
            _measured(config, damage), ledger_away=str(away or ""), ledger_hint=away.hint if away else "", lost=lost
        )
        holds = HoldPolicy(config.log.max_rejected, config.log.tokens)
        required = {user.name for user in config.sftp.users if user.required}
        partners = [
            Partner(user, login[0], timedelta(seconds=login[3])) for user, login in logins.items() if user in required
        ]
        running = _is_running(config.data_dir)
        found = alarms(
            days,
            facts,
            measured,
            holds,
            config.export.poll_every,
            now,
            partners=partners,
            pull_every=config.alerts.pull_every,
            rss_feeds=rss_feeds,
            refresh_every=config.feeds.refresh_every,
            first_day=config.export.first_day,
            store=_store(config, facts),
            unagreed="" if config.export.agreed else config.export.export_kind.unknown,
            running=running,
        )
        return cls(now, days, facts, running, logins, measured, found, rss_feeds, row_totals)

    @property
    def node(self) -> str:
        """The name of this node, '' if there is only one."""
        return str(self.facts.get(NODE, "")) if NODES in self.facts else ""

    def as_json(self) -> dict[str, Any]:
        """Return the snapshot as ``status --json`` prints it."""
        level = max((alarm.level for alarm in self.alarms), default=Level.OK)
        return {
            "at": self.at.isoformat(timespec="seconds"),
            "running": self.running,
            "level": level.name,
            "alarms": [
                {"level": a.level.name, "name": a.name, "sentence": a.sentence, "hint": a.hint} for a in self.alarms
            ],
            "service": self.facts,
            "kernel": _kernel(),
            "logins": {
                user: {"at": login[0].isoformat(timespec="seconds"), "address": login[1], "client": login[2]}
                for user, login in self.logins.items()
            },
            "disk": {"free_bytes": self.measured.disk_free_bytes, "free_share": round(self.measured.disk_free, 4)},
            "rss_feeds": [
                {
                    "url": safe_url(feed.url),
                    "title": feed.title,
                    "items": feed.item_count,
                    "read_at": feed.read_at.isoformat(timespec="seconds") if feed.read_at else None,
                    "error": feed.error,
                }
                for feed in self.rss_feeds
            ],
            "days": [day.as_json() for day in self.days],
        }


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that the ledger knows about one file; ``pickups`` are the single handles that it still has.

    ``no_late_rows`` is why, by the present configuration, rows that came late to its day would not be sent, or ''.
    """

    log: LedgerLog
    publication: Publication
    pickups: list[Pickup]
    delivered: list[Delivered]
    checks: list[LateCheck]
    superseded_by: Publication | None = None
    no_late_rows: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the trace as ``trace --json`` prints it."""
        export, publication = self.publication.export, self.publication
        return {
            "name": str(self.log.name),
            "day": publication.day.isoformat(),
            "state": self.log.state,
            "size": self.log.size,
            "sha256": self.log.sha256,
            "lines": self.log.lines,
            "mtime": self.log.mtime,
            "superseded": self.log.superseded_by is not None,
            "superseded_by": [str(log.name) for log in self.superseded_by.logs] if self.superseded_by else [],
            "export": {
                "key": export.key,
                "etag": export.etag,
                "size": export.size,
                "last_modified": export.last_modified.isoformat(),
            },
            "kind": publication.kind,
            "remark": publication.remark,
            "tally": None if publication.tally is None else publication.tally.as_json(),
            "catalogue": None if publication.catalogue is None else publication.catalogue.as_json(),
            "matched_share": rounded(publication.matched_share),
            "changed": publication.changed,
            "removed": publication.removed,
            "published_at": publication.published_at.isoformat() if publication.published_at else None,
            "pruned_at": self.log.pruned_at.isoformat() if self.log.pruned_at else None,
            "delivered": [
                {
                    "user": what.user,
                    "state": what.state,
                    "bytes": what.bytes,
                    "pieces": what.pieces,
                    "handles": what.handles,
                    "addresses": list(what.addresses),
                    "nodes": list(what.nodes),
                    "first": what.first.isoformat(),
                    "last": what.last.isoformat(),
                    "completed": what.completed.isoformat() if what.completed else None,
                }
                for what in self.delivered
            ],
            "pickups": [
                {
                    "user": pickup.user,
                    "address": pickup.address,
                    "client": pickup.client,
                    "started": pickup.started.isoformat(),
                    "ended": pickup.ended.isoformat() if pickup.ended else None,
                    "bytes": pickup.bytes_answered,
                    "covered": pickup.covered,
                    "delivered": pickup.delivered,
                    "grade": str(pickup.grade),
                    "ending": str(pickup.ending) if pickup.ending else None,
                }
                for pickup in self.pickups
            ],
            "late_checks": [
                {
                    "at": check.at.isoformat(),
                    "etag": check.etag,
                    "unsent": check.unsent,
                    "changed": check.changed,
                    "removed": check.removed,
                }
                for check in self.checks
            ],
            "no_late_rows": self.no_late_rows,
        }


def trace_of(config: Config, name: LogName) -> Trace:
    """Return what the ledger knows about a file.

    Raises:
        PickupPointError: it has never seen the name.
    """
    with contextlib.closing(Ledger.read(config.data_dir / LEDGER_FILE)) as ledger:
        publications = ledger.publications(name.day)
        for publication in publications:
            for entry in publication.logs:
                if entry.name == name:
                    pickups = ledger.pickups
                    return Trace(
                        entry,
                        publication,
                        pickups.handles([name]),
                        pickups.delivered([name]),
                        ledger.late_checks(name.day),
                        next((other for other in publications if other.id == entry.superseded_by), None),
                        _no_late_rows(config, publications) if entry.state != "pruned" else "",
                    )
    raise PickupPointError(
        f"the ledger has never seen a file {name}", hint="the days that are known: pickup-point status"
    )


def _no_late_rows(config: Config, publications: Sequence[Publication]) -> str:
    try:
        key = load_ip_hash_key(config.keys_dir)
    except ConfigError:  # whoever asks may not see it
        return ""
    return incomparable(standing(publications), with_fingerprint(config.log_rules, key))


@dataclass(frozen=True, slots=True)
class DayDetails:
    """What an overview leaves out about a day: its late checks, the books of a held version, and those by podcast."""

    checks: list[LateCheck]
    held: Tally | None
    podcasts: list[PodcastLine]


def details_of(config: Config, day: date) -> DayDetails:
    """Return the details of a day, empty if there are none."""
    with contextlib.closing(Ledger.read(config.data_dir / LEDGER_FILE)) as ledger:
        publications, record = ledger.publications(day), ledger.day(day)
        return DayDetails(
            ledger.late_checks(day),
            record.hold.tally if record is not None and record.hold is not None else None,
            reconcile(publications, ledger.books.get([publication.id for publication in publications])),
        )


def reconciliation_of(config: Config, day: date) -> tuple[list[PodcastLine], float | None]:
    """Return a published day, podcast by podcast, and the share of its lines that a catalogue matched.

    Raises:
        PickupPointError: nothing was published for the day, or its files, and with them its books, were pruned.
    """
    with contextlib.closing(Ledger.read(config.data_dir / LEDGER_FILE)) as ledger:
        publications = ledger.publications(day)
        lines = reconcile(publications, ledger.books.get([publication.id for publication in publications]))
    if not lines:
        pruned = [entry for publication in publications for entry in publication.logs if entry.state == "pruned"]
        why = ": it went with the day's files when they were pruned" if pruned else ""
        raise PickupPointError(
            f"there is no tally by podcast of {day}{why}", hint="the days that are known: pickup-point status"
        )
    return lines, matched_share(publications)


def _store(config: Config, facts: Mapping[str, Any]) -> Store | None:
    """Return the state of the bucket of published logs, if there is one."""
    if config.store is None:
        return None
    state = StoreState.of(facts, str(config.store.place))
    return Store(state, DeadlinePolicy.of(config.alerts) if config.store.required else None)


_examined: dict[Path, tuple[date, str]] = {}


def _damage_of(ledger: Ledger, today: date) -> str:
    """Return what SQLite finds wrong with the ledger; checked once a day per process, since it reads the whole file."""
    day, damage = _examined.get(ledger.path, (date.min, ""))
    if day != today or damage:
        damage = ledger.damage()
        _examined[ledger.path] = today, damage
    return damage


def _kernel() -> dict[str, Any]:
    """Return, for JSON, whether rows are converted by the kernel, and what to do if they are not."""
    lack = kernel_lack()
    return {"in_use": lack is None, "sentence": lack[0] if lack else "", "hint": lack[1] if lack else ""}


def _is_running(data_dir: Path) -> bool:
    """Return whether a service holds the data folder's lock."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # This takes the lock for an instant if it is free; a service that starts just then tries again.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _measured(config: Config, damage: str) -> Measured:
    """Measure the disk of the data folder, or of the folder that it will be created in, and look at the keys."""
    folder = config.data_dir
    with translate_os_errors(folder):
        while not folder.exists() and folder != folder.parent:  # before the first start
            folder = folder.parent
        usage = shutil.disk_usage(folder)
    # Some file systems report no size at all, but have room: they count as a pebibyte, as rclone's mounts report.
    free, total = (usage.free, usage.total) if usage.total else (1 << 50, 1 << 50)
    return Measured(free / total, free, tuple(_readable_keys(config.keys_dir)), damage)


def _lost_logs(config: Config, publications: Sequence[Publication], now: datetime) -> tuple[LogName, ...]:
    """Return the published logs that are not in the folder with the size they had; `prune` may be removing old ones."""
    folder, lost = DataFolder(config.data_dir).pickup_dir, []
    for file in ages(publications, config.retention.keep_days):
        if now > file.remove_after or file.log.superseded_by is not None:
            continue
        try:
            found = (folder / str(file.log.name)).lstat()
        except FileNotFoundError:
            lost.append(file.log.name)
        except OSError:  # the folder cannot be read: another alarm says so
            return ()
        else:
            if not stat.S_ISREG(found.st_mode) or found.st_size != file.log.size:
                lost.append(file.log.name)
    return tuple(lost)


def _readable_keys(keys_dir: Path) -> Iterator[str]:
    """Return the paths of private keys that can be read by others than their owner."""
    return (str(keys_dir / name) for name in _PRIVATE if is_readable_key(keys_dir / name))


def is_readable_key(path: Path) -> bool:
    """Return whether a private key can be read by others than its owner; False if it is not there."""
    with contextlib.suppress(OSError):
        return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
    return False
