"""The ledger's tables, version by version.

No outside world. A ledger of version N becomes one of version N+1 by ``MIGRATIONS[N]``; a migration that has landed is
never changed. Days are ``YYYY-MM-DD``, instants ISO 8601 in UTC, structures JSON.
"""

from __future__ import annotations

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

# SQLite takes the other columns from the row that has the minimum; instants sort as text, and before any letter.
# What the doctor reads under a partner's name ("test") is no beginning of a pickup either.
FIRST_PICKUPS = (
    "SELECT *, MIN(CASE grade WHEN 'complete' THEN ended ELSE 'none ' || started END) FROM pickup"
    " WHERE grade <> 'test' GROUP BY log, user"
)
PICKUPS_OF = "SELECT * FROM pickup WHERE log IN (SELECT value FROM json_each(?)) ORDER BY started"
