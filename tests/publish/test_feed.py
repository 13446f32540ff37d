"""What happens to a day, round after round: its states, its order, the clock it goes by, what fails it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from server.errors import SourceUnreachable
from server.publish.clock import LEAP_HINT
from server.publish.decisions import FeedRequest
from tests.support.rows import row
from tests.support.site import DAY, Site, at, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

NEXT = DAY + timedelta(days=1)


# States


async def test_a_day_is_open_until_0430_of_the_next_day(site: Site) -> None:
    """Before the documented final time nothing of a day is published, however long its export has rested."""
    site.put(rows_of(DAY, 3), at(1, "00:01"))
    assert await site.word(at(1, "04:29:59")) == "open"
    assert site.state(at(1, "04:29:59")) == "open"
    assert await site.word(at(1, "04:30")) == "published"


async def test_a_day_settles_for_65_minutes(site: Site) -> None:
    """An export that changed less than 65 minutes ago is not converted, and one at rest for 65 minutes is."""
    site.put(rows_of(DAY, 3), at(1, "05:16"))
    assert await site.word(at(1, "06:20:59")) == "settling"
    assert site.state(at(1, "06:20:59")) == "settling"
    assert site.files() == []
    assert await site.word(at(1, "06:21")) == "published"


async def test_a_day_without_an_export_is_missing_and_comes_when_it_comes(site: Site) -> None:
    """Past the final time a day without an export is missing; a late delivery is published all the same."""
    assert await site.word(at(1, "04:30")) == "missing"
    assert site.state(at(1, "05:00")) == "missing"
    assert "megaphone" in site.days(at(1, "05:00"))[DAY].advice
    site.put(rows_of(DAY, 3), at(1, "20:00"))
    assert await site.word(at(1, "21:05")) == "published"


async def test_an_export_older_than_its_day_is_stale(site: Site) -> None:
    """An export that was last written before the end of its day is not taken for the whole day."""
    site.put(rows_of(DAY, 3), at(0, "23:59:59"))
    assert await site.word(at(1, "12:00")) == "stale"
    assert site.state(at(1, "12:00")) == "stale"
    site.put(rows_of(DAY, 4), at(1, "00:00"))
    assert await site.word(at(1, "12:01")) == "published"


async def test_a_final_day_is_due_until_it_is_converted(site: Site) -> None:
    """Between the listing and the end of the conversion a final day's word is due."""
    seen = []
    site.source.fault = lambda: seen.append(site.state(at(1, "05:35")))
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    assert seen == ["due"]


async def test_a_day_goes_from_published_to_picked_up_to_pruned(site: Site) -> None:
    """Published, then picked up when the required user has every file whole, then pruned after 60 days."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    assert site.state(at(1, "05:36")) == "published"
    site.pick_up(at(1, "07:00"), whole=False)
    assert site.state(at(1, "07:01")) == "published"
    site.pick_up(at(1, "08:00"))
    assert site.state(at(1, "08:01")) == "picked up"
    site.prune(at(61, "05:36"))
    assert site.state(at(61, "05:36")) == "pruned"
    site.check_folder()


async def test_a_second_round_publishes_nothing(site: Site) -> None:
    """What is published stays as it is; a second round neither reads the export again nor adds a file."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    before = {file: (site.point.pickup_dir / file).stat() for file in site.files()}
    outcome = await site.round(at(1, "05:45"))
    assert outcome.published == []
    assert {file: (site.point.pickup_dir / file).stat() for file in site.files()} == before
    assert site.source.fetched == [DAY]
    site.check_folder()


# Which days, in which order


async def test_the_oldest_day_that_still_counts_goes_first(make_site: Callable[..., Site]) -> None:
    """After an outage the oldest day within the three days goes first, then the newer ones, then those too late."""
    site = make_site(look_back_days=5)
    days = [DAY + timedelta(days=n) for n in range(5)]
    for n, day in enumerate(days):
        site.put(rows_of(day, 2), at(n + 1, "04:10"), day)
    with capture_logs() as entries:
        outcome = await site.round(at(5, "06:00"))
    assert site.source.fetched == [days[3], days[4], days[0], days[1], days[2]]
    assert [result.day for result in outcome.results] == [*days, DAY + timedelta(days=5)]
    late = [entry["event"] for entry in entries if "after the three-day limit" in entry["event"]]
    assert late == [f"feed published {name(day=day)} after the three-day limit" for day in days[:3]]
    site.check_folder()


