"""`doctor`, `init`, `handover` and `backup`: the commands of the first day, as an operator types them."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pty
import re
import sqlite3
import stat
import subprocess
import tomllib
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest

from server.cli.handover import column_table, explained
from server.config import load_config
from server.settings import LogSettings
from server.sftp.probe import ProbeKey
from server.sftp.users import PROBE_USER
from server.triton import DerivedValue

from ..support.program import command, day_before, environment, export_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..support.program import Program, ServiceSite, Serving


def configure(site: ServiceSite, port: int, address: str = "") -> None:
    """The site's configuration, with the address that the partner is told leading to where the service listens."""
    site.configure(port=port)
    text = site.config.read_text().replace("sftp.example.com:2222", address or f"127.0.0.1:{port}")
    site.config.write_text(text)


async def served(site: ServiceSite) -> Serving:
    """A service with yesterday published, told under the address where it is."""
    yesterday = day_before(1)
    site.put(yesterday, export_of(yesterday))
    serving = await site.serve()
    await serving.sees(f"TEST{yesterday:%Y%m%d}-00.tsv.gz")
    configure(site, serving.port)
    return serving


async def examined(site: ServiceSite, **options: Any) -> dict[str, tuple[str, str]]:
    """What the doctor finds: by the first word, level and sentence; the last of a word counts."""
    done = await asyncio.to_thread(site.run, "doctor", "--json", **options)
    findings = json.loads(done.stdout)
    assert all(finding["cure"] for finding in findings if finding["level"] != "OK")
    assert done.returncode == (1 if any(finding["level"] == "CRITICAL" for finding in findings) else 0)
    return {finding["finding"].split(":")[0]: (finding["level"], finding["finding"]) for finding in findings}


async def test_a_well_installation_is_found_well_and_a_file_comes_whole(service_site: ServiceSite) -> None:
    """Config, keys, exports, clock, disk, service, and a login under the public address."""
    serving = await served(service_site)
    found = await examined(service_site)
    for what in ("configuration", "keys", "exports", "clock", "data folder", "service", "port"):
        assert found[what][0] == "OK", found
    assert "SHA-256 as published" in found["port"][1]
    assert f"TEST{day_before(1):%Y%m%d}-00.tsv.gz" in found["port"][1]
    assert await serving.running.stops() == 0


async def test_what_the_doctor_fetches_was_picked_up_by_nobody(service_site: ServiceSite) -> None:
    """No pickup, no login, no probe key stays behind."""
    serving = await served(service_site)
    await examined(service_site)
    status = service_site.status()
    assert PROBE_USER not in json.dumps(status)
    name = f"TEST{day_before(1):%Y%m%d}-00.tsv.gz"
    assert json.loads(service_site.run("trace", name, "--json").stdout)["pickups"] == []
    assert not (service_site.folder / "data" / "doctor.pub").exists()
    assert serving.running.count(f"{PROBE_USER} 127.0.0.1. picked up") == 1  # the log knows what happened
    assert await serving.running.stops() == 0


async def test_the_doctor_tells_the_way_from_the_service(service_site: ServiceSite) -> None:
    """Nobody under the public address, but the service answers under its own: it is the way there."""
    serving = await served(service_site)
    configure(service_site, serving.port, "127.0.0.1:1")
    done = await asyncio.to_thread(service_site.run, "doctor")
    assert done.returncode == 1
    assert "CRITICAL  port: no login at 127.0.0.1:1" in done.stdout
    assert re.search(rf"OK        port: 127.0.0.1:{serving.port} lets a client in.*firewall", done.stdout)
    assert await serving.running.stops() == 0


async def test_the_doctor_knows_a_stranger_by_its_host_key(
    service_site: ServiceSite, tmp_path: Path, program: Program
) -> None:
    """Another SSH server under the public address lets nobody in, or shows another key; both are said."""
    serving = await served(service_site)
    key = asyncssh.generate_private_key("ssh-ed25519")

    class Anybody(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

    class Nothing(asyncssh.SFTPServer):
        pass

    empty = tmp_path / "empty"
    empty.mkdir()
    stranger = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[key], server_factory=Anybody,
        sftp_factory=lambda channel: Nothing(channel, chroot=os.fsencode(empty)),
    )  # fmt: skip
    async with stranger:
        configure(service_site, serving.port, f"127.0.0.1:{stranger.get_port()}")
        done = await asyncio.to_thread(service_site.run, "doctor")
    assert "shows a host key that is not one of ours" in done.stdout
    assert await serving.running.stops() == 0


def broken_export(site: ServiceSite) -> None:
    site.exports.rename(site.folder / "away")


def broken_key(site: ServiceSite) -> None:
    (site.folder / "keys" / "ip_hash.key").chmod(0o644)


def missing_key(site: ServiceSite) -> None:
    (site.folder / "keys" / "ssh_host_rsa_key").unlink()


def no_service(_: ServiceSite) -> None:
    """It was never started."""


