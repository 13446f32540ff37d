"""The episode catalogue in use: the operator's file and the RSS feeds in the ledger, as one snapshot.

Brings `catalogue`, `refresh` and the ledger together. Promise: a file that was spoilt while the service runs keeps the
catalogue as it was, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from ..errors import ConfigError, PickupPointError
from .catalogue import Catalogue, Episode, load_catalogue, load_urls, make_catalogue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..settings import Config
    from ..storage.ledger import Ledger
    from ..storage.records import RssFeed
    from .refresh import Refreshed

log = structlog.get_logger()

LOOK_EVERY = 60.0  # seconds: then each RSS feed that is due is asked


class CatalogueSource:
    """The catalogue that the configuration asks for; used from any thread, by one at a time."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        """Raises `ConfigError` when a file must be changed."""
        self._feeds = config.feeds
        self._path = config.log.episodes
        self._ledger = ledger
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
        known = self._ledger.rss.versions() if self._feeds.configured else {}
        urls = [url for url in self.urls() if url in known]
        if self._written is None and not urls:
            return None
        state = (id(self._written), *((url, *known[url]) for url in urls))
        if self._made[0] != state:
            published = [Episode._make(item) for url in urls for item in self._ledger.rss.published(url)]
            self._made = state, make_catalogue(self._written, published, [known[url][1] for url in urls])
        return self._made[1]

    async def refresh(self, now: datetime, *, force: bool = False) -> list[Refreshed]:
        """One pass over the RSS feeds that are due, or over all."""
        if not self._feeds.configured:
            return []
        from .fetch import RssReader
        from .refresh import refresh  # with the network's libraries, which a conversion by hand does not wait for

        async with RssReader(allow_local=self._feeds.allow_local) as reader:
            return await refresh(self._ledger.rss, reader, self.urls(), self._feeds.refresh_every, now, force=force)

    def untried(self) -> bool:
        """Whether there is an RSS feed that was never asked."""
        return self._feeds.configured and not set(self.urls()) <= set(self._ledger.rss.feeds())

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
class EpisodesGlance:
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


def glance_at(config: Config, ledger: Ledger) -> EpisodesGlance:
    """What there is, read anew.

    Raises:
        ConfigError: a file must be changed.
    """
    source = CatalogueSource(config, ledger)
    held = ledger.rss.feeds(items=True)
    written = load_catalogue(config.log.episodes).episodes if config.log.episodes is not None else {}
    feeds = tuple((url, held.get(url)) for url in source.urls())
    return EpisodesGlance(written, feeds, source.snapshot())