async def test_days_before_first_day_are_neither_published_nor_missing(make_site: Callable[..., Site]) -> None:
    """``first_day`` draws a line: an earlier export stays where it is, and an earlier gap is no gap."""
    site = make_site(first=NEXT)
    site.put(rows_of(DAY, 2), at(1, "04:10"))
    outcome = await site.round(at(2, "06:00"))
    assert {result.day for result in outcome.results} == {NEXT, at(2).date()}
    assert DAY not in site.days(at(2, "06:00"))
    assert await site.word(at(2, "06:00"), DAY) == "refused"
    assert site.files() == []


async def test_days_that_an_outage_carried_out_of_the_window_are_logged(make_site: Callable[..., Site]) -> None:
    """After an outage longer than ``look_back_days`` the days between are logged, alarm while they are fresh, and can
    still be published on request."""
    site = make_site(first=None)
    site.put(rows_of(DAY, 2), at(1, "04:10"))
    await site.round(at(1, "06:00"))
    days = [DAY + timedelta(days=n) for n in range(1, 10)]
    for n, day in enumerate(days, 2):
        site.put(rows_of(day, 2), at(n, "04:10"), day)
    with capture_logs() as entries:
        await site.round(at(10, "06:00"))
        await site.round(at(10, "06:10"))
    told = [entry for entry in entries if entry["event"].startswith("feed passed over")]
    assert [(entry["event"], entry["to"], entry["days"]) for entry in told] == [
        (f"feed passed over {days[0]}", str(days[5]), 6)
    ]
    assert [site.state(at(10, "06:10"), day) for day in days[:6]] == ["due"] * 6
    alarms = {alarm.subject for alarm in site.alarms(at(10, "06:10")) if alarm.name == "day_not_published"}
    assert alarms == {str(day) for day in days[3:6]}
    assert await site.word(at(10, "06:20"), days[5], day=days[5]) == "published"
    site.check_folder()


async def test_days_that_an_outage_made_older_than_keep_days_are_logged(make_site: Callable[..., Site]) -> None:
    """Also a day that the last round before it had looked at, in vain: no window reaches back to it any more."""
    site = make_site(first=DAY, keep_days=10)
    site.put(rows_of(DAY, 2), at(0, "20:00"))
    await site.round(at(1, "06:00"))
    assert site.state(at(1, "06:00"), DAY) == "stale"
    with capture_logs() as entries:
        await site.round(at(20, "06:00"))
        await site.round(at(20, "06:10"))
    told = [entry for entry in entries if entry["event"].startswith("feed passed over")]
    assert [(entry["event"], entry["days"], entry["hint"]) for entry in told] == [
        (f"feed passed over {DAY}", 1, "none of them can be published any more")
    ]


async def test_a_first_start_passes_no_day_over(make_site: Callable[..., Site]) -> None:
    """What the bucket has from before the window of the first start is not the service's business."""
    site = make_site(first=None)
    for n in range(9):
        site.put(rows_of(DAY + timedelta(days=n), 2), at(n + 1, "04:10"), DAY + timedelta(days=n))
    with capture_logs() as entries:
        await site.round(at(9, "06:00"))
        await site.round(at(9, "06:10"))
    assert not [entry for entry in entries if "passed over" in entry["event"]]
    assert set(site.days(at(9, "06:10"))) == {DAY + timedelta(days=n) for n in range(6, 10)}


async def test_a_day_that_is_refused_is_not_missing(site: Site) -> None:
    """A request for a day long gone is refused, and leaves no day in the ledger that ``status`` would call missing."""
    site.put(rows_of(DAY, 2), at(1, "04:10"))
    site.restart(first_day=None)
    long_ago = DAY - timedelta(days=300)
    assert await site.word(at(1, "06:00"), long_ago, day=long_ago) == "refused"
    assert long_ago not in site.days(at(1, "06:00"))


