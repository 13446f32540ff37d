"""The RSS feeds in the ledger: what each held when it was last read, and why the last try failed.

Uses the ledger's transactions. Promise: an RSS feed's items are replaced all together or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..episodes.rss import megaphone_token
from .tables import LedgerPart, moment, rss_feed_of, rss_item_of, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from ..episodes.rss import RssFeed, RssItem


class RssFeedStore(LedgerPart):
    """The RSS feeds in the ledger, by their URL as configured."""

    def feeds(self, *, items: bool = False) -> dict[str, RssFeed]:
        """Return every RSS feed that was ever tried and is still configured, with its items if asked for."""
        held: dict[str, list[RssItem]] = {}
        if items:
            for row in self._rows("SELECT * FROM rss_item ORDER BY feed, place"):
                held.setdefault(row["feed"], []).append(rss_item_of(row))
        count = "(SELECT count(*) FROM rss_item i WHERE i.feed = f.url)"
        rows = self._rows(f"SELECT f.*, {count} AS item_count FROM rss_feed f ORDER BY url")  # noqa: S608  # a constant
        return {row["url"]: rss_feed_of(row, tuple(held.get(row["url"], ()))) for row in rows}

    def versions(self) -> dict[str, tuple[int, datetime]]:
        """Return, for every RSS feed ever read, (number of its content's version, when it was last read)."""
        rows = self._rows("SELECT url, change, read_at FROM rss_feed WHERE read_at IS NOT NULL")
        return {row["url"]: (row["change"], moment(row["read_at"])) for row in rows}

    def published(self, url: str) -> Sequence[Sequence[str]]:
        """Return the items of an RSS feed in its order, each with an `Episode`'s fields; '' for the operator's URL."""
        query = "SELECT guid, bare_url, enclosure_url, length FROM rss_item WHERE feed = ? ORDER BY place"
        rows = self._rows(query, (url,))
        # Not the stored token: earlier releases recognised fewer, and an unchanged RSS feed is not read again.
        return [
            (row["guid"], "", megaphone_token(row["bare_url"]), row["enclosure_url"], _size(row["length"]))
            for row in rows
        ]

    def keep(self, feed: RssFeed) -> None:
        """Store an RSS feed that was read, in place of what it held before."""
        values = (feed.url, feed.title, feed.etag, feed.last_modified, text(feed.read_at), text(feed.tried_at))
        with self._transaction() as run:
            run(
                "INSERT INTO rss_feed (url, title, etag, last_modified, read_at, tried_at, change)"
                " VALUES (?,?,?,?,?,?,1) ON CONFLICT DO UPDATE SET title = excluded.title, etag = excluded.etag,"
                " last_modified = excluded.last_modified, read_at = excluded.read_at, tried_at = excluded.tried_at,"
                " error = '', hint = '', change = change + 1",
                values,
            )
            # In one transaction: nobody ever sees the feed without its items.
            run("DELETE FROM rss_item WHERE feed = ?", (feed.url,))
            for index, item in enumerate(feed.items):
                run(
                    "INSERT INTO rss_item VALUES (?,?,?,?,?,?,?,?,?,?)",
                    (feed.url, index, item.guid, item.enclosure_url, item.bare_url, item.token, item.title,
                     text(item.published), item.duration, item.length),
                )  # fmt: skip

    def unchanged(self, url: str, at: datetime) -> None:
        """Record the RSS feed's answer that it has not changed."""
        with self._transaction() as run:
            run(
                "UPDATE rss_feed SET read_at = ?1, tried_at = ?1, error = '', hint = '' WHERE url = ?2", (text(at), url)
            )

    def failed(self, url: str, at: datetime, error: str, hint: str) -> None:
        """Record that the RSS feed could not be read; what it held stays."""
        with self._transaction() as run:
            run(
                "INSERT INTO rss_feed (url, tried_at, error, hint) VALUES (?,?,?,?) ON CONFLICT DO UPDATE"
                " SET tried_at = excluded.tried_at, error = excluded.error, hint = excluded.hint",
                (url, text(at), error, hint),
            )

    def forget_all_but(self, urls: Iterable[str]) -> list[str]:
        """Delete the RSS feeds that are no longer configured, and return their URLs."""
        wanted = set(urls)
        with self._transaction() as run:
            gone = [row[0] for row in run("SELECT url FROM rss_feed").fetchall() if row[0] not in wanted]
            for url in gone:
                run("DELETE FROM rss_feed WHERE url = ?", (url,))  # and its items
        return gone


def _size(length: int | None) -> str:
    """Return the size that an RSS feed states, in digits, or '': many feeds say 0 if they do not know it."""
    return str(length) if length is not None and length > 0 else ""
