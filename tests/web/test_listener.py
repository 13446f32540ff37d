"""The listener: who is answered, with which headers, and what slow, many and broken clients get.

A real page on loopback, spoken to over plain sockets.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from server.errors import CannotListen
from server.sftp.limits import Limits, Reason
from server.web import access, listener
from server.web.access import LONGEST_TURN, MAX_CONNECTIONS_PER_ADDRESS, Door, is_own_name, load_access
from server.web.answer import ALWAYS

from ..support.pages import HOST, NOW, Served, basic, page_config, serving
from ..support.sftp import CHEAP_HASH, PASSWORD


async def test_every_answer_forbids_whatever_a_browser_could_be_made_to_do(tmp_path: Path) -> None:
    """Pages, data and refusals carry the policy, and none is guessed to be of another type, or kept."""
    async with serving(tmp_path) as served:
        for path in ("/", "/status.json", "/metrics", "/healthz", "/style.css", "/nothing", "/days/2026-11-20"):
            status, headers, body = await served.get(path)
            assert status == (404 if path in ("/nothing", "/days/2026-11-20") else 200), (path, body)
            wanted = dict(ALWAYS) | ({"Cache-Control": "max-age=86400"} if path == "/style.css" else {})
            assert {name: headers.get(name) for name in wanted} == wanted
            assert headers["Connection"] == "close"
            without = await served.get(path, method="HEAD")
            assert without[0] == status and without[2] == b""
            assert headers["X-Content-Type-Options"] == "nosniff"
            policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "script" not in policy and "unsafe" not in policy


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND"])
async def test_other_methods_are_refused(method: str, tmp_path: Path) -> None:
    """405, and which there are."""
    async with serving(tmp_path) as served:
        status, headers, _ = await served.get("/", "Content-Length: 0", method=method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True), ("LOCALHOST:9108", True), ("127.0.0.1:1", True), ("[::1]:9108", True), ("[::1]", True),
        ("192.0.2.7", True), ("status.example.com", True), ("Status.Example.com:443", True),
        ("status.example.com.", True),
        ("evil.example", False), ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("", False),
        ("status.example.com@evil.example", False), ("localhost:x", False), ("[evil]", False), ("127.0.0.1/", False),
    ],
)  # fmt: skip
async def test_a_borrowed_name_is_no_name_of_the_page(host: str, own: bool, tmp_path: Path) -> None:
    """A page of somebody else's whose name resolves to our address (DNS rebinding) sends its own name: 421."""
    assert is_own_name(host, frozenset({"status.example.com"})) is own
    async with serving(tmp_path, hosts=["status.example.com"]) as served:
        status, *_ = await served.ask(f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n")
    assert status == (200 if own else 421)


async def test_no_host_or_two_are_refused(tmp_path: Path) -> None:
    """One that reads the first and one that reads the last would not agree."""
    async with serving(tmp_path) as served:
        for hosts in ("", f"{HOST}Host: evil.example\r\n"):
            status, _, body = await served.ask(f"GET / HTTP/1.1\r\n{hosts}\r\n")
            assert status in (400, 421), body


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\n\r\n", 421),
        ("GET /healthz HTTP/1.0\r\nHost: evil.example\r\n\r\n", 421),
        (f"GET http://127.0.0.1/healthz HTTP/1.1\r\n{HOST}\r\n", 200),
        (f"GET http://localhost:9/?still HTTP/1.1\r\n{HOST}\r\n", 200),
        ("GET http://localhost/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", 200),
        (f"GET http://evil.example/healthz HTTP/1.1\r\n{HOST}\r\n", 421),
        (f"GET http://localhost@evil.example/ HTTP/1.1\r\n{HOST}\r\n", 421),
        (f"GET http:///healthz HTTP/1.1\r\n{HOST}\r\n", 421),
        (f"GET /healthz HTTP/2.0\r\n{HOST}\r\n", 505),
        (f"GET /healthz HTTP/0.9\r\n{HOST}\r\n", 505),
        ("POST / HTTP/2.0\r\n\r\n", 505),
    ],
)
async def test_simple_and_odd_clients_are_answered(request_: str, wanted: int, tmp_path: Path) -> None:
    """A load balancer's HTTP/1.0 without a name, a target that names its host, which counts (RFC 9112, 3.2.2), and a
    version that is not spoken here: whatever it is, the answer is in one that is."""
    async with serving(tmp_path) as served:
        status, _, body = await served.ask(request_)
    assert status in ((wanted, 400) if wanted == 421 else (wanted,)), body


async def test_a_large_body_is_answered_and_not_read(tmp_path: Path) -> None:
    """The answer arrives although the client is still sending, whatever its length."""
    async with serving(tmp_path) as served:
        size = 3_000_000
        head = f"POST / HTTP/1.1\r\n{HOST}Content-Length: {size}\r\n\r\n".encode()
        status, *_ = await served.ask(head + bytes(size))
    assert status == 405


