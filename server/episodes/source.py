"""The episode catalogue in use: the operator's file and the RSS feeds in the ledger, as one snapshot.

Reads the operator's files and, through `RssReader`, the publisher's RSS feeds; keeps what it read in the store passed
in. Promises: a file damaged while the service runs, and an RSS feed that is down, slow or wrong, leave the catalogue as
it was, and the journal says so; the items of an RSS feed stay until it has been read completely again.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from ..errors import ConfigError, PickupPointError
from ..threads import in_thread
from .catalogue import Catalogue, Episode, load_catalogue, load_urls, make_catalogue
from .rss import RssFeed, RssUnread, safe_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ..settings import Config
    from .fetch import RssAnswer, RssReader

log = structlog.get_logger()

RETRY = timedelta(minutes=15)  # after a failure, unless `refresh_every` is shorter
AT_ONCE = 4  # RSS feeds read at the same time
LOOK_EVERY = 60.0  # seconds between two checks for RSS feeds that are due


class RssStore(Protocol):
    """Where the items of RSS feeds are kept between two reads; every method may raise `LedgerError`."""

    def feeds(self, *, items: bool = False) -> Mapping[str, RssFeed]:
        """Return every RSS feed by its URL, with its items if requested."""

    def versions(self) -> Mapping[str, tuple[int, datetime]]:
        """Return, for every RSS feed that was ever read, its number of changes and when it was last read."""

    def published(self, url: str) -> Sequence[Sequence[str]]:
        """Return (guid, '', token, enclosure URL, length) of every item of an RSS feed, in its order."""

    def keep(self, feed: RssFeed) -> None:
        """Store the RSS feed in place of its previous content."""

    def unchanged(self, url: str, at: datetime) -> None:
        """Record that the RSS feed has not changed."""

    def failed(self, url: str, at: datetime, error: str, hint: str) -> None:
        """Record that the RSS feed could not be read; its items stay."""

    def forget_all_but(self, urls: Sequence[str]) -> Sequence[str]:
        """Remove the RSS feeds that are no longer configured, and return their URLs."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The result of a pass for one RSS feed: ``word`` is read, unchanged or failed; ``sentence`` gives details."""

    url: str
    word: str
    sentence: str
    hint: str = ""

    @property
    def name(self) -> str:
        """The RSS feed's URL, safe to show."""
        return safe_url(self.url)


def due(feeds: Mapping[str, RssFeed], urls: Sequence[str], every: timedelta, now: datetime) -> list[str]:
    """Return the RSS feeds to read now: never tried, tried long enough ago, or tried in the future.

    The last happens if a wrong clock has been corrected since.
    """
    wanted = []
    for url in urls:
        feed = feeds.get(url)
        pause = every if feed is None or not feed.error else min(every, RETRY)
        if feed is None or not feed.tried_at <= now < feed.tried_at + pause:
            wanted.append(url)
    return wanted


async def refresh(
    store: RssStore, reader: RssReader, urls: Sequence[str], every: timedelta, now: datetime, *, force: bool = False
) -> list[Refreshed]:
    """Read every RSS feed that is due (with ``force``, all of them), and store the results.

    Raises:
        LedgerError: a result could not be stored.
    """
    for gone in await in_thread(store.forget_all_but, urls):
        log.info(f"catalogue forgot {safe_url(gone)}", why="it is no longer configured")
    feeds = await in_thread(store.feeds)
    wanted = list(urls) if force else due(feeds, urls, every, now)
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(url: str) -> Refreshed:
        async with slots:
            return await _one(store, reader, url, feeds.get(url), now)

    # Exceptions are collected first, so that no RSS feed is still being read when one is raised.
    outcomes = await asyncio.gather(*(one(url) for url in wanted), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Refreshed)]


async def _one(store: RssStore, reader: RssReader, url: str, known: RssFeed | None, now: datetime) -> Refreshed:
    name, held = safe_url(url), known.item_count if known is not None else 0
    try:
        validators = (known.etag, known.last_modified) if known is not None and known.read_at is not None else ("", "")
        answer = await reader.read(url, *validators)
        _check_emptied(answer, name, held)
    except RssUnread as error:
        await in_thread(store.failed, url, now, str(error), error.hint)
        # Logged once, not every quarter of an hour while the RSS feed is down.
        if known is None or known.error != str(error):
            log.warning(f"catalogue kept the old items of {name}", items=held, why=str(error), hint=error.hint)
        return Refreshed(url, "failed", str(error), error.hint)
    if answer.items is None:
        await in_thread(store.unchanged, url, now)
        return Refreshed(url, "unchanged", f"{held} items")
    items = tuple(answer.items)
    await in_thread(store.keep, RssFeed(url, now, now, answer.title, answer.etag, answer.last_modified, items=items))
    log.info(f"catalogue read {name}", items=len(items), before=held)
    return Refreshed(url, "read", f"{len(items)} items")


def _check_emptied(answer: RssAnswer, name: str, held: int) -> None:
    """Refuse an RSS feed that had items and now has none: most likely its host made a mistake."""
    if held and answer.items is not None and not answer.items:
        hint = f"curl -sSL {shlex.quote(name)} | head -50"
        raise RssUnread(f"the RSS feed {name} has no items now, but had {held} before", hint=hint)


