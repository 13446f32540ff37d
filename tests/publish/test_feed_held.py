"""Held days: what holds them, what releases them, and which are published although nobody decided."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from tests.support.site import DAY, Site, at, broken_rows, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("_conversions_here")

NEXT = DAY + timedelta(days=1)
TOKEN = "c19af70f3fb71c0f7adfb4d89dacccd3"


async def test_a_day_with_too_many_rejects_is_held_until_an_operator_decides(site: Site) -> None:
    """Above 1 % rejected nothing is published; status and check say so and what to type, which publishes it."""
    site.put(rows_of(DAY, 98) + broken_rows(2), at(1, "04:10"))
    with capture_logs() as entries:
        assert await site.word(at(1, "05:35")) == "held"
    assert f"feed held {DAY}" in [entry["event"] for entry in entries]
    assert site.files() == [] and len(site.rejects(name().removesuffix(".gz"))) == 2
    now = at(1, "05:40")
    assert site.state(now) == "held"
    held = next(alarm for alarm in site.alarms(now) if alarm.name == "day_held")
    assert held.level.name == "CRITICAL"
    assert f"pickup-point feed --day {DAY} --accept-rejects" in held.hint
    assert await site.word(at(1, "06:35")) == "held"
    assert site.source.fetched == [DAY]  # the same version is not converted again
    assert await site.word(at(1, "07:35"), DAY, accept=True) == "published"
    assert len(site.ids()) == 98
    assert "operator" in site.days(now)[DAY].remarks[0]
    assert "day_held" not in site.alarm_names(now)
    site.check_folder()


async def test_an_array_on_one_line_is_held_and_nothing_of_it_is_sent(make_site: Callable[..., Site]) -> None:
    """With that sentence, whatever share of rows may be rejected; an operator cannot accept it, nor time."""
    site = make_site(max_rejected=1.0)
    site.put([b"[" + b",".join(rows_of(DAY, 9)) + b"]"], at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "held"
    (record,) = (record for day, record in site.ledger.days().items() if day == DAY)
    assert record.hold is not None
    assert record.hold.reason == "one_line" and "in one array on one line" in record.hold.why
    assert await site.word(at(1, "06:35"), DAY, accept=True) == "held"
    assert await site.word(at(1, "23:30")) == "held"
    assert site.files() == []
    site.put(rows_of(DAY, 9), at(1, "23:40"))
    assert await site.word(at(2, "00:50")) == "published"
    assert len(site.ids()) == 9


async def test_exactly_the_allowed_share_of_rejects_is_published(site: Site) -> None:
    """One row of a hundred is 1 %, not above it."""
    site.put(rows_of(DAY, 99) + broken_rows(1), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "published"


async def test_a_held_day_is_tried_again_when_its_export_changes(site: Site) -> None:
    """A new version of a held day is judged anew; a corrected one is published, without the old rejects file."""
    site.put(rows_of(DAY, 9) + broken_rows(1), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "held"
    site.put(rows_of(DAY, 10), at(1, "06:00"))
    assert await site.word(at(1, "06:30")) == "settling"
    assert site.days(at(1, "06:30"))[DAY].advice == ""
    assert await site.word(at(1, "07:05")) == "published"
    assert len(site.ids()) == 10
    assert site.point.rejects() == []


async def test_accepting_concerns_the_version_that_was_held(site: Site) -> None:
    """A version that came after it is judged anew, and the operator is told so, whether it is held too or not."""
    site.put(rows_of(DAY, 98) + broken_rows(2), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "held"
    site.put(rows_of(DAY, 50) + broken_rows(50), at(1, "06:00"))
    (held,) = (await site.round(at(1, "07:05"), DAY, accept=True)).results
    assert (held.word, site.files()) == ("held", [])
    assert held.sentence.startswith("its export has changed since it was held") and "50 of 100 rows" in held.sentence
    site.put(rows_of(DAY, 100), at(1, "08:00"))
    (published,) = (await site.round(at(1, "09:05"), DAY, accept=True)).results
    assert published.word == "published" and published.sentence.startswith("its export has changed since it was held")
    assert site.days(at(1, "09:05"))[DAY].remarks == ()


async def test_a_day_of_which_no_line_would_remain_cannot_be_accepted(site: Site) -> None:
    """It stays held whoever accepts it, also past 47 hours and as a resend; a version with a good row can be."""
    bots = rows_of(DAY, 6, blacklisted_ua=True)
    site.put(bots + broken_rows(4), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "held"
    (result,) = (await site.round(at(1, "06:00"), DAY, accept=True)).results
    assert result.word == "held" and "no line would remain, so it cannot be accepted" in result.sentence
    assert "--accept-rejects" not in result.sentence + site.days(at(1, "06:00"))[DAY].advice
    assert [await site.word(at(1, clock)) for clock in ("23:00", "23:10")] == ["held", "held"]
    assert site.files() == [] and site.source.fetched == [DAY, DAY]
    site.put(bots + broken_rows(4) + rows_of(DAY, 1, 6), at(2, "00:00"))
    assert await site.word(at(2, "01:05")) == "published"  # given up, since one row is good
    site.put(bots + broken_rows(4), at(2, "02:00"))
    for accept in (False, True):
        (resend,) = (await site.round(at(2, "03:05"), DAY, resend="void", accept=accept)).results
        assert resend.word == "held" and "cannot be accepted" in resend.sentence
    assert site.files() == [name()]


async def test_a_day_of_another_days_rows_is_held(site: Site) -> None:
    """With more than half of its lines outside the day an operator decides, also past 47 hours; 1 % is warned of."""
    site.put(rows_of(DAY, 4) + rows_of(NEXT, 6), at(1, "04:10"))
    site.put(rows_of(NEXT, 49) + rows_of(DAY, 1, 4), at(2, "04:10"), NEXT)
    outcome = await site.round(at(2, "05:35"))
    assert [result.word for result in outcome.results] == ["held", "published", "open"]
    assert "60.0% of the lines belong to another day" in outcome.results[0].sentence
    noticed = [alarm.sentence for alarm in site.alarms(at(2, "05:36")) if alarm.name == "day_noticed"]
    assert noticed == [f"{NEXT}: 2.0% of the lines belong to another day"]
    assert await site.word(at(2, "06:00"), DAY, accept=True) == "published"


async def test_a_day_held_for_rejects_is_published_when_waiting_is_given_up(site: Site) -> None:
    """The good rows are not lost if nobody decides: at 47 hours a day less than half rejected is published, marked."""
    site.put(rows_of(DAY, 51) + broken_rows(49), at(1, "04:10"))
    assert await site.word(at(1, "22:59")) == "held"
    assert await site.word(at(1, "23:00")) == "published"
    assert len(site.ids()) == 51
    assert site.days(at(1, "23:00"))[DAY].remarks[0].startswith("held until export.give_up_waiting, then published")
    assert "day_given_up" in site.alarm_names(at(1, "23:00"))


async def test_a_day_first_seen_after_the_waiting_is_over_is_given_up_in_the_same_round(site: Site) -> None:
    """After an outage past 47 hours a day below half rejected does not wait for another round."""
    site.put(rows_of(DAY, 51) + broken_rows(49), at(1, "04:10"))
    assert await site.word(at(2, "12:00")) == "published"
    assert len(site.ids()) == 51
    assert site.source.fetched.count(DAY) <= 2


async def test_a_day_half_rejected_is_never_given_up(site: Site) -> None:
    """If half of its rows or more are rejected, only an operator publishes it."""
    site.put(rows_of(DAY, 50) + broken_rows(50), at(1, "04:10"))
    assert [await site.word(at(1, "05:35")), await site.word(at(2, "23:00"))] == ["held", "held"]
    assert site.files() == []


async def test_an_empty_day_after_days_with_rows_is_held(site: Site) -> None:
    """An empty export, when one of the last seven days had rows, is held and never given up by itself."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.put([], at(2, "04:10"), NEXT)
    assert await site.word(at(2, "05:35"), day=NEXT) == "held"
    assert await site.word(at(3, "12:00"), day=NEXT) == "held"
    assert await site.word(at(3, "13:00"), NEXT, day=NEXT, accept=True) == "published"
    assert len(site.lines(name(day=NEXT))) == 1


