"""The reader of RSS feeds against real HTTP servers that are slow, huge, wrong, gone or hostile.

Listens on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import re
import resource
import socket
import zlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from server.episodes.fetch import ReaderLimits, RssReader, is_public
from server.episodes.rss import RssUnread

from ..support.rss_server import HEAD, RssHost, items, rss

if TYPE_CHECKING:
    from typing import Self

    from server.episodes.fetch import RssAnswer

MIB = 1 << 20
LIMITS = ReaderLimits(size=8 * MIB, total=20.0, connect=5.0, silence=5.0)


async def read(url: str, *validators: str, local: bool = True, limits: ReaderLimits = LIMITS) -> RssAnswer:
    async with RssReader(allow_local=local, limits=limits) as reader:
        return await reader.read(url, *validators)


async def refusal(url: str, *, local: bool = True, limits: ReaderLimits = LIMITS) -> str:
    with pytest.raises(RssUnread) as caught:
        await read(url, local=local, limits=limits)
    assert caught.value.hint
    return str(caught.value)


async def test_an_rss_feed_is_read_and_then_only_asked_whether_it_changed(rss_host: RssHost) -> None:
    """ETag and Last-Modified are sent back unchanged; 304 keeps everything."""
    url = rss_host.put("/show", rss(items(3, 1)))
    first = await read(url)
    assert first.items is not None
    assert len(first.items) == 3
    assert first.etag
    again = await read(url, first.etag, first.last_modified)
    assert again.items is None
    assert (again.etag, again.last_modified) == (first.etag, first.last_modified)
    headers = rss_host.asked[-1][1]
    assert headers["If-None-Match"] == first.etag
    assert headers["If-Modified-Since"] == first.last_modified


async def test_a_packed_document_is_unpacked(rss_host: RssHost) -> None:
    """Only gzip was requested; another encoding is refused."""
    body = rss(items(500, 1))
    found = await read(rss_host.put("/gz", gzip.compress(body), Content_Encoding="gzip"))
    assert found.items is not None
    assert len(found.items) == 500
    assert rss_host.asked[-1][1]["Accept-Encoding"] == "gzip"
    assert "encoding" in await refusal(rss_host.put("/df", zlib.compress(body), Content_Encoding="deflate"))
    assert "truncated" in await refusal(rss_host.put("/cut", gzip.compress(body)[:-500], Content_Encoding="gzip"))
    assert "cannot be read" in await refusal(rss_host.put("/no", body, Content_Encoding="gzip"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_but_not_for_ever(rss_host: RssHost, status: int) -> None:
    """Relative ones too; a loop ends."""
    rss_host.put("/show", rss(items(1, 1)))
    found = await read(rss_host.redirect("/old", "/show", status))
    assert found.items is not None
    assert "redirects more than 5 times" in await refusal(rss_host.redirect("/loop", "/loop", status))


@pytest.mark.parametrize(
    "to",
    [
        "file:///etc/passwd",
        "ftp://x.example/",
        "gopher://127.0.0.1/",
        "data:text/xml,<rss/>",
        "javascript:1",
    ],
)
async def test_a_redirect_to_anything_but_the_web_is_refused(rss_host: RssHost, to: str) -> None:
    """Not to a file, either."""
    assert "not a web address" in await refusal(rss_host.redirect("/evil", to))


async def test_local_addresses_are_refused_unless_allowed(rss_host: RssHost) -> None:
    """Configured, spelled strangely, or behind a name; nothing is sent there."""
    rss_host.put("/show", rss(items(1, 1)))
    for host in ("127.0.0.1", "localhost", "0x7f.1", "127.1", "[::ffff:127.0.0.1]"):
        why = await refusal(f"http://{host}:{rss_host.port}/show", local=False)
        assert re.search("not a public address|not a web address|cannot be read", why), why
    assert rss_host.asked == []


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://[::1]/", "http://[fd00:ec2::254]/",
     "http://100.100.100.200/", "http://192.168.0.1:8080/"],
)  # fmt: skip
async def test_a_redirect_inside_is_refused(rss_host: RssHost, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cloud's metadata address, this machine, private networks: even if the first host is public."""
    url = rss_host.redirect("/evil", target)
    real = is_public
    monkeypatch.setattr("server.episodes.fetch.is_public", lambda text: text == "127.0.0.1" or real(text))
    assert "which is not a public address" in await refusal(url, local=False, limits=ReaderLimits(total=10, connect=2))