async def test_a_first_start_logs_what_it_is_about_to_publish(make_site: Callable[..., Site]) -> None:
    """A first start without ``first_day`` names the final days of the window before it publishes them, once."""
    site = make_site(first=None)
    for n in range(3):
        site.put(rows_of(DAY + timedelta(days=n), 2), at(n + 1, "04:10"), DAY + timedelta(days=n))
    with capture_logs() as entries:
        await site.round(at(2, "06:00"))
        await site.round(at(3, "06:00"))
    events = [entry["event"] for entry in entries]
    start = "feed started on an empty ledger"
    assert events.count(start) == 1 and events.index(start) < events.index(f"feed published {name()}")
    assert next(e for e in entries if e["event"] == start)["publishes"] == f"{DAY},{NEXT}"


async def test_nothing_is_missing_before_the_first_day_that_was_ever_there(make_site: Callable[..., Site]) -> None:
    """Without ``first_day`` the window begins with the first export: Megaphone does not backfill."""
    site = make_site(first=None)
    site.put(rows_of(NEXT, 2), at(2, "04:10"), NEXT)
    outcome = await site.round(at(2, "06:00"))
    assert [(result.day, result.word) for result in outcome.results] == [(NEXT, "published"), (at(2).date(), "open")]


async def test_an_empty_folder_has_no_days(make_site: Callable[..., Site]) -> None:
    """A first start on an empty source publishes nothing and finds nothing missing."""
    site = make_site(first=None)
    assert (await site.round(at(2, "06:00"))).results == []


async def test_a_day_named_by_hand_is_published_only_when_it_is_final(site: Site) -> None:
    """``feed --day`` does these days and no other, and no open day."""
    site.put(rows_of(DAY, 2), at(1, "04:10"))
    site.put(rows_of(NEXT, 2), at(1, "04:10"), NEXT)
    outcome = await site.round(at(1, "05:35"), NEXT)
    assert [(result.day, result.word) for result in outcome.results] == [(NEXT, "open")]
    assert site.files() == []
    await site.round(at(1, "05:35"), DAY)
    assert site.files() == [name()]


# The clock


@pytest.mark.parametrize("hours", [-30, 30])
async def test_a_wrong_local_clock_decides_nothing(site: Site, hours: int) -> None:
    """A local clock 30 hours off neither publishes an open day nor delays a final one, and is warned of."""
    site.skew = timedelta(hours=hours)
    site.put(rows_of(DAY, 3), at(1, "03:10"))
    with capture_logs() as entries:
        assert await site.word(at(1, "04:20")) == "open"
    warned = [entry for entry in entries if entry["event"] == "feed found the local clock off"]
    assert [entry["seconds"] for entry in warned] == [hours * 3600] and warned[0]["log_level"] == "warning"
    assert site.files() == []
    assert await site.word(at(1, "04:30")) == "published"
    assert "clock" in site.alarm_names(at(1, "04:30") + site.skew)


async def test_a_wrong_local_clock_is_a_line_when_it_begins_daily_and_when_it_ends(site: Site) -> None:
    """Not in every round."""
    told = []
    for days, clock, skew in ((1, "00:10", 300), (1, "00:20", 310), (1, "23:00", 320), (2, "00:10", 330),
                              (2, "00:20", 20), (2, "00:30", 0), (2, "00:40", -90)):  # fmt: skip
        site.skew = timedelta(seconds=skew)
        with capture_logs() as entries:
            await site.round(at(days, clock))
        told.append([entry.get("seconds", 0) for entry in entries if "local clock" in entry["event"]])
    assert told == [[300], [], [], [330], [0], [], [-90]]


async def test_a_minute_off_is_no_alarm(site: Site) -> None:
    """A local clock up to a minute off is not worth a warning."""
    site.skew = timedelta(seconds=60)
    with capture_logs() as entries:
        await site.round(at(1, "04:20"))
    assert "feed found the local clock off" not in [entry["event"] for entry in entries]
    assert "clock" not in site.alarm_names(at(1, "04:20"))


