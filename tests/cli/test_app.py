"""The commands, as an operator types them: help, errors, exit codes, what monitoring sees."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pytest
from typer.main import get_command

from server.cli import privileges
from server.cli.app import app, exit_code, run
from server.cli.units import service_unit
from server.config import load_config
from server.convert.apart import kernel_lack
from server.convert.kernel import SWITCH
from server.errors import PickupPointError
from server.status.snapshot import Snapshot
from server.storage.ledger import Ledger

from ..support.program import GARBAGE, Program, ServiceSite, command, day_before, environment, export_of
from ..support.warm import WARM

CONTRACT = {"serve", "feed", "prune", "status", "check", "trace", "convert", "keygen", "hash-password", "demo",
            "systemd-unit"}  # fmt: skip
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]  # typer's own class of a group


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_fits_a_terminal(name: str, program: Program) -> None:
    """It has a sentence about what it does, and its options, at 80 columns."""
    done = program.run(name, "--help", env={"COLUMNS": "80"})
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")
    assert name in done.stdout.splitlines()[0]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == ""


def test_the_list_of_commands_names_all_of_them(program: Program) -> None:
    """``pickup-point --help`` is the table of contents."""
    done = program.run("--help")
    listed = re.findall(r"^  ([a-z-]+) {2,}\S", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert sorted(listed) == COMMANDS
    assert set(COMMANDS) >= CONTRACT


@pytest.mark.parametrize("switch", ["", "none"])
def test_the_version_says_whether_the_kernel_is_in_use(
    switch: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any command, and without a configuration."""
    monkeypatch.setenv(SWITCH, switch)
    lack = kernel_lack()
    assert run(["--version"]) == 0
    said = "kernel in use" if lack is None else lack[0]
    assert capsys.readouterr().out == f"pickup-point {metadata.version('pickup-point')} ({said})\n"
    assert said == "exact way only: no kernel (PICKUP_POINT_KERNEL is none)" or not switch


def test_the_installed_command_is_the_same_as_python_m_server() -> None:
    """The package's entry point prints the same help."""
    script = Path(sys.executable).parent / "pickup-point"
    if not script.exists():
        pytest.skip("pickup-point is not installed beside this Python: pip install -e .")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "Commands:" in done.stdout


@pytest.mark.parametrize("name", ["serve", "feed", "prune", "status"])
def test_without_a_configuration_a_command_says_where_it_looked(name: str, program: Program) -> None:
    """Exit code 2, nothing on standard output, and the two cures."""
    if Path("/etc/pickup-point/config.toml").exists():
        pytest.skip("this machine has an installation in /etc/pickup-point")
    done = program.run(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no config.toml here and no /etc/pickup-point/config.toml" in done.stderr
    called = f"{sys.executable} -m server"
    assert f"\n        {called} init\n    → or, to try it out:\n        {called} demo\n" in done.stderr


@pytest.mark.parametrize("name", ["serve", "feed", "prune", "status", "systemd-unit"])
def test_every_mistake_in_a_configuration_is_reported_with_key_and_cure(name: str, service_site: ServiceSite) -> None:
    """Two mistakes, two keys, two cures, exit code 2, and the file's name."""
    service_site.configure(log='formta = "tsv"\nmax_rejected = 7')
    done = service_site.run(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == f"pickup-point: {service_site.config} has 2 problems"
    assert "log.formta" in done.stderr
    assert "format" in done.stderr
    assert "log.max_rejected" in done.stderr
    assert done.stderr.count("→") == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("status", "-v", "-c", "nowhere.toml"), 2),
        (("check", "--verbose", "-c", "nowhere.toml"), 3),
        (("convert", "nowhere.gz", "-o", "out.gz", "-v"), 1),
    ],
)
def test_with_v_there_is_a_traceback_and_the_same_exit_code(
    arguments: tuple[str, ...], code: int, program: Program
) -> None:
    """-v shows where; it changes no exit code, and the sentence is there too. Without it there is no traceback."""
    loud = program.run(*arguments)
    quiet = program.run(*(word for word in arguments if word not in ("-v", "--verbose")))
    assert loud.returncode == quiet.returncode == code
    assert "Traceback (most recent call last)" in loud.stderr
    assert "Traceback" not in quiet.stderr
    assert quiet.stdout + quiet.stderr
    assert quiet.stderr in loud.stderr


