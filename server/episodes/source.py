"""The episode catalogue in use: the operator's file and the RSS feeds in the ledger, as one snapshot.

Reads the operator's files and, through `RssReader`, the publisher's RSS feeds; keeps what it read in a store that is
handed to it. Promises: a file that was damaged while the service runs, and an RSS feed that is down, slow or wrong,
leave the catalogue as it was, and the log says so; what an RSS feed held stays until it was read whole again.
"""

from __future__ import annotations

import asyncio
import contextlib
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

RETRY = timedelta(minutes=15)  # after a failure, if `refresh_every` is not shorter
AT_ONCE = 4  # RSS feeds
LOOK_EVERY = 60.0  # seconds: then each RSS feed that is due is asked


class RssStore(Protocol):
    """Where the items of RSS feeds are kept between two reads; every method raises `LedgerError`."""

    def feeds(self, *, items: bool = False) -> Mapping[str, RssFeed]:
        """Return every RSS feed by its URL, on request with its items."""

    def versions(self) -> Mapping[str, tuple[int, datetime]]:
        """Return the content's number and the last read of every RSS feed that was ever read."""

    def published(self, url: str) -> Sequence[Sequence[str]]:
        """Return guid, an empty text, token and enclosure URL of every item of an RSS feed, in its order."""

    def keep(self, feed: RssFeed) -> None:
        """Replace what the RSS feed held."""

    def unchanged(self, url: str, at: datetime) -> None:
        """Note that the RSS feed holds what it held."""

    def failed(self, url: str, at: datetime, error: str, hint: str) -> None:
        """Note that the RSS feed could not be read; what it held stays."""

    def forget_all_but(self, urls: Sequence[str]) -> Sequence[str]:
        """Remove the RSS feeds that are no longer configured, and return their URLs."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a pass did with one RSS feed: ``word`` is read, unchanged or failed; ``sentence`` says more."""

    url: str
    word: str
    sentence: str
    hint: str = ""

    @property
    def name(self) -> str:
        """The RSS feed, as it may be shown."""
        return safe_url(self.url)


def due(feeds: Mapping[str, RssFeed], urls: Sequence[str], every: timedelta, now: datetime) -> list[str]:
    """The RSS feeds that are to be asked now: never tried, or long enough ago, or by a clock since put right."""
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
    """Ask every RSS feed that is due (all of them with ``force``), and keep what they say.

    Raises:
        LedgerError: what was read could not be kept.
    """
    for gone in await in_thread(store.forget_all_but, urls):
        log.info(f"catalogue forgot {safe_url(gone)}", why="it is configured no more")
    feeds = await in_thread(store.feeds)
    wanted = list(urls) if force else due(feeds, urls, every, now)
    places = asyncio.Semaphore(AT_ONCE)

    async def one(url: str) -> Refreshed:
        async with places:
            return await _one(store, reader, url, feeds.get(url), now)

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
        if known is None or known.error != str(error):
            log.warning(f"catalogue kept what it had of {name}", items=held, why=str(error), hint=error.hint)
        return Refreshed(url, "failed", str(error), error.hint)
    if answer.items is None:
        await in_thread(store.unchanged, url, now)
        return Refreshed(url, "unchanged", f"{held} items")
    items = tuple(answer.items)
    await in_thread(store.keep, RssFeed(url, now, now, answer.title, answer.etag, answer.last_modified, items=items))
    log.info(f"catalogue read {name}", items=len(items), before=held)
    return Refreshed(url, "read", f"{len(items)} items")


def _check_emptied(answer: RssAnswer, name: str, held: int) -> None:
    """An RSS feed that had items and has none is a mistake at its host's, as likely as not."""
    if held and answer.items is not None and not answer.items:
        hint = f"curl -sSL '{name}' | head -50"
        raise RssUnread(f"the RSS feed {name} holds no items any more, though it had {held}", hint=hint)


