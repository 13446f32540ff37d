"""Megaphone's words: a day's export, which objects are exports, and when a day is final.

What is specific to one kind of export (the names of its objects, its finality, its rows) is an `ExportKind`, of which
the configuration names one. Pure: ``now`` is passed in.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


# Nobody delivers days outside these years; the margins keep arithmetic from overflowing.
_FIRST_YEAR, _LAST_YEAR = 1970, 8999


def calendar_day(text: str) -> date | None:
    """Return the day that ``YYYY-MM-DD`` stands for, or None if it is not one, or too far away to calculate with."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if _FIRST_YEAR <= day.year <= _LAST_YEAR and text == day.isoformat() else None


def calendar_instant(at: datetime) -> datetime:
    """Return an instant from outside in UTC.

    Raises:
        ValueError: it is too far away to calculate with.
    """
    if not _FIRST_YEAR <= at.year <= _LAST_YEAR:
        raise ValueError(f"the year {at.year} cannot be right")
    return at.astimezone(UTC)


def moment(seconds: float) -> datetime:
    """Return a file system's time (seconds since 1970), which may be any number, as an instant within the calendar."""
    return datetime.fromtimestamp(max(0, min(seconds, _LAST_MOMENT)), UTC)


_LAST_MOMENT = datetime(_LAST_YEAR, 12, 31, tzinfo=UTC).timestamp()


class ExportKind(NamedTuple):
    """One of Megaphone's export services: everything in which it differs from the others.

    ``label`` is what people call its exports. ``key_pattern`` matches an object's name after the bucket prefix; its
    group ``day`` is the UTC day as YYYY-MM-DD. ``file_name`` shows people what that name looks like; ``begins`` are the
    beginnings of the names of everything that the service writes.

    Its finality: ``final_at`` is when Megaphone says that a day is final, on the following day. ``marker_pattern``
    matches the objects that prove it (group ``day``, with ``-`` or ``_``); '' if only the clock tells.

    Its rows: ``fields`` may be named in a column or a URL. ``identity`` are the fields that tell a row without ``id``
    from others; empty if every row must have one. ``delivery_types`` are the two values of ``delivery_type``: of rows
    that are sent, and of rows that are left out; None if there is no such field. ``bytes_optional``: a row may have
    neither ``filesize`` nor ``bytes_sent``, and no ``seconds_downloaded``.

    ``unknown`` says what nobody outside Megaphone knows about it, and ``question`` what Triton has to agree to until
    then; both are '' if everything is known. ``hours`` says when its days are final, with ``{final_at}`` in it.
    """

    name: str
    label: str
    key_pattern: str
    file_name: str
    begins: tuple[str, ...]
    fields: tuple[str, ...]
    final_at: time
    marker_pattern: str = ""
    identity: tuple[str, ...] = ()
    delivery_types: tuple[str, str] | None = None
    bytes_optional: bool = False
    unknown: str = ""
    question: str = ""
    hours: str = ""

    def day_of(self, name: str) -> date | None:
        """Return the UTC day in an object's name, or None if it is not an export of this kind."""
        match = re.fullmatch(self.key_pattern, name, re.ASCII)
        if match is None:
            return None
        return calendar_day(match["day"])

    def marked_day(self, name: str) -> date | None:
        """Return the UTC day whose export an object of this name proves final, or None."""
        match = re.fullmatch(self.marker_pattern, name, re.ASCII | re.DOTALL) if self.marker_pattern else None
        return None if match is None else calendar_day(match["day"].replace("_", "-"))


# Megaphone, "Metrics Export Service": object name and schema.
METRICS = ExportKind(
    name="metrics",
    label="Metrics exports",
    key_pattern=r"metrics-day-(?P<day>\d{4}-\d{2}-\d{2})\.json\.gz",
    file_name="metrics-day-YYYY-MM-DD.json.gz",
    begins=("metrics-day",),
    fields=(
        "country", "dma_name", "normalized_user_agent", "city", "ip", "created_at", "podcast_id", "source", "filesize",
        "bytes_sent", "seconds_downloaded", "duration", "blacklisted_ip", "episode_id", "blacklisted_ua", "id",
        "region", "user_agent",
    ),
    final_at=time(4, 30),
    hours="at Megaphone at {final_at} UTC on the next day at the earliest",
)  # fmt: skip

# Megaphone, "Delivery & Impressions Export V2", as far as it is public: names, finality, the marker. The fields are
# those that public programs read; nobody outside Megaphone knows which others there are.
DELIVERY_V2 = ExportKind(
    name="delivery-v2",
    label="Delivery exports V2",
    key_pattern=r"delivery-v2-day-(?P<day>\d{4}-\d{2}-\d{2})\.json\.gz",
    file_name="delivery-v2-day-YYYY-MM-DD.json.gz",
    begins=("delivery-v2-day", "_finalized_delivery"),
    fields=(*METRICS.fields, "delivery_type", "media_type"),
    final_at=time(11, 0),
    marker_pattern=r"_finalized_delivery_(?P<day>\d{4}(?P<between>[-_])\d{2}(?P=between)\d{2})(?:\D.*)?",
    identity=("created_at", "podcast_id", "episode_id", "ip", "user_agent", "delivery_type"),
    delivery_types=("download", "play"),
    bytes_optional=True,
    unknown=(
        "which fields Delivery exports V2 have is not public: as far as it is known, their rows have no bytes and no "
        "sizes, and Triton has not agreed to lines without them"
    ),
    question="do lines count whose `bytes`, `object-size` and `byte-range` are `-`, with status 200 (`agreed = true`)?",
    hours="once Megaphone marks it, by {final_at} UTC on the next day or about an hour later",
)

