"""The reader of RSS feeds: one document over HTTP, transferred only when it has changed.

Touches the network and nothing else. The promise: whatever a server answers (nothing, too slowly, too much, a
decompression bomb, a redirect to a file, to this machine or to the cloud's metadata) ends in `RssUnread` within bounded
time and memory. The address that is checked is the one that the socket is about to connect to, so a name that resolves
differently the second time gains nothing. Through a proxy (the environment's, as for S3) only addresses in a URL are
checked: names are resolved, and refused, by the proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import shlex
import socket
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from ..disk import connection_failure
from ..threads import in_thread
from .rss import NotRss, RssDocument, RssUnread, known_charset, safe_url

if TYPE_CHECKING:
    from typing import Self

    from aiohappyeyeballs import AddrInfoType

    from .rss import RssItem

_ACCEPT = "application/rss+xml, application/xml;q=0.9, text/xml;q=0.9, */*;q=0.1"
_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK = 256 << 10  # bytes, received or inflated, that are parsed at a time
_EMBEDDED = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "::ffff:0:0/96")]
# Where a cloud gives a machine its own secrets (AWS, Google, Azure, Oracle, Alibaba): never an RSS feed, whatever the
# settings allow. Two of them count as public addresses.
_CLOUD = [
    ipaddress.ip_network(text)
    for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "fd20:ce::/32", "192.0.0.0/24", "168.63.129.16/32",
                 "100.100.100.200/32")
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReaderLimits:
    """What reading an RSS feed may cost: ``size`` in bytes, both as sent and as inflated; times in seconds."""

    size: int = 64 << 20
    total: float = 120.0
    connect: float = 10.0
    silence: float = 20.0
    redirects: int = 5


@dataclass(frozen=True, slots=True)
class RssAnswer:
    """The answer of an RSS feed. ``items`` is None if nothing has changed since ``etag`` and ``last_modified``."""

    title: str
    items: list[RssItem] | None
    etag: str
    last_modified: str


class _NotPublic(OSError):
    """The address does not belong to the public Internet."""

    def __init__(self, address: str) -> None:
        # The same text for every address: aiohttp raises the first of several errors only if all their texts agree.
        super().__init__("not a public address")
        self.address = address


class RssReader:
    """Reads RSS feeds, each on its own connection; ``allow_local`` permits private addresses."""

    def __init__(self, *, allow_local: bool = False, limits: ReaderLimits | None = None) -> None:
        self._allow_local = allow_local
        self._limits = limits or ReaderLimits()
        self._direct: aiohttp.ClientSession | None = None
        self._proxied: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._direct = self._session(aiohttp.TCPConnector(socket_factory=self._socket, force_close=True))
        # A proxy may well have a private address.
        self._proxied = self._session(aiohttp.TCPConnector(force_close=True))
        return self

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        limits = self._limits
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=limits.total, sock_connect=limits.connect, sock_read=limits.silence, connect=None
            ),
            headers={"User-Agent": "pickup-point", "Accept": _ACCEPT, "Accept-Encoding": "gzip"},
            # A small answer may inflate without end, so _Body inflates it, under a limit.
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aexit__(self, *_: object) -> None:
        for session in (self._direct, self._proxied):
            if session is not None:
                await session.close()

    async def read(self, url: str, etag: str = "", last_modified: str = "") -> RssAnswer:
        """Read the document at ``url``, unless it is still the one of ``etag`` and ``last_modified``.

        Raises:
            RssUnread: the document could not be read, or was refused.
        """
        name = safe_url(url)
        try:
            async with asyncio.timeout(self._limits.total):
                return await self._follow(url, etag, last_modified)
        except TimeoutError as error:
            raise self._unread(url, f"took longer than {self._limits.total:g} seconds, or fell silent") from error
        except NotRss as error:
            raise self._unread(url, f"was refused: {error}") from error
        # The messages of these two may contain the proxy's URL, with its password.
        except aiohttp.ClientHttpProxyError as error:
            raise self._unread(url, f"is behind a proxy that answered {error.status}") from error
        except aiohttp.InvalidURL as error:
            raise self._unread(url, "leads to, or is behind a proxy at, something that is not a web address") from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _NotPublic):
                raise self._private(url, error.os_error.address) from error
            raise self._unread(url, f"cannot be reached: {connection_failure(error.os_error)}") from error
        except (aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
            why = f"{type(error).__name__}: {error}".replace(url, name)[:200]
            raise self._unread(url, f"cannot be read: {why}") from error

    async def _follow(self, url: str, etag: str, last_modified: str) -> RssAnswer:
        """Request the document and follow redirects, each checked as if it were a configured URL."""
        headers = {"If-None-Match": etag} if etag else {}
        headers |= {"If-Modified-Since": last_modified} if last_modified else {}
        at = url
        for _ in range(self._limits.redirects + 1):
            if urlsplit(at).scheme not in ("http", "https") or not urlsplit(at).hostname:
                raise self._unread(url, f"redirects to {safe_url(at)}, which is not a web address")
            proxy = proxy_of(at)
            if proxy is not None:
                self._check_literal(url, at)
            session = self._direct if proxy is None else self._proxied
            assert session is not None  # noqa: S101  # used as a context
            try:
                async with session.get(at, headers=headers, allow_redirects=False, proxy=proxy) as answer:
                    if answer.status in _REDIRECTS and (to := answer.headers.get("Location")):
                        at = urljoin(at, to)
                        continue
                    if answer.status == 304 and headers:
                        return RssAnswer("", None, etag, last_modified)
                    if answer.status != 200:
                        raise self._unread(url, f"answered {answer.status}")
                    return await self._document(url, answer)
            except aiohttp.ClientConnectorError as error:
                if proxy is None or isinstance(error, aiohttp.ClientSSLError):
                    raise
                raise self._unread(
                    url, f"is behind a proxy that cannot be reached: {connection_failure(error.os_error)}"
                ) from error
        raise self._unread(url, f"redirects more than {self._limits.redirects} times")

    async def _document(self, url: str, answer: aiohttp.ClientResponse) -> RssAnswer:
        coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in ("identity", "", "gzip", "x-gzip"):
            raise self._unread(url, f'is sent in the encoding "{coding[:40]}", which was not requested')
        # Inflated and parsed in a thread: a large document would hold up every SFTP session.
        document = RssDocument(known_charset(answer.charset))
        body = _Body(document, self._limits.size, packed="gzip" in coding)
        held = bytearray()
        async for chunk in answer.content.iter_any():
            held += chunk
            if len(held) >= _CHUNK:
                await in_thread(body.feed, bytes(held))
                held.clear()
        await in_thread(body.feed, bytes(held))
        items = await in_thread(body.close)
        etag, modified = (answer.headers.get(name, "")[:500] for name in ("ETag", "Last-Modified"))
        return RssAnswer(document.title, items, etag, modified)

    def _socket(self, address: AddrInfoType) -> socket.socket:
        """Return a socket for a permitted address; aiohttp calls this for every address that it tries."""
        # Checked here and not after a lookup of our own: a name may resolve to another address the second time.
        family, kind, protocol, _, where = address
        text = str(where[0])
        if self._is_refused(text):
            raise _NotPublic(text)
        return socket.socket(family=family, type=kind, proto=protocol)

    def _is_refused(self, address: str) -> bool:
        return is_metadata(address) or (not self._allow_local and not is_public(address))

    def _check_literal(self, url: str, at: str) -> None:
        """Refuse a request through a proxy to an address, in whatever spelling, that is refused without one."""
        host = urlsplit(at).hostname or ""
        with contextlib.suppress(OSError):
            host = socket.inet_ntoa(socket.inet_aton(host))  # 2130706433 and 127.1 are 127.0.0.1, too
        local = host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost")
        if (_address(host) is not None and self._is_refused(host)) or (local and not self._allow_local):
            raise self._private(url, host)

    @staticmethod
    def _unread(url: str, what: str) -> RssUnread:
        return RssUnread(f"the RSS feed {safe_url(url)} {what}", hint=f"curl -sSIL {shlex.quote(safe_url(url))}")

    @staticmethod
    def _private(url: str, address: str) -> RssUnread:
        sentence = f"the RSS feed {safe_url(url)} leads to {address}, which is not a public address"
        return RssUnread(sentence, hint="correct the URL, or set feeds.allow_local = true if the network is yours")


class _Body:
    """Inflates what was received, at most one chunk at a time, and passes it to the document; used in a thread."""

    def __init__(self, document: RssDocument, size: int, *, packed: bool) -> None:
        self.document = document
        self._size = size
        self._received = 0
        self._inflated = 0
        self._inflate = zlib.decompressobj(31) if packed else None

    def feed(self, data: bytes) -> None:
        """Add the next bytes as received."""
        self._received += len(data)
        if self._received > self._size:
            raise NotRss(f"it is larger than {self._size >> 20} MiB")
        if self._inflate is None:
            self._pass_on(data)
            return
        # At most a chunk comes out at a time; the input that was not needed for it waits in the tail.
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
        """Return the items of the complete document."""
        if self._inflate is not None:
            if not self._inflate.eof:
                raise NotRss("its gzip data is truncated")
            self._pass_on(self._inflate.flush())
        return self.document.close()


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for a URL (``HTTPS_PROXY``, ``NO_PROXY`` …), as botocore does."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if proxy.startswith(("http:", "https:")) else f"http://{proxy.removeprefix('//')}"


def is_public(text: str) -> bool:
    """Return whether an address is public: not this machine, not a private network, not a cloud's metadata."""
    address = _address(text)
    return address is not None and address.is_global and not address.is_multicast and not is_metadata(text)


def is_metadata(text: str) -> bool:
    """Return whether an address is one at which a cloud gives a machine its secrets."""
    address = _address(text)
    return address is not None and any(address in network for network in _CLOUD)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address, or the IPv4 address embedded in it; None if it is not an address."""
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
