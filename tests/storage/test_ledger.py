"""The ledger: what was written is there, whoever wrote it and whatever happens in between."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from server.convert.tally import Tally
from server.errors import LedgerError
from server.megaphone.exports import DayExport
from server.pickups import Grade, PickupProgress
from server.storage import ledger as ledger_module
from server.storage.ledger import LATE_CHECKS, Ledger
from server.storage.records import DayRecord, Failure, Hold, LateCheck, LedgerLog, Publication
from server.storage.tables import MIGRATIONS
from server.triton import ColumnSpec, Layout
from tests.support.rows import rules
from tests.support.site import DAY, at, log_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EXPORT = DayExport(DAY, "a/metrics-day-2026-11-20.json.gz", "etag", 9, at(1, "04:10"))
TALLY = Tally(rows=3, lines=1)
TALLY.filtered["no_bytes"] = 1
TALLY.rejected["no_ip"] = 1


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A new ledger."""
    with closing(Ledger.open(tmp_path / "ledger.sqlite3")) as opened:
        yield opened


def log(number: int = 0) -> LedgerLog:
    """A log as it is about to be linked."""
    return LedgerLog(log_name(number), 0, 100 + number, f"{number:064x}", 1000 + number, 5, "intended")


def publication(**changes: object) -> Publication:
    """A publication of the day."""
    made = Publication(0, DAY, "first", EXPORT, rules(), TALLY, at(1, "05:35"), None)
    return replace(made, **changes)  # type: ignore[arg-type]  # by name


def publish(ledger: Ledger, *numbers: int, **changes: object) -> int:
    """Intend and publish these logs together."""
    number = ledger.intend(publication(**changes), [log(n) for n in numbers], [5] * len(numbers))
    ledger.published(number, at(1, "05:36"), checked_etag="etag")
    return number