@pytest.mark.parametrize(
    ("break_it", "word", "sentence"),
    [
        (broken_export, "exports", "does not exist"),
        (broken_key, "keys", "can be read by others"),
        (missing_key, "keys", "there is no such file"),
        (no_service, "service", "does not run"),
    ],
)
async def test_what_is_broken_is_found_with_its_cure(
    service_site: ServiceSite, break_it: Any, word: str, sentence: str
) -> None:
    """One thing at a time; whatever it is, the rest is looked at all the same."""
    service_site.put(day_before(1), export_of(day_before(1)))
    break_it(service_site)
    found = await examined(service_site)
    assert found[word][0] == "CRITICAL" and sentence in found[word][1]
    assert {"configuration", "keys", "exports", "service"} <= set(found)


# The probe key


def test_a_probe_key_is_good_only_as_long_and_as_private_as_it_must_be(tmp_path: Path) -> None:
    """Not another key, not after a minute, not from the future, not readable by others, not a link, not when gone."""
    probe = ProbeKey(tmp_path)
    path = tmp_path / "doctor.pub"
    other = asyncssh.generate_private_key("ssh-ed25519")
    with probe.placed() as key:
        assert probe.accepts(key.public_data)
        assert not probe.accepts(other.public_data)
        now = path.stat().st_mtime
        os.utime(path, (now - 61, now - 61))
        assert not probe.accepts(key.public_data)
        os.utime(path, (now + 3600, now + 3600))
        assert not probe.accepts(key.public_data)
        os.utime(path)
        path.chmod(0o644)
        assert not probe.accepts(key.public_data)
        path.chmod(0o600)
        assert probe.accepts(key.public_data)
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert not probe.accepts(key.public_data)
    assert not probe.accepts(key.public_data)
    path.write_bytes(b"no key")
    path.chmod(0o600)
    assert not probe.accepts(key.public_data)


async def test_nobody_gets_in_under_the_probes_name_without_its_key(service_site: ServiceSite) -> None:
    """Neither with a password nor with a key of one's own; and no user can be called so."""
    serving = await service_site.serve()
    for options in ({"password": "correct horse"}, {"client_keys": [asyncssh.generate_private_key("ssh-ed25519")]}):
        with pytest.raises(asyncssh.PermissionDenied):
            await asyncssh.connect(
                "127.0.0.1", serving.port, username=PROBE_USER, known_hosts=None, agent_path=None, config=None,
                **({"client_keys": None} | options),
            )  # fmt: skip
    assert await serving.running.stops() == 0
    text = service_site.config.read_text().replace('name = "triton"', f'name = "{PROBE_USER}"')
    service_site.config.write_text(text)
    assert service_site.run("status").returncode == 2


# init


def answers(**changes: str) -> list[str]:
    given = {"export": "s3://a-bucket/exports", "address": "sftp.example.com:22", "user": "triton", "prefix": "ACME",
             "data-dir": "/var/lib/pickup-point"} | changes  # fmt: skip
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def test_init_writes_what_it_was_told_and_never_overwrites(program: Program, tmp_path: Path) -> None:
    """From options: a configuration that loads; a second go changes no byte."""
    (tmp_path / "password").write_text("correct horse\n")
    done = program.run("init", *answers(region="eu-west-1"), "--password-file", "password")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "config.toml"
    raw = tomllib.loads(path.read_text())
    assert raw["export"] == {"url": "s3://a-bucket/exports", "region": "eu-west-1"}
    assert raw["sftp"]["port"] == 22 and raw["sftp"]["address"] == "sftp.example.com:22"
    assert raw["sftp"]["users"][0]["password_hash"].startswith("$argon2id$")
    assert "correct horse" not in path.read_text() + done.stdout + done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert load_config(path).log.prefix == "ACME"
    before = path.read_bytes()
    again = program.run("init", *answers(prefix="OTHER"), "--password-file", "password")
    assert again.returncode == 1 and "is not overwritten" in again.stderr
    assert path.read_bytes() == before
    assert sorted(found.name for found in tmp_path.iterdir()) == ["config.toml", "password"]


