"""Who may come in, how fast, and who is kept out for a while.

Pure counting: connections in all and from one address, the pace of new ones, failures, delays, bans, and which refusals
get a log line of their own. The clock (seconds, monotonic) is handed in. An IPv6 client counts by its /64, since one
host can have all of that. Promise: every table is bounded, every ban ends by itself, and an address that stands in a
user's ``allow_from`` is never delayed or banned.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..settings import SftpSettings

Address = IPv4Address | IPv6Address
FAILURE_WINDOW = 600.0  # seconds: failures count for ten minutes
MOST_ADDRESSES = 4096  # remembered for their failures or their pace; the longest quiet ones are forgotten first
PACE = 10.0  # new connections a second from one address; more wait their turn (ssh-audit calls under 20 safe)
BURST = 10.0  # that many at once do not wait
OPENS = 20.0  # files a second that one user may open, in all sessions; more wait their turn
OPENS_BURST = 400.0  # that many at once do not wait: two months of files and more
MOST_OPENS_WAITING = 600.0  # sessions that ended go on waiting: more are refused
OWN_DESCRIPTORS = 14  # kept free for a round and the ledger: nobody's connection or file may cost them
LEAST_TO_LOG_IN = 3.0  # seconds that a lone connection of its address has, however many others want its place
FREE_FAILURES = 2  # typing errors that cost no delay
FIRST_DELAY = 0.25  # seconds; doubled with every further failure
LONGEST_DELAY = 8.0
LINES_EACH = 5  # log lines of one reason from one address in LINE_WINDOW; then a summary
LINES_IN_ALL = 60
LINE_WINDOW = 60.0


class Reason(StrEnum):
    """Why somebody was refused; the words stand in the log, and fail2ban reads them."""

    BANNED = "banned"
    CONNECTIONS = "too-many-connections"
    CONNECTIONS_PER_ADDRESS = "too-many-connections-from-address"
    ADDRESS = "address-not-allowed"
    PASSWORD = "wrong-password"  # noqa: S105  # a reason, not a password
    USER = "unknown-user"
    SIGNATURE = "bad-signature"
    TRIES = "too-many-tries"
    LOGIN_TIMEOUT = "login-timeout"
    IDLE = "idle-timeout"
    SESSIONS = "too-many-sessions"
    HANDLES = "too-many-handles"
    PROTOCOL = "protocol-error"
    KEY_EXCHANGE = "no-common-algorithm"
    FLOOD = "too-many-requests"


def parse_address(text: str) -> Address:
    """The address a socket names: without a zone, and an IPv4-mapped one as its IPv4."""
    address = ip_address(text.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def address_group(address: Address) -> Address | IPv6Network:
    """What an address counts as."""
    return IPv6Network((address, 64), strict=False) if isinstance(address, IPv6Address) else address


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of ``[sftp]``, in the units that the counting needs (seconds, counts)."""

    connections: int = 50
    connections_per_address: int = 10
    sessions_per_user: int = 10
    auth_tries: int = 6
    handles: int = 64
    idle_timeout: float = 900.0
    ban_after: int = 20
    ban_time: float = 1800.0

    @classmethod
    def of(cls, settings: SftpSettings) -> Limits:
        """The limits that a configuration gives."""
        return cls(
            connections=settings.max_connections,
            connections_per_address=settings.max_connections_per_address,
            sessions_per_user=settings.max_sessions_per_user,
            auth_tries=settings.max_auth_tries,
            handles=settings.max_handles_per_session,
            idle_timeout=settings.idle_timeout.total_seconds(),
            ban_after=settings.ban_after,
            ban_time=settings.ban_time.total_seconds(),
        )


@dataclass(frozen=True, slots=True)
class Ban:
    """An address (or /64) that is kept out until ``until`` (seconds, the guard's clock)."""

    address: str
    until: float
    failures: int


@dataclass(frozen=True, slots=True)
class Penalty:
    """What a failure costs: seconds to wait before the answer, and whether it was one too many."""

    delay: float
    banned: bool


@dataclass(slots=True)
class _Record:
    failures: deque[float] = field(default_factory=deque)
    banned_until: float = 0.0
    counted: int = 0  # failures that led to the ban
    next_turn: float = 0.0  # when the pace is used up to


