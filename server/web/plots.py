"""The page's plots as numbers for its templates: coordinates in units of the SVG's view box, y from above. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from ..convert.tally import FilterReason, RejectReason
from ..megaphone.exports import start_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..convert.tally import Tally
    from ..megaphone.exports import FinalityRule
    from ..settings import ExportSettings
    from ..status.days import DayOverview

WIDTH, HEIGHT = 480, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 6, 14, 24  # margins
SHOWN = 60  # days
SHOWN_HOURS = 28  # days in the plot of hours: each has room for three marks side by side
TALL = 280  # the height of the plot of hours: final, published and picked up may lie an hour apart
_BESIDE = 4.8  # from one mark of a day to the next
_LEAST = 4.0  # the least width of a part, in thousandths of a bar
_WEEKS = 4  # how many earlier weeks give the usual range of a weekday
_HOURS = (24.0, 78.0)  # hours since a day began: the range of the plot of hours


class Mark(NamedTuple):
    """A label on an axis: its position, and its text."""

    at: float
    text: str


class Bar(NamedTuple):
    """A day's bar: its slot, the tops of its rows and lines, the usual range of its weekday, and a sentence."""

    x: float
    width: float
    rows_y: float
    lines_y: float
    base: float
    range_y: float
    range_height: float
    words: str


class Point(NamedTuple):
    """An event of a day in the plot of hours: its kind, its position, and a sentence."""

    kind: str
    x: float
    y: float
    words: str


@dataclass(frozen=True, slots=True)
class RowsPlot:
    """Rows and lines per day; ``words`` say the same in a sentence."""

    bars: tuple[Bar, ...]
    x_marks: tuple[Mark, ...]
    y_marks: tuple[Mark, ...]
    words: str


@dataclass(frozen=True, slots=True)
class HoursPlot:
    """Hours from the beginning of each day to its events; the deadlines are horizontal lines."""

    points: tuple[Point, ...]
    spans: tuple[str, ...]  # for each day a line through its events, as the ``points`` of SVG
    deadlines: tuple[Mark, ...]
    x_marks: tuple[Mark, ...]
    y_marks: tuple[Mark, ...]
    words: str


class Part(NamedTuple):
    """A part of a day's books: its classes in the stylesheet, words, rows, and position in the bar (0 to 1000)."""

    kind: str
    words: str
    rows: int
    x: float
    width: float