@pytest.mark.parametrize("keep_days", [60, 120])
async def test_a_clock_that_ran_ahead_stops_nothing_once_it_is_right(
    make_site: Callable[..., Site], keep_days: int
) -> None:
    """A round or two in a far future leave days behind that nobody looks at: the day is published, alarmed, shown."""
    site = make_site(keep_days=keep_days, first=DAY)
    site.source.own_clock = False
    site.put(rows_of(DAY, 10), at(1, "04:00"))
    for years in (1, 2):
        site.skew = timedelta(days=366 * years)
        site.stop_event.set()  # looked at, and no more: as if the source went away
        await site.round(at(1, "06:00"))
        site.stop_event.clear()
    site.skew = timedelta()
    assert await site.word(at(1, "06:40")) == "published"
    assert sorted(site.days(at(1, "06:41"))) == [DAY, DAY + timedelta(days=1)]
    assert not {"day_missing", "publish_deadline"} & site.alarm_names(at(1, "06:41"))


@pytest.mark.parametrize("own_clock", [True, False])
async def test_a_clock_in_doubt_gives_no_rows_up(make_site: Callable[..., Site], own_clock: bool) -> None:
    """What comes too late only by a clock that leapt is sent once the clock is right; a source's own is no leap."""
    site = make_site(first=DAY)
    site.source.own_clock = own_clock
    site.put(rows_of(DAY, 10), at(1, "04:00"))
    await site.round(at(1, "06:00"))
    site.put(rows_of(DAY, 12), at(1, "07:00"))
    if own_clock:
        await site.round(at(21, "07:40"))
        assert site.days(at(21, "07:41"))[DAY].unsent == 2
        return
    site.skew = timedelta(days=20)
    with capture_logs() as entries:
        await site.round(at(1, "07:40"))
    assert any("the clock is in doubt" in entry.get("why", "") for entry in entries)
    site.skew = timedelta()
    assert len((await site.round(at(1, "09:00"))).published) == 1
    assert site.days(at(1, "09:01"))[DAY].unsent == 0 and len(site.standing_ids()) == 12


async def test_a_clock_that_was_set_back_is_told_before_a_day_is_lost(make_site: Callable[..., Site]) -> None:
    """By it the new days lie in the future: they are neither published nor shown, and nothing else would be wrong."""
    site = make_site(first=None)
    site.source.own_clock = False
    site.put(rows_of(DAY, 3), at(1, "04:00"))
    await site.round(at(1, "06:00"))
    site.put(rows_of(NEXT, 3), at(2, "04:00"), NEXT)
    site.skew = -timedelta(days=400)
    with capture_logs() as entries:
        await site.round(at(2, "06:00"))
    assert [entry["event"] for entry in entries] == ["feed found the local clock behind"]
    assert site.files() == [name()] and site.alarm_names(at(2, "06:00") + site.skew) == {"clock"}
    site.prune(at(2, "06:00") + site.skew)
    site.skew = timedelta()
    assert await site.word(at(2, "06:10"), day=NEXT) == "published"
    assert "clock" not in site.alarm_names(at(2, "06:11"))


@pytest.mark.parametrize("days", [20, 400])
async def test_a_day_that_only_a_leap_has_made_too_old_is_named_until_the_clock_is_right(
    make_site: Callable[..., Site], days: int
) -> None:
    """In the journal once, and by an alarm, whether or not the clock says that it could still be published."""
    site = make_site(first=DAY)
    site.source.own_clock = False
    site.put(rows_of(DAY, 10), at(1, "04:00"))
    await site.round(at(1, "04:10"))
    site.skew = timedelta(days=days)
    with capture_logs() as entries:
        await site.round(at(1, "06:00"))
        await site.round(at(1, "06:10"))
    told = [entry for entry in entries if entry["event"] == f"feed passed over {DAY}"]
    assert [(entry["days"], entry["hint"].startswith(LEAP_HINT)) for entry in told] == [(1, True)]
    found = [alarm for alarm in site.alarms(at(1, "06:10") + site.skew) if alarm.subject == str(DAY)]
    assert [(alarm.name, alarm.hint) for alarm in found] == [("day_not_published", LEAP_HINT)]
    site.skew = timedelta()
    assert await site.word(at(1, "06:40")) == "published"
    assert not [alarm for alarm in site.alarms(at(1, "06:41")) if alarm.subject == str(DAY)]


