"""Killed at every step of a publication, the feed carries on: nothing is torn, lost, doubled or left over."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support.crash_feed import COUNT, SCENARIOS
from tests.support.site import DAY, Site, at

if TYPE_CHECKING:
    from pathlib import Path


def whole_files(folder: Path) -> dict[str, bytes]:
    """Return every file that a client could see now, each one whole gzip member; a torn one raises."""
    files = {path.name: path.read_bytes() for path in (folder / "data" / "pickup").glob("*")}
    for data in files.values():
        assert gzip.decompress(data).endswith(b"\n")
    return files


@pytest.mark.timeout(600)  # some hundred conversions, each in a process of its own
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_feed_killed_at_any_step_carries_on_by_itself(tmp_path: Path, scenario: str) -> None:
    """Whatever the instant of the kill, no file is torn, no name and no row is sent twice, and no row is lost."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.crash_feed", str(tmp_path), scenario],
        capture_output=True,
        check=True,
        text=True,
    )
    steps = int(done.stdout.splitlines()[-1])
    assert steps >= 10  # what another crash left is finished before the round: then there are few
    for step in range(1, steps + 1):
        before = whole_files(tmp_path / str(step))
        site = Site(tmp_path / str(step), **SCENARIOS[scenario])
        asyncio.run(carry_on(site, scenario, before, thorough=step % 4 == 0))
        site.stop()


async def carry_on(site: Site, scenario: str, before: dict[str, bytes], *, thorough: bool) -> None:
    """The rounds after the next start, and what must be true then."""
    now = {"unfinal": at(1, "23:10"), "late": at(3, "00:05"), "resend": at(4, "10:15")}.get(scenario, at(1, "10:15"))
    promised = any(log.state == "intended" for log in site.ledger.logs())
    await site.round(now)
    if thorough:
        site.check_folder()
    later = max(now, at(2, "12:00"))
    await site.round(later, DAY)
    rows = COUNT if scenario in ("one", "several", "unfinal", "again") else COUNT + 10
    # After three days late rows are not sent, except those that were promised a name in time.
    if scenario in ("late", "resend") and not promised and len(site.standing_ids()) == COUNT:
        rows = COUNT
    assert site.standing_ids() == {f"{DAY}-{n}": 1 for n in range(rows)}
    if thorough:
        names = site.files()
        assert (await site.round(later + timedelta(minutes=10), DAY)).published == []
        assert site.files() == names
    site.check_folder()
    for file, data in before.items():
        assert (site.point.pickup_dir / file).read_bytes() == data
    publications = site.ledger.publications()
    assert all(publication.published_at is not None for publication in publications)
    resends = [publication.id for publication in publications if publication.kind == "resend"]
    superseded = {log.superseded_by for log in site.ledger.logs()} - {None}
    assert superseded == set(resends)