def test_init_asks_six_questions_on_a_terminal(tmp_path: Path) -> None:
    """Four have an answer already; the password that it makes is printed once, and logs in."""
    leader, follower = pty.openpty()
    asked = subprocess.Popen(
        command("init"), cwd=tmp_path, env=environment(), stdin=follower, stdout=follower, stderr=follower,
        start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    typed = [b"exports\n", b"sftp.example.com:2222\n", b"\n", b"\n", b"\n", b"\n"]
    said = b""
    with suppress(OSError):  # a terminal whose other end is closed
        while chunk := os.read(leader, 4096):
            said += chunk
            if said.endswith(b": ") and typed:  # a prompt for a password forgets what was typed before it
                os.write(leader, typed.pop(0))
    assert asked.wait(60) == 0, said
    os.close(leader)
    text = said.decode()
    assert len(re.findall(r"\?.*:|\(empty: one is made\)", text)) == 6
    made = re.search(r"password: (\S+)", text)
    assert made is not None and len(made[1]) >= 20
    raw = tomllib.loads((tmp_path / "config.toml").read_text())
    assert (raw["sftp"]["users"][0]["name"], raw["log"]["prefix"], raw["data_dir"]) == ("triton", "MEGA", "data")


def test_init_says_what_is_missing_and_what_is_wrong(program: Program, tmp_path: Path) -> None:
    """Nobody to ask: the option; a bad answer: every problem, and nothing is written."""
    done = program.run("init", "--address", "sftp.example.com")
    assert done.returncode == 2 and "--export is missing" in done.stderr
    done = program.run("init", *answers(prefix="a b", export="ftp://x"))
    assert done.returncode == 2 and "export.url" in done.stderr and "log.prefix" in done.stderr
    assert str(tmp_path / "config.toml") in done.stderr
    assert list(tmp_path.iterdir()) == []


# handover


def test_a_handover_holds_what_triton_needs_and_no_secret(service_site: ServiceSite) -> None:
    """Six labels, fingerprints, every column, the questions, and a sample of the newest export."""
    for back in (1, 2):
        service_site.put(day_before(back), export_of(day_before(back), 1200, b"no JSON"))
    done = service_site.run("handover", "--output", service_site.folder / "for-triton")
    assert done.returncode == 0, done.stderr
    folder = service_site.folder / "for-triton"
    text = (folder / "handover.md").read_text()
    for label in ("Server address | sftp.example.com:2222", "User name | triton", "Password | set, handed over",
                  "Remote directory | /", "Partitioned by date | no", "TESTYYYYMMDD-NN.tsv.gz"):  # fmt: skip
        assert label in text
    for word in (
        "`tokens`",
        "`partial_status`",
        "`rows`",
        "`episode-guid`",
        "RSS feeds",
        "UTC",
        "00:00 UTC of the next",
    ):
        assert word in text
    public = (folder / "known_hosts").read_text()
    assert public.startswith("[sftp.example.com]:2222 ssh-ed25519 ")
    for line in public.splitlines():
        assert asyncssh.import_public_key(line.split(" ", 1)[1]).get_fingerprint() in text
    (sample,) = folder.glob("SAMPLE-TEST*.tsv.gz")
    assert f"{day_before(1):%Y%m%d}" in sample.name
    lines = gzip.decompress(sample.read_bytes()).decode().splitlines()
    assert len(lines) == 1001
    for number, column in enumerate(lines[0].split("\t"), 1):
        assert f"| {number} | `{column}` |" in text
    config = service_site.config.read_text()
    hashed = re.search(r'password_hash = "(.*)"', config)
    assert hashed is not None
    everything = b"".join(path.read_bytes() for path in folder.iterdir() if path.suffix != ".gz")
    assert hashed[1].encode() not in everything
    assert (service_site.folder / "keys" / "ip_hash.key").read_bytes().strip() not in everything


def test_a_handover_without_exports_says_so_and_holds_the_rest(service_site: ServiceSite) -> None:
    """No sample; exit 0."""
    done = service_site.run("handover", "--output", service_site.folder / "for-triton")
    assert done.returncode == 0 and "there is no sample" in done.stderr
    assert "not made" in (service_site.folder / "for-triton" / "handover.md").read_text()


@pytest.mark.parametrize(
    "changes", [{}, {"format": "w3c"}, {"ip": "truncated", "partial_status": 200, "text": "percent"}]
)
def test_every_column_that_there_can_be_is_explained(changes: dict[str, Any]) -> None:
    """In both formats, and however it is configured."""
    log = LogSettings(**changes)
    assert {str(value) for value in DerivedValue} <= set(explained(log))
    table = column_table(log)
    for spec in log.log_rules.layout.specs:
        assert f"`{spec.name}`" in table
    assert ("cs-uri-query" in table) == (log.format == "w3c")


# backup


async def test_a_backup_is_whole_while_the_service_writes(service_site: ServiceSite, tmp_path: Path) -> None:
    """Private, complete, never over another; through the standard output as well."""
    serving = await served(service_site)
    target = tmp_path / "backup.sqlite3"
    done = await asyncio.to_thread(service_site.run, "backup", target)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with closing(sqlite3.connect(target)) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert ledger.execute("SELECT name FROM log").fetchall() == [(f"TEST{day_before(1):%Y%m%d}-00.tsv.gz",)]
    before = target.read_bytes()
    again = await asyncio.to_thread(service_site.run, "backup", target)
    assert again.returncode == 1 and "is not overwritten" in again.stderr and target.read_bytes() == before
    assert await serving.running.stops() == 0


def test_a_damaged_ledger_is_no_backup(service_site: ServiceSite, tmp_path: Path) -> None:
    """Said, and nothing is written."""
    service_site.put(day_before(1), export_of(day_before(1)))
    assert service_site.run("feed").returncode in (0, 1)
    path = service_site.folder / "data" / "ledger.sqlite3"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 8192))
    done = service_site.run("backup", tmp_path / "backup.sqlite3")
    assert done.returncode == 1 and "ledger" in done.stderr
    assert not (tmp_path / "backup.sqlite3").exists()
