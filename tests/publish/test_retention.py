"""Retention: old files go and never come back, unknown ones stay, and those never picked up are warned of."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from server.errors import DataFolderError, SourceUnreachable
from server.publish.clock import SteadyClock, believe
from server.publish.retention import Expiring, expired, prune
from tests.support.site import DAY, Site, at, log_name, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

pytestmark = pytest.mark.usefixtures("_conversions_here")

PUBLISHED = at(1, "05:35")
OLD = PUBLISHED + timedelta(days=60)
SECOND = timedelta(seconds=1)


@contextmanager
def closing_site(folder: Path) -> Iterator[Site]:
    site = Site(folder)
    try:
        yield site
    finally:
        site.stop()


async def published(site: Site) -> None:
    """Publish the day, with one rejected row in two hundred."""
    site.put([*rows_of(DAY, 200), b"{"], at(1, "04:10"))
    await site.round(PUBLISHED)
    os.utime(site.point.rejects_dir / log_name().rejects, (PUBLISHED.timestamp(),) * 2)


async def test_a_file_goes_when_it_is_more_than_60_days_old(site: Site) -> None:
    """At exactly 60 times 24 hours a file is not yet old; a second later it goes, with its rejects."""
    await published(site)
    assert site.prune(OLD).logs == () and site.files() == [name()]
    assert site.prune(OLD + SECOND, dry_run=True).logs == (log_name(),) and site.files() == [name()]
    with capture_logs() as entries:
        pruned = site.prune(OLD + SECOND)
    assert (pruned.logs, pruned.rejects) == ((log_name(),), (log_name().rejects,))
    assert site.files() == site.served() == [] and site.point.rejects() == []
    assert f"retention pruned {name()}" in [entry["event"] for entry in entries]
    (log,) = site.ledger.logs()
    assert (log.state, log.pruned_at) == ("pruned", OLD + SECOND)
    assert site.prune(OLD + 2 * SECOND).logs == ()


async def test_times_that_no_calendar_has_end_nothing() -> None:
    """A file system keeps any number as a time: such rejects stay, and a new ledger adopts such a log."""
    # In memory: a disk may keep no times after 2446.
    with TemporaryDirectory(dir="/dev/shm") as folder, closing_site(Path(folder)) as site:
        await published(site)
        for path in (site.point.rejects_dir / log_name().rejects, site.point.pickup_dir / name()):
            os.utime(path, (300_000_000_000,) * 2)
            assert path.stat().st_mtime == 300_000_000_000
        site.stop()
        for file in site.point.data_dir.glob("ledger.sqlite3*"):
            file.unlink()
        site.start()
        await site.round(PUBLISHED + timedelta(minutes=10))
        assert site.served() == [name()]
        assert site.prune(OLD + SECOND).rejects == ()


async def test_61_days_later_the_name_is_not_used_again(site: Site) -> None:
    """A pruned day is never published again: by no round, no request, and no change of its export."""
    await published(site)
    site.prune(OLD + SECOND)
    site.put(rows_of(DAY, 300), at(61))
    for days in ((), (DAY,)):
        assert (await site.round(OLD + timedelta(hours=2), *days)).published == []
    assert site.files() == []
    assert str(site.publisher.next_name(DAY, "MEGA", site.feed.rules)) == name(1)


async def test_a_pruned_day_does_not_come_back_with_a_lost_ledger(make_site: Callable[..., Site]) -> None:
    """Without ledger and file the window keeps old days out, also those asked for by hand."""
    for folder, first in (("a", DAY), ("b", None)):
        site = make_site(folder, first=first, look_back_days=59)
        await published(site)
        site.prune(OLD + SECOND)
        site.stop()
        for path in site.point.data_dir.glob("ledger.sqlite3*"):
            path.unlink()
        site.start()
        assert (await site.round(OLD + 2 * SECOND)).published == []
        assert await site.word(OLD + 2 * SECOND, DAY) == "refused"
        assert site.files() == []


async def test_files_that_the_ledger_does_not_know_are_neither_served_nor_deleted(site: Site) -> None:
    """A stranger in the folder, with a log's name or without, stays where it is, unseen, for ever."""
    await published(site)
    for file in ("MEGA20250101-00.tsv.gz", "notes.txt"):
        path = site.point.pickup_dir / file
        path.write_bytes(b"whose?")
        os.utime(path, (0, 0))
    await site.round(PUBLISHED + timedelta(hours=1))
    assert site.served() == [name()]
    site.prune(at(200))
    assert site.files() == ["MEGA20250101-00.tsv.gz", "notes.txt"]


async def test_only_rejects_files_are_pruned_from_rejects(site: Site) -> None:
    """An operator's notes, folders and links in ``rejects/`` neither go nor stop the pass."""
    await published(site)
    folder = site.point.rejects_dir
    (folder / "notes.txt").write_text("asked support")
    os.utime(folder / "notes.txt", (0, 0))
    (folder / "old.rejects.ndjson.gz").mkdir()
    (folder / "gone.rejects.ndjson.gz").symlink_to("/nowhere")
    assert site.prune(OLD + SECOND).rejects == (log_name().rejects,)
    assert len(list(folder.iterdir())) == 3


