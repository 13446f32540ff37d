"""What a publisher's RSS feed says of its episodes: guid, enclosure, title, dates; and what its URLs have inside.

No outside world: bytes in, items out, some at a time, so that memory grows with the items and not with the document.
The promise: a document that is hostile (entities, endless depth or markup), malformed, or no RSS at all raises
`NotRss`; nothing that a document names is ever fetched. Expat is told of no entity but XML's own five.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

from ..errors import PickupPointError
from ..triton import URL_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable


MOST_ITEMS = 50_000
DEEPEST = 64  # elements inside one another; a podcast's RSS has five
LONGEST_MARKUP = 1 << 20  # bytes of one tag or comment; expat reads it again from its start with every piece of it
LONGEST_GUID = 500
LONGEST_TITLE = 300
_LONGEST_TEXT = 8192
_ITUNES = "http://www.itunes.com/dtds/podcast-1.0.dtd "
_RSS2 = "http://backend.userland.com/rss2 "  # the namespace that a few old documents give to RSS itself
_WANTED = {"guid", "title", "pubDate", f"{_ITUNES}duration", f"{_ITUNES}title"}

# A segment of a path that is a host: what redirect prefixes have inside. ``redirect.mp3`` and ``v1.2`` are none.
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+([a-z]{2,24})(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE
)
_MEDIA = {"aac", "aif", "aiff", "flac", "html", "json", "mov", "ogg", "opus", "php", "txt", "wav", "webm", "wma", "xml"}
_TOP_LEVEL = {
    "com", "net", "org", "info", "app", "dev", "audio", "cloud", "online", "media", "show", "live", "news", "tech",
    "space", "site", "world", "link", "click", "digital", "network", "studio", "radio", "events", "agency", "host",
    "podcast", "xyz", "pro", "gov", "edu", "biz",
}  # fmt: skip
_TOKEN = re.compile(r"/([A-Za-z]{2,10}[0-9]{4,20})(?:\.[A-Za-z0-9]{1,5})?", re.ASCII)


class NotRss(Exception):
    """This document gives no items; the text says why."""


@dataclass(frozen=True, slots=True)
class RssItem:
    """One item. Texts are empty where the document says nothing; ``published`` is in UTC; seconds; bytes.

    ``enclosure_url`` is as published, ``bare_url`` without redirect prefixes, ``token`` Megaphone's third id in it.
    """

    guid: str
    enclosure_url: str = ""
    title: str = ""
    published: datetime | None = None
    duration: int | None = None
    length: int | None = None
    bare_url: str = ""
    token: str = ""


class RssDocument:
    """Reads one document, piece by piece: `feed` as it comes, then `close`."""

    def __init__(self) -> None:
        self.title = ""
        self.items: list[RssItem] = []
        self._path: list[str] = []
        self._root = ""
        self._item: dict[str, str] = {}
        self._text: list[str] | None = None
        self._room = 0
        self._given = 0
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.EntityDeclHandler = _refuse_entity
        parser.ExternalEntityRefHandler = _refuse_reference
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        self._parser = parser

    def feed(self, data: bytes) -> None:
        """The next bytes.

        Raises:
            NotRss: these can belong to no RSS that is read here.
        """
        self._given += len(data)
        self._parse(data, False)
        if self._given - max(self._parser.CurrentByteIndex, 0) > LONGEST_MARKUP:
            raise NotRss(f"one of its tags or comments is over {LONGEST_MARKUP >> 20} MiB long")

    def close(self) -> list[RssItem]:
        """The items, in the document's order.

        Raises:
            NotRss: the document was cut off, or is something else.
        """
        self._parse(b"", True)
        if self._root not in ("rss", f"{_RSS2}rss"):
            raise NotRss(f"it is no RSS, its first element is <{self._root.rpartition(' ')[2][:40]}>")
        return self.items

    def _parse(self, data: bytes, final: bool) -> None:
        try:
            self._parser.Parse(data, final)
        except expat.ExpatError as error:
            what = expat.errors.messages.get(error.code, "wrong")
            raise NotRss(f"it is no well-formed XML: {what}, line {error.lineno}") from None
        except (ValueError, LookupError):  # an encoding that Python does not know, or that has several bytes a letter
            raise NotRss("its encoding is not known; publish it in UTF-8") from None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.removeprefix(_RSS2)
        self._root = self._root or name
        self._path.append(name)
        depth = len(self._path)
        if depth > DEEPEST:
            raise NotRss(f"its elements stand more than {DEEPEST} deep in one another")
        if depth == 3 and name == "item":
            self._item = {}
            if len(self.items) >= MOST_ITEMS:
                raise NotRss(f"it has more than {MOST_ITEMS} items")
        elif depth == 4 and self._path[2] == "item":
            if name == "enclosure" and "url" in attributes:
                self._item.setdefault("enclosure", attributes["url"][: URL_LIMIT * 2])
                self._item.setdefault("length", attributes.get("length", "")[:32])
            elif name in _WANTED:
                self._text, self._room = [], _LONGEST_TEXT
        elif depth == 3 and name == "title":
            self._text, self._room = [], _LONGEST_TEXT

    def _characters(self, text: str) -> None:
        if self._text is not None and self._room > 0:
            self._text.append(text[: self._room])
            self._room -= len(text)

    def _end(self, name: str) -> None:
        depth = len(self._path)
        if self._text is not None and (depth == 4 or (depth == 3 and self._path[2] == "title")):
            text, self._text = "".join(self._text).strip(), None
            if depth == 3:
                self.title = self.title or _plain(text)
            else:
                self._item.setdefault(name.removeprefix(_RSS2), text)
        elif depth == 3 and self._path[2] == "item":
            self._keep(self._item)
        self._path.pop()

    def _keep(self, found: dict[str, str]) -> None:
        guid, enclosure = found.get("guid", ""), found.get("enclosure", "").strip()
        if len(guid) > LONGEST_GUID:
            guid = ""
        if len(enclosure) > URL_LIMIT or not enclosure.lower().startswith(("http://", "https://")):
            enclosure = ""
        if not guid and not enclosure:
            return
        bare = bare_url(enclosure)
        item = RssItem(
            guid=guid,
            enclosure_url=enclosure,
            title=_plain(found.get("title") or found.get(f"{_ITUNES}title", "")),
            published=_instant(found.get("pubDate", "")),
            duration=_seconds(found.get(f"{_ITUNES}duration", "")),
            length=_whole(found.get("length", "")),
            bare_url=bare,
            token=megaphone_token(bare),
        )
        self.items.append(item)


def parse_rss(data: bytes) -> RssDocument:
    """A whole document.

    Raises:
        NotRss: it gives no items.
    """
    document = RssDocument()
    for start in range(0, len(data), LONGEST_MARKUP // 4):
        document.feed(data[start : start + LONGEST_MARKUP // 4])
    document.close()
    return document


def bare_url(url: str) -> str:
    """A URL without the redirect prefixes around it: the last host that stands in it, and what follows.

    >>> bare_url("https://op3.dev/e/dts.podtrac.com/redirect.mp3/traffic.megaphone.fm/ABC1234567890.mp3?updated=1")
    'https://traffic.megaphone.fm/ABC1234567890.mp3?updated=1'
    """
    path, mark, query = url.partition("?")
    if "%2f" in path.lower() and re.search(r"/https?%3a%2f%2f", path, re.IGNORECASE):
        path = unquote(path)
    scheme, found, rest = path.partition("://")
    if not found:
        return url
    segments = rest.split("/")
    last = 0
    for place, segment in enumerate(segments[:-1]):
        if place and _is_host(segment):
            last = place
    inner = segments[last - 2].rpartition(",")[2].lower() if last > 2 and not segments[last - 1] else ""
    scheme = inner.removesuffix(":") if inner in ("http:", "https:") else scheme
    return f"{scheme}://{'/'.join(segments[last:])}{mark}{query}"


def _is_host(segment: str) -> bool:
    match = _HOST.fullmatch(segment)
    if match is None:
        return False
    top = match[1].lower()
    return top in _TOP_LEVEL or (len(top) == 2 and top not in _MEDIA)


def megaphone_token(bare: str) -> str:
    """The id in the enclosure URL that Megaphone gives an episode, or an empty text: ``ABC1234567890``."""
    try:
        parts = urlsplit(bare)
        host = (parts.hostname or "").lower()
    except ValueError:
        return ""
    match = _TOKEN.fullmatch(parts.path)
    return match[1] if match is not None and (host == "megaphone.fm" or host.endswith(".megaphone.fm")) else ""


def safe_url(url: str) -> str:
    """An address as a log line may show it: without a password, a query or control characters."""
    try:
        parts = urlsplit(url)
        text = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        text = "an address that is none"
    return "".join(letter if letter.isprintable() and letter not in "'\"" else "?" for letter in text)[:200]


def _plain(text: str) -> str:
    """A title on one line, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))[:LONGEST_TITLE]


