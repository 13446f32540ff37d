"""Killed at every step of a publication, the feed carries on: nothing is torn, lost, doubled or left over."""

from __future__ import annotations

import gzip
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.apart import run_here
from tests.support.crash_feed import COUNT, SCENARIOS, contents, killed, left_at_every_step
from tests.support.site import DAY, Site, at

if TYPE_CHECKING:
    from pathlib import Path


def whole_files(folder: Path) -> dict[str, bytes]:
    """Return every file that a client could see now, each one whole gzip member; a torn one raises."""
    files = {path.name: path.read_bytes() for path in (folder / "data" / "pickup").glob("*")}
    for data in files.values():
        assert gzip.decompress(data).endswith(b"\n")
    return files


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_feed_killed_at_any_step_carries_on_by_itself(tmp_path: Path, scenario: str) -> None:
    """Whatever the instant of the kill, no file is torn, no name and no row is sent twice, and no row is lost."""
    left = left_at_every_step(tmp_path, scenario)
    steps = left[-1].steps[-1]
    assert steps >= 10  # what another crash left is finished before the round: then there are few
    assert [step for one in left for step in one.steps] == list(range(1, steps + 1))
    # Copies stand for kills; one kill is real, in the middle of the publication.
    middle = left[len(left) * 2 // 3]
    assert comparable(middle.folder) == comparable(killed(tmp_path, scenario, middle.steps[0]))
    for folder, at_steps in left:
        before = whole_files(folder)
        site = Site(folder, **SCENARIOS[scenario])
        carry_on(site, scenario, before, thorough=any(step % 4 == 0 for step in at_steps))
        site.stop()


def comparable(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What is left in a folder, but for what the real clock and SQLite's dice have written."""
    found = contents(folder)
    times = {name: entry[3:] for name, entry in found.items() if "pickup/" in name}
    return {name: entry[: 2 if "ledger" in name else 3] + times.get(name, ()) for name, entry in found.items()}


def carry_on(site: Site, scenario: str, before: dict[str, bytes], *, thorough: bool) -> None:
    """The rounds after the next start, and what must be true then."""
    now = {"unfinal": at(1, "23:10"), "late": at(3, "00:05"), "resend": at(4, "10:15")}.get(scenario, at(1, "10:15"))
    promised = any(log.state == "intended" for log in site.ledger.logs())
    run_here(site.round(now))
    if thorough:
        site.check_folder()
    later = max(now, at(2, "12:00"))
    run_here(site.round(later, DAY))
    rows = COUNT if scenario in ("one", "several", "unfinal", "again") else COUNT + 10
    # After three days late rows are not sent, except those that were promised a name in time.
    if scenario in ("late", "resend") and not promised and len(site.standing_ids()) == COUNT:
        rows = COUNT
    assert site.standing_ids() == {f"{DAY}-{n}": 1 for n in range(rows)}
    if thorough:
        names = site.files()
        assert run_here(site.round(later + timedelta(minutes=10), DAY)).published == []
        assert site.files() == names
    site.check_folder()
    for file, data in before.items():
        assert (site.point.pickup_dir / file).read_bytes() == data
    publications = site.ledger.publications()
    assert all(publication.published_at is not None for publication in publications)
    resends = [publication.id for publication in publications if publication.kind == "resend"]
    superseded = {log.superseded_by for log in site.ledger.logs()} - {None}
    assert superseded == set(resends)
