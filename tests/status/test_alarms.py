"""Each alarm: what raises it, how badly, what it says, and when it is over."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from server.errors import SourceUnreachable
from server.pickups import PickupProgress
from server.publish.holds import HoldPolicy
from server.publish.store_state import NODES, StoreState
from server.status.alarms import Alarm, Level, Measured, Partner, Store, alarms
from server.status.deadlines import DeadlinePolicy
from tests.support.site import DAY, HEALTHY, Site, at, broken_rows, log_name, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = at(1, "09:00")
TEN = timedelta(minutes=10)
RUNNING = {"last_round": NOW.isoformat()}


def of_service(facts: dict[str, Any], measured: Measured = HEALTHY, now: datetime = NOW) -> list[tuple[str, str]]:
    """Return (level, name) of every alarm of an installation without days."""
    return [(alarm.level.name, alarm.name) for alarm in alarms([], facts, measured, HoldPolicy(), TEN, now)]


def of_day(site: Site, now: datetime) -> dict[str, Alarm]:
    """Return the alarms about the first day, by name."""
    return {alarm.name: alarm for alarm in site.alarms(now) if alarm.subject == str(DAY)}


def levels(site: Site, now: datetime) -> dict[str, str]:
    """Return the same, with the levels only."""
    return {name: alarm.level.name for name, alarm in of_day(site, now).items()}


async def test_a_day_on_its_way_alarms_nobody(site: Site) -> None:
    """Open, settling, published in time and picked up in time are no alarms."""
    site.put(rows_of(DAY, 3), at(1, "05:00"))
    for now in (at(0, "12:00"), at(1, "05:30"), at(1, "06:05")):
        await site.round(now)
        assert levels(site, now) == {}
    site.pick_up(at(1, "12:00"))
    assert levels(site, at(3, "01:00")) == {}


def take(site: Site, now: datetime, *ranges: tuple[int, int]) -> int:
    """A partner's client reads these ranges of the day's file, each on a handle that it never closes; the size."""
    (file,) = site.point.served.values()
    for start, end in ranges:
        progress = PickupProgress(file.name, file.size, "triton", "198.51.100.7", "JSch", now)
        progress.answered(start, end - start)
        progress.delivered(start, end - start)
        site.ledger.pickups.record(progress.finished(now, closed=False), now)
    return file.size


async def test_a_partner_at_work_is_asked_for_what_is_missing_and_not_whether_it_runs(site: Site) -> None:
    """A file taken in pieces alarms nobody; of one with a gap, the hint says how much of it is there."""
    site.put(rows_of(DAY, 3), at(1, "04:00"))
    await site.round(at(1, "05:35"))
    late = at(2, "20:00")
    assert "whether its puller runs" in of_day(site, late)["day_not_picked_up"].hint
    size = take(site, at(1, "07:00"), (0, 10), (20, 30))
    hint = of_day(site, late)["day_not_picked_up"].hint
    assert f"triton has 20 of {size} bytes of" in hint and "puller" not in hint and "pickup-point trace" in hint
    take(site, at(1, "08:00"), (5, 25), (25, size))
    assert levels(site, late) == {} and site.state(late) == "picked up"
    assert site.days(late)[DAY].deadlines.picked_up.done == at(1, "08:00")


async def test_a_file_in_too_many_pieces_is_told_as_that(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a table of two ranges, since a file of three rows has no four thousand pieces."""
    monkeypatch.setattr("server.pickups.MAX_RANGES", 2)
    site.put(rows_of(DAY, 3), at(1, "04:00"))
    await site.round(at(1, "05:35"))
    take(site, at(1, "07:00"), (0, 1), (2, 3), (4, 5))
    assert (
        "(too fragmented): ask the partner to fetch it again" in of_day(site, at(2, "20:00"))["day_not_picked_up"].hint
    )


