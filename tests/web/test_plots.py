"""The plots: where something is drawn, by number."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import pairwise

import pytest

from server.convert.tally import Tally
from server.web.plots import BOTTOM, HEIGHT, SHOWN, TOP, books, hours_plot, rows_plot

from ..support.pages import page_config
from ..support.site import DAY, Site, at, name, rows_of


def test_one_row_among_a_million_is_seen_and_the_bar_ends_where_it_should() -> None:
    """Parts follow each other without a gap, the smallest has a width, all together are the bar."""
    tally = Tally(rows=1_000_000, lines=999_998, filtered={"short": 1}, rejected={"no_ip": 1})
    parts = books(tally)
    assert [(part.words, part.rows) for part in parts] == [
        ("lines", 999_998),
        ("filtered: short", 1),
        ("rejected: no ip", 1),
    ]
    assert all(part.width >= 3 for part in parts)
    for part, after in pairwise(parts):
        assert part.x + part.width == pytest.approx(after.x, abs=0.02)
    assert parts[-1].x + parts[-1].width == pytest.approx(1000, abs=0.02)
    assert books(Tally()) == []


async def test_rows_are_as_high_as_they_are_many_and_stand_before_their_weekdays_range(site: Site) -> None:
    """Four weeks of one weekday; the fifth has the range of the others behind it."""
    first, counts = DAY - timedelta(weeks=4), (80, 100, 60, 90, 50)
    site.restart(first_day=first)
    for week, count in enumerate(counts):
        day = first + timedelta(weeks=week)
        site.put(rows_of(day, count), at(1, "04:00", day), day)
        await site.round(at(1, "05:30", day))
    days = site.days(at(1, "06:00"))
    plot = rows_plot(days, DAY + timedelta(days=1))
    assert plot is not None
    base, whole = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    bar = next(bar for bar in plot.bars if bar.words.startswith(str(DAY)))
    assert "50 rows, 50 lines; the same weekday had 60 to 100 rows" in bar.words
    assert (bar.rows_y, bar.lines_y) == (base - whole * 0.5, base - whole * 0.5)
    assert (bar.range_y, bar.range_height) == (TOP, pytest.approx(whole * 0.4))
    assert [mark.text for mark in plot.y_marks] == ["0", "50", "100"]


async def test_hours_run_from_the_beginning_of_a_day(site: Site) -> None:
    """Final before published before picked up, below the deadline; nothing published, no plot."""
    export = page_config(site.root).export
    assert hours_plot(site.days(at(1)), DAY, export) is None
    site.put(rows_of(DAY, 5), at(1, "04:00"))
    await site.round(at(1, "05:30"))
    site.pick_up(at(1, "12:00"), name())
    plot = hours_plot(site.days(at(1, "13:00")), DAY + timedelta(days=1), export)
    assert plot is not None
    kinds = {point.kind: point for point in plot.points}
    assert kinds["final"].y > kinds["published"].y > kinds["picked"].y > plot.deadlines[0].at > plot.deadlines[1].at
    assert "published 29.5 h after it began" in kinds["published"].words
    assert "picked up 36.0 h" in kinds["picked"].words
    # An hour apart they would lie on each other, so each has a place of its own within the day.
    assert kinds["final"].x + 4 < kinds["published"].x < kinds["picked"].x - 4
    assert [span.count(",") for span in plot.spans] == [3]


def test_no_rows_no_plot() -> None:
    """An empty installation has none."""
    assert rows_plot({}, date(2026, 11, 20)) is None
    assert SHOWN == 60