async def test_an_empty_day_after_seven_empty_ones_is_a_file_with_a_header_only(site: Site) -> None:
    """After seven held empty days the eighth empty one is published with its header line, and warned of."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    words = []
    for n in range(1, 9):
        day = DAY + timedelta(days=n)
        site.put([], at(n + 1, "04:10"), day)
        with capture_logs() as entries:
            words.append(await site.word(at(n + 1, "05:35"), day=day))
    assert words == ["held"] * 7 + ["published"]
    assert len(site.lines(name(day=day))) == 1
    assert any("header line only" in entry.get("why", "") for entry in entries)
    assert "day_noticed" in site.alarm_names(at(9, "05:36"))


async def test_tokens_hold_a_day_if_so_configured(make_site: Callable[..., Site]) -> None:
    """With ``tokens = "hold"`` a day with more than 1 % of hash-like addresses waits, also past 47 hours."""
    site = make_site(tokens="hold")
    site.put([*rows_of(DAY, 98), *rows_of(DAY, 2, 98, ip=TOKEN)], at(1, "04:10"))
    site.put([*rows_of(NEXT, 99), *rows_of(NEXT, 1, 99, ip=TOKEN)], at(2, "04:10"), NEXT)
    outcome = await site.round(at(2, "06:00"))
    assert [result.word for result in outcome.results] == ["held", "published", "open"]
    assert "hash-like" in outcome.results[0].sentence


async def test_a_day_held_for_two_reasons_is_not_given_up(make_site: Callable[..., Site]) -> None:
    """Only a day held for its rejects and for nothing else is published when waiting is given up."""
    site = make_site(tokens="hold")
    site.put([*rows_of(DAY, 50, ip=TOKEN), *broken_rows(10)], at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "held"
    assert await site.word(at(2, "06:00")) == "held"
    assert site.files() == []
    assert await site.word(at(2, "07:00"), DAY, accept=True) == "published"


async def test_tokens_without_a_setting_are_sent_and_warned_of(site: Site) -> None:
    """While ``tokens`` is not given, hash-like addresses are sent, and check warns with their share."""
    site.put([*rows_of(DAY, 9), *rows_of(DAY, 1, 9, ip=TOKEN)], at(1, "04:10"))
    with capture_logs() as entries:
        assert await site.word(at(1, "05:35")) == "published"
    assert any("10.0% of the addresses are hash-like" in entry.get("why", "") for entry in entries)
    assert any("10.0%" in alarm.sentence for alarm in site.alarms(at(1, "06:00")) if alarm.name == "day_noticed")
