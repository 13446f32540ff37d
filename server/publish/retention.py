"""Retention: which files are too old, and one pass that removes them.

Triton: "Create a clean-up task to remove log files that were created more than 60 days ago". Age counts from the
publication in the ledger. A file that the ledger does not know is never removed; no file is while the clock is in
doubt (`clock`). `ages`, `expired` and `unclaimed` are pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from ..megaphone.exports import moment, start_of
from .clock import LEAP, LEAP_HINT, STOPPED, believe, doubt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..pickups import Delivered
    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..storage.records import LedgerLog, Publication
    from ..triton import LogName
    from .shared import SharedSequence

log = structlog.get_logger()

DAY = timedelta(days=1)
WARN_DAYS = 7  # days before its removal from which a file that was never picked up is warned about
WARNED = "unclaimed_told"  # a fact of the ledger: the files that were warned about


@dataclass(frozen=True, slots=True)
class Expiring:
    """A published file, and the time after which it is removed."""

    log: LedgerLog
    published_at: datetime
    remove_after: datetime


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one pass removed: log names and rejects files.

    ``unclaimed`` are the files to be removed within `WARN_DAYS` that were never picked up whole. ``doubt`` is why the
    clock is not believed, so that nothing was removed, or ''.
    """

    logs: tuple[LogName, ...]
    rejects: tuple[str, ...]
    unclaimed: tuple[Expiring, ...]
    doubt: str = ""


def ages(publications: Iterable[Publication], keep_days: int) -> list[Expiring]:
    """Return every file that is still published, with the time after which it is removed, oldest first.

    Age counts from the end of the file's day at the earliest, whatever a clock or a restored file's mtime said.
    """
    keep = timedelta(days=keep_days)
    files = [
        Expiring(entry, publication.published_at, max(publication.published_at, start_of(publication.day) + DAY) + keep)
        for publication in publications
        for entry in publication.logs
        if entry.state == "published" and publication.published_at is not None
    ]
    return sorted(files, key=lambda file: (file.remove_after, file.log.name))


def expired(files: Iterable[Expiring], now: datetime) -> list[Expiring]:
    """Return the files whose time has come: more than ``keep_days`` days (of 24 h) old."""
    return [file for file in files if now > file.remove_after]


def unclaimed(files: Iterable[Expiring], delivered: Iterable[Delivered], now: datetime) -> list[Expiring]:
    """Return the files to be removed within `WARN_DAYS` that were never picked up whole."""
    taken = {what.name for what in delivered if what.completed is not None}
    soon = now + timedelta(days=WARN_DAYS)
    waiting = [file for file in files if now <= file.remove_after <= soon and file.log.superseded_by is None]
    return [file for file in waiting if file.log.name not in taken]


def prune(
    ledger: Ledger,
    folder: DataFolder,
    keep_days: int,
    now: datetime,
    *,
    dry_run: bool = False,
    steady: bool = False,
    vouched: datetime | None = None,
    shared: SharedSequence | None = None,
) -> Pruned:
    """Run one retention pass, under the round lock; with ``dry_run`` only return what it would remove.

    ``now`` is the local clock's time, or, if ``steady``, one that needs no comparison with the source's: a
    `SteadyClock`'s, or the local one by an operator's word. A clock in doubt removes nothing, unless somebody has
    ``vouched`` for an instant, which is then recorded. With ``shared``, files are pruned on all nodes.

    Nothing is written until there is room: pruning is what an operator does about a full disk.

    Raises:
        StoreError: the shared store does not answer; the next pass goes on.
        DataFolderError, LedgerError: the disk failed; what was removed before stays removed and recorded.
    """
    # A local clock ahead of the source's must not remove what the partner has not fetched yet.
    if not steady:
        now -= timedelta(seconds=max(0.0, float(ledger.facts().get("clock_skew", 0))))
    why = doubt(ledger, now) if vouched is None or now > vouched + LEAP else ""
    if why and not dry_run:
        ledger.note(**{STOPPED: why})
        log.warning(f"retention stopped: {why}", hint=LEAP_HINT)
        return Pruned((), (), (), why)
    files = ages(ledger.standing(), keep_days)
    gone = expired(files, now)
    keep = timedelta(days=keep_days)
    old_rejects = [name for name, mtime in folder.rejects() if now > moment(mtime) + keep]
    waiting = unclaimed(files, ledger.pickups.delivered([file.log.name for file in files]), now)
    if not dry_run:
        for name in old_rejects:
            folder.remove_rejects(name)
            log.info(f"retention pruned {name}")
        if shared is not None:
            chosen = shared.prune(lambda: [file.log.name for file in expired(ages(ledger.standing(), keep_days), now)])
            gone = [file for file in gone if file.log.name in chosen]
        else:
            _remove(ledger, folder, gone, now)
        for file in gone:
            log.info(f"retention pruned {file.log.name}", published=f"{file.published_at:%Y-%m-%dT%H:%MZ}")
        if vouched is not None:
            believe(ledger, vouched)
        if ledger.facts().get(STOPPED):
            ledger.note(**{STOPPED: ""})
        _warn_of(ledger, waiting)
    return Pruned(tuple(file.log.name for file in gone), tuple(old_rejects), tuple(waiting), why)


def _remove(ledger: Ledger, folder: DataFolder, gone: Iterable[Expiring], now: datetime) -> None:
    removed = []
    try:
        for file in gone:
            folder.remove(file.log.name)
            removed.append(file.log.name)
    finally:
        # All the files first: on a full disk the ledger needs the room. After a crash in between, the next pass records
        # that they are gone. The other way round they would stay for ever, since only entries recorded as published are
        # pruned.
        if removed:
            with ledger.together():
                for name in removed:
                    ledger.pruned(name, now)


def _warn_of(ledger: Ledger, waiting: Iterable[Expiring]) -> None:
    """Warn once for each file that it will be removed although it was never picked up."""
    removal = {str(file.log.name): f"{file.remove_after:%Y-%m-%dT%H:%MZ}" for file in waiting}
    warned = ledger.facts().get(WARNED, [])
    for name in sorted(removal.keys() - set(warned)):
        log.warning(f"retention found {name} never picked up", will_be_removed=removal[name])
    if sorted(removal) != warned:
        ledger.note(**{WARNED: sorted(removal)})


def thin_out_pickups(ledger: Ledger, keep_pickups_days: int, now: datetime) -> None:
    """Drop the records of handles older than ``keep_pickups_days``; each user's first, best and last per log stay.

    Nothing is dropped while the clock is in doubt.
    """
    if not doubt(ledger, now):
        ledger.pickups.thin_out(now - timedelta(days=keep_pickups_days))
