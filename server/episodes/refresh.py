"""The refresh of the episode catalogue: one pass over the publisher's RSS feeds.

Brings `fetch` and the ledger together. Promises: what an RSS feed held stays until it was read whole again; one that is
down, slow or wrong harms neither the others nor a day.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from ..storage.records import RssFeed
from ..threads import in_thread
from .fetch import RssReader, RssUnread
from .rss import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from ..storage.rss_feeds import RssShelf
    from .fetch import RssAnswer

log = structlog.get_logger()

RETRY = timedelta(minutes=15)  # after a failure, if `refresh_every` is not shorter
AT_ONCE = 4  # RSS feeds


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
        return shown(self.url)


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
    shelf: RssShelf, reader: RssReader, urls: Sequence[str], every: timedelta, now: datetime, *, force: bool = False
) -> list[Refreshed]:
    """Ask every RSS feed that is due (all of them with ``force``), and keep what they say.

    Raises:
        LedgerError: what was read could not be kept.
    """
    for gone in await in_thread(shelf.forget_all_but, urls):
        log.info(f"catalogue forgot {shown(gone)}", why="it is configured no more")
    feeds = await in_thread(shelf.feeds)
    wanted = list(urls) if force else due(feeds, urls, every, now)
    places = asyncio.Semaphore(AT_ONCE)

    async def one(url: str) -> Refreshed:
        async with places:
            return await _one(shelf, reader, url, feeds.get(url), now)

    outcomes = await asyncio.gather(*(one(url) for url in wanted), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Refreshed)]


async def _one(shelf: RssShelf, reader: RssReader, url: str, known: RssFeed | None, now: datetime) -> Refreshed:
    name, held = shown(url), known.item_count if known is not None else 0
    try:
        validators = (known.etag, known.last_modified) if known is not None and known.read_at is not None else ("", "")
        answer = await reader.read(url, *validators)
        _check_emptied(answer, name, held)
    except RssUnread as error:
        await in_thread(shelf.failed, url, now, str(error), error.hint)
        if known is None or known.error != str(error):
            log.warning(f"catalogue kept what it had of {name}", items=held, why=str(error), hint=error.hint)
        return Refreshed(url, "failed", str(error), error.hint)
    if answer.items is None:
        await in_thread(shelf.unchanged, url, now)
        return Refreshed(url, "unchanged", f"{held} items")
    items = tuple(answer.items)
    await in_thread(shelf.keep, RssFeed(url, now, now, answer.title, answer.etag, answer.last_modified, items=items))
    log.info(f"catalogue read {name}", items=len(items), before=held)
    return Refreshed(url, "read", f"{len(items)} items")


def _check_emptied(answer: RssAnswer, name: str, held: int) -> None:
    """An RSS feed that had items and has none is a mistake at its host's, as likely as not."""
    if held and answer.items is not None and not answer.items:
        hint = f"curl -sSL '{name}' | head -50"
        raise RssUnread(f"the RSS feed {name} holds no items any more, though it had {held}", hint=hint)
