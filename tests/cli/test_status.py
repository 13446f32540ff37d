"""`status`: the strip of the last days, the disk, and the JSON as the manual documents it."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.cli.tables import STRIP_DAYS

from ..support.program import day_before, export_of, today

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
def test_nothing_is_wider_than_the_terminal(site: ServiceSite, columns: str) -> None:
    """Strip, table and sentences fit; the table has a line for each day, the newest first."""
    done = site.run("status", env={"COLUMNS": columns})
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines) <= int(columns)
    days = [line[:10] for line in lines if re.match(r"\d{4}-\d\d-\d\d  *(open|settling|due|missing|published) ", line)]
    assert days == sorted(days, reverse=True) and str(day_before(1)) in days
    assert any(re.fullmatch(r"Disk +[\d.]+ [kMG]B free \(\d+%\)", line) for line in lines)


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
