"""The registry: counts the connections of one listener, refuses what is too much, and logs both.

Touches the journal, the clock and this process's table of descriptors, but no socket. Connections, login handlers and
sessions ask it and report to it. Promises: every refusal is counted, and logged within a budget; a partner in an
``allow_from`` always finds room.
"""

from __future__ import annotations

import errno
import resource
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import structlog

from ..pickups import DOCTOR_CLIENT, Ending, Grade
from .limits import OWN_DESCRIPTORS, Guard, Limits, LogBudget, OpenPace, Penalty, Reason, connection_to_drop
from .users import PasswordChecks, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from ..pickups import Pickup
    from ..settings import SftpSettings
    from ..triton import LogName
    from .delivery import Together
    from .handler import ServedFiles
    from .keys import Credentials
    from .limits import Address
    from .users import Access

log = structlog.get_logger()

DISK_THREADS = 4
NO_DESCRIPTORS_HINT = "raise LimitNOFILE= in the unit (ulimit -n), or lower max_connections"
KEY_ONLY_HINT = "this user has no password_hash; the partner's client must log in with its key"
NO_CLIENT = "look at what the balancer sends in its PROXY header, or take it out of proxy_protocol_from in [sftp]"


@dataclass(frozen=True, slots=True)
class CurrentBan:
    """A ban, as `status` shows it: ``until`` is by the wall clock."""

    address: str
    until: datetime
    failures: int

    def as_json(self, listener: str) -> dict[str, Any]:
        """Return it as the ledger notes it; ``listener``, ``sftp`` or ``web``, is who keeps the address out."""
        until = self.until.isoformat(timespec="minutes")
        return {"address": self.address, "until": until, "failures": self.failures, "listener": listener}


@dataclass(frozen=True, slots=True)
class Login:
    """A successful login, for the records."""

    number: int
    user: str
    address: str
    client: str
    method: str
    kex: str
    host_key: str
    cipher: str
    mac: str


def current_bans(guard: Guard, now: float) -> list[CurrentBan]:
    """Return whom a guard keeps out ``now`` (seconds on its clock), and until when by the wall clock."""
    wall = datetime.now(UTC)
    return [CurrentBan(it.address, wall + timedelta(seconds=it.until - now), it.failures) for it in guard.bans(now)]


