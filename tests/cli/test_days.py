"""The commands about days: feed, prune, status and trace, on a small installation."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from server.publish.clock import believe
from server.storage.ledger import Ledger

from ..support.program import GARBAGE, ServiceSite, day_before, export_name, export_of, log_of

if TYPE_CHECKING:
    from ..support.s3 import S3Server

# feed and prune


def test_feed_prints_a_line_a_day_and_fails_when_a_day_is_held(service_site: ServiceSite) -> None:
    """Results on standard output, the log on standard error; the second time nothing is published again."""
    service_site.put(day_before(2), export_of(day_before(2), 3, *GARBAGE))
    service_site.put(day_before(1), export_of(day_before(1)))
    service_site.put(day_before(0), export_of(day_before(0)))
    first = service_site.run("feed")
    assert first.returncode == 1
    lines = first.stdout.splitlines()
    assert [line[:22].rstrip() for line in lines if line[0] != " "] == [
        f"{day_before(2)}  held", f"{day_before(1)}  published", f"{day_before(0)}  open",
    ]  # fmt: skip
    accept = f"feed --day {day_before(2)} --accept-rejects --config {service_site.config}"
    assert [line.strip() for line in lines[1:3]] == ["→ to publish it:", f"{sys.executable} -m server {accept}"]
    assert f"{log_of(1)} (20 lines of 20 rows)" in lines[3]
    assert f"feed published {log_of(1)} rows=20 lines=20" in first.stderr
    again = service_site.run("feed")
    assert again.returncode == 1
    assert "feed published" not in again.stderr


def test_feed_day_does_what_the_day_allows(fed: ServiceSite) -> None:
    """An unfinal day stays away, a published one stays as it is, and a held one is published on request only."""
    before = fed.published()
    unfinal = fed.run("feed", "--day", str(day_before(0)))
    assert (unfinal.returncode, unfinal.stdout) == (0, f"{day_before(0)}  open        it is not final yet\n")
    published = fed.run("feed", "--day", str(day_before(1)))
    assert (published.returncode, published.stdout) == (0, f"{day_before(1)}  published   {log_of(1)}\n")
    held = fed.run("feed", "--day", str(day_before(2)))
    assert held.returncode == 1
    assert f"{day_before(2)}  held" in held.stdout
    assert fed.published() == before
    accepted = fed.run("feed", "--day", str(day_before(2)), "--accept-rejects")
    assert accepted.returncode == 0
    assert f"{log_of(2)} (3 lines of 6 rows)" in accepted.stdout
    assert set(fed.published()) == {*before, log_of(2)}


def test_feed_resend_sends_a_day_once_under_the_next_number(fed: ServiceSite) -> None:
    """Once even if the day was typed twice; a day that was never published cannot be sent again."""
    day = str(day_before(1))
    done = fed.run("feed", "--day", day, "--day", day, "--resend", "the partner voided it")
    assert done.returncode == 0
    assert sorted(fed.published()) == sorted([log_of(1), log_of(1, 1)])
    assert f"  superseded by {log_of(1, 1)}\n" in fed.run("trace", log_of(1)).stdout
    assert json.loads(fed.run("trace", log_of(1), "--json").stdout)["superseded_by"] == [log_of(1, 1)]
    never = fed.run("feed", "--day", str(day_before(2)), "--resend", "why not")
    assert "it was never published" in never.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--day", "yesterday"), "yesterday is not a day; write it like 2026-11-20"),
        (("--day", "9999-12-31"), "9999-12-31 is not a day; write it like 2026-11-20"),
        (("--day", "0001-01-01"), "0001-01-01 is not a day; write it like 2026-11-20"),
        (("--day", "20261120"), "20261120 is not a day; write it like 2026-11-20"),
        (("--day", "2999-01-01"), "2999-01-01 has not begun: by this machine's clock it is 2"),
        (("--accept-rejects",), "--accept-rejects and --resend need --day"),
        (("--resend", "why"), "--accept-rejects and --resend need --day"),
        (("--resend", ""), "--accept-rejects and --resend need --day"),
        (("--day", "2026-11-20", "--resend", ""), "--resend needs a reason, on one line"),
        (("--day", "2026-11-20", "--resend", " "), "--resend needs a reason, on one line"),
        (("--day", "2026-11-20", "--resend", "two\nlines"), "--resend needs a reason, on one line"),
    ],
)
def test_feed_refuses_options_that_make_no_sense(
    arguments: tuple[str, ...], sentence: str, service_site: ServiceSite
) -> None:
    """It prints one sentence and where to read on; exit code 2."""
    done = service_site.run("feed", *arguments)
    assert done.returncode == 2
    first, *_, command = done.stderr.splitlines()
    assert first.startswith(f"pickup-point: {sentence}")
    assert command.startswith((f"      {sys.executable} -m server feed --", "      timedatectl"))
    assert not (service_site.folder / "data").exists()


def test_a_day_that_was_typed_wrong_leaves_no_trace(fed: ServiceSite) -> None:
    """One that is yet to come is refused by every command that takes a day; one that is unknown is reported."""
    before = [(day["day"], day["state"]) for day in fed.status()["days"]]
    for command in (("feed", "--day"), ("reconcile",)):
        assert fed.run(*command, str(day_before(-400))).returncode == 2
    done = fed.run("feed", "--day", str(day_before(40)))
    assert done.stdout.startswith(f"{day_before(40)}  missing ")
    assert [(day["day"], day["state"]) for day in fed.status()["days"]] == before


def test_feed_without_its_source_says_what_to_do(service_site: ServiceSite) -> None:
    """Without the export folder it prints a sentence and a hint; exit code 1."""
    service_site.exports.rmdir()
    done = service_site.run("feed")
    assert done.returncode == 1
    assert "exports does not exist" in done.stderr
    assert "\n      mkdir -p " in done.stderr


def test_sigterm_ends_a_feed_by_hand_and_leaves_nothing_behind(service_site: ServiceSite) -> None:
    """No partial file and no worker is left; the next round publishes the day."""
    from server.cli.samples import write_day

    write_day(service_site.exports / export_name(day_before(1)), day_before(1), 60_000)
    running = service_site.program.start("feed", "--config", service_site.config)
    deadline = time.monotonic() + 30
    staging = service_site.folder / "data" / "staging"
    while not (staging.is_dir() and any(staging.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.stop() in (1, 130)
    assert service_site.published() == {}
    assert service_site.run("feed").returncode == 0
    assert list(service_site.published()) == [log_of(1)]


def test_prune_asks_before_it_trusts_a_clock_that_leapt(service_site: ServiceSite, s3: S3Server) -> None:
    """A folder's clock proves nothing, a bucket's does, and so does an operator's word."""

    def leap() -> None:
        with closing(Ledger.open(service_site.folder / "data" / "ledger.sqlite3")) as ledger:
            believe(ledger, datetime.now(UTC) - timedelta(days=8))

    service_site.put(day_before(1), export_of(day_before(1)))
    assert service_site.run("feed").returncode == 0
    leap()
    for option in ("--dry-run", ""):
        done = service_site.run("prune", *filter(None, [option]))
        assert done.returncode == 1 and "nothing is pruned: the clock says" in done.stderr
        assert f"-m server prune --clock-is-right --config {service_site.config}\n" in done.stderr
        assert done.stdout == ("nothing is older than keep_days\n" if option else "")
    done = service_site.run("prune", "--clock-is-right")
    assert (done.returncode, done.stdout) == (0, "nothing is older than keep_days\n")
    leap()
    service_site.configure(f'url = "s3://{s3.bucket}"\nendpoint_url = "{s3.url}"\nregion = "us-east-1"')
    done = service_site.run("prune")
    assert (done.returncode, done.stdout) == (0, "nothing is older than keep_days\n"), done.stderr


