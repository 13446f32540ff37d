"""What a publisher's RSS feed says about its episodes: guid, enclosure, title, dates; and what its URLs contain.

Pure: bytes in, items out, piece by piece, so that memory grows with the items and not with the document. The promise: a
document that is hostile (entities, endless depth or markup), malformed, or not RSS at all raises `NotRss`; nothing that
a document refers to is ever fetched. Expat knows no entities but XML's own five.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

from ..errors import PickupPointError
from ..triton import URL_LIMIT
from .catalogue import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable


MOST_ITEMS = 50_000
DEEPEST = 64  # nested elements; a podcast's RSS feed has five
LONGEST_MARKUP = 1 << 20  # bytes of one tag or comment; expat rescans it from its start with every new piece
LONGEST_GUID = 500
LONGEST_TITLE = 300
_LONGEST_TEXT = 8192
_LONGEST_DECLARATION = 1024
# A byte order mark, UTF-16 without one, or a declaration with an encoding (XML 1.0, appendix F).
_OWN_ENCODING = re.compile(rb"\xef\xbb\xbf|\xfe\xff|\xff\xfe|\x00<|<\x00|<\?xml\s[^>]*?\bencoding\s*=", re.IGNORECASE)
_ITUNES = "http://www.itunes.com/dtds/podcast-1.0.dtd "
_RSS2 = "http://backend.userland.com/rss2 "  # the namespace in which a few old documents put RSS itself
_WANTED = {"guid", "title", "pubDate", f"{_ITUNES}duration", f"{_ITUNES}title"}

# A path segment that is a host, as in redirect prefixes. ``redirect.mp3`` and ``v1.2`` are not hosts.
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+([a-z]{2,24})(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE
)
_MEDIA = {"aac", "aif", "aiff", "flac", "html", "json", "mov", "ogg", "opus", "php", "txt", "wav", "webm", "wma", "xml"}
_TOP_LEVEL = {
    "com", "net", "org", "info", "app", "dev", "audio", "cloud", "online", "media", "show", "live", "news", "tech",
    "space", "site", "world", "link", "click", "digital", "network", "studio", "radio", "events", "agency", "host",
    "podcast", "xyz", "pro", "gov", "edu", "biz",
}  # fmt: skip
_TOKEN_PATH = re.compile(rf"/({TOKEN.pattern})(?:\.[A-Za-z0-9]{{1,5}})?", re.ASCII)


class NotRss(Exception):
    """The document yields no items; the message says why."""


@dataclass(frozen=True, slots=True)
class RssItem:
    """One item; texts are '' if the document has none.

    ``published`` is in UTC, ``duration`` in seconds, ``length`` in bytes; ``enclosure_url`` is as published,
    ``bare_url`` is without redirect prefixes, and ``token`` is Megaphone's third id in it.
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
    """Reads one document, piece by piece: call `feed` for each, then `close`.

    ``charset`` is the encoding that the server names; it counts only if the document names none (by RFC 7303 it always
    counts, but servers name one for all files, and documents their own).
    """

    def __init__(self, charset: str = "") -> None:
        self.title = ""
        self.items: list[RssItem] = []
        self._path: list[str] = []
        self._root = ""
        self._item: dict[str, str] = {}
        self._text: list[str] | None = None
        self._room = 0
        self._given = 0
        self._beginning = b""
        self._charset = charset
        self._parser = self._make_parser(None)

    def _make_parser(self, encoding: str | None) -> expat.XMLParserType:
        parser = expat.ParserCreate(encoding, namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        # Entities are how a small document becomes a huge one, or reads a file: both handlers refuse it.
        parser.EntityDeclHandler = _refuse_entity
        parser.ExternalEntityRefHandler = _refuse_reference
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        return parser

    def feed(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            NotRss: the document is not an RSS feed that is accepted here.
        """
        self._given += len(data)
        if self._charset:
            # By the end of the first tag the document's own encoding, if it names one, has been seen.
            self._beginning += data
            if b">" not in self._beginning and len(self._beginning) <= _LONGEST_DECLARATION:
                return
            data = self._begin()
        self._parse(data, False)
        # What expat holds back is an unfinished tag or comment, and rescanning it takes quadratic time.
        if self._given - max(self._parser.CurrentByteIndex, 0) > LONGEST_MARKUP:
            raise NotRss(f"one of its tags or comments is over {LONGEST_MARKUP >> 20} MiB long")

    def close(self) -> list[RssItem]:
        """Return the items in the document's order.

        Raises:
            NotRss: the document is truncated, or is not RSS.
        """
        self._parse(self._begin(), True)
        if self._root not in ("rss", f"{_RSS2}rss"):
            raise NotRss(f"it is not RSS: its first element is <{self._root.rpartition(' ')[2][:40]}>")
        return self.items

    def _begin(self) -> bytes:
        """Choose the encoding; return the bytes that were kept back until it was known."""
        beginning, charset = self._beginning, self._charset
        self._beginning, self._charset = b"", ""
        if charset and not _OWN_ENCODING.match(beginning):
            self._parser = self._make_parser(charset)
        return beginning

    def _parse(self, data: bytes, final: bool) -> None:
        try:
            self._parser.Parse(data, final)
        except expat.ExpatError as error:
            what = expat.errors.messages.get(error.code, "wrong")
            raise NotRss(f"it is not well-formed XML: {what}, line {error.lineno}") from None
        except (ValueError, LookupError):  # an encoding that Python lacks, or one with several bytes per character
            raise NotRss("its encoding is unknown; publish it in UTF-8") from None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.removeprefix(_RSS2)
        self._root = self._root or name
        self._path.append(name)
        depth = len(self._path)
        if depth > DEEPEST:
            raise NotRss(f"its elements are nested more than {DEEPEST} deep")
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


def known_charset(name: str | None) -> str:
    """Return a server's name of an encoding as Python spells it; '' for UTF-8, a part of it, or an unknown one."""
    try:
        found = codecs.lookup(name or "utf-8").name
    except (LookupError, ValueError):
        return ""
    return "" if found in ("utf-8", "ascii") else found


def bare_url(url: str) -> str:
    """Return a URL without its redirect prefixes: the last host in it, and what follows.

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
    for index, segment in enumerate(segments[:-1]):
        if index and _is_host(segment):
            last = index
    # "https://prefix/https://host/file" splits into "https:", "" and the host: the inner scheme is the real one.
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
    """Return the id that Megaphone puts in an episode's enclosure URL (``ABC1234567890``), or ''."""
    try:
        parts = urlsplit(bare)
        host = (parts.hostname or "").lower()
    except ValueError:
        return ""
    match = _TOKEN_PATH.fullmatch(parts.path)
    return match[1] if match is not None and (host == "megaphone.fm" or host.endswith(".megaphone.fm")) else ""


def safe_url(url: str) -> str:
    """Return a URL that is safe to log: without password, query or control characters, cut to 200 characters."""
    try:
        parts = urlsplit(url)
        text = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        text = "an invalid URL"
    return "".join(letter if letter.isprintable() and letter not in "'\"" else "?" for letter in text)[:200]


def _plain(text: str) -> str:
    """Return a title on one line, without control characters that a terminal would obey."""
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
    """Return ``3720``, ``1:02:00`` or ``62:00`` in seconds, or None for anything else."""
    match = re.fullmatch(r"(?:(?:([0-9]{1,4}):)?([0-9]{1,4}):)?([0-9]{1,9})(?:\.[0-9]*)?", text, re.ASCII)
    return None if match is None else int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + int(match[3])


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text.strip(), re.ASCII) else None


def _refuse_entity(*_: object) -> None:
    raise NotRss("it declares entities, which no podcast needs and which can be used to attack a reader")


def _refuse_reference(*_: object) -> int:
    raise NotRss("it refers to an external entity, which is never fetched")


@dataclass(frozen=True, slots=True)
class RssFeed:
    """One of the publisher's RSS feeds as last read; ``error`` says why the last try failed, '' if it did not.

    ``change`` grows whenever the content changes. ``items`` may be omitted; ``item_count`` is their number either way.
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
