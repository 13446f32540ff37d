"""`check`: whatever can go wrong is broken, and one line says what, how badly, and what to type."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from server.cli.tables import CHECK_LINE, check_line
from server.hints import Call
from server.status.alarms import Alarm, Level
from server.storage.ledger import Ledger

from ..support.program import PATIENCE, command, day_before, environment, export_of, log_of
from ..support.rows import row

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

    from ..support.program import ServiceSite

OK, WARNING, CRITICAL, UNKNOWN = range(4)


def fed(
    site: ServiceSite, *days: date, rows: int = 20, log: str = "", more: str = "", first: date | None = None
) -> None:
    """Deliver exports and run a round; earlier days do not count."""
    for day in days:
        site.put(day, export_of(day, rows))
    site.configure(export=f'url = "exports"\nfirst_day = "{first or min(days)}"', log=log, more=more)
    assert site.run("feed").returncode in (0, 1)


def pulled(site: ServiceSite, *days: date) -> None:
    """Record in the ledger, as the service does, that the partner has fetched them."""
    from server.pickups import Ending, Grade, Pickup
    from server.triton import LogFormat, LogName

    now = datetime.now(UTC)
    with closing(Ledger.open(site.folder / "data" / "ledger.sqlite3")) as ledger:
        for day in days:
            name = LogName("TEST", day, 0, LogFormat.TSV)
            ledger.pickups.record(
                Pickup(
                    f"{day}", name, 9, "triton", "203.0.113.9", "JSCH", now, now, 9, 9, Grade.COMPLETE, Ending.CLOSED
                )
            )


def ledger(site: ServiceSite) -> Ledger:
    return Ledger.open(site.folder / "data" / "ledger.sqlite3")


def checked(site: ServiceSite) -> tuple[int, str]:
    """Return the exit code and the line, which must be one and keep the convention."""
    done = site.run("check")
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[done.returncode]
    assert re.fullmatch(rf"PICKUP-POINT {word} - [^|]+(\| alarms=\d+ waiting=\d+)?", line), line
    assert len(line) < CHECK_LINE
    return done.returncode, line


def raised(site: ServiceSite, level: int, *words: str, hint: str = "") -> None:
    """Assert that `check` has at least this level, that its line contains the words, and that `status` has the hint."""
    code, line = checked(site)
    assert level <= code < UNKNOWN, line
    for word in words:
        assert word in line, line
    if hint not in line:
        page = site.run("status", env={"COLUMNS": "500"}).stdout
        assert hint in page, page


def test_all_is_well(service_site: ServiceSite) -> None:
    """Published and picked up: OK, exit 0. (A disk that is nearly full is the machine's own business.)"""
    yesterday = day_before(1)
    fed(service_site, yesterday)
    pulled(service_site, yesterday)
    code, line = checked(service_site)
    assert (code == OK and f"{yesterday} is picked up" in line) or "disk" in line


def test_a_day_that_is_late(service_site: ServiceSite) -> None:
    """Due, not published, and its deadline is over."""
    late = day_before(2)
    service_site.put(late, b"no gzip at all")
    service_site.configure(export=f'url = "exports"\nfirst_day = "{late}"')
    service_site.run("feed")
    raised(
        service_site,
        CRITICAL,
        f"{late} has failed: metrics-day-{late}.json.gz is not a complete gzip file",
        "; its deadline was",
        hint=f"feed --day {late}",
    )


def test_a_day_that_is_held(service_site: ServiceSite) -> None:
    """Too many rows were rejected: the line says what an operator can type to decide."""
    held = day_before(1)
    service_site.put(held, export_of(held, 2, b"no JSON"))
    service_site.configure(export=f'url = "exports"\nfirst_day = "{held}"')
    assert service_site.run("feed").returncode == 1
    raised(service_site, CRITICAL, f"{held} is held", hint=f" feed --day {held} --accept-rejects")


def test_a_day_that_is_missing(service_site: ServiceSite) -> None:
    """The line says whom to ask."""
    fed(service_site, day_before(1), first=day_before(2))
    raised(service_site, WARNING, f"{day_before(2)} is missing", hint="support-megaphone@spotify.com")


@pytest.mark.parametrize(
    ("days", "alerts", "level", "words"),
    [
        (3, "", CRITICAL, "is not picked up yet; its deadline was"),
        (2, 'warn_before = "48h"\ncritical_before = "1s"\n', WARNING, "is not picked up yet; its deadline is in"),
        (2, 'warn_before = "48h"\ncritical_before = "48h"\n', CRITICAL, "is not picked up yet; its deadline is in"),
    ],
)
def test_a_day_that_nobody_picks_up(service_site: ServiceSite, days: int, alerts: str, level: int, words: str) -> None:
    """It warns at the thresholds of the configuration and after the deadline, and says whom to ask."""
    day = day_before(days)
    service_site.put(day, export_of(day))
    text = f'url = "exports"\nfirst_day = "{day}"'
    service_site.configure(export=text, more=f"[alerts]\n{alerts}")
    service_site.run("feed", "--day", str(day))
    raised(service_site, level, f"{day} {words}", hint="ask the partner whether its puller runs")
    pulled(service_site, day)
    assert f"{day} is not picked up" not in checked(service_site)[1]


def test_a_partner_that_fell_silent(service_site: ServiceSite) -> None:
    """No login for longer than usual: daily so far, and none for three days."""
    fed(service_site, day_before(1))
    now = datetime.now(UTC)
    with closing(ledger(service_site)) as diary:
        for days in (6, 5, 4, 3):
            diary.record_login("triton", now - timedelta(days=days), "203.0.113.9", "JSCH")
    raised(service_site, WARNING, "triton has not logged in for 3 d", hint="ask the partner")
    with closing(ledger(service_site)) as diary:
        diary.record_login("triton", now, "203.0.113.9", "JSCH")
    assert "has not logged in" not in checked(service_site)[1]


def test_a_feed_that_does_not_run(service_site: ServiceSite) -> None:
    """It never ran, or has stopped."""
    raised(service_site, CRITICAL, "no round has run yet", hint="systemctl start pickup-point")
    fed(service_site, day_before(1))
    assert "round" not in checked(service_site)[1]
    with closing(ledger(service_site)) as diary:
        diary.note(last_round=(datetime.now(UTC) - timedelta(hours=2)).isoformat())
    raised(service_site, CRITICAL, "the last round was 2 h ago", hint="journalctl -u pickup-point")


def test_a_source_that_cannot_be_reached(service_site: ServiceSite) -> None:
    """The line has the source's own hint."""
    fed(service_site, day_before(1))
    with closing(ledger(service_site)) as diary:
        diary.note(source_error="the bucket is unreachable", source_hint="curl -sI URL")
    raised(service_site, WARNING, "the bucket is unreachable", hint="curl -sI URL")
    # A day that should be there is counted down all the same, though no round has ever seen it.
    service_site.configure(export=f'url = "exports"\nfirst_day = "{day_before(3)}"')
    raised(service_site, CRITICAL, f"{day_before(3)}, {day_before(2)}: 2 days not published yet", hint="curl -sI URL")


def test_a_clock_that_is_wrong(service_site: ServiceSite) -> None:
    """The local clock is two minutes off the bucket's."""
    fed(service_site, day_before(1))
    with closing(ledger(service_site)) as diary:
        diary.note(clock_skew=-120.0)
    raised(service_site, WARNING, "the local clock is -120 s off", hint="timedatectl")


def test_a_private_key_that_others_can_read(service_site: ServiceSite) -> None:
    """The line names it, and the chmod that fixes it."""
    fed(service_site, day_before(1))
    key = service_site.folder / "keys" / "ssh_host_ed25519_key"
    key.chmod(0o640)
    raised(service_site, CRITICAL, f"{key} is readable by others", hint=f"chmod 600 {key}")


def test_a_published_file_that_is_gone(service_site: ServiceSite) -> None:
    """Nobody can fetch it: critical, until everybody had fetched it before; a file of another size is another file."""
    fed(service_site, day_before(2), day_before(1))
    (service_site.pickup / log_of(1)).unlink()
    path = service_site.pickup / log_of(2)
    path.chmod(0o640)
    os.truncate(path, 5)
    pulled(service_site, day_before(2))
    told = service_site.status()["alarms"]
    found = [(alarm["level"], alarm["sentence"].split()[0]) for alarm in told if alarm["name"] == "log_lost"]
    assert found == [("CRITICAL", log_of(1)), ("WARNING", log_of(2))]
    assert f"--day {day_before(1)} --resend 'lost from the disk'" in told[0]["hint"]


def test_a_ledger_that_is_damaged(service_site: ServiceSite) -> None:
    """Damaged in the middle or as a whole: the line points at the manual."""
    fed(service_site, day_before(1))
    path = service_site.folder / "data" / "ledger.sqlite3"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 8192))
    raised(service_site, CRITICAL, "the ledger", "ledger")
    path.write_bytes(b"this is no database, and it is long enough to be looked at" * 100)
    raised(service_site, CRITICAL, "ledger is damaged", hint="manual restoring")