KINDS = {kind.name: kind for kind in (METRICS, DELIVERY_V2)}
EXPORT_FIELDS = DELIVERY_V2.fields  # those of every kind


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


# What Megaphone delivers into one bucket: how a name begins, and what an operator calls it.
_EXPORTS = {begin: kind.label for kind in KINDS.values() for begin in kind.begins} | {
    "impressions-v2-day": "Impressions exports V2",
    "_finalized_impressions": "Impressions exports V2",
    "impression-day": "Impression exports",
}
_LONGEST_EXAMPLE = 80


class Others(NamedTuple):
    """What a place holds besides the exports: how many objects or files, what they are called and what they look like.

    ``wanted`` is how an export is named, ``example`` one of the other names; ``looks`` are the labels of Megaphone's
    other exports among them, and ``kind`` is the `ExportKind` of those that can be read, or ''. If there is no export,
    ``elsewhere`` is a nearby place that has some, written as in ``export.url``, or ''.
    """

    wanted: str = ""
    objects: int = 0
    example: str = ""
    looks: tuple[str, ...] = ()
    elsewhere: str = ""
    kind: str = ""

    def and_one(self, name: str) -> Others:
        """Count one more name; those that begin with a dot, and a folder's own empty object, do not count."""
        if not name or name.startswith("."):
            return self
        look = next((look for begin, look in _EXPORTS.items() if name.startswith(begin)), None)
        kind = next((kind for kind in KINDS.values() if kind.day_of(name) is not None), None)
        own = look is not None and look == next((k.label for k in KINDS.values() if k.file_name == self.wanted), None)
        looks = self.looks if look is None or own or look in self.looks else (*self.looks, look)
        return self._replace(
            objects=self.objects + 1,
            example=self.example or _printable(name),
            looks=looks,
            kind=self.kind if kind is None else kind.name,
        )

    @property
    def cure(self) -> str:
        """The setting to change, if what is nearby shows it; else ''."""
        if self.elsewhere:
            return f'set export.url = "{self.elsewhere}"'
        return f'set export.kind = "{self.kind}"' if self.kind else ""

    def sentence(self, place: str) -> str:
        """Return the sentence that ``place`` has no export, and what it has instead."""
        number = {0: "nothing", 1: "one object"}.get(self.objects, f"{self.objects} objects")
        here = f"there {'are' if self.objects > 1 else 'is'} {number} at {place}"
        if self.objects:
            example = f"{'it' if self.objects == 1 else 'one of them'} is {self.example}"
            seen = f", but {' and '.join(self.looks)}" if self.looks else f"; {example}"
            here = f"{here}, {'not' if self.objects == 1 else 'none'} named {self.wanted}{seen}"
        return f"{here}; did you mean {self.elsewhere}?" if self.elsewhere else here


def _printable(name: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in name)
    return text if len(text) <= _LONGEST_EXAMPLE else f"{text[: _LONGEST_EXAMPLE - 3]}..."


class Listing(NamedTuple):
    """The exports that are there, and the time (UTC) by the source's ``own_clock``, or by the local one.

    ``others`` is what else is there; ``markers`` are, by day, when the newest proof that it is final was written.
    """

    exports: Mapping[date, DayExport]
    now: datetime
    own_clock: bool = True
    others: Others = Others()
    markers: Mapping[date, datetime] = MappingProxyType({})


# A store has several clocks, and the one that tells the time of day tells only whole seconds.
CLOCKS_APART = timedelta(seconds=10)


class FinalityRule(NamedTuple):
    """When a day counts as final (measured: the clock alone is not enough).

    ``marked``: only Megaphone's marker proves it, and after ``final_at`` its absence is worth mentioning.
    """

    final_at: time = METRICS.final_at
    settle: timedelta = timedelta(minutes=65)
    marked: bool = False

    def final_time(self, day: date) -> datetime:
        """Return the instant from which ``day`` can be final; for ``marked`` kinds, when Megaphone says it will be."""
        return datetime.combine(day + timedelta(days=1), self.final_at, UTC)

    def state(self, day: date, export: DayExport | None, now: datetime, marker: datetime | None = None) -> str:
        """Return ``open``, ``missing``, ``stale``, ``unmarked``, ``settling`` or ``due`` (final: it can be converted).

        ``now`` is by the source's clock, as are ``last_modified`` and ``marker``, the newest proof: ours may be wrong.
        """
        over = start_of(day + timedelta(days=1))
        # Nothing that was written before the day was over can prove that it is complete.
        proven = self.marked and marker is not None and marker >= over
        if not proven and now < self.final_time(day):
            return "open"
        if export is None:
            return "missing" if now >= self.final_time(day) else "open"
        # A marker dated tomorrow would prove every version until then: a copied one may have any date.
        if proven and marker is not None and export.last_modified <= marker <= now + CLOCKS_APART:
            return "due"
        if export.last_modified < over:
            return "stale"
        if self.marked and not proven:
            return "unmarked"
        if now - export.last_modified < self.settle:
            return "settling"
        return "due"


def start_of(day: date) -> datetime:
    """Return 00:00:00 UTC of a day."""
    return datetime.combine(day, time(), UTC)
