"""The demo, as a newcomer meets it: one command, then an SFTP client of their own."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import urllib.request
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
import structlog
from argon2 import PasswordHasher

from server.cli import demo as demo_module
from server.cli.app import run
from server.cli.demo import CAUGHT_UP_DAYS, FINAL_DAYS, introduction, prepare
from server.cli.doctor import examine
from server.cli.handover import write_handover
from server.config import load_config
from server.errors import PickupPointError
from server.megaphone.exports import FinalityRule, Listing
from server.megaphone.folder import Folder
from server.service import assembled, load_keys
from server.status.alarms import NOT_AGREED
from server.status.snapshot import Snapshot

from ..support.program import (
    Program,
    Running,
    command,
    listening_addresses,
    log_in,
    not_just_before,
    port_of,
    secrets_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class RunningDemo:
    """One demo for all tests of this file."""

    def __init__(self, folder: Path) -> None:
        for turn in ("00:00", f"{FinalityRule().final_at:%H:%M}"):
            not_just_before(turn)
        self.program = Program(folder, warm=True)
        self.folder = folder / "demo"
        # ROWS is the real one; HOME is nowhere, so that no client's configuration or agent plays a part. The commands
        # beside it are forked; it is started as a newcomer does.
        itself = command("demo", "--port", "0")
        self.running: Running = self.program.start(argv=itself, env={"HOME": str(folder)})
        self.running.said("^Ctrl-C stops it", stream="out")
        self.port = int(self.running.said(r"^sftp -P (\d+) demo@127\.0\.0\.1$", stream="out")[0][1])
        self.password = self.running.said(r"^password: (\S+)$", stream="out")[0][1]

    @property
    def files(self) -> list[str]:
        """The three newest days that are final now, as files."""
        now = datetime.now(UTC)
        newest = now.date() - timedelta(days=1 if now >= FinalityRule().final_time(now.date() - timedelta(1)) else 2)
        return [f"DEMO{newest - timedelta(days=back):%Y%m%d}-00.tsv.gz" for back in (2, 1, 0)]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command on the demo's configuration."""
        return self.program.run(*arguments, "--config", self.folder / "config.toml")

    def on_disk(self) -> dict[str, bytes]:
        """What was published."""
        return {path.name: path.read_bytes() for path in (self.folder / "data" / "pickup").iterdir()}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDemo]:
    """A running demo on a free port."""
    it = None
    folder = tmp_path_factory.mktemp("demo")
    try:
        it = RunningDemo(folder)
        yield it
    finally:
        if it is not None:
            it.program.end()


def test_the_demo_says_how_to_fetch_on_lines_of_their_own(demo: RunningDemo) -> None:
    """The command and the password have a line each, to be copied; the three files are named."""
    out = demo.running.out
    assert out.count(f"sftp -P {demo.port} demo@127.0.0.1") == 1
    assert out.count(f"password: {demo.password}") == 1
    assert [line.strip() for line in out if line.startswith("  ")] == demo.files
    assert any(line.startswith(f"{datetime.now(UTC):%Y-%m-%d}, today, is not served") for line in out)


def test_the_page_that_the_demo_names_tells_how_its_days_are(demo: RunningDemo) -> None:
    """For those who would rather look: the address is printed, and the newest file's day has arrived there."""
    (told,) = demo.running.said(r"(http://127\.0\.0\.1:\d+/)$", stream="out")
    with urllib.request.urlopen(told[1], timeout=60) as answer:
        page = answer.read().decode()
    assert "nothing is wrong" in page
    assert all(f"/days/{name[4:8]}-{name[8:10]}-{name[10:12]}" in page for name in demo.files)


def test_the_three_newest_final_days_are_published_before_the_demo_listens(demo: RunningDemo) -> None:
    """Whoever connects first finds everything."""
    demo.running.said("service started listening")  # the log comes by another pipe than what the demo prints
    log = demo.running.err
    published = [n for n, line in enumerate(log) if "feed published DEMO" in line and "rows=" in line]
    listened = next(n for n, line in enumerate(log) if "service started listening" in line)
    assert len(published) == FINAL_DAYS
    assert max(published) < listened


