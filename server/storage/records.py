"""What the ledger keeps, as types: publications and their logs, the state of a day, late checks.

Pure. Instants are in UTC, sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date, datetime

    from ..convert.tally import PodcastBooks, Tally
    from ..episodes.catalogue import CatalogueStamp
    from ..megaphone.exports import DayExport
    from ..triton import LogName, LogRules

DELIVERY = "default"  # the only delivery there is today; a day is identified by (delivery, day)

Kind = Literal["first", "unfinal", "late", "resend", "adopted"]
LogState = Literal["intended", "published", "pruned"]


@dataclass(frozen=True, slots=True)
class LedgerLog:
    """One log file, whose name is spent for ever.

    ``publication`` and ``superseded_by`` (the one sent instead) are publications' numbers; ``mtime`` is in seconds
    since 1970; ``lines`` does not count header lines.
    """

    name: LogName
    publication: int
    size: int
    sha256: str
    mtime: int
    lines: int
    state: LogState
    pruned_at: datetime | None = None
    superseded_by: int | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    """What was published together, from one version of a day's export.

    ``kind``: the day's ``first``; ``unfinal``, published before it was final; ``late`` rows; ``resend``, ordered by the
    operator; ``adopted``, found in the folder by a new ledger. ``tally`` is None for an adopted one. ``changed`` rows
    differ from the line that was sent, ``removed`` ones are no longer in the export. ``catalogue`` is None if no
    episode catalogue was in use. ``podcasts`` is written with it, but only `Ledger.books` reads it back.
    """

    id: int
    day: date
    kind: Kind
    export: DayExport
    rules: LogRules
    tally: Tally | None
    intended_at: datetime
    published_at: datetime | None
    changed: int = 0
    removed: int = 0
    remark: str = ""
    logs: tuple[LedgerLog, ...] = ()
    delivery: str = DELIVERY
    catalogue: CatalogueStamp | None = None
    podcasts: PodcastBooks | None = None

    @property
    def matched_share(self) -> float | None:
        """The share of its lines, 0 to 1, whose episode the catalogue knew; None without a catalogue or a line."""
        return _matched([self])

    @property
    def missing(self) -> tuple[LedgerLog, ...]:
        """The logs that were intended but do not have their names: a crash came in between."""
        return tuple(entry for entry in self.logs if entry.state == "intended")


def matched_share(publications: Iterable[Publication]) -> float | None:
    """Return the share of lines, 0 to 1, whose episode the catalogue knew, in the logs that are not superseded.

    A line whose URL fell back to the default does not count, even if the guid is known.
    None if no episode catalogue was in use, or no line was written.
    """
    standing = [p for p in publications if p.published_at and any(entry.superseded_by is None for entry in p.logs)]
    return _matched(standing)


def _matched(publications: Iterable[Publication]) -> float | None:
    tallies = [p.tally for p in publications if p.catalogue is not None and p.tally is not None]
    lines = sum(tally.lines for tally in tallies)
    return 1 - sum(tally.unmatched for tally in tallies) / lines if lines else None


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a version of a day is held: a sentence, the word for it (see `holds.hold_reason`), its ETag and its tally."""

    why: str
    reason: str
    etag: str
    tally: Tally


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a day could not be converted or published; the version with this ``etag`` was tried ``tries`` times."""

    sentence: str
    hint: str
    etag: str
    at: datetime
    next_try: datetime
    tries: int


@dataclass(frozen=True, slots=True)
class DayRecord:
    """What the last round saw of a day, and decided about it.

    ``seen`` is the word of `FinalityRule.state`; ``checked_etag`` is the version last compared with what was published,
    ``checked_at`` when that was by the source's clock; ``withheld`` is the number of rows of an unfinal publication
    still to be sent.
    """

    day: date
    seen: str
    seen_at: datetime
    export: DayExport | None
    checked_etag: str | None = None
    withheld: int = 0
    hold: Hold | None = None
    failure: Failure | None = None
    delivery: str = DELIVERY
    checked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LateCheck:
    """A changed export for which nothing was sent; ``unsent`` rows are new, but came too late.

    ``modified`` is None if the export could no longer be read.
    """

    day: date
    at: datetime
    etag: str
    modified: datetime | None
    unsent: int
    changed: int
    removed: int
    tally: Tally
    delivery: str = DELIVERY