def _instant(text: str) -> datetime | None:
    reads: tuple[Callable[[str], datetime], ...] = (parsedate_to_datetime, datetime.fromisoformat)
    for read in reads:
        try:
            at = read(text[:64])
            return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None


def _seconds(text: str) -> int | None:
    """``3720``, ``1:02:00`` or ``62:00`` as seconds."""
    match = re.fullmatch(r"(?:(?:([0-9]{1,4}):)?([0-9]{1,4}):)?([0-9]{1,9})(?:\.[0-9]*)?", text, re.ASCII)
    return None if match is None else int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + int(match[3])


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text.strip(), re.ASCII) else None


def _refuse_entity(*_: object) -> None:
    raise NotRss("it declares entities, which no podcast's RSS needs; they are how a document attacks its reader")


def _refuse_reference(*_: object) -> int:
    raise NotRss("it refers to an entity outside of itself, which is never fetched")


@dataclass(frozen=True, slots=True)
class RssFeed:
    """One of the publisher's RSS feeds, as it was when it was last read; ``error`` says why the last try failed.

    ``change`` grows with every new content. ``items`` may be left away; ``item_count`` holds their number all the same.
    """

    url: str
    tried_at: datetime
    read_at: datetime | None = None
    title: str = ""
    etag: str = ""
    last_modified: str = ""
    error: str = ""
    hint: str = ""
    change: int = 0
    items: tuple[RssItem, ...] = ()
    item_count: int = 0


class RssUnread(PickupPointError):
    """An RSS feed could not be read; the catalogue stays as it was."""
