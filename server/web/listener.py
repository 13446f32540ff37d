"""The HTTP listener: who may connect, for how long, and what every answer carries.

Touches the socket that ``web.listen`` names. Promise: few connections, each short and with one small request; idle ones
are dropped before anybody is refused; the process's last descriptors are left to the SFTP server; a client's address is
logged only when it is refused.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, cast

import structlog
from aiohttp import HttpVersion10, HttpVersion11, web

from ..errors import CannotListen, unexpected
from ..sftp.limits import Reason, address_group, connection_to_drop, parse_address
from ..sftp.registry import free_descriptors
from .access import is_own_name
from .answer import ALWAYS, Answer, text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import StreamReader
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import RawRequestMessage
    from aiohttp.web import BaseRequest

    from ..settings import WebSettings
    from ..sftp.limits import Address
    from .access import Door

log = structlog.get_logger()

HEADER_SECONDS = 10.0  # from the connection to the end of the request's header
ANSWER_SECONDS = 60.0  # from there to the end of the connection
CLOSE_SECONDS = 1.0  # for answers under way when the service stops, and for a body that follows its answer
MAX_REQUEST = 16 * 1024  # bytes; no request has a body
MAX_LINE = 4 * 1024  # bytes
METHODS = ("GET", "HEAD")
OPEN = frozenset({"/healthz"})  # paths that need no password, for load balancers
_ABSOLUTE = re.compile(r"https?://([^/?#]*)(?=/)", re.IGNORECASE)  # a target that names its host, as for a proxy
_END_OF_HEADER = b"\r\n\r\n"
_SILENT = logging.getLogger("pickup-point.web")
_SILENT.disabled = True  # aiohttp logs what strangers send


class Listener:
    """Listens, and calls ``answer`` with the path and the query of every request that is let in."""

    def __init__(self, settings: WebSettings, door: Door, answer: Callable[[str, str], Awaitable[Answer]]) -> None:
        self._settings = settings
        self._door = door
        self._answer = answer
        self._names = _names(settings)
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._manager: web.Server | None = None

    async def start(self) -> int:
        """Start listening, and return the port.

        Raises:
            CannotListen: the address cannot be bound.
        """
        host, port = self._settings.host_and_port
        loop = asyncio.get_running_loop()
        manager = self._manager = web.Server(self._handle, request_factory=_request, handler_cancellation=True)
        try:
            self._server = await loop.create_server(lambda: _Connection(self, manager, loop), host, port)
        except (OSError, UnicodeError) as error:
            raise CannotListen.because(error, f"{host}:{port}", port, "web.listen", " for the page") from error
        return int(self._server.sockets[0].getsockname()[1])

    def replace(self, settings: WebSettings) -> None:
        """Answer to other names from now on."""
        self._names = _names(settings)

    async def close(self) -> None:
        """Stop listening, and end every connection."""
        if self._server is not None and self._manager is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.abort()
            await self._manager.shutdown(CLOSE_SECONDS)
            self._server = None

    # Connections

    def joined(self, connection: _Connection, address: Address) -> float | None:
        """Count a connection in; return the seconds until its turn, or None when it is refused."""
        verdict = self._door.admit(address, free := free_descriptors())
        crowded = (Reason.CONNECTIONS, Reason.CONNECTIONS_PER_ADDRESS)
        if verdict in crowded and self._make_room(address, own=verdict is Reason.CONNECTIONS_PER_ADDRESS):
            # The dropped connection gives its descriptor back only later; it counts as free already.
            verdict = self._door.admit(address, free + 1)
        if isinstance(verdict, Reason):
            self._door.refused(address, verdict.value)
            return None
        self._connections.add(connection)
        return verdict

    def _make_room(self, newcomer: Address, *, own: bool) -> bool:
        """Drop a connection for which no answer is made yet: the newcomer's oldest, or who holds the most."""
        idle = [connection for connection in self._connections if not connection.kept]
        mine = [connection for connection in idle if address_group(connection.address) == address_group(newcomer)]
        victim = min(mine, key=lambda connection: connection.born, default=None)
        if victim is None and not own:
            held = [(connection.address, connection.born) for connection in idle]
            index = connection_to_drop(held, newcomer, asyncio.get_running_loop().time())
            victim = idle[index] if index is not None else None
        if victim is None:
            return False
        victim.abort()
        self.left(victim)
        return True

    def left(self, connection: _Connection) -> None:
        """Count a connection out; a second call changes nothing."""
        if connection in self._connections:
            self._connections.discard(connection)
            self._door.leave(connection.address)

    # Requests

    async def _handle(self, request: BaseRequest) -> web.Response:
        connection = cast("_Connection", request.protocol)
        connection.begin_answer()
        await asyncio.sleep(connection.turn)
        try:
            answer = await self._decide(request, connection.address)
        except Exception as error:  # the service carries on, and the client sees no details
            why = unexpected(error)
            log.error("web could not answer", why=str(why), hint=why.hint)
            # A screen on a wall must not be stuck on the error: what failed once may work in a minute.
            sentence = "this page could not be made; the service's journal says where it failed"
            answer = text(500, sentence, Refresh="60")
        return response(answer)

    async def _decide(self, request: BaseRequest, address: Address) -> Answer:
        """Return the answer to a request; the checks are in the order that tells a stranger the least."""
        if not cast("_Connection", request.protocol).spoken:
            return text(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        if request.method not in METHODS:
            return text(405, "only GET and HEAD are answered here", Allow=", ".join(METHODS))
        hosts = request.headers.getall("Host", [])
        target = _ABSOLUTE.match(request.raw_path)
        if target is not None and len(hosts) == 1:
            hosts = [target[1]]  # RFC 9112, section 3.2.2: it takes the place of the header
        # A load balancer that speaks HTTP/1.0 sends none; what it asks for is not secret.
        nameless = not hosts and request.version < HttpVersion11 and request.path in OPEN
        if not nameless and (len(hosts) != 1 or not is_own_name(hosts[0], self._names)):
            return text(421, "this page does not answer to that name; web.hosts in the configuration lists its names")
        if target is None and not request.raw_path.startswith("/"):
            return text(400, "not a path")
        if request.path not in OPEN and not await self._admits(request, address):
            wanted = 'Basic realm="pickup-point", charset="UTF-8"'
            return text(401, "the page's password is needed; any name will do", WWW_Authenticate=wanted)
        return await self._answer(request.path, request.query_string)

    async def _admits(self, request: BaseRequest, address: Address) -> bool:
        """Return whether a request has the password; one delayed by an earlier guess is dropped if others need room."""
        connection = cast("_Connection", request.protocol)
        connection.kept = False
        admitted = await self._door.admits(request.headers.get("Authorization", ""), address)
        connection.kept = True
        return admitted


def _names(settings: WebSettings) -> frozenset[str]:
    """Return the names that the page answers to, besides addresses and localhost."""
    return frozenset(name.lower() for name in (*settings.hosts, settings.host_and_port[0]))


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> BaseRequest:
    """Return a request; one in a version of HTTP that is not spoken here becomes one of 1.1, and that is noted.

    aiohttp answers in the version of the request, whatever that is, so the answer to HTTP/2.0 would claim to be that.
    """
    connection = cast("_Connection", protocol)
    connection.spoken = message.version in (HttpVersion10, HttpVersion11)
    if not connection.spoken:
        message = message._replace(version=HttpVersion11)
    return web.BaseRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


def response(answer: Answer) -> web.Response:
    """Return an answer as an aiohttp response."""
    made = web.Response(status=answer.status, body=answer.body)
    made.headers.update({**ALWAYS, "Content-Type": answer.kind, **answer.headers})
    made.force_close()  # one request per connection, so that the limits of one are those of the other
    return made


class _Connection(web.RequestHandler):
    """One connection; ``turn`` is how long its answer waits (seconds).

    ``kept`` is whether its request has arrived and no earlier guess delays it: then it is dropped for nobody.
    ``spoken`` is whether its request is in a version of HTTP that is spoken here.
    """

    def __init__(self, listener: Listener, manager: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(manager, loop=loop, access_log=cast("Any", None), logger=_SILENT, max_line_size=MAX_LINE,
                         max_field_size=MAX_LINE, lingering_time=CLOSE_SECONDS)  # fmt: skip
        self._listener = listener
        self._admitted = False
        self._received = 0
        self._last = b""  # the last bytes of a header that has not ended
        self._begun = False  # the header has ended: what follows is a body
        self._end: asyncio.TimerHandle | None = None
        self.address: Address = parse_address("127.0.0.1")
        self.born = loop.time()
        self.turn = 0.0
        self.kept = False
        self.spoken = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        turn = None
        if peer:  # None if the client has already left
            self.address = parse_address(peer[0])
            turn = self._listener.joined(self, self.address)
        if turn is None:
            cast("asyncio.Transport", transport).abort()
            return
        self._admitted, self.turn = True, turn
        super().connection_made(transport)
        self._end_in(HEADER_SECONDS)

    def begin_answer(self) -> None:
        """Note that the request has arrived."""
        self.kept = True
        self._end_in(ANSWER_SECONDS)

    def _end_in(self, seconds: float) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(seconds, self.abort)

    def abort(self) -> None:
        """Drop the connection at once, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._admitted:
            self.abort()
            return
        taken = data[: MAX_REQUEST - self._received]
        self._received += len(taken)
        self._begun = self._begun or _END_OF_HEADER in self._last + taken
        self._last = (self._last + taken)[1 - len(_END_OF_HEADER) :]
        if taken:
            super().data_received(taken)
        # More of a body is thrown away: closed with unread bytes, the connection would take its answer with it.
        if len(taken) < len(data) and not self._begun:
            self.abort()

    def eof_received(self) -> None:
        if self._admitted:
            super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._end is not None:
            self._end.cancel()
        self._listener.left(self)
        if self._admitted:
            super().connection_lost(exc)

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what is not HTTP, without echoing any of it."""
        self.begin_answer()
        return response(text(400, "not an HTTP request"))
