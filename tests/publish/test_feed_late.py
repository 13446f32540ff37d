"""A day after its publication, and one that never becomes final: late rows, given up, sent again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from server.triton import ColumnSpec, IdCells, Layout, LogFormat
from tests.support.rows import row, rules
from tests.support.site import DAY, Site, at, broken_rows, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

pytestmark = pytest.mark.usefixtures("_conversions_here")


def ids(*numbers: int) -> list[str]:
    return [f"{DAY}-{n}" for n in numbers]


def between(first: int, end: int) -> list[str]:
    return ids(*range(first, end))


async def published(site: Site, count: int = 10) -> None:
    """Publish the day with this many rows at D+1 05:35."""
    site.put(rows_of(DAY, count), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "published"


# Late rows


@pytest.mark.parametrize(("rewritten", "rounds", "last", "files"), [
    # Not looked at again until it is too late; and rewritten for ever, so that it is taken as it is.
    (["20:40"], False, at(4, "01:00"), [name()]),
    ([f"{hour}:40" for hour in range(10, 24)], True, at(3, "01:00"), [name(), name(1), name(2)]),
])  # fmt: skip
async def test_a_comparison_in_a_false_future_is_none(
    make_site: Callable[..., Site], rewritten: list[str], rounds: bool, last: datetime, files: list[str]
) -> None:
    """A clock that runs ahead and is put right again costs no row: late ones are sent, or reported if too late."""
    site = make_site(look_back_days=5)
    site.source.own_clock = False  # as a folder's: it is the local one
    site.skew = timedelta(hours=90)
    await published(site)
    site.skew = timedelta()
    await site.round(at(1, "06:00"))
    for n, clock in enumerate(rewritten):
        site.put(rows_of(DAY, 11 + n), at(2, clock))
        if rounds:
            await site.round(at(2, clock) + timedelta(minutes=25))
    await site.round(last)
    assert site.files() == files
    assert site.days(last)[DAY].unsent == 1
    assert len(site.ids()) + 1 == 10 + len(rewritten)
    assert "day_unsent" in site.alarm_names(last)


async def test_late_rows_come_once_as_the_next_number(site: Site) -> None:
    """Rows that a settled rewrite adds go out as -01, then -02, each once, and never before it has settled."""
    await published(site)
    site.put(rows_of(DAY, 13), at(1, "09:00"))
    await site.round(at(1, "10:04"))
    assert site.files() == [name()]
    await site.round(at(1, "10:05"))
    assert site.ids(name(1)) == between(10, 13)
    site.put(rows_of(DAY, 14), at(2, "09:00"))
    for minute in ("10:05", "10:15", "10:25"):
        await site.round(at(2, minute))
    assert site.ids(name(2)) == between(13, 14)
    assert site.files() == [name(), name(1), name(2)]
    assert set(site.standing_ids().values()) == {1}
    kinds = [(p.kind, p.remark) for p in site.ledger.publications(DAY)]
    assert kinds == [("first", ""), ("late", "late rows"), ("late", "late rows")]
    assert site.days(at(2, "10:30"))[DAY].notes == ["late rows followed in a file of their own"]
    tally = site.ledger.publications(DAY)[2].tally
    assert tally is not None and tally.balanced and dict(tally.filtered) == {"sent_before": 13}
    site.check_folder()


async def test_changed_and_removed_rows_are_counted_and_not_sent(site: Site) -> None:
    """A row whose line would differ now, and one that is gone, are counted in the ledger and not sent."""
    await published(site)
    rows = rows_of(DAY, 10)
    rows[3] = rows_of(DAY, 1, 3, bytes_sent=5)[0]
    del rows[7]
    site.put(rows, at(1, "09:00"))
    with capture_logs() as entries:
        await site.round(at(1, "10:05"))
        await site.round(at(1, "10:15"))
    assert site.files() == [name()]
    (check,) = site.ledger.late_checks(DAY)
    assert (check.unsent, check.changed, check.removed) == (0, 1, 1)
    told = [entry for entry in entries if "no row is new" in entry["event"]]
    assert [(entry["changed"], entry["removed"]) for entry in told] == [(1, 1)]
    site.put([*rows, *rows_of(DAY, 1, 10)], at(1, "12:00"))
    await site.round(at(1, "13:05"))
    assert site.ids(name(1)) == between(10, 11)
    publication = site.ledger.publications(DAY)[1]
    assert (publication.changed, publication.removed) == (1, 1)


async def test_late_rows_are_logged_and_not_sent_after_three_days(site: Site) -> None:
    """From D+3 00:00Z new rows are counted as unsent and logged once, and become no file."""
    await published(site)
    site.put(rows_of(DAY, 12), at(2, "22:55"))
    with capture_logs() as entries:
        await site.round(at(3, "00:00"))
        await site.round(at(3, "00:10"))
    assert site.files() == [name()]
    (check,) = site.ledger.late_checks(DAY)
    assert (check.unsent, check.changed, check.removed) == (2, 0, 0)
    told = [entry for entry in entries if "came too late to be sent" in entry["event"]]
    assert [(entry["unsent"], entry["log_level"]) for entry in told] == [(2, "warning")]


async def test_late_rows_are_sent_until_the_last_minute(site: Site) -> None:
    """At D+2 23:59:59 late rows still go out."""
    await published(site)
    site.put(rows_of(DAY, 12), at(2, "22:00"))
    await site.round(at(2, "23:59:59"))
    assert site.ids(name(1)) == between(10, 12)


async def test_an_identical_rewrite_sends_nothing(site: Site) -> None:
    """A rewrite with the same bytes moves LastModified and nothing else: it is not even read again."""
    await published(site)
    site.put(rows_of(DAY, 10), at(1, "09:00"))
    await site.round(at(1, "10:05"))
    assert site.files() == [name()] and site.source.fetched == [DAY]


async def test_an_identical_rewrite_in_a_folder_is_not_read_again(site: Site) -> None:
    """Nor is a file that a mount shows under another inode, as of another time."""
    site.source.by_content = False
    await published(site)
    site.put(rows_of(DAY, 10), at(1, "09:00"))
    await site.round(at(1, "10:05"))
    assert site.files() == [name()] and site.source.fetched == [DAY]


async def test_a_version_that_was_spelled_otherwise_is_compared_once_and_sends_nothing(site: Site) -> None:
    """A ledger of an older version of this program knows an export by another etag; its day is not sent again."""
    await published(site)
    older = next(iter(site.source.versions.values())).etag
    site.source.by_content = False
    for minute in ("10:05", "10:15", "10:25"):
        await site.round(at(1, minute))
    assert site.files() == [name()] and site.source.fetched == [DAY, DAY]
    (check,) = site.ledger.late_checks(DAY)
    assert (check.unsent, check.changed, check.removed) == (0, 0, 0) and check.etag == older


async def test_a_late_file_has_the_layout_of_the_days_first(make_site: Callable[..., Site]) -> None:
    """After a change of ``[log]`` a late file keeps prefix, format, columns and rules of the first file."""
    columns = (ColumnSpec("x-metric-id", value="x-metric-id"), ColumnSpec("when", value="date"))
    site = make_site(rules=rules(Layout(columns=columns), partial_status=200))
    await published(site)
    site.restart(rules=rules(Layout(LogFormat.W3C)), prefix="NEW", max_rows_per_file=1)
    site.put(rows_of(DAY, 12), at(1, "09:00"))
    await site.round(at(1, "10:05"))
    assert site.files() == [name(), name(1), name(2)]
    assert site.lines(name(1)) == ["x-metric-id\twhen", f"{DAY}-10\t{DAY}"]
    assert site.lines(name(2)) == ["x-metric-id\twhen", f"{DAY}-11\t{DAY}"]


async def test_an_upgrade_sends_no_row_of_an_odd_id_again(make_site: Callable[..., Site]) -> None:
    """A day that an earlier release published goes on as it began; sent again, it gets the cells of today."""
    odd = [row(id=row_id, created_at=f"{DAY}T12:00:00Z") for row_id in ("a\tb", 'q"', "%41", " x", "\x00")]
    site = make_site(rules=rules(Layout(ids=IdCells.CLEANED)))
    site.put([*rows_of(DAY, 10), *odd], at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.stop()
    with closing(sqlite3.connect(site.point.ledger_path)) as ledger:  # as that release wrote it
        changed = ledger.execute("UPDATE publication SET rules = json_remove(rules, '$.layout.ids')")
        ledger.commit()
    assert changed.rowcount == 1
    site.settings["rules"] = rules()
    site.start()
    more = [row(id=row_id, created_at=f"{DAY}T13:00:00Z") for row_id in ("n\tn", "plain")]
    site.put([*rows_of(DAY, 10), *odd, *more], at(1, "09:00"))
    await site.round(at(1, "10:05"))
    assert site.files() == [name(), name(1)]
    assert site.ids(name(1)) == ["n n", "plain"]
    site.put([*rows_of(DAY, 10), *odd, *more, row(id="last", created_at=f"{DAY}T14:00:00Z")], at(1, "11:00"))
    await site.round(at(1, "12:05"))
    assert site.ids(name(2)) == ["last"]
    await site.round(at(1, "12:10"), DAY, resend="voided")
    assert site.ids(name(3))[10:] == ["a%09b", "q%22", "%2541", "%20x", "%00", "n%09n", "plain", "last"]
    site.put([*rows_of(DAY, 10), *odd, *more, *rows_of(DAY, 1, 100)], at(1, "13:00"))
    await site.round(at(1, "14:05"))
    assert site.ids(name(4)) == [f"{DAY}-100"]


async def test_a_day_is_published_once_whatever_prefix_and_format_become(site: Site) -> None:
    """A new prefix and a new format do not make a published day new."""
    await published(site)
    site.restart(rules=rules(Layout(LogFormat.W3C)), prefix="NEW")
    assert (await site.round(at(1, "06:00"))).published == []
    assert site.files() == [name()]


async def test_a_torn_rewrite_of_a_published_day_changes_nothing(site: Site) -> None:
    """A truncated rewrite fails with a sentence, the published file stays, and the next whole one brings its rows."""
    await published(site)
    site.put(rows_of(DAY, 400), at(1, "09:00"), cut=9)
    assert await site.word(at(1, "10:05")) == "failed"
    assert site.files() == [name()]
    assert "truncated" in site.days(at(1, "10:06"))[DAY].advice
    site.put(rows_of(DAY, 12), at(1, "11:00"))
    assert await site.word(at(1, "12:05")) == "published"
    assert site.ids(name(1)) == between(10, 12)
    assert site.days(at(1, "12:06"))[DAY].advice == ""


async def test_nothing_is_sent_again_when_a_published_file_is_gone(site: Site) -> None:
    """Without the file that shows what was sent, late rows are not guessed: the day fails with a sentence."""
    await published(site)
    (site.point.pickup_dir / name()).unlink()
    site.put(rows_of(DAY, 12), at(1, "09:00"))
    assert await site.word(at(1, "10:05")) == "failed"
    assert site.files() == []


async def test_late_rows_that_are_all_filtered_make_no_file(site: Site) -> None:
    """New rows that are filtered or rejected are counted, and make no empty file."""
    await published(site)
    site.put([*rows_of(DAY, 10), *rows_of(DAY, 2, 10, blacklisted_ip=True), *broken_rows(3)], at(1, "09:00"))
    await site.round(at(1, "10:05"))
    assert site.files() == [name()]
    (check,) = site.ledger.late_checks(DAY)
    assert dict(check.tally.filtered) == {"sent_before": 10, "blacklisted_ip": 2}
    assert dict(check.tally.rejected) == {"malformed_json": 3}


# Not final when waiting is given up


def fresh_rows() -> list[bytes]:
    """Ten rows of the morning, and ten created in the two hours before D+1 00:30."""
    from tests.support.rows import row

    late = [row(id=f"{DAY}-{n}", created_at=f"{DAY}T23:{n}:00Z") for n in range(10, 20)]
    return [*rows_of(DAY, 10), *late]


async def test_a_day_that_is_not_final_is_given_up_without_its_freshest_rows(site: Site) -> None:
    """At 47 hours a stale day is published as it stands, marked, without the last two hours before LastModified."""
    site.put(fresh_rows(), at(0, "23:59"))
    assert await site.word(at(1, "22:59")) == "stale"
    assert await site.word(at(1, "23:00")) == "published"
    assert site.ids() == between(0, 10)
    (publication,) = site.ledger.publications(DAY)
    assert publication.kind == "unfinal" and publication.remark.startswith("not final by export.give_up_waiting")
    assert publication.tally is not None and dict(publication.tally.filtered) == {"too_fresh": 10}
    assert site.ledger.days()[DAY].withheld == 10
    given_up = [alarm for alarm in site.alarms(at(1, "23:01")) if alarm.name == "day_given_up"]
    assert [alarm.level.name for alarm in given_up] == ["WARNING"]
    site.check_folder()


async def test_a_given_up_day_is_completed_when_it_becomes_final(site: Site) -> None:
    """The withheld rows, and those added since, follow as soon as the day is final, and only once."""
    site.put(fresh_rows(), at(0, "23:59"))
    await site.round(at(1, "23:00"))
    site.put([*fresh_rows(), *rows_of(DAY, 1, 20)], at(2, "01:00"))
    assert (await site.round(at(2, "02:04"))).published == []
    await site.round(at(2, "02:05"))
    await site.round(at(2, "13:00"))
    assert site.files() == [name(), name(1)]
    assert site.ids(name(1)) == between(10, 21)
    assert site.ledger.publications(DAY)[1].remark == "withheld rows"
    assert site.ledger.days()[DAY].withheld == 0


async def test_withheld_rows_go_out_at_noon_of_the_second_day_in_any_case(site: Site) -> None:
    """At D+2 12:00Z the withheld rows are sent though nothing changed and the day never became final; once."""
    site.put(fresh_rows(), at(0, "23:59"))
    await site.round(at(1, "23:00"))
    assert (await site.round(at(2, "11:59:59"))).published == []
    await site.round(at(2, "12:00"))
    await site.round(at(2, "12:10"))
    assert site.files() == [name(), name(1)]
    assert site.ids(name(1)) == between(10, 20)
    assert set(site.standing_ids().values()) == {1}


async def test_a_settling_day_is_given_up_too(site: Site) -> None:
    """A day that keeps being rewritten is published at 47 hours, and is complete once it has settled."""
    for hour in range(4, 23):
        site.put(rows_of(DAY, 10 + hour), at(1, f"{hour:02d}:50"))
        assert await site.word(at(1, f"{hour:02d}:55")) == "settling"
    assert await site.word(at(1, "23:00")) == "published"
    assert site.ids() == between(0, 32)
    site.put(rows_of(DAY, 40), at(1, "23:50"))
    await site.round(at(2, "00:55"))
    assert site.ids(name(1)) == between(32, 40)


async def test_an_unfinal_day_with_too_many_rejects_goes_out_when_given_up(site: Site) -> None:
    """A day both unfinal and held for its rejects, less than half of them, is not lost."""
    site.put(rows_of(DAY, 6) + broken_rows(4), at(0, "23:59"))
    assert await site.word(at(1, "23:00")) == "published"
    assert site.ids() == between(0, 6)
    remark = site.days(at(1, "23:01"))[DAY].remarks[0]
    assert remark.startswith("not final by export.give_up_waiting") and "nobody had decided: 4 of 10 rows" in remark


async def test_an_unfinal_day_that_stays_held_is_converted_once(make_site: Callable[..., Site]) -> None:
    """A day that cannot be given up is not read again every ten minutes; an operator can still publish it."""
    site = make_site(tokens="hold")
    site.put(rows_of(DAY, 6, ip="c19af70f3fb71c0f7adfb4d89dacccd3"), at(0, "23:59"))
    for minute in ("23:00", "23:10", "23:20"):
        assert await site.word(at(1, minute)) == "held"
    assert site.source.fetched == [DAY] and site.state(at(1, "23:20")) == "held"
    assert await site.word(at(1, "23:30"), DAY, accept=True) == "published"
    assert site.ledger.publications(DAY)[0].kind == "unfinal"


@pytest.mark.parametrize("look_back_days", [1, 2, 3])
async def test_what_is_withheld_is_sent_whatever_the_window(
    make_site: Callable[..., Site], look_back_days: int
) -> None:
    """A day of which something is withheld stays in every round until it is sent."""
    site = make_site(look_back_days=look_back_days)
    site.put(fresh_rows(), at(0, "23:59"))
    assert await site.word(at(1, "23:00")) == "published"
    await site.round(at(2, "12:00"))
    assert site.ids(name(1)) == between(10, 20)


async def test_a_day_first_published_too_late_withholds_nothing(site: Site) -> None:
    """After D+3 nothing could follow: all of an unfinal day goes out at once."""
    site.put(fresh_rows(), at(0, "23:59"))
    assert await site.word(at(3, "05:00")) == "published"
    assert sorted(site.ids()) == sorted(between(0, 20))
    assert site.ledger.days()[DAY].withheld == 0


@pytest.mark.parametrize("gone", [False, True])
async def test_rows_withheld_over_an_outage_are_told_once(site: Site, gone: bool) -> None:
    """A service that was down from the first publication to D+5 says how many rows are lost, and looks no more."""
    path = site.put(fresh_rows(), at(0, "23:59"))
    await site.round(at(1, "23:00"))
    if gone:
        path.unlink()
    with capture_logs() as entries:
        await site.round(at(5, "05:00"))
        await site.round(at(5, "05:10"))
    (check,) = site.ledger.late_checks(DAY)
    assert check.unsent == 10 and site.ledger.days()[DAY].withheld == 0
    assert [entry["unsent"] for entry in entries if entry["log_level"] == "warning" and "unsent" in entry] == [10]
    assert DAY not in {result.day for result in (await site.round(at(5, "05:20"))).results}


async def test_late_rows_over_an_outage_are_told(site: Site) -> None:
    """An export that changed while the service was down is compared, though its day left the window meanwhile."""
    await published(site)
    site.put(rows_of(DAY, 13), at(2, "09:00"))
    await site.round(at(6, "05:00"))
    await site.round(at(6, "05:10"))
    (check,) = site.ledger.late_checks(DAY)
    assert check.unsent == 3 and site.source.fetched == [DAY, DAY]


async def test_a_day_that_is_rewritten_every_hour_is_sent_at_noon_and_before_the_end(site: Site) -> None:
    """What is there at D+2 12:00Z and an hour before D+3 goes out; what comes after that is reported."""
    sent = []
    for hour in range(4, 73):
        now = at(1) + hour * timedelta(hours=1)
        if hour < 60:
            site.put(rows_of(DAY, 10 + hour), now - timedelta(minutes=10))
        sent += [(str(now - at(0)), len(site.ids(str(file)))) for file in (await site.round(now)).published]
    assert sent == [("1 day, 23:00:00", 33), ("2 days, 12:00:00", 13), ("2 days, 23:00:00", 11)]
    assert [check.unsent for check in site.ledger.late_checks(DAY)] == [1, 12]


# Sent again by an operator's word


async def test_after_a_resend_only_the_resend_counts_as_sent(site: Site) -> None:
    """A row that only the voided file had does not count as removed, and is sent when it comes back."""
    await published(site)
    site.put(rows_of(DAY, 9), at(1, "09:00"))
    await site.round(at(1, "10:05"))
    await site.round(at(1, "10:30"), DAY, resend="void")
    assert site.ids(name(1)) == between(0, 9)
    site.put(rows_of(DAY, 8), at(1, "11:00"))
    await site.round(at(1, "12:05"))
    assert site.ledger.late_checks(DAY)[-1].removed == 1
    site.put(rows_of(DAY, 10), at(1, "13:00"))
    await site.round(at(1, "14:05"))
    assert site.ids(name(2)) == between(9, 10)
    assert set(site.standing_ids().values()) == {1}


async def test_resend_sends_the_whole_day_under_the_next_number(site: Site) -> None:
    """``--resend`` publishes everything again; the ledger marks what it replaces; later late rows know only it."""
    await published(site)
    site.put([*rows_of(DAY, 5, bytes_sent=7), *rows_of(DAY, 7, 5)], at(1, "09:00"))
    await site.round(at(1, "10:05"))
    assert site.ids(name(1)) == between(10, 12)
    assert await site.word(at(1, "11:00"), DAY, resend="the partner voided it") == "published"
    assert site.ids(name(2)) == between(0, 12)
    logs = {str(log.name): log.superseded_by for log in site.ledger.logs()}
    resend = site.ledger.publications(DAY)[2]
    assert (resend.kind, resend.remark) == ("resend", "the partner voided it")
    assert logs == {name(): resend.id, name(1): resend.id, name(2): None}
    site.put([*rows_of(DAY, 5, bytes_sent=7), *rows_of(DAY, 8, 5)], at(1, "12:00"))
    await site.round(at(1, "13:05"))
    assert site.ids(name(3)) == between(12, 13)
    late = site.ledger.publications(DAY)[3]
    assert (late.changed, late.removed) == (0, 0)
    assert set(site.standing_ids().values()) == {1}
    site.check_folder()


async def test_resend_has_the_layout_that_is_configured_now(site: Site) -> None:
    """A day sent again in another format has a name that says so, and its late rows are like it."""
    await published(site)
    site.restart(rules=rules(Layout(LogFormat.W3C)))
    await site.round(at(1, "06:00"), DAY, resend="wrong format")
    second = name(1).replace(".tsv.", ".w3c.")
    assert site.files() == [name(), second]
    assert site.lines(second)[0] == "#Version: 1.0"
    site.put(rows_of(DAY, 11), at(1, "09:00"))
    await site.round(at(1, "10:05"))
    third = name(2).replace(".tsv.", ".w3c.")
    assert third in site.files() and len(site.lines(third)) == 5


@pytest.mark.parametrize(("rows", "modified", "why"), [
    (None, None, "never published"),
    (10, at(1, "04:10"), "cannot be read whole"),
])  # fmt: skip
async def test_resend_is_refused_without_a_whole_export(site: Site, rows: Any, modified: Any, why: str) -> None:
    """``--resend`` of a day that was never published, or whose export is not final now, is refused with a reason."""
    if rows:
        await published(site, rows)
        site.put(rows_of(DAY, rows), at(1, "09:00"))
    outcome = await site.round(at(1, "09:30"), DAY, resend="why not")
    assert outcome.results[0].word == "refused" and why in outcome.results[0].sentence


async def test_a_held_resend_says_how_to_go_on(site: Site) -> None:
    """A resend above ``max_rejected`` needs both options together, and the day stays published."""
    await published(site)
    site.put(rows_of(DAY, 10) + broken_rows(2), at(1, "09:00"))
    await site.round(at(1, "10:05"))
    outcome = await site.round(at(1, "10:30"), DAY, resend="it's void")
    assert outcome.results[0].word == "held"
    assert f"feed --day {DAY} --accept-rejects --resend" in outcome.results[0].sentence
    assert site.state(at(1, "10:31")) == "published" and site.days(at(1, "10:31"))[DAY].advice == ""
    assert await site.word(at(1, "11:00"), DAY, resend="it's void", accept=True) == "published"
    assert site.ids(name(1)) == between(0, 10)


async def test_a_day_older_than_keep_days_never_comes_back(site: Site) -> None:
    """Neither a round, nor ``--day``, nor ``--resend`` brings back a day past ``keep_days``."""
    await published(site)
    site.prune(at(61, "05:36"))
    for words in ({}, {"accept": True}, {"resend": "please"}):
        assert await site.word(at(61, "06:00"), DAY, **words) == "refused"
    assert site.files() == []
