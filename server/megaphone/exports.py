"""Megaphone's words: a day's export, which objects are exports, and when a day is final.

What is specific to one kind of export (the name of its objects, its fields, its finality rule) is an `ExportKind`;
there is one today, ``METRICS``. No outside world, no clock: ``now`` is passed in.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


# Days beyond these are none that anybody delivers; without the margins, arithmetic with them would overflow.
_FIRST_YEAR, _LAST_YEAR = 1970, 8999


def calendar_day(text: str) -> date | None:
    """Return the day that ``YYYY-MM-DD`` spells, or None when it is none or too far away to reckon with."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if _FIRST_YEAR <= day.year <= _LAST_YEAR and text == day.isoformat() else None


def calendar_instant(at: datetime) -> datetime:
    """Return an instant from outside in UTC.

    Raises:
        ValueError: it is too far away to reckon with.
    """
    if not _FIRST_YEAR <= at.year <= _LAST_YEAR:
        raise ValueError(f"the year {at.year} cannot be right")
    return at.astimezone(UTC)


def moment(seconds: float) -> datetime:
    """Return a time of the file system (seconds since 1970), which may be any number, as an instant of the calendar."""
    return datetime.fromtimestamp(max(0, min(seconds, _LAST_MOMENT)), UTC)


_LAST_MOMENT = datetime(_LAST_YEAR, 12, 31, tzinfo=UTC).timestamp()


class ExportKind(NamedTuple):
    """One of Megaphone's export services.

    ``key_pattern`` matches an object's name after the bucket prefix; its group ``day`` is the UTC day as YYYY-MM-DD.
    ``file_name`` is that name for people; ``fields`` are the row's fields in Megaphone's order.
    """

    name: str
    key_pattern: str
    file_name: str
    fields: tuple[str, ...]

    def day_of(self, name: str) -> date | None:
        """Return the UTC day in an object's name, or None when it is not an export of this kind."""
        match = re.fullmatch(self.key_pattern, name, re.ASCII)
        if match is None:
            return None
        return calendar_day(match["day"])


# Megaphone, "Metrics Export Service": object name and schema.
METRICS = ExportKind(
    name="metrics",
    key_pattern=r"metrics-day-(?P<day>\d{4}-\d{2}-\d{2})\.json\.gz",
    file_name="metrics-day-YYYY-MM-DD.json.gz",
    fields=(
        "country", "dma_name", "normalized_user_agent", "city", "ip", "created_at", "podcast_id", "source", "filesize",
        "bytes_sent", "seconds_downloaded", "duration", "blacklisted_ip", "episode_id", "blacklisted_ua", "id",
        "region", "user_agent",
    ),
)  # fmt: skip


class DayExport(NamedTuple):
    """One version of one day's object, as a listing shows it.

    ``key`` is the full key (with the bucket prefix) or the file's name; ``etag`` is opaque and without quotes;
    ``size`` is the stored size in bytes; ``last_modified`` is in UTC.
    """

    day: date
    key: str
    etag: str
    size: int
    last_modified: datetime


# What Megaphone's other services deliver into the same bucket: how a name begins, and what an operator calls it.
_OTHER_EXPORTS = {
    "delivery-v2-day": "Delivery exports V2",
    "_finalized_delivery": "Delivery exports V2",
    "impressions-v2-day": "Impressions exports V2",
    "_finalized_impressions": "Impressions exports V2",
    "impression-day": "Impression exports",
}
_LONGEST_EXAMPLE = 80


class Others(NamedTuple):
    """What a place holds beside the exports: how many objects or files, what they are called and what they look like.

    ``wanted`` is how an export is named, ``example`` another name that is there; ``looks`` are Megaphone's other
    exports among them. Where there is no export, ``elsewhere`` is a place close by that has some, as ``export.url``
    names it, or ''.
    """

    wanted: str = ""
    objects: int = 0
    example: str = ""
    looks: tuple[str, ...] = ()
    elsewhere: str = ""

    def and_one(self, name: str) -> Others:
        """Count one more name; those that begin with a dot, and a folder's own empty object, are nothing."""
        if not name or name.startswith("."):
            return self
        look = next((look for begin, look in _OTHER_EXPORTS.items() if name.startswith(begin)), None)
        looks = self.looks if look is None or look in self.looks else (*self.looks, look)
        return self._replace(objects=self.objects + 1, example=self.example or _printable(name), looks=looks)

    def sentence(self, place: str) -> str:
        """Return that ``place`` has no export, and what it has instead."""
        number = {0: "nothing", 1: "one object"}.get(self.objects, f"{self.objects} objects")
        here = f"there {'are' if self.objects > 1 else 'is'} {number} at {place}"
        if self.objects:
            example = f"{'it' if self.objects == 1 else 'one of them'} is {self.example}"
            seen = f", but {' and '.join(self.looks)}" if self.looks else f"; {example}"
            here = f"{here}, none named {self.wanted}{seen}"
        return f"{here}; did you mean {self.elsewhere}?" if self.elsewhere else here


def _printable(name: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in name)
    return text if len(text) <= _LONGEST_EXAMPLE else f"{text[: _LONGEST_EXAMPLE - 3]}..."


class Listing(NamedTuple):
    """The exports that are there, and the time (UTC) by the source's ``own_clock``, or by the local one.

    ``others`` is what else is there.
    """

    exports: Mapping[date, DayExport]
    now: datetime
    own_clock: bool = True
    others: Others = Others()


class FinalityRule(NamedTuple):
    """When a day counts as final (Megaphone: by 04:30Z of the next day; measured: the clock alone is not enough)."""

    final_at: time = time(4, 30)
    settle: timedelta = timedelta(minutes=65)

    def final_time(self, day: date) -> datetime:
        """Return the earliest instant at which ``day`` can be final."""
        return datetime.combine(day + timedelta(days=1), self.final_at, UTC)

    def state(self, day: date, export: DayExport | None, now: datetime) -> str:
        """Return ``open``, ``missing``, ``stale``, ``settling`` or ``due`` (final: it can be converted).

        ``now`` is by the source's clock, as ``last_modified`` is: ours may be wrong.
        """
        if now < self.final_time(day):
            return "open"
        if export is None:
            return "missing"
        if export.last_modified < start_of(day + timedelta(days=1)):
            return "stale"
        if now - export.last_modified < self.settle:
            return "settling"
        return "due"


def start_of(day: date) -> datetime:
    """Return 00:00:00 UTC of a day."""
    return datetime.combine(day, time(), UTC)