async def test_the_clouds_metadata_is_refused_whatever_is_allowed(rss_host: RssHost) -> None:
    """allow_local is for a publisher's own network."""
    for target in ("http://169.254.169.254/latest/", "http://[fd00:ec2::254]/", "http://[::ffff:169.254.169.254]/"):
        assert "which is not a public address" in await refusal(rss_host.redirect("/evil", target))


async def test_a_name_that_changes_its_address_helps_nobody(rss_host: RssHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that is checked is the one that the socket connects to, whatever a resolver said before."""
    rss_host.put("/show", rss(items(1, 1)))
    answers = iter(["93.184.216.34", "127.0.0.1"])
    loop = asyncio.get_running_loop()

    async def rebinding(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    assert [(await rebinding("x", 1))[0][4][0]] == ["93.184.216.34"]  # type: ignore[index]  # a look before the use
    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    assert "leads to 127.0.0.1" in await refusal(f"http://rebinding.example:{rss_host.port}/show", local=False)
    assert rss_host.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [("8.8.8.8", True), ("2606:4700::1111", True), ("64:ff9b::808:808", True), ("127.0.0.1", False), ("0.0.0.0", False),
     ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False),
     ("100.100.100.200", False), ("192.0.0.192", False), ("168.63.129.16", False), ("224.0.0.1", False),
     ("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1%eth0", False), ("fd00:ec2::254", False),
     ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("ff02::1", False),
     ("2001:0:0:0:0:0:80ff:fffe", False), ("name", False)],
)  # fmt: skip
def test_only_addresses_of_the_public_internet_are_public(address: str, public: bool) -> None:
    """Including those with an embedded IPv4 address."""
    assert is_public(address) is public


async def test_a_huge_document_is_left_in_the_middle(rss_host: RssHost) -> None:
    """As sent, and as inflated: a gzip bomb of a few hundred kilobytes is two hundred megabytes of blanks."""
    head, blanks = HEAD.encode(), b" " * MIB
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    begin = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = begin + (packer.compress(blanks) + packer.flush(zlib.Z_FULL_FLUSH)) * 200  # nobody reads as far as its end
    assert len(bomb) < MIB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "larger than 8 MiB" in await refusal(rss_host.stream("/huge", head, blanks, times=200))
    assert "larger than 8 MiB" in await refusal(rss_host.put("/bomb", bomb, Content_Encoding="gzip"))
    twice = gzip.compress(bomb)
    assert "not well-formed XML" in await refusal(rss_host.put("/twice", twice, Content_Encoding="gzip"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kilobytes; the server's are in it


async def test_a_slow_or_silent_host_is_left(rss_host: RssHost) -> None:
    """One that trickles is never silent, so there is a limit for the whole read."""
    limits = ReaderLimits(total=1.5, connect=1.0, silence=1.0)
    trickle = rss_host.stream("/trickle", HEAD.encode(), b" ", times=600, pause=0.1)
    assert "took longer" in await refusal(trickle, limits=limits)
    silent = rss_host.stream("/silent", HEAD.encode(), b" ", times=1, pause=30)
    assert "took longer" in await refusal(silent, limits=limits)


async def test_a_host_that_is_gone_or_says_no_is_reported(rss_host: RssHost) -> None:
    """No name, no listener, a status, a cut connection, an answer that is not HTTP."""
    assert "answered 404" in await refusal(rss_host.url("/nothing"))

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100000"})
        await response.prepare(request)
        await response.write(HEAD.encode())
        assert request.transport is not None
        request.transport.abort()
        return response

    rss_host.behaviours["/cut"] = cut
    assert "cannot be read" in await refusal(rss_host.url("/cut"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert (await refusal(f"http://127.0.0.1:{port}/")).endswith("cannot be reached: Connection refused")
    assert "cannot be reached" in await refusal("http://nobody.invalid/")

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"\x00\xff\x00 nonsense\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(rude, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert "cannot be read" in await refusal(f"http://127.0.0.1:{port}/")


async def test_a_secret_in_the_address_is_not_reported(rss_host: RssHost) -> None:
    """Neither in the sentence nor in the hint."""
    url = f"http://me:hunter2@127.0.0.1:{rss_host.port}/x?key=hunter2"
    with pytest.raises(RssUnread) as caught:
        await read(url)
    assert "hunter2" not in str(caught.value) + caught.value.hint


class Proxy:
    """An HTTP proxy on 127.0.0.1 that fetches what it is asked for from an `RssHost`, and makes no tunnels."""

    def __init__(self, host: RssHost) -> None:
        self.host, self.asked, self.port = host, list[tuple[str, str]](), 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, url, _ = head.split(" ", 2)
        login = re.search(r"^Proxy-Authorization: Basic (\S+)", head, re.MULTILINE)
        self.asked.append((url, base64.b64decode(login[1]).decode() if login else ""))
        if method == "GET":
            inner, out = await asyncio.open_connection("127.0.0.1", self.host.port)
            out.write(f"GET {urlsplit(url).path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            writer.write(await inner.read())
            out.close()
        else:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()


async def test_rss_feeds_are_read_through_the_proxy_that_s3_uses(
    rss_host: RssHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's, with its login, at whatever address; except for what NO_PROXY names."""
    rss_host.put("/show", rss(items(3, 1)))
    rss_host.redirect("/old", "http://second.example/show")
    async with Proxy(rss_host) as proxy:
        monkeypatch.setenv("http_proxy", f"me:pass%20word@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        found = await read("http://first.example/old", local=False)
        assert found.items is not None
        assert len(found.items) == 3
        login = "me:pass word"
        assert proxy.asked == [("http://first.example/old", login), ("http://second.example/show", login)]
        assert (await read(rss_host.url("/show"))).items is not None
        assert len(proxy.asked) == 2


async def test_a_proxy_opens_no_way_inside(rss_host: RssHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address, in whatever spelling, is refused as without a proxy, also where a redirect leads to it."""
    async with Proxy(rss_host) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        for inside in (
            "127.0.0.1",
            "10.0.0.1",
            "[::1]",
            "127.1",
            "2130706433",
            "0x7f000001",
            "localhost",
            "a.localhost.",
        ):
            assert "not a public address" in await refusal(f"http://{inside}/show", local=False)
        for metadata in ("169.254.169.254", "[fd00:ec2::254]", "2852039166"):
            assert "not a public address" in await refusal(f"http://{metadata}/latest/meta-data/")
        assert proxy.asked == []
        rss_host.redirect("/in", "http://169.254.169.254/")
        assert "169.254.169.254" in await refusal("http://first.example/in", local=False)
        assert [url for url, _ in proxy.asked] == ["http://first.example/in"]


async def test_a_proxy_that_does_not_serve_is_reported_without_its_password(
    rss_host: RssHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses, it is gone, its address is not one."""
    secret = "s3cret"
    url = "https://first.example/show"
    async with Proxy(rss_host) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:{secret}@127.0.0.1:{proxy.port}")
        assert (await refusal(url)).endswith("is behind a proxy that answered 407")
        assert proxy.asked == [("first.example:443", f"me:{secret}")]
    found = [await refusal(url)]
    for wrong in (f"http://me:{secret}@:x", f"http://me:{secret}@no such host.invalid:1"):
        monkeypatch.setenv("https_proxy", wrong)
        found.append(await refusal(url))
    assert all("is behind a proxy" in sentence and secret not in sentence for sentence in found), found


async def test_an_encoding_in_the_header_alone_is_heeded(rss_host: RssHost) -> None:
    """Content-Type: text/xml; charset=…"""
    body = "<rss><channel><item><guid>Größe</guid></item></channel></rss>".encode("latin-1")
    found = await read(rss_host.put("/latin", body, Content_Type='text/xml; charset="ISO-8859-1"'))
    assert found.items is not None
    assert [item.guid for item in found.items] == ["Größe"]
    assert "not well-formed" in await refusal(rss_host.put("/none", body, Content_Type="text/xml"))