def test_fifos_in_the_places_of_files_are_not_waited_for(service_site: ServiceSite) -> None:
    """Of the ledger and of the service's lock: monitoring gets its line."""
    data = service_site.folder / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    for name in ("ledger.sqlite3", "lock"):
        (data / name).unlink(missing_ok=True)
        os.mkfifo(data / name)
    code, line = checked(service_site)
    assert code == CRITICAL and "ledger.sqlite3 is not a regular file" in line


def test_tokens_that_nobody_has_decided(service_site: ServiceSite) -> None:
    """Hash-like addresses are sent with a warning until [log] tokens says that Triton agreed."""
    day = day_before(1)
    rows = [row(id=f"t{n}", ip="c19af70f3fb71c0f7adfb4d89dacccd3", created_at=f"{day}T10:00:00Z") for n in range(20)]
    service_site.put(day, gzip.compress(b"\n".join(rows)))
    service_site.configure(export=f'url = "exports"\nfirst_day = "{day}"')
    undecided = service_site.config.read_text().replace('tokens = "hash"\n', "")
    service_site.config.write_text(undecided)
    assert service_site.run("feed").returncode == 0
    raised(service_site, WARNING, f"{day}: ", "tokens")


def test_a_volume_that_is_far_off(service_site: ServiceSite) -> None:
    """A tenth of the rows of the same weekday in four weeks."""
    weeks = [day_before(1 + 7 * back) for back in range(1, 5)]
    for day in weeks:
        service_site.put(day, export_of(day, 100))
    service_site.put(day_before(1), export_of(day_before(1), 10))
    service_site.configure(export='url = "exports"\nlook_back_days = 30')
    service_site.run("feed")
    raised(service_site, WARNING, f"{day_before(1)} has 10 rows; the same weekday usually has about 100")


