"""How late a day is: both deadlines, at every hour, as a table."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from server.publish.decisions import catching_up
from server.settings import AlertSettings
from server.status.deadlines import DeadlinePolicy, day_deadlines
from server.triton import expires
from tests.support.site import DAY, at

POLICY = DeadlinePolicy()


def test_a_day_expires_three_days_after_its_first_session() -> None:
    """A session at 00:00Z of day D stops counting at D+3 00:00Z."""
    assert expires(DAY) == at(3)


@pytest.mark.parametrize(("now", "published", "picked_up"), [
    (at(1, "04:30"), "ahead", "ahead"),
    (at(1, "11:59:59"), "ahead", "ahead"),
    (at(1, "12:00"), "warning", "ahead"),
    (at(1, "17:59:59"), "warning", "ahead"),
    (at(1, "18:00"), "critical", "ahead"),
    (at(2, "00:00"), "critical", "ahead"),
    (at(2, "00:00:01"), "late", "ahead"),
    (at(2, "12:00"), "late", "warning"),
    (at(2, "18:00"), "late", "critical"),
    (at(3, "00:00"), "late", "critical"),
    (at(3, "00:00:01"), "late", "late"),
])  # fmt: skip
def test_what_is_not_done_becomes_urgent_and_then_late(now: datetime, published: str, picked_up: str) -> None:
    """Either deadline warns 12 hours before it, is critical 6 hours before it, and late after it."""
    found = day_deadlines(DAY, POLICY, now, published=None, picked_up=None)
    assert (found.published.urgency, found.picked_up.urgency) == (published, picked_up)
    assert (found.published.by, found.picked_up.by) == (at(2), at(3))
    assert found.published.left == at(2) - now
    assert found.published.alarming == (published != "ahead")


@pytest.mark.parametrize(("done", "urgency"), [(at(2), "met"), (at(2, "00:00:01"), "late")])
def test_what_is_done_is_met_or_was_late_for_ever_and_alarms_nobody(done: datetime, urgency: str) -> None:
    """A deadline that was met stays met, one that was missed stays late, whatever the clock says later."""
    for now in (at(1), at(30)):
        found = day_deadlines(DAY, POLICY, now, published=done, picked_up=None).published
        assert (found.urgency, found.done, found.left) == (urgency, done, at(2) - done)
        assert not found.alarming


def test_the_partners_rhythm_moves_the_first_deadline_only() -> None:
    """Published by D+3 00:00Z minus ``pull_every``, picked up by D+3 00:00Z."""
    policy = DeadlinePolicy.of(
        AlertSettings.model_validate({"pull_every": "6h", "warn_before": "2h", "critical_before": "1h"})
    )
    found = day_deadlines(DAY, policy, at(2, "16:30"), published=None, picked_up=None)
    assert (found.published.by, found.picked_up.by) == (at(2, "18:00"), at(3))
    assert (found.published.urgency, found.picked_up.urgency) == ("warning", "ahead")


def test_catching_up_takes_the_oldest_that_counts_first() -> None:
    """Days within the three go first, the oldest of them first; those past them follow in order."""
    days = [DAY + timedelta(days=n) for n in range(6)]
    assert catching_up(reversed(days), at(4, "23:59:59")) == [*days[2:], *days[:2]]
    assert catching_up(days, at(3)) == [*days[1:], days[0]]
    assert catching_up(days, at(2, "23:59:59")) == days