def plain(text: str, longest: int = 64) -> str:
    """Return a client's words made safe for one field of a log line: they cannot pass for another field or line."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._@-+/") else "_" for c in text[:longest])
    return kept or "-"


class Connection(Protocol):
    """What the registry needs of a connection; ``born`` and ``last_active`` are instants of the event loop's clock.

    A balancer's own is not ``counted``.
    """

    address: Address
    counted: bool
    user: str
    born: float
    last_active: float

    @property
    def label(self) -> str:
        """The words that open every journal line of the connection."""

    @property
    def sessions(self) -> Collection[Session]:
        """The sessions on it."""

    def abort(self) -> None:
        """End it at once."""

    def disconnect(self, code: int, reason: str) -> None:
        """End it, and tell the client why."""

    async def wait_closed(self) -> None:
        """Wait until it has ended."""

    def look_for_progress(self) -> None:
        """Count it as activity if the client has taken some of what was sent."""


class Session(Protocol):
    """What the registry needs of a session."""

    @property
    def busy(self) -> bool:
        """Whether a transfer is under way."""


@dataclass(slots=True)
class Counters:
    """What has happened since the service started, for the metrics."""

    connections: int = 0
    logins: int = 0
    sessions: int = 0
    bytes_sent: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    refused_verbs: Counter[str] = field(default_factory=Counter)
    pickups: Counter[str] = field(default_factory=Counter)


class Registry:
    """Who is connected to one listener, what they may do, and what they have done."""

    def __init__(
        self,
        settings: SftpSettings,
        credentials: Credentials,
        files: ServedFiles,
        *,
        on_pickup: Callable[[Pickup], None],
        on_login: Callable[[Login], None],
    ) -> None:
        self.files = files
        self.access: Access = credentials.access
        self.counters = Counters()
        self.draining = False
        self.disk_threads = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="sftp-disk")
        self.together: WeakValueDictionary[tuple[str, LogName], Together] = WeakValueDictionary()
        self._passwords = PasswordChecks()
        self._balancers = settings.proxy_protocol_from
        self._unannounced = 0  # balancers' connections that are not, or not yet, a client's
        self._guard = Guard(
            Limits.of(settings), lambda address: self.access.is_listed(address) or self.is_balancer(address)
        )
        self._opens = OpenPace()
        self._on_pickup = on_pickup
        self._on_login = on_login
        self._budget = LogBudget()
        self._connections: set[Connection] = set()

    def replace(self, settings: SftpSettings, credentials: Credentials) -> None:
        """Use other users and limits from now on; existing connections stay."""
        limits = Limits.of(settings)
        self.access, self._guard.limits, self._balancers = credentials.access, limits, settings.proxy_protocol_from

    def close(self) -> None:
        """Stop the threads, after the disk reads under way."""
        self._passwords.close()
        self.disk_threads.shutdown(wait=True)

    @property
    def limits(self) -> Limits:
        """The limits in force now."""
        return self._guard.limits

    # -- what status shows --

    def bans(self) -> list[CurrentBan]:
        """Return who is kept out now, and until when."""
        return current_bans(self._guard, time.monotonic())

    @property
    def connected(self) -> int:
        """The number of connections now."""
        return self._guard.connected

    @property
    def sessions(self) -> int:
        """The number of SFTP sessions now."""
        return sum(len(connection.sessions) for connection in self._connections)

    @property
    def transfers(self) -> int:
        """The number of connections with a transfer under way now."""
        return sum(any(session.busy for session in connection.sessions) for connection in self._connections)

    # -- letting in --

    def admit(self, address: Address, now: float) -> float | None:
        """Count a connection in; return the seconds until its turn, or None when it is refused.

        ``now`` is the event loop's time, by which connections are dated.
        """
        if not self.access.may_connect(address):
            self.refused(address, Reason.ADDRESS)
            return None
        verdict = self._guard.admit(address, time.monotonic(), free := free_descriptors())
        # The dropped connection's descriptor is freed only later, but counts as free.
        if verdict is Reason.CONNECTIONS and self._make_room(address, now):
            verdict = self._guard.admit(address, time.monotonic(), free + 1)
        if isinstance(verdict, Reason):
            self.refused(address, verdict)
            return None
        return verdict

    def is_balancer(self, address: Address) -> bool:
        """Return whether connections from this address name their client; it is then not counted or banned itself."""
        return any(address in network for network in self._balancers)

    def admit_balancer(self, address: Address) -> bool:
        """Return whether a balancer's connection may name its client; the number of those that have not is limited."""
        # Not per address, since the balancer's stands for everybody: as many again as there may be clients.
        if self._unannounced >= self._guard.limits.connections or free_descriptors() <= OWN_DESCRIPTORS:
            self.refused(
                address, Reason.BALANCER, why="too many connections have not named their client", hint=NO_CLIENT
            )
            return False
        self._unannounced += 1
        return True

    def announced(self) -> None:
        """Record that a balancer's connection has become a client's, or has ended."""
        self._unannounced -= 1

    def _make_room(self, newcomer: Address, now: float) -> bool:
        waiting = [connection for connection in self._connections if connection.counted and not connection.user]
        index = connection_to_drop([(connection.address, connection.born) for connection in waiting], newcomer, now)
        if index is None:
            return False
        self.refused(waiting[index].address, Reason.CONNECTIONS)
        waiting[index].abort()
        # Counted out now: asyncssh reports its end later, and the newcomer needs the slot at once.
        self.left(waiting[index])
        return True

    def joined(self, connection: Connection) -> None:
        """Record that an admitted connection now begins."""
        self._connections.add(connection)
        self.counters.connections += connection.counted

    def never_began(self, address: Address, *, counted: bool = True) -> None:
        """Count out an admitted connection that never began, or has ended."""
        if counted:
            self._guard.leave(address)
        else:
            self.announced()

    def login_failed(self, address: Address, reason: Reason, user: str) -> Penalty:
        """Count and log a failed login, and return what it costs."""
        # Kept by user so that a login can forgive it; an invented user never logs in, so its name is not kept.
        against = user if user in self.access.users else ""
        penalty = self._guard.failed(address, time.monotonic(), against)
        known = self.access.users.get(user)
        has_none = reason is Reason.PASSWORD and known is not None and known.password_hash is None
        self.refused(address, reason, user, **({"hint": KEY_ONLY_HINT} if has_none else {}))
        if penalty.banned:
            minutes = round(self._guard.limits.ban_time / 60, 1)
            log.warning(f"sftp banned {address}", minutes=minutes, failures=self._guard.limits.ban_after)
        return penalty

    def refused(self, address: Address, reason: Reason, user: str = "", **details: Any) -> None:
        """Count one refusal, and log it within the budget; fail2ban filters match this line."""
        self.counters.refusals[reason.value] += 1
        if self.may_log(reason.value, address):
            if user:
                details["user"] = plain(user, 32)
            log.warning(f"sftp refused {address}", reason=reason.value, **details)

    def may_log(self, reason: str, address: Address) -> bool:
        """Return whether a refusal may have a log line of its own; else count it for the summary."""
        self.summarize()
        return self._budget.take(reason, str(address))

    def logged_in(self, connection: Connection, login: Login) -> None:
        """Log and record a login, and forgive the address its failures as this user."""
        self._guard.forgive(connection.address, login.user)
        log.info(
            f"{connection.label} logged in",
            method=login.method,
            client=login.client,
            kex=login.kex,
            host_key=login.host_key,
            cipher=login.cipher,
            mac=login.mac,
        )
        self.counters.logins += 1
        # A login by `doctor` must not pass for the partner's.
        if login.client != DOCTOR_CLIENT:
            self._on_login(login)

    def has_room_for_session(self, connection: Connection) -> bool:
        """Return whether the connection's user may open one more session; count it, or the refusal."""
        count = sum(len(other.sessions) for other in self._connections if other.user == connection.user)
        if count >= self._guard.limits.sessions_per_user:
            self.refused(connection.address, Reason.SESSIONS, connection.user)
            return False
        self.counters.sessions += 1
        return True

    def may_open_file(self, connection: Connection) -> bool:
        """Return whether the connection's user may open one more file now; log why not."""
        if self._opens.is_crowded(connection.user, time.monotonic()):
            self.refused(connection.address, Reason.FLOOD, connection.user)
            return False
        if not self._guard.may_take(connection.address, free_descriptors()):
            self.refused(connection.address, Reason.DESCRIPTORS, connection.user, hint=NO_DESCRIPTORS_HINT)
            return False
        return not self.draining  # the client is about to be told so

    def turn_to_open(self, user: str) -> float:
        """Count one more opened file; return the seconds that it must wait for its turn."""
        return self._opens.turn(user, time.monotonic())

    def refused_verb(self, connection: Connection, verb: str, **details: Any) -> None:
        """Count and log one refused request."""
        self.counters.refused_verbs[verb] += 1
        if self.may_log(verb, connection.address):  # a client may open sessions in a loop
            log.warning(f"{connection.label} refused {verb}", **details)

    # -- who is who --

    def check_key(self, user: str, address: Address, key: bytes) -> Verdict:
        """Return whether the user may log in from this address with this public key (its SSH blob), or why not."""
        return self.access.check_key(user, address, key)

    async def check_password(self, user: str, address: Address, password: bytes) -> Verdict:
        """Return whether the user may log in from this address with this password (as sent), or why not."""
        return await self._passwords.check(self.access, user, address, password)

    def picked_up(self, connection: Connection, pickup: Pickup) -> None:
        """Record a pickup when its handle is opened, while it is read, and when it has ended; log its end."""
        if pickup.ended is not None:
            event, details = pickup_log_entry(connection.label, pickup)
            log.info(event, **details)
            self.counters.pickups[pickup.grade.value] += 1
        self._on_pickup(pickup)

    def turned_away(self, connection: Connection, **details: Any) -> None:
        """Count and log a client that left when it had seen our host key."""
        self.counters.refusals[Reason.HOST_KEY.value] += 1
        if self.may_log(Reason.HOST_KEY.value, connection.address):
            log.warning(f"{connection.label} left at the host key", **details)

    def ended(self, connection: Connection, error: str) -> None:
        """Log that a user's connection ended because one side complained."""
        if connection.user:
            log.info(f"{connection.label} ended", error=error)

    def left(self, connection: Connection) -> None:
        """Count out a connection that has ended; a second call changes nothing."""
        # A dropped connection gets here twice: when it is dropped, and when asyncssh reports its end.
        if connection in self._connections:
            self._connections.discard(connection)
            self.never_began(connection.address, counted=connection.counted)

    # -- housekeeping --

    def summarize(self) -> None:
        """Log, once a minute, how many refusals had no line of their own."""
        for reason, count in self._budget.summaries(time.monotonic()):
            log.warning(f"sftp refused {count} more", reason=reason)

    def connections(self) -> Iterator[Connection]:
        """Iterate over the connections there are now, even while they come and go."""
        return iter(list(self._connections))


def free_descriptors() -> int:
    """Return how many more descriptors this process may open."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # never infinite: fs.nr_open bounds it
    try:
        return most - len(list(Path("/proc/self/fd").iterdir()))
    except OSError as error:
        # Listing takes a descriptor itself: EMFILE means that none is left. Without /proc nothing is known.
        return 0 if error.errno == errno.EMFILE else most


def pickup_log_entry(label: str, pickup: Pickup) -> tuple[str, dict[str, Any]]:
    """Return (event, details) of a finished pickup's line in the journal."""
    seconds = (pickup.ended - pickup.started).total_seconds() if pickup.ended else 0.0
    details: dict[str, Any] = {"bytes": pickup.covered, "seconds": round(seconds, 1)}
    if pickup.grade is Grade.COMPLETE:
        return f"{label} picked up {pickup.name}", details
    details |= {"of": pickup.size, "grade": pickup.grade.value, "ended": (pickup.ending or Ending.CLOSED).value}
    return f"{label} left {pickup.name}", details