def test_an_unexpected_fault_is_one_sentence_too(
    service_site: ServiceSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence has its type, its message, and how to see more; exit code 1."""

    def take(*_: object) -> None:
        raise ZeroDivisionError("by the test")

    monkeypatch.setattr(Snapshot, "take", take)
    assert run(["status", "--config", str(service_site.config)]) == 1
    said = "pickup-point: ZeroDivisionError: by the test\n  → the same command with -v shows where\n"
    assert capsys.readouterr() == ("", said)


def test_a_reader_that_goes_away_is_no_fault_of_ours(fed: ServiceSite) -> None:
    """``status | head -1`` prints a line and no complaint."""
    line = " ".join([*command("status", "--config", fed.config), "| head -1"])
    done = fed.program.run(argv=["sh", "-c", line])
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_full_disk_behind_the_output_is_one_sentence(fed: ServiceSite) -> None:
    """Not a word of Python's when it ends."""
    line = " ".join([*command("status", "--config", fed.config), "> /dev/full"])
    done = fed.program.run(argv=["sh", "-c", line], env={"PYTHONUNBUFFERED": None})
    assert done.returncode == 1
    assert done.stderr.startswith("pickup-point: standard output: No space left on device\n  → write it to a disk")
    assert done.stderr.splitlines()[2:] == ["      df -h"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/a b"),
            "/a b: No such file or directory\n      namei -l '/a b'\n",
        ),
        (
            PermissionError(13, "Permission denied"),
            "the system refused: Permission denied\n  → the same command with -v",
        ),
    ],
)
def test_an_error_of_the_system_that_nobody_foresaw_is_put_into_words(
    error: OSError, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its class and its number."""
    assert exit_code(error) == 1
    assert capsys.readouterr().err.startswith(f"pickup-point: {said}")


def test_a_user_who_may_not_read_the_installation_is_told_so(
    service_site: ServiceSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Monitoring runs as a user of its own: no error of Python's, and no alarm about a service that is well."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    closed = service_site.folder / "data"
    closed.mkdir(mode=0o700)
    monkeypatch.chdir("/")
    config = load_config(service_site.config)
    (service_site.folder / "etc").mkdir(mode=0o700)
    monkeypatch.setattr(privileges, "SEARCHED", (Path("config.toml"), service_site.folder / "etc" / "config.toml"))
    said = []
    os.seteuid(65534)
    try:
        for ask in (
            lambda: Snapshot.take(config, datetime.now(UTC)),
            lambda: Ledger.read(closed / "ledger.sqlite3"),
            lambda: privileges.config_path(None),
        ):
            with pytest.raises(PickupPointError) as caught:
                ask()
            said.append(caught.value)
        service_unit(service_site.config, closed, 30)
    finally:
        os.seteuid(0)
    for error in said:
        assert exit_code(error) in (1, 2)
    told = capsys.readouterr().err
    assert told.count("Permission denied") == 3
    assert "Errno" not in told


def test_a_terminal_without_arrows_gets_its_status_all_the_same(fed: ServiceSite) -> None:
    """ASCII only: what cannot be shown is escaped."""
    done = fed.run("status", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert "held" in done.stdout


# check


@pytest.mark.parametrize(
    "arguments",
    [("-c", "nowhere.toml"), ("--bogus",), ("too", "many"), ("-c",)],
)
def test_checks_own_failures_are_unknown(arguments: tuple[str, ...], program: Program) -> None:
    """Exit code 3, so that monitoring does not take a typing error for a warning or a critical state."""
    assert program.run("check", *arguments).returncode == 3


def test_check_is_one_line_also_for_a_bad_configuration(service_site: ServiceSite) -> None:
    """Nagios reads the first line of standard output."""
    service_site.configure(log='max_rejected = "few"\nbogus = 1')
    done = service_site.run("check")
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith("PICKUP-POINT UNKNOWN - ")
    assert "bogus" in done.stdout


def test_check_says_ok_warning_and_critical(service_site: ServiceSite) -> None:
    """Critical before the first round, silent about a published day, critical with the cure for a held one."""
    never = service_site.run("check")
    assert never.returncode == 2
    assert "no round has run yet" in never.stdout
    service_site.put(day_before(1), export_of(day_before(1)))
    service_site.run("feed")
    with_round = Ledger.open(service_site.folder / "data" / "ledger.sqlite3")
    good = service_site.run("check")
    assert (good.returncode, good.stdout.split(" - ")[0]) == (0, "PICKUP-POINT OK"), good.stdout
    assert re.search(r" \| alarms=0 waiting=1\b", good.stdout)
    with_round.note(source_error="the bucket is | away", source_hint="wait")
    warned = service_site.run("check")
    assert (warned.returncode, warned.stdout.count("|")) == (1, 1)
    with_round.close()
    service_site.put(day_before(2), export_of(day_before(2), 3, *GARBAGE))
    service_site.run("feed")
    held = service_site.run("check")
    assert held.returncode == 2
    assert f"{day_before(2)} is held: 3 of 6 rows were rejected" in held.stdout
    assert len(held.stdout.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["check"], ["feed", "--day", "yesterday"], ["nonsense"]])
def test_a_warm_command_says_what_a_cold_one_says(service_site: ServiceSite, arguments: list[str]) -> None:
    """Most tests fork commands from a process that has imported everything; nothing else is different."""
    WARM.begin()  # as a conversion does that comes first
    assert WARM.serves(environment())  # or this would compare cold with cold
    more = ["--config", str(service_site.config)] if arguments[0] in ("status", "check") else []
    warm, cold = (Program(service_site.folder, warm=warm).run(*arguments, *more) for warm in (True, False))
    said, said_cold = (re.sub("(?m)^Disk .*", "Disk", done.stdout) for done in (warm, cold))  # others use it, too
    assert (warm.returncode, said, warm.stderr) == (cold.returncode, said_cold, cold.stderr)
    assert warm.stdout or warm.stderr
