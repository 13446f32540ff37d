"""What many rows share, worked out once: the cells of a time, an address, an episode, a user agent.

No outside world. Each memo maps a value as it came to its finished cells (each with the tab that follows it), is filled
by the exact rules of `exports`, `address`, `catalogue` and `triton`, and is emptied when it has grown large. A value
that asks for more than the ordinary raises `Unusual`: its row goes the exact way of `row`.
"""

from __future__ import annotations

import re
from itertools import repeat
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import TYPE_CHECKING, Any

from ..triton import OF_CATALOGUE, PLAIN, URL_LIMIT, LogFormat, UrlTemplate
from .export_row import identifier, parse_created_at
from .row import sent_address, token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ..episodes.catalogue import Catalogue
    from .row import Conversion

TOKEN, ENDS_IN_ZERO = 1, 2  # what a cell of IP can be, beside ordinary
_LIMIT = 50_000  # entries of a memo
_LONGEST = 500  # characters of a value that an ordinary row may have where it must be kept
_MOST_TEXT = 4_000_000  # characters of user agents that are kept: listeners choose them
_NO_HASH = "\t-"
_NO_PARTS = {"token": "", "enclosure_url": ""}
_LONGEST_IPV4 = len("255.255.255.255")
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(?:\.(?!$)|$)){4}", re.ASCII)
# All eight groups spelled out: accepted by inet_pton and ipaddress alike, and written alike but for leading zeros.
_FULL_IPV6 = re.compile(r"[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){7}", re.ASCII)


class Unusual(ValueError):
    """This row is not for the fast path."""


class Times(dict[str, str]):
    """From ``created_at`` to the cells ``date`` and ``start-time``; ``outside`` holds those outside the file's day."""

    def __init__(self, day: str | None) -> None:
        super().__init__()
        self.outside: set[str] = set()
        self._day = day

    def __missing__(self, created_at: Any) -> str:
        parsed = parse_created_at(created_at)
        if parsed is None or len(created_at) > _LONGEST:
            raise Unusual
        self[created_at] = cells = f"{parsed[0]}\t{parsed[1]}\t"
        if self._day not in (None, parsed[0]):
            self.outside.add(cells)
        return cells

    def clear(self) -> None:
        super().clear()
        self.outside.clear()


class Addresses(dict[str, str]):
    """From ``ip`` to the cell ``IP``, and to ``Hashed-IP`` after its tab where that is not ``-``.

    ``odd`` holds those cells that are of no address (`TOKEN`), and of an address that ends in zero (`ENDS_IN_ZERO`).
    """

    def __init__(self, *, truncated: bool, key: bytes) -> None:
        super().__init__()
        self.truncated = truncated
        self.odd: dict[str, int] = {}
        self._key = key

    def clear(self) -> None:
        super().clear()
        self.odd.clear()

    def column(self, ips: Sequence[str]) -> tuple[list[str], list[int]]:
        """The cells of many rows, and the places of those that are in ``odd``.

        An ordinary address stands for itself, and is not kept.
        """
        if self.truncated:
            return self._closely(ips)
        short = [ip for ip in ips if len(ip) <= _LONGEST_IPV4 and ":" not in ip]
        long = [ip for ip in ips if ":" in ip]
        try:
            # For IPv4 inet_pton takes what ipaddress does: four numbers, no leading zero.
            packed = b"".join(map(inet_pton, repeat(AF_INET), short))
            # An IPv6 address that comes back the same is as it prints, but for those with the tail of an IPv4 address.
            same = list(map(inet_ntop, repeat(AF_INET6), map(inet_pton, repeat(AF_INET6), long))) == long
        except (OSError, ValueError):
            return self._closely(ips)
        if not same or "." in "".join(long):
            return self._closely(ips)
        cells, odd = list(ips), 0 in packed[3::4]
        if odd:
            self.odd |= dict.fromkeys((ip for ip in short if ip.endswith(".0")), ENDS_IN_ZERO)
        if len(short) + len(long) < len(ips):
            odd = True
            for place, ip in enumerate(ips):
                if len(ip) > _LONGEST_IPV4 and ":" not in ip:  # a token, or an address among blanks
                    cells[place] = self[ip]
        return cells, [place for place, cell in enumerate(cells) if cell in self.odd] if odd else []

    def _closely(self, ips: Sequence[str]) -> tuple[list[str], list[int]]:
        """`column` for addresses that must be looked at one by one."""
        if self.truncated:
            cells = list(map(self.__getitem__, ips))
        else:
            cells = [ip if _IPV4.fullmatch(ip) else self[ip] for ip in ips]
            self.odd |= dict.fromkeys((ip for ip in cells if ip.endswith(".0")), ENDS_IN_ZERO)
        return cells, [place for place, cell in enumerate(cells) if cell in self.odd]

    def __missing__(self, ip: Any) -> str:
        if type(ip) is not str:
            raise Unusual
        text = ip.strip()
        if not text or len(ip) > _LONGEST:
            raise Unusual
        if ":" not in text and "." not in text:
            sent = token(text, self._key)
            cell = f"{sent.ip}\t{sent.hashed_ip}"
            self.odd[cell] = TOKEN
            return cell  # each is as good as new: none is kept
        cell = "" if self.truncated else _plain_ipv6(text)
        if not cell:
            sent = sent_address(text, truncated=self.truncated, key=self._key)
            cell = sent.ip if sent.hashed_ip == "-" else f"{sent.ip}\t{sent.hashed_ip}"
            if not sent.is_address:
                self.odd[cell] = TOKEN
            elif sent.ends_in_zero:
                self.odd[cell] = ENDS_IN_ZERO
        self[ip] = cell
        return cell