async def test_a_client_fetches_all_three_days_whole_and_sees_nothing_else(demo: RunningDemo) -> None:
    """The bytes are those on disk, one gzip member each, a header line and lines of fourteen columns."""
    async with log_in(demo.port, "demo", demo.password) as connection, connection.start_sftp_client() as sftp:
        listed = sorted(str(name) for name in await sftp.listdir("/") if name not in (".", ".."))
        assert listed == demo.files
        for name in listed:
            async with sftp.open(name, "rb") as file:
                data = await file.read()
            assert data == demo.on_disk()[name]
            lines = gzip.decompress(data).decode().split("\n")
            assert lines[0].startswith("date\tstart-time\tIP\tHashed-IP\t")
            assert lines.pop() == ""
            assert len(lines) > 3000
            assert {line.count("\t") for line in lines} == {13}
            assert {line[:10] for line in lines[1:]} == {f"{name[4:8]}-{name[8:10]}-{name[10:12]}"}


async def test_todays_day_and_everything_beside_the_logs_cannot_be_opened(demo: RunningDemo) -> None:
    """Neither a name that would be today's, nor the folder's own files, nor the machine's."""
    today = f"DEMO{datetime.now(UTC):%Y%m%d}-00.tsv.gz"
    others = [
        today,
        "config.toml",
        "password.txt",
        "../config.toml",
        "data/ledger.sqlite3",
        "/etc/passwd",
        "//etc/passwd",
    ]
    async with log_in(demo.port, "demo", demo.password) as connection, connection.start_sftp_client() as sftp:
        for name in others:
            with pytest.raises(asyncssh.SFTPError):
                await sftp.open(name, "rb")
    assert today not in demo.on_disk()