async def test_an_address_that_cannot_be_had_is_told_with_the_cure_of_its_cause(tmp_path: Path) -> None:
    """Who has the port helps only if somebody has it; a privileged port cannot be had as root only to a test."""
    async with serving(tmp_path) as served:
        taken, elsewhere = f"127.0.0.1:{served.port}", "203.0.113.5:9108"
        for listen, why, cure in (
            (taken, "Address already in use", f"ss -ltnp 'sport = :{served.port}'; set web.listen"),
            (elsewhere, "Cannot assign requested address", "address of this machine: ip -brief address"),
        ):
            with pytest.raises(CannotListen, match=f"cannot listen on {listen} for the page: {why}$") as caught:
                await Served(page_config(tmp_path, listen=listen, password_hash=CHEAP_HASH), NOW).page.start()
            assert caught.value.hint.endswith(cure)
    refused = PermissionError(errno.EACCES, "error while attempting to bind on address ('::', 22): permission denied")
    error = CannotListen.because(refused, "[::]:22", 22, "sftp.port")
    assert str(error) == "cannot listen on [::]:22: Permission denied"
    assert error.hint.endswith("how port 22 is served: pickup-point manual installing")


async def test_healthz_says_why_the_service_does_not_work(tmp_path: Path) -> None:
    """200 while it does, 503 with a sentence else; a load balancer has no password."""
    async with serving(tmp_path, password_hash=CHEAP_HASH) as served:
        assert (await served.get("/healthz"))[::2] == (200, b"OK\n")
        served.health = "no thread was free for 5 s"
        assert (await served.get("/healthz"))[::2] == (503, b"no thread was free for 5 s\n")


async def test_the_password_opens_everything_and_without_it_nothing_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the name; a wrong one is a line that fail2ban can read, without the password."""
    async with serving(tmp_path, password_hash=CHEAP_HASH) as served:
        for path in ("/", "/status.json", "/metrics", "/style.css", "/nothing"):
            for header in ("X-None: 1", basic("wrong password"), "Authorization: Bearer x", "Authorization: Basic %%%"):
                status, headers, body = await served.get(path, header)
                assert (status, headers["WWW-Authenticate"].split()[0]) == (401, "Basic")
                assert b"pickup" not in body
            assert (await served.get(path, basic(PASSWORD)))[0] == (404 if path == "/nothing" else 200)
    said = capsys.readouterr()
    assert "web refused 127.0.0.1" in said.out + said.err + caplog.text
    assert "wrong password" not in said.out + said.err + caplog.text


async def test_beyond_this_machine_the_log_says_whose_work_tls_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, at the start; on loopback nothing is said."""
    async with serving(tmp_path):
        assert "TLS" not in capsys.readouterr().out
    monkeypatch.setattr("server.settings.WebSettings.beyond_loopback", True)
    async with serving(tmp_path, password_hash=CHEAP_HASH):
        assert "without TLS: put a proxy in front" in capsys.readouterr().out


async def test_guessing_is_delayed_and_banned_as_over_sftp() -> None:
    """By the same guard; only this machine, where everybody may have one address behind a proxy, is never banned."""
    limits = Limits(ban_after=3, ban_time=60.0)
    delays: list[float] = []
    now = [1000.0]

    async def slept(seconds: float) -> None:
        delays.append(seconds)
        now[0] += seconds

    near, far = ip_address("127.0.0.1"), ip_address("203.0.113.9")
    settings = page_config(Path("/nowhere"), password_hash=CHEAP_HASH).web
    assert settings is not None
    door = Door(load_access(settings), lambda: limits, lambda: now[0])
    right, wrong = (basic(word).partition(": ")[2] for word in (PASSWORD, "guess"))
    door._checks._sleep = _at_once  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access.asyncio, "sleep", slept)
        for _ in range(3):
            assert not await door.admits(wrong, far)
        assert door.admit(far, 1000) == "banned" and isinstance(door.admit(near, 1000), float)
        assert await door.admits(right, near)
        assert not any(delays)
        # Whoever hangs up while a guess is checked has made it all the same; and whoever comes next from there waits
        # before anything is compared, so that no answer comes sooner for being right.
        for _ in range(4):
            hung_up = asyncio.create_task(door.admits(wrong, near))
            while not door._checking:
                await _yielded()
            checks = list(door._checking)
            hung_up.cancel()
            await asyncio.gather(hung_up, *checks, return_exceptions=True)
        assert await door.admits(right, near)
    assert [delay for delay in delays if delay] == [0.25, 0.5]  # after two that are free
    assert [(ban.address, ban.failures) for ban in door.bans()] == [("203.0.113.9", 3)]
    door.close()


async def _at_once(seconds: float) -> None:
    pass


_yield = asyncio.sleep


async def _yielded() -> None:
    await _yield(0)


async def test_what_was_not_logged_is_summed_up_without_another_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    """At most five lines a minute for an address; how many more there were is logged when the minute is over."""
    now = [1000.0]
    door, far = Door(None, Limits, lambda: now[0]), ip_address("203.0.113.9")
    for _ in range(11):
        door.refused(far, "wrong-password")
    door.summarize()
    assert capsys.readouterr().out.count("web refused 203.0.113.9") == 5
    now[0] += 60
    door.summarize()
    assert "web refused 6 more" in capsys.readouterr().out
    door.close()