async def test_a_file_that_nobody_picked_up_is_warned_of_seven_days_before(site: Site) -> None:
    """A file that was never picked up whole is named for seven days before it goes; a partial pickup does not count."""
    await published(site)
    site.pick_up(at(2), whole=False)
    soon = OLD - timedelta(days=7)
    assert site.prune(soon - SECOND).unclaimed == ()
    with capture_logs() as entries:
        (waiting,) = site.prune(soon).unclaimed
    assert (waiting.log.name, waiting.remove_after) == (log_name(), OLD)
    assert [entry["event"] for entry in entries] == [f"retention found {name()} never picked up"]
    # Once: passes are hourly, and the service may be started again.
    site.restart()
    site.publisher.serve_published()
    with capture_logs() as entries:
        assert len(site.prune(soon + SECOND).unclaimed) == 1
    assert entries == []
    site.pick_up(at(54))
    assert site.prune(soon).unclaimed == ()


async def test_nobody_waits_for_a_superseded_file(site: Site) -> None:
    """A file that was sent again is not warned of, and is pruned like every other."""
    await published(site)
    await site.round(at(1, "07:00"), DAY, resend="void", accept=True)
    (waiting,) = site.prune(OLD - timedelta(days=1)).unclaimed
    assert waiting.log.name == log_name(1)
    assert site.prune(OLD + SECOND).logs == (log_name(),)


async def test_a_pass_that_was_interrupted_is_ended_by_the_next(site: Site) -> None:
    """A file that is gone, but not yet recorded as pruned, is recorded."""
    await published(site)
    (site.point.pickup_dir / name()).unlink()
    assert site.prune(OLD + SECOND).logs == (log_name(),)
    assert site.ledger.logs()[0].state == "pruned"


async def test_an_error_of_the_disk_is_raised_with_a_hint(site: Site) -> None:
    """A file that cannot be removed is an error with a hint, and is not recorded as pruned."""
    await published(site)
    (site.point.pickup_dir / name()).unlink()
    (site.point.pickup_dir / name()).mkdir()
    with pytest.raises(DataFolderError) as caught:
        site.prune(OLD + SECOND)
    assert caught.value.hint
    assert site.ledger.logs()[0].state == "published"


async def test_age_counts_from_the_publication_and_not_from_the_mtime(site: Site) -> None:
    """A file whose mtime ran ahead of the clock goes 60 days after its publication all the same."""
    site.skew = timedelta(days=5)
    await published(site)
    site.skew = timedelta()
    second = DAY + timedelta(days=1)
    site.put(rows_of(second, 2), at(2, "04:10"), second)
    await site.round(at(2, "05:35"))
    logs = {log.name: log.mtime for log in site.ledger.logs()}
    assert logs[log_name(day=second)] == logs[log_name()] + 1 > at(5).timestamp()
    assert site.prune(at(62, "05:35:01")).logs == (log_name(day=second),)


async def test_a_clock_that_was_wrong_at_publication_removes_nothing_early(site: Site) -> None:
    """A machine that booted in 1970 and published then does not prune the day when its clock is right again."""
    site.skew = -timedelta(days=20_000)
    await published(site)
    site.skew = timedelta()
    await site.round(at(1, "06:35"))
    assert site.prune(at(61)).logs == ()
    assert site.prune(at(61, "00:00:01")).logs == (log_name(),)


async def test_a_clock_that_runs_ahead_removes_nothing_early(site: Site) -> None:
    """A local clock a year ahead of the source's is corrected: no file goes before its time."""
    await published(site)
    site.skew = timedelta(days=365)
    await site.round(at(1, "06:35"))
    assert site.prune(at(1, "06:36") + site.skew).logs == ()
    assert site.prune(OLD + site.skew).logs == ()
    assert site.prune(OLD + site.skew + SECOND).logs == (log_name(),)


def test_expired_is_a_matter_of_the_clock_that_is_handed_in() -> None:
    """More than ``keep_days`` days: the instant itself is not yet past."""
    file = Expiring(None, PUBLISHED, OLD)  # type: ignore[arg-type]  # the log is not looked at
    assert expired([file], OLD) == [] and expired([file], OLD + timedelta(microseconds=1)) == [file]


def test_a_clock_that_jumps_between_two_rounds_makes_nothing_older() -> None:
    """A pass goes by the clock that a round compared with the source's, counted on by seconds that never jump."""
    clock = SteadyClock()
    assert clock.now(5.0) is None, "before the first round nothing is known of the clock"
    clock.compared(PUBLISHED, PUBLISHED + SECOND, 100.0)
    assert clock.now(100.0) == PUBLISHED
    assert clock.now(3700.0) == PUBLISHED + timedelta(hours=1)
    clock.compared(OLD, PUBLISHED + timedelta(days=1), 3800.0)
    assert clock.now(3801.0) == PUBLISHED + timedelta(days=1) + SECOND


