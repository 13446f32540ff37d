"""`doctor`, `init`, `handover` and `backup`: the commands of the first day, as an operator types them."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import pty
import re
import signal
import sqlite3
import stat
import subprocess
import tomllib
from contextlib import closing, suppress
from datetime import UTC, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from argon2 import PasswordHasher

from server.cli.handover import lacks_of
from server.cli.handover_document import Material, column_table, document, example_line, explained
from server.config import load_config, parse_config
from server.megaphone.exports import DELIVERY_V2
from server.settings import LogSettings
from server.sftp.client import LoginAttempt, NoAnswer, fetch_sha256
from server.status.words import activation_sheet
from server.storage.ledger import LEDGER_FILE, Ledger
from server.triton import DerivedValue

from ..support.program import command, day_before, environment, export_of, log_of, today, until
from ..support.sftp import CHEAP_HASH, PASSWORD

if TYPE_CHECKING:
    from ..support.program import Program, ServiceSite, Serving
    from ..support.s3 import S3Server


def configure(site: ServiceSite, port: int, address: str = "", more: str = "") -> None:
    """Write the site's configuration, with a public address that leads to where the service listens."""
    site.configure(port=port, more=more)
    text = site.config.read_text().replace("sftp.example.com:2222", address or f"127.0.0.1:{port}")
    site.config.write_text(text)


async def served(site: ServiceSite, more: str = "") -> Serving:
    """Run a service with yesterday published, at its public address; ``more`` are further users."""
    yesterday = day_before(1)
    site.put(yesterday, export_of(yesterday))
    site.configure(more=more)
    serving = await site.serve()
    await serving.running.says(f"published {log_of(1)}")
    configure(site, serving.port, more=more)
    return serving


async def examined(site: ServiceSite, *options: str | Path) -> dict[str, tuple[str, str, str]]:
    """Return level, sentence and cure of what the doctor finds, by the first word; the last of a word counts."""
    done = await asyncio.to_thread(site.run, "doctor", "--json", *options)
    findings = json.loads(done.stdout)
    assert all(finding["cure"] for finding in findings if finding["level"] != "OK")
    assert done.returncode == (1 if any(finding["level"] == "CRITICAL" for finding in findings) else 0)
    return {it["finding"].split(":")[0]: (it["level"], it["finding"], it["cure"]) for it in findings}


def password_file(site: ServiceSite, password: str = PASSWORD) -> Path:
    """Write a file with the partner's password, or another, in its first line."""
    path = site.folder / "password"
    path.write_text(f"{password}\n")
    return path


def identity_file(site: ServiceSite, name: str) -> tuple[Path, str]:
    """Write a new private key to a file, and return it with its public line."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    path = site.folder / name
    key.write_private_key(path)
    return path, key.export_public_key().decode()


async def test_a_well_installation_is_found_well_without_a_login(service_site: ServiceSite) -> None:
    """Config, keys, exports, clock, disk, service, and our host key at the port and at the public address."""
    serving = await served(service_site)
    found = await examined(service_site)
    for what in ("configuration", "keys", "exports", "clock", "data folder", "service", "port", "address"):
        assert found[what][0] == "OK", found
    for what in ("port", "address"):
        assert found[what][1] == f"{what}: 127.0.0.1:{serving.port} exchanges keys and presents our host key"
    assert "login" not in found
    assert await serving.running.stops() == 0
    assert not serving.running.count("logged in|sftp refused|left TEST|picked up")


async def test_a_login_fetches_the_newest_log_whole(service_site: ServiceSite) -> None:
    """It fetches no older one, and compares the SHA-256 with the ledger's."""
    service_site.put(day_before(2), export_of(day_before(2), 5))
    serving = await served(service_site)
    await serving.running.says(f"published {log_of(2)}")
    with closing(sqlite3.connect(service_site.folder / "data" / "ledger.sqlite3")) as ledger:
        (newest,) = ledger.execute("SELECT name FROM log ORDER BY mtime DESC LIMIT 1").fetchone()
    found = await examined(service_site, "--password-file", password_file(service_site))
    level, sentence, _ = found["login"]
    assert level == "OK" and "does not count as a pickup" in sentence
    assert f"triton can log in at 127.0.0.1:{serving.port} and {newest} arrives whole" in sentence
    assert "tried by password and by keyboard-interactive" in sentence
    size = (service_site.pickup / newest).stat().st_size
    assert await serving.running.stops() == 0
    assert serving.running.count(rf"triton 127.0.0.1\] left {newest} bytes={size} .*of={size} grade=test") == 1


