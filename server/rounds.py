"""A round of the feed, as types: what an operator wished, what became of each day, by which settings.

No outside world.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .megaphone import FinalityRule

if TYPE_CHECKING:
    from datetime import date, datetime

    from .convert import LogRules
    from .holds import HoldPolicy
    from .settings import ExportSettings
    from .triton import LogName


@dataclass(frozen=True, slots=True)
class Wish:
    """An operator's word, from the command line: these days only, rejects accepted, sent again."""

    days: tuple[date, ...] = ()
    accept_rejects: bool = False
    resend: str = ""


@dataclass(frozen=True, slots=True)
class DayResult:
    """What a round did with one day: a state's word, a sentence, the names of what was published."""

    day: date
    word: str
    sentence: str
    files: tuple[LogName, ...] = ()

    @property
    def bad(self) -> bool:
        """Whether a person must look: a due day failed or is held."""
        return self.word in ("failed", "held")


@dataclass(slots=True)
class Round:
    """One round: when, by which clock of the source, and the results by day."""

    at: datetime
    source_now: datetime
    results: list[DayResult] = field(default_factory=list)

    @property
    def published(self) -> list[LogName]:
        """Everything that this round published."""
        return [name for result in self.results for name in result.files]


@dataclass(frozen=True, slots=True)
class FeedPolicy:
    """The settings of a feed that do not change while it runs."""

    export: ExportSettings
    rules: LogRules
    prefix: str
    holds: HoldPolicy
    keep_days: int

    @property
    def finality(self) -> FinalityRule:
        """When a day is final."""
        return FinalityRule(self.export.final_at, self.export.settle)