async def test_a_missing_day_warns_at_once_and_is_critical_near_its_deadline(site: Site) -> None:
    """Missing is a warning while there is time; with the deadline it becomes critical; four days later it is over."""
    await site.round(at(1, "04:35"))
    assert levels(site, at(1, "04:35")) == {"day_missing": "WARNING"}
    assert levels(site, at(1, "12:00")) == {"day_missing": "CRITICAL", "day_not_published": "WARNING"}
    assert levels(site, at(1, "18:00")) == {"day_missing": "CRITICAL", "day_not_published": "CRITICAL"}
    late = of_day(site, at(2, "02:00"))["day_not_published"]
    assert late.level is Level.CRITICAL and "its deadline was 2 h ago" in late.sentence
    assert "support-megaphone" in of_day(site, at(2, "02:00"))["day_missing"].hint
    assert levels(site, at(6, "23:59")) and not levels(site, at(7))


async def test_a_settling_day_offers_no_command_that_would_do_nothing(site: Site) -> None:
    """`feed --day` would say that it is settling."""
    site.put(rows_of(DAY, 3), at(1, "22:30"))
    await site.round(at(1, "22:31"))
    hint = of_day(site, at(1, "22:40"))["day_not_published"].hint
    assert "export.settle" in hint and "pickup-point" not in hint


def of_source(site: Site, now: datetime) -> Alarm | None:
    """Return the alarm about a source that has never delivered."""
    return next((alarm for alarm in site.alarms(now) if alarm.name == "nothing_delivered"), None)


@pytest.mark.parametrize("first", [None, DAY])
async def test_an_empty_source_warns_after_a_day(make_site: Callable[..., Site], first: date | None) -> None:
    """Megaphone may still have to begin; the first export ends it for ever, whatever becomes of that export."""
    site = make_site(first=first)
    for now in (at(0, "09:00"), at(1, "08:00"), at(1, "09:00")):
        await site.round(now)
    assert of_source(site, at(1, "08:59")) is None
    site.ledger.note(source_error="the bucket is away")  # so nobody knows what is there now
    assert of_source(site, at(1, "09:00")) is None
    site.ledger.note(source_error="")
    found = of_source(site, at(1, "09:00"))
    assert found is not None and found.level is Level.WARNING
    assert found.sentence == f"no export has ever arrived: there is nothing at {site.exports}"
    site.put(rows_of(DAY, 3), at(1, "09:30"))
    await site.round(at(1, "09:40"))
    assert of_source(site, at(2)) is None
    for path in site.exports.iterdir():
        path.unlink()
    await site.round(at(2, "09:40"))
    assert of_source(site, at(9)) is None


async def test_a_place_that_delivered_one_kind_has_not_delivered_the_other(make_site: Callable[..., Site]) -> None:
    """Whoever sets export.kind wrongly is told at once what is there, and no longer once it is put right."""
    site = make_site(kind="delivery-v2")
    site.put(rows_of(DAY, 3), at(1, "09:15"))
    for kind, hint in (("delivery-v2", None), ("metrics", 'set export.kind = "delivery-v2"'), ("delivery-v2", None)):
        site.restart(kind=kind)
        await site.round(at(1, "10:00"))
        found = of_source(site, at(1, "10:00"))
        assert (found and found.hint) == hint


async def test_other_objects_in_place_of_exports_warn_at_once_and_exports_close_by_even_before(
    make_site: Callable[..., Site],
) -> None:
    """A wrong prefix is seen in the first round, with what to write; other objects say nothing before the first day."""
    site = make_site(first=DAY)
    (site.exports / f"delivery-v2-day-{DAY}.json.gz").write_bytes(b"x")
    await site.round(at(-2, "12:00"))
    assert of_source(site, at(-1, "23:59")) is None
    found = of_source(site, at(0))
    assert found is not None and "not named metrics-day-YYYY-MM-DD.json.gz, but Delivery exports V2" in found.sentence
    assert found.hint == 'set export.kind = "delivery-v2"'
    (site.exports / f"delivery-v2-day-{DAY}.json.gz").rename(site.exports / "impression-day-1.json.gz")
    await site.round(at(-2, "12:05"))
    found = of_source(site, at(0))
    assert found is not None and found.hint == "ask support-megaphone@spotify.com for the Metrics Export Service"
    (site.exports / "sub").mkdir()
    (site.exports / "sub" / f"metrics-day-{DAY}.json.gz").write_bytes(b"x")
    await site.round(at(-2, "12:10"))
    found = of_source(site, at(-2, "12:10"))
    assert found is not None and f"did you mean {site.exports}/sub?" in found.sentence
    assert found.hint == f'set export.url = "{site.exports}/sub"'


