"""Logging in, failing to, and what the service log says about it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import ipaddress
import re
import shutil
import socket
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import paramiko
import pytest
import structlog
from argon2 import PasswordHasher
from asyncssh.connection import SSHConnection
from structlog.testing import capture_logs

from server import log_output
from server.errors import ConfigError
from server.settings import UserSettings
from server.sftp.keys import load_credentials
from server.sftp.limits import Reason
from server.sftp.users import hash_password

from ..support.sftp import CHEAP_HASH, NAME, PASSWORD, RawSftp, Running, running, sftp_settings, string

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "server" / "manual").glob("*.md")]
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
ELSEWHERE = ipaddress.ip_network("203.0.113.0/24")


def refusals(entries: Any) -> list[tuple[str, str]]:
    return [(entry["event"], entry["reason"]) for entry in entries if entry["event"].startswith("sftp refused")]


@asynccontextmanager
async def with_key(tmp_path: Path, keys_dir: Path, kind: str = "ssh-ed25519", **changes: Any) -> AsyncIterator[Any]:
    """A listener whose user has a public key, and that key."""
    key = asyncssh.generate_private_key(kind)
    public = tmp_path / "triton.pub"
    public.write_bytes(b"# partner\n\n" + key.export_public_key())
    users = [UserSettings(name="triton", password_hash=CHEAP_HASH, authorized_keys=public)]
    async with running(tmp_path, keys_dir, **({"users": users} | changes)) as it:
        it.served.add(NAME, b"content")
        yield it, key


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp521", "ssh-rsa"])
async def test_a_user_logs_in_with_password_or_key(tmp_path: Path, keys_dir: Path, kind: str) -> None:
    """Either lets the user in, and the login line names client, kex, host key, cipher and MAC."""
    async with with_key(tmp_path, keys_dir, kind) as (it, key):
        with capture_logs() as entries:
            async with it.connect(password=None, client_keys=[key]):
                pass
            async with it.connect():
                pass
        lines = [entry for entry in entries if entry["event"].endswith("logged in")]
        assert [line["method"] for line in lines] == ["publickey", "password"]
        assert lines[0]["event"].startswith("[conn=1 triton 127.0.0.1]")
        assert lines[0]["client"].startswith("AsyncSSH_")
        assert lines[0]["kex"] == "mlkem768x25519-sha256"
        assert lines[0]["host_key"] in ("ssh-ed25519", "rsa-sha2-256", "rsa-sha2-512")
        assert lines[0]["cipher"] == lines[0]["mac"] == "aes256-gcm@openssh.com"
        assert [login.method for login in it.logins] == ["publickey", "password"]


async def test_keyboard_interactive_asks_for_the_same_password(listener: Running) -> None:
    """Some JVM clients try nothing else."""
    async with listener.connect(preferred_auth="keyboard-interactive"):
        pass
    with pytest.raises(asyncssh.PermissionDenied):
        await listener.connect(preferred_auth="keyboard-interactive", password="wrong")


async def test_the_service_may_be_asked_for_before_every_try(listener: Running) -> None:
    """paramiko does so: with an unknown key, or a wrong password, and then the right one, it must get in."""

    def log_in() -> bool:
        with contextlib.closing(paramiko.Transport(("127.0.0.1", listener.port))) as transport:
            transport.start_client(timeout=20)
            for attempt in (
                lambda: transport.auth_publickey("triton", paramiko.ECDSAKey.generate()),
                lambda: transport.auth_password("triton", "wrong", fallback=False),
                lambda: transport.auth_password("triton", PASSWORD, fallback=False),
            ):
                with contextlib.suppress(paramiko.AuthenticationException):
                    attempt()
            return bool(transport.is_authenticated())

    assert await asyncio.to_thread(log_in)


async def test_sha1_signatures_of_users_are_refused(tmp_path: Path, keys_dir: Path) -> None:
    """An RSA key logs in with rsa-sha2-256 and not with ssh-rsa, which asyncssh alone would take."""
    async with with_key(tmp_path, keys_dir, "ssh-rsa") as (it, key):
        pair = asyncssh.load_keypairs([key])[0]
        pair.set_sig_algorithm(b"ssh-rsa")
        pair.sig_algorithms = [b"ssh-rsa"]
        with pytest.raises(asyncssh.PermissionDenied), capture_logs() as entries:
            await it.connect(password=None, client_keys=[pair], signature_algs=["ssh-rsa"])
        (line,) = [entry for entry in entries if entry["event"].startswith("sftp refused")]
        assert (line["reason"], line["algorithm"]) == ("sha1-signature", "ssh-rsa")
        assert line["hint"].startswith("the partner's client signs with SHA-1: update it")
        assert it.server.registry._guard._failures == {}
        async with it.connect(password=None, client_keys=[key]):
            pass


async def test_a_bad_signature_by_a_registered_key_is_a_failure(tmp_path: Path, keys_dir: Path) -> None:
    """By any other key it is not even looked at."""
    async with with_key(tmp_path, keys_dir, ban_after=2) as (it, key):
        pairs = asyncssh.load_keypairs([key, asyncssh.generate_private_key("ssh-ed25519")])
        for pair in pairs:
            pair.sign = lambda data: string(b"ssh-ed25519") + string(bytes(64))  # type: ignore[method-assign]
        with capture_logs() as entries:
            for pair in (pairs[1], pairs[1], pairs[1], pairs[0], pairs[0]):
                with pytest.raises(asyncssh.Error):
                    await it.connect(password=None, client_keys=[pair])
        assert [reason for _, reason in refusals(entries)] == ["unknown-key"] * 3 + ["bad-signature"] * 2
        assert [ban.address for ban in it.server.registry.bans()] == ["127.0.0.1"]


async def test_a_failure_is_one_line_that_names_address_and_reason(listener: Running) -> None:
    """A wrong password and an unknown user differ in the service log, not for the client; nothing can be forged."""
    errors = []
    with capture_logs() as entries:
        for user in ("triton", "root", "x sftp refused 1.2.3.4 reason=wrong-password"):
            with pytest.raises(asyncssh.PermissionDenied) as error:
                await listener.connect(username=user, password="wrong", preferred_auth="password")
            errors.append(str(error.value).replace(user, "USER"))
    assert len(set(errors)) == 1
    assert refusals(entries) == [
        ("sftp refused 127.0.0.1", "wrong-password"),
        ("sftp refused 127.0.0.1", "unknown-user"),
        ("sftp refused 127.0.0.1", "unknown-user"),
    ]
    assert entries[-1]["user"] == "x_sftp_refused_1.2.3.4_reason_wr"


class Stubborn(asyncssh.SSHClient):
    """A client that tries one wrong password after the other on one connection."""

    def __init__(self) -> None:
        self.tries = 0

    def password_auth_requested(self) -> str:
        self.tries += 1
        return f"wrong {self.tries}"


async def test_tries_on_one_connection_are_limited(tmp_path: Path, keys_dir: Path) -> None:
    """The connection ends with the last try, whatever the client wants."""
    async with running(tmp_path, keys_dir, max_auth_tries=3) as it:
        client = Stubborn()
        with capture_logs() as entries, pytest.raises(asyncssh.DisconnectError):
            await it.connect(client_factory=lambda: client, password=None, preferred_auth="password")
        assert client.tries == 3
        assert [reason for _, reason in refusals(entries)] == ["wrong-password"] * 3 + ["too-many-tries"]


@asynccontextmanager
async def hasty(monkeypatch: pytest.MonkeyPatch, requests: list[bytes]) -> AsyncIterator[None]:
    """asyncssh's client, made to send these requests one after the other without waiting for an answer."""

    async def send(connection: Any) -> None:
        for request in requests:
            if connection.is_closed() or connection._transport is None:
                return
            connection.send_packet(50, string(b"triton"), string(b"ssh-connection"), request)
            await asyncio.sleep(0.02)

    sending: list[asyncio.Task[None]] = []

    def begin(connection: Any, **_: Any) -> None:
        if not sending:
            sending.append(asyncio.get_running_loop().create_task(send(connection)))

    handlers = {
        **SSHConnection._packet_handlers,
        51: lambda *_: None,
    }  # 51: a failure; expected once each
    monkeypatch.setattr(SSHConnection, "_packet_handlers", handlers)
    monkeypatch.setattr(asyncssh.SSHClientConnection, "try_next_auth", begin)
    yield
    await asyncio.gather(*sending)


