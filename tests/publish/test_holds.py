"""When a converted day is held, when it is given up, and what is warned of."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from server.convert.tally import Tally
from server.publish.holds import (
    HoldPolicy,
    acceptable,
    hold_reason,
    late_hold_reason,
    late_warnings,
    published_when_given_up,
    warnings,
    way_out,
)
from server.storage.records import Hold


def tally(rows: int = 100, rejected: int = 0, **counts: Any) -> Tally:
    """Return a tally of this many rows, all of them lines but the rejected ones."""
    return Tally(rows=rows, lines=rows - rejected, rejected=Counter({"no_ip": rejected}), **counts)


NO_LINE = Tally(rows=10, rejected=Counter({"no_ip": 4}), filtered=Counter({"blacklisted_ua": 6}))


@pytest.mark.parametrize(("found", "before", "policy", "reason"), [
    (tally(), [50], HoldPolicy(), None),
    (tally(rejected=1), [50], HoldPolicy(), None),
    (tally(rejected=2), [50], HoldPolicy(), "rejected"),
    (tally(rejected=2), [50], HoldPolicy(0.02), None),
    (tally(rejected=100), [50], HoldPolicy(1.0), None),
    (tally(rejected=1), [50], HoldPolicy(0.0), "rejected"),
    (tally(0), [], HoldPolicy(), None),
    (tally(0), [0, 0, 0, 0, 0, 0, 0], HoldPolicy(), None),
    (tally(0), [0, 0, 0, 0, 0, 0, 1], HoldPolicy(), "empty"),
    (tally(not_an_address=2), [50], HoldPolicy(tokens="hold"), "tokens"),
    (tally(not_an_address=1), [50], HoldPolicy(tokens="hold"), None),
    (tally(not_an_address=90), [50], HoldPolicy(tokens="hash"), None),
    (tally(not_an_address=90), [50], HoldPolicy(), None),
    (tally(rejected=9, not_an_address=90), [50], HoldPolicy(tokens="hold"), "tokens"),
    (tally(outside_day=50), [50], HoldPolicy(), None),
    (tally(outside_day=51), [50], HoldPolicy(), "outside_day"),
    (tally(rejected=9, outside_day=90), [50], HoldPolicy(), "outside_day"),
])  # fmt: skip
def test_why_a_day_is_held(found: Tally, before: list[int], policy: HoldPolicy, reason: str | None) -> None:
    """Too many rejects, no rows after days with some, tokens that were not agreed; each at its exact limit."""
    held = hold_reason(found, before, policy)
    assert (held and held[0]) == reason


def test_a_hold_says_every_number_and_every_reason() -> None:
    """The sentence has the counts, the share, the limit and the commonest reason; of two reasons it has both."""
    assert hold_reason(tally(rejected=3), [], HoldPolicy()) == (
        "rejected", "3 of 100 rows were rejected (3.0%, allowed 1.0%), most of them no_ip",
    )  # fmt: skip
    both = hold_reason(tally(rejected=50, not_an_address=25), [], HoldPolicy(tokens="hold"))
    assert both is not None and "were rejected" in both[1] and "50.0% of the addresses" in both[1]


@pytest.mark.parametrize(("reason", "found", "goes"), [
    ("rejected", tally(rejected=49), True), ("rejected", tally(rejected=50), False), ("empty", tally(0), False),
    ("tokens", tally(rejected=2), False), ("outside_day", tally(rejected=2), False), ("rejected", NO_LINE, False),
])  # fmt: skip
def test_what_is_published_although_nobody_decided(reason: str, found: Tally, goes: bool) -> None:
    """Only a day held for its rejects, less than half of its rows, of which a line remains."""
    assert published_when_given_up(Hold("why", reason, "etag", found)) is goes


@pytest.mark.parametrize(("found", "goes"), [
    (tally(), True), (tally(rejected=99), True), (tally(rejected=100), False), (NO_LINE, False), (tally(0), True),
])  # fmt: skip
def test_what_an_operator_can_accept(found: Tally, goes: bool) -> None:
    """Whatever leaves a line, and a day without a row; the sentence says how, or that it cannot be done."""
    assert acceptable(found) is goes
    assert way_out(found, "type this").startswith("to publish it: type this" if goes else "no line would remain, so it")


@pytest.mark.parametrize(("found", "policy", "words"), [
    (tally(), HoldPolicy(), []),
    (tally(not_an_address=1), HoldPolicy(), ["1.0% of the addresses are hash-like"]),
    (tally(not_an_address=1), HoldPolicy(tokens="hash"), []),
    (tally(ends_in_zero=5), HoldPolicy(), []),
    (tally(ends_in_zero=6), HoldPolicy(), ["6.0% of the IPv4 addresses end in 0"]),
    (tally(outside_day=1), HoldPolicy(), []),
    (tally(outside_day=2), HoldPolicy(), ["2.0% of the lines belong to another day"]),
    (tally(0), HoldPolicy(), ["the export is empty"]),
    (tally(5, rejected=5), HoldPolicy(), ["no row became a line"]),
])  # fmt: skip
def test_what_is_warned_of(found: Tally, policy: HoldPolicy, words: list[str]) -> None:
    """Tokens while nothing is agreed, addresses truncated before they came, and days without a line."""
    told = warnings(found, policy)
    assert len(told) == len(words) and all(word in sentence for word, sentence in zip(words, told, strict=True))


@pytest.mark.parametrize(("new", "kept", "removed", "held"), [
    (100, 0, 100, True), (25, 49, 50, True), (24, 49, 50, False), (50, 50, 50, False), (0, 0, 100, False),
    (100, 100, 0, False), (1, 0, 1, True), (0, 0, 0, False),
])  # fmt: skip
def test_late_rows_are_held_when_most_of_what_was_sent_seems_to_be_gone(
    new: int, kept: int, removed: int, held: bool
) -> None:
    """Rows that Megaphone gave other ids would all be sent again; one that brings few others is reported as shrunk."""
    found = Tally(rows=new + kept, lines=new, filtered=Counter(sent_before=kept))
    reason = late_hold_reason(found, removed)
    assert (reason is not None) is held
    if reason is not None:
        assert reason[0] == "other_ids" and f"{removed} of the {removed + kept} rows sent before" in reason[1]


def test_a_bad_new_version_of_a_published_day_is_warned_of() -> None:
    """For rejects late rows are not held, so above the limit there is a warning; at the limit there is none."""
    assert late_warnings(tally(rejected=1), HoldPolicy(), 0) == []
    assert late_warnings(tally(rejected=2), HoldPolicy(), 0) == [
        "2 of 100 rows of its new version were rejected; look at rejects/"
    ]
    assert late_warnings(tally(outside_day=2), HoldPolicy(), 0) == ["2.0% of the lines belong to another day"]
    some_gone = Tally(rows=100, lines=6, filtered=Counter(sent_before=90))
    assert late_warnings(some_gone, HoldPolicy(), 10) == []
    (told,) = late_warnings(some_gone, HoldPolicy(), 11)
    assert told.startswith("11 of the 101 rows sent before are not in its new version") and "twice" in told
    assert late_warnings(Tally(rows=90, filtered=Counter(sent_before=90)), HoldPolicy(), 50) == []
