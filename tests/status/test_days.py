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
from server.pickups import Ending, Grade, Pickup, PickupProgress
from server.status.days import DayOverview, overview, span
from server.status.deadlines import DeadlinePolicy
from server.storage.records import DayRecord, Failure, Hold, LedgerLog, Publication
from tests.support.rows import rules
from tests.support.site import DAY, Site, at, log_name, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def pickup(number: int = 0, user: str = "triton", grade: Grade = Grade.COMPLETE) -> Pickup:
    """A pickup that ended at D+1 07:00 and some minutes."""
    begun, ended = at(1, "07:00"), at(1, f"07:0{number + 1}")
    return Pickup(
        f"{number}{user}{grade}", log_name(number), 100, user, "198.51.100.7", "x", begun, ended, 100, 100, grade,
        Ending.CLOSED,
    )  # fmt: skip


def one(
    record: DayRecord | None = None,
    publications: Sequence[Publication] = (),
    pickups: Sequence[Pickup] = (),
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


@pytest.mark.parametrize(("day", "advice"), [
    (one(record("open")), ""),
    (one(record("due", hold=HELD)), f"look at rejects/, then: pickup-point feed --day {DAY} --accept-rejects"),
    (one(record("due", failure=FAILED)), "it is truncated; gzip -t (next try 2026-11-21 09:10Z)"),
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
    day = one(None, files, [*taken, pickup(1, "b"), replace(pickup(1, "b"), id="again", ended=at(2))], users)
    assert day.deadlines.picked_up.done == at(1, "07:02")
    assert [(user.user, user.whole, user.files, user.begun) for user in day.pickups] == [
        ("a", 2, 2, True), ("b", 2, 2, True), ("c", 0, 2, False),
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
    assert shown["picked_up"] == [{"user": "triton", "files": 1, "of": 1, "at": "2026-11-21T07:00:00Z"}]
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


def test_an_overview_reads_one_pickup_of_each_log_and_user(site: Site) -> None:
    """However often files were opened: the first whole one, else the first at all; an hour of it is 90 MB otherwise."""

    def pick_up(minute: int, *, user: str = "triton", number: int = 0, whole: bool = False) -> Pickup:
        started = at(1, f"07:{minute:02d}")
        progress = PickupProgress(log_name(number), 100, user, "198.51.100.7", "JSch", started)
        progress.answered(0, 100 if whole else 50)
        site.ledger.record_pickup(pickup := progress.finished(started + timedelta(seconds=9), closed=True, taken=True))
        return pickup

    for minute in range(30):
        pick_up(minute)
    first = pick_up(30, whole=True)
    pick_up(31, whole=True)
    begun = pick_up(40, user="other")
    pick_up(41, user="other")
    second = pick_up(20, number=1, whole=True)
    found = site.ledger.first_pickups()
    assert sorted(found, key=lambda pickup: pickup.started) == [second, first, begun]


def test_the_share_that_matched_stands_beside_each_tally_and_counts_no_fallback() -> None:
    """Of each publication, also of one that was sent again; of the day, that of those that stand."""
    stamp = CatalogueStamp("v", 1)
    some = Tally(rows=10, lines=10, unmapped_episodes=1, fallback_urls=3, unmatched=4)
    first = publication(log(superseded_by=2), tally=some, catalogue=stamp)
    fewer = Tally(rows=10, lines=10, fallback_urls=2, unmatched=2)
    again = publication(log(1, 2), number=2, kind="resend", tally=fewer, catalogue=stamp)
    told = one(record("due"), [first, again]).as_json()
    assert [each["matched_share"] for each in told["publications"]] == [0.6, 0.8]
    assert told["matched_share"] == 0.8
    bare = one(record("due"), [publication(log(), tally=some)]).as_json()
    assert bare["matched_share"] is None and bare["publications"][0]["matched_share"] is None