def try_password(password: str) -> bytes:
    return string(b"password") + b"\0" + string(password.encode())


@pytest.mark.parametrize("allow_from", [[], [LOOPBACK]])
async def test_tries_sent_without_waiting_count_and_wait_like_others(
    tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch, allow_from: list[Any]
) -> None:
    """asyncssh cancels a check when the next request comes; the try counts all the same, and so does its delay."""
    users = [UserSettings(name="triton", password_hash=CHEAP_HASH, allow_from=allow_from)]
    async with running(tmp_path, keys_dir, users=users, max_auth_tries=4) as it:
        requests = [try_password(f"guess {number}") for number in range(30)]
        with capture_logs() as entries:
            async with hasty(monkeypatch, requests):
                with pytest.raises(asyncssh.DisconnectError):
                    await asyncio.wait_for(it.connect(), 20)
        reasons = [reason for _, reason in refusals(entries)]
        assert reasons.count("wrong-password") <= 4
        assert reasons[-1] == "too-many-tries"


async def test_requests_that_are_no_tries_are_limited_too(
    tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To change a password, or to be asked for nothing: no such request is ever granted, and nobody needs a hundred."""
    async with running(tmp_path, keys_dir) as it:
        change = string(b"password") + b"\1" + string(b"old") + string(b"new")
        with capture_logs() as entries:
            async with hasty(monkeypatch, [change, string(b"none")] * 60):
                with pytest.raises(asyncssh.ProtocolError):
                    await asyncio.wait_for(it.connect(), 20)
        assert [reason for _, reason in refusals(entries)] == ["too-many-requests"]


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\nHost: sftp.example.com\r\n\r\n" * 50,
        b"x" * 100_000,
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-x\r\n" * 9,
    ],
    ids=["browser", "endless", "version 1", "no packets"],
)
async def test_what_is_not_ssh_is_a_refusal_like_any_other(listener: Running, words: bytes) -> None:
    """A scanner or a broken client leaves one line with its address, and nothing of what it said but a version."""
    with capture_logs() as entries:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(words)
        async with asyncio.timeout(10):
            with contextlib.suppress(OSError):
                await reader.read()
                while await reader.read(1000):
                    pass
            while listener.server.registry.connected:  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.02)
        writer.close()
    assert refusals(entries) == [("sftp refused 127.0.0.1", "protocol-error")]
    assert not any("sftp.example" in str(entry) for entry in entries)


async def test_an_illegal_user_name_is_a_refusal_too(listener: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncssh ends the connection over it before it asks us."""
    with capture_logs() as entries:
        monkeypatch.setattr("asyncssh.connection.saslprep", str)
        with pytest.raises(asyncssh.DisconnectError):
            await listener.connect(username="x" * 2000)
    assert refusals(entries) == [("sftp refused 127.0.0.1", "protocol-error")]


async def test_failures_end_in_a_ban_that_status_shows_and_time_lifts(tmp_path: Path, keys_dir: Path) -> None:
    """After ban_after failures the address is refused before key exchange, even with the right password."""
    async with running(tmp_path, keys_dir, ban_after=3, ban_time=timedelta(seconds=2)) as it:
        for _ in range(3):
            with pytest.raises((asyncssh.DisconnectError, OSError)):
                await it.connect(password="wrong")
        (ban,) = it.server.registry.bans()
        assert (ban.address, ban.failures) == ("127.0.0.1", 3)
        with capture_logs() as entries, pytest.raises((asyncssh.DisconnectError, OSError)):
            await it.connect()
        assert refusals(entries) == [("sftp refused 127.0.0.1", "banned")]
        async with asyncssh.connect(
            "127.0.0.1",
            it.port,
            local_addr=("127.0.0.2", 0),
            username="triton",
            password=PASSWORD,
            known_hosts=None,
            client_keys=None,
            agent_path=None,
            config=None,
        ):
            pass
        await asyncio.sleep(2.1)
        async with it.connect():
            assert it.server.registry.bans() == []


async def test_an_address_in_an_allow_list_is_never_banned(tmp_path: Path, keys_dir: Path) -> None:
    """Their own mistakes do not lock the partner out."""
    users = [UserSettings(name="triton", password_hash=CHEAP_HASH, allow_from=[LOOPBACK])]
    async with running(tmp_path, keys_dir, ban_after=2, users=users) as it:
        for _ in range(5):
            with pytest.raises(asyncssh.PermissionDenied):
                await it.connect(password="wrong")
        assert it.server.registry.bans() == []
        async with it.connect():
            pass


@pytest.mark.parametrize("unknown", [6, 32])
async def test_keys_that_are_offered_and_unknown_are_no_failures(tmp_path: Path, keys_dir: Path, unknown: int) -> None:
    """An agent gets in with the last of its keys, and counts nothing towards a ban; the 31st is a line with a cure."""
    async with with_key(tmp_path, keys_dir, ban_after=2) as (it, key):
        others = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(unknown)]
        with capture_logs() as entries:
            async with it.connect(password=None, client_keys=[*others, key]):
                pass
        assert [reason for _, reason in refusals(entries)] == ["too-many-keys"] * (unknown > 30)
        assert all("IdentitiesOnly=yes" in entry["hint"] for entry in entries if "reason" in entry)
        assert it.server.registry._guard._failures == {}