class Guard:
    """The counts of one listener."""

    def __init__(self, limits: Limits, exempt: Callable[[Address], bool]) -> None:
        self.limits = limits
        self.exempt = exempt
        self._connected: Counter[Address | IPv6Network] = Counter()
        self._records: OrderedDict[Address | IPv6Network, _Record] = OrderedDict()

    @property
    def connected(self) -> int:
        """Connections now."""
        return self._connected.total()

    def may_take(self, address: Address, descriptors: int) -> bool:
        """Whether an address may cost us one of so many free descriptors, with a connection or with a file.

        The last of them are the process's own; those before them are kept for ``connections_per_address`` connections,
        each with a file, of addresses in an ``allow_from``.
        """
        kept = 0 if self.exempt(address) else 2 * self.limits.connections_per_address
        return descriptors > OWN_DESCRIPTORS + kept

    def admit(self, address: Address, now: float, descriptors: int = sys.maxsize) -> Reason | float:
        """Count a new connection in; the seconds it must wait for its turn, or the reason why it is not counted.

        Addresses in an ``allow_from`` find room for ``connections_per_address`` more when all that is taken.
        ``descriptors`` are those that are still free.
        """
        key = address_group(address)
        record = self._records.get(key)
        if record is not None and record.banned_until > now and not self.exempt(address):
            return Reason.BANNED
        if self._connected[key] >= self.limits.connections_per_address:
            return Reason.CONNECTIONS_PER_ADDRESS
        room = self.limits.connections
        if self.exempt(address):
            room += self.limits.connections_per_address  # or strangers who idle before login keep the partner out
        if self.connected >= room or not self.may_take(address, descriptors):
            return Reason.CONNECTIONS
        self._connected[key] += 1
        record = self._touch(key)
        record.next_turn = max(record.next_turn, now) + 1 / PACE
        return max(0.0, record.next_turn - now - BURST / PACE)

    def leave(self, address: Address) -> None:
        """Count a connection out that was admitted."""
        key = address_group(address)
        self._connected[key] -= 1
        if self._connected[key] <= 0:
            del self._connected[key]

    def failed(self, address: Address, now: float) -> Penalty:
        """Count a failed login."""
        if self.exempt(address):
            return Penalty(0.0, banned=False)
        record = self._touch(address_group(address))
        failures = record.failures
        while failures and failures[0] <= now - FAILURE_WINDOW:
            failures.popleft()
        failures.append(now)
        if len(failures) >= self.limits.ban_after:
            record.banned_until = now + self.limits.ban_time
            record.counted = len(failures)
            failures.clear()
            return Penalty(0.0, banned=True)
        over = len(failures) - FREE_FAILURES
        return Penalty(min(FIRST_DELAY * 2.0 ** min(over - 1, 16), LONGEST_DELAY) if over > 0 else 0.0, banned=False)

    def bans(self, now: float) -> list[Ban]:
        """Who is kept out now."""
        return [
            Ban(str(key), record.banned_until, record.counted)
            for key, record in self._records.items()
            if record.banned_until > now
        ]

    def _touch(self, key: Address | IPv6Network) -> _Record:
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = _Record()
            if len(self._records) > MOST_ADDRESSES:
                self._records.popitem(last=False)
        self._records.move_to_end(key)
        return record


class OpenPace:
    """How fast each user opens files: every opening is a log line and two records, whose room is everybody's."""

    def __init__(self) -> None:
        self._next_turn: dict[str, float] = {}  # users are few: those of the configuration

    def turn(self, user: str, now: float) -> float:
        """Count one more opening; the seconds it must wait."""
        turn = self._next_turn[user] = max(self._next_turn.get(user, 0.0), now) + 1 / OPENS
        return max(0.0, turn - now - OPENS_BURST / OPENS)

    def is_crowded(self, user: str, now: float) -> bool:
        """Whether so many wait that one more may not."""
        return self._next_turn.get(user, 0.0) - now > (OPENS_BURST + MOST_OPENS_WAITING) / OPENS


def connection_to_drop(waiting: Iterable[tuple[Address, float]], newcomer: Address, now: float) -> int | None:
    """Which of the connections that are not logged in (address, time of arrival) must go when all places are taken.

    The oldest of the address that holds most of them; None when that is the newcomer's own, or when each address holds
    one and none had its time. So who fills the places with idle connections fills them for himself only.
    """
    arrivals: dict[Address | IPv6Network, list[tuple[float, int]]] = {}
    for index, (address, arrived) in enumerate(waiting):
        arrivals.setdefault(address_group(address), []).append((arrived, index))
    most = max(map(len, arrivals.values()), default=0)
    if len(arrivals.get(address_group(newcomer), ())) >= most:
        return None
    arrived, index = min(min(held) for held in arrivals.values() if len(held) == most)
    return index if most > 1 or now - arrived > LEAST_TO_LOG_IN else None


class LogBudget:
    """Which refusals get a line of their own; the others are counted and told in one line a minute."""

    def __init__(self) -> None:
        self._window_start = 0.0
        self._lines: Counter[tuple[str, str]] = Counter()
        self._total = 0
        self._kept_back: Counter[str] = Counter()

    def take(self, reason: str, address: str) -> bool:
        """Whether this refusal may be logged in full. Call `summaries` first."""
        key = (reason, address)
        if self._total < LINES_IN_ALL and self._lines[key] < LINES_EACH:
            self._lines[key] += 1
            self._total += 1
            return True
        self._kept_back[reason] += 1
        return False

    def summaries(self, now: float) -> Iterator[tuple[str, int]]:
        """Reasons and counts of what was kept back, once a window; empties the books."""
        if now - self._window_start >= LINE_WINDOW:
            yield from sorted(self._kept_back.items())
            self._window_start = now
            self._lines.clear()
            self._kept_back.clear()
            self._total = 0
