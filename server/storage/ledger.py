"""The ledger: what the service did and saw, in one SQLite file.

Touches ``ledger.sqlite3``, and is the only module that knows SQLite. Promise: once a method has returned, what it wrote
is on disk (WAL, synchronous=FULL) and survives a crash; a log name that was ever linked is spent. A ledger may be
used from any thread; it calls SQLite from one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import shlex
import shutil
import sqlite3
import stat
import threading
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ..disk import list_command
from ..errors import LedgerError
from ..paths import status_of
from .entry_store import EntryStore
from .pickup_store import PickupStore
from .podcast_books import PodcastBookStore
from .records import DELIVERY
from .rss_feeds import RssFeedStore
from .tables import MIGRATIONS, late_check_of, log_of, moment, publication_of, record_of, text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ..triton import LogName
    from .records import DayRecord, Failure, Hold, LateCheck, LedgerLog, Publication
    from .staging import StagedLog

LEDGER_FILE = "ledger.sqlite3"
LIVE_DAYS = 100  # newest days that a round and `status` look at, whatever became of their logs
LATE_CHECKS = 10  # how many are kept of each day: the newest
_BUSY_SECONDS = 30  # SQLite waits this long for another process's transaction
# Uses the index of logs that are still there: few, compared with all that ever were.
_WITH_LOGS = "p.id IN (SELECT publication FROM log WHERE state <> 'pruned'"
_A_LITTLE = 1 << 16  # bytes: a disk with less free counts as full


class Ledger:
    """An open ledger, made by `open` or `read`; ``created`` is True if there was none before.

    ``rss`` stores the RSS feeds, ``books`` the tallies by podcast, ``pickups`` what was delivered to whom, ``entries``
    those of a shared store. Every method raises `LedgerError` if SQLite cannot do what is asked.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, created: bool) -> None:
        self.path = path
        self.created = created
        self._connection = connection
        self._lock = threading.RLock()
        self.rss = RssFeedStore(self._transaction, self._rows)
        self.books = PodcastBookStore(self._transaction, self._rows)
        self.pickups = PickupStore(self._transaction, self._rows)
        self.entries = EntryStore(self._transaction, self._rows)

    @classmethod
    def open(cls, path: Path, *, alone: bool = False) -> Ledger:
        """Open the ledger; create it if it is missing, and bring it to the current schema.

        With ``alone`` no other process can open it meanwhile, so it needs no shared-memory file beside it on the disk.
        """
        with translate_sqlite_errors(path):
            there = _look_at(path)
            created = there is None or there.st_size == 0
            connection = _connect(path)
            try:
                if alone:
                    # Before anything else is asked: only then does SQLite keep the WAL's index in its own memory.
                    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
                # A second process that opens a new ledger waits here, and then finds it ready.
                with _immediate(connection):
                    _migrate(path, connection)
                path.chmod(0o600)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, created=created)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Open a ledger read-only, for `status`, `check` and `trace`, also while a service writes to it."""
        with translate_sqlite_errors(path):
            if _look_at(path) is None:
                raise LedgerError(f"there is no ledger at {path}", hint="the first start makes it: pickup-point serve")
            connection = _connect(path)
            try:
                connection.execute("PRAGMA query_only=ON")
                version = connection.execute("PRAGMA user_version").fetchone()[0]
            except BaseException:
                connection.close()
                raise
        if version != len(MIGRATIONS):
            connection.close()
            hint = "starting the service brings it up to date: pickup-point serve"
            raise LedgerError(f"{path} has schema version {version}, this program needs {len(MIGRATIONS)}", hint=hint)
        return cls(path, connection, created=False)

    @classmethod
    def copy(cls, path: Path) -> bytes:
        """Return a consistent copy of a ledger as the bytes of a database file, also while a service writes to it."""
        with contextlib.closing(cls.read(path)) as ledger:
            if damage := ledger.damage():
                raise LedgerError(f"the ledger {path} is damaged: {damage}", hint="keep the backups you have")
            with translate_sqlite_errors(path), contextlib.closing(sqlite3.connect(":memory:")) as memory:
                ledger._connection.backup(memory)  # noqa: SLF001  # a ledger of our own
                return memory.serialize()

    def close(self) -> None:
        """Close the ledger."""
        with self._lock:
            self._connection.close()

    def damage(self) -> str:
        """Return what SQLite's ``quick_check`` finds wrong, or ''."""
        found = self._rows("PRAGMA quick_check(1)")[0][0]
        return "" if found == "ok" else str(found)

    # Publications

    def intend(
        self, publication: Publication, logs: Sequence[StagedLog | LedgerLog], lines: Sequence[int], *, rest_of: int = 0
    ) -> int:
        """Record that these logs are about to be linked; return the publication's number.

        With ``rest_of`` they replace the missing logs of that publication: within it, if it is ``publication`` itself
        (by its ``id``, which is not read otherwise), else as a new publication.
        """
        # On disk before the first link: after a crash, `finish_interrupted` knows which names to look for.
        export = publication.export
        with self._transaction() as run:
            self.release_missing(rest_of)
            within = rest_of != 0 and publication.id == rest_of
            number = rest_of if within else run(
                "INSERT INTO publication (delivery, day, kind, export_key, export_etag, export_size, export_modified,"
                " rules, tally, changed, removed, remark, intended_at, catalogue)"
                " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (publication.delivery, publication.day.isoformat(), publication.kind, export.key, export.etag,
                 export.size, text(export.last_modified), _json(publication.rules.as_json()),
                 None if publication.tally is None else _json(publication.tally.as_json()), publication.changed,
                 publication.removed, publication.remark, text(publication.intended_at),
                 None if publication.catalogue is None else _json(publication.catalogue.as_json())),
            ).lastrowid  # fmt: skip
            for log, count in zip(logs, lines, strict=True):
                run(
                    "INSERT INTO log (name, publication, size, sha256, mtime, lines, state)"
                    " VALUES (?,?,?,?,?,?,'intended')",
                    (str(log.name), number, log.size, log.sha256, log.mtime, count),
                )
            assert number is not None  # noqa: S101  # an INSERT has a row id
            if publication.podcasts is not None:
                self.books.put(number, publication.podcasts)
        return number

    def release_missing(self, number: int) -> None:
        """Free the names that a publication was promised and never got: no client has seen them."""
        with self._transaction() as run:
            run("DELETE FROM log WHERE publication = ? AND state = 'intended'", (number,))

    def published(self, number: int, at: datetime, *, checked_etag: str, withheld: int = 0) -> None:
        """Record that all logs of a publication are in the folder; a resend supersedes what was sent before it.

        This clears the day's hold and failure, and sets its ``checked_etag`` and ``withheld``.
        """
        with self._transaction() as run:
            run("UPDATE log SET state = 'published' WHERE publication = ? AND state = 'intended'", (number,))
            self._published(number, at, checked_etag, withheld)

    def _published(self, number: int, at: datetime, checked_etag: str, withheld: int) -> None:
        """Record that a publication is published; the caller says which of its logs."""
        with self._transaction() as run:
            run("UPDATE publication SET published_at = ? WHERE id = ?", (text(at), number))
            # In the same transaction: a resend and what it replaces never both count.
            run(
                "UPDATE log SET superseded_by = ?1 WHERE superseded_by IS NULL AND publication IN ("
                "  SELECT old.id FROM publication new JOIN publication old"
                "  ON old.delivery = new.delivery AND old.day = new.day AND old.id < new.id"
                "  WHERE new.id = ?1 AND new.kind = 'resend')",
                (number,),
            )
            run("DELETE FROM log WHERE state = 'intended' AND superseded_by IS NOT NULL")
            run(
                "UPDATE day SET checked_etag = ?2, checked_at = seen_at, withheld = ?3, held_why = NULL,"
                " held_etag = NULL, held_reason = NULL, held_tally = NULL, failure = NULL, failure_hint = NULL,"
                " failure_etag = NULL, failed_at = NULL, next_try = NULL, tries = 0 WHERE (delivery, day) ="
                " (SELECT delivery, day FROM publication WHERE id = ?1)",
                (number, checked_etag, withheld),
            )

    def finish_interrupted(self, number: int, present: Sequence[LogName], at: datetime, *, withheld: int = 0) -> None:
        """Record the outcome of a publication that a crash interrupted: its logs in ``present`` are published.

        If only some are, the others stay `Publication.missing`, keep their names, and no version counts as checked.
        If none is, the publication is forgotten.
        """
        with self._transaction() as run:
            for name in present:
                run("UPDATE log SET state = 'published' WHERE name = ? AND publication = ?", (str(name), number))
            query = "SELECT count(*), coalesce(sum(state = 'intended'), 0) FROM log WHERE publication = ?"
            logs, missing = run(query, (number,)).fetchone()
            # No client has seen a name that was never linked, so it is not spent.
            if missing == logs:
                run("DELETE FROM publication WHERE id = ?", (number,))  # and its logs
                return
            etag = run("SELECT export_etag FROM publication WHERE id = ?", (number,)).fetchone()[0]
            # An empty ETag matches no version: once the rest is out, the export is compared with what was published.
            self._published(number, at, "" if missing else etag, withheld)

    def adopt(self, publication: Publication, logs: Sequence[LedgerLog]) -> None:
        """Record whole files that a new ledger found in the folder as one day's publication."""
        with self._transaction():
            number = self.intend(publication, logs, [log.lines for log in logs])
            self.published(number, publication.published_at or publication.intended_at, checked_etag="")

    def publications(self, day: date | None = None, delivery: str = DELIVERY) -> list[Publication]:
        """Return the publications of a day (or of all days) with their logs, in order, including intended ones."""
        if day is None:
            return self._publications("WHERE p.delivery = ?", delivery)
        return self._publications("WHERE p.delivery = ? AND p.day = ?", delivery, day.isoformat())

    def live_publications(self, since: date | None = None, delivery: str = DELIVERY) -> list[Publication]:
        """Return the publications of the days since the `horizon`: their number does not grow over the years."""
        since = since or self.horizon(delivery)
        return self._publications("WHERE p.delivery = ? AND p.day >= ?", delivery, since.isoformat())

    def interrupted(self, delivery: str = DELIVERY) -> list[Publication]:
        """Return the publications with `Publication.missing` logs, in order."""
        return self._publications(f"WHERE p.delivery = ? AND {_WITH_LOGS} AND state = 'intended')", delivery)

    def standing(self, delivery: str = DELIVERY) -> list[Publication]:
        """Return the publications that have a log in the folder, in order."""
        return self._publications(f"WHERE p.delivery = ? AND {_WITH_LOGS} AND state = 'published')", delivery)

    def published_days(self, since: date, delivery: str = DELIVERY) -> set[date]:
        """Return the days from this one on of which something was published."""
        query = "SELECT day FROM publication WHERE delivery = ? AND day >= ? AND published_at IS NOT NULL"
        return {date.fromisoformat(row[0]) for row in self._rows(query, [delivery, since.isoformat()])}

    def horizon(self, delivery: str = DELIVERY, *, today: date = date.max) -> date:
        """Return the oldest day that still matters: one of the newest `LIVE_DAYS`, or one with a log not pruned yet.

        Days after ``today``, which a clock that ran ahead has recorded, do not count.
        """
        # CROSS JOIN fixes the order: from the few logs that are not pruned to their days, not from all days to theirs.
        query = (
            "SELECT min(p.day) FROM log l CROSS JOIN publication p ON p.id = l.publication"
            " WHERE l.state <> 'pruned' AND p.delivery = ?"
        )
        oldest = self._rows(query, [delivery])[0][0]
        newest = self.newest_days(LIVE_DAYS, delivery, today=today)
        return newest if oldest is None else min(newest, date.fromisoformat(oldest))

    def newest_days(self, count: int, delivery: str = DELIVERY, *, today: date = date.max) -> date:
        """Return the oldest of the newest ``count`` days up to ``today`` that a round looked at, else `date.min`."""
        query = "SELECT day FROM day WHERE delivery = ? AND day <= ? ORDER BY day DESC LIMIT 1 OFFSET ?"
        rows = self._rows(query, [delivery, today.isoformat(), count - 1])
        return date.fromisoformat(rows[0][0]) if rows else date.min

    def _publications(self, where: str, *values: str) -> list[Publication]:
        logs: dict[int, list[LedgerLog]] = {}
        for row in self._rows(
            f"SELECT l.* FROM log l JOIN publication p ON p.id = l.publication {where} ORDER BY l.mtime, l.name",  # noqa: S608  # constants
            values,
        ):
            logs.setdefault(row["publication"], []).append(log_of(row))
        rows = self._rows(f"SELECT p.* FROM publication p {where} ORDER BY p.id", values)  # noqa: S608  # constants
        return [publication_of(row, tuple(logs.get(row["id"], ()))) for row in rows]

    def logs(self) -> list[LedgerLog]:
        """Return every log that was ever recorded, in the order of publication."""
        return [log_of(row) for row in self._rows("SELECT * FROM log ORDER BY mtime, name")]

    def logs_of(self, names: Iterable[LogName]) -> list[LedgerLog]:
        """Return the named logs, as far as they were ever recorded."""
        query = "SELECT * FROM log WHERE name IN (SELECT value FROM json_each(?)) ORDER BY mtime, name"
        return [log_of(row) for row in self._rows(query, [_json([str(name) for name in names])])]

    def published_logs(self) -> list[LedgerLog]:
        """Return the logs that are in the folder, in the order of publication."""
        # The first condition is the index's own: SQLite sees by it that the index will do.
        query = "SELECT * FROM log WHERE state <> 'pruned' AND state = 'published' ORDER BY mtime, name"
        return [log_of(row) for row in self._rows(query)]

    def newest_mtime(self) -> int | None:
        """Return the newest mtime of any log ever recorded (seconds since 1970), or None."""
        newest: int | None = self._rows("SELECT max(mtime) FROM log")[0][0]
        return newest

    def row_totals(self) -> dict[str, int]:
        """Return how many rows were ever published, by outcome: ``line``, or the reason why there is no line."""
        return {row[0]: row[1] for row in self._rows("SELECT outcome, rows FROM row_total")}

    def pruned(self, name: LogName, at: datetime) -> None:
        """Record that a file was removed; its name stays spent. With a publication's last log its books go, too."""
        with self._transaction() as run:
            run("UPDATE log SET state = 'pruned', pruned_at = ? WHERE name = ?", (text(at), str(name)))
            run("UPDATE delivered SET ranges = x'' WHERE log = ?", (str(name),))
            run(
                "UPDATE delivered_elsewhere SET progress = json_set(progress, '$.ranges', json('[]')) WHERE log = ?",
                (str(name),),
            )
            run(
                "DELETE FROM podcast_books WHERE publication = (SELECT publication FROM log WHERE name = ?) AND"
                " NOT EXISTS (SELECT 1 FROM log WHERE publication = podcast_books.publication AND state <> 'pruned')",
                (str(name),),
            )

    # Days

    def see(self, record: DayRecord) -> None:
        """Record what the listing says about a day; hold, failure and checked version stay as they are.

        When it was checked is forgotten if that is in the future: a clock that ran ahead has been put right since.
        """
        export = record.export
        values = (record.delivery, record.day.isoformat(), record.seen, text(record.seen_at),
                  export and export.key, export and export.etag, export and export.size,
                  export and text(export.last_modified))  # fmt: skip
        with self._transaction() as run:
            run(
                "INSERT INTO day (delivery, day, seen, seen_at, export_key, export_etag, export_size, export_modified)"
                " VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE SET seen = excluded.seen, seen_at = excluded.seen_at,"
                " export_key = excluded.export_key, export_etag = excluded.export_etag,"
                " export_size = excluded.export_size, export_modified = excluded.export_modified,"
                " checked_at = CASE WHEN checked_at > excluded.seen_at THEN NULL ELSE checked_at END",
                values,
            )

    def days(self, delivery: str = DELIVERY) -> dict[date, DayRecord]:
        """Return every day that a round ever looked at."""
        return self.live_days(date.min, delivery)

    def live_days(self, since: date | None = None, delivery: str = DELIVERY) -> dict[date, DayRecord]:
        """Return the days since the `horizon` that a round ever looked at."""
        since = since or self.horizon(delivery)
        query = "SELECT * FROM day WHERE delivery = ? AND day >= ?"
        records = map(record_of, self._rows(query, [delivery, since.isoformat()]))
        return {record.day: record for record in records}

    def day(self, day: date, delivery: str = DELIVERY) -> DayRecord | None:
        """Return what a round last saw of one day, or None if none ever looked at it."""
        rows = self._rows("SELECT * FROM day WHERE delivery = ? AND day = ?", [delivery, day.isoformat()])
        return record_of(rows[0]) if rows else None

    def hold(self, day: date, hold: Hold, delivery: str = DELIVERY) -> None:
        """Hold a day; this clears its failure."""
        with self._transaction() as run:
            run(
                "UPDATE day SET held_why = ?, held_reason = ?, held_etag = ?, held_tally = ?, failure = NULL, tries = 0"
                " WHERE delivery = ? AND day = ?",
                (hold.why, hold.reason, hold.etag, _json(hold.tally.as_json()), delivery, day.isoformat()),
            )

    def fail(self, day: date, failure: Failure, delivery: str = DELIVERY) -> None:
        """Record why a day could not be converted or published, and when it will be retried."""
        with self._transaction() as run:
            run(
                "UPDATE day SET failure = ?, failure_hint = ?, failure_etag = ?, failed_at = ?, next_try = ?, tries = ?"
                " WHERE delivery = ? AND day = ?",
                (failure.sentence, failure.hint, failure.etag, text(failure.at), text(failure.next_try), failure.tries,
                 delivery, day.isoformat()),
            )  # fmt: skip

    def late_checked(self, check: LateCheck) -> None:
        """Record that a changed export was compared with what was published, and that nothing was sent for it.

        Of each day the newest `LATE_CHECKS` are kept, and the one with the most unsent rows: an export may be rewritten
        for ever. A check comes after the day's publications, which a clock that ran ahead may have dated in the future.
        """
        with self._transaction() as run:
            query = "SELECT max(published_at) FROM publication WHERE delivery = ? AND day = ?"
            published_at = run(query, (check.delivery, check.day.isoformat())).fetchone()[0]
            ahead = published_at is not None and check.at < moment(published_at)
            at = moment(published_at) + timedelta(seconds=1) if ahead else check.at
            run(
                "INSERT INTO late_check (delivery, day, at, export_etag, export_modified, unsent, changed, removed,"
                " tally) VALUES (?,?,?,?,?,?,?,?,?)",
                (check.delivery, check.day.isoformat(), text(at), check.etag, text(check.modified), check.unsent,
                 check.changed, check.removed, _json(check.tally.as_json())),
            )  # fmt: skip
            run(
                "DELETE FROM late_check WHERE delivery = ?1 AND day = ?2 AND id NOT IN (SELECT id FROM late_check WHERE"
                " delivery = ?1 AND day = ?2 ORDER BY id DESC LIMIT ?3) AND id <> (SELECT id FROM late_check WHERE"
                " delivery = ?1 AND day = ?2 ORDER BY unsent DESC, id DESC LIMIT 1)",
                (check.delivery, check.day.isoformat(), LATE_CHECKS),
            )
            run(
                # seen_at is this round's instant by the source's clock.
                "UPDATE day SET checked_etag = ?, checked_at = seen_at, withheld = 0, failure = NULL, tries = 0"
                " WHERE delivery = ? AND day = ?",
                (check.etag, check.delivery, check.day.isoformat()),
            )

    def late_checks(self, day: date, delivery: str = DELIVERY) -> list[LateCheck]:
        """Return the late checks of a day, in order."""
        query = "SELECT * FROM late_check WHERE delivery = ? AND day = ? ORDER BY id"
        return [late_check_of(row) for row in self._rows(query, [delivery, day.isoformat()])]

    def newest_late_checks(self, since: date = date.min, delivery: str = DELIVERY) -> dict[date, LateCheck]:
        """Return, by day, the last late check for which an export was read."""
        # With MAX, SQLite takes the other columns from the row that has it. Without LastModified no export was read.
        query = (
            "SELECT *, MAX(id) FROM late_check WHERE delivery = ? AND day >= ? AND export_modified IS NOT NULL"
            " GROUP BY day"
        )
        return {check.day: check for check in map(late_check_of, self._rows(query, [delivery, since.isoformat()]))}

    def unsent_checks(self, since: date = date.min, delivery: str = DELIVERY) -> list[LateCheck]:
        """Return the late checks that left rows unsent, in order."""
        query = "SELECT * FROM late_check WHERE delivery = ? AND day >= ? AND unsent > 0 ORDER BY id"
        return [late_check_of(row) for row in self._rows(query, [delivery, since.isoformat()])]

    # Logins

    def record_login(
        self, user: str, at: datetime, address: str, client: str, *, measured: bool = True, counted: float | None = None
    ) -> None:
        """Record a login, and, if ``measured``, the longest silence between two of the user's logins (seconds).

        ``counted`` are the seconds since the login before by a clock that nobody sets, if known: the silence was at
        most that long.
        """
        with self._transaction() as run:
            before = run("SELECT at, longest_silence FROM login WHERE user = ?", (user,)).fetchone()
            silence = 0 if before is None else before[1]
            if before is not None and measured:
                elapsed = (at - moment(before[0])).total_seconds()
                silence = max(silence, int(elapsed if counted is None else min(elapsed, counted)))
            run("INSERT OR REPLACE INTO login VALUES (?,?,?,?,?)", (user, text(at), address, client, silence))

    def logins(self) -> dict[str, tuple[datetime, str, str, int]]:
        """Return, by user, (instant, address, client) of the last login and the longest silence so far (seconds)."""
        rows = self._rows("SELECT user, at, address, client, longest_silence FROM login ORDER BY user")
        return {row[0]: (moment(row[1]), row[2], row[3], row[4]) for row in rows}

    def merge_logins(self, logins: Mapping[str, Sequence[Any]]) -> None:
        """Record logins at other nodes that are later than the known ones: by user, as `logins` returns them.

        A silence counts as far as it was one at that node, too: what it had not told yet was none.
        """
        with self._transaction() as run:
            for user, (at, address, client, silence) in logins.items():
                when = text(datetime.fromisoformat(at))
                run(
                    "INSERT INTO login VALUES (?1,?2,?3,?4,0) ON CONFLICT DO UPDATE SET at = ?2, address = ?3,"
                    " client = ?4, longest_silence = max(longest_silence, min(?5,"
                    " CAST((julianday(?2) - julianday(at)) * 86400 AS INTEGER))) WHERE ?2 > at",
                    (user, when, address, client, int(silence)),
                )

    # Facts about the service itself

    def note(self, **facts: object) -> None:
        """Write facts, by name, as JSON; an unchanged fact costs no write."""
        query = "INSERT INTO fact VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2 WHERE value <> ?2"
        with self._transaction() as run:
            for name, value in facts.items():
                run(query, (name, _json(value)))

    def changed_elsewhere(self) -> int:
        """Return a number that changes when another process writes to the ledger."""
        return int(self._rows("PRAGMA data_version")[0][0])

    def facts(self) -> dict[str, Any]:
        """Return all facts, by name."""
        return {row[0]: orjson.loads(row[1]) for row in self._rows("SELECT name, value FROM fact")}

    # SQLite

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write everything written within the block at once, or, if it raises, nothing."""
        with self._transaction():
            yield

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        with self._lock, translate_sqlite_errors(self.path):
            # One method called by another: it is part of the outer transaction.
            if self._connection.in_transaction:
                yield self._connection.execute
                return
            with _immediate(self._connection):
                yield self._connection.execute

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        with self._lock, translate_sqlite_errors(self.path):
            return self._connection.execute(query, values).fetchall()


def _look_at(path: Path) -> os.stat_result | None:
    """Return the status of a ledger's file, or None; looked at first, since SQLite would wait for ever on a FIFO.

    Raises:
        OSError: it, or a file that SQLite keeps beside it, is not a regular file.
    """
    there: dict[str, os.stat_result] = {}
    for beside in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            there[beside] = status_of(Path(f"{path}{beside}"))
            if not stat.S_ISREG(there[beside].st_mode):
                raise OSError(errno.EINVAL, f"{path.name}{beside} is not a regular file", f"{path}{beside}")
    return there.get("")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


@contextlib.contextmanager
def _immediate(connection: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE takes the write lock first: a transaction that reads and then writes could fail in between.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # After some errors, such as a full disk, SQLite has already rolled back.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        hint = "install the newer version again; a ledger cannot be downgraded"
        raise LedgerError(f"{path} was written by a newer pickup-point (schema version {version})", hint=hint)
    for number in range(version, len(MIGRATIONS)):
        for statement in _statements(MIGRATIONS[number]):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={number + 1}")


def _statements(script: str) -> Iterator[str]:
    """Yield a script's statements one by one; ``executescript`` would commit the open transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


@contextlib.contextmanager
def translate_sqlite_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into `LedgerError`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        folder = shlex.quote(str(path.parent))
        hint = f"{list_command(path.parent)}; df -h {folder}"
        if isinstance(error, OSError):
            raise LedgerError(f"the ledger {path} cannot be used: {error.strerror}", hint=hint) from error
        if isinstance(error, sqlite3.DatabaseError) and ("malformed" in str(error) or "not a database" in str(error)):
            quoted = shlex.quote(str(path)), shlex.quote(f"{path}.damaged")
            hint = f"mv {quoted[0]} {quoted[1]}; then restore a backup, or let a new ledger adopt the files"
        # SQLite's words for a full disk ("disk I/O error") make people look for a broken one.
        with contextlib.suppress(OSError):
            if (
                str(error) in ("disk I/O error", "database or disk is full")
                and shutil.disk_usage(path.parent).free < _A_LITTLE
            ):
                raise LedgerError(
                    f"the ledger {path} cannot be used: its disk is full",
                    hint=f"df -h {folder}; free some space",
                ) from error
        raise LedgerError(f"the ledger {path} cannot be used: {error}", hint=hint) from error