async def test_unknown_keys_that_sign_at_once_are_no_failures(tmp_path: Path, keys_dir: Path) -> None:
    """paramiko asks nothing first: seven keys, more than there are tries, and then the password, which is right."""

    def log_in(port: int) -> bool:
        with contextlib.closing(paramiko.Transport(("127.0.0.1", port))) as transport:
            transport.start_client(timeout=20)
            for _ in range(7):
                with pytest.raises(paramiko.AuthenticationException):
                    transport.auth_publickey("triton", paramiko.ECDSAKey.generate())
            transport.auth_password("triton", PASSWORD, fallback=False)
            return bool(transport.is_authenticated())

    async with with_key(tmp_path, keys_dir, ban_after=2) as (it, _):
        assert await asyncio.to_thread(log_in, it.port)
        assert it.server.registry.counters.refusals == {}


async def test_a_login_forgives_the_failures_before_it(tmp_path: Path, keys_dir: Path) -> None:
    """Three times a wrong password and then the right one, and nobody is banned; another user's are kept."""
    users = [UserSettings(name=name, password_hash=CHEAP_HASH) for name in ("triton", "ops")]
    async with running(tmp_path, keys_dir, ban_after=3, users=users) as it:
        for _ in range(3):
            with pytest.raises(asyncssh.PermissionDenied):
                await it.connect(password="wrong")
            async with it.connect():
                pass
        assert it.server.registry._guard._failures == {}
        for _ in range(3):
            with contextlib.suppress(asyncssh.Error, OSError):
                await it.connect(username="ops", password="wrong")
            with contextlib.suppress(asyncssh.Error, OSError):
                await it.connect()
        assert [ban.failures for ban in it.server.registry.bans()] == [3]