class CatalogueSource:
    """The catalogue that the configuration defines; may be used from any thread, but only by one at a time."""

    def __init__(self, config: Config, rss: RssStore) -> None:
        """Read the operator's files.

        Raises:
            ConfigError: a file has problems.
        """
        self._feeds = config.feeds
        self._path = config.log.episodes
        self._rss = rss
        self._seen: dict[Path, tuple[int, int] | None] = {}
        self._listed = self._list()
        # Marked before it is read, here and in `_list`: a change in between is then noticed the next time.
        self._mark(self._path)
        self._written = load_catalogue(self._path) if self._path is not None else None
        self._made: tuple[tuple[Any, ...], Catalogue | None] = ((), None)

    def urls(self) -> list[str]:
        """Return the RSS feeds, each once, rereading the file that lists them if it has changed."""
        if self._feeds.file is not None and self._changed(self._feeds.file):
            try:
                self._listed = self._list()
            except ConfigError as error:
                problem = error.problems[0]
                log.error("catalogue kept the old list of RSS feeds", why=str(problem), hint=problem.cure)
        return list(dict.fromkeys([*self._feeds.urls, *self._listed]))

    def snapshot(self) -> Catalogue | None:
        """Return the newest good catalogue, or None if neither a file nor an RSS feed provides one."""
        if self._path is not None and self._changed(self._path):
            try:
                self._written = load_catalogue(self._path)
            except ConfigError as error:
                problem = error.problems[0]
                log.error("catalogue kept the old episodes file", why=str(problem), hint=problem.cure)
            else:
                log.info("catalogue read the episodes file", episodes=len(self._written.episodes))
        known = self._rss.versions() if self._feeds.configured else {}
        urls = [url for url in self.urls() if url in known]
        if self._written is None and not urls:
            return None
        state = (id(self._written), *((url, *known[url]) for url in urls))
        # Rebuilt only when the file or an RSS feed has changed: with 20,000 episodes it takes a while.
        if self._made[0] != state:
            published = [Episode._make(item) for url in urls for item in self._rss.published(url)]
            self._made = state, make_catalogue(self._written, published, [known[url][1] for url in urls])
        return self._made[1]

    async def refresh(self, now: datetime, *, force: bool = False) -> list[Refreshed]:
        """Read the RSS feeds that are due, or with ``force`` all of them."""
        if not self._feeds.configured:
            return []
        # Imported here: it loads the network libraries, which a conversion by hand need not wait for.
        from .fetch import RssReader

        async with RssReader(allow_local=self._feeds.allow_local) as reader:
            return await refresh(self._rss, reader, self.urls(), self._feeds.refresh_every, now, force=force)

    def untried(self) -> bool:
        """Return whether there is an RSS feed that was never tried."""
        return self._feeds.configured and not set(self.urls()) <= set(self._rss.feeds())

    async def keep_fresh(self, looked: asyncio.Event) -> None:
        """Refresh for ever, whatever goes wrong; set ``looked`` after the first pass."""
        if not self._feeds.configured:
            looked.set()
        while self._feeds.configured:
            try:
                await self.refresh(datetime.now(UTC))
            except PickupPointError as error:
                log.error("catalogue failed to refresh", why=str(error), hint=error.hint)
            except Exception:
                log.exception("catalogue failed to refresh")
            # Set even after a failure: the first round waits for it, and no RSS feed may hold a day back.
            looked.set()
            await asyncio.sleep(LOOK_EVERY)
        # A background task that ends would stop the service.
        await asyncio.Event().wait()

    def _list(self) -> list[str]:
        if self._feeds.file is None:
            return []
        self._mark(self._feeds.file)
        return load_urls(self._feeds.file)

    def _mark(self, path: Path | None) -> None:
        if path is not None:
            self._seen[path] = _version(path)

    def _changed(self, path: Path) -> bool:
        before = self._seen.get(path)
        self._mark(path)
        return self._seen[path] != before


def _version(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    return None


@dataclass(frozen=True, slots=True)
class EpisodesSnapshot:
    """The whole catalogue: the operator's rows, each RSS feed with its items, and the two merged."""

    written: Mapping[str, Episode]
    feeds: tuple[tuple[str, RssFeed | None], ...]
    catalogue: Catalogue | None

    def as_json(self) -> dict[str, Any]:
        """Return it as ``episodes --json`` prints it, including all items."""
        stamp = self.catalogue.stamp if self.catalogue is not None else None
        return {
            "catalogue": stamp.as_json() if stamp is not None else None,
            "written_by_hand": len(self.written),
            "rss_feeds": [_feed_json(url, feed) for url, feed in self.feeds],
        }


def _feed_json(url: str, feed: RssFeed | None) -> dict[str, Any]:
    if feed is None:
        return {"url": url, "title": "", "read_at": None, "tried_at": None, "error": "", "items": []}
    return {
        "url": url,
        "title": feed.title,
        "read_at": _iso(feed.read_at),
        "tried_at": _iso(feed.tried_at),
        "error": feed.error,
        "items": [
            {
                "guid": item.guid,
                "title": item.title,
                "published": _iso(item.published),
                "token": item.token,
                "enclosure_url": item.enclosure_url,
                "bare_url": item.bare_url,
                "duration": item.duration,
                "length": item.length,
            }
            for item in feed.items
        ],
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}"


def episodes_snapshot(config: Config, rss: RssStore) -> EpisodesSnapshot:
    """Read the files and the stored RSS feeds again, and return all of it.

    Raises:
        ConfigError: a file has problems.
    """
    source = CatalogueSource(config, rss)
    held = rss.feeds(items=True)
    written = load_catalogue(config.log.episodes).episodes if config.log.episodes is not None else {}
    feeds = tuple((url, held.get(url)) for url in source.urls())
    return EpisodesSnapshot(written, feeds, source.snapshot())
