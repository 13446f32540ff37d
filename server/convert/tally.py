"""The tally of a conversion: every row is a line, or filtered, or rejected, each with its reason.

Pure. The promise: ``rows == lines + filtered + rejected`` (`Tally.balanced`).
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from itertools import compress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class RejectReason(StrEnum):
    """Why a row cannot become a line, in the order the reasons are checked."""

    MALFORMED_JSON = "malformed_json"
    NOT_AN_OBJECT = "not_an_object"
    NO_ID = "no_id"
    BAD_CREATED_AT = "bad_created_at"
    NO_IP = "no_ip"
    NO_EPISODE = "no_episode"
    BAD_DELIVERY_TYPE = "bad_delivery_type"
    BAD_FILESIZE = "bad_filesize"
    BAD_BYTES_SENT = "bad_bytes_sent"
    URL_TOO_LONG = "url_too_long"
    DUPLICATE_ID = "duplicate_id"


class FilterReason(StrEnum):
    """Why a row that could become a line is deliberately left out, in the order the reasons are checked."""

    SENT_BEFORE = "sent_before"
    PLAY = "play"
    NO_BYTES = "no_bytes"
    BLACKLISTED_IP = "blacklisted_ip"
    BLACKLISTED_UA = "blacklisted_ua"
    SHORT = "short"
    TOO_FRESH = "too_fresh"


class RowRejected(Exception):
    """The row cannot become a line; ``reason`` says why."""

    def __init__(self, reason: RejectReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Tally:
    """How many rows became what.

    ``rows`` counts all rows (blank lines are not rows); ``reporting`` counts the rows that were not rejected and meet
    Megaphone's own reporting rule, filtered or not. The others count lines written: ``readdressed`` ones had an address
    with a port or in a list; ``fallback_urls`` got the default URL, since the episode's token or enclosure URL is not
    known; ``unmatched`` are those for which the episode catalogue knew no guid or which fell back.
    """

    rows: int
    lines: int
    filtered: Counter[str]
    rejected: Counter[str]
    reporting: int
    clamped: int
    not_an_address: int
    ends_in_zero: int
    outside_day: int
    unmapped_episodes: int
    readdressed: int
    fallback_urls: int
    unmatched: int

    NUMBERS = ("reporting", "clamped", "not_an_address", "ends_in_zero", "outside_day", "unmapped_episodes",
               "readdressed", "fallback_urls", "unmatched")  # fmt: skip
    __slots__ = ("rows", "lines", *NUMBERS, "filtered", "rejected")

    def __init__(
        self, *, filtered: Mapping[str, int] | None = None, rejected: Mapping[str, int] | None = None, **numbers: int
    ) -> None:
        for name in ("rows", "lines", *self.NUMBERS):
            setattr(self, name, numbers.pop(name, 0))
        if numbers:
            raise TypeError(f"a tally has no {', '.join(numbers)}")
        self.filtered, self.rejected = Counter(filtered), Counter(rejected)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and self.as_json() == other.as_json()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Tally({self.as_json()})"

    @property
    def balanced(self) -> bool:
        """Whether every row is accounted for exactly once."""
        return self.rows == self.lines + self.filtered.total() + self.rejected.total()

    @property
    def rejected_share(self) -> float:
        """The share of rows that were rejected, 0 to 1."""
        return self.rejected.total() / self.rows if self.rows else 0.0

    def share_of_lines(self, count: int) -> float:
        """Return ``count`` as a share of the lines written, 0 to 1."""
        return count / self.lines if self.lines else 0.0

    def add(self, other: Tally) -> None:
        """Add the tally of another part of the same day."""
        for name in ("rows", "lines", *self.NUMBERS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.filtered.update(other.filtered)
        self.rejected.update(other.rejected)

    def as_json(self) -> dict[str, Any]:
        """Return the tally as ``--json`` and the ledger hold it; reasons that did not occur are omitted."""
        return {
            "rows": self.rows,
            "lines": self.lines,
            "filtered": _occurred(FilterReason, self.filtered),
            "rejected": _occurred(RejectReason, self.rejected),
        } | {name: getattr(self, name) for name in self.NUMBERS}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tally:
        """Return the tally that `as_json` returned as ``data``, in this release or an earlier one."""
        # What earlier releases did not count is 0; they did not report URLs that fell back.
        older = {"readdressed": 0, "fallback_urls": 0, "unmatched": data["unmapped_episodes"]}
        numbers = {name: int((older | data)[name]) for name in ("rows", "lines", *cls.NUMBERS)}
        return cls(**numbers, filtered=data["filtered"], rejected=data["rejected"])


def _occurred(reasons: Iterable[str], counts: Counter[str]) -> dict[str, int]:
    return {str(reason): n for reason in reasons if (n := counts[reason])} if counts else {}


LONGEST_NAME = 200  # characters of a podcast's id; Megaphone's have 36
MOST_PODCASTS = 20_000  # further ones in an export are counted together as `OTHERS`
NO_PODCAST = "-"
OTHERS = "(others)"


class PodcastBooks:
    """One tally per podcast; only ``rows``, ``reporting``, ``lines``, ``filtered`` and ``rejected`` are counted."""

    def __init__(self, tallies: dict[str, Tally] | None = None) -> None:
        self.tallies = {} if tallies is None else tallies

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PodcastBooks) and self.tallies == other.tallies

    __hash__ = None  # type: ignore[assignment]  # it changes

    def of(self, podcast: str) -> Tally:
        """Return the tally of one podcast: an overlong id is cut to `LONGEST_NAME`, a blank one is `NO_PODCAST`."""
        podcast = podcast[:LONGEST_NAME] if podcast.strip() else NO_PODCAST
        tally = self.tallies.get(podcast)
        if tally is None:
            # Bounded, because a hostile export could name a new podcast in every row.
            if len(self.tallies) >= MOST_PODCASTS and podcast not in (OTHERS, NO_PODCAST):
                return self.of(OTHERS)
            tally = self.tallies[podcast] = Tally()
        return tally

    def count(self, podcasts: Sequence[str], reported: Iterable[bool], filtered: Mapping[int, FilterReason]) -> None:
        """Count rows that were not rejected.

        ``podcasts`` and ``reported`` have one entry per row; ``filtered`` holds the reasons by the row's index.
        """
        for podcast, rows in Counter(podcasts).items():
            tally = self.of(podcast)
            tally.rows += rows
            tally.lines += rows
        for podcast, rows in Counter(compress(podcasts, reported)).items():
            self.of(podcast).reporting += rows
        for index, reason in filtered.items():
            tally = self.of(podcasts[index])
            tally.lines -= 1
            tally.filtered[reason] += 1

    def reject(self, podcast: str, reason: RejectReason, rows: int = 1) -> None:
        """Count this many rejected rows, perhaps none; ``podcast`` is empty if they do not show it."""
        if rows:
            tally = self.of(podcast)
            tally.rows += rows
            tally.rejected[reason] += rows

    def add(self, other: PodcastBooks) -> None:
        """Add the tally of another part of the same day."""
        for podcast, tally in other.tallies.items():
            self.of(podcast).add(tally)

    def as_json(self) -> dict[str, Any]:
        """Return the tallies as the ledger keeps them: by podcast, [rows, reporting, lines, filtered, rejected]."""
        return {
            podcast: [t.rows, t.reporting, t.lines, _by_name(t.filtered), _by_name(t.rejected)]
            for podcast, t in self.tallies.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PodcastBooks:
        """Return the tallies that `as_json` returned as ``data``."""
        made = cls()
        for podcast, (rows, reporting, lines, filtered, rejected) in data.items():
            made.tallies[podcast] = Tally(
                rows=rows, reporting=reporting, lines=lines, filtered=Counter(filtered), rejected=Counter(rejected)
            )
        return made


def _by_name(counts: Counter[str]) -> dict[str, int]:
    return {str(reason): count for reason, count in counts.items() if count}
