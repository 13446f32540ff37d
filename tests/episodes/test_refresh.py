"""The refresh of the catalogue: what every kind of RSS feed leaves in the ledger, and when it is read.

Listens on 127.0.0.1.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from server.episodes.fetch import ReaderLimits, RssReader
from server.episodes.rss import RssFeed, RssItem
from server.episodes.source import due, refresh
from server.publish.holds import HoldPolicy
from server.status.alarms import Alarm, alarms
from server.storage.ledger import Ledger
from server.storage.records import matched_share
from server.storage.tables import MIGRATIONS
from server.triton import LogRules

from ..support.rss_server import HOSTILE, RssHost, hostile, items, rss
from ..support.site import HEALTHY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EVERY = timedelta(hours=6)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(tmp_path / "ledger.sqlite3")
    yield ledger
    ledger.close()


async def test_bad_rss_feeds_harm_neither_what_is_known_nor_the_good_ones(rss_host: RssHost, ledger: Ledger) -> None:
    """Each bad kind replaces a good RSS feed: its items stay, the reason is recorded, and the others are read."""
    urls = [rss_host.url(path) for path in HOSTILE]
    for number, path in enumerate(HOSTILE):
        rss_host.put(path, rss(items(3, number)))
    good = rss_host.put("/good", rss(items(2, 50)))
    limits = ReaderLimits(size=4 << 20, total=3.0, connect=2.0, silence=2.0)
    async with RssReader(allow_local=True, limits=limits) as reader:
        first = await refresh(ledger.rss, reader, [*urls, good], EVERY, NOW)
        assert {outcome.word for outcome in first} == {"read"}
        hostile(rss_host)
        rss_host.behaviours.pop("/gone")
        rss_host.put("/good", rss(items(4, 50)))
        second = await refresh(ledger.rss, reader, [*urls, good], EVERY, NOW + EVERY)
    assert {outcome.url: outcome.word for outcome in second} == dict.fromkeys(urls, "failed") | {good: "read"}
    feeds = ledger.rss.feeds(items=True)
    for number, url in enumerate(urls):
        feed = feeds[url]
        assert [item.guid for item in feed.items] == [item.guid for item in items(3, number)]
        assert (feed.read_at, feed.tried_at) == (NOW, NOW + EVERY)
        assert feed.error
        assert feed.hint
    assert feeds[good].item_count == 4
    assert feeds[good].error == ""


async def test_an_rss_feed_that_lost_all_its_items_is_not_believed(rss_host: RssHost, ledger: Ledger) -> None:
    """A host in trouble sends an empty show; a new show may be empty."""
    url = rss_host.put("/show", rss(items(3, 1)))
    new = rss_host.put("/new", rss([]))
    async with RssReader(allow_local=True) as reader:
        words = [outcome.word for outcome in await refresh(ledger.rss, reader, [url, new], EVERY, NOW)]
        rss_host.put("/show", rss([]))
        again = await refresh(ledger.rss, reader, [url, new], EVERY, NOW + EVERY)
    assert words == ["read", "read"]
    assert [outcome.word for outcome in again] == ["failed", "unchanged"]
    assert "has no items now" in again[0].sentence
    assert ledger.rss.feeds()[url].item_count == 3


async def test_an_rss_feed_is_asked_when_it_is_due(rss_host: RssHost, ledger: Ledger) -> None:
    """Once per refresh_every; sooner after a failure; after a clock was set back; on request."""
    url = rss_host.put("/show", rss(items(3, 1)))
    async with RssReader(allow_local=True) as reader:
        assert await refresh(ledger.rss, reader, [url], EVERY, NOW)
        assert not await refresh(ledger.rss, reader, [url], EVERY, NOW + EVERY - timedelta(seconds=1))
        assert [o.word for o in await refresh(ledger.rss, reader, [url], EVERY, NOW + EVERY)] == ["unchanged"]
        assert await refresh(ledger.rss, reader, [url], EVERY, NOW + EVERY, force=True)
        assert due(ledger.rss.feeds(), [url], EVERY, NOW) == [url]
        assert await refresh(ledger.rss, reader, [], EVERY, NOW) == []
        assert ledger.rss.feeds(items=True) == {}
    failed = RssFeed("u", NOW, error="it is gone")
    assert due({"u": failed}, ["u"], EVERY, NOW + timedelta(minutes=14)) == []
    assert due({"u": failed}, ["u"], EVERY, NOW + timedelta(minutes=15)) == ["u"]


def test_an_rss_feed_that_stays_away_becomes_an_alarm() -> None:
    """One failure is not an alarm, a day without an answer is; an RSS feed that never answered is one at once."""

    def alarms_of(read_at: datetime | None, error: str = "it is gone") -> list[Alarm]:
        feed = RssFeed("https://me:secret@x.example/show?key=1", NOW, read_at, error=error, hint="curl")
        found = alarms([], {"last_round": NOW.isoformat()}, HEALTHY, HoldPolicy(), EVERY, NOW, rss_feeds=[feed])
        return [alarm for alarm in found if alarm.name == "rss_feed"]

    assert alarms_of(NOW - timedelta(hours=24)) == []
    assert alarms_of(NOW - timedelta(days=9), error="") == []
    (old,) = alarms_of(NOW - timedelta(hours=25))
    assert (old.level.name, old.subject) == ("WARNING", "https://x.example/show")
    assert "last read 25 h ago" in old.sentence
    assert "it was never read" in alarms_of(None)[0].sentence


def test_a_token_that_an_earlier_release_did_not_know_is_known_at_once(tmp_path: Path) -> None:
    """An RSS feed that has not changed since is not read again, and its tokens were stored."""
    token = "EXAMPLECOMPANYLLC7453036557"
    url = f"https://traffic.megaphone.fm/{token}.mp3"
    item, *others = (RssItem(f"g{n}", url, bare_url=url, length=length) for n, length in enumerate((4711, 0, None)))
    with closing(Ledger.open(tmp_path / "ledger.sqlite3")) as ledger:
        ledger.rss.keep(RssFeed("https://x.example/show", NOW, NOW, items=(item, *others)))
        assert [tuple(found) for found in ledger.rss.published("https://x.example/show")] == [
            ("g0", "", token, url, "4711"), ("g1", "", token, url, ""), ("g2", "", token, url, ""),
        ]  # fmt: skip
        (feed,) = ledger.rss.feeds(items=True).values()
        assert [found.token for found in feed.items] == [token] * 3


def test_a_ledger_of_the_first_version_is_brought_up(tmp_path: Path) -> None:
    """A publication from before there was a catalogue has no stamp."""
    path = tmp_path / "ledger.sqlite3"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(MIGRATIONS[0])
        old.execute(
            "INSERT INTO publication (delivery, day, kind, export_key, export_etag, export_size, rules, intended_at)"
            " VALUES ('default', '2026-11-20', 'first', 'k', 'e', 1, ?, '2026-11-21T05:00:00.000+00:00')",
            (json.dumps(LogRules().as_json()),),
        )
        old.execute("PRAGMA user_version=1")
        old.commit()
    with closing(Ledger.open(path)) as ledger:
        (publication,) = ledger.publications()
        assert (publication.catalogue, matched_share([publication])) == (None, None)
        assert ledger.rss.feeds() == {}
