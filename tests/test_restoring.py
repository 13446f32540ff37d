"""Losing things, and getting them back: what the manual's chapter on restoring says, held by real commands.

Nothing is published twice, whatever is lost.
"""

from __future__ import annotations

import gzip
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from .support.program import day_before, export_of
from .support.rows import row

if TYPE_CHECKING:
    from pathlib import Path

    from .support.program import ServiceSite

DAYS = (3, 2, 1)


@pytest.fixture
def site(service_site: ServiceSite) -> ServiceSite:
    """An installation that has published three days."""
    for back in DAYS:
        service_site.put(day_before(back), export_of(day_before(back)))
    assert service_site.run("feed").returncode in (0, 1)
    assert len(service_site.published()) == 3
    return service_site


def names(site: ServiceSite) -> set[str]:
    """The log files that the ledger knows, by name."""
    return {file["name"] for day in site.status()["days"] for file in day["files"]}


def test_a_lost_machine_comes_back_from_configuration_keys_and_data(site: ServiceSite, tmp_path: Path) -> None:
    """A new machine with the backup's folders: the same files, the same identity, nothing published again."""
    before, identity = site.published(), site.run("keygen").stdout
    backup = tmp_path / "backup"
    shutil.copytree(site.folder, backup)
    shutil.rmtree(site.folder)
    shutil.copytree(backup, site.folder)
    done = site.run("feed")
    assert "feed published" not in done.stderr
    assert site.published() == before
    assert site.run("keygen").stdout == identity


def test_a_lost_ledger_is_made_anew_from_the_folder_and_nothing_goes_out_twice(site: ServiceSite) -> None:
    """Whole files are adopted; no name and no row is sent again; the history of pickups is what is gone."""
    before, known = site.published(), names(site)
    lose_ledger(site)
    assert site.run("feed").returncode in (0, 1)
    assert site.published() == before
    assert names(site) == known
    late = day_before(1)  # a row that comes late still comes once
    old = gzip.decompress(export_of(late))
    site.put(late, gzip.compress(old + row(id="late", created_at=f"{late}T23:00:00Z") + b"\n"))
    assert site.run("feed").returncode in (0, 1)
    added = set(site.published()) - set(before)
    assert added == {f"TEST{late:%Y%m%d}-01.tsv.gz"}
    lines = gzip.decompress(site.published()[added.pop()][0]).splitlines()
    assert len(lines) == 2 and b"late" in lines[1]


def test_a_ledger_restored_from_a_backup_keeps_the_history(site: ServiceSite, tmp_path: Path) -> None:
    """`backup`, loss, the file put back: everything is known again, nothing is published again."""
    first = site.run("backup", tmp_path / "ledger.backup")
    assert first.returncode == 0, first.stderr
    lose_ledger(site)
    shutil.copy(tmp_path / "ledger.backup", site.folder / "data" / "ledger.sqlite3")
    before = site.published()
    assert site.run("feed").returncode in (0, 1)
    assert site.published() == before
    story = json.loads(site.run("trace", min(before), "--json").stdout)
    assert story["kind"] == "first" and story["tally"]["lines"] == 20


def test_a_backup_that_is_older_than_the_newest_file_is_left_out(service_site: ServiceSite, tmp_path: Path) -> None:
    """A file published since the backup would be unknown to it: the manual says to start without a ledger then."""
    for back in (3, 2):
        service_site.put(day_before(back), export_of(day_before(back)))
    service_site.run("feed")
    service_site.run("backup", tmp_path / "ledger.backup")
    service_site.put(day_before(1), export_of(day_before(1)))
    service_site.run("feed")
    before = service_site.published()
    assert len(before) == 3
    shutil.copy(tmp_path / "ledger.backup", service_site.folder / "data" / "ledger.sqlite3")
    lose_ledger(service_site)
    assert service_site.run("feed").returncode in (0, 1)
    assert service_site.published() == before
    assert names(service_site) == set(before)


def lose_ledger(site: ServiceSite) -> None:
    for path in (site.folder / "data").glob("ledger.sqlite3*"):
        path.unlink()


def test_a_lost_data_folder_with_first_day_sends_no_name_a_second_time(site: ServiceSite) -> None:
    """Without it the days within look_back_days would go out again under names that Triton has had: `status` warns of
    nothing then, so the manual says to set it first."""
    before = site.published()
    shutil.rmtree(site.folder / "data")
    site.configure(export=f'url = "exports"\nfirst_day = "{day_before(0)}"')
    assert site.run("feed").returncode in (0, 1)
    assert site.published() == {}
    shutil.rmtree(site.folder / "data")
    site.configure()
    done = site.run("feed")
    assert "publishes=" in done.stderr and "first_day" in done.stderr  # the first start says which days, and the key
    again = site.published()
    assert {name: content for name, (content, _) in again.items()} == {
        name: content for name, (content, _) in before.items()
    }  # and if it happens, they are the same bytes


def test_a_lost_hash_key_stops_everything_until_somebody_decides(site: ServiceSite) -> None:
    """Nothing is sent under a key that nobody chose; a new one gives other hashes, an old one put back the same."""
    site.configure(log='ip = "truncated"')
    key = site.folder / "keys" / "ip_hash.key"
    kept = key.read_bytes()
    export = site.exports / f"metrics-day-{day_before(1)}.json.gz"

    def hashed() -> bytes:
        out = site.folder / "by-hand.tsv.gz"
        done = site.run("convert", export, "--output", out)
        assert done.returncode == 0, done.stderr
        return gzip.decompress(out.read_bytes())

    first = hashed()
    key.unlink()
    for command in ("feed", "serve"):
        done = site.run(command)
        assert done.returncode == 2 and "ip_hash.key" in done.stderr and " -m server keygen --config " in done.stderr
    assert site.run("keygen").returncode == 2 and not key.exists()
    assert site.run("keygen", "--new-secret").returncode == 0
    assert hashed() != first
    key.write_bytes(kept)
    assert hashed() == first
