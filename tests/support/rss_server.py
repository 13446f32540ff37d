"""A publisher's RSS feeds on a real HTTP server: good ones, and every way in which one can be bad.

The server runs in a thread of its own on 127.0.0.1, so that a test may be a coroutine or start processes.
"""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

import pytest
from aiohttp import web

from server.episodes.rss import LONGEST_MARKUP, RssDocument

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?><rss version="2.0" xmlns:itunes="http://www.itunes.com/dtds/podcast-1.0.dtd"'
    ' xmlns:content="http://purl.org/rss/1.0/modules/content/"><channel>'
)
HOSTILE = ("/huge", "/slow", "/malformed", "/file", "/metadata", "/entities", "/html", "/empty", "/gone")
PREFIXES = "https://op3.dev/e/dts.podtrac.com/redirect.mp3/chtbl.com/track/1G/pdst.fm/e/mgln.ai/e/12/"


@dataclass(frozen=True)
class Item:
    """An item of an RSS feed, and the Megaphone episode behind it."""

    episode_id: str
    guid: str
    token: str
    prefix: str = "https://"

    @property
    def url(self) -> str:
        """The enclosure's URL."""
        return f"{self.prefix}traffic.megaphone.fm/{self.token}.mp3?updated=1"

    def xml(self) -> str:
        """As the RSS feed has it."""
        return (
            f"<item><title>Episode &amp; {self.token}</title><itunes:title>T</itunes:title>"
            f'<guid isPermaLink="false"><![CDATA[ {self.guid} ]]></guid>'
            f"<description><![CDATA[<p>{'notes ' * 40}</p>]]></description><itunes:duration>1:02:03</itunes:duration>"
            f"<pubDate>Fri, 20 Nov 2026 10:00:00 +0100</pubDate>"
            f'<enclosure url={quoteattr(self.url)} length="67332401" type="audio/mpeg"/></item>'
        )


def items(count: int, seed: int, *, foreign: bool = False, prefix: str = "https://") -> list[Item]:
    """Items of a show: native ones have the episode's id as their guid, foreign ones a host's own."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        episode_id = str(uuid.UUID(int=rng.getrandbits(128)))
        guid = f"https://old-host.example.com/?p={seed}{number:05d}" if foreign else episode_id
        made.append(Item(episode_id, guid, f"ABC{seed}{number:09d}", prefix))
    return made


def rss(found: Sequence[Item], title: str = "A show") -> bytes:
    """A whole document."""
    return f"{HEAD}<title>{escape(title)}</title>{''.join(item.xml() for item in found)}</channel></rss>".encode()


def parse_rss(data: bytes) -> RssDocument:
    """Parse a whole document, in pieces well below the limit of one tag.

    Raises:
        NotRss: it is not accepted.
    """
    document = RssDocument()
    for start in range(0, len(data), LONGEST_MARKUP // 4):
        document.feed(data[start : start + LONGEST_MARKUP // 4])
    document.close()
    return document


class RssHost:
    """An HTTP server whose every path does what the test says; ``asked`` are the requests, headers and all."""

    def __init__(self) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    async def _serve(self) -> None:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.asked.append((request.path, dict(request.headers)))
            behaviour = self.behaviours.get(request.path)
            if behaviour is None:
                return web.Response(status=404)
            with suppress(ConnectionError):
                return await behaviour(request)
            return web.Response(status=500)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._ended.wait()
        await runner.cleanup()

    def end(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(20)
        self._loop.close()

    def url(self, path: str) -> str:
        """Where a path is."""
        return f"http://127.0.0.1:{self.port}{path}"

    def put(self, path: str, body: bytes, **headers: str) -> str:
        """A document that stays as it is, with an ETag; its URL."""
        etag = f'"{hash(body):x}"'

        async def answer(request: web.Request) -> web.StreamResponse:
            if request.headers.get("If-None-Match") == etag:
                return web.Response(status=304)
            more = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.Response(
                body=body, headers={"ETag": etag, "Last-Modified": "Fri, 20 Nov 2026 10:00:00 GMT"} | more
            )

        self.behaviours[path] = answer
        return self.url(path)

    def redirect(self, path: str, to: str, status: int = 302) -> str:
        """A redirect."""

        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": to})

        self.behaviours[path] = answer
        return self.url(path)

    def stream(self, path: str, first: bytes, then: bytes, *, times: int, pause: float = 0.0, **headers: str) -> str:
        """A document that goes on and on."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={name.replace("_", "-"): value for name, value in headers.items()})
            await response.prepare(request)
            await response.write(first)
            for _ in range(times):
                await asyncio.sleep(pause)
                await response.write(then)
            await response.write_eof()
            return response

        self.behaviours[path] = answer
        return self.url(path)


def hostile(host: RssHost) -> list[str]:
    """RSS feeds of every bad kind."""
    for path, body in {
        "/malformed": rss(items(5, 9))[:-40],
        "/entities": b'<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><rss><channel>&b;</channel></rss>',
        "/html": b"<!doctype html><p>404",
        "/empty": b"",
    }.items():
        host.put(path, body)
    host.stream("/huge", HEAD.encode(), b" " * (1 << 20), times=100)
    host.stream("/slow", HEAD.encode(), b" ", times=100, pause=0.5)
    host.redirect("/file", "file:///etc/passwd")
    host.redirect("/metadata", "http://169.254.169.254/latest/meta-data/")
    return [host.url(path) for path in HOSTILE]


@pytest.fixture
def rss_host() -> Iterator[RssHost]:
    """A server for RSS feeds."""
    host = RssHost()
    yield host
    host.end()
