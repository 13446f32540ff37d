"""A day to compare with Megaphone's dashboard and Triton's report: what became of the rows of each podcast.

Pure. Rows, reporting rows, filtered and rejected are those of the last version of the export that was read; lines are
all that were sent and not superseded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..convert.tally import FilterReason, RejectReason
from ..triton import safe_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..convert.tally import PodcastBooks
    from ..storage.records import Publication

ALL = "(all)"
COLUMNS = (
    "podcast_id", "rows", "reporting", "lines",
    *(f"filtered.{reason}" for reason in FilterReason), *(f"rejected.{reason}" for reason in RejectReason),
)  # fmt: skip


@dataclass(slots=True)
class PodcastLine:
    """One podcast on one day; ``reporting`` is Megaphone's own count.

    ``podcast`` is its id, with control characters, which a terminal would obey, percent-encoded.
    """

    podcast: str
    rows: int = 0
    reporting: int = 0
    lines: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Return the podcast as ``reconcile --json`` prints it."""
        return {
            "podcast_id": self.podcast,
            "rows": self.rows,
            "reporting": self.reporting,
            "lines": self.lines,
            "filtered": {str(reason): n for reason, n in self.filtered.items() if n},
            "rejected": {str(reason): n for reason, n in self.rejected.items() if n},
        }

    def cells(self) -> list[str]:
        """Return one value for each of ``COLUMNS``."""
        counts = [self.filtered[reason] for reason in FilterReason] + [self.rejected[reason] for reason in RejectReason]
        return [self.podcast, *map(str, (self.rows, self.reporting, self.lines, *counts))]


def reconcile(publications: Sequence[Publication], tallies: Mapping[int, PodcastBooks]) -> list[PodcastLine]:
    """Return the whole day, then each podcast, most lines first; empty without tallies by podcast.

    ``tallies`` are the tallies by podcast, by the publication's number.
    """
    standing = [p for p in publications if p.published_at and any(log.superseded_by is None for log in p.logs)]
    kept = [publication for publication in standing if publication.id in tallies]
    if not kept:
        return []
    found: dict[str, PodcastLine] = {}
    # Rows come from the last version that was read, which includes the rows of those before it.
    for podcast, tally in tallies[kept[-1].id].tallies.items():
        found[podcast] = PodcastLine(
            safe_id(podcast), tally.rows, tally.reporting, 0, Counter(tally.filtered), Counter(tally.rejected)
        )
    for publication in kept:
        for podcast, tally in tallies[publication.id].tallies.items():
            found.setdefault(podcast, PodcastLine(safe_id(podcast))).lines += tally.lines
    total = PodcastLine(ALL)
    for line in found.values():
        total.rows += line.rows
        total.reporting += line.reporting
        total.lines += line.lines
        total.filtered += line.filtered
        total.rejected += line.rejected
    return [total, *sorted(found.values(), key=lambda line: (-line.lines, line.podcast))]