def has_tmpfs() -> bool:
    """Return whether a small disk can be mounted for a moment, in a mount namespace of its own."""
    arguments = ["unshare", "--mount", "--map-root-user", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    try:
        return subprocess.run(arguments, capture_output=True, check=False, timeout=20).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not has_tmpfs(), reason="needs a mount namespace: unshare --mount --map-root-user")
@pytest.mark.parametrize(
    ("size", "code", "words"), [("8m", CRITICAL, "of the data folder's disk is free"), ("0", OK, "")]
)
async def test_a_disk_that_is_nearly_full(service_site: ServiceSite, size: str, code: int, words: str) -> None:
    """With a few MiB free on a real small disk it is critical, and df is what to type; one without a size has room."""
    fed(service_site, day_before(1))
    data = service_site.folder / "data"
    check = " ".join(command("check", "--config", service_site.config))
    script = (
        f"cp -r {data} {data}.old && mount -t tmpfs -o size={size} tmpfs {data} && cp -r {data}.old/. {data} && {check}"
    )
    done = await asyncio.to_thread(
        subprocess.run, ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        capture_output=True, text=True, timeout=PATIENCE, env=environment(),
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout and ("df -h" in done.stdout) is bool(words)


def broken_toml(site: ServiceSite) -> None:
    site.config.write_text("data_dir = ")


def no_config(site: ServiceSite) -> None:
    site.config.unlink()


def unknown_key(site: ServiceSite) -> None:
    site.config.write_text(site.config.read_text() + "\n[nonsense]\na = 1\n")


def unknown_keys(site: ServiceSite) -> None:
    site.config.write_text(site.config.read_text() + "".join(f"\n[nonsense{n}]\na = 1\n" for n in range(30)))


@pytest.mark.parametrize("break_it", [broken_toml, no_config, unknown_key, unknown_keys])
def test_what_check_cannot_look_at_is_unknown(
    service_site: ServiceSite, break_it: Callable[[ServiceSite], None]
) -> None:
    """Its own failures exit with 3, also in one line."""
    break_it(service_site)
    code, line = checked(service_site)
    assert code == UNKNOWN and len("PICKUP-POINT UNKNOWN - ") < len(line) < 300
    # The cure of a missing file names it once more: whole, or not at all if its path is long.
    assert line.count(" [") == 1 or break_it is no_config


def test_a_ledger_that_cannot_be_opened_is_not_called_damaged(service_site: ServiceSite) -> None:
    """Another schema, wrong permissions or a read-only disk are no damage: the line suggests no backup."""
    import sqlite3

    fed(service_site, day_before(1))
    with closing(sqlite3.connect(service_site.folder / "data" / "ledger.sqlite3")) as database:
        database.execute("PRAGMA user_version = 99")
    line = service_site.run("check").stdout
    assert "schema version 99" in line and "damaged" not in line and "restore" not in line


def test_the_line_has_the_worst_first_and_counts_the_rest() -> None:
    """Below 300 characters whatever is wrong; what to do about the worst is said whole or not at all."""
    many = [Alarm(Level.CRITICAL, "one", "the worst of them", "look: ls | head; df -h")]
    many += [Alarm(Level.WARNING, f"n{n}", f"number {n} is {'wrong ' * 9}", f"ls {n}") for n in range(9)]
    call = Call("/opt/it", "/etc/it.toml")
    level, line = check_line(many, [], call)
    assert level is Level.CRITICAL and len(line) < 300
    assert line.startswith("PICKUP-POINT CRITICAL - the worst of them [df -h]; number 0 is wrong")
    assert re.search(r"; and 6 more \| alarms=10 waiting=0$", line), line
    two = [
        Alarm(Level.WARNING, "n", "so", f"wait {'long ' * 60}"),
        Alarm(Level.WARNING, "o", "so", "pickup-point status"),
    ]
    assert "so; so [/opt/it status --config /etc/it.toml] |" in check_line(two, [], call)[1]
    long = [Alarm(Level.CRITICAL, "a", "short", "ls"), Alarm(Level.CRITICAL, "b", "so much " * 50)]
    line = check_line([*long, *many[1:]], [], call)[1]
    assert len(line) == 299 and "short [ls]; so much so" in line and "…; and 9 more |" in line
    endless = Alarm(Level.CRITICAL, "long", "so much " * 99)
    line = check_line([endless, *many], [], call)[1]
    assert len(line) == 299 and "…; and 10 more |" in line
    assert len(check_line([endless], [], call)[1]) == 299 and "more |" not in check_line([endless], [], call)[1]
