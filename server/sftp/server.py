"""The listener: lets SSH connections in, keeps the count of them, and ends them.

Touches the listening socket. Promise: who is not let in costs no cryptography; a reload is checked whole before it
counts, and running transfers go on; when it stops, transfers may finish first.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import structlog

from ..pickups import DOCTOR_CLIENT
from .connection import SshConnection, connection_options
from .handler import Catalogue
from .limits import LINE_WINDOW, Guard, Limits, LogBudget, OpenPace, Penalty, Reason, gives_way, parse_address
from .login import Login, plain
from .session import told
from .users import PasswordChecks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..pickups import Pickup
    from ..settings import SftpSettings
    from ..triton import LogFile
    from .keys import Credentials
    from .limits import Address
    from .users import Access

log = structlog.get_logger()

BACKLOG = 512
NO_ACCEPT_HINT = "raise LimitNOFILE= of the unit (ulimit -n), or lower max_connections"
HOUSEKEEPING = 1.0  # seconds
DISK_THREADS = 4


@dataclass(frozen=True, slots=True)
class CurrentBan:
    """A ban as status shows it."""

    address: str
    until: datetime
    failures: int


@dataclass(slots=True)
class Counters:
    """What happened since the start, for metrics."""

    connections: int = 0
    logins: int = 0
    sessions: int = 0
    bytes_sent: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    refused_verbs: Counter[str] = field(default_factory=Counter)
    pickups: Counter[str] = field(default_factory=Counter)


class SftpServer:
    """The SFTP service on one listening socket."""

    def __init__(
        self,
        settings: SftpSettings,
        credentials: Credentials,
        *,
        list_files: Callable[[], Mapping[str, LogFile]],
        open_file: Callable[[LogFile], int],
        on_pickup: Callable[[Pickup], None] = lambda _: None,
        on_login: Callable[[Login], None] = lambda _: None,
    ) -> None:
        self.settings = settings
        self.access: Access = credentials.access
        self.arrived = 0
        self.catalogue = Catalogue(list_files, open_file)
        self.counters = Counters()
        self.draining = False
        self.passwords = PasswordChecks()
        self.disk_threads = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="sftp-disk")
        self.guard = Guard(Limits.of(settings), lambda address: self.access.is_listed(address))
        self.opens = OpenPace()
        self._credentials = credentials
        self._options = connection_options(settings, credentials)
        self._on_pickup = on_pickup
        self._on_login = on_login
        self._budget = LogBudget()
        self._connections: set[SshConnection] = set()
        self._arriving: set[asyncio.Task[None]] = set()
        self._next_number = 1
        self._socket: socket.socket | None = None
        self._port = 0
        self._accepting: asyncio.Task[None] | None = None
        self._tending: asyncio.Task[None] | None = None

    # -- the life of the listener --

    async def start(self, sock: socket.socket | None = None) -> None:
        """Listen, on a socket of our own or on one inherited from systemd.

        Raises:
            OSError: the address cannot be listened on.
        """
        if sock is None:
            sock = await _listening_socket(self.settings.host, self.settings.port)
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._socket = sock
        self._port = int(sock.getsockname()[1])
        self._accepting = asyncio.create_task(self._accept(sock), name="sftp accepting")
        self._tending = asyncio.create_task(self._tend(), name="sftp housekeeping")

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before `start`."""
        return self._port

    async def wait(self) -> None:
        """Wait until `stop_listening`; raises what ended the listener, if something did."""
        tasks = [task for task in (self._accepting, self._tending) if task is not None]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                task.result()

    def replace(self, settings: SftpSettings, credentials: Credentials) -> None:
        """Use other users, keys, limits and algorithms for connections to come. Host and port stay.

        Raises:
            ValueError: the options cannot be used; everything stays as it was.
        """
        options = connection_options(settings, credentials)
        limits = Limits.of(settings)
        self.settings, self.access, self._options = settings, credentials.access, options
        self._credentials = credentials
        self.guard.limits = limits

    def stop_listening(self) -> None:
        """Let nobody in any more; a transfer that runs may go on, a new one may not begin."""
        self.draining = True
        for task in (self._accepting, *self._arriving):
            if task is not None:
                task.cancel()
        if self._socket is not None:
            self._socket.close()

    async def drain(self, seconds: float) -> None:
        """Wait for running transfers, at most so long, then end every connection."""
        self.stop_listening()
        deadline = time.monotonic() + seconds
        while self.transfers and time.monotonic() < deadline:  # noqa: ASYNC110  # sessions know nothing of waiters
            await asyncio.sleep(0.05)
        for connection in list(self._connections):
            connection.disconnect(asyncssh.DISC_BY_APPLICATION, "The service is stopping")
        for connection in list(self._connections):
            await connection.wait_closed()
        tasks = [task for task in (self._accepting, self._tending, *self._arriving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # sessions that waited for a disk write their last record
        self.passwords.close()
        self.disk_threads.shutdown(wait=True)

    @property
    def waiting(self) -> int:
        """Connections that the kernel holds and nobody has accepted yet."""
        if self._socket is None or self._socket.fileno() < 0:
            return 0
        # tcp(7): of a socket that listens, tcpi_unacked is the length of the queue; 24 is its offset in tcp_info.
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        return int.from_bytes(info[24:28], sys.byteorder)

    # -- what status shows --

    def bans(self) -> list[CurrentBan]:
        """Who is kept out now, and until when."""
        now, wall = time.monotonic(), datetime.now(UTC)
        bans = self.guard.bans(now)
        return [CurrentBan(ban.address, wall + timedelta(seconds=ban.until - now), ban.failures) for ban in bans]

    @property
    def connected(self) -> int:
        """Connections now."""
        return self.guard.connected

    @property
    def sessions(self) -> int:
        """SFTP sessions now."""
        return sum(len(connection.sessions) for connection in self._connections)

    @property
    def transfers(self) -> int:
        """Connections with a file open now."""
        return sum(any(session.busy for session in connection.sessions) for connection in self._connections)

    # -- letting in --

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        complain = 0.0
        while True:
            try:
                sock, peer = await loop.sock_accept(listener)
            except OSError as error:
                if self.draining:
                    return
                # Out of descriptors, or a peer that was gone before it was accepted: others may still come.
                if time.monotonic() >= complain:
                    log.warning("sftp could not accept a connection", error=error.strerror, hint=NO_ACCEPT_HINT)
                    complain = time.monotonic() + LINE_WINDOW
                await asyncio.sleep(0.2)
                continue
            self.arrived += 1
            try:
                address = parse_address(peer[0])
            except (ValueError, IndexError, TypeError):
                sock.close()
                continue
            wait = self._admit(address)
            if wait is None:
                sock.close()
                continue
            task = loop.create_task(self._begin(sock, address, wait))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    def _admit(self, address: Address) -> float | None:
        """Seconds until the connection's turn, or None when it is refused."""
        if not self.access.may_connect(address):
            self.refused(address, Reason.ADDRESS)
            return None
        verdict = self.guard.admit(address, time.monotonic(), free := _free_descriptors())
        if verdict is Reason.CONNECTIONS and self._make_room(address):
            verdict = self.guard.admit(address, time.monotonic(), free + 1)
        if isinstance(verdict, Reason):
            self.refused(address, verdict)
            return None
        return verdict

    def _make_room(self, newcomer: Address) -> bool:
        waiting = [connection for connection in self._connections if not connection.user]
        place = gives_way([(it.address, it.born) for it in waiting], newcomer, asyncio.get_running_loop().time())
        if place is None:
            return False
        self.refused(waiting[place].address, Reason.CONNECTIONS)
        waiting[place].abort()
        self.left(waiting[place])
        return True

    async def _begin(self, sock: socket.socket, address: Address, wait: float) -> None:
        began = False
        try:
            if wait:
                await asyncio.sleep(wait)
            connection = SshConnection(self._options, self, self._next_number, address)
            self._next_number += 1
            self._connections.add(connection)
            self.counters.connections += 1
            began = True
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError:
            if began:
                self.left(connection)
        finally:
            if not began:
                sock.close()
                self.guard.leave(address)

    # -- what connections tell --

    def login_failed(self, address: Address, reason: Reason, user: str) -> Penalty:
        """Count a failed login, log it, and say what it costs."""
        penalty = self.guard.failed(address, time.monotonic())
        self.refused(address, reason, user)
        if penalty.banned:
            minutes = round(self.guard.limits.ban_time / 60, 1)
            log.warning(f"sftp banned {address}", minutes=minutes, failures=self.guard.limits.ban_after)
        return penalty

    def refused(self, address: Address, reason: Reason, user: str = "", **details: Any) -> None:
        """Log one refusal; fail2ban reads this line."""
        self.counters.refusals[reason.value] += 1
        if self.may_tell(reason.value, address):
            if user:
                details["user"] = plain(user, 32)
            log.warning(f"sftp refused {address}", reason=reason.value, **details)

    def may_tell(self, reason: str, address: Address) -> bool:
        """Whether a refusal may have a line of its own; else it is counted for the summary."""
        self._summarize()
        return self._budget.take(reason, str(address))

    def _summarize(self) -> None:
        for reason, count in self._budget.summaries(time.monotonic()):
            log.warning(f"sftp refused {count} more", reason=reason)

    def logged_in(self, connection: SshConnection, login: Login) -> None:
        """A user is in."""
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
        if login.client != DOCTOR_CLIENT:  # else the doctor's visit would pass for the partner's
            self._on_login(login)

    def has_room_for_session(self, connection: SshConnection) -> bool:
        """Whether the connection's user may have one more session."""
        count = sum(len(other.sessions) for other in self._connections if other.user == connection.user)
        if count >= self.guard.limits.sessions_per_user:
            self.refused(connection.address, Reason.SESSIONS, connection.user)
            return False
        self.counters.sessions += 1
        return True

    def has_room_for_file(self, address: Address) -> bool:
        """Whether a client at this address may open one more file."""
        return self.guard.may_take(address, _free_descriptors())

    def picked_up(self, connection: SshConnection, pickup: Pickup) -> None:
        """A handle was opened, or its life ended."""
        if pickup.ended is not None:
            event, details = told(connection.label, pickup)
            log.info(event, **details)
            self.counters.pickups[pickup.grade.value] += 1
        self._on_pickup(pickup)

    def ended(self, connection: SshConnection, error: str) -> None:
        """The connection ended with a complaint of one of the sides."""
        if connection.user:
            log.info(f"{connection.label} ended", error=error)

    def left(self, connection: SshConnection) -> None:
        """The connection is over."""
        if connection in self._connections:
            self._connections.discard(connection)
            self.guard.leave(connection.address)

    # -- housekeeping --

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            self._summarize()
            oldest = loop.time() - self.guard.limits.idle_timeout
            for connection in list(self._connections):
                if connection.user and connection.last_active < oldest:
                    self.refused(connection.address, Reason.IDLE, connection.user)
                    connection.disconnect(asyncssh.DISC_BY_APPLICATION, "Idle for too long")


def _free_descriptors() -> int:
    """How many more descriptors this process may open."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # never endless: fs.nr_open bounds it
    try:
        return most - len(list(Path("/proc/self/fd").iterdir()))
    except OSError as error:
        return 0 if error.errno == errno.EMFILE else most  # without /proc nothing is known


async def _listening_socket(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