class CatalogueSource:
    """The catalogue that the configuration asks for; used from any thread, by one at a time."""

    def __init__(self, config: Config, rss: RssStore) -> None:
        """Raises `ConfigError` when a file must be changed."""
        self._feeds = config.feeds
        self._path = config.log.episodes
        self._rss = rss
        self._seen: dict[Path, tuple[int, int] | None] = {}
        self._listed = self._list()
        self._written = load_catalogue(self._path) if self._path is not None else None
        self._mark(self._path)
        self._made: tuple[tuple[Any, ...], Catalogue | None] = ((), None)

    def urls(self) -> list[str]:
        """The RSS feeds, each once; the file of them is read again when it has changed."""
        if self._feeds.file is not None and self._changed(self._feeds.file):
            try:
                self._listed = self._list()
            except ConfigError as error:
                problem = error.problems[0]
                log.error("catalogue kept the old list of RSS feeds", why=str(problem), hint=problem.cure)
        return list(dict.fromkeys([*self._feeds.urls, *self._listed]))

    def snapshot(self) -> Catalogue | None:
        """The newest good catalogue, or None where there is nothing to make one of."""
        if self._path is not None and self._changed(self._path):
            try:
                self._written = load_catalogue(self._path)
            except ConfigError as error:
                problem = error.problems[0]
                log.error("feed kept the old episode catalogue", why=str(problem), hint=problem.cure)
            else:
                log.info("feed read the episode catalogue", episodes=len(self._written.episodes))
        known = self._rss.versions() if self._feeds.configured else {}
        urls = [url for url in self.urls() if url in known]
        if self._written is None and not urls:
            return None
        state = (id(self._written), *((url, *known[url]) for url in urls))
        if self._made[0] != state:
            published = [Episode._make(item) for url in urls for item in self._rss.published(url)]
            self._made = state, make_catalogue(self._written, published, [known[url][1] for url in urls])
        return self._made[1]

    async def refresh(self, now: datetime, *, force: bool = False) -> list[Refreshed]:
        """One pass over the RSS feeds that are due, or over all."""
        if not self._feeds.configured:
            return []
        from .fetch import RssReader  # with the network's libraries, which a conversion by hand does not wait for

        async with RssReader(allow_local=self._feeds.allow_local) as reader:
            return await refresh(self._rss, reader, self.urls(), self._feeds.refresh_every, now, force=force)

    def untried(self) -> bool:
        """Whether there is an RSS feed that was never asked."""
        return self._feeds.configured and not set(self.urls()) <= set(self._rss.feeds())

    async def keep_fresh(self, looked: asyncio.Event) -> None:
        """Refresh for ever; ``looked`` is set after the first pass. Nothing that goes wrong ends it."""
        if not self._feeds.configured:
            looked.set()
        while self._feeds.configured:
            try:
                await self.refresh(datetime.now(UTC))
            except PickupPointError as error:
                log.error("catalogue gave up a refresh", why=str(error), hint=error.hint)
            except Exception:
                log.exception("catalogue gave up a refresh")
            looked.set()
            await asyncio.sleep(LOOK_EVERY)
        await asyncio.Event().wait()  # a task that ends would end the service

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
    """The catalogue at a glance: the operator's rows, each RSS feed with its items, and the snapshot of both."""

    written: Mapping[str, Episode]
    feeds: tuple[tuple[str, RssFeed | None], ...]
    catalogue: Catalogue | None

    def as_json(self) -> dict[str, Any]:
        """As ``episodes --json`` prints it, items and all."""
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
    """What there is, read anew.

    Raises:
        ConfigError: a file must be changed.
    """
    source = CatalogueSource(config, rss)
    held = rss.feeds(items=True)
    written = load_catalogue(config.log.episodes).episodes if config.log.episodes is not None else {}
    feeds = tuple((url, held.get(url)) for url in source.urls())
    return EpisodesSnapshot(written, feeds, source.snapshot())
