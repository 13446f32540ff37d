"""An S3 server that fails on command: listings, conditional and ranged reads, conditional writes, a script of faults.

Listens on 127.0.0.1, a free port. `FaultServer.script` holds what befalls the next requests, one fault each; when it is
empty, requests are answered as S3 answers them. Keys and signatures are not checked (moto and Ceph do that).
A fault gets the request and the object, and sends the answer, or a part of it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BUCKET = "exports"


@dataclass(frozen=True)
class Version:
    """One version of an object."""

    body: bytes
    modified: datetime
    headers: tuple[tuple[str, str], ...] = ()  # those that it was written with

    @property
    def etag(self) -> str:
        return hashlib.md5(self.body, usedforsecurity=False).hexdigest()


@dataclass
class Seen:
    """One read as it arrived."""

    key: str
    range: str | None
    if_match: str | None


Fault = Callable[["FaultServer", web.Request, Version], Awaitable[web.StreamResponse]]


@dataclass
class FaultServer:
    """The server; ``spellings`` are the forms of an ETag that it takes in If-Match."""

    url: str = ""
    objects: dict[str, Version] = field(default_factory=dict, repr=False)  # pytest shows values
    script: deque[Fault] = field(default_factory=deque)
    listing_script: deque[Fault] = field(default_factory=deque)
    put_script: deque[Fault] = field(default_factory=deque)
    weather: Callable[[web.Request], Fault | None] = lambda _: None  # asked where no script says what happens
    written: list[str] = field(default_factory=list)  # the keys of the objects that a PUT has made, in order
    removed: list[str] = field(default_factory=list)
    reads: list[Seen] = field(default_factory=list)
    spellings: tuple[str, ...] = ('"{}"', "{}")
    page_size: int = 1000

    def put(self, key: str, body: bytes) -> Version:
        """Put an object, or a new version of it."""
        self.objects[key] = Version(body, datetime(2026, 11, 21, 5, tzinfo=UTC))
        return self.objects[key]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request: a listing or a read, as the script wants it."""
        key = request.match_info["key"]
        nothing = Version(b"", datetime.now(UTC))
        if request.method == "PUT":
            return await self._fault(self.put_script, request, write)(self, request, nothing)
        if request.method == "DELETE":
            return await self._fault(deque(), request, remove)(self, request, nothing)
        if not key:
            return await self._fault(self.listing_script, request, listing)(self, request, nothing)
        self.reads.append(Seen(key, request.headers.get("Range"), request.headers.get("If-Match")))
        if key not in self.objects:
            return error(404, "NoSuchKey")
        return await self._fault(self.script, request, answer)(self, request, self.objects[key])

    def _fault(self, script: deque[Fault], request: web.Request, none: Fault) -> Fault:
        return script.popleft() if script else self.weather(request) or none


def error(status: int, code: str, **headers: str) -> web.Response:
    """An S3 error."""
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>a secret message</Message></Error>'
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, text=text, content_type="application/xml", headers=shown)


async def listing(server: FaultServer, request: web.Request, _: Version) -> web.Response:
    """ListObjectsV2; the token is the last key of the page before."""
    query, prefix = request.query, request.query.get("prefix", "")
    keys = sorted(
        key
        for key in server.objects
        if key > query.get("continuation-token", "")
        and key.startswith(prefix)
        and "/" not in key[len(prefix) :].rstrip("/")
    )
    page, more = keys[: server.page_size], len(keys) > server.page_size
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>{server.objects[key].modified:%Y-%m-%dT%H:%M:%S.000Z}"
        f"</LastModified><ETag>&quot;{server.objects[key].etag}&quot;</ETag>"
        f"<Size>{len(server.objects[key].body)}</Size></Contents>"
        for key in page
    )
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    return web.Response(
        text=f'<?xml version="1.0"?><ListBucketResult><Name>{BUCKET}</Name>'
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>",
        content_type="application/xml",
    )