def test_prune_says_first_what_it_would_remove_and_then_removes_it(service_site: ServiceSite) -> None:
    """``--dry-run`` changes nothing; the name of a removed file is never used again."""
    service_site.put(day_before(5), export_of(day_before(5)))
    assert service_site.run("feed", "--day", str(day_before(5))).returncode == 0
    assert service_site.run("prune").stdout == "nothing is older than keep_days\n"
    with closing(sqlite3.connect(service_site.folder / "data" / "ledger.sqlite3")) as connection, connection:
        connection.execute("UPDATE publication SET published_at = ?", (f"{day_before(4)}T05:00:00+00:00",))
    service_site.configure('url = "exports"\nlook_back_days = 1', more="[retention]\nkeep_days = 2\n")
    would = service_site.run("prune", "--dry-run")
    assert (would.returncode, would.stdout) == (0, f"would remove {log_of(5)}\n")
    assert list(service_site.published()) == [log_of(5)]
    assert service_site.run("prune").stdout == f"removed {log_of(5)}\n"
    assert service_site.published() == {}
    assert "pruned; its name is never used again" in service_site.run("trace", log_of(5)).stdout
    service_site.configure()
    service_site.run("feed", "--day", str(day_before(5)))
    assert service_site.published() == {}


# status and trace


