"""Causes: what is wrong, a line each, with what to do about it; `status`, `check`, `doctor` and the page show them.

Each alarm concerns one day, and its state or its deadline, since each is raised and cleared by itself. Whoever reads
them all wants to read a thing once, so days with one cause are joined. Pure: the arguments are a snapshot's.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import TYPE_CHECKING, NamedTuple

from ..hints import Step, steps
from ..publish.first_delivery import NOTHING_DELIVERED
from .alarms import STATE_ALARMS
from .days import span
from .deadlines import Urgency

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .alarms import Alarm, Level
    from .days import DayOverview
    from .deadlines import Deadline

_DAY, _SHARE = "\0day\0", "\0share\0"  # stand for the day and a remark's share in texts that are compared
_REMARK = re.compile(rf"({_DAY}: )(\d+\.\d)%")
_STATE = re.compile(rf"^({_DAY}) (?:is|has) ")
_NOT_DONE = {
    "day_not_published": "not published yet",
    "day_not_picked_up": "not picked up yet",
    "day_not_stored": "not in the store, where the partner reads",
}
# An alarm, and the alarm of days that cannot be seen, published or stored while it stands.
_BLOCKS = {NOTHING_DELIVERED: "day_missing", "source": "day_not_published", "store": "day_not_stored"}


class Cause(NamedTuple):
    """One thing that is wrong, the days it concerns, in order, and what to do, without what an earlier cause says."""

    level: Level
    sentence: str
    steps: tuple[Step, ...]
    days: tuple[date, ...] = ()


class _Part(NamedTuple):
    """What an alarm says about one day; parts of the same ``kind`` are joined."""

    kind: tuple[str, ...]
    day: date
    level: Level
    says: str
    hint: str
    deadline: Deadline | None = None
    share: float = 0.0  # in per cent


def causes(alarms: Sequence[Alarm], days: Iterable[DayOverview]) -> list[Cause]:
    """Return what is wrong, worst first; within a level, what does not concern single days comes first."""
    by_day = {str(day.day): day for day in days}
    late = {alarm.subject: alarm for alarm in alarms if alarm.name == "day_not_published"}
    in_state = {alarm.subject for alarm in alarms if alarm.name in STATE_ALARMS}
    found, parts = [], []
    for alarm in alarms:
        day = by_day.get(alarm.subject)
        if day is None:
            # The cause is as bad as what it leads to, and comes before it.
            held_up = _BLOCKS.get(alarm.name)
            blocked = [
                other.level
                for other in alarms
                if other.name == held_up and (held_up in STATE_ALARMS or other.subject not in in_state)
            ]
            found.append(Cause(max([alarm.level, *blocked]), alarm.sentence, tuple(steps(alarm.hint))))
        elif alarm.name != "day_not_published" or alarm.subject not in in_state:
            parts.append(_part(alarm, day, late.get(alarm.subject)))
    joined: dict[tuple[str, ...], list[_Part]] = {}
    for part in sorted(parts, key=lambda part: part.day):
        joined.setdefault(part.kind, []).append(part)
    found += [_join(kind) for kind in joined.values()]
    return _once(sorted(found, key=lambda cause: (-cause.level, bool(cause.days))))


def notes(days: Iterable[DayOverview], shown: Sequence[Cause]) -> list[str]:
    """Return what else is worth knowing about the days, joined in the same way."""
    said = " ".join(cause.sentence for cause in shown)
    found: dict[str, list[date]] = {}
    for day in days:
        # An alarm names the day where a note says "its".
        told = [why for why in (day.late_held, day.late_ignored) if why and why in said]
        for note in day.notes:
            if note not in said and not note.endswith(tuple(told)):
                found.setdefault(note, []).append(day.day)
    return [f"{ranges(sorted(on))}: {note}" for note, on in found.items()]


def ranges(days: Sequence[date]) -> str:
    """Return days, in order, in words: ``2026-11-18, 2026-11-21 to 2026-11-27``."""
    runs: list[list[date]] = []
    for day in days:
        if runs and day - runs[-1][-1] == timedelta(days=1):
            runs[-1].append(day)
        else:
            runs.append([day])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _part(alarm: Alarm, day: DayOverview, late: Alarm | None) -> _Part:
    """Return what an alarm says about a day, without the day and the time left."""
    says, hint, deadline, level = alarm.sentence, alarm.hint, None, alarm.level
    if alarm.name in STATE_ALARMS:
        says, hint = f"{day.day} {day.state_in_words}" + (f": {day.why}" if day.why else ""), day.cure
        if late is not None:
            deadline, level = late.deadline, max(level, late.level)
    elif (what := _NOT_DONE.get(alarm.name)) is not None:
        says, deadline = f"{day.day} is {what}", alarm.deadline
        if day.why and hint == day.advice:  # `why` is not something to do
            says, hint = f"{says}: {day.why}", day.cure
    says, hint = (text.replace(str(day.day), _DAY) for text in (says, hint))
    share = float(found[2]) if (found := _REMARK.match(says)) else 0.0
    says = _REMARK.sub(rf"\1{_SHARE}", says)
    return _Part((alarm.name, says, hint), day.day, level, says, hint, deadline, share)


def _join(parts: Sequence[_Part]) -> Cause:
    """Return what several alarms say about their days, said once."""
    days = tuple(part.day for part in parts)
    says, count = parts[0].says, len(days)
    if count > 1:
        says = _STATE.sub(rf"\1: {count} days ", says)
    most = f"{max(part.share for part in parts)}%"
    says = says.replace(_SHARE, most if len({part.share for part in parts}) == 1 else f"up to {most}")
    says = says.replace(_DAY, ranges(days)) + _time_left([part.deadline for part in parts if part.deadline])
    to_do = [_for_days(step, days) for step in steps(parts[0].hint)]
    return Cause(max(part.level for part in parts), says, tuple(to_do), days)


def _for_days(step: Step, days: Sequence[date]) -> Step:
    """Return a step with the days filled in: all of them, or the newest if a command takes only one."""
    every = " ".join(f"--day {day}" for day in days)
    command = step.command.replace(f"--day {_DAY}", every).replace(_DAY, str(days[-1]))
    return Step(step.prose.replace(_DAY, ranges(days)), command)


def _time_left(deadlines: Sequence[Deadline]) -> str:
    """Return how the deadlines stand, to be appended to a sentence; '' without any."""
    over = [deadline for deadline in deadlines if deadline.urgency is Urgency.LATE]
    ahead = [deadline.left for deadline in deadlines if deadline.urgency is not Urgency.LATE]
    if len(deadlines) == 1:
        left = span(deadlines[0].left)
        return f"; its deadline was {left} ago" if over else f"; its deadline is in {left}"
    parts = [f"{len(over)} deadlines are over" if len(over) > 1 else "1 deadline is over"] if over else []
    parts += [f"the next is in {span(min(ahead))}"] if ahead else []
    return f"; {', '.join(parts)}" if parts else ""


def _once(found: Iterable[Cause]) -> list[Cause]:
    """Return the causes, each without the steps that an earlier one has."""
    said: set[Step] = set()
    kept = []
    for cause in found:
        kept.append(cause._replace(steps=tuple(step for step in cause.steps if step not in said)))
        said.update(cause.steps)
    return kept
