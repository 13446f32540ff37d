"""Weeks in virtual time, an hour a step, against the model in `tests.support.months`; and some wild ones."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from server.megaphone.exports import start_of
from tests.support.months import HOUR, RULE, Plan, Walk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.site import Site


@pytest.mark.parametrize(("seed", "days", "most_rows"), [(1, 30, 0), (2, 18, 15), (3, 18, 0)])
def test_weeks_lose_nothing_and_send_nothing_twice(tmp_path: Path, seed: int, days: int, most_rows: int) -> None:
    """Every row of every final version goes out exactly once or is counted, and every day that can be is in time."""
    walk = Walk(tmp_path, random.Random(seed), days, max_rows_per_file=most_rows)
    walk.run()
    assert walk.accounts() == []
    site, names = walk.site, [sent.name for sent in walk.sent]
    assert len(names) == len(set(names)) > days
    assert all(later.mtime > earlier.mtime for earlier, later in pairwise(walk.sent))
    sent = Counter(i for sent in walk.sent for i in sent.ids)
    assert set(sent.values()) == {1}
    for plan in walk.plans.values():
        check_day(site, plan, set(sent))
    pruned = [log for log in site.ledger.logs() if log.state == "pruned"]
    assert len(pruned) > days - 10 and len(pruned) + len(site.files()) == len(names)
    site.check_folder()


@pytest.mark.parametrize(("seed", "kind"), [(1, "metrics"), (2, "delivery-v2")])
def test_weeks_in_which_everything_changes_lose_nothing(tmp_path: Path, seed: int, kind: str) -> None:
    """Outages of a week, settings that change, a lost ledger, an operator: each row is sent once, or reported."""
    walk = Walk(tmp_path, random.Random(seed), 14, wild=True, kind=kind)
    walk.run()
    assert walk.accounts() == [] and walk.rows > 100


def check_day(site: Site, plan: Plan, sent: set[str]) -> None:
    """One day's files against what was delivered."""
    publications, checks = site.ledger.publications(plan.day), site.ledger.late_checks(plan.day)
    if plan.first_chance is None:
        assert publications == []
        return
    assert publications[0].published_at == plan.first_chance, plan
    whole = [version for version in plan.versions if version.due and not version.torn]
    last = whole[-1] if whole else next(v for v in reversed(plan.versions) if not v.torn)
    unsent = checks[-1].unsent if checks else 0
    assert len(last.ids(good=True) - sent) == unsent, plan
    assert unsent == 0 or plan.versions[-1].at + RULE.settle >= start_of(plan.day + timedelta(days=3)) - HOUR
    tallies = [p.tally for p in publications] + [c.tally for c in checks]
    for tally in tallies:
        assert tally is not None and tally.balanced
    books = [t for t in tallies if t is not None and t.rows == len(last.rows)]
    assert books, plan
    assert books[-1].rejected.total() == last.rows.count(b"{")
    assert books[-1].filtered["blacklisted_ua"] == len(last.ids(good=False))
    assert books[-1].lines + books[-1].filtered["sent_before"] == len(last.ids(good=True))
