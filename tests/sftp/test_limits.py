"""Counting connections, failures, bans and log lines, by a clock that the test sets."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING

import pytest

from server.sftp.limits import (
    BURST,
    FAILURE_WINDOW,
    LINE_WINDOW,
    LINES_PER_REASON,
    MAX_ADDRESSES,
    OPENS,
    OPENS_BURST,
    OWN_DESCRIPTORS,
    PACE,
    Guard,
    Limits,
    LogBudget,
    OpenPace,
    Penalty,
    Reason,
    parse_address,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD, BAD = ip_address("198.51.100.7"), ip_address("203.0.113.9")
OTHER = ip_address("192.0.2.9")


def guard(**limits: float) -> Guard:
    return Guard(Limits(**limits), lambda address: address in ip_network("198.51.100.0/24"))  # type: ignore[arg-type]


def test_connections_are_limited_in_total_and_for_each_address() -> None:
    """One address has a limit, all together have another, and a connection that ends makes room."""
    it = guard(connections=3, connections_per_address=2)
    assert [it.admit(BAD, 0), it.admit(BAD, 0)] == [0, 0]
    assert it.admit(BAD, 0) is Reason.CONNECTIONS_PER_ADDRESS
    assert it.admit(OTHER, 0) == 0
    assert it.admit(ip_address("192.0.2.1"), 0) is Reason.CONNECTIONS
    it.leave(BAD)
    assert it.admit(ip_address("192.0.2.1"), 0) == 0
    assert it.connected == 3


def test_strangers_never_take_the_room_of_listed_addresses() -> None:
    """When all connections are taken, addresses in an allow list find as many more as one address may have."""
    it = guard(connections=4, connections_per_address=2)
    strangers = [ip_address(f"203.0.113.{number}") for number in range(20)]
    assert sum(it.admit(stranger, 0) == 0 for stranger in strangers) == 4
    assert [it.admit(GOOD, 0), it.admit(GOOD, 0)] == [0, 0]
    assert it.admit(GOOD, 0) is Reason.CONNECTIONS_PER_ADDRESS
    assert it.admit(ip_address("198.51.100.8"), 0) is Reason.CONNECTIONS
    assert it.connected == 6


def test_the_last_descriptors_are_for_listed_addresses_and_the_process() -> None:
    """Strangers stop where a listed address still finds its connections and a file each; it stops before our own."""
    it = guard(connections_per_address=2)
    assert it.admit(BAD, 0, OWN_DESCRIPTORS + 5) == 0
    assert it.admit(BAD, 0, OWN_DESCRIPTORS + 4) is Reason.CONNECTIONS
    assert it.admit(GOOD, 0, OWN_DESCRIPTORS + 1) == 0
    assert it.admit(GOOD, 0, OWN_DESCRIPTORS) is Reason.CONNECTIONS
    assert it.connected == 2


def test_new_connections_are_paced_not_refused() -> None:
    """After a burst each further connection waits its turn, and a pause makes up for it."""
    it = guard(connections=1000, connections_per_address=1000)
    waits = [it.admit(BAD, 100.0) for _ in range(int(BURST) + 5)]
    assert waits[: int(BURST)] == [0] * int(BURST)
    assert all(isinstance(wait, float) and wait > 0 for wait in waits[int(BURST) :])
    assert it.admit(BAD, 100.0 + (BURST + 6) / PACE) == 0


def test_openings_are_paced_for_each_user() -> None:
    """A loop of openings is slowed down, another user is not, and a pause makes up for it."""
    it = OpenPace()
    waits = [it.turn("loop", 100.0) for _ in range(int(OPENS_BURST) + 3)]
    assert waits[: int(OPENS_BURST)] == [0] * int(OPENS_BURST)
    assert waits[int(OPENS_BURST) :] == pytest.approx([1 / OPENS, 2 / OPENS, 3 / OPENS])
    assert it.turn("other", 100.0) == 0
    assert it.turn("loop", 100.0 + (OPENS_BURST + 4) / OPENS) == 0


def test_delays_grow_and_end_in_a_ban_that_ends_by_itself() -> None:
    """Mistyped passwords cost nothing, then each failure costs twice the last, then the address is banned."""
    it = guard(ban_after=8, ban_time=1800)
    delays = [it.failed(BAD, float(second)) for second in range(7)]
    assert [penalty.delay for penalty in delays] == [0, 0, 0.25, 0.5, 1, 2, 4]
    assert it.failed(BAD, 7.0).banned
    assert it.admit(BAD, 8.0) is Reason.BANNED
    assert [(ban.address, ban.failures) for ban in it.bans(8.0)] == [(str(BAD), 8)]
    assert it.admit(BAD, 7.0 + 1800.5) == 0
    assert it.bans(7.0 + 1800.5) == []


def test_failures_are_forgotten_after_ten_minutes() -> None:
    """Slow failures never add up."""
    it = guard(ban_after=3)
    assert not any(it.failed(BAD, i * FAILURE_WINDOW / 2 + i).banned for i in range(20))


def test_listed_addresses_are_never_delayed_or_banned() -> None:
    """An address in a user's allow list may fail for ever."""
    it = guard(ban_after=3)
    assert not any(it.failed(GOOD, 0.0).banned or it.failed(GOOD, 0.0).delay for _ in range(100))
    assert it.admit(GOOD, 1.0) == 0


