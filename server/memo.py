"""What many rows share, worked out once: the cells of a time, an address, an episode, a user agent.

No outside world. Each memo maps a value as it came (a string) to its finished cells, is filled by the exact rules of
`megaphone`, `address`, `catalogue` and `triton`, and is emptied when it has grown large. A value that asks for more
than the ordinary raises `Unusual`: its row goes the exact way of `convert`.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any

from .address import keyed_hash, sent_address
from .megaphone import identifier, parse_created_at
from .triton import URL_LIMIT, LogFormat, UrlTemplate

if TYPE_CHECKING:
    from .convert import Conversion

TOKEN, ENDS_IN_ZERO = 1, 2  # what an address can be, beside ordinary
_LIMIT = 50_000  # entries
# All eight groups spelled out: accepted by inet_pton and ipaddress alike, and never written with an IPv4 tail.
_FULL_IPV6 = re.compile(r"(?!0{1,4}:)[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4}){7}", re.ASCII)


class Unusual(ValueError):
    """This row is not for the fast path."""


class Memos:
    """The memos of one conversion."""

    def __init__(self, conversion: Conversion, *, split_query: bool) -> None:
        rules = conversion.rules
        self.times: dict[str, str] = {}
        self.addresses: dict[str, tuple[str, int]] = {}
        self.episodes: dict[tuple[str, str], tuple[str, str, bool]] = {}
        self.agents: dict[Any, str] = {}
        self._day = conversion.day.isoformat() if conversion.day is not None else None
        self._key = conversion.hash_key
        self._truncated = rules.ip == "truncated"
        self._catalogue = conversion.catalogue
        self._clean = rules.layout.clean
        self._template = UrlTemplate(rules.url)
        self._split_query = split_query
        # A URL that depends on more than the two ids is made anew for every row.
        self.url_per_row = not {"podcast_id", "episode_id", "guid"}.issuperset(self._template.fields)

    def trim(self) -> None:
        """Empty the memos that have grown large."""
        for memo in (self.times, self.addresses, self.episodes, self.agents):
            if len(memo) > _LIMIT:
                memo.clear()

    def time(self, created_at: Any) -> str:
        """The cells ``date`` and ``start-time``, each with the tab after it, of an instant in the file's day."""
        parsed = parse_created_at(created_at)
        if parsed is None or self._day not in (None, parsed[0]):
            raise Unusual
        self.times[created_at] = cells = f"{parsed[0]}\t{parsed[1]}\t"
        return cells

    def address(self, ip: Any) -> tuple[str, int]:
        """The cells ``IP`` and ``Hashed-IP``, each with its tab, and what the address is."""
        if type(ip) is not str:
            raise Unusual
        text = ip.strip()
        if not text:
            raise Unusual
        cells = _ipv4(text, self._key if self._truncated else None)
        if cells is None and not self._truncated and _FULL_IPV6.fullmatch(text):
            packed = socket.inet_pton(socket.AF_INET6, text)
            cells = f"{socket.inet_ntop(socket.AF_INET6, packed)}\t-\t", 0
        if cells is None:
            sent = sent_address(text, truncated=self._truncated, key=self._key)
            cells = (
                f"{sent.ip}\t{sent.hashed_ip}\t",
                ENDS_IN_ZERO if sent.ends_in_zero else 0 if sent.is_address else TOKEN,
            )
        self.addresses[ip] = cells
        return cells

    def episode(self, podcast: Any, episode: Any, row: dict[str, Any]) -> tuple[str, str, bool]:
        """The cells of the URL, then of ``episode-guid`` and ``podcast-id``, with tabs; and whether it is unmapped."""
        if type(podcast) is not str or type(episode) is not str:
            raise Unusual
        podcast_id, episode_id = identifier(podcast), identifier(episode)
        if not podcast_id and not episode_id:
            raise Unusual
        known = self._catalogue.find(episode_id) if self._catalogue is not None else None
        guid = known.guid if known is not None and known.guid else episode_id
        url = known.url if known is not None else ""
        url = url or self._template.fill(row | {"podcast_id": podcast_id, "episode_id": episode_id}, guid)
        if len(url) > URL_LIMIT:
            raise Unusual
        if self._split_query:
            stem, _, query = url.partition("?")
            url = f"{stem or '-'}\t{query or '-'}"
        unmapped = self._catalogue is not None and not (known is not None and known.guid)
        cells = f"{url}\t", f"{self._clean(guid)}\t{self._clean(podcast_id)}\t", unmapped
        if not self.url_per_row:
            self.episodes[podcast, episode] = cells
        return cells

    def agent(self, user_agent: Any) -> str:
        """The cell ``user-agent``."""
        cell = self._clean(user_agent)
        if user_agent is None or type(user_agent) is str:
            self.agents[user_agent] = cell
        return cell


def _ipv4(text: str, key: bytes | None) -> tuple[str, int] | None:
    """The cells of an IPv4 address (truncated and hashed if a key is given), or None for all else."""
    try:
        packed = socket.inet_pton(socket.AF_INET, text)  # accepts what ipaddress does: four decimals, no leading zero
    except (OSError, ValueError):
        return None
    kind = 0 if packed[3] else ENDS_IN_ZERO
    if key is None:
        return f"{text}\t-\t", kind
    return f"{text[: text.rindex('.')]}.0\t{keyed_hash(text, key)}\t", kind


def splits_query(conversion: Conversion) -> bool:
    """Whether the default columns hold the URL as stem and query."""
    layout = conversion.rules.layout
    return layout.format is LogFormat.W3C and layout.columns is None
