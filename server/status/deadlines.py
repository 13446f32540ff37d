"""Deadlines: by when a day must be published and picked up, and how urgent that is now.

Triton: "session information within three days of the beginning of the session. If the session log is received after
this delay, it will not be counted". A session at 00:00Z of day D expires at D+3 00:00Z; the partner comes once every
``pull_every``. Pure: the clock is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from ..triton import expires

if TYPE_CHECKING:
    from ..settings import AlertSettings


class Urgency(StrEnum):
    """How urgent a deadline is; ``late`` means overdue, or done too late."""

    MET = "met"
    AHEAD = "ahead"
    WARNING = "warning"
    CRITICAL = "critical"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """The settings of ``[alerts]``: how often the partner pulls, and how long before a deadline to warn."""

    pull_every: timedelta = timedelta(hours=24)
    warn_before: timedelta = timedelta(hours=12)
    critical_before: timedelta = timedelta(hours=6)

    @classmethod
    def of(cls, settings: AlertSettings) -> DeadlinePolicy:
        """Return the policy of a configuration."""
        return cls(settings.pull_every, settings.warn_before, settings.critical_before)


def patience(poll_every: timedelta) -> timedelta:
    """Return how long there may be no round before an alarm is raised."""
    return poll_every * 3 + timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Deadline:
    """One of a day's two deadlines: ``by`` when, ``done`` when (or None), how urgent, and the time ``left``.

    ``left`` counts to now, or to when it was done; it is negative after the deadline.
    """

    by: datetime
    done: datetime | None
    urgency: Urgency
    left: timedelta

    @property
    def alarming(self) -> bool:
        """Whether an alarm is due."""
        return self.done is None and self.urgency in (Urgency.WARNING, Urgency.CRITICAL, Urgency.LATE)


@dataclass(frozen=True, slots=True)
class DayDeadlines:
    """The two deadlines of a day: published by D+3 00:00Z minus ``pull_every``, picked up by D+3 00:00Z."""

    day: date
    published: Deadline
    picked_up: Deadline


def day_deadlines(
    day: date, policy: DeadlinePolicy, now: datetime, *, published: datetime | None, picked_up: datetime | None
) -> DayDeadlines:
    """Return both deadlines of a day; ``published`` and ``picked_up`` are when that was done, or None."""
    last = expires(day)
    return DayDeadlines(
        day,
        _deadline(last - policy.pull_every, published, policy, now),
        _deadline(last, picked_up, policy, now),
    )


def still_open(deadline: Deadline, policy: DeadlinePolicy, now: datetime) -> Deadline:
    """Return a deadline as if it had not been met."""
    return _deadline(deadline.by, None, policy, now)


def _deadline(by: datetime, done: datetime | None, policy: DeadlinePolicy, now: datetime) -> Deadline:
    left = by - (now if done is None else done)
    if left < timedelta():
        urgency = Urgency.LATE
    elif done is not None:
        urgency = Urgency.MET
    elif left <= policy.critical_before:
        urgency = Urgency.CRITICAL
    elif left <= policy.warn_before:
        urgency = Urgency.WARNING
    else:
        urgency = Urgency.AHEAD
    return Deadline(by, done, urgency, left)
