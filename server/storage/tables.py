"""The ledger's tables, version by version.

No outside world. A ledger of version N becomes one of version N+1 by ``MIGRATIONS[N]``; a released migration is
never changed. Days are ``YYYY-MM-DD``, instants ISO 8601 in UTC, structures JSON.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import orjson

from ..convert.tally import Tally
from ..episodes.catalogue import CatalogueStamp
from ..episodes.rss import RssFeed, RssItem, megaphone_token
from ..megaphone.exports import DayExport
from ..pickups import Ending, Grade, Pickup
from ..triton import LogName, LogRules
from .records import DayRecord, Failure, Hold, LateCheck, LedgerLog, Publication

if TYPE_CHECKING:
    from sqlite3 import Row

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
)

# SQLite takes the other columns from the row that has the minimum (lang_select.html, "bare columns"); instants sort as
# text, and before any letter. What the doctor reads under a partner's name ("test") does not count.
FIRST_PICKUPS = (
    "SELECT *, MIN(CASE grade WHEN 'complete' THEN ended ELSE 'none ' || started END) FROM pickup"
    " WHERE grade <> 'test' GROUP BY log, user"
)
PICKUPS_OF = "SELECT * FROM pickup WHERE log IN (SELECT value FROM json_each(?)) ORDER BY started"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def text(at: datetime | None) -> str | None:
    """Return an instant as the ledger writes it."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds")


def instant(value: str | None) -> datetime | None:
    """Return the instant that `text` wrote, or None."""
    return None if value is None else datetime.fromisoformat(value)


def moment(value: str | None) -> datetime:
    """Return the instant that `text` wrote, or the beginning of 1970 where there is none."""
    return instant(value) or _EPOCH


def log_of(row: Row) -> LedgerLog:
    """Build a log from a row of ``log``."""
    name = LogName.parse(row["name"])
    assert name is not None  # noqa: S101  # only str(LogName) is ever written
    return LedgerLog(
        name=name,
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
        rules=LogRules.from_json(orjson.loads(row["rules"])),
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
    name = LogName.parse(row["log"])
    assert name is not None  # noqa: S101  # only str(LogName) is ever written
    return Pickup(
        id=row["id"],
        name=name,
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
    )


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


def _tally(value: str | None) -> Tally | None:
    return None if value is None else Tally.from_json(orjson.loads(value))
