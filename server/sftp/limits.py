"""Who may connect, how fast, and who is kept out for a while.

Pure counting: connections in total and from one address, the pace of new ones, failures, delays, bans, and which
refusals get a log line of their own. The caller passes the clock in (seconds, monotonic). An IPv6 client counts by its
/64, since one host can have all of that. Promise: every table is bounded; a ban ends by itself, and not early, however
many other addresses turn up; an address in a user's ``allow_from`` is never banned, nor delayed for failed logins.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..settings import SftpSettings

T = TypeVar("T")
Address = IPv4Address | IPv6Address
Group = Address | IPv6Network  # what counts as one: an IPv4 address, an IPv6 /64
FAILURE_WINDOW = 600.0  # seconds: failures count for ten minutes
MAX_ADDRESSES = 4096  # in each table of the guard; more bans than this cannot be earned within one ban's half hour
PACE = 10.0  # new connections a second from one address; more wait their turn (ssh-audit calls under 20 safe)
BURST = 10.0  # this many at once need not wait
OPENS = 20.0  # files a second that one user may open, over all sessions; more wait their turn
OPENS_BURST = 400.0  # this many at once need not wait: two months of files and more
MAX_OPENS_WAITING = 600.0  # more are refused: an opening keeps waiting even after its session has ended
OWN_DESCRIPTORS = 14  # kept free for a round and the ledger: no connection and no served file may take them
MIN_LOGIN_TIME = 3.0  # seconds that an address's only connection keeps its slot, however many others want it
FREE_FAILURES = 2  # mistyped passwords that cost no delay
FIRST_DELAY = 0.25  # seconds; doubled with every further failure
MAX_DELAY = 8.0  # seconds
LINES_PER_REASON = 5  # log lines per reason and address within LINE_WINDOW; the rest are summarised
LINES_IN_TOTAL = 60
LINE_WINDOW = 60.0  # seconds


class Reason(StrEnum):
    """Why somebody was refused: the words of ``reason=`` in the journal, which fail2ban filters match."""

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
    SILENT = "keepalive-timeout"
    SESSIONS = "too-many-sessions"
    HANDLES = "too-many-handles"
    DESCRIPTORS = "no-descriptors"
    PROTOCOL = "protocol-error"
    KEY_EXCHANGE = "no-common-algorithm"
    HOST_KEY = "left-at-host-key"
    BALANCER = "proxy-protocol"
    SHA1 = "sha1-signature"
    SIGNATURE_ALGORITHM = "signature-algorithm"
    KEY = "unknown-key"
    KEYS = "too-many-keys"
    NO_CREDENTIALS = "no-credentials"
    FLOOD = "too-many-requests"


def parse_address(text: str) -> Address:
    """Parse a socket's address, dropping the zone; return an IPv4-mapped one as IPv4."""
    address = ip_address(text.partition("%")[0])
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def address_group(address: Address) -> Group:
    """Return what an address counts as: itself, or the IPv6 /64 that it is in."""
    return IPv6Network((address, 64), strict=False) if isinstance(address, IPv6Address) else address


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of ``[sftp]``: counts, and times in seconds."""

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
        """Return the limits that a configuration sets."""
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
    """An address (or /64) that is kept out until ``until`` (seconds on the guard's clock)."""

    address: str
    until: float
    failures: int


@dataclass(frozen=True, slots=True)
class Penalty:
    """What a failed login costs: seconds to wait before the answer, and whether it led to a ban."""

    delay: float
    banned: bool


class Guard:
    """The counts of one listener."""

    def __init__(self, limits: Limits, exempt: Callable[[Address], bool]) -> None:
        self.limits = limits
        self.exempt = exempt
        self._connected: Counter[Group] = Counter()
        # Three tables, so that a flood in one displaces nothing in another: the time up to which the pace is used up,
        # the failures (time, user), and the bans. The first two forget whoever has been quiet the longest.
        self._turns: OrderedDict[Group, float] = OrderedDict()
        self._failures: OrderedDict[Group, deque[tuple[float, str]]] = OrderedDict()
        self._bans: dict[Group, Ban] = {}

    @property
    def connected(self) -> int:
        """The number of connections now."""
        return self._connected.total()

    def may_take(self, address: Address, descriptors: int) -> bool:
        """Return whether an address may take one of ``descriptors`` free ones, for a connection or a file.

        The last `OWN_DESCRIPTORS` are the process's own; those before them are reserved for addresses in an
        ``allow_from``: enough for ``connections_per_address`` connections, each with a file.
        """
        reserved = 0 if self.exempt(address) else 2 * self.limits.connections_per_address
        return descriptors > OWN_DESCRIPTORS + reserved

    def admit(self, address: Address, now: float, descriptors: int = sys.maxsize) -> Reason | float:
        """Count a new connection in; return the seconds until its turn, or the reason why it is refused.

        When all slots are taken, addresses in an ``allow_from`` may still take ``connections_per_address`` more.
        ``descriptors`` is the number of free ones.
        """
        key = address_group(address)
        if key in self._bans and not self.exempt(address):
            if self._bans[key].until > now:
                return Reason.BANNED
            del self._bans[key]
        if self._connected[key] >= self.limits.connections_per_address:
            return Reason.CONNECTIONS_PER_ADDRESS
        room = self.limits.connections
        if self.exempt(address):
            # Otherwise strangers who idle before login would keep the partner out.
            room += self.limits.connections_per_address
        if self.connected >= room or not self.may_take(address, descriptors):
            return Reason.CONNECTIONS
        self._connected[key] += 1
        turn = max(self._turns.get(key, 0.0), now) + 1 / PACE
        _remember(self._turns, key, turn)
        return max(0.0, turn - now - BURST / PACE)

    def leave(self, address: Address) -> None:
        """Count out a connection that was admitted."""
        key = address_group(address)
        self._connected[key] -= 1
        if self._connected[key] <= 0:
            del self._connected[key]

    def failed(self, address: Address, now: float, user: str = "") -> Penalty:
        """Count a failed login, and return what it costs; ``user`` is the user it counts against, '' for none."""
        if self.exempt(address):
            return Penalty(0.0, banned=False)
        key = address_group(address)
        failures = self._failures.get(key, deque())
        while failures and failures[0][0] <= now - FAILURE_WINDOW:
            failures.popleft()
        failures.append((now, user))
        if len(failures) >= self.limits.ban_after and self._has_room_for_ban(now):
            self._bans.pop(key, None)  # so that the new one goes to the end: bans are kept in the order they began
            self._bans[key] = Ban(str(key), now + self.limits.ban_time, len(failures))
            # Counting starts over when the ban ends, or one more failure would ban again.
            self._failures.pop(key, None)
            return Penalty(0.0, banned=True)
        _remember(self._failures, key, failures)
        return Penalty(_delay(len(failures)), banned=False)

    def wait(self, address: Address, now: float) -> float:
        """Return the seconds until the delay for an address's last failure is over."""
        failures = self._failures.get(address_group(address))
        return max(0.0, failures[-1][0] + _delay(len(failures)) - now) if failures else 0.0

    def forgive(self, address: Address, user: str) -> None:
        """Forget an address's failures to log in as ``user``, since it has succeeded. A ban in force stays."""
        key = address_group(address)
        failures = self._failures.pop(key, ())
        if left := deque(failure for failure in failures if failure[1] != user):
            _remember(self._failures, key, left)

    def bans(self, now: float) -> list[Ban]:
        """Return who is kept out now."""
        return [ban for ban in self._bans.values() if ban.until > now]

    def _has_room_for_ban(self, now: float) -> bool:
        """Return whether one more ban can be kept; bans in force are never forgotten for it."""
        # Bans end in the order they began; after a reload with a shorter ban_time some are forgotten late.
        while self._bans and next(iter(self._bans.values())).until <= now:
            del self._bans[next(iter(self._bans))]
        return len(self._bans) < MAX_ADDRESSES


def _delay(failures: int) -> float:
    """Return the delay, in seconds, that the last of this many failures costs."""
    over = failures - FREE_FAILURES
    return min(FIRST_DELAY * 2.0 ** min(over - 1, 16), MAX_DELAY) if over > 0 else 0.0


def _remember(table: OrderedDict[Group, T], key: Group, value: T) -> None:
    """Put a value at the table's end; if it is full, forget the front, which has been quiet the longest."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > MAX_ADDRESSES:
        table.popitem(last=False)


class OpenPace:
    """How fast each user opens files: every opening costs a log line and two records in the ledger."""

    def __init__(self) -> None:
        self._next_turn: dict[str, float] = {}  # bounded: only configured users get here

    def turn(self, user: str, now: float) -> float:
        """Count one more opening; return the seconds that it must wait."""
        turn = self._next_turn[user] = max(self._next_turn.get(user, 0.0), now) + 1 / OPENS
        return max(0.0, turn - now - OPENS_BURST / OPENS)

    def is_crowded(self, user: str, now: float) -> bool:
        """Return whether so many openings are waiting that one more is refused."""
        return self._next_turn.get(user, 0.0) - now > (OPENS_BURST + MAX_OPENS_WAITING) / OPENS


def connection_to_drop(waiting: Iterable[tuple[Address, float]], newcomer: Address, now: float) -> int | None:
    """Return the index of the connection in ``waiting`` (address, time of arrival) to drop when all slots are taken.

    ``waiting`` are those not logged in. It is the oldest of the address that holds most; None if that is the newcomer's
    own, or if each address holds one and none has had `MIN_LOGIN_TIME`. So a flood of idle connections from one address
    crowds out only itself.
    """
    arrivals: dict[Address | IPv6Network, list[tuple[float, int]]] = {}
    for index, (address, arrived) in enumerate(waiting):
        arrivals.setdefault(address_group(address), []).append((arrived, index))
    most = max(map(len, arrivals.values()), default=0)
    if len(arrivals.get(address_group(newcomer), ())) >= most:
        return None
    arrived, index = min(min(held) for held in arrivals.values() if len(held) == most)
    return index if most > 1 or now - arrived > MIN_LOGIN_TIME else None


class LogBudget:
    """Which refusals get a line of their own; the others are counted, and summed up once a minute."""

    def __init__(self) -> None:
        self._window_start = 0.0
        self._lines: Counter[tuple[str, str]] = Counter()
        self._total = 0
        self._suppressed: Counter[str] = Counter()

    def take(self, reason: str, address: str) -> bool:
        """Return whether this refusal may be logged in full; else count it. Call `summaries` first."""
        key = (reason, address)
        if self._total < LINES_IN_TOTAL and self._lines[key] < LINES_PER_REASON:
            self._lines[key] += 1
            self._total += 1
            return True
        self._suppressed[reason] += 1
        return False

    def summaries(self, now: float) -> Iterator[tuple[str, int]]:
        """Yield (reason, count) of the refusals without a line, once per window, and start counting again."""
        if now - self._window_start >= LINE_WINDOW:
            yield from sorted(self._suppressed.items())
            self._window_start = now
            self._lines.clear()
            self._suppressed.clear()
            self._total = 0