async def test_another_place_is_a_source_that_has_delivered_nothing(site: Site) -> None:
    """A typo in `export.url` after a good year is noticed as well."""
    site.put(rows_of(DAY, 3), at(1, "04:00"))
    await site.round(at(1, "05:35"))
    for path in site.exports.iterdir():
        path.rename(site.exports / "renamed")
    site.source.name = "s3://elsewhere"
    await site.round(at(1, "05:45"))
    found = of_source(site, at(1, "05:46"))
    assert found is not None and "there is one object at s3://elsewhere" in found.sentence


async def test_a_day_before_the_first_one_is_nobodys_alarm(site: Site) -> None:
    """Published while nobody pulled yet, and before the day that Triton begins with, which was set later."""
    site.put(rows_of(DAY, 3), at(1, "04:00"))
    await site.round(at(1, "05:35"))
    told = of_day(site, at(3, "01:00"))
    assert set(told) == {"day_not_picked_up"}
    assert told["day_not_picked_up"].hint.startswith("if Triton has not begun to pull, set export.first_day")
    site.restart(first_day=DAY + timedelta(days=1))
    assert levels(site, at(3, "01:00")) == {}


@pytest.mark.parametrize("delivered", [False, True])
async def test_deadlines_pass_aloud_while_the_source_is_lost(make_site: Callable[..., Site], delivered: bool) -> None:
    """Twelve days without a listing: each day that should be there is counted down, and alarms until it is over."""
    site = make_site(first=None)
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    if delivered:  # the next day's export is there, and not final, when the source is lost
        site.put(rows_of(DAY + timedelta(days=1), 3), at(1, "23:00"), DAY + timedelta(days=1))
        await site.round(at(1, "23:59"))
    site.source.away = True
    for days in range(2, 14):
        with pytest.raises(SourceUnreachable):
            await site.round(at(days, "12:00"))
        told = {alarm.subject: alarm for alarm in site.alarms(at(days, "12:00")) if alarm.name == "day_not_published"}
        wanted = {str(DAY + timedelta(days=n)): n for n in range(max(1, days - 6), days)}
        assert set(told) == set(wanted)
        for day, number in wanted.items():  # due on its second day at noon, and critical from 18:00 on
            assert told[day].level is (Level.WARNING if number == days - 1 else Level.CRITICAL)
        assert [day.state for day in site.days(at(days, "12:00")).values()].count("unknown") == days - 1


async def test_a_stale_day_alarms_like_a_missing_one(site: Site) -> None:
    """A stale day alarms like a missing one."""
    site.put(rows_of(DAY, 3), at(0, "20:00"))
    await site.round(at(1, "04:35"))
    assert levels(site, at(1, "04:35")) == {"day_stale": "WARNING"}


