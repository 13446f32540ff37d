"""The commands beside the service: convert, keygen, hash-password, systemd-unit; and what root becomes."""

from __future__ import annotations

import gzip
import io
import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from argon2 import PasswordHasher

from server.cli.app import run
from server.cli.convert import day_in
from server.cli.start import plain_convert

from ..support.program import GARBAGE, ROOT, ServiceSite, day_before, export_name, export_of, log_of
from ..support.rows import row

if TYPE_CHECKING:
    from ..support.program import Program

# convert


@pytest.mark.parametrize("name", ["metrics-day-2026-11-20.json.gz", "whatever it is.bin", "ümläut", "-dash.gz"])
def test_convert_needs_no_configuration_and_takes_any_name(name: str, program: Program) -> None:
    """In an empty folder it writes the log and nothing else."""
    (program.folder / name).write_bytes(export_of(day_before(1), 5, *GARBAGE))
    done = program.run("convert", "--output", "out.tsv.gz", "--", name)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.tsv.gz: 5 lines of 8 rows, 0 filtered, 3 rejected\n"
    assert len(gzip.decompress((program.folder / "out.tsv.gz").read_bytes()).splitlines()) == 6
    assert {path.name for path in program.folder.iterdir()} == {name, "out.tsv.gz"}


def test_convert_json_prints_the_tally_and_nothing_else(program: Program) -> None:
    """Also when every row is rejected the exit code is 0; the rejected rows are written to the given file."""
    (program.folder / "x.gz").write_bytes(export_of(day_before(1), 0, *GARBAGE))
    done = program.run("convert", "x.gz", "-o", "out.gz", "--json", "--rejects", "rejects.gz")
    assert done.returncode == 0
    tally = json.loads(done.stdout)
    assert set(tally) == {
        "rows", "lines", "filtered", "rejected", "reporting", "clamped", "not_an_address", "ends_in_zero",
        "outside_day", "unmapped_episodes", "readdressed", "fallback_urls", "unmatched",
    }  # fmt: skip
    assert (tally["rows"], tally["lines"], sum(tally["rejected"].values())) == (3, 0, 3)
    assert len(gzip.decompress((program.folder / "rejects.gz").read_bytes()).splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("metrics-day-2026-11-20.json.gz", date(2026, 11, 20)),
        ("2026-11-28 metrics-day-2026-11-20.json.gz", date(2026, 11, 20)),
        ("metrics-day-2026-11-20.json (2026-11-28).gz", date(2026, 11, 20)),
        ("old-metrics-day-2026-11-20-2026-11-28", date(2026, 11, 20)),
        ("metrics-day-2026-02-30 of 2026-11-28.gz", date(2026, 11, 28)),
        ("metrics-day-2026-02-30 metrics-day-2026-11-20.gz", date(2026, 11, 20)),
        ("2026-13-01 2026-11-28.gz", date(2026, 11, 28)),
        ("metrics-day-\u0662026-11-20.gz", None),
        ("export.gz", None),
    ],
)
def test_the_day_of_a_file_is_that_of_megaphones_name_in_it(name: str, day: date | None) -> None:
    """Wherever it is: whoever saved the file may have put another date before it."""
    assert day_in(name) == day


def test_convert_says_that_rows_on_one_line_are_none(program: Program) -> None:
    """In the words of the service."""
    text = b"[" + row(id="a") + b"," + row(id="b") + b"]"
    (program.folder / "x.gz").write_bytes(gzip.compress(text))
    done = program.run("convert", "x.gz", "-o", "out.gz")
    assert (done.returncode, done.stdout) == (0, "out.gz: 0 lines of 1 rows, 0 filtered, 1 rejected\n")
    assert "in one array on one line" in done.stderr


