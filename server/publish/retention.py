"""Retention: which files are too old, and one pass that removes them.

Triton: "Create a clean-up task to remove log files that were created more than 60 days ago". Age counts from the
publication in the ledger; a file that the ledger does not know is never removed. `expired` is pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from ..megaphone.exports import moment, start_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..pickups import Delivered
    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..storage.records import LedgerLog, Publication
    from ..triton import LogName

log = structlog.get_logger()

DAY = timedelta(days=1)
WARN_DAYS = 7  # so long before its removal a file that was never picked up is warned of


@dataclass(frozen=True, slots=True)
class Expiring:
    """A published file, and the time after which it is removed."""

    log: LedgerLog
    published_at: datetime
    remove_after: datetime


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one pass removed: log names and rejects files.

    ``unclaimed`` are the files to be removed within `WARN_DAYS` that were never picked up whole.
    """

    logs: tuple[LogName, ...]
    rejects: tuple[str, ...]
    unclaimed: tuple[Expiring, ...]


class SteadyClock:
    """The earlier of the local and the source's time at the last round, counted on by a clock that never jumps.

    The skew that the ledger has is that of a round: a local clock that jumps after it would make files old.
    """

    def __init__(self) -> None:
        self._seen: tuple[datetime, float] | None = None

    def compared(self, now: datetime, source_now: datetime, counted: float) -> None:
        """Take over the two clocks as a round compared them; ``counted`` is the monotonic clock then, in seconds."""
        self._seen = min(now, source_now), counted

    def now(self, counted: float) -> datetime | None:
        """Return the time at ``counted``, or None before the first round."""
        return None if self._seen is None else self._seen[0] + timedelta(seconds=counted - self._seen[1])


def ages(publications: Iterable[Publication], keep_days: int) -> list[Expiring]:
    """Return every file that is still published, with the time after which it is removed, the oldest first.

    No day was published before its end, whatever a clock or a restored file's mtime said then.
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
    """Return the files that are more than ``keep_days`` days (of 24 h) old."""
    return [file for file in files if now > file.remove_after]


def unclaimed(files: Iterable[Expiring], delivered: Iterable[Delivered], now: datetime) -> list[Expiring]:
    """Return the files to be removed within `WARN_DAYS` that were never picked up whole."""
    taken = {what.name for what in delivered if what.completed is not None}
    soon = now + timedelta(days=WARN_DAYS)
    waiting = [file for file in files if now <= file.remove_after <= soon and file.log.superseded_by is None]
    return [file for file in waiting if file.log.name not in taken]


def prune(
    ledger: Ledger, folder: DataFolder, keep_days: int, now: datetime, *, dry_run: bool = False, steady: bool = False
) -> Pruned:
    """Run one retention pass, under the round lock; with ``dry_run`` only return what it would remove.

    ``now`` is the local clock, or, if ``steady``, a `SteadyClock`'s, which a wrong local clock does not mislead.

    Raises:
        DataFolderError, LedgerError: the disk failed; what was removed before stays removed and recorded.
    """
    # A local clock ahead of the source's must not remove what the partner has yet to fetch.
    if not steady:
        now -= timedelta(seconds=max(0.0, float(ledger.facts().get("clock_skew", 0))))
    files = ages(ledger.live_publications(), keep_days)
    gone = expired(files, now)
    keep = timedelta(days=keep_days)
    old_rejects = [name for name, mtime in folder.rejects() if now > moment(mtime) + keep]
    waiting = unclaimed(files, ledger.pickups.delivered([file.log.name for file in files]), now)
    if not dry_run:
        for file in gone:
            # The file first: a crash in between leaves a file that is gone and recorded as published, which the next
            # pass records; the other way round it would stay for ever, since only published entries grow old.
            folder.remove(file.log.name)
            ledger.pruned(file.log.name, now)
            log.info(f"retention pruned {file.log.name}", published=f"{file.published_at:%Y-%m-%dT%H:%MZ}")
        for name in old_rejects:
            folder.remove_rejects(name)
            log.info(f"retention pruned {name}")
        for file in waiting:
            removal = f"{file.remove_after:%Y-%m-%dT%H:%MZ}"
            log.warning(f"retention found {file.log.name} never picked up", will_be_removed=removal)
    return Pruned(tuple(file.log.name for file in gone), tuple(old_rejects), tuple(waiting))


def thin_out_pickups(ledger: Ledger, keep_pickups_days: int, now: datetime) -> None:
    """Drop the records of single handles older than that; the first, best and last of each user and log stay."""
    ledger.pickups.thin_out(now - timedelta(days=keep_pickups_days))
