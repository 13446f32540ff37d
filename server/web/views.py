"""What the pages show, as values for their templates. Pure: they come from a snapshot, which holds its own time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from ..episodes.rss import safe_url
from ..hints import Call, lines, without_page
from ..publish.store_state import StoreState
from ..status.alarms import STATE_ALARMS, Level
from ..status.causes import causes, notes
from ..status.deadlines import Urgency
from ..status.summary import NOBODY, SERVER, left_out, rows_sentence, summary
from ..status.words import (
    calendar_state,
    deadline_words,
    disk_line,
    episode_lines,
    history,
    login_lines,
    next_deadline,
    pickup_words,
    service_lines,
    size_text,
)
from .plots import SHOWN, books, hours_plot, rows_plot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..convert.tally import Tally
    from ..hints import Line, Step
    from ..settings import Config, ExportSettings
    from ..status.causes import Cause
    from ..status.days import DayOverview
    from ..status.deadlines import Deadline
    from ..status.snapshot import DayDetails, Snapshot, Trace

FIRST_ROWS = 14  # days shown above the fold of the table
MOST_PODCASTS = 200  # on a page; the CSV lists all
# How a state looks: a class of the stylesheet, and a sign for those who see no colours.
LOOKS: Mapping[str, tuple[str, str]] = {
    "picked up": ("good", "✓"), "published": ("ready", "•"), "open": ("later", "·"), "unmarked": ("later", "·"),
    "settling": ("later", "·"),
    "due": ("later", "·"), "pruned": ("gone", "□"), "missing": ("bad", "!"), "stale": ("bad", "!"),
    "held": ("bad", "!"), "failed": ("bad", "!"), "unknown": ("bad", "!"),
}  # fmt: skip
LEGEND = (
    ("picked up", "picked up"), ("published", "published"), ("open", "not due yet"), ("failed", "wrong"),
    ("pruned", "removed"),
)  # fmt: skip
_URGENCY_LOOKS: Mapping[Urgency | None, str] = {
    None: "", Urgency.MET: "good", Urgency.AHEAD: "", Urgency.WARNING: "warn", Urgency.CRITICAL: "bad",
    Urgency.LATE: "bad",
}  # fmt: skip


_ON_CARDS = STATE_ALARMS | {"day_not_published", "day_not_picked_up", "day_not_stored", "day_late_held"}


class ShownCause(NamedTuple):
    """One thing that is wrong: its level, a sentence, the days concerned, and what to do, line by line."""

    level: str
    sentence: str
    days: tuple[date, ...]
    lines: list[Line]


class Card(NamedTuple):
    """A day in plain words: a heading, the verdict, its rows, who must act, and what to do."""

    heading: str
    day: date
    state: str
    word: str
    mood: str
    sentence: str
    rows: str
    who: str
    lines: list[Line]


class Cell(NamedTuple):
    """A day of the calendar; ``state`` is '' if the day is not ``known``."""

    day: date
    state: str
    look: str
    sign: str
    known: bool


class Row(NamedTuple):
    """A day in the table."""

    day: date
    state: str
    look: str
    sign: str
    size: str
    counted: bool
    rows: int
    filtered: int
    rejected: int
    lines: int
    files: int
    published_at: datetime | None
    picked_up: list[str]
    deadline: str
    deadline_look: str


class Coming(NamedTuple):
    """The next deadline: (day, what must be done) for each day it concerns, when, and the time left."""

    due: tuple[tuple[date, str], ...]
    by: datetime
    left: str
    look: str


@dataclass(frozen=True, slots=True)
class Books:
    """The books of a publication, or of a held version, as a bar and a table; ``rows`` is the sum of ``parts``."""

    rows: int
    parts: list[Any]

    @classmethod
    def of(cls, tally: Tally) -> Books:
        """Return the books of a tally."""
        return cls(tally.rows, books(tally))


def overview(snapshot: Snapshot, config: Config, call: Call) -> dict[str, Any]:
    """Return what the overview shows."""
    found = causes(snapshot.alarms, snapshot.days)
    today = snapshot.at.date()
    by_day = {day.day: day for day in snapshot.days}
    users = [user.name for user in config.sftp.users]
    service = service_lines(snapshot.facts, snapshot.at, running=snapshot.running)
    service += [disk_line(snapshot), *episode_lines(snapshot, snapshot.at), *login_lines(snapshot, users, snapshot.at)]
    rows = [_row(by_day[day]) for day in sorted(by_day, reverse=True)]
    return {
        "now": snapshot.at,
        "level": max((alarm.level for alarm in snapshot.alarms), default=Level.OK).name,
        "causes": _shown(found, call),
        "notes": notes(snapshot.days[:FIRST_ROWS], found),
        "cards": [
            card(by_day[day], snapshot, config, call, heading)
            for back, heading in ((1, "Yesterday"), (2, "The day before"))
            if (day := today - timedelta(days=back)) in by_day
        ],
        "coming": _coming(snapshot.days),
        "begins": _begins(config.export, today) if today - timedelta(days=1) not in by_day else None,
        "weeks": _weeks(by_day, today),
        "legend": [(*LOOKS[state], words) for state, words in LEGEND],
        "rows_plot": rows_plot(by_day, today),
        "hours_plot": hours_plot(by_day, today, config.export),
        "days": rows[:FIRST_ROWS],
        "earlier": rows[FIRST_ROWS:],
        "service": service,
        "rss_feeds": [
            (safe_url(feed.url), feed.title, feed.item_count, feed.read_at, feed.error) for feed in snapshot.rss_feeds
        ],
        "address": config.sftp.address or "",
        "prefix": config.log.prefix,
    }


def one_day(day: DayOverview, details: DayDetails, snapshot: Snapshot, config: Config, call: Call) -> dict[str, Any]:
    """Return what the page of a day shows."""
    others = _besides_card(day, snapshot)
    publications = [
        {
            "publication": it,
            "books": Books.of(it.tally) if it.tally is not None else None,
            "files": [
                (str(log.name), log.size, size_text(log.size), log.lines, log.state, log.superseded_by is not None)
                for log in it.logs
            ],
        }
        for it in day.publications
    ]
    look, sign = LOOKS[calendar_state(day)]
    deadlines = [("published", day.deadlines.published)]
    deadlines += [("picked up", day.deadlines.picked_up)] * day.waits_for_pickup
    return {
        "now": snapshot.at,
        "day": day,
        "look": look,
        "sign": sign,
        "card": card(day, snapshot, config, call, "In plain words"),
        "causes": _shown(others, call),
        "notes": [note.removeprefix(f"{day.day}: ") for note in notes([day], causes(snapshot.alarms, [day]))],
        "deadlines": [
            (what, deadline.by, deadline.done, deadline_words(deadline), _URGENCY_LOOKS[deadline.urgency])
            for what, deadline in deadlines
        ],
        "export_size": size_text(day.export.size) if day.export is not None else "",
        "publications": publications,
        "held": Books.of(details.held) if details.held is not None and not day.publications else None,
        "podcasts": details.podcasts[: MOST_PODCASTS + 1],  # the first is all of them together
        "more_podcasts": max(0, len(details.podcasts) - MOST_PODCASTS - 1),
        "checks": details.checks,
        "pickups": pickup_words(day),
    }


def one_file(trace: Trace, now: datetime) -> dict[str, Any]:
    """Return what the page of a file shows."""
    size = max(trace.log.size, 1)
    return {
        "now": now,
        "log": trace.log,
        "size": size_text(trace.log.size),
        "publication": trace.publication,
        "history": history(trace),
        "delivered": [(it, _share(it.bytes, size)) for it in trace.delivered],
        "pickups": [(it, _share(it.covered, size), _share(it.delivered, size)) for it in reversed(trace.pickups)],
    }


def card(day: DayOverview, snapshot: Snapshot, config: Config, call: Call, heading: str) -> Card:
    """Return a day in plain words."""
    store = config.store
    read = StoreState.of(snapshot.facts, str(store.place)) if store is not None and store.required else None
    silent = {alarm.subject for alarm in snapshot.alarms if alarm.name == "partner_silent"}
    it = summary(day, config, read, silent)
    who = f"{SERVER}: see what is wrong." if it.who.startswith(NOBODY) and _besides_card(day, snapshot) else it.who
    return Card(
        heading, day.day, day.state, it.word, it.mood, it.sentence, rows_sentence(day), who, _lines(it.steps, call)
    )


def _besides_card(day: DayOverview, snapshot: Snapshot) -> list[Cause]:
    """Return what is wrong with a day besides what its card says."""
    own = [alarm for alarm in snapshot.alarms if alarm.subject == str(day.day) and alarm.name not in _ON_CARDS]
    return causes(own, [day])


def _shown(found: Iterable[Cause], call: Call) -> list[ShownCause]:
    return [ShownCause(it.level.name, it.sentence, it.days, _lines(it.steps, call)) for it in found]


def _lines(steps: Iterable[Step], call: Call) -> list[Line]:
    return lines(without_page(steps, "status"), call)


def _share(part: int, whole: int) -> float:
    """Return a share of the whole in thousandths, 0 to 1000: the width of a bar."""
    return round(1000 * min(part, whole) / whole, 1)


def _row(day: DayOverview) -> Row:
    look, sign = LOOKS[calendar_state(day)]
    words, urgency = next_deadline(day)
    return Row(
        day.day, day.state, look, sign, size_text(day.export.size) if day.export is not None else "",
        day.counted, day.rows, left_out(day), day.rejected, day.lines, len(day.logs),
        day.published_at, pickup_words(day), words, _URGENCY_LOOKS[urgency],
    )  # fmt: skip


def _weeks(by_day: Mapping[date, DayOverview], today: date) -> list[list[Cell | None]]:
    """Return the last `SHOWN` days by week, Monday to Sunday; None stands for a day outside them."""
    first = today - timedelta(days=SHOWN - 1)
    monday = first - timedelta(days=first.weekday())
    weeks = []
    while monday <= today:
        week: list[Cell | None] = []
        for day in (monday + timedelta(days=n) for n in range(7)):
            state = calendar_state(by_day[day]) if day in by_day else ""
            look, sign = LOOKS.get(state, ("", ""))
            word = by_day[day].state if day in by_day else ""
            if state == "failed" != word:
                word += ", too late" if word == "picked up" else ", not picked up in time"
            week.append(Cell(day, word, look, sign, day in by_day) if first <= day <= today else None)
        weeks.append(week)
        monday += timedelta(days=7)
    return weeks


def _begins(export: ExportSettings, today: date) -> tuple[date, datetime] | None:
    """Return the configured first day and when it can be final, or None once that day is over."""
    first = export.first_day
    return (first, export.finality.final_time(first)) if first is not None and first >= today else None


def _coming(days: Iterable[DayOverview]) -> Coming | None:
    """Return the next deadline not met yet, with every day that has it at the same instant."""
    waiting: list[tuple[Deadline, DayOverview, str]] = []
    for day in days:
        if day.state == "pruned":
            continue
        if day.published_at is None:
            waiting.append((day.deadlines.published, day, "must be published"))
        elif day.waits_for_pickup and day.deadlines.picked_up.done is None:
            waiting.append((day.deadlines.picked_up, day, "must be picked up"))
    ahead = [it for it in waiting if it[0].left >= timedelta()]
    if not ahead:
        return None
    deadline = min((deadline for deadline, _, _ in ahead), key=lambda it: (it.by, it.left))
    due = sorted((day.day, what) for it, day, what in ahead if it.by == deadline.by)
    minutes = int(deadline.left.total_seconds() // 60)
    left = f"{minutes // 60} h {minutes % 60:02d} min"
    return Coming(tuple(due), deadline.by, left, _URGENCY_LOOKS[deadline.urgency])
