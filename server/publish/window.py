"""Which days there should be, and which of them a round looks at.

Pure. Promise: a day that Triton still counts, and a day of which something is not settled yet (rows withheld, an export
that changed since it was compared), is looked at in every round, whatever ``look_back_days`` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..triton import COUNTED_DAYS, expires

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ..megaphone.exports import DayExport, Listing
    from ..settings import ExportSettings
    from ..storage.records import DayRecord, Publication


@dataclass(frozen=True, slots=True)
class KnownDays:
    """What the ledger knows: the days' records, the days that were published, when the service first started.

    Of days before the ``horizon`` nothing was read.
    """

    records: Mapping[date, DayRecord]
    published: Collection[date]
    first_start: str | None
    horizon: date = date.min

    @classmethod
    def of(
        cls,
        records: Mapping[date, DayRecord],
        publications: Iterable[Publication],
        facts: Mapping[str, Any],
        horizon: date = date.min,
    ) -> KnownDays:
        """Return what these contents of the ledger say."""
        published = {publication.day for publication in publications if publication.published_at is not None}
        return cls(records, published, facts.get("first_start"), horizon)

    def begin(self, export: ExportSettings, keep_days: int, today: date, listed: Collection[date] = ()) -> date | None:
        """Return the first day that should exist and can still be published; None when no day was ever seen."""
        began = export.first_day
        if began is None:
            # No day before the first one ever seen is missing: Megaphone does not backfill.
            delivered = (day for day, record in self.records.items() if record.export is not None)
            seen = min([*listed, *self.published, *delivered], default=None)
            if seen is None:
                return None
            started = today if self.first_start is None else datetime.fromisoformat(self.first_start).date()
            began = max(seen, started - timedelta(days=export.look_back_days))
        return max(began, self.floor(export, keep_days, today))

    def floor(self, export: ExportSettings, keep_days: int, today: date) -> date:
        """Return the first day that can still be published, whether or not the service was there for it."""
        return max(export.first_day or date.min, today - timedelta(days=keep_days - 1), self.horizon)


@dataclass(frozen=True, slots=True)
class Window:
    """The days that a round looks at, and those it ``passed_over``: not published, and no longer looked at."""

    days: tuple[date, ...] = ()
    passed_over: tuple[date, ...] = ()


def window(export: ExportSettings, keep_days: int, known: KnownDays, listing: Listing) -> Window:
    """Return the days of a round."""
    today = listing.now.date()
    begin = known.begin(export, keep_days, today, listing.exports)
    if begin is None:
        return Window()
    # Whatever is configured: a day that still counts is not left to itself.
    oldest = today - timedelta(days=max(export.look_back_days, COUNTED_DAYS.days - 1))
    days = _between(max(begin, oldest), today + timedelta(days=1))
    # Also days before this service began: another node published them, or this one did before it lost its ledger.
    floor = known.floor(export, keep_days, today)
    published = {day for day in known.published if floor <= day and day not in days}
    open_ends = [day for day in published if _unsettled(known.records.get(day), listing.exports.get(day), listing.now)]
    passed_over = [day for day in _between(begin, oldest) if day not in published]
    return Window(tuple(sorted([*open_ends, *days])), tuple(passed_over))


def _between(first: date, end: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((end - first).days)]


def _unsettled(record: DayRecord | None, export: DayExport | None, now: datetime) -> bool:
    """Return whether rows of a published day may be unsent, and nobody was told that they come too late."""
    if record is None:  # adopted, and never looked at
        return False
    if record.withheld:
        return True
    if export is None or export.etag == record.checked_etag:
        return False
    if now < expires(record.day):
        return True
    failed = record.failure is not None and record.failure.etag == export.etag  # and that was told
    compared = record.checked_etag and record.checked_at is not None and record.checked_at >= expires(record.day)
    return not failed and not compared
