"""Which days should exist, and which of them a round looks at.

Pure. Promise: a day that Triton still counts, and a day that is not settled yet (rows withheld, or an export changed
since it was compared), is looked at in every round, whatever ``look_back_days`` says.
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
    """What the ledger knows: the days' records, the days published, and when the service first started (ISO 8601).

    Nothing was read about days before the ``horizon``.
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
        """Return the first day that should exist and can still be published; None if no day was ever seen."""
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
        """Return the first day that can still be published, whether or not the service had started by then."""
        return max(export.first_day or date.min, today - timedelta(days=keep_days - 1), self.horizon)


@dataclass(frozen=True, slots=True)
class Window:
    """The days that a round looks at, and those ``passed_over``: never published, and no longer looked at."""

    days: tuple[date, ...] = ()
    passed_over: tuple[date, ...] = ()


def window(export: ExportSettings, keep_days: int, known: KnownDays, listing: Listing, last: date) -> Window:
    """Return the days that a round looks at, given what the source lists and when the ``last`` round was."""
    today = listing.now.date()
    begin = known.begin(export, keep_days, today, listing.exports)
    began = known.begin(export, keep_days, last, listing.exports)
    if begin is None or began is None:
        return Window()
    # At least the days that still count, whatever is configured.
    oldest = today - timedelta(days=max(export.look_back_days, COUNTED_DAYS.days - 1))
    days = _between(max(begin, oldest), today + timedelta(days=1))
    # Days before this service began are included: another node published them, or this one before it lost its ledger.
    floor = known.floor(export, keep_days, today)
    published = {day for day in known.published if floor <= day and day not in days}
    open_ends = [day for day in published if _unsettled(known.records.get(day), listing.exports.get(day), listing.now)]
    # What the last round looked at may be so old that no window has it any more.
    passed_over = {*_between(began, last + timedelta(days=1)), *_between(begin, oldest)} - {*known.published, *days}
    return Window(tuple(sorted([*open_ends, *days])), tuple(sorted(passed_over)))


def _between(first: date, end: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((end - first).days)]


def _unsettled(record: DayRecord | None, export: DayExport | None, now: datetime) -> bool:
    """Return whether rows of a published day may be unsent without its being on record that they are too late."""
    if record is None:  # adopted, and never looked at since
        return False
    if record.withheld:
        return True
    if export is None or export.etag == record.checked_etag:
        return False
    if now < expires(record.day):
        return True
    failed = record.failure is not None and record.failure.etag == export.etag  # and that was logged
    compared = record.checked_etag and record.checked_at is not None and record.checked_at >= expires(record.day)
    return not failed and not compared
