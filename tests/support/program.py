"""The program as an operator runs it: real processes, their output, and a small installation for them.

``site`` is an installation in a folder of the test's own; ``program`` starts commands and ends whatever is left, so
that no process outlives its test.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as wall_time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from server.convert import process
from server.storage.ledger import Ledger

from .rows import row
from .sftp import CHEAP_HASH, PASSWORD
from .warm import OURS, WARM, Forked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 120.0  # seconds; nothing is asserted about speed, a test that fails ends all the same
_SYSTEMS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "JOURNAL_STREAM",
            "CREDENTIALS_DIRECTORY", "COLUMNS", "FORCE_COLOR")  # fmt: skip


def environment(**changes: str | None) -> dict[str, str]:
    """The test's own environment without what systemd gives; None takes a variable away."""
    found: dict[str, str | None] = {name: value for name, value in os.environ.items() if name not in _SYSTEMS}
    found |= OURS | changes
    return {name: value for name, value in found.items() if value is not None}


def command(*arguments: str | Path) -> list[str]:
    """The command line of ``pickup-point``, run from this checkout."""
    return [sys.executable, "-P", "-m", "server", *map(str, arguments)]


class Running:
    """A started process; what it says is read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes] | Forked) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        self._change = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((process.stdout, self.out), (process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            with self._change:
                lines.append(line.decode(errors="backslashreplace").rstrip("\n"))
                self._change.notify_all()
        with self._change:
            self._change.notify_all()

    def said(self, pattern: str, count: int = 1, *, stream: str = "err") -> list[re.Match[str]]:
        """Wait until this many lines match; the matches."""
        lines = self.err if stream == "err" else self.out
        deadline = time.monotonic() + PATIENCE

        def found() -> list[re.Match[str]]:
            return [match for line in lines if (match := re.search(pattern, line))]

        with self._change:
            while len(matches := found()) < count:
                over = not any(reader.is_alive() for reader in self._readers)
                if over or time.monotonic() > deadline:
                    raise AssertionError(f"{pattern!r} was not said {count} times:\n{self.text}")
                self._change.wait(0.2)
            return matches

    async def says(self, pattern: str, count: int = 1, *, stream: str = "err") -> list[re.Match[str]]:
        """`said`, beside the event loop."""
        return await asyncio.to_thread(self.said, pattern, count, stream=stream)

    @property
    def text(self) -> str:
        """Everything that it said."""
        return "\n".join([*self.out, "-- standard error --", *self.err])

    def count(self, pattern: str) -> int:
        """How many lines of its log match so far."""
        return sum(1 for line in list(self.err) if re.search(pattern, line))

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; the exit code. Everything that it said has been read then."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"it did not end:\n{self.text}") from error
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    async def waits(self) -> int:
        """`wait`, beside the event loop."""
        return await asyncio.to_thread(self.wait)

    def stop(self) -> int:
        """End it properly; the exit code."""
        self.send(signal.SIGTERM)
        return self.wait()

    async def stops(self) -> int:
        """`stop`, beside the event loop."""
        return await asyncio.to_thread(self.stop)

    def end(self) -> None:
        """Whatever happened: it is gone afterwards, and its pipes are closed."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@dataclass