async def test_what_the_doctor_fetches_counts_as_nobodys_pickup(service_site: ServiceSite) -> None:
    """`trace` shows it as a test, not as a pickup or a visit of the partner, whose own pickups count as ever."""
    serving = await served(service_site)
    found = await examined(service_site, "--password-file", password_file(service_site))
    assert found["login"][0] == "OK"

    def traced() -> list[dict[str, Any]]:
        pickups: list[dict[str, Any]] = json.loads(service_site.run("trace", log_of(1), "--json").stdout)["pickups"]
        return pickups

    await until(lambda: [it["ending"] for it in traced()] == ["closed"], "the end of the doctor's read")
    (pickup,) = traced()
    assert (pickup["user"], pickup["client"], pickup["grade"]) == ("triton", "pickup-point-doctor", "test")
    assert pickup["covered"] == (service_site.pickup / log_of(1)).stat().st_size

    def yesterday() -> dict[str, Any]:
        (found,) = [day for day in service_site.status()["days"] if day["day"] == str(day_before(1))]
        return dict(found)

    day = yesterday()
    assert day["state"] == "published" and day["deadlines"]["picked_up"]["done"] is None
    assert [(user["files"], user["at"]) for user in day["picked_up"]] == [(0, None)]
    assert service_site.status()["logins"] == {}
    assert "triton 0 of 1" not in service_site.run("status").stdout
    assert not serving.running.count("picked up")

    await serving.fetch(log_of(1))
    await until(lambda: yesterday()["state"] == "picked up", "the partner's pickup in status")
    assert [it["grade"] for it in traced()] == ["test", "complete"]
    assert service_site.status()["logins"]["triton"]["client"].startswith("AsyncSSH")
    assert await serving.running.stops() == 0


async def test_a_private_key_logs_in_as_the_user_who_is_named(service_site: ServiceSite) -> None:
    """With --identity and --user; another key is refused, and the cure names the file that should have it."""
    path, public = identity_file(service_site, "partner_key")
    other, _ = identity_file(service_site, "other_key")
    (service_site.folder / "keys" / "partner.pub").write_text(public)
    more = '[[sftp.users]]\nname = "second"\nauthorized_keys = "keys/partner.pub"\n'
    serving = await served(service_site, more)
    found = await examined(service_site, "--identity", path, "--user", "second")
    assert found["login"][0] == "OK" and f"second can log in at 127.0.0.1:{serving.port}" in found["login"][1]
    level, sentence, cure = (await examined(service_site, "--identity", other, "--user", "second"))["login"]
    assert (level, sentence) == ("CRITICAL", f"login: 127.0.0.1:{serving.port} refuses second with {other}")
    assert cure.endswith(f"keys/partner.pub: ssh-keygen -y -f {other}")
    level, _, cure = (await examined(service_site, "--identity", other, "--user", "triton"))["login"]
    assert (level, cure) == ("CRITICAL", "set authorized_keys of triton; systemctl reload pickup-point")
    assert await serving.running.stops() == 0
    assert serving.running.count("second 127.0.0.1. logged in .*publickey") == 1


async def test_a_wrong_password_is_found_and_never_shown(service_site: ServiceSite) -> None:
    """The journal says why; the doctor says where to look."""
    serving = await served(service_site)
    path = password_file(service_site, "battery staple")
    found = await examined(service_site, "--password-file", path)
    assert found["port"][0] == "OK"
    assert found["login"][:2] == ("CRITICAL", f"login: 127.0.0.1:{serving.port} refuses triton with {path}")
    assert (
        f"set password_hash of triton to what this prints: pickup-point hash-password < {path}; " in found["login"][2]
    )
    assert "sftp refused" in found["login"][2]
    assert "battery staple" not in str(found)
    # The right one by the configuration, which the service has not read yet.
    hashed = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("battery staple")
    service_site.config.write_text(service_site.config.read_text().replace(CHEAP_HASH, hashed))
    found = await examined(service_site, "--password-file", path)
    assert found["login"][2].startswith("systemctl reload pickup-point; ")
    assert await serving.running.stops() == 0
    assert serving.running.count("sftp refused 127.0.0.1 .*reason=wrong-password") == 2


