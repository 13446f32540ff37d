"""The ledger's tables, version by version, and their rows as types.

Pure. ``MIGRATIONS[N]`` takes a ledger from version N to N+1; a released migration is never changed. Days are
``YYYY-MM-DD``, instants ISO 8601 in UTC, structures JSON.
"""

from __future__ import annotations

import struct
import zlib
from datetime import UTC, date, datetime
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import orjson

from ..convert.tally import Tally
from ..episodes.catalogue import CatalogueStamp
from ..episodes.rss import RssFeed, RssItem, megaphone_token
from ..megaphone.exports import DayExport
from ..pickups import Delivered, Ending, Grade, Pickup
from ..triton import LogName, LogRules
from .records import DayRecord, Failure, Hold, LateCheck, LedgerLog, Publication

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from sqlite3 import Cursor, Row


class LedgerPart:
    """A part of a ledger: it writes and reads through the ledger's ``transaction`` and ``rows``."""

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Callable[..., Cursor]]],
        rows: Callable[..., Sequence[Row]],
    ) -> None:
        self._transaction = transaction
        self._rows = rows


MIGRATIONS: tuple[str, ...] = (
    """
    -- What was (or is about to be) published together, from one version of one day's export.
    CREATE TABLE publication (
        id INTEGER PRIMARY KEY,
        delivery TEXT NOT NULL,
        day TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('first', 'unfinal', 'late', 'resend', 'adopted')),
        export_key TEXT NOT NULL,
        export_etag TEXT NOT NULL,
        export_size INTEGER NOT NULL,
        export_modified TEXT,
        rules TEXT NOT NULL,
        tally TEXT,
        changed INTEGER NOT NULL DEFAULT 0,
        removed INTEGER NOT NULL DEFAULT 0,
        remark TEXT NOT NULL DEFAULT '',
        intended_at TEXT NOT NULL,
        published_at TEXT
    );
    CREATE INDEX publication_day ON publication (delivery, day);

    -- Every log name that was ever used. A row with the state 'intended' is a publication that has not ended yet.
    CREATE TABLE log (
        name TEXT PRIMARY KEY,
        publication INTEGER NOT NULL REFERENCES publication (id) ON DELETE CASCADE,
        size INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        mtime INTEGER NOT NULL,
        lines INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('intended', 'published', 'pruned')),
        pruned_at TEXT,
        superseded_by INTEGER REFERENCES publication (id)
    ) WITHOUT ROWID;
    CREATE INDEX log_publication ON log (publication);

    -- What the last round saw and decided of a day.
    CREATE TABLE day (
        delivery TEXT NOT NULL,
        day TEXT NOT NULL,
        seen TEXT NOT NULL,
        seen_at TEXT NOT NULL,
        export_key TEXT,
        export_etag TEXT,
        export_size INTEGER,
        export_modified TEXT,
        checked_etag TEXT,
        withheld INTEGER NOT NULL DEFAULT 0,
        held_why TEXT,
        held_etag TEXT,
        held_reason TEXT,
        held_tally TEXT,
        failure TEXT,
        failure_hint TEXT,
        failure_etag TEXT,
        failed_at TEXT,
        next_try TEXT,
        tries INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (delivery, day)
    ) WITHOUT ROWID;

    -- What became of an export that changed after its day was published, where nothing new was sent for it.
    CREATE TABLE late_check (
        id INTEGER PRIMARY KEY,
        delivery TEXT NOT NULL,
        day TEXT NOT NULL,
        at TEXT NOT NULL,
        export_etag TEXT NOT NULL,
        export_modified TEXT,
        unsent INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        removed INTEGER NOT NULL,
        tally TEXT NOT NULL
    );

    CREATE TABLE pickup (
        id TEXT PRIMARY KEY,
        log TEXT NOT NULL,
        user TEXT NOT NULL,
        address TEXT NOT NULL,
        client TEXT NOT NULL,
        started TEXT NOT NULL,
        ended TEXT,
        size INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        covered INTEGER NOT NULL,
        grade TEXT NOT NULL,
        ending TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX pickup_log ON pickup (log);

    CREATE TABLE login (
        user TEXT PRIMARY KEY,
        at TEXT NOT NULL,
        address TEXT NOT NULL,
        client TEXT NOT NULL,
        longest_silence INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;

    CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
    """
    -- The publisher's RSS feeds. read_at: when the items were last known to be the feed's; tried_at: the last try.
    CREATE TABLE rss_feed (
        url TEXT PRIMARY KEY,
        title TEXT NOT NULL DEFAULT '',
        etag TEXT NOT NULL DEFAULT '',
        last_modified TEXT NOT NULL DEFAULT '',
        read_at TEXT,
        tried_at TEXT NOT NULL,
        error TEXT NOT NULL DEFAULT '',
        hint TEXT NOT NULL DEFAULT '',
        change INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;

    -- Their items, in the feed's order. bare_url: without redirect prefixes; token: Megaphone's id in it.
    CREATE TABLE rss_item (
        feed TEXT NOT NULL REFERENCES rss_feed (url) ON DELETE CASCADE,
        place INTEGER NOT NULL,
        guid TEXT NOT NULL,
        enclosure_url TEXT NOT NULL,
        bare_url TEXT NOT NULL,
        token TEXT NOT NULL,
        title TEXT NOT NULL,
        published TEXT,
        duration INTEGER,
        length INTEGER,
        PRIMARY KEY (feed, place)
    ) WITHOUT ROWID;

    -- Which version of the episode catalogue a publication was made with, as JSON; NULL where none was in use.
    ALTER TABLE publication ADD COLUMN catalogue TEXT;
    """,
    """
    -- The books of a publication by podcast, as JSON: podcast id to [rows, reporting, lines, filtered, rejected].
    CREATE TABLE podcast_books (
        publication INTEGER PRIMARY KEY REFERENCES publication (id) ON DELETE CASCADE,
        books TEXT NOT NULL
    );
    """,
    """
    -- What a user has of a log, over all handles and sessions. ranges: what of it was delivered, as `packed_ranges`
    -- writes it; empty where that is all of it, and once the log is pruned.
    CREATE TABLE delivered (
        log TEXT NOT NULL,
        user TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        size INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        pieces INTEGER NOT NULL,
        fragmented INTEGER NOT NULL,
        ranges BLOB NOT NULL,
        handles INTEGER NOT NULL,
        addresses TEXT NOT NULL,
        first_at TEXT NOT NULL,
        last_at TEXT NOT NULL,
        completed_at TEXT,
        PRIMARY KEY (log, user, sha256)
    );

    -- delivered: bytes of the log that arrived on this handle. settled: its user and log were thinned out since it grew
    -- old, see `PickupStore.thin_out`.
    ALTER TABLE pickup ADD COLUMN delivered INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE pickup ADD COLUMN settled INTEGER NOT NULL DEFAULT 0;
    UPDATE pickup SET delivered = covered WHERE grade = 'complete';
    DROP INDEX pickup_log;
    CREATE INDEX pickup_owner ON pickup (log, user);
    CREATE INDEX pickup_unsettled ON pickup (started) WHERE settled = 0;

    -- Which ranges an older version had seen delivered is not known: only whole logs are carried over.
    INSERT INTO delivered SELECT
        log, user, coalesce((SELECT sha256 FROM log WHERE name = old.log), ''), max(size),
        max(CASE grade WHEN 'complete' THEN size ELSE 0 END), max(grade = 'complete'), 0, x'', count(*),
        (SELECT json_group_array(address) FROM (
            SELECT DISTINCT address FROM pickup p
            WHERE p.log = old.log AND p.user = old.user AND p.grade = 'complete' LIMIT 16)),
        min(started), max(coalesce(ended, started)), min(CASE grade WHEN 'complete' THEN coalesce(ended, started) END)
    FROM pickup old WHERE grade <> 'test' GROUP BY log, user;

    -- The rows of everything that was ever published, by outcome: for the metrics, which must not add up all days.
    CREATE TABLE row_total (outcome TEXT PRIMARY KEY, rows INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO row_total SELECT outcome, sum(rows) FROM (
        SELECT published_at, 'line' AS outcome, json_extract(tally, '$.lines') AS rows FROM publication
        UNION ALL SELECT published_at, e.key, e.value FROM publication, json_each(tally, '$.filtered') e
        UNION ALL SELECT published_at, e.key, e.value FROM publication, json_each(tally, '$.rejected') e
    ) WHERE published_at IS NOT NULL AND rows IS NOT NULL GROUP BY outcome;
    CREATE TRIGGER row_total_grows AFTER UPDATE OF published_at ON publication
    WHEN OLD.published_at IS NULL AND NEW.published_at IS NOT NULL AND NEW.tally IS NOT NULL
    BEGIN
        INSERT INTO row_total SELECT outcome, sum(rows) FROM (
            SELECT 'line' AS outcome, json_extract(NEW.tally, '$.lines') AS rows
            UNION ALL SELECT key, value FROM json_each(NEW.tally, '$.filtered')
            UNION ALL SELECT key, value FROM json_each(NEW.tally, '$.rejected')
        ) WHERE true GROUP BY outcome
        ON CONFLICT (outcome) DO UPDATE SET rows = rows + excluded.rows;
    END;

    -- The books of days whose logs are pruned go with them, the logs' names stay. Later books are compressed JSON.
    DELETE FROM podcast_books
    WHERE NOT EXISTS (SELECT 1 FROM log WHERE publication = podcast_books.publication AND state <> 'pruned');

    -- For questions about the days that still matter: they must not look at all the others.
    CREATE INDEX log_there ON log (publication) WHERE state <> 'pruned';
    CREATE INDEX late_check_day ON late_check (delivery, day);
    """,
    """
    -- When checked_etag was compared, by the source's clock.
    ALTER TABLE day ADD COLUMN checked_at TEXT;
    UPDATE day SET checked_at = seen_at WHERE checked_etag IS NOT NULL;
    """,
    """
    -- What the last handle left when it was interrupted, as JSON: `Pickup.tail` and the client's address. The next one
    -- may show that it arrived.
    ALTER TABLE delivered ADD COLUMN tail TEXT;
    """,
    """
    -- The entries of a shared store's sequence that were applied, as compressed JSON, and which publication came with
    -- which of them; NULL where none did.
    CREATE TABLE entry (number INTEGER PRIMARY KEY, id TEXT NOT NULL, node TEXT NOT NULL, data BLOB NOT NULL);
    ALTER TABLE publication ADD COLUMN entry INTEGER REFERENCES entry (number);

    -- What users have of logs at other nodes of a shared store, as those told it: a `Progress` as JSON.
    CREATE TABLE delivered_elsewhere (
        log TEXT NOT NULL,
        user TEXT NOT NULL,
        node TEXT NOT NULL,
        progress TEXT NOT NULL,
        PRIMARY KEY (log, user, node)
    ) WITHOUT ROWID;
    """,
)

DELIVERED = (
    "SELECT d.* FROM delivered d JOIN log l ON l.name = d.log AND l.sha256 = d.sha256"
    " WHERE d.log IN (SELECT value FROM json_each(?)) ORDER BY d.log, d.user"
)
PROGRESS = (
    "SELECT d.* FROM delivered d JOIN log l ON l.name = d.log AND l.sha256 = d.sha256 WHERE l.state = 'published'"
    " ORDER BY d.log, d.user"
)
ELSEWHERE = (
    "SELECT e.log, e.user, e.node, e.progress, l.sha256, l.size FROM delivered_elsewhere e JOIN log l ON l.name = e.log"
    " WHERE e.log IN (SELECT value FROM json_each(?)) ORDER BY e.log, e.user, e.node"
)
PICKUPS_OF = "SELECT * FROM pickup WHERE log IN (SELECT value FROM json_each(?)) ORDER BY started"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def text(at: datetime | None) -> str | None:
    """Return an instant as the ledger writes it: ISO 8601 in UTC, with milliseconds."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds")


def instant(value: str | None) -> datetime | None:
    """Return the instant that `text` wrote, or None."""
    return None if value is None else datetime.fromisoformat(value)


def moment(value: str | None) -> datetime:
    """Return the instant that `text` wrote, or the beginning of 1970 if there is none."""
    return instant(value) or _EPOCH


def log_name(text: str) -> LogName:
    """Return a log's name from the ledger, where only names are."""
    name = LogName.parse(text)
    assert name is not None  # noqa: S101  # only str(LogName) is ever written
    return name


def log_of(row: Row) -> LedgerLog:
    """Build a log from a row of ``log``."""
    return LedgerLog(
        name=log_name(row["name"]),
        publication=row["publication"],
        size=row["size"],
        sha256=row["sha256"],
        mtime=row["mtime"],
        lines=row["lines"],
        state=row["state"],
        pruned_at=instant(row["pruned_at"]),
        superseded_by=row["superseded_by"],
    )


def publication_of(row: Row, logs: tuple[LedgerLog, ...]) -> Publication:
    """Build a publication from a row of ``publication`` and its logs."""
    day = date.fromisoformat(row["day"])
    return Publication(
        id=row["id"],
        delivery=row["delivery"],
        day=day,
        kind=row["kind"],
        export=DayExport(
            day, row["export_key"], row["export_etag"], row["export_size"], moment(row["export_modified"])
        ),
        rules=_rules(row["rules"]),
        tally=_tally(row["tally"]),
        changed=row["changed"],
        removed=row["removed"],
        remark=row["remark"],
        intended_at=moment(row["intended_at"]),
        published_at=instant(row["published_at"]),
        logs=logs,
        catalogue=None if row["catalogue"] is None else CatalogueStamp(**orjson.loads(row["catalogue"])),
    )


def record_of(row: Row) -> DayRecord:
    """Build a day's record from a row of ``day``."""
    day = date.fromisoformat(row["day"])
    export = None
    if row["export_key"] is not None:
        modified = moment(row["export_modified"])
        export = DayExport(day, row["export_key"], row["export_etag"], row["export_size"], modified)
    hold = None
    if row["held_why"] is not None:
        tally = _tally(row["held_tally"]) or Tally()
        hold = Hold(row["held_why"], row["held_reason"], row["held_etag"], tally)
    failure = None
    if row["failure"] is not None:
        failure = Failure(
            sentence=row["failure"],
            hint=row["failure_hint"] or "",
            etag=row["failure_etag"] or "",
            at=moment(row["failed_at"]),
            next_try=moment(row["next_try"]),
            tries=row["tries"],
        )
    return DayRecord(
        day=day,
        delivery=row["delivery"],
        seen=row["seen"],
        seen_at=moment(row["seen_at"]),
        export=export,
        checked_etag=row["checked_etag"],
        checked_at=instant(row["checked_at"]),
        withheld=row["withheld"],
        hold=hold,
        failure=failure,
    )


def late_check_of(row: Row) -> LateCheck:
    """Build a late check from a row of ``late_check``."""
    return LateCheck(
        day=date.fromisoformat(row["day"]),
        delivery=row["delivery"],
        at=moment(row["at"]),
        etag=row["export_etag"],
        modified=instant(row["export_modified"]),
        unsent=row["unsent"],
        changed=row["changed"],
        removed=row["removed"],
        tally=_tally(row["tally"]) or Tally(),
    )


def pickup_of(row: Row) -> Pickup:
    """Build a pickup from a row of ``pickup``."""
    return Pickup(
        id=row["id"],
        name=log_name(row["log"]),
        size=row["size"],
        user=row["user"],
        address=row["address"],
        client=row["client"],
        started=moment(row["started"]),
        ended=instant(row["ended"]),
        bytes_answered=row["bytes"],
        covered=row["covered"],
        grade=Grade(row["grade"]),
        ending=Ending(row["ending"]) if row["ending"] else None,
        delivered=row["delivered"],
    )


def delivered_of(row: Row) -> Delivered:
    """Build what a user has of a log from a row of ``delivered``."""
    return Delivered(
        name=log_name(row["log"]),
        user=row["user"],
        size=row["size"],
        bytes=row["bytes"],
        pieces=row["pieces"],
        fragmented=bool(row["fragmented"]),
        handles=row["handles"],
        addresses=tuple(orjson.loads(row["addresses"])),
        first=moment(row["first_at"]),
        last=moment(row["last_at"]),
        completed=instant(row["completed_at"]),
    )


def packed_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Return sorted, disjoint (start, end) ranges in few bytes: each number as its distance from the one before."""
    numbers = [number for both in ranges for number in both]
    steps = [number - before for before, number in pairwise([0, *numbers])]
    return zlib.compress(struct.pack(f"<{len(steps)}Q", *steps), 1)


def unpacked_ranges(packed: bytes) -> list[tuple[int, int]]:
    """Return the ranges that `packed_ranges` packed; none for no bytes."""
    data = zlib.decompress(packed) if packed else b""
    numbers = list(accumulate(struct.unpack(f"<{len(data) // 8}Q", data)))
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def rss_feed_of(row: Row, items: tuple[RssItem, ...]) -> RssFeed:
    """Build an RSS feed from a row of ``rss_feed`` and its items."""
    return RssFeed(
        url=row["url"],
        tried_at=moment(row["tried_at"]),
        read_at=instant(row["read_at"]),
        title=row["title"],
        etag=row["etag"],
        last_modified=row["last_modified"],
        error=row["error"],
        hint=row["hint"],
        change=row["change"],
        items=items,
        item_count=row["item_count"],
    )


def rss_item_of(row: Row) -> RssItem:
    """Build an RSS feed's item from a row of ``rss_item``."""
    return RssItem(
        guid=row["guid"],
        enclosure_url=row["enclosure_url"],
        title=row["title"],
        published=instant(row["published"]),
        duration=row["duration"],
        length=row["length"],
        bare_url=row["bare_url"],
        token=megaphone_token(row["bare_url"]),
    )


@lru_cache(maxsize=64)
def _rules(value: str) -> LogRules:
    # Cached: nearly every publication has the rules of the one before it, and building them costs more than the rest.
    return LogRules.from_json(orjson.loads(value))


def _tally(value: str | None) -> Tally | None:
    return None if value is None else Tally.from_json(orjson.loads(value))