async def test_who_waits_for_a_guess_makes_room_for_a_load_balancer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many guess from the address that everybody has behind a proxy."""
    waiting: list[Any] = []

    async def never(*_: Any) -> bool:
        waiting.append(None)
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(Door, "admits", never)
    async with serving(tmp_path, password_hash=CHEAP_HASH) as served:
        guesses = []
        for _ in range(MAX_CONNECTIONS_PER_ADDRESS):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(f"GET / HTTP/1.1\r\n{HOST}{basic('guess')}\r\n\r\n".encode())
            guesses.append((reader, writer))
        while len(waiting) < MAX_CONNECTIONS_PER_ADDRESS:
            await _yielded()
        assert (await served.get("/healthz"))[0] == 200
        assert await asyncio.wait_for(guesses[0][0].read(), 30) == b""
        for _, writer in guesses:
            writer.close()


async def test_a_flood_from_one_address_keeps_nobody_there_waiting_for_minutes() -> None:
    """Behind a proxy everybody has one address: after thousands of connections a turn comes within a second."""
    door, near = Door(None, Limits), ip_address("127.0.0.1")
    try:
        for _ in range(2000):
            assert not isinstance(door.admit(near, 1000), Reason)
            door.leave(near)
        assert door.admit(near, 1000) == LONGEST_TURN
    finally:
        door.close()


async def test_a_right_password_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser sends it with every request, and Argon2id takes its time; a wrong one is checked each time."""
    checked: list[bytes] = []
    real = access.PasswordChecks.check

    async def counted(self: Any, users: Any, name: str, address: Any, password: bytes) -> Any:
        checked.append(password)
        return await real(self, users, name, address, password)

    monkeypatch.setattr(access.PasswordChecks, "check", counted)
    async with serving(tmp_path, password_hash=CHEAP_HASH) as served:
        for _ in range(3):
            assert (await served.get("/style.css", basic(PASSWORD)))[0] == 200
        for _ in range(2):
            assert (await served.get("/style.css", basic("wrong")))[0] == 401
    assert checked == [PASSWORD.encode(), b"wrong", b"wrong"]


BROKEN = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "a long path": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 9000 + b"\r\n",
    "a negative length": b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "a foreign target": b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tunnel": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a bare line feed": b"GET / HTTP/1.1\nHost: localhost\n\n",
    "a header on two lines": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_request_is_answered_shortly_or_not_at_all(what: str, tmp_path: Path) -> None:
    """Nothing of it comes back, and the page serves on."""
    async with serving(tmp_path) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(BROKEN[what])
        try:
            answer = await asyncio.wait_for(reader.read(), 30)
        except ConnectionError:
            answer = b""
        writer.close()
        assert b"evil" not in answer and b"aaaa" not in answer and b"Traceback" not in answer
        if not what.startswith("a bare") and not what.startswith("a header on"):
            assert answer == b"" or answer.split()[1] in (b"400", b"405", b"421"), answer
        assert (await served.get("/healthz"))[0] == 200


async def test_who_idles_is_dropped_for_who_asks(tmp_path: Path) -> None:
    """More idle connections than there may be: the oldest of them go, and a request is answered at once."""
    async with serving(tmp_path) as served:
        idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(MAX_CONNECTIONS_PER_ADDRESS + 3)]
        assert (await served.get("/healthz"))[0] == 200
        ended = await asyncio.wait_for(idle[0][0].read(), 30)
        assert ended == b""
        for _, writer in idle:
            writer.close()


async def test_a_slow_header_and_a_slow_reader_are_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither holds a connection for longer than its time."""
    monkeypatch.setattr(listener, "HEADER_SECONDS", 0.05)
    async with serving(tmp_path) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: local")
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        monkeypatch.setattr(listener, "HEADER_SECONDS", 1000.0)
        monkeypatch.setattr(listener, "ANSWER_SECONDS", 0.05)
        monkeypatch.setattr(served.page, "answer", _forever)
        served.page._parts[0]._answer = _forever  # type: ignore[index]
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


async def _forever(path: str, query: str) -> Any:
    await asyncio.Event().wait()


async def test_the_last_descriptors_are_not_the_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When few are left they are for the partner's connections: a browser is refused."""
    async with serving(tmp_path) as served:
        monkeypatch.setattr(listener, "free_descriptors", lambda: 20)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


async def test_an_error_that_nobody_thought_of_shows_its_place_in_the_log_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its words may hold anything."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("s3cret")

    async with serving(tmp_path) as served:
        monkeypatch.setattr("server.web.site.views.overview", broken)
        status, headers, body = await served.get("/")
    said = capsys.readouterr()
    assert (status, headers.get("Refresh")) == (500, "60")
    assert b"s3cret" not in body and "s3cret" not in said.out + said.err
    assert "RuntimeError at" in said.out + said.err