async def test_a_round_that_had_to_wait_does_not_take_its_clock_for_wrong(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes between the start of a round and the listing are added to the local clock, and are not its error."""
    clock = iter((1000.0, 1305.5))
    monkeypatch.setattr("server.publish.feed.monotonic", lambda: next(clock))
    site.skew = -timedelta(seconds=305)
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    assert "clock" not in site.alarm_names(at(1, "05:35"))
    assert site.ledger.publications(DAY)[0].published_at == at(1, "05:35")


# Failed


async def test_a_torn_export_fails_the_day_and_is_never_published(site: Site) -> None:
    """A truncated gzip fails with a sentence and the time of the next try; its next, whole version is published."""
    site.put(rows_of(DAY, 300), at(1, "04:10"), cut=9)
    with capture_logs() as entries:
        assert await site.word(at(1, "05:35")) == "failed"
    failed = next(entry for entry in entries if entry["event"] == f"feed failed {DAY}")
    assert "truncated" in failed["why"] and failed["next_try"] == "05:45Z" and failed["hint"]
    assert site.state(at(1, "05:36")) == "failed" and "day_failed" in site.alarm_names(at(1, "05:36"))
    assert site.files() == [] and list(site.point.staging_dir.iterdir()) == []
    site.put(rows_of(DAY, 300), at(1, "06:00"))
    assert await site.word(at(1, "07:05")) == "published"
    assert "day_failed" not in site.alarm_names(at(1, "07:06"))
    assert site.days(at(1, "07:06"))[DAY].advice == ""


async def test_a_failed_day_is_tried_again_less_and_less_often(site: Site) -> None:
    """The same version is tried after 10, 20, 40, then 60 minutes; a new version, or on request, at once."""
    site.put(rows_of(DAY, 30), at(1, "04:10"), cut=9)
    tries = []
    for minute in range(0, 300, 5):
        now = at(1, "05:35") + timedelta(minutes=minute)
        before = len(site.source.fetched)
        assert await site.word(now) == "failed"
        tries += [minute] * (len(site.source.fetched) - before)
    assert tries == [0, 10, 30, 70, 130, 190, 250]
    assert await site.word(at(1, "10:36"), DAY) == "failed"
    assert len(site.source.fetched) == 8
    await site.feed.run_round(at(1, "10:36"), FeedRequest(by_hand=True))
    assert len(site.source.fetched) == 9
    site.put(rows_of(DAY, 30), at(1, "09:30"))
    assert await site.word(at(1, "10:37")) == "published"


async def test_a_corrected_clock_does_not_put_off_a_failed_day(site: Site) -> None:
    """A failure recorded by a clock in the future delays nothing once the clock is right."""
    site.skew = timedelta(days=400)
    site.put(rows_of(DAY, 30), at(1, "04:10"))
    site.source.fault = lambda: (_ for _ in ()).throw(SourceUnreachable("away"))
    assert await site.word(at(1, "05:35")) == "failed"
    site.skew, site.source.fault = timedelta(), None
    assert await site.word(at(1, "05:45")) == "published"


async def test_one_bad_day_does_not_stop_the_others(site: Site) -> None:
    """A torn day and one that raises an unexpected error fail; the third is published in the same round."""
    third = at(2).date()
    site.put(rows_of(DAY, 30), at(1, "04:10"), cut=9)
    site.put(rows_of(NEXT, 30), at(2, "04:10"), NEXT)
    site.put(rows_of(third, 30), at(3, "04:10"), third)

    def fault() -> None:
        if site.source.fetched[-1] == NEXT:
            raise ZeroDivisionError("nobody expected this")

    site.source.fault = fault
    outcome = await site.round(at(3, "06:00"))
    assert [result.word for result in outcome.results] == ["failed", "failed", "published", "open"]
    assert "ZeroDivisionError" in outcome.results[1].sentence
    assert [result.bad for result in outcome.results] == [True, True, False, False]


async def test_a_rewrite_while_it_is_read_begins_the_day_again(site: Site) -> None:
    """Nothing of an export that is rewritten between listing and reading is published before the next round."""
    site.put(rows_of(DAY, 30), at(1, "04:10"))

    def rewrite() -> None:
        site.source.fault = None
        site.put(rows_of(DAY, 31), at(1, "04:20"))

    site.source.fault = rewrite
    assert await site.word(at(1, "05:35")) == "failed"
    assert site.files() == []
    failure = site.ledger.days()[DAY].failure
    assert failure is not None and failure.next_try == at(1, "05:35")
    assert await site.word(at(1, "05:35:10")) == "published"
    assert len(site.ids()) == 31


async def test_an_export_that_vanishes_is_no_failure_of_the_round(site: Site) -> None:
    """An export that is gone when it is read is reported, and found missing by the next round."""
    path = site.put(rows_of(DAY, 30), at(1, "04:10"))
    site.source.fault = path.unlink
    assert await site.word(at(1, "05:35")) == "failed"
    site.source.fault = None
    assert await site.word(at(1, "05:45")) == "missing"


async def test_a_source_that_is_down_ends_only_the_round(site: Site) -> None:
    """Without a listing nothing is done and nothing is lost: the round after the outage publishes."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    away = site.exports.with_name("away")
    site.exports.rename(away)
    with pytest.raises(Exception, match="does not exist"):
        await site.round(at(1, "05:35"))
    away.rename(site.exports)
    assert await site.word(at(1, "05:45")) == "published"


async def test_a_stop_in_the_midst_of_a_day_is_no_failure(site: Site) -> None:
    """A service that stops leaves the day as if it had not begun; the next start publishes it and the others."""
    site.put(rows_of(DAY, 300), at(1, "04:10"))
    site.put(rows_of(NEXT, 300), at(2, "04:10"), NEXT)
    site.source.fault = site.stop_event.set
    outcome = await site.round(at(2, "05:35"))
    assert [result.word for result in outcome.results] == ["stopped"]
    assert site.files() == [] and list(site.point.staging_dir.iterdir()) == []
    assert site.ledger.days()[DAY].failure is None
    site.source.fault = None
    site.stop_event.clear()
    assert len((await site.round(at(2, "05:36"))).published) == 2


async def test_a_day_asked_for_by_mistake_moves_no_window(make_site: Callable[..., Site]) -> None:
    """A request for a day that never had an export does not make the days after it missing."""
    site = make_site(first=None, look_back_days=10)
    site.put(rows_of(NEXT, 2), at(2, "04:10"), NEXT)
    await site.round(at(2, "04:00"), DAY)
    outcome = await site.round(at(2, "06:00"))
    assert [result.day for result in outcome.results] == [NEXT, at(2).date()]


async def test_a_row_is_filtered_rejected_or_sent_and_the_ledger_keeps_the_tally(site: Site) -> None:
    """The tally of a publication balances and is in the ledger."""
    rows = [*rows_of(DAY, 200), row(id="bot", blacklisted_ua=True), row(id="zero", bytes_sent=0), b"[]"]
    site.put(rows, at(1, "04:10"))
    await site.round(at(1, "05:35"))
    tally = site.ledger.publications(DAY)[0].tally
    assert tally is not None and tally.balanced
    assert (tally.rows, tally.lines, dict(tally.filtered)) == (203, 200, {"blacklisted_ua": 1, "no_bytes": 1})
    assert dict(tally.rejected) == {"not_an_object": 1}


async def test_a_round_without_news_writes_the_ledger_twice(site: Site) -> None:
    """Before the source is asked, and after: not once for each day, and nothing that is there already."""
    for day in (DAY, NEXT):
        site.put(rows_of(day, 3), at(1, "04:10", day), day)
    await site.round(at(2, "06:00"))
    connection, written = site.ledger._connection, set[int]()
    connection.set_trace_callback(lambda query: written.add(connection.total_changes) if query == "COMMIT" else None)
    written.add(connection.total_changes)
    await site.round(at(2, "07:00"))
    assert len(written) == 1 + 2
    site.ledger.note(number=7, text="a")
    before = connection.total_changes
    site.ledger.note(number=7, text="a")
    assert connection.total_changes == before and site.ledger.facts()["number"] == 7
    site.ledger.note(number=8)
    assert connection.total_changes == before + 1 and site.ledger.facts()["number"] == 8