def _headers(version: Version, start: int) -> dict[str, str]:
    headers = {"ETag": f'"{version.etag}"', "Last-Modified": format_datetime(version.modified, usegmt=True)}
    headers |= dict(version.headers)
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(version.body) - 1}/{len(version.body)}"
    return headers


def start_of(request: web.Request) -> int:
    """The first byte that the request asks for."""
    return int(request.headers["Range"].removeprefix("bytes=").removesuffix("-")) if "Range" in request.headers else 0


async def write(server: FaultServer, request: web.Request, _: Version) -> web.StreamResponse:
    """As S3 writes: not where there is something, if that is the condition, and only what Content-MD5 says."""
    key, body = request.match_info["key"], await request.read()
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    if request.headers.get("Content-MD5", digest) != digest:
        return error(400, "BadDigest")
    if request.headers.get("If-None-Match") == "*" and key in server.objects:
        return error(412, "PreconditionFailed")
    kept = ("content-type", "content-encoding")
    said = [(name.lower(), value) for name, value in request.headers.items()]
    headers = tuple((name, value) for name, value in said if name in kept or name.startswith("x-amz-meta-"))
    server.objects[key] = Version(body, datetime.now(UTC), headers)
    server.written.append(key)
    return web.Response(headers={"ETag": f'"{server.objects[key].etag}"'})


async def remove(server: FaultServer, request: web.Request, _: Version) -> web.StreamResponse:
    """As S3 removes: whether it is there or not."""
    if server.objects.pop(request.match_info["key"], None) is not None:
        server.removed.append(request.match_info["key"])
    return web.Response(status=204)