async def test_a_held_and_a_failed_day_are_critical_with_something_to_type(site: Site) -> None:
    """A person must act: critical from the first minute, with what to type as hint."""
    site.put(rows_of(DAY, 3) + broken_rows(3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    assert levels(site, at(1, "05:35")) == {"day_held": "CRITICAL"}
    assert "--accept-rejects" in of_day(site, at(1, "05:35"))["day_held"].hint
    site.put(rows_of(DAY, 3), at(1, "05:00"), cut=5)
    await site.round(at(1, "06:35"))
    assert levels(site, at(1, "06:35")) == {"day_failed": "CRITICAL"}
    assert "truncated" in of_day(site, at(1, "06:35"))["day_failed"].hint


async def test_a_published_day_that_nobody_picks_up_alarms(site: Site) -> None:
    """A warning 12 hours before D+3 00:00Z, critical 6 hours before it and after it, over once it is picked up."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    assert levels(site, at(2, "11:59")) == {}
    assert levels(site, at(2, "12:00")) == {"day_not_picked_up": "WARNING"}
    assert levels(site, at(2, "18:00")) == {"day_not_picked_up": "CRITICAL"}
    assert levels(site, at(3, "05:00")) == {"day_not_picked_up": "CRITICAL"}
    assert "puller" in of_day(site, at(3))["day_not_picked_up"].hint
    site.pick_up(at(3, "06:00"))
    assert levels(site, at(3, "06:01")) == {}


async def test_of_several_partners_the_one_is_asked_who_lacks_something(site: Site) -> None:
    """Not who has everything, and not who is not waited for, however little that one has."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.pick_up(at(1, "07:00"))
    site.pick_up(at(1, "07:00"), user="backup", whole=False)
    now = at(2, "20:00")
    days = list(site.days(now, [("triton", True), ("other", True), ("backup", False)]).values())
    found = alarms(days, {"last_round": now.isoformat()}, HEALTHY, HoldPolicy(), TEN, now)
    (hint,) = (alarm.hint for alarm in found if alarm.name == "day_not_picked_up")
    assert hint.endswith("ask other whether the puller runs; its last login: pickup-point status")
    site.put(rows_of(DAY, 5), at(1, "08:00"))
    await site.round(at(1, "09:10"))
    hint = of_day(site, now)["day_not_picked_up"].hint
    assert "triton has 1 of 2 files: ask the partner to fetch the rest" in hint


async def test_where_nobody_is_required_nobody_is_waited_for(site: Site) -> None:
    """Without a required user the second deadline is no alarm."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    now = at(3, "05:00")
    days = list(site.days(now, [("auditor", False)]).values())
    found = alarms(days, {"last_round": now.isoformat()}, HEALTHY, HoldPolicy(), TEN, now)
    assert "day_not_picked_up" not in {alarm.name for alarm in found}
    assert site.days(now, [("auditor", False)])[DAY].state == "published"
    site.pick_up(at(3, "06:00"), user="auditor")
    assert site.days(at(3, "07:00"), [("auditor", False)])[DAY].state == "picked up"


async def test_a_day_published_unfinal_is_a_warning(site: Site) -> None:
    """A day that was given up has an alarm with its remark until it is over."""
    site.put(rows_of(DAY, 3), at(0, "20:00"))
    await site.round(at(1, "23:00"))
    found = of_day(site, at(1, "23:00"))
    assert set(found) == {"day_given_up"} and found["day_given_up"].level is Level.WARNING
    assert "not final by export.give_up_waiting, so published as it stood" in found["day_given_up"].sentence


async def test_what_is_odd_about_a_published_day_is_noticed(site: Site) -> None:
    """Addresses that end in 0 or are tokens alarm for the day that has them, once for all its files."""
    site.put(rows_of(DAY, 8) + rows_of(DAY, 2, 8, ip="203.0.113.0"), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.put(rows_of(DAY, 8) + rows_of(DAY, 4, 8, ip="203.0.113.0"), at(1, "08:00"))
    await site.round(at(1, "09:05"))
    noticed = [alarm.sentence for alarm in site.alarms(at(1, "09:05")) if alarm.name == "day_noticed"]
    assert len(noticed) == 1 and "20.0% of the IPv4 addresses end in 0" in noticed[0]


async def test_a_published_day_with_fewer_rows_than_it_had_is_warned_of(site: Site) -> None:
    """Rewritten to fewer rows, with or without new ones, until they are back or the day is sent again as it is."""

    async def shrunk(now: str, *numbers: int, resend: str = "") -> list[str]:
        site.put([one for n in numbers for one in rows_of(DAY, 1, n)], at(1, f"{int(now[:2]) - 2:02d}:00"))
        with capture_logs() as entries:
            await site.round(at(1, now), DAY, resend=resend)
        found = [alarm for alarm in site.alarms(at(1, now)) if alarm.name == "day_shrunk"]
        assert all(alarm.level is Level.WARNING and alarm.hint for alarm in found)
        logged = [entry["why"] for entry in entries if entry["event"].startswith("feed noticed")]
        assert [f"{DAY}: {why}" for why in logged] == [alarm.sentence for alarm in found]
        return [alarm.sentence.partition("its export was ")[2] for alarm in found]

    assert await shrunk("06:30", *range(10)) == []
    assert await shrunk("09:00", *range(7)) == ["rewritten to 7 rows; it had 10 when it was published"]
    assert await shrunk("12:00", *range(10), 10) == []
    assert await shrunk("15:00", *range(5), 11) == ["rewritten to 6 rows; it had 11 when it was published"]
    assert await shrunk("18:00", *range(4), resend="as it is") == []


async def test_rows_that_came_too_late_are_told_until_the_day_is_over_or_sent_again(site: Site) -> None:
    """They are a warning and a remark of the day, and no longer once the whole day was sent again."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    assert site.days(at(1, "05:35"))[DAY].notes == []
    site.put(rows_of(DAY, 7), at(3, "00:30"))
    await site.round(at(3, "02:00"))
    site.pick_up(at(3, "02:01"))
    alarm = of_day(site, at(3, "02:02"))["day_unsent"]
    assert (alarm.level, alarm.sentence) == (Level.WARNING, f"{DAY}: 4 rows came too late to be sent")
    assert f"pickup-point trace {name()}" in alarm.hint
    assert site.days(at(3, "02:02"))[DAY].as_json()["remarks"] == ["4 rows came too late to be sent"]
    await site.round(at(3, "05:00"), DAY, resend="Triton takes it")
    assert "day_unsent" not in of_day(site, at(3, "05:01"))
    assert site.days(at(3, "05:01"))[DAY].notes == ["the whole day was sent again: Triton takes it"]


async def test_a_resend_that_is_held_is_told(site: Site) -> None:
    """Until the export is another one, or an operator accepts what was rejected."""
    site.put(rows_of(DAY, 9), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.put([*rows_of(DAY, 9), *broken_rows(5)], at(1, "08:00"))
    assert await site.word(at(1, "10:00"), DAY, resend="void") == "held"
    alarm = of_day(site, at(1, "10:01"))["day_noticed"]
    assert "sending it again is held: 5 of 14 rows were rejected" in alarm.sentence
    assert any("sending it again is held" in note for note in site.days(at(1, "10:01"))[DAY].notes)
    await site.round(at(1, "10:10"), DAY, accept=True, resend="void")
    assert "day_noticed" not in of_day(site, at(1, "10:11"))


async def test_a_new_version_with_the_rows_of_another_day_is_told(site: Site) -> None:
    """Of which nothing was sent, since it came too late: a warning and a remark, as of fewer rows."""
    site.put(rows_of(DAY, 9), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.put(rows_of(DAY, 1) + rows_of(DAY - timedelta(days=1), 5), at(3, "00:30"))
    await site.round(at(3, "02:00"))
    told = [alarm.sentence for alarm in site.alarms(at(3, "02:02")) if alarm.name in ("day_noticed", "day_shrunk")]
    foreign, fewer = (
        "its new version brought: 100.0% of the lines belong to another day",
        "its export was rewritten to 6 rows",
    )
    assert any(foreign in sentence for sentence in told) and any(fewer in sentence for sentence in told)
    notes = " ".join(site.days(at(3, "02:02"))[DAY].as_json()["remarks"])
    assert foreign in notes and fewer in notes


async def test_an_accepted_day_with_the_rows_of_another_day_is_told(site: Site) -> None:
    """Though an operator accepted it: a warning and a remark."""
    site.put(rows_of(DAY - timedelta(days=1), 5), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "held"
    assert await site.word(at(1, "06:00"), DAY, accept=True) == "published"
    told = "100.0% of the lines belong to another day"
    assert of_day(site, at(1, "06:01"))["day_noticed"].sentence == f"{DAY}: {told}"
    assert told in site.days(at(1, "06:01"))[DAY].as_json()["remarks"]


async def test_a_pruned_day_alarms_no_more(site: Site) -> None:
    """What was pruned is over, picked up or not."""
    site.settings["keep_days"] = 4
    site.restart()
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    assert levels(site, at(5, "06:00")) == {"day_not_picked_up": "CRITICAL"}
    site.prune(at(5, "06:00"))
    assert levels(site, at(5, "06:00")) == {}


async def test_a_day_of_another_volume_is_noticed(site: Site) -> None:
    """Far fewer rows than on the same weekdays before is a warning; an adopted day without a tally does not count."""
    site.restart(look_back_days=28, first_day=None)
    for week, count in enumerate((400, 400, 400, 400, 5)):
        day = DAY + timedelta(weeks=week)
        site.put(rows_of(day, count), at(1, "04:10", day), day)
    now = at(1, "06:00", DAY + timedelta(weeks=4))
    await site.round(now)
    (alarm,) = [alarm for alarm in site.alarms(now) if alarm.name == "day_volume"]
    assert alarm.subject == "2026-12-18" and "5 rows" in alarm.sentence and "about 400" in alarm.sentence
    site.stop()
    for path in site.point.data_dir.glob("ledger.sqlite3*"):
        path.unlink()
    site.start()
    await site.round(now)
    assert "day_volume" not in site.alarm_names(now)
    assert {day.rows for day in site.days(now).values() if day.publications} == {0}


@pytest.mark.parametrize(("silent", "longest", "alarmed"), [
    (timedelta(hours=30), timedelta(), False),
    (timedelta(hours=31), timedelta(), True),
    (timedelta(hours=31), timedelta(hours=20), True),
    (timedelta(hours=60), timedelta(hours=40), False),
    (timedelta(hours=61), timedelta(hours=40), True),
])  # fmt: skip
def test_a_partner_that_fell_silent_alarms(silent: timedelta, longest: timedelta, alarmed: bool) -> None:
    """It warns after 1.5 times the longest silence so far and 1.25 times ``pull_every``."""
    partner = Partner("triton", NOW - silent, longest)
    found = alarms([], RUNNING, HEALTHY, HoldPolicy(), TEN, NOW, partners=[partner])
    assert [alarm.name for alarm in found] == (["partner_silent"] if alarmed else [])


@pytest.mark.parametrize(("facts", "expected"), [
    (RUNNING, []),
    ({}, [("CRITICAL", "feed_not_running")]),
    ({"service_started": (NOW - timedelta(minutes=35)).isoformat()}, [("WARNING", "feed_not_running")]),
    ({"service_started": (NOW - timedelta(minutes=36)).isoformat()}, [("CRITICAL", "feed_not_running")]),
    ({"last_round": (NOW - timedelta(minutes=35)).isoformat()}, []),
    ({"last_round": (NOW - timedelta(minutes=36)).isoformat()}, [("CRITICAL", "feed_not_running")]),
    (RUNNING | {"source_error": "no bucket", "source_hint": "make it"}, [("WARNING", "source")]),
    (RUNNING | {"source_error": "", "round_error": ""}, []),
    (RUNNING | {"round_error": "disk full"}, [("CRITICAL", "data_folder")]),
    (RUNNING | {"clock_skew": 60.0}, []),
    (RUNNING | {"clock_skew": -61.0}, [("WARNING", "clock")]),
    (RUNNING | {"clock_believed": (NOW + timedelta(hours=1)).isoformat()}, []),
    (RUNNING | {"clock_believed": (NOW + timedelta(hours=1, seconds=1)).isoformat()}, [("CRITICAL", "clock")]),
])  # fmt: skip
def test_the_service_itself(facts: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """A feed that does not run, a source or folder that cannot be used, a clock that is off."""
    assert of_service(facts) == expected


def _ended(ago: int, started: int = 3600) -> dict[str, Any]:
    """Return the facts of a service that ended when it was asked to, and last started, this many seconds ago."""
    instants = {"service_ended": ago, "service_started": started}
    return RUNNING | {name: (NOW - timedelta(seconds=seconds)).isoformat() for name, seconds in instants.items()}


@pytest.mark.parametrize(("facts", "running", "sentence"), [
    ({"service_started": NOW.isoformat()}, False, "the service is not running"),
    (RUNNING | {"service_started": NOW.isoformat()}, False, "the service is not running; the last round was 0 min ago"),
    (RUNNING | {"service_started": NOW.isoformat()}, True, None),
    (RUNNING, False, None),
    (_ended(59), False, None),
    (_ended(60), False, "the service is not running: it was stopped 1 min ago; the last round was 0 min ago"),
    (_ended(60), True, None),
    (_ended(-1), False, "the service is not running: it was stopped 0 min ago; the last round was 0 min ago"),
    (_ended(59, started=58), False, "the service is not running; the last round was 0 min ago"),
])  # fmt: skip
def test_a_service_that_has_ended(facts: dict[str, Any], running: bool, sentence: str | None) -> None:
    """Said at once: nobody can fetch a file; a service that was asked to end has a minute to be started again.

    Rounds by hand, without any service, are rounds.
    """
    found = alarms([], facts, HEALTHY, HoldPolicy(), TEN, NOW, running=running)
    assert [alarm.sentence for alarm in found] == ([sentence] if sentence else [])
    assert all("systemctl start pickup-point" in alarm.hint for alarm in found)


@pytest.mark.parametrize(("measured", "expected"), [
    (Measured(0.1, 1 << 30), []),
    (Measured(0.099, 50 << 30), [("WARNING", "disk")]),
    (Measured(0.029, 50 << 30), [("CRITICAL", "disk")]),
    (Measured(0.5, (1 << 30) - 1), [("WARNING", "disk")]),
    (Measured(0.5, (200 << 20) - 1), [("CRITICAL", "disk")]),
    (Measured(0.5, 50 << 30, ("keys/ip_hash.key",)), [("CRITICAL", "key_readable")]),
    (Measured(0.5, 50 << 30, lost=(log_name(),)), [("CRITICAL", "log_lost")]),
    (Measured(0.5, 50 << 30, (), "row 3 missing"), [("CRITICAL", "ledger_damaged")]),
    (Measured(0.5, 50 << 30, (), "", "cannot be used", "ls -l data"), [("CRITICAL", "ledger_unreadable")]),
])  # fmt: skip
def test_the_machine(measured: Measured, expected: list[tuple[str, str]]) -> None:
    """A disk that fills up, a key that others can read, a damaged ledger, which shows no round either."""
    assert of_service(RUNNING, measured) == expected
    never = [] if measured.ledger_damage or measured.ledger_away else [("CRITICAL", "feed_not_running")]
    assert sorted(of_service({}, measured)) == sorted(expected + never)


async def test_a_lost_file_is_not_sent_to_those_who_have_it(site: Site) -> None:
    """Only a day of which nobody has anything is sent again without a question; files lost together are one alarm."""
    logs = [log_name(number) for number in range(5)]

    def told(now: datetime, lost: int, first_day: date = DAY) -> list[tuple[str, str, str]]:
        measured = Measured(0.5, 50 << 30, lost=tuple(logs[:lost]))
        found = alarms(list(site.days(now).values()), RUNNING, measured, HoldPolicy(), TEN, now, first_day=first_day)
        return [(a.level.name, a.subject, a.hint) for a in found if a.name == "log_lost"]

    site.restart(max_rows_per_file=4)
    site.put(rows_of(DAY, 20), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    now, begin = at(1, "06:00"), "restore it from a backup and restart; "
    assert told(now, 1)[0][:2] == ("CRITICAL", name())
    assert told(now, 1)[0][2].startswith(f"{begin}if there is none, send the day again: pickup-point feed")
    site.pick_up(now, name(), whole=False)
    assert told(now, 1)[0][2].startswith(f"{begin}if there is none, and Triton voids what it has of the day, send")
    assert [found[:2] for found in told(at(8), 1)] == [("WARNING", name())]
    site.pick_up(now)
    assert told(now, 1) == [("WARNING", name(), f"{begin}do not send the day again, since everybody has it")]
    assert [len(told(now, 3)), [found[:2] for found in told(now, 4)]] == [3, [("WARNING", "")]]
    assert told(now, 5, DAY + timedelta(days=1)) == []
    # The store has it still: a node fetches it by itself.
    store = Store(StoreState("s3://logs/for-triton", (name(),)), None)
    for facts, says in ((RUNNING, f"it lies in the store: s3://logs/for-triton/{name()}; restore it"),
                        (RUNNING | {NODES: {}}, "the service fetches it from the store")):  # fmt: skip
        measured = Measured(0.5, 50 << 30, lost=(logs[0],))
        found = alarms(list(site.days(now).values()), facts, measured, HoldPolicy(), TEN, now, store=store)
        assert [a.hint.startswith(says) for a in found if a.name == "log_lost"] == [True]


@pytest.mark.parametrize("measured", [Measured(0.5, 50 << 30, (), "bad"), Measured(0.5, 50 << 30, (), "", "full")])
def test_a_ledger_that_cannot_be_read_does_not_say_that_no_round_has_run(measured: Measured) -> None:
    """Whoever starts the service because of that has started nothing."""
    assert [name for _, name in of_service({}, measured)] in (["ledger_damaged"], ["ledger_unreadable"])


def test_the_worst_comes_first_and_each_has_something_to_type() -> None:
    """Critical before warnings; every alarm has a hint."""
    found = alarms([], {"clock_skew": 100.0}, Measured(0.05, 50 << 30, ("k",), "bad"), HoldPolicy(), TEN, NOW)
    assert [alarm.level for alarm in found] == sorted((alarm.level for alarm in found), reverse=True)
    assert len(found) == 5 and all(alarm.hint for alarm in found)


async def test_late_rows_that_cannot_be_published_alarm(site: Site) -> None:
    """The day itself is published, and stays so; found by the fault campaign, on a disk that kept failing."""
    site.put(rows_of(DAY, 20), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.put(rows_of(DAY, 30), at(1, "09:00"), cut=9)
    await site.round(at(1, "10:15"))
    alarm = of_day(site, at(1, "10:15"))["day_late_failed"]
    assert (alarm.level, site.state(at(1, "10:15"))) == (Level.WARNING, "published")
    assert f"late rows of {DAY} cannot be published" in alarm.sentence and alarm.hint
    site.put(rows_of(DAY, 30), at(1, "10:30"))
    await site.round(at(1, "12:00"))
    assert "day_late_failed" not in of_day(site, at(1, "12:00"))


@pytest.mark.parametrize(
    ("there", "required", "now", "expected"),
    [
        (False, True, at(1, "11:00"), {}),
        (False, True, at(1, "14:00"), {"day_not_stored": "WARNING"}),
        (False, True, at(1, "20:00"), {"day_not_stored": "CRITICAL"}),
        (False, True, at(2, "03:00"), {"day_not_stored": "CRITICAL"}),
        (False, True, at(7, "03:00"), {}),
        (True, True, at(1, "20:00"), {}),
        (False, False, at(1, "20:00"), {}),
    ],
)
async def test_where_the_partner_reads_from_the_store_a_day_must_be_there_in_time(
    site: Site, there: bool, required: bool, now: datetime, expected: dict[str, str]
) -> None:
    """By the deadline of its publication; what the store answers meanwhile is a warning of its own."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    state = StoreState("s3://b/l", (name(),) if there else (), (), "it does not answer", "wait")
    store = Store(state, DeadlinePolicy() if required else None)
    days = list(site.days(now).values())
    found = alarms(days, {"last_round": now.isoformat()}, HEALTHY, HoldPolicy(), TEN, now, store=store)
    of_store = {alarm.name: alarm for alarm in found if alarm.name in ("store", "day_not_stored")}
    assert {word: alarm.level.name for word, alarm in of_store.items()} == {"store": "WARNING"} | expected
    if expected:
        assert name() in of_store["day_not_stored"].sentence and of_store["day_not_stored"].subject == str(DAY)


def test_what_else_lies_in_the_store_is_told() -> None:
    """A stranger's file where the partner reads is critical."""
    state = StoreState("s3://b/l", wrong=(f"{name()} in the store was never published",))
    for deadlines, level in ((None, "WARNING"), (DeadlinePolicy(), "CRITICAL")):
        found = alarms([], RUNNING, HEALTHY, HoldPolicy(), TEN, NOW, store=Store(state, deadlines))
        assert [(alarm.level.name, alarm.name) for alarm in found] == [(level, "store_differs")]
