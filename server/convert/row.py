"""One export row, one log line: the exact rule for every column, filter and rejection.

This is the reference: short, slow and exact. The kernel (the fast path for ordinary rows) must give the same outcome
for every row; a differential test enforces that. Pure.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple

from ..triton import URL_LIMIT, LogLine, UrlTemplate
from .export_row import ExportRow, derived_id, subkey
from .tally import FilterReason, RejectReason, RowRejected

if TYPE_CHECKING:
    from .conversion import Conversion


_WITH_PORT = re.compile(r"(?:([\d.]+)|\[([^\[\]]*:[^\[\]]*)\]):(\d{1,5})", re.ASCII)
# What is longer is a token. Both readers of addresses are lost in megabytes of colons or dots: in time, and in memory.
_LONGEST_ADDRESS = len("0000:0000:0000:0000:0000:ffff:255.255.255.255")
_LONGEST_WITH_PORT = _LONGEST_ADDRESS + len("[]:65535")


class Outcome(NamedTuple):
    """What a row that was not rejected became: a line, or the reason why it was filtered.

    ``line`` has no newline, and is empty for a filtered row; the flags count in the tally only if there is a line.
    ``derived``: the row has no id of its own, and ``id`` comes from its number among its equals.
    ``created_at`` is ``YYYY-MM-DD HH:MM:SS`` in UTC.
    """

    id: str
    derived: bool
    podcast_id: str
    line: str
    filtered: FilterReason | None
    reporting: bool
    clamped: bool
    is_address: bool
    readdressed: bool
    ends_in_zero: bool
    outside_day: bool
    unmapped: bool
    fallback_url: bool
    unmatched: bool
    created_at: str


class RowConverter:
    """Converts rows one at a time."""

    def __init__(self, conversion: Conversion) -> None:
        rules = conversion.rules
        self._conversion = conversion
        self._rules = rules
        self._template = UrlTemplate(rules.url)
        self._day = conversion.day.isoformat() if conversion.day is not None else None
        self._kind = rules.export_kind
        self._subkey = subkey(conversion.hash_key) if self._kind.identity else b""

    def convert(self, raw: bytes, number: int = 0) -> Outcome:
        """Convert one line of an export; ``number`` counts the equals of a row without ``id`` that became lines before.

        A single row cannot show that it is a duplicate, was sent before or is too fresh: `block` checks that.

        Raises:
            RowRejected: with the first reason that applies.
        """
        row = ExportRow.parse(raw, self._kind)
        row_id = row.id or derived_id(self._subkey, row.identity, number)
        rules = self._rules
        episode = self._conversion.catalogue.find(row.episode_id) if self._conversion.catalogue is not None else None
        guid = episode.guid if episode is not None and episode.guid else row.episode_id
        known = row.fields | {"podcast_id": row.podcast_id, "episode_id": row.episode_id}
        known |= {"token": "", "enclosure_url": ""} if episode is None else episode.parts()
        # The operator's own URL wins over the template, whatever an RSS feed says.
        if episode is not None and episode.url:
            url, fallback = episode.url, False
        else:
            url, fallback = self._template.fill(known, guid)
        if len(url) > URL_LIMIT:
            raise RowRejected(RejectReason.URL_TOO_LONG)
        address = sent_address(row.ip, truncated=rules.ip == "truncated", key=self._conversion.hash_key)
        sent, size, clamped, partial = "-", "-", False, False
        if row.filesize is not None and row.bytes_sent is not None:
            clamped = rules.bytes == "clamped" and row.bytes_sent > row.filesize
            sent, size = str(row.filesize if clamped else row.bytes_sent), str(row.filesize)
            # Judged by the bytes as received: a clamped row was downloaded whole.
            partial = rules.partial_status == 206 and row.bytes_sent < row.filesize
        elif rules.object_size == "rss" and episode is not None and episode.length:
            size = episode.length
        filtered = self.filter_reason(row)
        unmapped = self._conversion.catalogue is not None and not (episode is not None and episode.guid)
        line = LogLine(
            date=row.date,
            start_time=row.time,
            ip=address.ip,
            hashed_ip=address.hashed_ip,
            url=url,
            status="206" if partial else "200",
            bytes=sent,
            object_size=size,
            byte_range=f"0-{int(sent) - 1}" if partial else "-",
            episode_guid=guid,
            podcast_id=row.podcast_id,
            metric_id=row_id,
            user_agent=row.fields.get("user_agent"),
        )
        return Outcome(
            id=row_id,
            derived=not row.id,
            podcast_id=row.podcast_id,
            line="" if filtered is not None else rules.layout.render(line, row.fields),
            filtered=filtered,
            reporting=row.reporting,
            clamped=clamped,
            is_address=address.is_address,
            readdressed=address.readdressed,
            ends_in_zero=address.ends_in_zero,
            outside_day=self._day is not None and row.date != self._day,
            unmapped=unmapped,
            fallback_url=fallback,
            unmatched=self._conversion.catalogue is not None and (unmapped or fallback),
            created_at=f"{row.date} {row.time}",
        )

    def filter_reason(self, row: ExportRow) -> FilterReason | None:
        """Return why the row is left out (not a download, no bytes, or the ``rows`` setting), or None."""
        if row.play:
            return FilterReason.PLAY
        if row.bytes_sent == 0:
            return FilterReason.NO_BYTES
        if self._rules.rows == "all":
            return None
        if row.blacklisted_ip:
            return FilterReason.BLACKLISTED_IP
        if row.blacklisted_ua:
            return FilterReason.BLACKLISTED_UA
        return FilterReason.SHORT if self._rules.rows == "reporting" and row.short else None


class SentAddress(NamedTuple):
    """The two columns for an address, ``IP`` and ``Hashed-IP``, and what kind of value it was.

    ``is_address`` is False for a token (what Megaphone sends if addresses are hashed); ``readdressed`` is True for an
    address that came with a port or in a list; ``ends_in_zero`` is True for an IPv4 address whose last octet is 0,
    which may have been truncated before it reached us.
    """

    ip: str
    hashed_ip: str
    is_address: bool = True
    readdressed: bool = False
    ends_in_zero: bool = False


def sent_address(text: str, *, truncated: bool, key: bytes) -> SentAddress:
    """Return what is sent for the address (or token) ``text``; surrounding blanks are ignored.

    The hash is the lower-case hex HMAC-SHA-256 under ``key`` of the full IPv4 address, of the first address of the
    IPv6 /64, or of the token.
    """
    text = text.strip()
    address = listener_address(text)
    readdressed = address is None
    if address is None:
        address = parse_client(text)
    if address is None:
        return SentAddress("-", keyed_hash(text, key), is_address=False)
    full, hashed = str(address), "-"
    zero = isinstance(address, IPv4Address) and address.packed[3] == 0
    if truncated and isinstance(address, IPv4Address):
        full, hashed = str(IPv4Address(int(address) & 0xFFFFFF00)), keyed_hash(full, key)
    elif truncated:
        # Hashed by the /64: within it, a device changes its own address every day (RFC 8981).
        hashed = keyed_hash(str(IPv6Address(int(address) >> 64 << 64)), key)
        full = str(IPv6Address(int(address) >> 80 << 80))
    return SentAddress(full, hashed, readdressed=readdressed, ends_in_zero=zero)


def parse_client(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address in a text like ``203.0.113.9:5678, 198.51.100.2``, the first if there are several.

    By the convention of X-Forwarded-For the first is the client's. None for a token: each part must be an address.
    """
    if "," not in text and ":" not in text:
        return None
    first, begin = None, 0
    while begin <= len(text):  # part by part: a list may have two million
        end = text.find(",", begin)
        end = len(text) if end < 0 else end
        part = text[begin:end].strip()
        with_port = _WITH_PORT.fullmatch(part) if len(part) <= _LONGEST_WITH_PORT else None
        if with_port is not None and int(with_port[3]) > 65535:
            return None
        address = listener_address((with_port[1] or with_port[2]) if with_port is not None else part)
        if address is None:
            return None
        first, begin = first or address, end + 1
    return first


def listener_address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address in ``text`` (for an IPv4-mapped IPv6 address, its IPv4 address), or None for a token."""
    if len(text) > _LONGEST_ADDRESS:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def keyed_hash(text: str, key: bytes) -> str:
    """Return the HMAC-SHA-256 of a text under the site's secret, as 64 lower-case hex digits."""
    import hmac  # only here: it loads OpenSSL

    return hmac.digest(key, text.encode(), "sha256").hex()
