"""One export row, one log line: the exact rule for every column, filter and rejection.

This is the reference: short, slow and right. the kernel (for ordinary rows) must give the same outcome for
every row, and a differential test holds it to that. No outside world, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..megaphone.exports import ExportRow
from ..triton import DEFAULT_URL, URL_LIMIT, Layout, LogLine, UrlTemplate
from .address import sent_address
from .tally import FilterReason, RejectReason, RowRejected

if TYPE_CHECKING:
    from datetime import date

    from ..episodes.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class LogRules:
    """How rows become lines: ``[log]`` without the names of files and without secrets.

    It is kept with every publication (`as_json`), so that a day's late rows are judged by the rules of its first.
    """

    layout: Layout = field(default_factory=Layout)
    rows: str = "not-blacklisted"
    ip: str = "full"
    partial_status: int = 206
    bytes: str = "clamped"
    url: str = DEFAULT_URL

    def as_json(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {
            "layout": self.layout.as_json(),
            "rows": self.rows,
            "ip": self.ip,
            "partial_status": self.partial_status,
            "bytes": self.bytes,
            "url": self.url,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LogRules:
        """The rules that `as_json` gave."""
        return cls(**{**data, "layout": Layout.from_json(data["layout"])})


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a day's rows are converted with: the rules, the address key (32 bytes), the catalogue, the file's day.

    ``day`` is None for an export whose name has no day in it; then no row is outside its day.
    """

    rules: LogRules
    hash_key: bytes
    catalogue: Catalogue | None = None
    day: date | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a row came to when it was not rejected: a line, or the reason why it was filtered.

    ``line`` is without its newline and empty for a filtered row; ``metric_id`` is the cell of ``x-metric-id``, by
    which the row is known once it is published; the flags count for the tally where there is a line.
    """

    id: str
    podcast_id: str
    metric_id: str
    line: str
    filtered: FilterReason | None
    reporting: bool
    clamped: bool
    is_address: bool
    ends_in_zero: bool
    outside_day: bool
    unmapped: bool
    created_at: str


class RowConverter:
    """Converts rows one at a time."""

    def __init__(self, conversion: Conversion) -> None:
        rules = conversion.rules
        self._conversion = conversion
        self._rules = rules
        self._template = UrlTemplate(rules.url)
        self._id_cell = rules.layout.id_cell
        self._day = conversion.day.isoformat() if conversion.day is not None else None

    def convert(self, raw: bytes) -> Outcome:
        """One line of an export.

        Duplicates, rows sent before and rows that are too fresh are not known to a single row: `day` sees to them.

        Raises:
            RowRejected: with the first reason that applies.
        """
        row = ExportRow.parse(raw)
        rules = self._rules
        episode = self._conversion.catalogue.find(row.episode_id) if self._conversion.catalogue is not None else None
        guid = episode.guid if episode is not None and episode.guid else row.episode_id
        known = row.fields | {"podcast_id": row.podcast_id, "episode_id": row.episode_id}
        known |= {"token": "", "enclosure_url": ""} if episode is None else episode.parts()
        url = episode.url if episode is not None and episode.url else self._template.fill(known, guid)
        if len(url) > URL_LIMIT:
            raise RowRejected(RejectReason.URL_TOO_LONG)
        address = sent_address(row.ip, truncated=rules.ip == "truncated", key=self._conversion.hash_key)
        clamped = rules.bytes == "clamped" and row.bytes_sent > row.filesize
        sent = row.filesize if clamped else row.bytes_sent
        partial = rules.partial_status == 206 and row.bytes_sent < row.filesize
        filtered = self.filter_reason(row)
        line = LogLine(
            date=row.date,
            start_time=row.time,
            ip=address.ip,
            hashed_ip=address.hashed_ip,
            url=url,
            status="206" if partial else "200",
            bytes=str(sent),
            object_size=str(row.filesize),
            byte_range=f"0-{sent - 1}" if partial else "-",
            episode_guid=guid,
            podcast_id=row.podcast_id,
            metric_id=row.id,
            user_agent=row.fields.get("user_agent"),
        )
        return Outcome(
            id=row.id,
            podcast_id=row.podcast_id,
            metric_id=self._id_cell(row.id),
            line="" if filtered is not None else rules.layout.render(line, row.fields),
            filtered=filtered,
            reporting=row.reporting,
            clamped=clamped,
            is_address=address.is_address,
            ends_in_zero=address.ends_in_zero,
            outside_day=self._day is not None and row.date != self._day,
            unmapped=self._conversion.catalogue is not None and not (episode is not None and episode.guid),
            created_at=f"{row.date} {row.time}",
        )

    def filter_reason(self, row: ExportRow) -> FilterReason | None:
        """Why the row is left out by the ``rows`` setting, or because nothing was transferred."""
        if row.bytes_sent == 0:
            return FilterReason.NO_BYTES
        if self._rules.rows == "all":
            return None
        if row.blacklisted_ip:
            return FilterReason.BLACKLISTED_IP
        if row.blacklisted_ua:
            return FilterReason.BLACKLISTED_UA
        return FilterReason.SHORT if self._rules.rows == "reporting" and row.short else None