def test_status_shows_a_day_a_line_at_80_columns(fed: ServiceSite) -> None:
    """What is wrong comes first, then the days, the service and the sheet's six lines; no line of the table wraps."""
    done = fed.run("status", "--sheet", env={"COLUMNS": "80"})
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[-6:] == [
        "Server address       sftp.example.com:2222",
        "User name            triton",
        "Password             set, handed over separately",
        "Remote directory     /",
        "Partitioned by date  no",
        "Naming convention    TESTYYYYMMDD-NN.tsv.gz",
    ]
    service = next(n for n, line in enumerate(lines) if line.startswith("Service "))
    assert lines[service].endswith("not running")
    head = next(n for n, line in enumerate(lines) if line.startswith("day "))
    assert lines[head].split() == ["day", "state", "rows", "rej.", "published", "picked", "up", "deadline"]
    days = lines[head + 1 : head + 4]
    assert [line[:10] for line in days] == [str(day_before(n)) for n in (0, 1, 2)]
    assert re.fullmatch(r"\S+ published +20 +0 \d\d-\d\d \d\d:\d\d - +in \d+ h", days[1])
    assert head < service < len(lines) - 6
    assert lines[0].startswith(f"CRITICAL  {day_before(2)} is held: 3 of 6 rows were rejected")
    assert [line for line in lines if len(line) > 80] == [line for line in lines if " -m server feed --day" in line]


def test_status_shows_more_on_a_wide_terminal(fed: ServiceSite) -> None:
    """At 120 columns there are also the size of the export, lines and files."""
    lines = fed.run("status", env={"COLUMNS": "120"}).stdout.splitlines()
    head = next(line for line in lines if line.startswith("day "))
    assert head.split() == ["day", "state", "export", "rows", "rej.", "lines", "files", "published", "picked", "up",
                            "deadline"]  # fmt: skip
    assert max(len(line.rstrip()) for line in lines if " -m server " not in line) <= 120


def test_status_works_before_anything_ever_ran(service_site: ServiceSite) -> None:
    """A new installation has the sheet to copy, and looking at it creates nothing."""
    done = service_site.run("status", "--sheet")
    assert done.returncode == 0
    assert done.stdout.startswith("CRITICAL  no round has run yet\n            systemctl start pickup-point\n")
    assert "\nServer address " in done.stdout and "triton: has never logged in\n" in done.stdout
    assert not (service_site.folder / "data").exists()


def test_status_json_keeps_its_structure(fed: ServiceSite) -> None:
    """Programs read it: these keys are a contract, and others may be added."""
    done = fed.run("status", "--json")
    found = json.loads(done.stdout)
    assert set(found) >= {"at", "running", "level", "alarms", "service", "logins", "disk", "days", "activation_sheet"}
    assert found["running"] is False
    assert found["level"] == "CRITICAL"
    assert set(found["alarms"][0]) >= {"level", "name", "sentence", "hint"}
    assert set(found["disk"]) >= {"free_bytes", "free_share"}
    assert list(found["activation_sheet"]) == [
        "Server address", "User name", "Password", "Remote directory", "Partitioned by date", "Naming convention",
    ]  # fmt: skip
    days = {day["day"]: day for day in found["days"]}
    published = days[str(day_before(1))]
    assert set(published) >= {
        "day", "state", "export", "files", "publications", "rows", "lines", "filtered", "rejected", "published_at",
        "picked_up", "deadlines", "advice", "remarks",
    }  # fmt: skip
    assert (published["state"], published["rows"], published["lines"]) == ("published", 20, 20)
    assert set(published["export"]) >= {"key", "etag", "size", "last_modified"}
    content = fed.published()[log_of(1)][0]
    (file,) = published["files"]
    assert file | {"lines": 20} == file
    assert (file["name"], file["size"]) == (log_of(1), len(content))
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert set(published["publications"][0]["tally"]) >= {"rows", "lines", "filtered", "rejected", "reporting"}
    assert set(published["picked_up"][0]) >= {"user", "files", "of", "at"}
    assert set(published["deadlines"]) == {"published", "picked_up"}
    assert set(published["deadlines"]["picked_up"]) >= {"by", "done", "state", "seconds_left"}
    assert days[str(day_before(2))]["state"] == "held"
    assert days[str(day_before(0))]["state"] == "open"


