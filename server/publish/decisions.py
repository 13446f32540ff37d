"""A round of the feed, as types: what an operator wished, what became of each day, by which settings.

No outside world.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ..megaphone.exports import FinalityRule, start_of

if TYPE_CHECKING:
    from datetime import date

    from ..convert.row import LogRules
    from ..settings import ExportSettings
    from ..triton import LogName
    from .holds import HoldPolicy


@dataclass(frozen=True, slots=True)
class Wish:
    """An operator's word, from the command line: these days only, rejects accepted, sent again.

    A round ``by_hand`` does not wait for the next try of a day that failed.
    """

    days: tuple[date, ...] = ()
    accept_rejects: bool = False
    resend: str = ""
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class DayResult:
    """What a round did with one day: a state's word, a sentence, the names of what was published."""

    day: date
    word: str
    sentence: str
    files: tuple[LogName, ...] = ()

    @property
    def bad(self) -> bool:
        """Whether a person must look: a due day failed or is held, or what was asked for is refused."""
        return self.word in ("failed", "held", "refused")


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

    def out_of_reach(self, day: date, now: datetime) -> str:
        """Why a day is none of the service's, or none any more; or an empty text."""
        if self.export.first_day is not None and day < self.export.first_day:
            return f"it is before export.first_day ({self.export.first_day})"
        if now - start_of(day) > timedelta(days=self.keep_days):
            return f"it is older than retention.keep_days ({self.keep_days}): a pruned day never comes back"
        return ""

    def began(self, first_start: str | None, today: date) -> date | None:
        """The oldest day that the service should have seen to and still can; None if it has not begun."""
        began = self.export.first_day
        if began is None:
            if first_start is None:
                return None
            began = datetime.fromisoformat(first_start).date() - timedelta(days=self.export.look_back_days)
        return max(began, today - timedelta(days=self.keep_days - 1))