async def test_a_file_that_is_not_what_was_published_is_found(service_site: ServiceSite) -> None:
    """One byte of it was changed on the disk, unnoticed by the service."""
    serving = await served(service_site)
    path = service_site.pickup / log_of(1)
    content = path.read_bytes()
    path.chmod(0o640)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    level, sentence, cure = (await examined(service_site, "--password-file", password_file(service_site)))["login"]
    assert level == "CRITICAL" and "is not the file that was published" in sentence
    assert hashlib.sha256(path.read_bytes()).hexdigest() in sentence
    assert cure == f"pickup-point trace {log_of(1)}"
    path.rename(service_site.folder / "away")
    level, sentence, _ = (await examined(service_site, "--password-file", password_file(service_site)))["login"]
    assert level == "CRITICAL" and f"{log_of(1)} is not served" in sentence
    assert await serving.running.stops() == 0


async def test_a_login_is_proven_before_the_first_log_is_there(service_site: ServiceSite) -> None:
    """On the first day there is nothing to fetch, and the finding says so."""
    serving = await service_site.serve()
    configure(service_site, serving.port)
    found = await examined(service_site, "--password-file", password_file(service_site))
    assert found["login"][0] == "OK" and found["login"][1].endswith("no log is published yet")
    assert await serving.running.stops() == 0


async def test_the_doctor_tells_the_way_from_the_service(service_site: ServiceSite) -> None:
    """Nothing answers at the public address, but the service does at its own: the fault is in between."""
    serving = await served(service_site)
    configure(service_site, serving.port, "127.0.0.1:1")
    done = await asyncio.to_thread(service_site.run, "doctor")
    assert done.returncode == 1
    assert f"OK        port: 127.0.0.1:{serving.port} exchanges keys" in done.stdout
    assert re.search("CRITICAL  address: no key exchange at 127.0.0.1:1: .*firewall", done.stdout)
    assert "\n              ssh-keyscan -p 1 127.0.0.1\n" in done.stdout
    assert await serving.running.stops() == 0


class Stranger(asyncssh.SSHServer):
    """Another SSH server, which accepts any password and keeps it."""

    def __init__(self, heard: list[str]) -> None:
        self._heard = heard

    def begin_auth(self, username: str) -> bool:
        self._heard.append(username)
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        self._heard.append(password)
        return True


async def test_the_doctor_knows_a_stranger_by_its_host_key_and_sends_it_no_password(service_site: ServiceSite) -> None:
    """A stranger where the service should listen, and at the public address."""
    serving = await served(service_site)
    heard: list[str] = []
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with await asyncssh.listen(
        "127.0.0.2", serving.port, server_host_keys=[key], server_factory=lambda: Stranger(heard)
    ):
        configure(service_site, serving.port, f"127.0.0.2:{serving.port}")
        found = await examined(service_site, "--password-file", password_file(service_site))
        assert found["port"][0] == found["login"][0] == "OK"
        assert found["address"][0] == "CRITICAL" and "a host key that is not one of ours" in found["address"][1]
        text = service_site.config.read_text()
        service_site.config.write_text(text.replace('host = "127.0.0.1"', 'host = "127.0.0.2"'))
        found = await examined(service_site, "--password-file", password_file(service_site))
        assert found["port"][0] == "CRITICAL" and "a host key that is not one of ours" in found["port"][1]
        assert found["login"][0] == "WARNING" and "triton was not tried" in found["login"][1]
    assert heard == []
    assert await serving.running.stops() == 0


async def test_a_password_goes_only_to_a_server_with_an_expected_host_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the stranger comes between the check of the host key and the login."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "somebody")
    heard: list[str] = []
    key, other = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    attempt = LoginAttempt("triton", tmp_path / "password", password=PASSWORD)
    async with await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[key], server_factory=lambda: Stranger(heard)
    ) as stranger:
        with pytest.raises(NoAnswer, match="not one of ours"):
            await fetch_sha256("127.0.0.1", stranger.get_port(), attempt, {other.public_data}, None)
        assert heard == []
        await fetch_sha256("127.0.0.1", stranger.get_port(), attempt, {other.public_data, key.public_data}, None)
        assert heard == ["triton", PASSWORD] * 2  # by each method


