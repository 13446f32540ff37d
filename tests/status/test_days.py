"""The overview of the days: every word, every number, and the advice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson
import pytest

from server.convert.tally import Tally
from server.episodes.catalogue import CatalogueStamp
from server.megaphone.exports import DayExport
from server.pickups import Delivered, Grade
from server.publish.window import KnownDays
from server.settings import ExportSettings
from server.status.days import Calendar, DayOverview, overview, span
from server.status.deadlines import DeadlinePolicy
from server.storage.records import DayRecord, Failure, Hold, LedgerLog, Publication
from tests.support.rows import rules
from tests.support.site import DAY, Site, at, log_name, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

NOW = at(1, "09:00")
EXPORT = DayExport(DAY, "metrics-day-2026-11-20.json.gz", "etag", 9, at(1, "04:10"))
TALLY = Tally(rows=10, lines=10)
HELD = Hold("2 of 12 rows were rejected", "rejected", "etag", TALLY)
FAILED = Failure("it is truncated", "gzip -t", "etag", NOW, NOW + timedelta(minutes=10), 1)


def log(number: int = 0, publication: int = 1, **changes: object) -> LedgerLog:
    """A published log of ten lines."""
    return replace(LedgerLog(log_name(number), publication, 100, "f" * 64, 1, 10, "published"), **changes)  # type: ignore[arg-type]  # by name


def publication(*logs: LedgerLog, number: int = 1, **changes: object) -> Publication:
    """A publication at D+1 05:35."""
    made = Publication(number, DAY, "first", EXPORT, rules(), TALLY, at(1, "05:35"), at(1, "05:35"), logs=logs)
    return replace(made, **changes)  # type: ignore[arg-type]  # by name


def pickup(number: int = 0, user: str = "triton", grade: Grade = Grade.COMPLETE) -> Delivered:
    """What a user has of a file, all of it since D+1 07:00 and some minutes, or half of it."""
    begun, ended = at(1, "07:00"), at(1, f"07:0{number + 1}")
    whole = grade is Grade.COMPLETE
    return Delivered(
        log_name(number), user, 100, 100 if whole else 50, 1, False, 1, ("198.51.100.7",), begun, ended,
        ended if whole else None,
    )  # fmt: skip


def one(
    record: DayRecord | None = None,
    publications: Sequence[Publication] = (),
    pickups: Sequence[Delivered] = (),
    users: Sequence[tuple[str, bool]] = (("triton", True), ("auditor", False)),
) -> DayOverview:
    """The overview of the one day."""
    records = {} if record is None else {DAY: record}
    (day,) = overview(records, publications, pickups, users, DeadlinePolicy(), NOW)
    return day


def record(seen: str, **changes: object) -> DayRecord:
    """What a round saw."""
    return replace(DayRecord(DAY, seen, NOW, EXPORT), **changes)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize(("day", "word"), [
    (one(record("open")), "open"),
    (one(record("settling")), "settling"),
    (one(record("due")), "due"),
    (one(record("missing", export=None)), "missing"),
    (one(record("stale")), "stale"),
    (one(record("due", hold=HELD)), "held"),
    (one(record("settling", hold=replace(HELD, etag="older"))), "settling"),
    (one(record("due", failure=FAILED)), "failed"),
    (one(record("stale", failure=FAILED)), "failed"),
    (one(record("settling", failure=replace(FAILED, etag="older"))), "settling"),
    (one(record("due"), [publication(log())]), "published"),
    (one(None, [publication(log())]), "published"),
    (one(record("due", failure=FAILED), [publication(log())]), "published"),
    (one(record("due"), [publication(log(), published_at=None)]), "due"),
    (one(record("due"), [publication(log())], [pickup()]), "picked up"),
    (one(record("due"), [publication(log())], [pickup(user="auditor")]), "published"),
    (one(record("due"), [publication(log())], [pickup(grade=Grade.PARTIAL)]), "published"),
    (one(record("due"), [publication(log(), log(1))], [pickup()]), "published"),
    (one(record("due"), [publication(log(), log(1))], [pickup(), pickup(1)]), "picked up"),
    (one(record("due"), [publication(log(superseded_by=2)), publication(log(1), number=2)], [pickup(1)]), "picked up"),
    (one(record("due"), [publication(log(superseded_by=2)), publication(log(1), number=2)], [pickup()]), "published"),
    (one(record("due"), [publication(log(state="pruned"))], [pickup()]), "pruned"),
    (one(record("due"), [publication(log(state="pruned"), log(1))], [pickup()]), "published"),
])  # fmt: skip
def test_each_day_has_one_word(day: DayOverview, word: str) -> None:
    """The word follows from what was seen, held, failed, published, picked up and pruned, in that order of strength."""
    assert day.state == word


CLOCK = [(at(1, "05:04"), at(0)), (at(1, "05:05"), at(1)), (at(9, "05:05"), at(9))]


@pytest.mark.parametrize(("now", "overdue"), CLOCK)
@pytest.mark.parametrize("seen", ["nothing", "open", "settling", "due", "missing", "held", "published"])
def test_a_day_is_there_by_the_clock_whether_or_not_the_source_can_be_asked(
    now: datetime, overdue: datetime, seen: str
) -> None:
    """From `first_day` on; what no round has seen since it could be final, and three polls more, is unknown."""
    records = {DAY: record("due", hold=HELD) if seen == "held" else record(seen)}
    known = KnownDays({} if seen == "nothing" else records, [], None)
    published = [publication(log())] if seen == "published" else []
    settings = ExportSettings(url="s3://exports", first_day=DAY, poll_every=timedelta(minutes=10))
    calendar = Calendar.of(settings, 60, known, now)
    days = {
        day.day: day for day in overview(known.records, published, [], [], DeadlinePolicy(), now, calendar=calendar)
    }
    assert sorted(days) == [DAY + timedelta(days=n) for n in range((now.date() - DAY).days + 1)]
    for day in days:
        word = "unknown" if day < overdue.date() else "open"
        if day == DAY and seen not in ("nothing", "open"):
            word = seen
        assert days[day].state == word, day
        assert ("doctor" in days[day].advice) == (word == "unknown")


def test_the_calendar_begins_with_the_first_day_that_should_be_there() -> None:
    """Never before `keep_days`, and nowhere where no day was ever seen."""
    settings = ExportSettings(url="s3://exports")
    assert Calendar.of(settings, 60, KnownDays({}, [], None), NOW).days == []
    since = KnownDays({DAY: record("due")}, [], at(0).isoformat())
    assert Calendar.of(settings, 60, since, NOW).days == [DAY, DAY + timedelta(days=1)]
    assert len(Calendar.of(settings, 60, since, at(300)).days) == 60


@pytest.mark.parametrize(("day", "advice"), [
    (one(record("open")), ""),
    (one(record("due", hold=HELD)), f"look at rejects/, then: pickup-point feed --day {DAY} --accept-rejects"),
    (one(record("due", failure=FAILED)), "it is truncated; gzip -t; the next try is at 2026-11-21 09:10Z"),
    (one(record("missing", export=None)), "ask support-megaphone@spotify.com"),
    (one(record("stale")), "ask support-megaphone@spotify.com"),
    (one(record("missing", export=None), [publication(log())]), ""),
    (one(record("due", hold=HELD), [publication(log())]), ""),
    (one(record("settling", hold=replace(HELD, etag="older"))), ""),
])  # fmt: skip
def test_what_is_wrong_comes_with_something_to_type(day: DayOverview, advice: str) -> None:
    """Held, failed, missing and stale days have advice; the others have none."""
    assert advice in day.advice and bool(advice) == bool(day.advice)


def test_a_day_is_picked_up_when_the_last_required_user_has_the_last_file() -> None:
    """With two required users and two files, the last of the four first whole pickups counts."""
    users = [("a", True), ("b", True), ("c", False)]
    files = [publication(log(), log(1))]
    taken = [pickup(0, "a"), pickup(1, "a"), pickup(0, "b")]
    assert one(None, files, taken, users).deadlines.picked_up.done is None
    day = one(None, files, [*taken, pickup(1, "b"), pickup(0, "c", Grade.PARTIAL)], users)
    assert day.deadlines.picked_up.done == at(1, "07:02")
    assert [(user.user, user.whole, user.files, user.begun) for user in day.pickups] == [
        ("a", 2, 2, True), ("b", 2, 2, True), ("c", 0, 2, True),
    ]  # fmt: skip


def test_the_numbers_are_those_of_the_newest_tally_and_of_the_standing_files() -> None:
    """Rows and rejects come from the newest conversion, lines from every file that was not superseded."""
    late = Tally(rows=15, lines=5)
    late.filtered["sent_before"] = 10
    day = one(None, [publication(log()), publication(log(1, 2, lines=5), number=2, kind="late", tally=late)])
    assert (day.rows, day.lines, day.filtered, day.rejected) == (15, 15, 10, 0)
    assert day.published_at == at(1, "05:35")
    held = one(record("due", hold=replace(HELD, tally=Tally(rows=12, lines=10))))
    assert (held.rows, held.lines, held.published_at) == (12, 0, None)


async def test_a_real_day_as_json(site: Site) -> None:
    """``status --json`` shows export, files, tallies, pickups and both deadlines; it is JSON, with times in UTC."""
    site.put(rows_of(DAY, 10), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.pick_up(at(1, "07:00"))
    shown = orjson.loads(orjson.dumps(site.days(NOW)[DAY].as_json()))
    assert (shown["day"], shown["state"], shown["rows"], shown["lines"]) == ("2026-11-20", "picked up", 10, 10)
    assert shown["export"]["last_modified"] == "2026-11-21T04:10:00Z"
    assert [file["name"] for file in shown["files"]] == ["MEGA20261120-00.tsv.gz"]
    assert shown["publications"][0]["tally"]["rows"] == 10
    assert shown["picked_up"] == [{"user": "triton", "files": 1, "of": 1, "at": "2026-11-21T07:00:00Z", "parts": []}]
    assert shown["deadlines"]["published"] == {
        "by": "2026-11-22T00:00:00Z", "done": "2026-11-21T05:35:00Z", "state": "met", "seconds_left": 66300,
    }  # fmt: skip


async def test_the_newest_day_is_first(site: Site) -> None:
    """Days are listed from the newest to the oldest."""
    await site.round(at(2, "05:35"))
    assert list(site.days(at(2, "05:35"))) == [DAY + timedelta(days=n) for n in (2, 1, 0)]


@pytest.mark.parametrize(("left", "text"), [
    (timedelta(seconds=59), "0 min"), (timedelta(minutes=59), "59 min"), (timedelta(hours=1), "1 h"),
    (timedelta(hours=47, minutes=59), "47 h"), (timedelta(hours=51), "2 d 3 h"), (-timedelta(hours=2), "2 h"),
])  # fmt: skip
def test_spans_read_as_people_say_them(left: timedelta, text: str) -> None:
    """Minutes, then hours up to two days, then days and hours."""
    assert span(left) == text


def test_the_share_that_matched_stands_beside_each_tally_and_counts_no_fallback() -> None:
    """Of each publication, also of one that was sent again; of the day, that of those that stand."""
    stamp = CatalogueStamp("v", 1)
    some = Tally(rows=10, lines=10, unmapped_episodes=1, fallback_urls=3, unmatched=4)
    first = publication(log(superseded_by=2), tally=some, catalogue=stamp)
    other = Tally(rows=10, lines=10, fallback_urls=2, unmatched=2)
    again = publication(log(1, 2), number=2, kind="resend", tally=other, catalogue=stamp)
    told = one(record("due"), [first, again]).as_json()
    assert [each["matched_share"] for each in told["publications"]] == [0.6, 0.8]
    assert told["matched_share"] == 0.8
    bare = one(record("due"), [publication(log(), tally=some)]).as_json()
    assert bare["matched_share"] is None and bare["publications"][0]["matched_share"] is None