def test_openssh_fetches_the_three_days_with_the_printed_command(demo: RunningDemo, tmp_path: Path) -> None:
    """The line that the demo prints works as it stands, with OpenSSH's own client and the printed password."""
    if shutil.which("sftp") is None:
        pytest.skip("OpenSSH's sftp is not installed: apt install openssh-client")
    ask = tmp_path / "ask"
    ask.write_text(f"#!/bin/sh\necho '{demo.password}'\n")
    ask.chmod(0o700)
    line = next(line for line in demo.running.out if line.startswith("sftp "))
    options = ["-oStrictHostKeyChecking=no", f"-oUserKnownHostsFile={tmp_path / 'known'}", "-F", "/dev/null"]
    words = line.split()
    done = subprocess.run(
        [words[0], *options, *words[1:]], cwd=tmp_path, input=b"ls -1\nget *\nbye\n", capture_output=True, timeout=60,
        check=False, env=os.environ | {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force", "HOME": str(tmp_path)},
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    fetched = {path.name: path.read_bytes() for path in tmp_path.glob("DEMO*")}
    assert fetched == demo.on_disk()
    assert sorted(fetched) == demo.files
    for name in fetched:
        subprocess.run(["gzip", "-t", tmp_path / name], check=True)


def test_the_books_of_the_sample_days_balance_and_few_rows_are_rejected(demo: RunningDemo) -> None:
    """Every kind of broken row is in the sample, but too few of each to hold a day under the default max_rejected."""
    limit = load_config(demo.folder / "config.toml").log.max_rejected
    days = json.loads(demo.run("status", "--json").stdout)["days"]
    final = [day for day in days if day["publications"]]
    assert len(final) == FINAL_DAYS
    for day in final:
        assert day["rows"] == day["lines"] + day["filtered"] + day["rejected"]
        assert 0 < day["rejected"] < limit * day["rows"] / 2
        assert len(day["publications"][0]["tally"]["rejected"]) == 10
    assert [day["state"] for day in days if day not in final] == ["open"] * (len(days) - FINAL_DAYS)


def test_the_other_commands_work_on_the_demos_configuration(demo: RunningDemo) -> None:
    """It is an ordinary installation: status, check and trace know it, and a feed run by hand has nothing to do."""
    name = demo.files[-1]
    status = demo.run("status")
    assert status.returncode == 0
    assert "running for" in status.stdout
    assert demo.run("check").stdout.startswith("PICKUP-POINT ")
    sha256 = hashlib.sha256(demo.on_disk()[name]).hexdigest()
    assert sha256 in demo.run("trace", name).stdout
    fed = demo.run("feed")
    assert fed.returncode == 0
    assert all(f"published   {name}" in fed.stdout for name in demo.files)
    assert "feed published" not in fed.stderr


def test_the_demo_listens_on_loopback_only_and_its_folder_is_private(demo: RunningDemo) -> None:
    """It listens on 127.0.0.1 only; nobody else on the machine can read keys, password or data."""
    assert listening_addresses(demo.running.process.pid) == {"0100007F"}
    assert stat.S_IMODE(demo.folder.stat().st_mode) == 0o700
    for path in (demo.folder / "password.txt", demo.folder / "config.toml", *(demo.folder / "keys").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_demo_is_not_started_twice_on_one_folder(demo: RunningDemo) -> None:
    """The second one fails with a sentence, and the first goes on."""
    second = demo.program.run("demo", "--port", "0")
    assert second.returncode == 1
    assert "another pickup-point already serves" in second.stderr
    assert "Traceback" not in second.stderr
    assert demo.running.process.poll() is None


def test_no_password_and_nothing_of_a_listener_is_in_the_demos_log(demo: RunningDemo) -> None:
    """Neither service log nor status has an address or a user agent of a sample row, or the password."""
    said = "\n".join([*demo.running.err, demo.run("status").stdout, demo.run("status", "--json").stdout])
    assert demo.password not in said
    secrets = set().union(*(secrets_of(path.read_bytes()) for path in (demo.folder / "exports").iterdir()))
    assert len(secrets) > 3000
    assert [secret for secret in secrets if secret in said] == []


# Other days, other hours

FEW = 1500  # rows of a day: as few as the share of broken ones allows


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keys_dir: Path, forked_conversions: None) -> None:
    """Make small days, no keys (they are there), and a cheap hash."""
    monkeypatch.setattr(demo_module, "ROWS", FEW)
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(demo_module, "hash_password", hasher.hash)
    for folder in ("demo", "a demo"):
        shutil.copytree(keys_dir, tmp_path / folder / "keys")


@pytest.mark.parametrize(
    ("now", "newest"),
    [
        ("2026-03-10T04:29:59", "2026-03-08"),
        ("2026-03-10T04:30:00", "2026-03-09"),
        ("2026-03-10T00:00:00", "2026-03-08"),
        ("2026-03-09T23:59:59", "2026-03-08"),
        ("2026-01-01T00:10:00", "2025-12-30"),
        ("2026-01-01T05:00:00", "2025-12-31"),
        ("2024-03-01T04:30:00", "2024-02-29"),
    ],
)
@pytest.mark.usefixtures("small")
def test_the_demo_makes_the_days_that_are_final_at_that_moment(now: str, newest: str, tmp_path: Path) -> None:
    """Three final days, and every later one up to today unfinished, around 04:30Z, midnight and the year's end."""
    at = datetime.fromisoformat(now).replace(tzinfo=UTC)
    made = prepare(tmp_path / "demo", 0, at)
    last = date.fromisoformat(newest)
    assert made.final_days == (last - timedelta(days=2), last - timedelta(days=1), last)
    assert made.open_day == at.date()
    exports = {path.name: path for path in (tmp_path / "demo" / "exports").iterdir()}
    unfinished = [last + timedelta(days=n) for n in range(1, (at.date() - last).days + 1)]
    assert set(exports) == {f"metrics-day-{day}.json.gz" for day in [*made.final_days, *unfinished]}
    rule = FinalityRule()
    for day in [*made.final_days, *unfinished]:
        path = exports[f"metrics-day-{day}.json.gz"]
        modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        assert modified <= at
        assert (at >= rule.final_time(day)) == (day in made.final_days)
        if day in made.final_days:
            assert modified.date() == day + timedelta(days=1)
            assert at - modified >= rule.settle
        for row in gzip.decompress(path.read_bytes()).split(b"\n"):
            created = re.search(rb'^{"country".*"created_at":"([^"]{19})', row)
            assert created is None or created[1].decode() <= f"{at:%Y-%m-%dT%H:%M:%S}" or day in made.final_days


class EarlierFolder(Folder):
    """A folder of exports whose clock stands at an earlier moment."""

    at: datetime

    async def day_exports(self) -> Listing:
        """The folder's listing, dated by that moment."""
        return (await super().day_exports())._replace(now=self.at)


async def _round_of(config: Path, at: datetime, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    settings = load_config(config)
    assert isinstance(settings.export.place, Path)
    source = EarlierFolder(settings.export.place, settings.export.export_kind)
    source.at = at

    async def opened(*_: Any) -> EarlierFolder:
        return source

    with monkeypatch.context() as patched:
        patched.setattr("server.service.open_source", opened)
        async with assembled(settings, load_keys(settings)[1]) as parts:
            return [str(name) for name in (await parts.feed.run_round(at)).published]


def _kept(folder: Path) -> Mapping[str, tuple[bytes, int]]:
    paths = [folder / "password.txt", folder / "config.toml", *(folder / "keys").iterdir()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("days", [1, 30])
async def test_a_later_start_keeps_keys_password_and_names_and_adds_the_missing_days(
    days: int, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched once stays as it is; the days since then are added, a week of them at most."""
    now = datetime.now(UTC)
    folder = tmp_path / "demo"
    earlier = now - timedelta(days=days)
    made = prepare(folder, 0, earlier)
    first = await _round_of(made.config, earlier, monkeypatch)
    assert first == [f"DEMO{day:%Y%m%d}-00.tsv.gz" for day in made.final_days]
    kept, published = _kept(folder), _published(folder)

    running = program.start("demo", "--port", "0", first=f"from server.cli import demo; demo.ROWS = {FEW}")
    port = await port_of(running)
    password = (await running.says(r"^password: (\S+)$", stream="out"))[0][1]
    assert password == made.password
    assert _kept(folder) == kept
    now_there = _published(folder)
    assert {name: now_there[name] for name in published} == published
    newest = made.final_days[-1] + timedelta(days=days)
    wanted = {f"DEMO{newest - timedelta(days=back):%Y%m%d}-00.tsv.gz" for back in range(min(days, CAUGHT_UP_DAYS))}
    assert set(now_there) - set(published) == wanted
    async with log_in(port, "demo", password) as connection, connection.start_sftp_client() as sftp:
        assert sorted(str(name) for name in await sftp.listdir("/") if name not in (".", "..")) == sorted(now_there)
    assert await running.stops() == 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("clock", "before"), [("00:10", 0), ("23:59", 0), ("00:10", 20)])
async def test_the_demos_days_alarm_nobody_and_it_says_what_an_alarm_would_be(
    clock: str, before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the day whose deadline is over, nor those of a long absence; the alarm is for one who has to fetch."""
    now = datetime.fromisoformat(f"2026-03-10T{clock}+00:00")
    for start in [now - timedelta(days=before)] * bool(before) + [now]:
        made = prepare(tmp_path / "demo", 0, start)
        await _round_of(made.config, start, monkeypatch)

    def alarms() -> list[str]:
        found = Snapshot.take(load_config(made.config), now)
        assert [day.state for day in found.days].count("published") == FINAL_DAYS + bool(before) * CAUGHT_UP_DAYS
        return [f"{alarm.level.name}: {alarm.sentence}" for alarm in found.alarms if alarm.subject]

    assert alarms() == []
    made.config.write_text(made.config.read_text().replace("required = false", "required = true"))
    assert set(alarms()) & set(introduction(made, [], 2222, 9108, "pickup-point", now))


@pytest.mark.usefixtures("small")
async def test_the_demo_of_the_other_kind_shows_what_is_known_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marked days are published; a later start keeps the kind; what Triton has not agreed to is said everywhere."""
    now = datetime(2026, 3, 10, 11, 0, tzinfo=UTC)
    made = prepare(tmp_path / "demo", 0, now, "delivery-v2")
    assert made.final_days[-1] == date(2026, 3, 9)
    assert await _round_of(made.config, now, monkeypatch) == [f"DEMO202603{day:02d}-00.tsv.gz" for day in (7, 8, 9)]
    assert prepare(tmp_path / "demo", 0, now + timedelta(hours=1)).kind.name == "delivery-v2"
    assert any("once Megaphone marks it" in line for line in introduction(made, [], 2222, None, "pickup-point", now))
    for kind, said in (("metrics", "has Delivery exports V2"), ("other", "there is no kind of export other")):
        with pytest.raises(PickupPointError, match=said):
            prepare(tmp_path / "demo", 0, now, kind)

    def told() -> list[str]:
        return [alarm.hint for alarm in Snapshot.take(load_config(made.config), now).alarms if "agree" in alarm.name]

    assert told() == []
    done = await write_handover(load_config(made.config), tmp_path / "agreed")
    made.config.write_text(made.config.read_text().replace("agreed = true", ""))
    assert told() == [NOT_AGREED]
    asked = await write_handover(load_config(made.config), tmp_path / "open")
    assert [sum(lack.hint == NOT_AGREED for lack in handover.warnings) for handover in (done, asked)] == [0, 1]
    for folder, is_asked in (("agreed", False), ("open", True)):
        text = (tmp_path / folder / "handover.md").read_text()
        assert (
            "Do lines count whose `bytes`, `object-size` and `byte-range` are `-`, with status 200?" in text
        ) == is_asked
        assert "once Megaphone marks it, by 11:00 UTC" in text and "`-` if the row has no filesize" in text
    (sample,) = (tmp_path / "open").glob("SAMPLE-DEMO*.tsv.gz")
    assert gzip.decompress(sample.read_bytes()).count(b"\t200\t-\t-\t-\t") > 300
    findings = [finding.sentence for finding in await examine(load_config(made.config))]
    assert "exports: delivery-v2-day-2026-03-10.json.gz can be read" in findings


@pytest.mark.usefixtures("small")
def test_a_port_that_is_taken_is_no_reason_to_change_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hint is a command of the demo's own; those in its journal reach its configuration, which nobody typed."""
    monkeypatch.setattr(demo_module, "FINAL_DAYS", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["demo", "--directory", str(tmp_path / "a demo"), "--port", str(taken.getsockname()[1])]
        assert run(arguments) == 1
    structlog.get_logger().warning("told", hint="pickup-point status")
    said = capsys.readouterr().err
    assert f" demo --directory '{tmp_path}/a demo' --port 0" in said and "sftp.port" not in said
    assert f" status --config '{tmp_path}/a demo/config.toml'" in said.splitlines()[-1]


def _published(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "data" / "pickup").iterdir()}


@pytest.mark.usefixtures("small")
def test_a_start_of_the_same_day_writes_no_final_day_again(tmp_path: Path) -> None:
    """A final day's file is the same file afterwards; the unfinished one has grown."""
    morning = datetime(2026, 3, 10, 6, 0, tzinfo=UTC)
    made = prepare(tmp_path / "demo", 0, morning)
    final = [made.folder / "exports" / f"metrics-day-{day}.json.gz" for day in made.final_days]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in final]
    open_day = made.folder / "exports" / f"metrics-day-{made.open_day}.json.gz"
    small = gzip.decompress(open_day.read_bytes())
    prepare(made.folder, 0, morning + timedelta(hours=12))
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in final] == before
    assert gzip.decompress(open_day.read_bytes()).count(b"\n") > small.count(b"\n")


def test_a_demo_that_cannot_be_made_says_where_to_make_it(program: Program, tmp_path: Path) -> None:
    """With a file in place of the folder it prints a sentence and a command to type; exit code 1."""
    (tmp_path / "taken").write_text("")
    done = program.run("demo", "--directory", "taken")
    assert done.returncode == 1
    assert done.stderr.startswith("pickup-point: cannot create the demo in taken: ")
    assert done.stderr.splitlines()[1].startswith(f"      {sys.executable} -m server demo --directory ")


@pytest.mark.usefixtures("small")
def test_the_introduction_names_the_command_that_was_typed(tmp_path: Path) -> None:
    """The status command can be copied as it is, and lines to type contain nothing else."""
    now = datetime(2026, 3, 10, 6, 0, tzinfo=UTC)
    made = prepare(tmp_path / "demo", 0, now)
    told = introduction(made, ["DEMO20260309-00.tsv.gz"], 2222, None, sys.executable, now)
    assert "sftp -P 2222 demo@127.0.0.1" in told
    assert f"{sys.executable} status --config {made.config}" in told
    assert not any("http" in line for line in told)  # an earlier release's demo has no page
    assert introduction(made, [], 2222, 9108, "pickup-point", now)  # nothing published is no reason to fail
