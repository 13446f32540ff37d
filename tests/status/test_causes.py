"""Causes: alarms of many days, said once."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest

from server.hints import Step
from server.status.alarms import Alarm, Level
from server.status.causes import Cause, causes, notes, ranges
from tests.support.site import DAY, Site, at, broken_rows, rows_of


@pytest.mark.parametrize(("numbers", "expected"), [
    ([3], "2026-11-03"),
    ([3, 4], "2026-11-03, 2026-11-04"),
    ([3, 4, 5], "2026-11-03 to 2026-11-05"),
    ([1, 3, 4, 5, 8], "2026-11-01, 2026-11-03 to 2026-11-05, 2026-11-08"),
])  # fmt: skip
def test_days_in_words(numbers: list[int], expected: str) -> None:
    """Three days in a row are a range."""
    assert ranges([date(2026, 11, number) for number in numbers]) == expected


async def test_days_of_one_cause_are_one_line_with_one_thing_to_do(site: Site) -> None:
    """A week without exports: one cause, with its deadlines, and the letter to Megaphone once."""
    await site.round(at(1, "04:35"))
    now = at(5, "12:00")
    await site.round(now)
    (cause,) = [cause for cause in causes(site.alarms(now), site.days(now).values()) if cause.days]
    assert cause.level is Level.CRITICAL
    assert cause.sentence == "2026-11-20 to 2026-11-24: 5 days missing; 4 deadlines are over, the next is in 12 h"
    assert [step.prose.split(" (")[0] for step in cause.steps] == ["ask support-megaphone@spotify.com"]


async def test_a_day_is_told_once_with_its_state_its_reason_and_its_deadline(site: Site) -> None:
    """What is wrong and by when in one line, then what to do about it."""
    site.put(rows_of(DAY, 3) + broken_rows(3), at(1, "04:10"))
    now = at(1, "13:00")
    await site.round(now)
    (cause,) = causes(site.alarms(now), site.days(now).values())
    assert cause.sentence == (
        f"{DAY} is held: 3 of 6 rows were rejected (50.0%, allowed 1.0%), most of them malformed_json; "
        "its deadline is in 11 h"
    )
    assert cause.steps == (Step("look at rejects/, then", f"pickup-point feed --day {DAY} --accept-rejects"),)


async def test_a_command_that_takes_days_gets_them_all(site: Site) -> None:
    """Three due days that no round has published: one command for them."""
    for number in range(3):
        day = DAY + timedelta(days=number)
        site.put(rows_of(day, 3), at(1, "04:00", day), day)
    await site.round(at(1, "04:31"))
    now = at(4, "06:00")
    alarms = [Alarm(Level.CRITICAL, "day_not_published", f"{day} is not published yet; its deadline was 9 d ago",
                    f"pickup-point feed --day {day}", str(day), site.days(now)[day].deadlines.published)
              for day in (DAY, DAY + timedelta(days=1))]  # fmt: skip
    (cause,) = causes(alarms, site.days(now).values())
    assert cause.sentence == "2026-11-20, 2026-11-21: 2 days not published yet; 2 deadlines are over"
    assert cause.steps == (Step("", "pickup-point feed --day 2026-11-20 --day 2026-11-21"),)
    (cause,) = causes([replace(alarm, name="day_not_stored") for alarm in alarms], site.days(now).values())
    assert cause.sentence.startswith("2026-11-20, 2026-11-21: 2 days not in the store, where the partner reads; 2 dead")


async def test_a_source_that_is_away_comes_before_the_days_that_it_holds_up(site: Site) -> None:
    """As bad as they are: the warning about the bucket would be below them."""
    site.put(rows_of(DAY, 3), at(1, "04:00"))
    await site.round(at(1, "04:31"))
    now = at(1, "23:00")
    away = Alarm(Level.WARNING, "source", "the bucket is away", "wait")
    days = site.days(now).values()
    found = causes([*site.alarms(now), away], days)
    assert [(cause.level, cause.sentence) for cause in found] == [
        (Level.CRITICAL, "the bucket is away"),
        (Level.CRITICAL, f"{DAY} is not published yet; its deadline is in 1 h"),
    ]
    assert [cause.level for cause in causes([away], days)] == [Level.WARNING]
    held = [Alarm(Level.CRITICAL, "day_held", f"{DAY} is held", "", str(DAY)), *site.alarms(now)]  # by its rows
    assert causes([away, *held], days)[-1] == Cause(Level.WARNING, "the bucket is away", (Step("wait", ""),))


async def test_a_wrong_place_comes_before_the_days_that_it_lacks(site: Site) -> None:
    """Whoever reads first that days are missing asks Megaphone for what is there."""
    (site.exports / "sub").mkdir()
    (site.exports / "sub" / f"metrics-day-{DAY}.json.gz").write_bytes(b"x")
    now = at(1, "12:00")
    await site.round(now)
    wrong, missing = causes(site.alarms(now), site.days(now).values())
    assert wrong.level is missing.level is Level.CRITICAL
    assert wrong.steps == (Step(f'set export.url = "{site.exports}/sub"', ""),) and missing.days == (DAY,)


async def test_why_a_day_is_not_published_is_no_thing_to_do(site: Site) -> None:
    """It ends the sentence; what to do follows."""
    site.put(rows_of(DAY, 3), at(1, "04:00"))
    await site.round(at(1, "05:35"))
    now = at(4, "01:00")
    (cause,) = [cause for cause in causes(site.alarms(now), site.days(now).values()) if "no round" in cause.sentence]
    assert cause.sentence == (
        "2026-11-21, 2026-11-22: 2 days not published yet: no round has been able to look for its export since it "
        "could be final; 2 deadlines are over"
    )
    assert cause.steps == (Step("", "pickup-point doctor"),)


async def test_remarks_that_differ_in_their_share_alone_are_one_line(site: Site) -> None:
    """Days after days with tokens that nobody decided on: one line, with the largest share."""
    days = [DAY, DAY + timedelta(days=1)]
    now = at(3, "06:00")
    for day in days:
        site.put(rows_of(day, 3), at(1, "04:10", day), day)
        await site.round(at(1, "05:35", day))
    noticed = [Alarm(Level.WARNING, "day_noticed", f"{day}: {share}% of the addresses are tokens", "", str(day))
               for day, share in zip(days, ("9.8", "10.3"), strict=True)]  # fmt: skip
    both, one = (causes(some, site.days(now).values()) for some in (noticed, noticed[:1]))
    assert [cause.sentence for cause in both] == ["2026-11-20, 2026-11-21: up to 10.3% of the addresses are tokens"]
    assert [cause.sentence for cause in one] == ["2026-11-20: 9.8% of the addresses are tokens"]


def test_the_worst_comes_first_and_what_to_do_is_not_repeated() -> None:
    """At one level what concerns the whole installation comes before a day."""
    found = causes([
        Alarm(Level.WARNING, "b", "b", "ask them; df -h"), Alarm(Level.CRITICAL, "a", "a", "df -h; ls"),
    ], [])  # fmt: skip
    assert [(cause.sentence, cause.steps) for cause in found] == [
        ("a", (Step("", "df -h"), Step("", "ls"))),
        ("b", (Step("ask them", ""),)),
    ]


async def test_a_remark_is_told_once_and_for_all_its_days(site: Site) -> None:
    """Not again what an alarm says already."""
    for number in range(4):
        day = DAY + timedelta(days=number)
        site.put(rows_of(day, 3), at(1, "04:10", day), day)
        await site.round(at(1, "05:35", day))
        if number < 3:
            await site.round(at(1, "06:00", day), day, resend="void")
    now = at(4, "06:00")
    days = list(site.days(now).values())
    again = "the whole day was sent again: void"
    assert notes(days, []) == [f"2026-11-20 to 2026-11-22: {again}"]
    assert notes(days, causes([Alarm(Level.WARNING, "x", f"{DAY}: {again}", "", str(DAY))], days)) == []