async def test_a_pass_by_a_steady_clock_needs_no_correction(site: Site) -> None:
    """The skew in the ledger is that of the local clock, which such a pass does not use."""
    await published(site)
    site.ledger.note(clock_skew=86400.0 * 400)
    assert site.prune(OLD + SECOND, dry_run=True).logs == ()
    assert prune(site.ledger, site.point, 60, OLD + SECOND, steady=True).logs == (log_name(),)


# A clock that leapt


LEAP = timedelta(days=400)


@pytest.fixture
async def folder(site: Site) -> Site:
    """A published day from a folder, whose only clock is the local one."""
    site.source.own_clock = False
    await published(site)
    return site


def stopped(site: Site, now: datetime) -> bool:
    """Run a pass; return whether the clock stopped it, which `check` then says."""
    pruned = site.prune(now)
    assert ("pruning_stopped" in site.alarm_names(now)) is bool(pruned.doubt)
    return bool(pruned.doubt)


async def test_a_folder_s_clock_that_leaps_removes_nothing(folder: Site) -> None:
    """By hand, and after rounds by the wrong clock: nothing goes until it is right again."""
    assert stopped(folder, PUBLISHED + LEAP)
    folder.skew = LEAP
    folder.put(rows_of(DAY + timedelta(days=1), 3), at(2, "04:10"), DAY + timedelta(days=1))
    for minute in ("05:00", "05:10", "05:20"):
        await folder.round(at(2, minute), DAY + timedelta(days=1))
        assert stopped(folder, at(2, minute) + LEAP)
    assert folder.files() == [name()]
    folder.skew = timedelta()
    await folder.round(at(2, "06:00"))
    assert not stopped(folder, at(2, "06:00"))


async def test_a_clock_that_was_ahead_at_the_first_start_is_forgotten_in_time(make_site: Callable[..., Site]) -> None:
    """A week of rounds by the right one, and a second leap is noticed like a first; one bad boot forgets nothing."""
    site = make_site()
    site.source.own_clock = False
    site.skew = LEAP
    await site.round(at(0, "12:00"))
    site.skew = timedelta()
    await published(site)
    for day in range(2, 11):
        await site.round(at(day, "12:00"))
    assert stopped(site, at(11) + LEAP / 4) and not stopped(site, at(11))
    site.skew = -LEAP
    await site.round(at(11, "01:00"))
    site.skew = timedelta()
    await site.round(at(11, "01:10"))
    assert not stopped(site, at(11, "02:00"))


async def test_a_dry_run_shows_what_would_go_if_the_clock_were_right(folder: Site) -> None:
    """And says that it is in doubt, and changes nothing."""
    would = folder.prune(OLD + SECOND, dry_run=True)
    assert would.logs == (log_name(),) and would.doubt
    assert "pruning_stopped" not in folder.alarm_names(OLD) and folder.files() == [name()]


async def test_a_leap_is_more_than_seven_days(folder: Site) -> None:
    """A week without a round is no leap; a second more is, until an operator says that the clock is right."""
    week = PUBLISHED + timedelta(days=7)
    assert not stopped(folder, week) and stopped(folder, week + SECOND)
    believe(folder.ledger, OLD + SECOND)
    assert not stopped(folder, OLD + SECOND) and folder.files() == []


async def test_a_bucket_s_clock_confirms_a_long_stop(site: Site) -> None:
    """A service that was down for 60 days on a right clock prunes after its first round; a folder proves nothing."""
    await published(site)
    for own_clock in (False, True):
        site.source.own_clock = own_clock
        await site.round(OLD + SECOND)
        pruned = prune(site.ledger, site.point, 60, OLD + SECOND)
        assert (pruned.logs == (log_name(),)) is own_clock and bool(pruned.doubt) is not own_clock


async def test_an_outage_of_the_source_is_no_leap(folder: Site) -> None:
    """Rounds that cannot list the source see the clock go on, step by step."""
    folder.source.away = True
    for days in range(2, 62):
        with pytest.raises(SourceUnreachable):
            await folder.round(at(days, "06:00"))
    assert folder.prune(OLD + SECOND).logs == (log_name(),)


async def test_a_new_ledger_that_adopts_files_under_a_leapt_clock_keeps_them(folder: Site) -> None:
    """The files' own times speak against the clock, also after a publication by it."""
    folder.stop()
    for path in folder.point.data_dir.glob("ledger.sqlite3*"):
        path.unlink()
    os.utime(folder.point.pickup_dir / name(), (PUBLISHED.timestamp(),) * 2)
    folder.start()
    folder.skew = LEAP
    folder.put(rows_of(at(399).date(), 3), at(400, "04:10"), at(399).date())
    assert (await folder.round(at(1, "06:00"))).published
    assert stopped(folder, at(1, "06:00") + LEAP) and len(folder.files()) == 2


async def test_a_ledger_of_an_earlier_version_speaks_against_a_leap(folder: Site) -> None:
    """Its last round, or its newest publication, is the newest instant on record."""
    with closing(sqlite3.connect(folder.point.ledger_path)) as connection, connection:
        connection.execute("DELETE FROM fact WHERE name = 'clock_believed'")
    assert stopped(folder, OLD + SECOND)
    folder.ledger.note(last_round=OLD.isoformat())
    assert not stopped(folder, OLD + SECOND)