class Program:
    """Runs ``pickup-point``; ``folder`` is where it is run.

    ``warm`` forks commands from a process that has imported all of it already, unless their interpreter would have to
    start in another way.
    """

    folder: Path
    warm: bool = False
    started: list[Running] = field(default_factory=list)

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
        argv: Sequence[str] | None = None,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        if (forked := self._forked(arguments, env, argv, options, cwd=cwd, stdin=stdin)) is not None:
            return _to_its_end(forked)
        done = subprocess.run(
            argv or command(*arguments), cwd=cwd or self.folder, env=environment(**(env or {})), input=stdin,
            capture_output=True, timeout=PATIENCE, check=False, **options,
        )  # fmt: skip
        out, err = (data.decode(errors="backslashreplace") for data in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def start(
        self,
        *arguments: str | Path,
        env: Mapping[str, str | None] | None = None,
        argv: Sequence[str] | None = None,
        first: str = "",
        **options: Any,
    ) -> Running:
        """Start a command that stays; ``first`` is code that its process runs before."""
        process: subprocess.Popen[bytes] | Forked | None = self._forked(arguments, env, argv, options, first=first)
        if process is None and first:
            argv = [
                sys.executable,
                "-P",
                "-c",
                f"{first}\nfrom server.__main__ import main\nmain()",
                *map(str, arguments),
            ]
        if process is None:
            process = subprocess.Popen(
                argv or command(*arguments), cwd=self.folder, env=environment(**(env or {})), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
            )  # fmt: skip
        running = Running(process)
        self.started.append(running)
        return running

    def _forked(
        self,
        arguments: Sequence[str | Path],
        env: Mapping[str, str | None] | None,
        argv: Sequence[str] | None,
        options: Mapping[str, Any],
        *,
        cwd: Path | None = None,
        stdin: bytes = b"",
        first: str = "",
    ) -> Forked | None:
        """The command, forked; None if it needs an interpreter of its own."""
        wanted = environment(**(env or {}))
        if not self.warm or argv or options or len(stdin) > select.PIPE_BUF or not WARM.serves(wanted):
            return None
        its_stdin, into = os.pipe()
        try:
            os.write(into, stdin)
            os.close(into)
            words = [*map(str, arguments)]
            return WARM.start(words, cwd=cwd or self.folder, env=wanted, stdin=its_stdin, first=first)
        finally:
            os.close(its_stdin)

    def end(self) -> None:
        """End everything that was started."""
        for running in self.started:
            running.end()


def not_just_before(turn: str, seconds: float = 30.0) -> None:
    """Wait until a turn of the clock, "00:00" or "04:30" in UTC, is over if it comes within this many seconds.

    A test that begins before it and ends after it would see one day move under its feet.
    """
    now = datetime.now(UTC)
    left = (datetime.combine(now.date(), wall_time.fromisoformat(turn), UTC) - now) % timedelta(days=1)
    if left.total_seconds() < seconds:
        time.sleep(left.total_seconds() + 0.1)


def _to_its_end(forked: Forked) -> subprocess.CompletedProcess[str]:
    with forked.stdout as out, forked.stderr as err, ThreadPoolExecutor(2) as readers:
        said = [readers.submit(stream.read) for stream in (out, err)]
        try:
            code = forked.wait(PATIENCE)
        finally:
            forked.kill()
        texts = [data.result().decode(errors="backslashreplace") for data in said]
    return subprocess.CompletedProcess(forked.args, code, *texts)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """Runs ``pickup-point``; what it started does not outlive the test."""
    not_just_before("00:00")
    it = Program(tmp_path, warm=True)
    try:
        yield it
    finally:
        it.end()


@pytest.fixture
def forked_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork what converts, for whatever the test converts in its own process."""
    monkeypatch.setattr(process, "start", WARM.start_conversion)


def today() -> date:
    """The day that it is, in UTC."""
    return datetime.now(UTC).date()


def day_before(days: int) -> date:
    """This many days ago, in UTC."""
    return today() - timedelta(days=days)


def export_name(day: date) -> str:
    """What Megaphone calls a day's export."""
    return f"metrics-day-{day}.json.gz"


def export_of(day: date, rows: int = 20, *broken: bytes) -> bytes:
    """A day's export: good rows, and these after them."""
    good = [row(id=f"{day}-{n}", created_at=f"{day}T{n // 3600 % 24:02d}:{n // 60 % 60:02d}:{n % 60:02d}.000Z")
            for n in range(rows)]  # fmt: skip
    return gzip.compress(b"".join(line + b"\n" for line in [*good, *broken]), mtime=0)


CONFIG = """\
data_dir = "data"
keys_dir = "keys"
[export]
{export}
final_at = "00:00"
settle = "0s"
give_up_waiting = "{give_up_waiting}"
poll_every = "{poll}"
[log]
prefix = "TEST"
tokens = "hash"
workers = 1
{log}
[sftp]
host = "127.0.0.1"
port = {port}
address = "sftp.example.com:2222"
drain_seconds = {drain}
[[sftp.users]]
name = "triton"
password_hash = "{password_hash}"
{more}
"""


class ServiceSite:
    """A folder with a configuration, keys and exports.

    A day is final at once when it is over, and given up at the end of the next: what is due, held or given up depends
    on the date alone, at whatever hour the tests run.
    """

    def __init__(self, folder: Path, keys_dir: Path, program: Program) -> None:
        self.folder = folder
        self.program = program
        self.config = folder / "config.toml"
        self.exports = folder / "exports"
        self.exports.mkdir()
        self.pickup = folder / "data" / "pickup"
        shutil.copytree(keys_dir, folder / "keys")
        self.configure()

    def configure(
        self,
        export: str = 'url = "exports"',
        log: str = "",
        port: int = 0,
        password_hash: str = CHEAP_HASH,
        drain: int = 20,
        poll: str = "1s",
        more: str = "",
        give_up_waiting: str = "48h",
    ) -> None:
        """Write the configuration; days are given up at the end of a day, so that no test depends on the hour."""
        text = CONFIG.format(
            export=export,
            log=log,
            port=port,
            password_hash=password_hash,
            drain=drain,
            poll=poll,
            more=more,
            give_up_waiting=give_up_waiting,
        )
        self.config.write_text(text)

    def put(self, day: date, content: bytes) -> Path:
        """Put an export into the folder, whole at once."""
        part = self.folder / "part"
        part.write_bytes(content)
        return part.rename(self.exports / export_name(day))

    def run(self, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on this installation."""
        return self.program.run(*arguments, "--config", self.config, **options)

    def status(self) -> dict[str, Any]:
        """What ``status --json`` says."""
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def last_round(self) -> str:
        """When the service's last round began, as it noted it itself."""
        with closing(Ledger.read(self.folder / "data" / "ledger.sqlite3")) as ledger:
            return str(ledger.facts().get("last_round"))

    async def rounds(self, count: int) -> None:
        """Wait until this many more rounds have ended."""
        for _ in range(count):
            before = self.last_round()
            await until(lambda seen=before: self.last_round() != seen, "another round")

    async def serve(self, **options: Any) -> Serving:
        """Start the service and wait until it listens."""
        running = self.program.start("serve", "--config", self.config, **options)
        return Serving(running, await port_of(running))

    def published(self) -> dict[str, tuple[bytes, int]]:
        """The files in the pickup folder: content and mtime by name."""
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(self.pickup.iterdir())}


async def port_of(running: Running) -> int:
    """Where a service listens, once it does."""
    return int((await running.says(r"service started listening host=.* port=(\d+)"))[0][1])


@dataclass
class Serving:
    """A service that listens."""

    running: Running
    port: int

    @asynccontextmanager
    async def client(self, password: str = PASSWORD, username: str = "triton") -> AsyncIterator[asyncssh.SFTPClient]:
        """An SFTP client, logged in."""
        async with log_in(self.port, username, password) as connection, connection.start_sftp_client() as sftp:
            yield sftp

    async def names(self) -> list[str]:
        """What a client sees."""
        async with self.client() as sftp:
            return await _names(sftp)

    async def fetch(self, name: str) -> bytes:
        """What a client gets."""
        async with self.client() as sftp, sftp.open(name, "rb") as file:
            data = await file.read()
            assert isinstance(data, bytes)
            return data

    async def sees(self, *names: str) -> None:
        """Wait until a client sees exactly these."""
        deadline = time.monotonic() + PATIENCE
        async with self.client() as sftp:
            while (seen := await _names(sftp)) != sorted(names):
                assert time.monotonic() < deadline, f"seen: {seen}, wanted: {names}\n{self.running.text}"
                await asyncio.sleep(0.1)


async def _names(sftp: asyncssh.SFTPClient) -> list[str]:
    return sorted(str(name) for name in await sftp.listdir(".") if name not in (".", ".."))


def log_in(port: int, username: str, password: str) -> Any:
    """An asyncssh connection to 127.0.0.1."""
    return asyncssh.connect(
        "127.0.0.1", port, username=username, password=password, known_hosts=None, client_keys=None, agent_path=None,
        config=None,
    )  # fmt: skip


@pytest.fixture
def service_site(tmp_path: Path, keys_dir: Path, program: Program) -> ServiceSite:
    """An installation with a folder of exports, nothing in it yet."""
    folder = tmp_path / "site"
    folder.mkdir()
    return ServiceSite(folder, keys_dir, program)


GARBAGE = (b"{", b"[1]", b'{"id":null}')  # three rows that are rejected


def log_of(days: int, number: int = 0) -> str:
    """The name of the log file of a day, this many days ago."""
    return f"TEST{day_before(days):%Y%m%d}-{number:02d}.tsv.gz"


@pytest.fixture
def fed(service_site: ServiceSite) -> ServiceSite:
    """An installation with one published day, one held day and today's."""
    service_site.put(day_before(2), export_of(day_before(2), 3, *GARBAGE))
    service_site.put(day_before(1), export_of(day_before(1)))
    service_site.put(day_before(0), export_of(day_before(0)))
    done = service_site.run("feed")
    assert done.returncode == 1, done.stderr
    return service_site


async def until(true: Callable[[], bool], what: str, every: float = 0.1) -> None:
    """Wait until something is true; whoever asks by a command asks every second, or so."""
    deadline = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(true):
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(every)


def listening_addresses(pid: int) -> set[str]:
    """The addresses, in the kernel's hex, that a process listens on over TCP."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                inodes.add(match[1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.add(words[1].rpartition(":")[0])
    return found


def secrets_of(export: bytes) -> set[str]:
    """The listener addresses and user agents in an export, long enough not to be mistaken for other words."""
    found = set()
    for line in gzip.decompress(export).split(b"\n"):
        with suppress(ValueError):
            parsed = json.loads(line)
            if isinstance(parsed, dict):
                values = [parsed.get("ip"), parsed.get("user_agent")]
                found |= {value.strip() for value in values if isinstance(value, str) and len(value.strip()) > 5}
    return found