def rows_plot(days: Mapping[date, DayOverview], today: date) -> RowsPlot | None:
    """Return the plot of the last `SHOWN` days; None if none of them has rows."""
    shown = _shown(today)
    counted = {day: it for day, it in days.items() if it.rows}
    most = max((counted[day].rows for day in shown if day in counted), default=0)
    if not most:
        return None
    top = _round_up(most)
    slot = (WIDTH - LEFT - RIGHT) / SHOWN
    base = float(HEIGHT - BOTTOM)

    def y(rows: int) -> float:
        return round(base - (base - TOP) * min(rows, top) / top, 1)

    bars = []
    for number, day in enumerate(shown):
        it = counted.get(day)
        before = [
            counted[then].rows for week in range(1, _WEEKS + 1) if (then := day - timedelta(weeks=week)) in counted
        ]
        low, high = (min(before), max(before)) if len(before) > 1 else (0, 0)
        if it is None and not high:
            continue
        rows, lines = (it.rows, it.lines) if it is not None else (0, 0)
        usual = f"; the same weekday had {low:,} to {high:,} rows" if high else ""
        words = f"{day}: {rows:,} rows, {lines:,} lines{usual}"
        bars.append(
            Bar(
                round(LEFT + number * slot, 1),
                round(slot, 1),
                y(rows),
                y(lines),
                base,
                y(high),
                round(y(low) - y(high), 1),
                words,
            )
        )
    with_rows = [day for day in shown if day in counted]
    words = f"{len(with_rows)} days with rows, from {min(counted[d].rows for d in with_rows):,} to {most:,} rows a day"
    y_marks = tuple(Mark(y(top * part // 2), _short(top * part // 2)) for part in (0, 1, 2))
    return RowsPlot(tuple(bars), _x_marks(shown, slot), y_marks, words)


def hours_plot(days: Mapping[date, DayOverview], today: date, export: ExportSettings) -> HoursPlot | None:
    """Return the plot of the last `SHOWN_HOURS` days; None if none of them was published."""
    shown = _shown(today, SHOWN_HOURS)
    slot = (WIDTH - LEFT - RIGHT) / SHOWN_HOURS
    rule = export.finality
    low, high = _HOURS
    base = float(TALL - BOTTOM)

    def y(hours: float) -> float:
        return round(base - (base - TOP) * (min(max(hours, low), high) - low) / (high - low), 1)

    points: list[Point] = []
    spans: list[str] = []
    for number, day in enumerate(shown):
        it = days.get(day)
        if it is None or it.published_at is None:
            continue
        events: list[tuple[str, str, datetime | None]] = [
            ("final", "final", _final(it, rule, export.settle)),
            ("published", "published", it.published_at),
            ("picked", "picked up", it.deadlines.picked_up.done),
        ]
        made = []
        for place, (kind, word, at) in enumerate(events):
            if at is not None:
                x = round(LEFT + (number + 0.5) * slot + (place - 1) * _BESIDE, 1)
                hours = (at - start_of(day)).total_seconds() / 3600
                made.append(
                    Point(kind, x, y(hours), f"{day} {word} {hours:.1f} h after it began, {at:%Y-%m-%d %H:%M}Z")
                )
        spans.append(" ".join(f"{point.x},{point.y}" for point in made))
        points += made
    if not points:
        return None
    known = [it for day in shown if (it := days.get(day)) is not None and it.published_at is not None]
    by = known[-1].deadlines
    deadlines = tuple(
        Mark(y((at - start_of(known[-1].day)).total_seconds() / 3600), text)
        for at, text in ((by.published.by, "to be published"), (by.picked_up.by, "to be picked up"))
    )
    late = sum(1 for it in known if it.waits_for_pickup and it.deadlines.picked_up.left < timedelta())
    words = f"{len(known)} days published, {late} of them not picked up by the deadline, 72 hours after the day began"
    y_marks = tuple(Mark(y(hours), f"{hours} h") for hours in (24, 36, 48, 60, 72))
    return HoursPlot(tuple(points), tuple(spans), deadlines, _x_marks(shown, slot, 1), y_marks, words)


def books(tally: Tally) -> list[Part]:
    """Return the non-empty parts of a tally: lines, then each reason."""
    found = [("lines", "lines", tally.lines)]
    found += [(f"filtered f{n}", f"filtered: {r}", tally.filtered[r]) for n, r in enumerate(FilterReason)]
    found += [(f"rejected r{n}", f"rejected: {r}", tally.rejected[r]) for n, r in enumerate(RejectReason)]
    # A minimum width, so that one row in a million is still seen.
    widths = [max(_LEAST, 1000 * count / max(tally.rows, 1)) if count else 0.0 for _, _, count in found]
    scale = 1000 / (sum(widths) or 1.0)
    parts, x = [], 0.0
    for (kind, words, count), width in zip(found, widths, strict=True):
        if count:
            parts.append(Part(kind, words.replace("_", " "), count, round(x, 2), round(width * scale, 2)))
        x += width * scale
    return parts


def _final(day: DayOverview, rule: FinalityRule, settle: timedelta) -> datetime | None:
    """Return when the first version published became final; None if it was not, or if that is not known."""
    if rule.marked:  # proven by Megaphone's marker, whose time is not kept
        return None
    export = day.publications[0].export
    at = max(rule.final_time(day.day), export.last_modified + settle)
    return at if day.published_at is not None and at <= day.published_at else None


def _shown(today: date, count: int = SHOWN) -> list[date]:
    return [today - timedelta(days=back) for back in range(count - 1, -1, -1)]


def _x_marks(shown: Sequence[date], slot: float, every: int = 2) -> tuple[Mark, ...]:
    """Return a mark for every second Monday, or for every one."""
    mondays = [n for n, day in enumerate(shown) if day.weekday() == 0]
    return tuple(Mark(round(LEFT + (n + 0.5) * slot, 1), f"{shown[n]:%m-%d}") for n in mondays[::every])


def _round_up(most: int) -> int:
    """Return the next number up that is easy to read, as is its half."""
    power = 1
    while most > 10 * power:
        power *= 10
    return next(round(step * power) for step in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if most <= step * power)


def _short(count: int) -> str:
    """Return a count for an axis: ``1.2 M``, ``40 k``."""
    for size, unit in ((1_000_000, " M"), (1000, " k")):
        if count >= size:
            return f"{count / size:g}{unit}"
    return str(count)