async def test_a_user_who_may_not_connect_from_this_machine_is_not_tried(service_site: ServiceSite) -> None:
    """A partner's allow_from is no fault of the installation; if nobody may connect from here, no key is presented."""
    serving = await served(service_site, f'[[sftp.users]]\nname = "second"\npassword_hash = "{CHEAP_HASH}"\n')
    text = service_site.config.read_text()
    partner = text.replace('name = "triton"', 'name = "triton"\nallow_from = ["203.0.113.0/24"]')
    service_site.config.write_text(partner)
    serving.running.send(signal.SIGHUP)
    await serving.running.says("reloaded users")
    path = password_file(service_site)
    found = await examined(service_site, "--password-file", path, "--user", "triton")
    assert found["port"][0] == "OK"
    assert found["login"][0] == "WARNING" and "its allow_from does not include 127.0.0.1" in found["login"][1]
    assert (await examined(service_site, "--password-file", path, "--user", "second"))["login"][0] == "OK"

    service_site.config.write_text(partner.replace('"second"', '"second"\nallow_from = ["203.0.113.0/24"]'))
    serving.running.send(signal.SIGHUP)
    await serving.running.says("reloaded users", 2)
    found = await examined(service_site, "--password-file", path, "--user", "second")
    assert found["port"][0] == "WARNING" and "is in no user's allow_from" in found["port"][1]
    assert found["login"][0] == "WARNING" and "was not tried" in found["login"][1]
    assert await serving.running.stops() == 0


@pytest.mark.parametrize(
    ("options", "code", "sentence", "hint"),
    [
        (("--user", "tritone"), 2, "tritone is not a configured user", "the users are: triton, second"),
        (("--user", "triton"), 2, "--user needs --password-file or --identity", "doctor --help"),
        (("--password-file", "password"), 2, "missing --user: one of triton, second", "doctor --help"),
        (("--user", "second", "--password-file", "password", "--identity", "key"), 2, "cannot be used together",
         "--user second --password-file password"),
        (("--user", "second", "--password-file", "nowhere"), 1, "cannot read nowhere", "ls -l nowhere"),
        (("--user", "second", "--password-file", "latin"), 1, "latin is not UTF-8: its first line has the byte 0xFC",
         "iconv"),
        (("--user", "second", "--password-file", "empty"), 1, "no password in its first line", "empty"),
        (("--user", "second", "--identity", "nowhere"), 1, "nowhere cannot be read: No such file", "ls -l nowhere"),
        (("--user", "second", "--identity", "password"), 1, "password is not a private key", "ssh-keygen -y"),
        (("--user", "second", "--identity", "locked"), 1, "locked is not a private key without a passphrase",
         "ssh-keygen -y -P '' -f locked"),
    ],
)  # fmt: skip
def test_options_that_say_no_login_are_refused(
    service_site: ServiceSite, options: tuple[str, ...], code: int, sentence: str, hint: str
) -> None:
    """They get one sentence and something to type, before anything is examined."""
    service_site.configure(more=f'[[sftp.users]]\nname = "second"\npassword_hash = "{CHEAP_HASH}"\n')
    password_file(service_site)
    (service_site.folder / "empty").touch()
    (service_site.folder / "latin").write_bytes("müller\n".encode("latin-1"))
    if "locked" in options:  # which takes long: bcrypt
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(service_site.folder / "locked", passphrase="secret", rounds=50)
    done = service_site.run("doctor", *options, cwd=service_site.folder)
    assert done.returncode == code and done.stdout == ""
    said = " ".join(done.stderr.split())
    assert sentence in said and hint in said


def broken_export(site: ServiceSite) -> None:
    site.exports.rename(site.folder / "away")


def broken_key(site: ServiceSite) -> None:
    (site.folder / "keys" / "ip_hash.key").chmod(0o644)


def missing_key(site: ServiceSite) -> None:
    (site.folder / "keys" / "ssh_host_rsa_key").unlink()


def no_service(_: ServiceSite) -> None:
    """An installation that was never started."""


@pytest.mark.parametrize(
    ("break_it", "word", "sentence"),
    [
        (broken_export, "exports", "does not exist"),
        (broken_key, "keys", "can be read by others"),
        (missing_key, "keys", "no such file"),
        (no_service, "service", "not running"),
    ],
)
async def test_what_is_broken_is_found_with_its_cure(
    service_site: ServiceSite, break_it: Any, word: str, sentence: str
) -> None:
    """One thing at a time is broken; the rest is examined all the same."""
    service_site.put(day_before(1), export_of(day_before(1)))
    break_it(service_site)
    found = await examined(service_site)
    assert found[word][0] == "CRITICAL" and sentence in found[word][1]
    assert {"configuration", "keys", "exports", "service"} <= set(found)