def _plain_ipv6(text: str) -> str:
    """An IPv6 address as it prints, or an empty text for what must be looked at closely."""
    if text.startswith((":", "0")):  # inet_ntop writes some of these with an IPv4 tail
        return ""
    try:
        written = inet_ntop(AF_INET6, inet_pton(AF_INET6, text))
    except (OSError, ValueError):
        return ""
    return written if written == text or _FULL_IPV6.fullmatch(text) else ""


class Episodes(dict[str, tuple[str, str, str]]):
    """From ``episode_id`` to the ``podcast_id`` that came with it first, and the cells of both.

    These are the cells around ``url``, and ``episode-guid`` and ``podcast-id``. What is before the URL begins with the
    tab after the address: ``method``, and in front of it ``Hashed-IP`` where that is ``-`` next to every address. A
    token has a hash, so its row wants them without it: `without_hash`. ``unmapped`` holds the episodes that the
    catalogue in use does not know. Where the URL depends on more than the two ids (``per_row``), nothing is kept.
    """

    def __init__(self, conversion: Conversion, *, split_query: bool) -> None:
        super().__init__()
        self.unmapped: set[str] = set()
        self._catalogue: Catalogue | None = conversion.catalogue
        self._template = UrlTemplate(conversion.rules.url)
        self._clean: Callable[[Any], str] = conversion.rules.layout.clean
        self._split_query = split_query
        self._before = "\tGET\t" if conversion.rules.ip == "truncated" else f"{_NO_HASH}\tGET\t"
        self.per_row = not {"podcast_id", "episode_id", *OF_CATALOGUE}.issuperset(self._template.fields)

    def clear(self) -> None:
        super().clear()
        self.unmapped.clear()

    def column(
        self, podcasts: Sequence[Any], episodes: Sequence[Any], rows: Iterable[Any]
    ) -> Iterator[tuple[str, ...]]:
        """The two cells of many rows, as two columns."""
        if not self.per_row:
            cells: list[Any] = list(map(self.get, episodes))
            if not all(cells):
                cells = [self.get(e) or self._first(p, e) for p, e in zip(podcasts, episodes, strict=True)]
            of_podcasts, urls, ids = zip(*cells, strict=True)
            if of_podcasts == podcasts:
                return iter((urls, ids))
        return zip(*map(self.fill, podcasts, episodes, rows), strict=True)

    def _first(self, podcast: Any, episode: Any) -> tuple[str, str, str]:
        self[episode] = cells = podcast, *self.fill(podcast, episode, {})
        return cells

    def fill(self, podcast: Any, episode: Any, row: Mapping[str, Any]) -> tuple[str, str]:
        """The two cells of one row."""
        if type(podcast) is not str or type(episode) is not str or len(podcast) + len(episode) > _LONGEST:
            raise Unusual
        podcast_id, episode_id = identifier(podcast), identifier(episode)
        if not podcast_id and not episode_id:
            raise Unusual
        known = self._catalogue.find(episode_id) if self._catalogue is not None else None
        guid = known.guid if known is not None and known.guid else episode_id
        url = known.url if known is not None else ""
        parts = known.parts() if known is not None else _NO_PARTS
        url = url or self._template.fill({**row, "podcast_id": podcast_id, "episode_id": episode_id, **parts}, guid)
        if len(url) > URL_LIMIT:
            raise Unusual
        if self._split_query:
            stem, _, query = url.partition("?")
            url = f"{stem or '-'}\t{query or '-'}"
        if self._catalogue is not None and not (known is not None and known.guid):
            self.unmapped.add(episode)
        guid, podcast_id = (text if PLAIN.fullmatch(text) else self._clean(text) for text in (guid, podcast_id))
        return f"{self._before}{url}\t", f"{guid}\t{podcast_id}\t"


def without_hash(cells: str) -> str:
    """The cells around a URL, without the ``Hashed-IP`` that an address has."""
    return cells.removeprefix(_NO_HASH)


class Agents(dict[Any, str]):
    """From ``user_agent`` to the last cell, with the tab before it and the newline after it."""

    def __init__(self, clean: Callable[[Any], str]) -> None:
        super().__init__()
        self._clean = clean
        self._text = 0  # characters of all that is kept

    def __missing__(self, user_agent: Any) -> str:
        cell = f"\t{self._clean(user_agent)}\n"
        if type(user_agent) is str and len(user_agent) <= min(_LONGEST, _MOST_TEXT - self._text):
            self._text += len(user_agent)
            self[user_agent] = cell
        return cell

    def clear(self) -> None:
        super().clear()
        self._text = 0


class Whole(dict[int, str]):
    """From ``filesize`` to the cells ``status``, ``bytes``, ``object-size`` and ``byte-range`` of a whole download."""

    def __missing__(self, size: int) -> str:
        self[size] = cells = f"200\t{size}\t{size}\t-\t"
        return cells


class Memos:
    """The memos of one conversion."""

    def __init__(self, conversion: Conversion) -> None:
        rules = conversion.rules
        layout = rules.layout
        self.times = Times(conversion.day.isoformat() if conversion.day is not None else None)
        self.addresses = Addresses(truncated=rules.ip == "truncated", key=conversion.hash_key)
        self.episodes = Episodes(conversion, split_query=layout.format is LogFormat.W3C and layout.columns is None)
        self.agents = Agents(layout.clean)
        self.whole = Whole()

    def trim(self) -> None:
        """Empty the memos when one has grown large."""
        memos: tuple[dict[Any, Any], ...] = (self.times, self.addresses, self.episodes, self.agents, self.whole)
        if max(map(len, (*memos, self.times.outside, self.addresses.odd, self.episodes.unmapped))) > _LIMIT:
            for memo in memos:
                memo.clear()
