"""The reader of RSS feeds: one document over HTTP, asked for only when it has changed.

Touches the network and nothing else. The promise: whatever an address answers (nothing, too slowly, too much, a bomb, a
redirect to a file, to this machine or to the cloud's metadata) ends in `RssUnread` within bounded time and memory. The
address that is looked at is the one that the socket is about to connect to, so a name that changes helps nobody.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import aiohttp

from ..threads import in_thread
from .rss import NotRss, RssDocument, RssUnread, safe_url

if TYPE_CHECKING:
    from typing import Self

    from aiohappyeyeballs import AddrInfoType

    from .rss import RssItem

_ACCEPT = "application/rss+xml, application/xml;q=0.9, text/xml;q=0.9, */*;q=0.1"
_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK = 256 << 10  # bytes, of what came and of what it inflates to, that are looked at in one go
_EMBEDDED = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "::ffff:0:0/96")]
# Where a cloud tells a machine its own secrets (AWS, Google, Azure, Oracle, Alibaba): nobody's RSS feed, whatever is
# allowed. Two of them are public by their numbers.
_CLOUD = [
    ipaddress.ip_network(text)
    for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "fd20:ce::/32", "192.0.0.0/24", "168.63.129.16/32",
                 "100.100.100.200/32")
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """How much an RSS feed may ask of us; ``size`` in bytes as sent and as inflated, times in seconds."""

    size: int = 64 << 20
    total: float = 120.0
    connect: float = 10.0
    silence: float = 20.0
    redirects: int = 5


@dataclass(frozen=True, slots=True)
class RssAnswer:
    """What an RSS feed answered. ``items`` is None when nothing has changed since ``etag`` and ``last_modified``."""

    title: str
    items: list[RssItem] | None
    etag: str
    last_modified: str


class _NotPublic(OSError):
    """This address is not of the public Internet. All say the same: of several alike, aiohttp raises the first."""

    def __init__(self, address: str) -> None:
        super().__init__("no public address")
        self.address = address


class RssReader:
    """Reads RSS feeds, each on its own connection. ``allow_local`` lets addresses be private ones."""

    def __init__(self, *, allow_local: bool = False, limits: ReaderLimits | None = None) -> None:
        self._allow_local = allow_local
        self._limits = limits or ReaderLimits()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        limits = self._limits
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._socket, force_close=True),
            timeout=aiohttp.ClientTimeout(
                total=limits.total, sock_connect=limits.connect, sock_read=limits.silence, connect=None
            ),
            headers={"User-Agent": "pickup-point", "Accept": _ACCEPT, "Accept-Encoding": "gzip"},
            auto_decompress=False,  # a small answer may inflate without end: see _Body
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def read(self, url: str, etag: str = "", last_modified: str = "") -> RssAnswer:
        """The document at ``url``, if it is another one than that of ``etag`` and ``last_modified``.

        Raises:
            RssUnread: no items came of it.
        """
        name = safe_url(url)
        try:
            async with asyncio.timeout(self._limits.total):
                return await self._follow(url, etag, last_modified)
        except TimeoutError as error:
            raise self._unread(url, f"took longer than {self._limits.total:g} seconds, or fell silent") from error
        except NotRss as error:
            raise self._unread(url, f"was refused: {error}") from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _NotPublic):
                raise self._private(url, error.os_error.address) from error
            raise self._unread(url, f"cannot be reached: {error.os_error.strerror or error.os_error}") from error
        except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
            why = f"{type(error).__name__}: {error}".replace(url, name)[:200]
            raise self._unread(url, f"cannot be read: {why}") from error

    async def _follow(self, url: str, etag: str, last_modified: str) -> RssAnswer:
        """Redirects are followed by hand: each is looked at as if it had been configured."""
        headers = {"If-None-Match": etag} if etag else {}
        headers |= {"If-Modified-Since": last_modified} if last_modified else {}
        assert self._session is not None  # noqa: S101  # used as a context
        at = url
        for _ in range(self._limits.redirects + 1):
            if urlsplit(at).scheme not in ("http", "https") or not urlsplit(at).hostname:
                raise self._unread(url, f"redirects to {safe_url(at)}, which is no web address")
            async with self._session.get(at, headers=headers, allow_redirects=False) as answer:
                if answer.status in _REDIRECTS and (to := answer.headers.get("Location")):
                    at = urljoin(at, to)
                    continue
                if answer.status == 304 and headers:
                    return RssAnswer("", None, etag, last_modified)
                if answer.status != 200:
                    raise self._unread(url, f"answered {answer.status}")
                return await self._document(url, answer)
        raise self._unread(url, f"redirects more than {self._limits.redirects} times")

    async def _document(self, url: str, answer: aiohttp.ClientResponse) -> RssAnswer:
        coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("identity", "", "gzip", "x-gzip"):
            raise self._unread(url, f'is sent in the encoding "{coding[:40]}", which was not asked for')
        body = _Body(RssDocument(), self._limits.size, packed="gzip" in coding)
        held = bytearray()
        async for chunk in answer.content.iter_any():
            held += chunk
            if len(held) >= _CHUNK:
                await in_thread(body.feed, bytes(held))
                held.clear()
        await in_thread(body.feed, bytes(held))
        items = await in_thread(body.close)
        etag, modified = (answer.headers.get(name, "")[:500] for name in ("ETag", "Last-Modified"))
        return RssAnswer(body.document.title, items, etag, modified)

    def _socket(self, address: AddrInfoType) -> socket.socket:
        """A socket for an address that may be connected to; asked by aiohttp for every address that it tries."""
        family, kind, protocol, _, where = address
        text = str(where[0])
        if is_metadata(text) or (not self._allow_local and not is_public(text)):
            raise _NotPublic(text)
        return socket.socket(family=family, type=kind, proto=protocol)

    @staticmethod
    def _unread(url: str, what: str) -> RssUnread:
        return RssUnread(f"the RSS feed {safe_url(url)} {what}", hint=f"curl -sSIL '{safe_url(url)}'")

    @staticmethod
    def _private(url: str, address: str) -> RssUnread:
        sentence = f"the RSS feed {safe_url(url)} leads to {address}, which is no public address"
        return RssUnread(sentence, hint="correct it; if it is your own network, set feeds.allow_local = true")


class _Body:
    """Inflates what came, never more than a chunk ahead, and hands it to the document; used in a thread."""

    def __init__(self, document: RssDocument, size: int, *, packed: bool) -> None:
        self.document = document
        self._size = size
        self._came = 0
        self._inflated = 0
        self._inflate = zlib.decompressobj(31) if packed else None

    def feed(self, data: bytes) -> None:
        """The next bytes as they came."""
        self._came += len(data)
        if self._came > self._size:
            raise NotRss(f"it is larger than {self._size >> 20} MiB")
        if self._inflate is None:
            self._pass_on(data)
            return
        while data and not self._inflate.eof:
            self._pass_on(self._inflate.decompress(data, _CHUNK))
            data = self._inflate.unconsumed_tail

    def _pass_on(self, data: bytes) -> None:
        self._inflated += len(data)
        if self._inflated > self._size:
            raise NotRss(f"it is larger than {self._size >> 20} MiB")
        for start in range(0, len(data), _CHUNK):
            self.document.feed(data[start : start + _CHUNK])

    def close(self) -> list[RssItem]:
        """The items of the whole document."""
        if self._inflate is not None:
            if not self._inflate.eof:
                raise NotRss("its gzip data is cut off")
            self._pass_on(self._inflate.flush())
        return self.document.close()


def is_public(text: str) -> bool:
    """Whether an address is one of the public Internet: not this machine, no private network, no cloud's own door."""
    address = _address(text)
    return address is not None and address.is_global and not address.is_multicast and not is_metadata(text)


def is_metadata(text: str) -> bool:
    """Whether a cloud may tell a machine its own secrets at an address."""
    address = _address(text)
    return address is not None and any(address in network for network in _CLOUD)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, or the IPv4 address that it carries inside."""
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.sixtofour or (address.teredo[1] if address.teredo else None)
        if any(address in network for network in _EMBEDDED):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inner or address
    return address
