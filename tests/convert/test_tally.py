"""The books: their shape, their sums, and their way through JSON.

No outside world.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.convert.tally import FilterReason, RejectReason, Tally

counts = st.integers(0, 10**9)
tallies = st.builds(
    Tally,
    rows=counts,
    lines=counts,
    filtered=st.dictionaries(st.sampled_from([str(reason) for reason in FilterReason]), st.integers(1)).map(Counter),
    rejected=st.dictionaries(st.sampled_from([str(reason) for reason in RejectReason]), st.integers(1)).map(Counter),
    reporting=counts,
    clamped=counts,
    not_an_address=counts,
    ends_in_zero=counts,
    outside_day=counts,
    unmapped_episodes=counts,
    readdressed=counts,
    fallback_urls=counts,
    unmatched=counts,
)


def test_the_books_have_the_contracts_shape() -> None:
    """Key for key, in order; reasons that did not occur are left out, the others are in the order of the checks."""
    tally = Tally(rows=9, lines=2, reporting=3, clamped=1)
    tally.filtered[FilterReason.SHORT] += 1
    tally.filtered[FilterReason.NO_BYTES] += 2
    tally.rejected[RejectReason.DUPLICATE_ID] += 1
    tally.rejected[RejectReason.MALFORMED_JSON] += 3
    tally.rejected[RejectReason.NO_ID] += 0
    assert json.dumps(tally.as_json()) == (
        '{"rows": 9, "lines": 2, "filtered": {"no_bytes": 2, "short": 1}, '
        '"rejected": {"malformed_json": 3, "duplicate_id": 1}, "reporting": 3, "clamped": 1, "not_an_address": 0, '
        '"ends_in_zero": 0, "outside_day": 0, "unmapped_episodes": 0, "readdressed": 0, "fallback_urls": 0, '
        '"unmatched": 0}'
    )


def test_empty_books_balance() -> None:
    """No rows, no lines, and no division by zero."""
    tally = Tally()
    assert tally.balanced
    assert tally.rejected_share == 0.0
    assert tally.share_of_lines(0) == 0.0


@pytest.mark.parametrize(
    ("rows", "lines", "filtered", "rejected", "balanced"),
    [(10, 7, {"short": 2}, {"no_id": 1}, True), (10, 7, {"short": 1, "no_bytes": 1}, {"no_id": 1}, True),
     (10, 8, {"short": 2}, {"no_id": 1}, False), (11, 7, {"short": 2}, {"no_id": 1}, False),
     (3, 0, {}, {"no_id": 2, "no_ip": 1}, True)],
)  # fmt: skip
def test_the_books_balance_when_every_row_is_accounted_for(
    rows: int, lines: int, filtered: dict[str, int], rejected: dict[str, int], balanced: bool
) -> None:
    """``rows = lines + the sum of filtered + the sum of rejected``."""
    tally = Tally(rows=rows, lines=lines, filtered=Counter(filtered), rejected=Counter(rejected))
    assert tally.balanced is balanced


def test_shares_are_of_rows_and_of_lines() -> None:
    """Rejected of all rows; tokens and the like of the lines written."""
    tally = Tally(rows=200, lines=100, filtered=Counter(short=98), rejected=Counter(no_id=2), not_an_address=5)
    assert tally.rejected_share == 0.01
    assert tally.share_of_lines(tally.not_an_address) == 0.05


@given(tallies)
def test_books_come_back_from_the_ledger_as_they_went_in(tally: Tally) -> None:
    """Through JSON text."""
    assert Tally.from_json(json.loads(json.dumps(tally.as_json()))) == tally


def test_books_of_earlier_releases_are_read() -> None:
    """What they did not count is 0; their lines without a guid are the unmatched ones."""
    older = Tally(rows=9, lines=9, unmapped_episodes=4).as_json()
    for name in ("readdressed", "fallback_urls", "unmatched"):
        del older[name]
    assert Tally.from_json(older) == Tally(rows=9, lines=9, unmapped_episodes=4, unmatched=4)


@given(st.lists(tallies, max_size=4))
def test_parts_of_a_day_add_up(parts: list[Tally]) -> None:
    """Every number and every reason; what balances in its parts balances as a whole."""
    whole = Tally()
    for part in parts:
        whole.add(part)
    for name in set(whole.as_json()) - {"filtered", "rejected"}:
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)
    for reason in FilterReason:
        assert whole.filtered[reason] == sum(part.filtered[reason] for part in parts)
    for rejection in RejectReason:
        assert whole.rejected[rejection] == sum(part.rejected[rejection] for part in parts)
    if all(part.balanced for part in parts):
        assert whole.balanced


def test_the_filter_reasons_are_the_contracts() -> None:
    """Those of every publication in their order, and the two of late and unfinal ones; V2 alone has plays."""
    order = [str(reason) for reason in FilterReason]
    assert [reason for reason in order if reason not in ("sent_before", "too_fresh")] == [
        "play", "no_bytes", "blacklisted_ip", "blacklisted_ua", "short",
    ]  # fmt: skip
    assert {"sent_before", "too_fresh"} < set(order)
