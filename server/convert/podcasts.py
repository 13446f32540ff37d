"""The books by podcast: for each one rows, Megaphone's reporting count, lines, filtered and rejected by reason.

No outside world. They are kept with a publication, so that a publisher can lay a day beside Megaphone's dashboard and
Triton's report long after the file is gone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any

from .tally import FilterReason, RejectReason, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LONGEST_NAME = 200  # characters of a podcast's id; Megaphone's have 36
MOST_PODCASTS = 20_000  # what an export with more names is counted together under `OTHERS`
NO_PODCAST = "-"
OTHERS = "(others)"


@dataclass(slots=True)
class PodcastBooks:
    """A tally for each podcast; only ``rows``, ``reporting``, ``lines``, ``filtered`` and ``rejected`` are counted."""

    tallies: dict[str, Tally] = field(default_factory=dict)

    def of(self, podcast: str) -> Tally:
        """The tally of one podcast; what is too long to be an id is known by its beginning, what is blank is none."""
        podcast = podcast[:LONGEST_NAME] if podcast.strip() else NO_PODCAST
        tally = self.tallies.get(podcast)
        if tally is None:
            if len(self.tallies) >= MOST_PODCASTS and podcast not in (OTHERS, NO_PODCAST):
                return self.of(OTHERS)
            tally = self.tallies[podcast] = Tally()
        return tally

    def count(self, podcasts: Sequence[str], reported: Iterable[bool], filtered: Mapping[int, FilterReason]) -> None:
        """Count rows that were not rejected: the podcast of each, whether it is reported, and the filtered by place."""
        for podcast, rows in Counter(podcasts).items():
            tally = self.of(podcast)
            tally.rows += rows
            tally.lines += rows
        for podcast, rows in Counter(compress(podcasts, reported)).items():
            self.of(podcast).reporting += rows
        for place, reason in filtered.items():
            tally = self.of(podcasts[place])
            tally.lines -= 1
            tally.filtered[reason] += 1

    def reject(self, podcast: str, reason: RejectReason) -> None:
        """Count a rejected row; its podcast is empty where it cannot be read."""
        tally = self.of(podcast)
        tally.rows += 1
        tally.rejected[reason] += 1

    def add(self, other: PodcastBooks) -> None:
        """Add another part of the same day."""
        for podcast, tally in other.tallies.items():
            self.of(podcast).add(tally)

    def as_json(self) -> dict[str, Any]:
        """As the ledger keeps it: by podcast, [rows, reporting, lines, filtered, rejected]."""
        return {
            podcast: [t.rows, t.reporting, t.lines, _named(t.filtered), _named(t.rejected)]
            for podcast, t in self.tallies.items()
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PodcastBooks:
        """The books that `as_json` gave."""
        books = cls()
        for podcast, (rows, reporting, lines, filtered, rejected) in data.items():
            books.tallies[podcast] = Tally(
                rows=rows, reporting=reporting, lines=lines, filtered=Counter(filtered), rejected=Counter(rejected)
            )
        return books


def _named(counts: Counter[str]) -> dict[str, int]:
    return {str(reason): count for reason, count in counts.items() if count}
