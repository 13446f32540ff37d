"""What counts as a pickup."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pickups import DOCTOR_CLIENT, MAX_RANGES, Coverage, Ending, Grade, PickupProgress, shown_by_resuming
from server.triton import LogName

NAME = LogName.parse("MEGA20261120-00.tsv.gz")
START = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)


def progress(size: int) -> PickupProgress:
    assert NAME is not None
    return PickupProgress(NAME, size, "triton", "203.0.113.9", "JSCH-0.1.55", START)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=60))
def test_the_union_of_ranges_is_the_set_of_bytes(reads: list[tuple[int, int]]) -> None:
    """Whatever the order and overlap of the reads, the union counts each byte of the file once."""
    union = Coverage()
    expected: set[int] = set()
    for start, count in reads:
        union.add(start, start + count)
        expected |= set(range(start, start + count))
    assert union.bytes == len(expected)
    size = max(expected, default=-1) + 1
    assert union.covers(size) == (expected == set(range(size)))


def test_ranges_are_bounded_and_never_claim_too_much() -> None:
    """A client that reads every second byte fills a bounded table, and gaps filled later are still joined."""
    union = Coverage()
    for start in range(0, 4 * MAX_RANGES, 2):
        union.add(start, start + 1)
    assert union.bytes == MAX_RANGES
    union.add(0, 4 * MAX_RANGES)
    assert union.covers(4 * MAX_RANGES)


def test_a_full_table_of_ranges_is_small() -> None:
    """A client may have one for each of its hundreds of handles, twice: what was answered, and what was delivered."""
    tracemalloc.start()
    try:
        union = Coverage((start, start + 1) for start in range(1 << 32, (1 << 32) + 2 * MAX_RANGES, 2))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert union.bytes == MAX_RANGES
    assert taken < 40 * MAX_RANGES


@pytest.mark.parametrize(
    ("reads", "closed", "arrived", "grade", "ending"),
    [
        ([(0, 100)], True, 1, Grade.COMPLETE, Ending.CLOSED),
        ([(50, 50), (0, 50)], True, 2, Grade.COMPLETE, Ending.CLOSED),
        ([(0, 100), (90, 10), (90, 10)], True, 3, Grade.COMPLETE, Ending.CLOSED),
        ([(0, 50), (0, 50)], True, 2, Grade.PARTIAL, Ending.CLOSED),
        ([(1, 99)], True, 1, Grade.PARTIAL, Ending.CLOSED),
        ([(0, 100)], False, 0, Grade.PARTIAL, Ending.INTERRUPTED),
        ([(0, 100)], True, 0, Grade.PARTIAL, Ending.INTERRUPTED),
        ([(0, 100)], False, 1, Grade.COMPLETE, Ending.INTERRUPTED),
        ([(0, 50), (50, 50)], True, 1, Grade.PARTIAL, Ending.INTERRUPTED),
        ([(0, 100), (0, 50)], True, 1, Grade.COMPLETE, Ending.INTERRUPTED),
        ([], True, 0, Grade.OPENED, Ending.CLOSED),
    ],
)
def test_a_handle_is_complete_when_every_byte_arrived(
    reads: list[tuple[int, int]], closed: bool, arrived: int, grade: Grade, ending: Ending
) -> None:
    """Sums of bytes prove nothing: the union of what arrived decides, and the close only how the handle ended."""
    it = progress(100)
    for offset, count in reads:
        it.answered(offset, count)
    for offset, count in reads[:arrived]:
        it.delivered(offset, count)
    record = it.finished(START + timedelta(seconds=9), closed=closed)
    assert (record.grade, record.ending) == (grade, ending)
    assert record.bytes_answered == sum(count for _, count in reads)
    assert record.id == it.opened().id
    assert it.opened().ended is None


def test_what_the_doctor_reads_is_a_test_from_its_opening_on() -> None:
    """However much of the file it was, and however it ended."""
    it = replace(progress(100), client=DOCTOR_CLIENT)
    assert it.opened().grade is Grade.TEST
    it.answered(0, 100)
    it.delivered(0, 100)
    record = it.finished(START, closed=True)
    assert (record.grade, record.covered, record.ending) == (Grade.TEST, 100, Ending.CLOSED)
    assert it.finished(START, closed=False).grade is Grade.TEST


def test_a_file_read_in_random_order_is_complete() -> None:
    """Any permutation of the blocks of a file ends as one range."""
    it = progress(1_000_000)
    blocks = list(range(0, 1_000_000, 1000))
    random.Random(4).shuffle(blocks)
    for offset in blocks:
        it.delivered(offset, 1000)
    assert it.finished(START, closed=True).grade is Grade.COMPLETE


ALL = [(0, 10), (10, 10), (20, 10), (30, 10)]


@pytest.mark.parametrize(
    ("reads", "acknowledged", "resumed_at", "shown"),
    [
        # In the middle of a file, which was asked for up to 40 and acknowledged from 10 to 30.
        (ALL, (10, 30), 20, (10, 20)),
        (ALL, (10, 30), 15, (10, 15)),
        (ALL, (10, 30), 30, (10, 30)),
        (ALL, (10, 30), 10, None),  # nothing beyond what was proven
        (ALL, (10, 30), 5, None),
        (ALL, (10, 30), 0, None),  # begun anew
        (ALL, (10, 30), 31, None),  # more than was acknowledged
        (ALL, (10, 30), 40, None),
        (ALL, (10, 30), 100, None),
        # All that it had asked for.
        (ALL, (10, 40), 40, (10, 40)),
        # The end of the file, where a read gets nothing.
        ([(80, 20)], (80, 100), 99, (80, 99)),
        ([(80, 20)], (80, 100), 100, (80, 100)),
        ([(80, 20)], (80, 100), 101, None),
        # What was not read in one run.
        ([(0, 10), (20, 10), (30, 10)], (0, 10), 5, None),
        ([(0, 10), (20, 10), (30, 10)], (20, 30), 25, (20, 25)),
        ([(50, 10), (0, 20)], (50, 60), 55, None),
        ([(50, 10), (0, 20)], (0, 20), 15, (0, 15)),
    ],
)
def test_a_resumed_client_shows_what_it_has(
    reads: list[tuple[int, int]], acknowledged: tuple[int, int], resumed_at: int, shown: tuple[int, int] | None
) -> None:
    """Of what its system acknowledged before it was killed: all before the offset at which it goes on, and no more."""
    it = progress(100)
    for offset, count in reads:
        it.answered(offset, count)
    it.leave_tail(*acknowledged)
    tail = it.finished(START, closed=False).tail
    assert shown_by_resuming(tail, resumed_at, alone=True) == (shown or (0, 0))
    assert shown_by_resuming(tail, resumed_at, alone=False) == (0, 0)
    assert shown_by_resuming(None, resumed_at, alone=True) == (0, 0)


def test_a_handle_that_was_read_beside_another_leaves_nothing() -> None:
    """Its client fetches pieces, and goes on elsewhere without having this one."""
    it = progress(100)
    it.answered(0, 50)
    it.alone = False
    it.leave_tail(10, 40)
    assert it.finished(START, closed=False).tail is None