async def test_a_store_is_filled_examined_and_handed_over(service_site: ServiceSite, s3: S3Server) -> None:
    """The service puts what it has published there; doctor finds it well; Triton is told where, and gets its policy."""
    store = f'[store]\nurl = "s3://{s3.bucket}/for/triton"\nregion = "eu-west-1"\nendpoint_url = "{s3.url}"\n'
    serving = await served(service_site, store + "required = true\n")
    await serving.running.says(f"store received {log_of(1)}")
    held = s3.client.get_object(Bucket=s3.bucket, Key=f"for/triton/{log_of(1)}")
    assert held["Body"].read() == (service_site.pickup / log_of(1)).read_bytes()
    found = await examined(service_site)
    assert found["store"] == ("OK", "store: it replaces nothing that is there (If-None-Match)", "")
    assert (await asyncio.to_thread(service_site.run, "check")).returncode == 0
    assert [entry["Key"] for entry in s3.client.list_objects_v2(Bucket=s3.bucket)["Contents"]] == [
        f"for/triton/{log_of(1)}"
    ]
    sheet = service_site.status()["activation_sheet"]
    assert sheet["Or from S3: bucket"].startswith(f"{s3.bucket} (S3 service at http://127.0.0.1:")
    assert (sheet["S3 prefix"], sheet["S3 region"]) == ("for/triton/", "eu-west-1")
    done = await asyncio.to_thread(service_site.run, "handover", "--output", service_site.folder / "for-triton")
    text = (service_site.folder / "for-triton" / "handover.md").read_text()
    assert done.returncode == 0 and f"`s3://{s3.bucket}/for/triton/`" in text
    allowed = json.loads(text.partition("```json\n")[2].partition("```")[0])["Statement"]
    assert [(rule["Action"], rule["Resource"]) for rule in allowed] == [
        ("s3:ListBucket", f"arn:aws:s3:::{s3.bucket}"), ("s3:GetObject", f"arn:aws:s3:::{s3.bucket}/for/triton/*"),
    ]  # fmt: skip
    assert allowed[0]["Condition"] == {"StringLike": {"s3:prefix": ["for/triton/", "for/triton/*"]}}
    # What was removed behind the service's back comes again.
    s3.delete(f"for/triton/{log_of(1)}")
    await serving.running.says(f"store received {log_of(1)}", 2)
    assert await serving.running.stops() == 0
    # What is not allowed where the partner reads shows in use alone.
    with closing(Ledger.open(service_site.folder / "data" / LEDGER_FILE)) as ledger:
        ledger.note(store=ledger.facts()["store"] | {"error": "the credentials may not write it", "hint": "aws s3 ls"})
    assert (await examined(service_site))["store"] == (
        "WARNING", "store: when the service used it last, the credentials may not write it", "aws s3 ls",
    )  # fmt: skip
    away = store.replace(s3.bucket, "no-such-bucket")
    configure(service_site, serving.port, more=away)
    level, sentence, cure = (await examined(service_site))["store"]
    assert (level, "there is no bucket no-such-bucket" in sentence, "store.url" in cure) == ("CRITICAL", True, True)


async def test_what_is_wrong_with_several_days_is_one_finding(service_site: ServiceSite) -> None:
    """As in `status`; and it is a warning, since the installation may be well."""
    service_site.put(day_before(1), export_of(day_before(1)))
    service_site.configure(export=f'url = "exports"\nfirst_day = "{day_before(3)}"')
    assert service_site.run("feed").returncode == 0
    found = await examined(service_site)
    assert found["days"][0] == "WARNING"
    assert found["days"][1].startswith(f"days: {day_before(3)}, {day_before(2)}: 2 days missing; ")
    assert found["days"][2] == "ask support-megaphone@spotify.com (Megaphone does not backfill on its own)"


# init


