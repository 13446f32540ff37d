"""`status`: the strip of the last days, the disk, and the JSON as the manual documents it."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.cli.tables import STRIP_DAYS

from ..support.program import GARBAGE, day_before, environment, export_of, today

if TYPE_CHECKING:
    from ..support.program import ServiceSite

MANUAL = Path(__file__).parent.parent.parent / "server" / "manual" / "monitoring.md"


@pytest.fixture
def site(service_site: ServiceSite) -> ServiceSite:
    """Three days ago overdue, two days ago missing, yesterday published."""
    for back in (3, 1):
        service_site.put(day_before(back), export_of(day_before(back)))
    service_site.configure(export=f'url = "exports"\nfirst_day = "{day_before(3)}"')
    service_site.run("feed")
    return service_site


def strip_of(text: str) -> dict[date, str]:
    """The cells of the strip, by day; today is the last."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"Last {STRIP_DAYS} days")]
    cells = line[16:].ljust(STRIP_DAYS)
    assert len(cells) == STRIP_DAYS
    return {today() - timedelta(days=STRIP_DAYS - 1 - place): cell for place, cell in enumerate(cells)}


def test_the_strip_has_one_cell_a_day(site: ServiceSite) -> None:
    """Today on the right; what is wrong or overdue stands out even without colours; days never seen are blank."""
    done = site.run("status", env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    cells = strip_of(done.stdout)
    assert [cells[day_before(back)] for back in (4, 3, 2, 1)] == [" ", "!", "!", "▄"]
    assert set(list(cells.values())[: STRIP_DAYS - 4]) == {" "}


@pytest.mark.parametrize("columns", ["80", "120"])
def test_nothing_but_a_command_is_wider_than_the_terminal(site: ServiceSite, columns: str) -> None:
    """Strip, table and sentences fit; the table has a line for each day, the newest first."""
    done = site.run("status", env={"COLUMNS": columns})
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if " -m server " not in line) <= int(columns)
    days = [line[:10] for line in lines if re.match(r"\d{4}-\d\d-\d\d  *(open|settling|due|missing|published) ", line)]
    assert days == sorted(days, reverse=True) and str(day_before(1)) in days
    assert any(re.fullmatch(r"Disk +[\d.]+ [kMG]B free \(\d+%\)", line) for line in lines)
    if columns == "80":  # a hint's further lines stand below its first
        asked = next(n for n, line in enumerate(lines) if "→ ask support-megaphone@spotify.com" in line)
        below = lines[asked + 1]
        assert "its own)" in below and len(below) - len(below.lstrip()) == lines[asked].index("ask")


async def test_the_page_says_first_what_is_wrong_then_the_days_then_the_service(service_site: ServiceSite) -> None:
    """Each thing once, and the program's name in commands only; who logged in last, and with what."""
    site = service_site
    for back in (2, 1):
        site.put(day_before(back), export_of(day_before(back), 3, *GARBAGE * (back == 2)))
    site.configure(export=f'url = "exports"\nlook_back_days = 9\nfirst_day = "{day_before(9)}"')
    serving = await site.serve()
    await serving.running.says(f"feed held {day_before(2)}")
    await serving.names()
    assert await serving.running.stops() == 0
    page = site.run("status", env={"COLUMNS": "120"}).stdout
    places = [page.index(word) for word in ("CRITICAL", "Last 60 days", "\nday ", "\nService ", "\nUsers ")]
    assert places == sorted(places) and "Server address" not in page and "OK: nothing" not in page
    assert re.search(r"\nUsers +triton: last login 20\S+ \d\d:\d\d, 0 min ago, client \S*AsyncSSH", page)
    wrong = page[: places[1]]
    assert f"\nCRITICAL  {day_before(6)} to {day_before(3)}: 4 days missing; 4 deadlines are over\n" in f"\n{wrong}"
    said = [line for line in wrong.splitlines() if line]
    assert len(said) == len(set(said)) and wrong.count(f"{day_before(2)} is held: 3 of 6 rows") == 1
    for line in page.replace(sys.executable, "python3").splitlines():  # a clone's folder may have the program's name
        assert "pickup-point" not in line or re.match(r" {12}(journalctl|systemctl) ", line), line


def test_a_command_of_the_page_can_be_pasted(tmp_path: Path, service_site: ServiceSite) -> None:
    """As it stands, from another folder: it reaches the program, the configuration and the day."""
    held = day_before(1)
    service_site.put(held, export_of(held, 3, *GARBAGE))
    service_site.configure(export=f'url = "exports"\nfirst_day = "{held}"')
    assert service_site.run("feed").returncode == 1
    (line,) = [line for line in service_site.run("status").stdout.splitlines() if "--accept-rejects" in line]
    done = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(service_site.published()) == [f"TEST{held:%Y%m%d}-00.tsv.gz"]


def test_the_json_holds_what_the_readme_says(site: ServiceSite) -> None:
    """Every documented name is there, at the top and in a day; nothing at the top is undocumented."""
    section = MANUAL.read_text(encoding="utf-8").split("`status --json`")[-1].split("A day's `state`")[0]
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*) \|$", section, re.MULTILINE))
    documented = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    found = site.status()
    assert documented == set(found)
    in_a_day = rows["`days`"].split("(")[0]
    for name in re.findall(r"`(\w+)`", in_a_day):
        assert name in found["days"][0], name
    for name in ("published_at", "deadlines", "advice", "remarks", "rows", "lines", "filtered", "rejected"):
        assert f"`{name}`" in rows["`days`"] and name in found["days"][0]
    states = MANUAL.read_text(encoding="utf-8").split("A day's `state` is one of ")[1].split("\n")[0]
    assert {day["state"] for day in found["days"]} <= set(re.findall(r"`([\w ]+)`", states))
