"""The listener: accepts SSH connections and ends them.

Touches the listening socket. Promises: a client that is not admitted costs no cryptography; a reload is checked as a
whole before it takes effect, and running transfers go on; at a stop, transfers may finish first.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from typing import TYPE_CHECKING

import asyncssh
import structlog

from .connection import SshConnection, connection_options
from .handler import ServedFiles
from .limits import LINE_WINDOW, Reason, parse_address
from .login import LoginHandler
from .proxy_protocol import BadHeader, client_of, missing
from .registry import NO_DESCRIPTORS_HINT, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..pickups import Pickup
    from ..settings import SftpSettings
    from ..triton import LogFile
    from .keys import Credentials
    from .limits import Address
    from .registry import Login

log = structlog.get_logger()

BACKLOG = 512  # connections that the kernel holds until they are accepted
BAD_HEADER_HINT = (
    'switch PROXY protocol on in the balancer (HAProxy: "send-proxy-v2"; nginx: "proxy_protocol on"; AWS: '
    "proxy_protocol_v2.enabled = true), or take it out of proxy_protocol_from in [sftp]"
)
HOUSEKEEPING = 1.0  # seconds between looks at idle connections
CLOSE_SECONDS = 5.0  # for connections to end, once they were told to


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
        self.registry = Registry(
            settings, credentials, ServedFiles(list_files, open_file), on_pickup=on_pickup, on_login=on_login
        )
        self.arrived = 0
        self._credentials = credentials
        self._options = connection_options(settings, credentials, LoginHandler)
        self._arriving: set[asyncio.Task[None]] = set()
        self._next_number = 1
        self._socket: socket.socket | None = None
        self._port = 0
        self._accept_task: asyncio.Task[None] | None = None
        self._housekeeping_task: asyncio.Task[None] | None = None

    # -- the life of the listener --

    async def start(self, sock: socket.socket | None = None) -> None:
        """Listen on a socket of our own, or on one inherited from systemd.

        Raises:
            OSError: the address cannot be used.
        """
        if sock is None:
            sock = await _listening_socket(self.settings.host, self.settings.port)
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._socket = sock
        self._port = int(sock.getsockname()[1])
        self._accept_task = asyncio.create_task(self._accept(sock), name="sftp accepting")
        self._housekeeping_task = asyncio.create_task(self._keep_house(), name="sftp housekeeping")

    @property
    def port(self) -> int:
        """The port that is listened on; 0 before `start`."""
        return self._port

    async def wait(self) -> None:
        """Wait until `stop_listening`; raise what ended the listener, if anything did."""
        tasks = [task for task in (self._accept_task, self._housekeeping_task) if task is not None]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not task.cancelled():
                task.result()

    def replace(self, settings: SftpSettings, credentials: Credentials) -> None:
        """Use other users, keys, limits and algorithms for new connections; host and port stay.

        Raises:
            ValueError: the options cannot be used; everything stays as it was.
        """
        # First: if this raises, nothing has changed yet.
        options = connection_options(settings, credentials, LoginHandler)
        self.registry.replace(settings, credentials)
        self.settings, self._credentials, self._options = settings, credentials, options

    def stop_listening(self) -> None:
        """Accept no new connection and no new transfer; running transfers may go on."""
        # Before the socket closes: unless this is set, `_accept` takes the error of a closed socket for an accident.
        self.registry.draining = True
        for task in (self._accept_task, *self._arriving):
            if task is not None:
                task.cancel()
        if self._socket is not None:
            self._socket.close()

    async def drain(self, seconds: float) -> None:
        """Wait for running transfers, for at most ``seconds``, then end every connection."""
        # First: nothing new may begin meanwhile.
        self.stop_listening()
        deadline = time.monotonic() + seconds
        while self.registry.transfers and time.monotonic() < deadline:  # noqa: ASYNC110  # sessions set no event
            await asyncio.sleep(0.05)
        # Tell every client first, then wait: so the connections close in parallel.
        connections = list(self.registry.connections())
        for connection in connections:
            connection.disconnect(asyncssh.DISC_BY_APPLICATION, "The service is stopping")
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                for connection in connections:
                    await connection.wait_closed()
        except TimeoutError:  # if ending one of them fails, the others' pickups must still be recorded
            log.error("sftp could not end its connections", connections=len(connections))
        # Tasks that `stop_listening` cancelled may not have ended yet; nothing may be accepted after this.
        tasks = [task for task in (self._accept_task, self._housekeeping_task, *self._arriving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # One turn of the loop, for sessions that waited for a disk to report their last pickup.
        await asyncio.sleep(0)
        # Last: until now a session may have needed the threads.
        self.registry.close()

    @property
    def waiting(self) -> int:
        """The number of connections that the kernel holds and that were not accepted yet."""
        if self._socket is None or self._socket.fileno() < 0:
            return 0
        # For a listening socket, tcpi_unacked is the length of its queue (Linux, net/ipv4/tcp.c); 24 is the offset.
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
        return int.from_bytes(info[24:28], sys.byteorder)

    # -- letting in --

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        next_warning = 0.0
        while True:
            try:
                sock, peer = await loop.sock_accept(listener)
            except OSError as error:
                if self.registry.draining:
                    return
                # Out of descriptors, or a peer that left before it was accepted: go on, others will come.
                if time.monotonic() >= next_warning:
                    log.warning("sftp could not accept a connection", error=error.strerror, hint=NO_DESCRIPTORS_HINT)
                    next_warning = time.monotonic() + LINE_WINDOW
                await asyncio.sleep(0.2)
                continue
            self.arrived += 1
            try:
                address = parse_address(peer[0])
            except (ValueError, IndexError, TypeError):
                sock.close()
                continue
            if self.registry.is_balancer(address):
                admitted = self._begin_announced(sock, address) if self.registry.admit_balancer(address) else None
            else:
                wait = self.registry.admit(address, loop.time())
                admitted = None if wait is None else self._begin(sock, address, wait)
            if admitted is None:
                sock.close()
                continue
            task = loop.create_task(admitted)
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _begin_announced(self, sock: socket.socket, balancer: Address) -> None:
        """Read whose connection a balancer passes on, and treat it as that client's; one for nobody cannot log in."""
        client, read, kept = None, False, False
        try:
            client = await self._announced_client(sock)
            read, kept = True, client is None or self.registry.is_balancer(client)
        except BadHeader as error:
            self.registry.refused(balancer, Reason.BALANCER, why=str(error), hint=BAD_HEADER_HINT)
        except OSError:
            pass  # it hung up without a word, as a health check may
        finally:
            # This runs even if `stop_listening` cancelled the wait. A balancer's own connection stays counted as such.
            if not read:
                sock.close()
            if not kept:
                self.registry.announced()
        if kept:
            # In health checks, some balancers name themselves, others nobody.
            await self._begin(sock, client or balancer, 0.0, counted=False, named=client is not None)
        elif client is not None:
            wait = self.registry.admit(client, asyncio.get_running_loop().time())
            if wait is None:
                sock.close()
            else:
                await self._begin(sock, client, wait)

    async def _announced_client(self, sock: socket.socket) -> Address | None:
        """Read a PROXY header and nothing after it; return the client, or None if it names none.

        Raises:
            BadHeader: it is malformed, incomplete or late.
            OSError: the balancer hung up without a word.
        """
        loop, head, limit = asyncio.get_running_loop(), b"", self.settings.login_timeout.total_seconds()
        try:
            async with asyncio.timeout(limit):
                while count := missing(head):
                    data = await loop.sock_recv(sock, count)
                    if not data and head:
                        raise BadHeader(f"its PROXY header ends after {len(head)} bytes")
                    if not data:
                        raise ConnectionResetError
                    head += data
        except TimeoutError:
            raise BadHeader(f"its PROXY header did not come within {limit:g} s (login_timeout)") from None
        return client_of(head)

    async def _begin(
        self, sock: socket.socket, address: Address, wait: float, *, counted: bool = True, named: bool = True
    ) -> None:
        began = False
        try:
            if wait:
                await asyncio.sleep(wait)
            connection = SshConnection(
                self._options, self.registry, self._next_number, address, counted=counted, named=named
            )
            self._next_number += 1
            # Before the socket is handed over: from then on asyncssh may report the end of the connection.
            self.registry.joined(connection)
            began = True
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError:
            if began:
                self.registry.left(connection)
        finally:
            # This runs even if `stop_listening` cancelled the wait: the admitted connection must be counted out.
            if not began:
                sock.close()
                self.registry.never_began(address, counted=counted)

    # -- housekeeping --

    async def _keep_house(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HOUSEKEEPING)
            self.registry.summarize()
            oldest = loop.time() - self.registry.limits.idle_timeout
            for connection in self.registry.connections():
                connection.look_for_progress()
                if connection.user and connection.last_active < oldest:
                    self.registry.refused(connection.address, Reason.IDLE, connection.user)
                    connection.disconnect(asyncssh.DISC_BY_APPLICATION, "Idle for too long")


async def _listening_socket(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" accepts IPv4 clients, too, whatever the system's default.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