def done_but(then: Fault) -> Fault:
    """What was asked for is done, and something else is answered."""

    async def fault(server: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        act = {"PUT": write, "DELETE": remove}.get(request.method, answer)
        await act(server, request, version)
        return await then(server, request, version)

    return fault


async def answer(server: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
    """As S3 answers: If-Match, ranges, Content-Length."""
    wanted = request.headers.get("If-Match")
    if wanted is not None and wanted not in {spelling.format(version.etag) for spelling in server.spellings}:
        return error(412, "PreconditionFailed")
    start = start_of(request)
    return web.Response(status=206 if start else 200, body=version.body[start:], headers=_headers(version, start))


async def _begin(request: web.Request, version: Version, start: int) -> web.StreamResponse:
    """Status and headers of a whole answer, of which the body follows."""
    response = web.StreamResponse(status=206 if start else 200, headers=_headers(version, start))
    response.content_length = len(version.body) - start
    await response.prepare(request)
    return response


def _end(request: web.Request, *, reset: bool) -> None:
    transport = request.transport
    assert transport is not None
    if reset:
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


def cut(count: int, *, reset: bool = False, ignore_range: bool = False) -> Fault:
    """Headers and ``count`` bytes of the answer, then the end of the connection: FIN, or RST."""

    async def fault(server: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        refused = await answer(server, request, version)
        if refused.status >= 400:
            return refused
        start = 0 if ignore_range else start_of(request)
        response = await _begin(request, version, start)
        await response.write(version.body[start : start + count])
        if reset:
            await asyncio.sleep(0.02)  # RST overtakes what is still unread
        _end(request, reset=reset)
        return response

    return fault


def hang_up(*, reset: bool = False) -> Fault:
    """The end of the connection before any answer."""

    async def fault(_: FaultServer, request: web.Request, __: Version) -> web.StreamResponse:
        _end(request, reset=reset)
        return web.Response()

    return fault


def stall(count: int) -> Fault:
    """``count`` bytes of the answer, then silence on an open connection."""

    async def fault(_: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        start = start_of(request)
        response = await _begin(request, version, start)
        await response.write(version.body[start : start + count])
        await asyncio.sleep(60)
        return response

    return fault


def silent() -> Fault:
    """No answer at all on an open connection."""

    async def fault(_: FaultServer, __: web.Request, ___: Version) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    return fault


def trickle(size: int = 1, pause: float = 0.5) -> Fault:
    """``size`` bytes at a time with a ``pause`` between them: by default two bytes a second."""

    async def fault(_: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        start = start_of(request)
        response = await _begin(request, version, start)
        for at in range(start, len(version.body), size):
            await response.write(version.body[at : at + size])
            await asyncio.sleep(pause)
        return response

    return fault


def refuse(status: int, code: str, **headers: str) -> Fault:
    """An S3 error instead of the answer."""

    async def fault(_: FaultServer, __: web.Request, ___: Version) -> web.StreamResponse:
        return error(status, code, **headers)

    return fault


def redirect(location: str, status: int = 302) -> Fault:
    """A redirect to another place."""
    return refuse(status, "Found", Location=location)


def page(text: str, content_type: str = "text/html") -> Fault:
    """Something that is not an S3 answer, with status 200."""

    async def fault(_: FaultServer, __: web.Request, ___: Version) -> web.StreamResponse:
        return web.Response(text=text, content_type=content_type)

    return fault


def chunked(count: int | None = None) -> Fault:
    """The answer in chunks, without a Content-Length; after ``count`` bytes the connection ends in mid-chunk."""

    async def fault(_: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        start = start_of(request)
        response = web.StreamResponse(status=206 if start else 200, headers=_headers(version, start))
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(version.body[start:][:count])
        if count is not None:
            _end(request, reset=False)
        return response

    return fault


def raw(head: str, body: bytes = b"") -> Fault:
    """These very bytes as the answer, then the end of the connection."""

    async def fault(_: FaultServer, request: web.Request, __: Version) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        request.transport.close()
        return web.Response()

    return fault


def torn(count: int) -> Fault:
    """A whole, well-formed answer whose Content-Length and body are ``count`` bytes, under the ETag of the whole."""

    async def fault(_: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        start = start_of(request)
        body = version.body[start : start + count]
        return web.Response(status=206 if start else 200, body=body, headers=_headers(version, start))

    return fault


def shifted(by: int) -> Fault:
    """As many bytes as were asked for, but ``by`` bytes from before them, as Content-Range says openly."""

    async def fault(_: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        start, end = start_of(request) - by, len(version.body) - by
        headers = _headers(version, start) | {"Content-Range": f"bytes {start}-{end - 1}/{len(version.body)}"}
        return web.Response(status=206, body=version.body[start:end], headers=headers)

    return fault


def ignoring_range() -> Fault:
    """The whole object with status 200, whatever range was asked for."""

    async def fault(_: FaultServer, __: web.Request, version: Version) -> web.StreamResponse:
        return web.Response(body=version.body, headers=_headers(version, 0))

    return fault


def ignoring_if_match() -> Fault:
    """The version that is there now, whichever was asked for."""

    async def fault(_: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        start = start_of(request)
        return web.Response(status=206 if start else 200, body=version.body[start:], headers=_headers(version, start))

    return fault


def altered(status: int | None = None, **changed: str | None) -> Fault:
    """The answer with other headers (None: without it) or another status."""

    async def fault(_: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        start = start_of(request)
        headers = _headers(version, start)
        for name, value in changed.items():
            headers.pop(name.replace("_", "-"), None)
            if value is not None:
                headers[name.replace("_", "-")] = value
        return web.Response(status=status or (206 if start else 200), body=version.body[start:], headers=headers)

    return fault


def rewritten(body: bytes, then: Fault) -> Fault:
    """A new version is put while the old one is answered, faultily."""

    async def fault(server: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        server.put(request.match_info["key"], body)
        return await then(server, request, version)

    return fault


@asynccontextmanager
async def fault_server(server: FaultServer | None = None) -> AsyncIterator[FaultServer]:
    """A running fault server; ``server`` may be one with a script of its own."""
    server = server or FaultServer()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", f"/{BUCKET}{{_:/?}}{{key:.*}}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