def test_convert_follows_the_rules_of_a_configuration(service_site: ServiceSite) -> None:
    """The [log] table of the configuration in the working folder or given; the site's own hash key."""
    service_site.configure(log='format = "w3c"\nip = "truncated"')
    (service_site.folder / "x.gz").write_bytes(export_of(day_before(1), 2))
    done = service_site.program.run("convert", "x.gz", "-o", "out.gz", cwd=service_site.folder)
    assert done.returncode == 0, done.stderr
    lines = gzip.decompress((service_site.folder / "out.gz").read_bytes()).decode().splitlines()
    assert lines[0] == "#Version: 1.0"
    assert "203.0.113.0" in lines[-1]
    assert "not kept" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("torn.gz", "-o", "out.gz"), "torn.gz is not a complete gzip file: it is truncated"),
        (("nowhere.gz", "-o", "out.gz"), "nowhere.gz cannot be read: No such file or directory"),
        (("good.gz", "-o", "no/out.gz"), "there is no folder "),
        (("good.gz", "-o", "good.gz"), "good.gz is the export itself"),
        (("good.gz", "-o", "out.gz", "--rejects", "good.gz"), "good.gz is the export itself"),
        (("good.gz", "-o", "."), ". is a folder"),
    ],
)
def test_convert_refuses_in_a_sentence_and_leaves_no_file(
    arguments: tuple[str, ...], sentence: str, program: Program
) -> None:
    """It prints one sentence and one hint, exit code 1; the export is untouched, and there is no partial file."""
    whole = export_of(day_before(1), 3000)
    (program.folder / "good.gz").write_bytes(whole)
    (program.folder / "torn.gz").write_bytes(whole[: len(whole) // 2])
    done = program.run("convert", *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"pickup-point: {sentence}")
    assert 2 <= len(lines) <= 3 and all(line.startswith("  ") for line in lines[1:])
    assert {path.name for path in program.folder.iterdir()} == {"good.gz", "torn.gz"}
    assert (program.folder / "good.gz").read_bytes() == whole


@pytest.mark.parametrize("rows", [0, 2])
def test_convert_loads_neither_ssh_nor_s3(program: Program, rows: int) -> None:
    """A command imports only what it needs, and what takes long to load only for what needs it."""
    (program.folder / "x.gz").write_bytes(export_of(day_before(1), rows))
    code = """
import sys
from server.cli.start import run
assert run(["convert", "x.gz", "-o", "out.gz"]) == 0
needless = {"asyncssh", "aiobotocore", "botocore", "aiohttp", "sqlite3", "prometheus_client"}
needless |= {"typer", "pydantic", "tomllib", "dataclasses", "inspect", "orjson", "hashlib", "isal", "gzip"}
needless |= {"server.convert.row", "server.cli.privileges"}
print(*sorted(needless & set(sys.modules)))
"""
    done = program.run(argv=[sys.executable, "-P", "-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [""]


@pytest.mark.parametrize(
    ("arguments", "plain"),
    [
        ("convert x -o y", {"export": "x", "output": "y"}),
        ("convert --output=y --json x", {"export": "x", "output": "y", "json": ""}),
        ("convert --output y --rejects z -- -x", {"export": "-x", "output": "y", "rejects": "z"}),
        ("convert x", None),
        ("convert -o y", None),
        ("convert x z -o y", None),
        ("convert x -o", None),
        ("convert x -o -y", None),
        ("convert x -oy", None),
        ("convert x -o y -v", None),
        ("convert x -o y --help", None),
        ("convert x -o y --config c", None),
        ("feed", None),
        ("", None),
    ],
)
def test_only_a_plain_convert_begins_at_once(
    arguments: str, plain: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything else, mistakes and a configuration in the working folder among it, is read as ever."""
    monkeypatch.chdir(tmp_path)
    assert plain_convert(arguments.split()) == plain
    (tmp_path / "config.toml").touch()
    assert plain_convert(arguments.split()) is None


# Keys and passwords


def test_keygen_makes_what_is_missing_once_and_private(program: Program) -> None:
    """Four files, mode 0600; what is printed are the keys that clients are offered. Then everything is kept."""
    first = program.run("keygen")
    assert first.returncode == 0
    keys = {path.name: path.read_bytes() for path in (program.folder / "keys").iterdir()}
    assert set(keys) == {"ssh_host_ed25519_key", "ssh_host_ecdsa_key", "ssh_host_rsa_key", "ip_hash.key"}
    for path in (program.folder / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first.stdout.count("made  keys/") == 3
    assert first.stdout.count("SHA256:") == 2
    known = re.findall(r"^\[127\.0\.0\.1\]:2222 (ssh-\S+|ecdsa-\S+) AAAA", first.stdout, re.MULTILINE)
    assert known == ["ssh-ed25519", "ssh-rsa"]
    again = program.run("keygen")
    assert again.stdout == first.stdout.replace("made  ", "kept  ")
    assert {path.name: path.read_bytes() for path in (program.folder / "keys").iterdir()} == keys


def test_keygen_works_before_the_configuration_can_be_loaded(service_site: ServiceSite) -> None:
    """Before the partner's key file exists, keygen creates the host keys in the configured folder."""
    shutil.rmtree(service_site.folder / "keys")
    service_site.configure(more='authorized_keys = "keys/triton.pub"\n')
    done = service_site.run("keygen")
    assert done.returncode == 0, done.stderr
    assert (service_site.folder / "keys" / "ip_hash.key").exists()
    assert "[sftp.example.com]:2222 ssh-ed25519 " in done.stdout


def test_keygen_replaces_no_key_that_it_cannot_read(service_site: ServiceSite) -> None:
    """A damaged host key is reported with its cure, and left as it is."""
    key = service_site.folder / "keys" / "ssh_host_ed25519_key"
    key.write_text("damaged\n")
    done = service_site.run("keygen")
    assert done.returncode == 2
    assert "restore it from a backup" in done.stderr
    assert key.read_text() == "damaged\n"


@pytest.mark.parametrize(
    ("lost", "there"),
    [
        (["ip_hash.key"], "keys/ssh_host_ed25519_key is there"),
        (["ssh_host_rsa_key", "ip_hash.key"], "keys/ssh_host_ed25519_key is there"),
        (["ssh_host_ed25519_key", "ssh_host_rsa_key", "ip_hash.key"], "data/ledger.sqlite3 is there"),
    ],
)
def test_keygen_makes_no_lost_key_anew_unasked(
    lost: list[str],
    there: str,
    service_site: ServiceSite,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another key or the ledger shows that it was there: the backup comes first. A key that is not offered is none."""
    keys, asked = service_site.folder / "keys", ["keygen", "--config", str(service_site.config)]
    (service_site.folder / "data").mkdir(exist_ok=True)
    (service_site.folder / "data" / "ledger.sqlite3").touch()
    if len(lost) < 3:
        (service_site.folder / "data" / "ledger.sqlite3").unlink()
    for name in [*lost, "ssh_host_ecdsa_key"]:
        (keys / name).unlink()
    before = sorted(path.name for path in keys.iterdir())
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run(asked) == 2
    said = capsys.readouterr().err
    assert (
        there in said and f"restore {' and '.join([', '.join(lost[:-1]), lost[-1]]).removeprefix(' and ')} from" in said
    )
    assert sorted(path.name for path in keys.iterdir()) == before
    assert run([*asked, "--new-secret"]) == 0
    assert {path.name for path in keys.iterdir()} >= {*lost, "ssh_host_ecdsa_key"}
    assert capsys.readouterr().out.count("made  ") == len(lost)


@pytest.mark.parametrize(("answer", "code"), [("n", 2), ("y", 0)])
def test_keygen_asks_on_a_terminal_before_it_replaces_a_lost_key(
    answer: str,
    code: int,
    service_site: ServiceSite,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The backup is named first; only a yes makes a new key."""
    lost = service_site.folder / "keys" / "ip_hash.key"
    lost.unlink()
    leader, follower = pty.openpty()
    os.write(leader, f"{answer}\n".encode())
    with os.fdopen(follower, encoding="ascii") as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        assert run(["keygen", "--config", str(service_site.config)]) == code
    os.close(leader)
    said = capsys.readouterr().err
    assert 0 < said.index("restore ip_hash.key from the backup") < said.index("Make new ones?")
    assert lost.exists() == (code == 0)


def test_keygen_where_nothing_can_be_made_says_where(program: Program) -> None:
    """With a file in the way it prints one sentence; exit code 1."""
    (program.folder / "keys").write_text("")
    done = program.run("keygen")
    assert done.returncode == 1
    assert done.stderr.startswith("pickup-point: cannot create the keys in keys: ")


def test_hash_password_reads_standard_input_and_its_hash_verifies(program: Program) -> None:
    """Blanks inside count, the line's end does not; the hash is Argon2id."""
    done = program.run("hash-password", stdin=" två hela ord \n".encode())
    assert done.returncode == 0
    assert done.stdout.startswith("$argon2id$")
    assert PasswordHasher().verify(done.stdout.strip(), " två hela ord ")


def test_hash_password_takes_a_short_one_with_weak_only(program: Program) -> None:
    """Eleven characters are refused, twelve are not."""
    done = program.run("hash-password", stdin=b"eleven-char\n")
    assert (done.returncode, done.stdout) == (1, "") and "shorter than 12 characters" in done.stderr
    assert program.run("hash-password", stdin=b"twelve-chars\n").returncode == 0
    weak = program.run("hash-password", "--weak", stdin=b"eleven-char\n")
    assert PasswordHasher().verify(weak.stdout.strip(), "eleven-char")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"x" * 1025, "longer than 1024"),
        (b"\xff\xfe\n", "the byte 0xFF"),
        ("xx😀xx".encode(), "😀 (U+1F600 GRINNING FACE)"),
    ],
)
def test_hash_password_refuses_what_could_never_log_in(typed: bytes, told: str, program: Program) -> None:
    """The sentence names what is in the way, and nothing else of the password, whatever the locale."""
    env = {"LC_ALL": "C.UTF-8"} if typed.endswith(b"xx") else {}  # where its letters can be shown
    done = program.run("hash-password", stdin=typed, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr and "password" in done.stderr.splitlines()[0]
    assert "xxxx" not in done.stderr
    assert "\\x" not in done.stderr and "\\u" not in done.stderr


# systemd


def test_the_systemd_unit_is_sound_and_tight(program: Program) -> None:
    """systemd's own programs accept it, and its exposure is 1.1: no more than 1.2."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    unit = program.folder / "pickup-point.service"
    socket_unit = program.folder / "pickup-point.socket"
    unit.write_text(program.run("systemd-unit").stdout)
    socket_unit.write_text(program.run("systemd-unit", "--socket").stdout)
    for path in (unit, socket_unit):
        done = subprocess.run(
            ["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=12", unit],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level for pickup-point.service: 1.1" in done.stdout


def test_the_systemd_unit_is_for_this_installation(service_site: ServiceSite) -> None:
    """It names its configuration, keys and drain time, and warns if it may not write to the data folder."""
    folder = service_site.folder.rename(service_site.folder.with_name("100 %"))
    service_site.config = folder / "config.toml"
    service_site.configure(drain=90)
    done = service_site.run("systemd-unit")
    assert done.returncode == 0
    escaped = str(folder).replace("%", "%%")
    assert f'serve --config "{escaped}/config.toml"\n' in done.stdout
    assert f"LoadCredential=ip_hash.key:{escaped}/keys/ip_hash.key\n" in done.stdout
    stop = re.search(r"^TimeoutStopSec=(\d+)$", done.stdout, re.MULTILINE)
    assert stop is not None and int(stop[1]) > 90
    assert f"data_dir is {folder / 'data'}, but this unit may only write below /var/lib/pickup-point" in done.stderr


# Root


def _python_for_everybody() -> list[str] | None:
    """Return a Python that another user can run with this one's libraries, or None."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        env = {"PYTHONPATH": os.pathsep.join([str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))])}
        argv = [candidate, "-P", "-c", "import sys, server.errors, orjson, markupsafe; print(sys.version_info[:2])"]
        try:
            done = subprocess.run(
                argv, env=env, user=65534, group=65534, extra_groups=[], capture_output=True, check=False
            )
        except OSError:
            continue
        if done.stdout.decode().strip() == str(sys.version_info[:2]):
            return [candidate, "-P", "-m", "server"]
    return None


def test_as_root_a_command_becomes_the_owner_of_the_data_folder(keys_dir: Path, program: Program) -> None:
    """Keys that only root can read are read first; everything created belongs to the service's user."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    python = _python_for_everybody()
    if python is None:
        pytest.skip("no Python of this version can be run by an unprivileged user here")
    with TemporaryDirectory(prefix="pickup-point-test-") as temporary:  # tmp_path is for its owner alone
        folder = Path(temporary)
        folder.chmod(0o755)
        try:
            _as_root(ServiceSite(folder, keys_dir, program), python)
        finally:
            program.end()


def _as_root(service_site: ServiceSite, python: list[str]) -> None:
    data = service_site.folder / "data"
    data.mkdir(mode=0o700)
    os.chown(data, 65534, 65534)
    (service_site.folder / "keys").chmod(0o700)
    service_site.put(day_before(1), export_of(day_before(1)))
    # Whoever fills the folder of exports aims a link at what the service's user may not read.
    secret = service_site.folder / "secret"
    secret.write_bytes(export_of(day_before(2), 3, b"secret"))
    secret.chmod(0o600)
    (service_site.exports / export_name(day_before(2))).symlink_to(secret)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), *libraries]), "HOME": "/root"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return service_site.program.run(argv=[*python, *arguments, "--config", str(service_site.config)], env=env)

    fed = run("feed")
    assert fed.returncode == 1
    assert log_of(1) in fed.stdout
    assert f"{day_before(2)}  failed      this user may not read " in fed.stdout
    (service_site.exports / export_name(day_before(2))).unlink()
    # A group that only the configuration names, as the unit's SupplementaryGroups= does.
    service_site.config.chmod(0o640)
    os.chown(service_site.config, 0, 65533)
    os.chown(service_site.exports, 0, 65533)
    service_site.exports.chmod(0o750)
    # These run nothing else: forked, they become the owner as well, and with what is loaded already.
    for command in (("feed",), ("status",), ("prune",), ("trace", log_of(1))):
        assert service_site.run(*command).returncode == 0
    assert data.stat().st_uid == 65534
    for path in data.rglob("*"):
        assert path.lstat().st_uid == 65534, path

    served = service_site.program.start("serve", "--config", service_site.config)
    served.said("service started listening host=")
    uids = re.search(
        r"^Uid:\s+(\d+)\s+(\d+)\s+(\d+)", Path(f"/proc/{served.process.pid}/status").read_text(), re.MULTILINE
    )
    assert uids is not None and set(uids.groups()) == {"65534"}
    served.send(signal.SIGTERM)
    assert served.wait() == 0