def test_an_ipv6_client_counts_by_its_64() -> None:
    """Another address of the same /64 shares the ban, the neighbour does not; mapped IPv4 is IPv4."""
    it = guard(ban_after=2)
    it.failed(ip_address("2001:db8::1"), 0.0)
    assert it.failed(ip_address("2001:db8::ffff:1"), 0.0).banned
    assert it.admit(ip_address("2001:db8::2"), 1.0) is Reason.BANNED
    assert it.admit(ip_address("2001:db8:0:1::2"), 1.0) == 0
    assert [ban.address for ban in it.bans(1.0)] == ["2001:db8::/64"]
    assert parse_address("::ffff:203.0.113.9") == BAD
    assert parse_address("fe80::1%eth0") == ip_address("fe80::1")


def strangers(count: int) -> Iterator[IPv4Address]:
    """This many addresses that nobody has seen yet."""
    return (IPv4Address(number + (10 << 24)) for number in range(count))


def test_the_tables_of_addresses_are_bounded() -> None:
    """A flood from everywhere does not fill the memory, whether it connects, fails or is banned."""
    it = guard(ban_after=5, connections=1 << 30)
    for address in strangers(MAX_ADDRESSES + 500):
        it.admit(address, 0.0)
        it.leave(address)
        it.failed(address, 0.0)
    assert len(it._turns) == len(it._failures) == MAX_ADDRESSES
    it = guard(ban_after=1)
    assert sum(it.failed(address, 0.0).banned for address in strangers(MAX_ADDRESSES + 500)) == MAX_ADDRESSES
    assert len(it.bans(0.0)) == MAX_ADDRESSES


def test_a_ban_lasts_its_time_however_many_others_come_by() -> None:
    """Others' connections, failures and bans make it forget no ban in force, nor connections any failures."""
    it = guard(ban_after=3, ban_time=1800, connections=1 << 30)
    assert [it.failed(BAD, 0.0).banned for _ in range(3)] == [False, False, True]
    assert [it.failed(OTHER, 0.0).banned for _ in range(2)] == [False, False]
    for address in strangers(MAX_ADDRESSES + 500):
        it.admit(address, 1.0)
    assert it.failed(OTHER, 2.0).banned
    for address in strangers(MAX_ADDRESSES + 500):
        for _ in range(3):
            it.failed(address, 3.0)
    # Those who came when there was no room are delayed, and banned when there is.
    late = IPv4Address((10 << 24) + MAX_ADDRESSES + 499)
    assert it.admit(late, 4.0) == 0
    assert it.failed(late, 4.0) == Penalty(0.5, banned=False)
    assert it.admit(BAD, 1799.0) is Reason.BANNED
    assert it.admit(OTHER, 1799.0) is Reason.BANNED
    assert it.admit(BAD, 1800.5) == 0
    assert it.failed(late, 10_000.0) == Penalty(0.0, banned=False)
    assert [it.failed(late, 10_000.0).banned for _ in range(2)] == [False, True]


def test_a_login_forgives_the_failures_for_its_user_and_no_others() -> None:
    """Whoever has an account cannot wipe out their guesses at another's; and a ban stays."""
    it = guard(ban_after=4)
    for user in ("triton", "", "ops", "triton"):
        penalty = it.failed(BAD, 0.0, user)
    assert penalty.banned
    it.forgive(BAD, "triton")
    assert it.admit(BAD, 1.0) is Reason.BANNED
    for _ in range(10):
        assert not it.failed(OTHER, 2.0, "triton").banned
        it.forgive(OTHER, "triton")
    assert it._failures == {}
    for user in ("ops", "triton", "triton"):
        it.failed(OTHER, 3.0, user)
    it.forgive(OTHER, "triton")
    assert [it.failed(OTHER, 3.0, "triton").banned for _ in range(3)] == [False, False, True]


def test_a_flood_of_refusals_becomes_a_summary() -> None:
    """Each address gets a few lines a minute, then one line counts the rest."""
    budget = LogBudget()
    assert list(budget.summaries(1000.0)) == []
    logged = [budget.take("banned", "203.0.113.9") for _ in range(LINES_PER_REASON + 3)]
    assert logged == [True] * LINES_PER_REASON + [False] * 3
    assert budget.take("banned", "203.0.113.10")
    assert list(budget.summaries(1000.0 + LINE_WINDOW / 2)) == []
    assert list(budget.summaries(1000.0 + LINE_WINDOW)) == [("banned", 3)]
    assert budget.take("banned", "203.0.113.9")