def query(path: Path, question: str) -> list[tuple[object, ...]]:
    """Return what another process reads in the file."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(question).fetchall()


def names(opening: Callable[[Path], Ledger], path: Path) -> list[str]:
    """Open and read: damage may show at either."""
    with closing(opening(path)) as ledger:
        return [str(entry.name) for entry in ledger.logs()]


def write_then(ledger: Ledger, *statements: str, error: Exception | None = None) -> None:
    """One transaction of these statements, which ends with an error if there is one."""
    with ledger._transaction() as run:
        for statement in statements:
            run(statement)
        if error is not None:
            raise error


# The file


def test_wal_and_full_synchronous_are_really_set(ledger: Ledger) -> None:
    """Journal WAL, synchronous FULL (2), foreign keys on; the file is private."""
    assert query(ledger.path, "PRAGMA journal_mode") == [("wal",)]
    pragmas = [ledger._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "foreign_keys")]
    assert pragmas == [2, 1]
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert ledger.created and ledger.damage() == ""


def test_a_ledger_grows_version_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty file gets the current schema, a later migration is added to it, and the rows are kept."""
    path = tmp_path / "ledger.sqlite3"
    path.touch()
    with closing(Ledger.open(path)) as ledger:
        publish(ledger, 0)
    assert query(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    more = (*MIGRATIONS, "-- a comment; with a semicolon\nALTER TABLE log ADD COLUMN more TEXT DEFAULT 'x;y';")
    monkeypatch.setattr(ledger_module, "MIGRATIONS", more)
    with closing(Ledger.open(path)) as ledger:
        assert not ledger.created
        assert [str(entry.name) for entry in ledger.logs()] == ["MEGA20261120-00.tsv.gz"]
    assert query(path, "PRAGMA user_version") == [(len(more),)]
    assert query(path, "SELECT more FROM log") == [("x;y",)]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration is whole or not at all: the file stays at its version and works with the program that wrote it."""
    path = tmp_path / "ledger.sqlite3"
    Ledger.open(path).close()
    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE t (a);\nCREATE TABLE log (a);"))
        with pytest.raises(LedgerError, match="already exists"):
            Ledger.open(path)
    assert query(path, "SELECT name FROM sqlite_master WHERE name = 't'") == []
    Ledger.open(path).close()


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    """A ledger that a newer program wrote is neither opened nor changed, and the hint says what to install."""
    path = tmp_path / "ledger.sqlite3"
    Ledger.open(path).close()
    query(path, f"PRAGMA user_version={len(MIGRATIONS) + 1}")
    with pytest.raises(LedgerError, match="newer pickup-point") as caught:
        Ledger.open(path)
    assert "newer version" in caught.value.hint
    with pytest.raises(LedgerError, match="schema version"):
        Ledger.read(path)
    assert query(path, "PRAGMA user_version") == [(len(MIGRATIONS) + 1,)]


@pytest.mark.parametrize("damage", ["head", "pages"])
def test_a_damaged_ledger_says_how_to_go_on(tmp_path: Path, damage: str) -> None:
    """A file that is not a database, or one with overwritten pages, is a LedgerError with a hint, never a traceback."""
    path = tmp_path / "ledger.sqlite3"
    with closing(Ledger.open(path)) as ledger:
        publish(ledger, *range(200))
    data = path.read_bytes()
    path.write_bytes(b"no database at all" * 600 if damage == "head" else data[:4096] + b"\xff" * (len(data) - 4096))
    for opening in (Ledger.open, Ledger.read):
        with pytest.raises(LedgerError) as caught:
            names(opening, path)
        assert f"mv {path} {path}.damaged" in caught.value.hint
    if damage == "head":
        path.rename(tmp_path / "ledger.sqlite3.damaged")
        with closing(Ledger.open(path)) as ledger:
            assert ledger.created and ledger.logs() == []


def test_a_look_at_a_ledger_changes_nothing(tmp_path: Path) -> None:
    """`Ledger.read` refuses to write, and to make a ledger where there is none."""
    path = tmp_path / "ledger.sqlite3"
    with pytest.raises(LedgerError, match="there is no ledger") as caught:
        Ledger.read(path)
    assert "pickup-point serve" in caught.value.hint and not path.exists()
    Ledger.open(path).close()
    with closing(Ledger.read(path)) as ledger, pytest.raises(LedgerError, match="readonly"):
        ledger.note(a=1)


def test_a_folder_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    """No folder, no ledger: one sentence and something to type."""
    with pytest.raises(LedgerError) as caught:
        Ledger.open(tmp_path / "nowhere" / "ledger.sqlite3")
    assert "ls -l" in caught.value.hint


# Writers


WRITER = """
import sys
from pathlib import Path
from server.storage.ledger import Ledger
ledger = Ledger.open(Path(sys.argv[1]))
for n in range(40):
    ledger.note(**{f"{sys.argv[2]}{n}": n})
ledger.close()
"""


def test_several_processes_write_one_new_ledger(tmp_path: Path) -> None:
    """Three processes that open a ledger that is not there yet, and write it, lose nothing and fail nowhere."""
    path = tmp_path / "ledger.sqlite3"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), word], stderr=subprocess.PIPE, text=True)
        for word in ("a", "b", "c")
    ]
    errors = [writer.communicate(timeout=60)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], errors
    with closing(Ledger.read(path)) as ledger:
        assert len(ledger.facts()) == 120


def test_a_ledger_that_somebody_else_is_making_is_waited_for(tmp_path: Path) -> None:
    """A second start that comes while the first one makes the tables finds them made, and makes none."""
    path = tmp_path / "ledger.sqlite3"
    opened: list[Ledger] = []
    with closing(sqlite3.connect(path, isolation_level=None)) as first:
        first.execute("PRAGMA journal_mode=WAL")
        first.execute("BEGIN IMMEDIATE")
        ledger_module._migrate(path, first)
        second = threading.Thread(target=lambda: opened.append(Ledger.open(path)))
        second.start()
        time.sleep(0.2)  # the second one has asked by now; were it later, it would have an easier time
        first.execute("COMMIT")
        second.join()
    (ledger,) = opened
    assert ledger.logs() == []
    ledger.close()


def test_a_change_by_somebody_else_is_seen(ledger: Ledger) -> None:
    """The number of `changed_elsewhere` moves with another writer's commit and not with one's own."""
    before = ledger.changed_elsewhere()
    ledger.note(own=1)
    assert ledger.changed_elsewhere() == before
    with closing(Ledger.open(ledger.path)) as other:
        other.note(theirs=1)
    assert ledger.changed_elsewhere() != before


def test_threads_do_not_mix_their_transactions(ledger: Ledger) -> None:
    """Eight threads that write at once lose nothing: one call follows the other."""

    def write(word: str) -> None:
        for n in range(20):
            ledger.note(**{f"{word}{n}": n, f"{word}{n}x": n})

    threads = [threading.Thread(target=write, args=(word,)) for word in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.facts()) == 320


def test_a_step_within_a_step_is_one_transaction(ledger: Ledger) -> None:
    """An adoption whose second half fails leaves nothing of its first half, and the ledger goes on."""
    ledger.published = None  # type: ignore[assignment,method-assign]  # what the second half calls
    with pytest.raises(TypeError):
        ledger.adopt(publication(kind="adopted", tally=None), [log()])
    del ledger.published
    assert ledger.logs() == [] and ledger.publications() == []
    ledger.note(alive=True)
    assert query(ledger.path, "SELECT count(*) FROM fact") == [(1,)]


def test_a_commit_that_fails_does_not_swallow_what_follows(ledger: Ledger) -> None:
    """After an error at COMMIT, or a transaction that SQLite itself gave up, the next call commits as ever."""
    with pytest.raises(LedgerError, match="FOREIGN KEY"):
        write_then(
            ledger,
            "PRAGMA defer_foreign_keys=ON",  # so that it is COMMIT that fails, and the transaction stays open
            "INSERT INTO log VALUES ('x', 99, 1, '', 1, 1, 'intended', NULL, NULL)",
        )
    with pytest.raises(LedgerError, match="given up"):
        write_then(ledger, "ROLLBACK", error=sqlite3.OperationalError("given up"))
    ledger.note(alive=True)
    assert query(ledger.path, "SELECT name FROM fact") == [("alive",)]
    assert query(ledger.path, "SELECT count(*) FROM log") == [(0,)]


def test_a_name_is_written_once(ledger: Ledger) -> None:
    """A second intention with a name that was ever used is refused, and leaves nothing."""
    publish(ledger, 0)
    with pytest.raises(LedgerError, match="UNIQUE"):
        ledger.intend(publication(), [log(1), log(0)], [5, 5])
    assert [entry.name.number for entry in ledger.logs()] == [0]
    assert len(ledger.publications()) == 1


# What is kept


def test_a_publication_comes_back_as_it_went_in(ledger: Ledger) -> None:
    """Export, rules, layout, tally, counts, remark and logs survive a new start."""
    layout = Layout(header="comment", columns=(ColumnSpec("id", value="x-metric-id"), ColumnSpec("c", constant="Ü")))
    made = publication(kind="late", rules=rules(layout, ip="truncated"), changed=3, removed=4, remark="late rows")
    number = ledger.intend(made, [log(1), log(0)], [7, 8])
    (intended,) = ledger.publications()
    assert intended.published_at is None and [entry.state for entry in intended.logs] == ["intended"] * 2
    ledger.published(number, at(1, "05:36"), checked_etag="etag")
    with closing(Ledger.open(ledger.path)) as again:
        (found,) = again.publications(DAY)
    assert replace(found, logs=()) == replace(made, id=number, published_at=at(1, "05:36"))
    assert [(entry.name.number, entry.lines, entry.state) for entry in found.logs] == [
        (0, 8, "published"), (1, 7, "published"),
    ]  # fmt: skip
    assert ledger.publications(DAY + timedelta(days=1)) == []


def test_a_day_keeps_what_a_listing_does_not_say(ledger: Ledger) -> None:
    """Seeing a day again changes what was seen; hold, failure and checked version stay until they are over."""
    ledger.see(DayRecord(DAY, "due", at(1), EXPORT))
    failure = Failure("torn", "gzip -t", "etag", at(1), at(1, "00:10"), 2)
    ledger.fail(DAY, failure)
    ledger.hold(DAY, Hold("why", "rejected", "etag", TALLY))
    assert ledger.days()[DAY].failure is None  # a hold ends a failure
    ledger.fail(DAY, failure)
    ledger.see(DayRecord(DAY, "settling", at(2), EXPORT._replace(etag="new")))
    found = ledger.days()[DAY]
    assert (found.seen, found.export and found.export.etag, found.failure) == ("settling", "new", failure)
    assert found.hold == Hold("why", "rejected", "etag", TALLY)
    number = ledger.intend(publication(), [log()], [5])
    ledger.published(number, at(2), checked_etag="new", withheld=7)
    found = ledger.days()[DAY]
    assert (found.hold, found.failure, found.checked_etag, found.withheld) == (None, None, "new", 7)
    check = LateCheck(DAY, at(2), "newest", at(2), 1, 2, 3, TALLY)
    ledger.late_checked(check)
    assert ledger.late_checks(DAY) == [check]
    assert (ledger.days()[DAY].checked_etag, ledger.days()[DAY].withheld) == ("newest", 0)
    ledger.see(DayRecord(DAY, "missing", at(3), None))
    assert ledger.days()[DAY].export is None


def test_an_export_that_is_rewritten_for_ever_does_not_make_the_ledger_grow(ledger: Ledger) -> None:
    """The newest comparisons are kept, and the one that left the most rows unsent."""
    day = DAY + timedelta(days=1)
    for number in range(LATE_CHECKS * 3):
        for which in (DAY, day):
            unsent = 9 if number == 4 else number % 3
            ledger.late_checked(LateCheck(which, at(2), f"{number}", at(2), unsent, 0, 0, TALLY))
    for which in (DAY, day):
        newest = [f"{number}" for number in range(LATE_CHECKS * 2, LATE_CHECKS * 3)]
        assert [check.etag for check in ledger.late_checks(which)] == ["4", *newest]
        assert max(check.unsent for check in ledger.unsent_checks() if check.day == which) == 9


def test_a_resend_supersedes_what_stood_before_it_and_nothing_else(ledger: Ledger) -> None:
    """Only the day's earlier files are marked, each with the publication that first replaced it."""
    other = DAY + timedelta(days=1)
    publish(ledger, 0)
    ledger.published(
        ledger.intend(publication(day=other), [replace(log(), name=log_name(0, other))], [1]), at(1), checked_etag=""
    )
    publish(ledger, 1, kind="late")
    first = publish(ledger, 2, kind="resend")
    publish(ledger, 3, kind="late")
    second = publish(ledger, 4, kind="resend")
    marked = {(entry.name.day, entry.name.number): entry.superseded_by for entry in ledger.logs()}
    assert marked == {
        (DAY, 0): first, (DAY, 1): first, (other, 0): None, (DAY, 2): second, (DAY, 3): second, (DAY, 4): None,
    }  # fmt: skip


@pytest.mark.parametrize(("present", "states", "checked", "withheld"), [
    ([0, 1, 2], ["published"] * 3, "etag", 4),
    ([0], ["published", "intended", "intended"], "", 4),
    ([], [], None, 0),
])  # fmt: skip
def test_an_interrupted_intention_is_finished_by_what_is_there(
    ledger: Ledger, present: list[int], states: list[str], checked: str | None, withheld: int
) -> None:
    """All there: published. Some: the rest keeps its names. None: forgotten, and the names are free."""
    ledger.see(DayRecord(DAY, "due", at(1), EXPORT))
    ledger.fail(DAY, Failure("torn", "", "etag", at(1), at(1), 1))
    number = ledger.intend(publication(), [log(0), log(1), log(2)], [5, 5, 5])
    ledger.finish_interrupted(number, [log_name(n) for n in present], at(1, "06:00"), withheld=4 if present else 0)
    assert [entry.state for entry in ledger.logs()] == states
    found = ledger.days()[DAY]
    assert (found.checked_etag, found.withheld) == (checked, withheld)
    assert (found.failure is None) == bool(present)
    assert len(ledger.publications()) == bool(present)


def test_an_interrupted_resend_supersedes_too(ledger: Ledger) -> None:
    """A resend that a crash interrupted after its links replaces the day's files like any other."""
    publish(ledger, 0)
    number = ledger.intend(publication(kind="resend"), [log(1)], [5])
    ledger.finish_interrupted(number, [log_name(1)], at(1, "06:00"))
    assert [entry.superseded_by for entry in ledger.logs()] == [number, None]


def test_what_is_missing_gets_its_names_or_another_publication_gets_them(ledger: Ledger) -> None:
    """The rest of a publication is intended anew as its own, or as another one's; a resend frees what it supersedes."""
    number = ledger.intend(publication(), [log(0), log(1), log(2)], [5, 5, 5])
    ledger.finish_interrupted(number, [log_name(0)], at(1, "06:00"))
    (found,) = ledger.publications()
    assert [entry.name.number for entry in found.missing] == [1, 2]
    assert ledger.intend(found, [log(1)], [10], rest_of=number) == number
    ledger.finish_interrupted(number, [], at(1, "06:10"))
    late = ledger.intend(publication(kind="late"), [log(1)], [10], rest_of=number)
    assert [(p.id, [str(entry.state) for entry in p.logs]) for p in ledger.publications()] == [
        (number, ["published"]), (late, ["intended"]),
    ]  # fmt: skip
    ledger.published(late, at(1, "06:20"), checked_etag="etag")
    ledger.intend(found, [log(2)], [1], rest_of=number)
    publish(ledger, 3, kind="resend")
    assert [(entry.name.number, str(entry.state)) for entry in ledger.logs()] == [
        (0, "published"), (1, "published"), (3, "published"),
    ]  # fmt: skip


def test_pickups_and_logins(ledger: Ledger) -> None:
    """A pickup is written at its opening and again at its end; the longest silence between logins is kept."""
    progress = PickupProgress(log_name(), 100, "triton", "198.51.100.7", "JSch", at(1, "07:00"))
    ledger.pickups.record(progress.opened())
    progress.answered(0, 100)
    progress.delivered(0, 100)
    done = progress.finished(at(1, "07:01"), closed=True)
    ledger.pickups.record(done)
    other = PickupProgress(log_name(1), 100, "triton", "198.51.100.7", "JSch", at(1, "08:00"))
    ledger.pickups.record(other.opened())
    assert ledger.pickups.interrupt_open() == 1
    assert ledger.pickups.handles([log_name()]) == [replace(done, ranges=())] and done.grade is Grade.COMPLETE
    endings = [str(pickup.ending) for pickup in ledger.pickups.handles([log_name(), log_name(1)])]
    assert endings == ["closed", "interrupted"]
    for hours in (0, 30, 31):
        ledger.record_login("triton", at(1) + timedelta(hours=hours), "198.51.100.7", "JSch")
    # A clock that was a month behind and is put right is no silence: so much time has not gone by.
    ledger.record_login("triton", at(31, "07:00"), "198.51.100.7", "JSch", counted=3600.0)
    assert ledger.logins() == {"triton": (at(31, "07:00"), "198.51.100.7", "JSch", 30 * 3600)}


def test_a_full_disk_is_called_that(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own words for it send people after a broken disk; they stay where the disk has room."""
    ledger._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(LedgerError, match="database or disk is full"):
        ledger.note(big="x" * 100_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(LedgerError, match="its disk is full") as full:
        ledger.note(big="x" * 100_000)
    assert "df -h" in full.value.hint