def test_trace_prints_the_history_in_order(fed: ServiceSite) -> None:
    """Export with ETag, tally, publication with its digest; also as JSON, and for a path."""
    done = fed.run("trace", log_of(1))
    content = fed.published()[log_of(1)][0]
    lines = done.stdout.splitlines()
    assert lines[0] == log_of(1)
    assert f"Megaphone wrote {export_name(day_before(1))} etag=" in lines[1]
    assert "converted: rows=20 lines=20" in lines[2]
    assert hashlib.sha256(content).hexdigest() in lines[3]
    found = json.loads(fed.run("trace", log_of(1), "--json").stdout)
    assert (found["name"], found["state"], found["lines"]) == (log_of(1), "published", 20)
    assert (found["export"]["key"], found["pickups"]) == (export_name(day_before(1)), [])
    assert fed.run("trace", str(fed.pickup / log_of(1))).returncode == 0


def test_trace_of_a_name_that_never_was_says_so(fed: ServiceSite) -> None:
    """An unknown name, and one that cannot be a log's, get a sentence and where to look; exit code 1."""
    unknown = fed.run("trace", "TEST20200101-00.tsv.gz")
    assert unknown.returncode == 1
    assert "the ledger has never seen a file TEST20200101-00.tsv.gz" in unknown.stderr
    bad = fed.run("trace", "whatever.txt")
    assert bad.returncode == 1
    assert "whatever.txt is not the name of a log file" in bad.stderr
    assert "TEST20261120-00.tsv.gz" in bad.stderr


def test_trace_without_a_ledger_says_what_makes_one(service_site: ServiceSite) -> None:
    """Before the first round there is no history."""
    done = service_site.run("trace", "TEST20200101-00.tsv.gz")
    assert done.returncode == 1
    assert "there is no ledger" in done.stderr
    assert not (service_site.folder / "data").exists()


def test_prune_makes_room_on_a_full_disk(service_site: ServiceSite) -> None:
    """Without a byte left, and no service that holds the ledger: files go before anything is written."""
    from server.cli.samples import write_day

    data = service_site.folder / "data"
    data.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(data)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs rights that this user does not have")
    try:
        write_day(service_site.exports / export_name(day_before(5)), day_before(5), 5000)
        assert service_site.run("feed", "--day", str(day_before(5))).returncode == 0
        with closing(Ledger.open(data / "ledger.sqlite3")) as ledger:
            believe(ledger, datetime.now(UTC) - timedelta(days=8))
        with closing(sqlite3.connect(data / "ledger.sqlite3")) as connection, connection:
            connection.execute("UPDATE publication SET published_at = ?", (f"{day_before(4)}T05:00:00+00:00",))
        service_site.configure('url = "exports"\nlook_back_days = 1', more="[retention]\nkeep_days = 2\n")
        with suppress(OSError), (data / "filler").open("wb", 0) as filler:
            while filler.write(bytes(4096)):
                pass
        assert os.statvfs(data).f_bavail == 0
        done = service_site.run("prune", "--clock-is-right")
        assert (done.returncode, done.stdout) == (0, f"removed {log_of(5)}\n"), done.stderr
        assert service_site.run("prune").stdout == "nothing is older than keep_days\n"
    finally:
        subprocess.run(["umount", str(data)], check=True)