def answers(**changes: str) -> list[str]:
    given = {"export": "s3://a-bucket/exports", "address": "sftp.example.com:22", "user": "triton", "prefix": "ACME",
             "data-dir": "/var/lib/pickup-point"} | changes  # fmt: skip
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def test_init_writes_what_it_was_told_and_never_overwrites(program: Program, tmp_path: Path) -> None:
    """Its options make a configuration that loads; a second run changes no byte."""
    (tmp_path / "password").write_text("correct horse\n")
    done = program.run("init", *answers(region="eu-west-1", kind="delivery-v2"), "--password-file", "password")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "config.toml"
    raw = tomllib.loads(path.read_text())
    assert raw["export"].pop("first_day") in (str(today()), str(day_before(1)))  # a midnight may lie between
    assert raw["export"] == {"url": "s3://a-bucket/exports", "region": "eu-west-1", "kind": "delivery-v2"}
    assert "once Megaphone marks it, by 11:00 UTC" in done.stdout and "To settle with Triton: do lines" in done.stdout
    assert "no alarm is raised" in done.stdout and "Triton starts to pull some days after" in done.stdout
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


def test_init_asks_nine_questions_on_a_terminal_and_each_until_its_answer_can_be_used(tmp_path: Path) -> None:
    """Seven have a default; a wrong answer is reported and asked for again; the password that it makes logs in."""
    leader, follower = pty.openpty()
    asked = subprocess.Popen(
        command("init"), cwd=tmp_path, env=environment(), stdin=follower, stdout=follower, stderr=follower,
        start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    typed = [
        b"ftp://x\n", b"exports\n", b"s3://a-bucket\n", b"sftp.example.com:2222\n", b"\n", b"2 words\n", b"\n", b"\n",
        b"29.11.2026\n", b"2026-11-29\n", b"Example Media\n", b"two\x07bells\n", b"Jane Doe\n", b"short\n", b"\n",
    ]  # fmt: skip
    said = b""
    with suppress(OSError):  # a terminal whose other end is closed
        while chunk := os.read(leader, 4096):
            said += chunk
            if said.endswith(b": ") and typed:  # a prompt for a password forgets what was typed before it
                os.write(leader, typed.pop(0))
    assert asked.wait(60) == 0, said
    os.close(leader)
    text = said.decode()
    assert len(re.findall(r"\?.*:|\(empty: make one\)", text)) == 9 + 6 and not typed
    for wrong in ("export.url: is", "sftp.address: is", "log.prefix: is", "export.first_day: is", "shorter than 12",
                  "publisher.contacts[0]: is"):  # fmt: skip
        assert text.count(wrong) == 1
    made = re.search(r"password: (\S+)", text)
    assert made is not None and len(made[1]) >= 20
    raw = tomllib.loads((tmp_path / "config.toml").read_text())
    assert (raw["sftp"]["users"][0]["name"], raw["log"]["prefix"], raw["data_dir"]) == ("triton", "MEGA", "data")
    assert raw["export"]["first_day"] == "2026-11-29" and raw["sftp"]["address"] == "sftp.example.com:2222"
    assert raw["publisher"] == {"name": "Example Media", "contacts": ["Jane Doe"]}


def test_init_says_what_is_missing_and_what_is_wrong(program: Program, tmp_path: Path) -> None:
    """Without a terminal it names the option; for bad answers every problem, and it writes nothing."""
    done = program.run("init", "--address", "sftp.example.com")
    assert done.returncode == 2 and "missing --export (no terminal to prompt on)" in done.stderr
    done = program.run("init", *answers(prefix="a b", export="ftp://x"))
    assert done.returncode == 2 and "export.url" in done.stderr and "log.prefix" in done.stderr
    assert str(tmp_path / "config.toml") in done.stderr
    assert list(tmp_path.iterdir()) == []


# handover


STAFF = f'[[sftp.users]]\nname = "staff"\npassword_hash = "{CHEAP_HASH}"\nrequired = false\n'
PUBLISHER = '[publisher]\nname = "Smith & <b>Sons</b>"\ncontacts = ["Jane Doe, jane@example.com"]\n'


def test_a_handover_holds_what_triton_needs_and_no_secret(service_site: ServiceSite) -> None:
    """It has the six labels for the partner's users alone, times, columns, questions, and a sample of a final day."""
    for back in (0, 1, 2):
        service_site.put(day_before(back), export_of(day_before(back), 1200, b"no JSON"))
    service_site.configure(more=STAFF + PUBLISHER, log='columns = [{ name = "x-metric-id", value = "x-metric-id" }, '
                           '{ name = "dist", constant = "a|b`c" }, { name = "IP", value = "IP" }]')  # fmt: skip
    assert service_site.run("feed").returncode == 0
    done = service_site.run("handover", "--output", service_site.folder / "for-triton")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "pickup-point: the list of RSS feeds is missing\n  → set feeds.urls\n"
    folder = service_site.folder / "for-triton"
    text = (folder / "handover.md").read_text()
    for label in ("Server address | sftp.example.com:2222", "User name | triton", "Password | set, handed over",
                  "Remote directory | /", "Partitioned by date | no", "TESTYYYYMMDD-NN.tsv.gz"):  # fmt: skip
        assert label in text
    for word in (
        "Contact: Jane Doe", "which addresses your client connects from", "`aes128-gcm@openssh.com`", "with a key",
        "21 November, 00:00", "23 November, 00:00", "three days old",
        "On the last 2 days that were published: one file a day",
        "1. Does one of your log parsing schemes match the columns",
    ):  # fmt: skip
        assert word in text
    # Triton does not know our configuration.
    assert not re.search(r"`(tokens|rows|partial_status|header|feeds\.urls|required)`|sftp\.address|pickup-point", text)
    public = (folder / "known_hosts").read_text()
    assert public.startswith("[sftp.example.com]:2222 ssh-ed25519 ")
    for line in public.splitlines():
        assert asyncssh.import_public_key(line.split(" ", 1)[1]).get_fingerprint() in text
    (sample,) = folder.glob("SAMPLE-TEST*.tsv.gz")
    assert f"{day_before(1):%Y%m%d}" in sample.name  # today is not final
    lines = gzip.decompress(sample.read_bytes()).decode().splitlines()
    assert len(lines) == 1001
    for number, column in enumerate(lines[0].split("\t"), 1):
        assert f"| {number} | `{column}` |" in text
    page = (folder / "handover.html").read_text()
    assert "Smith &amp; &lt;b&gt;Sons&lt;/b&gt;</h1>".replace("</h1>", ", for Triton Digital</h1>") in page
    assert "<td><code>a|b`c</code></td>" in page and page.count("<table>") == text.count("\n|---|") == 5
    assert not re.search(r"<(script|link|img)|url\(|src=", page)  # it is one file
    config = service_site.config.read_text()
    hashed = re.search(r'password_hash = "(.*)"', config)
    assert hashed is not None
    everything = b"".join(path.read_bytes() for path in folder.iterdir() if path.suffix != ".gz")
    assert hashed[1].encode() not in everything
    assert (service_site.folder / "keys" / "ip_hash.key").read_bytes().strip() not in everything


def test_a_handover_tells_megaphones_hours_and_not_our_settings() -> None:
    """When a day is final is theirs to say, by the kind of export; rows without bytes are sent, which is said."""
    texts = {}
    for kind in ("metrics", "delivery-v2"):
        settings = {"url": "exports", "kind": kind, "final_at": time(9)}
        raw = {"export": settings, "sftp": {"users": [{"name": "triton", "password_hash": CHEAP_HASH}]}}
        texts[kind] = document(
            parse_config(raw, Path("/srv/point/config.toml")), Material(), datetime(2026, 11, 29, tzinfo=UTC)
        )
    assert "at Megaphone at 04:30 UTC" in texts["metrics"] and "09:00 | Megaphone's export" in texts["metrics"]
    assert "Rows that transferred nothing are never sent." in texts["metrics"]
    marked = texts["delivery-v2"]
    assert "09:00" not in marked and "11:00, or about an hour later | Megaphone has marked" in marked
    assert "Rows that transferred nothing" not in marked and "how much they transferred are sent" in marked


def test_who_reads_from_the_bucket_alone_is_told_of_no_server() -> None:
    """The users of SFTP are the publisher's own people then; what the configuration lacks is not for Triton to read."""
    told = {}
    for required in (True, False):
        settings = {
            "export": {"url": "exports"},
            "store": {"url": "s3://logs/for-triton", "required": True},
            "sftp": {"users": [{"name": "triton", "password_hash": CHEAP_HASH, "required": required}]},
        }
        config = parse_config(settings, Path("/srv/point/config.toml"))
        lacks = {lack.hint for lack in lacks_of(config)}
        assert "set store.region" in lacks and ("set sftp.address" in lacks) == required
        assert not any("required" in hint for hint in lacks)
        told[required] = document(config, Material(), datetime(2026, 11, 21, tzinfo=UTC))
        assert "| S3 region | It follows. |" in told[required]
        assert "prefix `for-triton/`, slash included" in told[required]
    assert "| Or from S3: bucket | logs (Amazon S3) |" in told[True] and "not both" in told[True]
    assert (
        "| S3 bucket | logs (Amazon S3) |" in told[False] and "Every file is in `s3://logs/for-triton/`" in told[False]
    )
    for word in ("SFTP", "SSH", "Server address", "| triton |", "password", "known_hosts"):
        assert word in told[True] and word not in told[False]


@pytest.mark.parametrize(("ip", "hashed"), [
    ("full", "It is there only if Megaphone gave a token for an IP. HASH that token, as received: 64"),
    ("truncated", "one. HASH the whole IPv4 address, of the /64 of an IPv6 address, or of a token, as received: 64"),
])  # fmt: skip
def test_a_handover_says_what_is_hashed_and_how(ip: str, hashed: str) -> None:
    """The algorithm, what goes into it, and its length: of tokens alone where addresses are sent whole."""
    users = [{"name": "triton", "password_hash": CHEAP_HASH}]
    raw = {"export": {"url": "exports"}, "log": {"ip": ip}, "sftp": {"users": users}}
    text = document(parse_config(raw, Path("/srv/point/config.toml")), Material(), datetime(2026, 11, 29, tzinfo=UTC))
    hashed = hashed.replace("HASH", "It is the HMAC-SHA-256, under a secret key of ours, of")
    assert f"{hashed} lower-case hexadecimal digits" in " ".join(text.split())


def test_a_handover_without_a_final_day_says_so_and_holds_the_rest(service_site: ServiceSite) -> None:
    """It has no sample, and tells us, not Triton, what the configuration lacks; exit 0."""
    service_site.put(day_before(0), export_of(day_before(0)))
    service_site.config.write_text(re.sub("(?m)^address = .*$", "", service_site.config.read_text()))
    done = service_site.run("handover", "--output", service_site.folder / "for-triton")
    assert done.returncode == 0 and "there is no sample" in done.stderr and "no final day yet" in done.stderr
    assert "set sftp.address" in done.stderr
    assert "set publisher.name" in done.stderr and "set publisher.contacts" in done.stderr
    text = (service_site.folder / "for-triton" / "handover.md").read_text()
    assert "## Sample\n\nIt follows." in text and "| Server address | It follows. |" in text


@pytest.mark.parametrize(
    "changes", [{}, {"format": "w3c"}, {"ip": "truncated", "partial_status": 200, "text": "percent"},
                {"rows": "reporting", "url": "{enclosure_url}?a={guid}", "header": "none"}, {"url": "/" * 2100}],
)  # fmt: skip
def test_every_column_that_there_can_be_is_explained(changes: dict[str, Any]) -> None:
    """In both formats, and in every configuration, with a cell of a line that the converter made."""
    log = LogSettings(**changes)
    assert {str(value) for value in DerivedValue} <= set(explained(log))
    table, line = column_table(log), example_line(log)
    for spec, cell in zip(log.log_rules.layout.specs, line.split("\t"), strict=True):
        assert f"| `{spec.name}` |" in table and f"| `{cell}` |" in table
    assert "| `-` |" in column_table(log, DELIVERY_V2) and example_line(log, DELIVERY_V2) != line
    assert ("cs-uri-query" in table) == (log.format == "w3c")
    assert (re.search(r"\t[0-9a-f]{64}\t", line) is not None) == (log.ip == "truncated")
    assert ("\t206\t" in line) == (log.partial_status == 206)


def test_the_partners_users_are_those_who_are_waited_for(service_site: ServiceSite) -> None:
    """Where nobody is, all are; where only one of several has a password, the sheet says which."""
    keys = 'authorized_keys = "keys/ssh_host_ed25519_key"\n'
    service_site.configure(more=f'{STAFF}[[sftp.users]]\nname = "second"\n{keys}')
    assert dict(activation_sheet(load_config(service_site.config)))["Password"] == (
        "triton: set, handed over separately; second: none, this user logs in with a key"
    )
    text = service_site.config.read_text().replace('name = "triton"', 'name = "triton"\nrequired = false')
    service_site.config.write_text(text.replace(keys, f"{keys}required = false\n"))
    assert dict(activation_sheet(load_config(service_site.config)))["User name"] == "triton, staff, second"


# backup


async def test_a_backup_is_whole_while_the_service_writes(service_site: ServiceSite, tmp_path: Path) -> None:
    """It is private and complete and replaces nothing; also on standard output."""
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
    """The command says so, and writes nothing."""
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
