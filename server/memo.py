"""What many rows share, worked out once: the cells of a time, an address, an episode, a user agent.

No outside world. Each memo maps a value as it came to its finished cells (each with the tab that follows it), is filled
by the exact rules of `megaphone`, `address`, `catalogue` and `triton`, and is emptied when it has grown large. A value
that asks for more than the ordinary raises `Unusual`: its row goes the exact way of `convert`.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any

from .address import keyed_hash, sent_address
from .megaphone import identifier, parse_created_at
from .triton import URL_LIMIT, LogFormat, UrlTemplate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .catalogue import Catalogue
    from .convert import Conversion

_LIMIT = 50_000  # entries of a memo
# All eight groups spelled out: accepted by inet_pton and ipaddress alike, and written alike but for leading zeros.
_FULL_IPV6 = re.compile(r"[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){7}", re.ASCII)


class Unusual(ValueError):
    """This row is not for the fast path."""


class Times(dict[str, str]):
    """From ``created_at`` to the cells ``date`` and ``start-time``, for instants in the file's day."""

    def __init__(self, day: str | None) -> None:
        super().__init__()
        self._day = day

    def __missing__(self, created_at: Any) -> str:
        parsed = parse_created_at(created_at)
        if parsed is None or self._day not in (None, parsed[0]):
            raise Unusual
        self[created_at] = cells = f"{parsed[0]}\t{parsed[1]}\t"
        return cells


class Addresses(dict[str, str]):
    """From ``ip`` to the cells ``IP`` and ``Hashed-IP``.

    ``tokens`` and ``zeros`` hold those cells that are of no address, and of an address that ends in zero.
    """

    def __init__(self, *, truncated: bool, key: bytes) -> None:
        super().__init__()
        self.tokens: set[str] = set()
        self.zeros: set[str] = set()
        self._truncated = truncated
        self._key = key

    def clear(self) -> None:
        super().clear()
        self.tokens.clear()
        self.zeros.clear()

    def __missing__(self, ip: Any) -> str:
        if type(ip) is not str:
            raise Unusual
        text = ip.strip()
        if not text:
            raise Unusual
        cells = self._ipv6(text) if ":" in text else self._ipv4(text)
        if not cells:
            sent = sent_address(text, truncated=self._truncated, key=self._key)
            cells = f"{sent.ip}\t{sent.hashed_ip}\t"
            if not sent.is_address:
                self.tokens.add(cells)
            if sent.ends_in_zero:
                self.zeros.add(cells)
        self[ip] = cells
        return cells

    def _ipv4(self, text: str) -> str:
        try:
            packed = socket.inet_pton(socket.AF_INET, text)  # takes what ipaddress does: no leading zero, all four
        except (OSError, ValueError):
            return ""
        cut = f"{text[: text.rindex('.')]}.0\t{keyed_hash(text, self._key)}\t" if self._truncated else f"{text}\t-\t"
        if not packed[3]:
            self.zeros.add(cut)
        return cut

    def _ipv6(self, text: str) -> str:
        if self._truncated or text.startswith((":", "0")):  # inet_ntop writes some of these with an IPv4 tail
            return ""
        try:
            written = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text))
        except (OSError, ValueError):
            return ""
        return f"{written}\t-\t" if written == text or _FULL_IPV6.fullmatch(text) else ""


class Episodes(dict[tuple[str, str], tuple[str, str]]):
    """From podcast and episode to the cells ``method`` and ``url``, and the cells ``episode-guid`` and ``podcast-id``.

    ``unmapped`` holds the keys of episodes that the catalogue in use does not know. Where the URL depends on more than
    these two (``per_row``), `fill` makes it anew for every row.
    """

    def __init__(self, conversion: Conversion, *, split_query: bool) -> None:
        super().__init__()
        self.unmapped: set[tuple[str, str]] = set()
        self._catalogue: Catalogue | None = conversion.catalogue
        self._template = UrlTemplate(conversion.rules.url)
        self._clean: Callable[[Any], str] = conversion.rules.layout.clean
        self._split_query = split_query
        self.per_row = not {"podcast_id", "episode_id", "guid"}.issuperset(self._template.fields)

    def clear(self) -> None:
        super().clear()
        self.unmapped.clear()

    def __missing__(self, key: tuple[Any, Any]) -> tuple[str, str]:
        self[key] = cells = self.fill(key, {})
        return cells

    def fill(self, key: tuple[Any, Any], row: Mapping[str, Any]) -> tuple[str, str]:
        """The cells for one row."""
        if type(key[0]) is not str or type(key[1]) is not str:
            raise Unusual
        podcast_id, episode_id = identifier(key[0]), identifier(key[1])
        if not podcast_id and not episode_id:
            raise Unusual
        known = self._catalogue.find(episode_id) if self._catalogue is not None else None
        guid = known.guid if known is not None and known.guid else episode_id
        url = known.url if known is not None else ""
        url = url or self._template.fill({**row, "podcast_id": podcast_id, "episode_id": episode_id}, guid)
        if len(url) > URL_LIMIT:
            raise Unusual
        if self._split_query:
            stem, _, query = url.partition("?")
            url = f"{stem or '-'}\t{query or '-'}"
        if self._catalogue is not None and not (known is not None and known.guid):
            self.unmapped.add(key)
        return f"GET\t{url}\t", f"{self._clean(guid)}\t{self._clean(podcast_id)}\t"


class Agents(dict[Any, str]):
    """From ``user_agent`` to the last cell, with the tab before it and the newline after it."""

    def __init__(self, clean: Callable[[Any], str]) -> None:
        super().__init__()
        self._clean = clean

    def __missing__(self, user_agent: Any) -> str:
        cell = f"\t{self._clean(user_agent)}\n"
        if type(user_agent) is str:
            self[user_agent] = cell
        return cell


class Memos:
    """The memos of one conversion."""

    def __init__(self, conversion: Conversion) -> None:
        rules = conversion.rules
        layout = rules.layout
        self.times = Times(conversion.day.isoformat() if conversion.day is not None else None)
        self.addresses = Addresses(truncated=rules.ip == "truncated", key=conversion.hash_key)
        self.episodes = Episodes(conversion, split_query=layout.format is LogFormat.W3C and layout.columns is None)
        self.agents = Agents(layout.clean)

    def trim(self) -> None:
        """Empty the memos that have grown large."""
        memos: tuple[dict[Any, Any], ...] = (self.times, self.addresses, self.episodes, self.agents)
        for memo in memos:
            if len(memo) > _LIMIT:
                memo.clear()
        if len(self.episodes.unmapped) > _LIMIT:  # with a URL made for every row the memo itself stays empty
            self.episodes.clear()
