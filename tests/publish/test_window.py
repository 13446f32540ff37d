"""`window`: which days a round looks at, by a table of settings and of what the ledger and the listing know."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from server.megaphone.exports import DayExport, Listing
from server.publish.window import KnownDays, Window, window
from server.settings import ExportSettings
from server.storage.records import DayRecord, Failure

DAY = date(2026, 11, 20)


def at(days: int, clock: str) -> datetime:
    """Return the instant this many days after the day's own, at a time in UTC."""
    return datetime.fromisoformat(f"{DAY + timedelta(days=days)}T{clock}:00+00:00")


def days(first: int, last: int) -> list[date]:
    """Return the days from one to another, counted from the day, both included."""
    return [DAY + timedelta(days=n) for n in range(first, last + 1)]


EXPORT = DayExport(DAY, "metrics-day-2026-11-20.json.gz", "v1", 100, at(1, "03:00"))
CHANGED = EXPORT._replace(etag="v2")
SENT = DayRecord(DAY, "due", at(1, "06:00"), EXPORT, checked_etag="v1", checked_at=at(1, "06:00"))
TORN = Failure("it is torn", "", "v2", at(2, "23:00"), at(3, "00:00"), 1)
ALL = Window(tuple(days(0, 2)))

# what, settings, the day's record or None, whether it was published, the export that is listed, now, the window,
# and since when the service runs, where that matters.
CASES: list[tuple[Any, ...]] = [
    ("nothing was ever seen", {}, None, False, None, at(2, "06:00"), Window()),
    ("a first day", {"first_day": DAY}, None, False, None, at(2, "06:00"), ALL),
    ("a first day to come", {"first_day": DAY}, None, False, None, at(-1, "06:00"), Window()),
    ("a first start", {}, None, False, EXPORT, at(2, "06:00"), ALL),
    ("a first start that looks back one day", {"look_back_days": 1}, None, False, EXPORT, at(2, "06:00"),
     Window(tuple(days(1, 2)))),
    ("a day that counts, whatever the window", {"look_back_days": 1, "first_day": DAY}, None, False, EXPORT,
     at(2, "06:00"), ALL),
    ("passed over", {"look_back_days": 1, "first_day": DAY}, None, False, EXPORT, at(3, "00:00"),
     Window(tuple(days(1, 3)), (DAY,))),
    ("looked back on", {"look_back_days": 3, "first_day": DAY}, None, False, EXPORT, at(3, "00:00"),
     Window(tuple(days(0, 3)))),
    ("never there, and passed over", {"first_day": DAY}, None, False, None, at(5, "06:00"),
     Window(tuple(days(2, 5)), tuple(days(0, 1)))),
    ("older than keep_days", {"first_day": DAY}, None, False, EXPORT, at(62, "06:00"),
     Window(tuple(days(59, 62)), tuple(days(3, 58)))),
    # Published, and out of the window
    ("settled", {"first_day": DAY}, SENT, True, EXPORT, at(5, "06:00"), Window(tuple(days(2, 5)))),
    ("its export gone", {"first_day": DAY}, SENT, True, None, at(5, "06:00"), Window(tuple(days(2, 5)))),
    ("rows withheld", {"first_day": DAY}, replace(SENT, withheld=9), True, EXPORT, at(5, "06:00"),
     Window((DAY, *days(2, 5)))),
    ("rows withheld from an export that is gone", {"first_day": DAY}, replace(SENT, withheld=9), True, None,
     at(5, "06:00"), Window((DAY, *days(2, 5)))),
    ("changed unseen", {"first_day": DAY}, SENT, True, CHANGED, at(5, "06:00"), Window((DAY, *days(2, 5)))),
    ("changed, and told", {"first_day": DAY}, replace(SENT, checked_at=at(3, "00:00")), True, CHANGED, at(5, "06:00"),
     Window(tuple(days(2, 5)))),
    ("changed, and told as a failure", {"first_day": DAY}, replace(SENT, failure=TORN), True, CHANGED, at(5, "06:00"),
     Window(tuple(days(2, 5)))),
    ("published in part", {"first_day": DAY}, replace(SENT, checked_etag="", checked_at=at(4, "00:00")), True, EXPORT,
     at(5, "06:00"), Window((DAY, *days(2, 5)))),
    ("adopted", {"first_day": DAY}, None, True, EXPORT, at(5, "06:00"), Window(tuple(days(2, 5)))),
    ("before the first day", {"first_day": DAY + timedelta(days=1)}, replace(SENT, withheld=9), True, EXPORT,
     at(5, "06:00"), Window(tuple(days(2, 5)))),
    # Published by another node, before this one began
    ("changed, and it still counts", {"look_back_days": 1}, SENT, True, CHANGED, at(2, "23:00"), ALL, at(2, "20:00")),
    ("changed unseen, long before", {"look_back_days": 1}, SENT, True, CHANGED, at(5, "06:00"),
     Window((DAY, *days(4, 5))), at(5, "06:00")),
    ("changed, and older than keep_days", {"look_back_days": 1}, SENT, True, CHANGED, at(60, "06:00"),
     Window(tuple(days(59, 60))), at(60, "06:00")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "record", "published", "listed", "now", "expected", "started"),
    [(*case[1:], None)[:7] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_which_days_a_round_looks_at(
    settings: dict[str, Any], record: DayRecord | None, published: bool, listed: DayExport | None, now: datetime,
    expected: Window, started: datetime | None,
) -> None:  # fmt: skip
    """One line of the table; the days after the first were published, and nothing about them is open."""
    others = days(1, 80) if published else []
    known = KnownDays(
        {DAY: record} if record else {}, [*others, *([DAY] if published else [])], started and str(started)
    )
    listing = Listing({DAY: listed} if listed else {}, now)
    assert window(ExportSettings(url="s3://exports", **settings), 60, known, listing, now.date()) == expected