def log_in_with(port: int, method: str, password: bytes) -> bool:
    """Send these bytes as the password, by one method."""
    with contextlib.closing(paramiko.Transport(("127.0.0.1", port))) as transport:
        transport.start_client(timeout=20)
        with contextlib.suppress(paramiko.AuthenticationException):
            if method == "password":
                transport.auth_password("triton", password, fallback=False)  # type: ignore[arg-type]
            else:
                transport.auth_interactive("triton", lambda *_: [password])
        return bool(transport.is_authenticated())


METHODS = ["password", "keyboard-interactive"]


@pytest.mark.parametrize("method", METHODS)
async def test_what_hash_password_took_logs_in_by_every_method(
    tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """However the client spells it; so does a hash of an emoji that an earlier version took."""
    cheap = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr("server.sftp.users._HASHER", cheap)
    hashed = hash_password("zw\u00f6lf\u00a0m\u00b2")
    async with running(tmp_path, keys_dir, users=[UserSettings(name="triton", password_hash=hashed)]) as it:
        for typed in ("zw\u00f6lf\u00a0m\u00b2", "zwo\u0308lf m2"):
            assert await asyncio.to_thread(log_in_with, it.port, method, typed.encode())
        assert not await asyncio.to_thread(log_in_with, it.port, method, b"zwolf m2")
        settings = sftp_settings(users=[UserSettings(name="triton", password_hash=cheap.hash("old \U0001f600"))])
        it.server.replace(settings, load_credentials(settings, keys_dir))
        assert await asyncio.to_thread(log_in_with, it.port, method, "old \U0001f600".encode())


@pytest.mark.parametrize("method", METHODS)
async def test_a_password_that_is_no_text_is_a_wrong_one(tmp_path: Path, keys_dir: Path, method: str) -> None:
    """Latin-1, an emoji, a tab, nothing at all: one line each with its reason, and they lead to a ban like others."""
    async with running(tmp_path, keys_dir, ban_after=4) as it:
        with capture_logs() as entries:
            for password in ("m\u00fcller".encode("latin-1"), "\U0001f600".encode(), b"a\tb", b""):
                assert not await asyncio.to_thread(log_in_with, it.port, method, password)
        assert refusals(entries) == [("sftp refused 127.0.0.1", "wrong-password")] * 4
        assert [ban.failures for ban in it.server.registry.bans()] == [4]


@pytest.mark.parametrize("reason", Reason)
def test_fail2ban_reads_what_somebody_guessed_and_nothing_else(reason: Reason) -> None:
    """The filter of README and manual against a line of each reason: no keys, slips of the network, limits."""
    (pattern,) = {found for page in PAGES for found in re.findall(r"failregex = (.+)", page.read_text())}
    stream = io.StringIO()
    log_output.configure(stream=stream)
    try:
        structlog.get_logger().warning("sftp refused 203.0.113.9", reason=reason.value, user="triton", hint="do it")
    finally:
        structlog.reset_defaults()
    matched = re.search(pattern.replace("<ADDR>", r"203\.0\.113\.9"), stream.getvalue()) is not None
    guesses = {Reason.PASSWORD, Reason.USER, Reason.SIGNATURE, Reason.TRIES, Reason.BANNED}
    assert matched is (reason in guesses), stream.getvalue()


async def test_allow_lists_are_checked_before_key_exchange_when_every_user_has_one(
    tmp_path: Path, keys_dir: Path
) -> None:
    """A wrong address does not even get a banner."""
    users = [UserSettings(name="triton", password_hash=CHEAP_HASH, allow_from=[ELSEWHERE])]
    async with running(tmp_path, keys_dir, users=users) as it:
        with capture_logs() as entries:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            assert await reader.read() == b""
            writer.close()
        assert refusals(entries) == [("sftp refused 127.0.0.1", "address-not-allowed")]


async def test_allow_lists_are_checked_at_login_when_some_user_has_none(tmp_path: Path, keys_dir: Path) -> None:
    """The listed user is refused from elsewhere with the right password, the other one gets in."""
    users = [
        UserSettings(name="triton", password_hash=CHEAP_HASH, allow_from=[ELSEWHERE]),
        UserSettings(name="ops", password_hash=CHEAP_HASH),
    ]
    async with running(tmp_path, keys_dir, users=users) as it:
        with capture_logs() as entries, pytest.raises(asyncssh.PermissionDenied):
            await it.connect()
        assert refusals(entries) == [("sftp refused 127.0.0.1", "address-not-allowed")]
        async with it.connect(username="ops"):
            pass


async def test_a_reload_holds_for_new_connections_and_running_ones_go_on(tmp_path: Path, keys_dir: Path) -> None:
    """A new password replaces the old one; a user who is logged in stays and goes on reading."""
    async with running(tmp_path, keys_dir) as it:
        content = it.served.add(NAME, b"c" * 100_000)
        async with it.connect() as connection:
            raw = await RawSftp.open(connection)
            handle = await raw.open_file(NAME)
            settings = sftp_settings(
                users=[UserSettings(name="newname", password_hash=CHEAP_HASH)], max_handles_per_session=1
            )
            it.server.replace(settings, load_credentials(settings, keys_dir))
            assert await raw.read(handle, 0, 200_000) == content
            with pytest.raises(asyncssh.PermissionDenied):
                await it.connect()
            async with it.connect(username="newname"):
                pass


async def test_a_bad_file_leaves_the_old_set_in_force(tmp_path: Path, keys_dir: Path) -> None:
    """Loading fails as a whole before anything is swapped, and the old user still logs in."""
    async with running(tmp_path, keys_dir) as it:
        copy = shutil.copytree(keys_dir, tmp_path / "broken")
        (copy / "ssh_host_rsa_key").write_text("no key")
        with pytest.raises(ConfigError):
            it.server.replace(it.server.settings, load_credentials(it.server.settings, copy))
        async with it.connect():
            pass


async def test_it_starts_without_a_home(tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd's DynamicUser has neither $HOME nor a line in passwd."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("uid")))
    async with running(tmp_path, keys_dir) as it:
        monkeypatch.undo()  # the client wants one
        async with it.connect():
            pass


async def test_it_serves_on_an_inherited_socket(tmp_path: Path, keys_dir: Path) -> None:
    """A socket that systemd bound is used as it is."""
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with running(tmp_path, keys_dir, sock=sock) as it:
        assert it.port == port
        async with it.connect():
            pass
