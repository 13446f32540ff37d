"""Publication: names, times, splitting, rejects, damaged exports, a full disk, and a ledger that was lost."""

from __future__ import annotations

import errno
import gzip
import os
import random
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from server.errors import SourceUnreachable
from server.storage.ledger import Ledger
from server.storage.records import Publication
from server.storage.staging import StagedLog
from server.triton import ColumnSpec, IdCells, Layout, LogFormat
from tests.support.rows import row, rules
from tests.support.site import DAY, Site, at, log_name, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NEXT = DAY + timedelta(days=1)


def mtimes(site: Site) -> list[int]:
    """The files' mtimes in the order of their publication; the disk agrees with the ledger."""
    logs = [log for publication in site.ledger.publications() for log in publication.logs]
    for log in logs:
        assert (site.point.pickup_dir / str(log.name)).stat().st_mtime_ns == log.mtime * 10**9
    return [log.mtime for log in logs]


# Times and names


async def test_mtimes_increase_in_the_order_of_publication(make_site: Callable[..., Site]) -> None:
    """Each file is at least one whole second younger than the one before, also when the clock jumps back a day."""
    site = make_site(max_rows_per_file=2)
    for n in range(3):
        day = DAY + timedelta(days=n)
        site.put(rows_of(day, 5), at(n + 1, "04:10"), day)
    await site.round(at(1, "05:35"))
    site.skew = timedelta(days=-2)
    await site.round(at(2, "05:35"))
    site.skew = timedelta()
    await site.round(at(3, "05:35"))
    found = mtimes(site)
    assert len(found) == 9
    assert all(later - earlier >= 1 for earlier, later in pairwise(found))
    assert found[0] == at(1, "05:35").timestamp()
    assert found[3:6] == [found[2] + 1, found[2] + 2, found[2] + 3]
    assert found[6] == at(3, "05:35").timestamp()


async def test_a_day_is_split_into_numbered_files(make_site: Callable[..., Site]) -> None:
    """With ``max_rows_per_file`` every file has its header and at most that many lines; together they are the day."""
    site = make_site(max_rows_per_file=4)
    site.put(rows_of(DAY, 10), at(1, "04:10"))
    outcome = await site.round(at(1, "05:35"))
    assert [str(file) for file in outcome.published] == [name(0), name(1), name(2)]
    assert [len(site.lines(file)) for file in site.files()] == [5, 5, 3]
    assert len({site.lines(file)[0] for file in site.files()}) == 1
    assert site.ids() == [f"{DAY}-{n}" for n in range(10)]
    site.check_folder()


async def test_rejected_rows_lie_in_rejects_with_line_number_and_reason(make_site: Callable[..., Site]) -> None:
    """A rejects file is named after the publication's first log and says of each row its line, reason and text."""
    site = make_site(max_rejected=1.0)
    site.put([row(id="a"), b"", b"{not json", row(id="a"), row(id="b", ip="")], at(1, "04:10"))
    await site.round(at(1, "05:35"))
    entries = site.rejects(name().removesuffix(".gz"))
    assert [(entry["line"], entry["reason"]) for entry in entries] == [
        (3, "malformed_json"), (4, "duplicate_id"), (5, "no_ip"),
    ]  # fmt: skip
    assert entries[0]["raw"] == "{not json"
    path = site.point.rejects_dir / f"{name().removesuffix('.gz')}.rejects.ndjson.gz"
    assert path.parent.stat().st_mode & 0o777 == 0o700 and path.stat().st_mode & 0o077 == 0o040


async def test_the_same_export_gives_the_same_bytes(make_site: Callable[..., Site]) -> None:
    """Two installations make byte for byte the same file of the same export: nothing of when or where is in it."""
    files = []
    for number in range(2):
        site = make_site(str(number))
        site.put(rows_of(DAY, 500), at(1, "04:10"))
        await site.round(at(1, f"05:3{number}"))
        files.append((site.point.pickup_dir / name()).read_bytes())
    assert files[0] == files[1]
    assert files[0][3:8] == bytes(5)  # no name, no time


# Damaged exports


def damaged(data: bytes) -> Iterator[bytes]:
    """A gzip file damaged in every way."""
    yield from (data[:size] for size in (0, 1, 10, len(data) // 2, len(data) - 8, len(data) - 4, len(data) - 1))
    middle = len(data) // 2
    yield data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
    yield data[:-8] + bytes(4) + data[-4:]
    yield data[:-4] + b"\x01\x02\x03\x04"
    yield data + b"rest"
    yield b'{"id":"no gzip at all"}\n' * 100


async def test_a_damaged_gzip_is_never_published(site: Site) -> None:
    """Cut short, flipped, with a wrong sum, followed by something, or not gzip: the day fails and nothing appears."""
    path = site.put([row(id=random.randbytes(16).hex()) for _ in range(200)], at(1, "04:10"))
    whole = path.read_bytes()
    for data in damaged(whole):
        path.write_bytes(data)
        os.utime(path, (at(1, "04:10").timestamp(),) * 2)
        assert await site.word(at(1, "05:35"), DAY) == "failed"
        assert site.files() == [] and list(site.point.staging_dir.iterdir()) == []
    path.write_bytes(whole)
    os.utime(path, (at(1, "04:10").timestamp(),) * 2)
    assert await site.word(at(1, "05:35"), DAY) == "published"


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs needs rights that this user does not have")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_really_full_disk_fails_the_day_until_there_is_room(small_disk: Path) -> None:
    """On a file system that is full the day fails with a sentence; with room again it is published whole."""
    site = Site(small_disk)
    try:
        site.put([row(id=random.randbytes(16).hex()) for _ in range(20_000)], at(1, "04:10"))
        await site.round(at(1, "04:00"))
        filler = small_disk / "filler"
        status = os.statvfs(small_disk)
        filler.write_bytes(bytes(status.f_bavail * status.f_frsize - (500 << 10)))
        outcome = await site.round(at(1, "05:35"))
        assert outcome.results[0].word == "failed" and "No space left" in outcome.results[0].sentence
        assert site.files() == [] and list(site.point.staging_dir.iterdir()) == []
        filler.unlink()
        assert await site.word(at(1, "05:45")) == "published"
        site.check_folder()
        assert len(site.ids()) == 20_000
    finally:
        site.stop()


# The order of the steps


async def test_each_step_is_on_disk_before_the_next(
    make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logs are on disk before the intention, that before the links, those before the record of publication."""
    site = make_site(max_rows_per_file=2)
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    steps: list[str] = []
    fsync, link, intend, done = os.fsync, os.link, site.ledger.intend, site.ledger.published

    def told(step: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            steps.append(step)
            return work(*args, **kwargs)

        return stepped

    def fsync_told(descriptor: int) -> None:
        steps.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_told)
    monkeypatch.setattr(os, "link", told("link", link))
    monkeypatch.setattr(site.ledger, "intend", told("intend", intend))
    monkeypatch.setattr(site.ledger, "published", told("published", done))
    await site.round(at(1, "05:35"))
    assert steps == [
        f"fsync {name(0)}", f"fsync {name(1)}", "fsync staging", "intend", "link", "link", "fsync pickup", "published",
    ]  # fmt: skip


# Interrupted intentions, by their record


async def test_an_intention_whose_file_is_another_one_is_freed_without_touching_the_file(site: Site) -> None:
    """A file that has an intended name and other bytes is left alone, never served, and its name is not used."""
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    export = (await site.source.day_exports()).exports[DAY]
    intended = Publication(0, DAY, "first", export, rules(), None, at(1), None)
    site.ledger.intend(intended, [StagedLog(log_name(), 5, "0" * 64, 1)], [3])
    (site.point.pickup_dir / name()).write_bytes(b"other")
    await site.round(at(1, "05:35"))
    assert site.served() == [name(1)] and site.files() == [name(), name(1)]
    assert (site.point.pickup_dir / name()).read_bytes() == b"other"


# Interrupted between two links


@pytest.fixture
def break_link(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Path], None]], None]:
    """Something happens before the n-th link from now on, from 1; it is given the link's new name."""

    def lay(number: int, happens: Callable[[Path], None]) -> None:
        link, left = os.link, number

        def linked(old: Path, new: Path, **more: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                happens(Path(new))
            link(old, new, **more)

        monkeypatch.setattr(os, "link", linked)

    return lay


def fail(path: Path) -> None:
    raise OSError(errno.EIO, "Input/output error", str(path))


BEFORE = {"first": 0, "late": 1, "resend": 5, "unfinal": 0}  # files of the day before the round that breaks


async def in_pieces(site: Site, kind: str, break_link: Callable[[int, Callable[[Path], None]], None]) -> datetime:
    """Publish ten rows, two a file, and fail at the third link; return when that was."""
    now = at(4, "10:00")
    if kind == "unfinal":
        now = at(1, "23:00")
        fresh = [row(id=f"{DAY}-{n}", created_at=f"{DAY}T23:{n}:00Z") for n in range(10, 20)]
        site.put([*rows_of(DAY, 10), *fresh], at(0, "23:59"))
    elif kind == "late":
        now = at(2, "23:59")
        site.put(rows_of(DAY, 2, 10), at(1, "04:10"))
        await site.round(at(1, "05:35"))
    if kind != "unfinal":
        site.put(rows_of(DAY, 12 if kind == "late" else 10), at(2, "20:00"))
    if kind == "resend":
        await site.round(at(2, "21:05"))
    break_link(3, fail)
    assert await site.word(now, DAY, resend="void" if kind == "resend" else "") == "failed"
    assert site.served() == [name(n) for n in range(BEFORE[kind])]
    return now


@pytest.mark.parametrize("kind", BEFORE)
async def test_what_was_intended_gets_its_names_from_staging_whatever_the_hour(
    make_site: Callable[..., Site], break_link: Any, kind: str
) -> None:
    """After a crash or an error between two links the next start links the rest, though the source is away."""
    site = make_site(max_rows_per_file=2)
    await in_pieces(site, kind, break_link)
    site.restart()
    site.source.away = True
    with pytest.raises(SourceUnreachable):
        await site.round(at(30))
    assert site.files() == [name(n) for n in range(BEFORE[kind] + 5)]
    site.check_folder()
    expected = {f"{DAY}-{n}": 1 for n in range(12 if kind == "late" else 10)}
    assert site.standing_ids() == expected
    mtimes(site)
    assert site.ledger.days()[DAY].withheld == (10 if kind == "unfinal" else 0)
    site.source.away = False
    if kind != "unfinal":
        assert (await site.round(at(30, "01:00"), DAY)).published == []


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("kind", BEFORE)
async def test_what_lost_its_staged_files_too_is_converted_again(
    make_site: Callable[..., Site], break_link: Any, kind: str, changed: bool
) -> None:
    """Without them the next round converts the same version, or the one that is there, and keeps the promised names."""
    site = make_site(max_rows_per_file=2)
    now = await in_pieces(site, kind, break_link)
    for path in site.point.staging_dir.iterdir():
        path.unlink()
    site.restart()
    site.source.away = True
    with pytest.raises(SourceUnreachable):
        await site.round(now)
    count, first = BEFORE[kind] + 2, BEFORE[kind]
    assert site.served() == [name(n) for n in range(count)]  # what is whole is not kept back
    alarm = next(alarm for alarm in site.alarms(now) if alarm.name == "day_interrupted")
    assert alarm.level.name == "CRITICAL" and f"{name(count)}, {name(count + 1)}" in alarm.sentence
    site.source.away = False
    rows = 12 if kind == "late" else 10
    if changed:
        rows += 1
        now += timedelta(hours=14)  # an unfinal day's rows are no longer too fresh
        site.put(rows_of(DAY, rows), now - timedelta(hours=2))
    with capture_logs() as entries:
        outcome = await site.round(now + timedelta(minutes=10))
    assert [str(file) for file in outcome.published] == [name(n) for n in range(count, first + 5 + changed)]
    assert not any("too late" in entry["event"] for entry in entries)
    assert site.standing_ids() == {f"{DAY}-{n}": 1 for n in range(rows)}
    site.check_folder()
    mtimes(site)
    publications = [p for p in site.ledger.publications() if p.logs[-1].name.number >= first]
    assert [len(p.logs) for p in publications] == ([2, 4] if changed else [5])
    if not changed:
        (publication,) = publications
        assert publication.tally is not None and publication.tally.balanced and publication.tally.lines == 10
        assert site.ledger.days()[DAY].withheld == (10 if kind == "unfinal" else 0)
        assert site.alarm_names(now) & {"day_interrupted", "day_shrunk"} == set()
    assert (await site.round(now + timedelta(hours=1), DAY)).published == []


async def test_a_name_that_somebody_took_meanwhile_is_left_and_its_rows_get_another(
    make_site: Callable[..., Site], break_link: Any
) -> None:
    """The other links are made as promised, at any hour; the file in the way is neither served nor touched."""
    site = make_site(max_rows_per_file=2)
    site.put(rows_of(DAY, 6), at(1, "04:10"))
    break_link(2, lambda path: path.write_bytes(b"other"))
    assert await site.word(at(4, "05:35"), DAY) == "failed"
    await site.round(at(4, "05:45"))
    assert site.files() == [name(n) for n in range(4)] and site.served() == [name(0), name(2), name(3)]
    assert (site.point.pickup_dir / name(1)).read_bytes() == b"other"
    assert site.standing_ids() == {f"{DAY}-{n}": 1 for n in range(6)}


async def test_what_cannot_be_published_any_more_frees_its_names(
    make_site: Callable[..., Site], break_link: Any
) -> None:
    """If the rows that a crash lost are no longer in the export, nothing is left to publish, and nothing waits."""
    site = make_site(max_rows_per_file=2)
    site.put(rows_of(DAY, 6), at(1, "04:10"))
    break_link(2, fail)
    await site.round(at(1, "05:35"))
    for path in site.point.staging_dir.iterdir():
        path.unlink()
    site.put(rows_of(DAY, 2), at(1, "06:00"))
    assert await site.word(at(1, "05:50")) == "failed"
    assert await site.word(at(1, "07:05")) == "published"
    assert site.files() == [name()]
    site.check_folder()
    assert "day_shrunk" in site.alarm_names(at(1, "07:06"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/etc/hostname")])
async def test_a_name_taken_by_something_else_than_a_file_is_passed_over(
    site: Site, make: Callable[[Path], None]
) -> None:
    """A FIFO, a folder or a link under the next name does not stop the day, which gets the number after it."""
    make(site.point.pickup_dir / name())
    site.put(rows_of(DAY, 3), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "published"
    assert site.served() == [name(1)]


# A ledger that was lost


def lose_ledger(site: Site, ledger: bytes = b"", **settings: object) -> None:
    """The ledger is gone, or an older one in its place, the folder is there, and the service starts again."""
    site.stop()
    for path in site.point.data_dir.glob("ledger.sqlite3*"):
        path.unlink()
    if ledger:
        site.point.ledger_path.write_bytes(ledger)
    site.settings |= settings
    site.start()


async def test_a_new_ledger_adopts_whole_files_and_publishes_nothing_twice(make_site: Callable[..., Site]) -> None:
    """After the loss of the ledger the whole files are served again, and no name and no row is sent again."""
    site = make_site(max_rows_per_file=4)
    site.put(rows_of(DAY, 10), at(1, "04:10"))
    site.put(rows_of(NEXT, 10), at(2, "04:10"), NEXT)
    await site.round(at(2, "05:35"))
    before = {file: (site.point.pickup_dir / file).stat().st_mtime for file in site.files()}
    lose_ledger(site)
    outcome = await site.round(at(2, "06:35"))
    assert outcome.published == [] and site.served() == sorted(before)
    assert {file: (site.point.pickup_dir / file).stat().st_mtime for file in site.files()} == before
    assert {p.kind for p in site.ledger.publications()} == {"adopted"}
    assert [log.lines for log in site.ledger.publications(DAY)[0].logs] == [4, 4, 2]
    site.check_folder()
    site.put(rows_of(DAY, 12), at(2, "08:00"))
    await site.round(at(2, "09:05"))
    assert site.ids(name(3)) == [f"{DAY}-10", f"{DAY}-11"]
    assert mtimes(site)[-1] > max(before.values())


async def test_a_ledger_older_than_the_folder_sends_nothing_twice(site: Site) -> None:
    """Files published since an older ledger was copied are not known to it: their days fail, and say what to do."""
    for n, day in enumerate((DAY, NEXT)):
        site.put(rows_of(day, 5), at(n + 1, "04:10"), day)
    await site.round(at(1, "05:35"))
    older = Ledger.copy(site.point.ledger_path)
    site.put(rows_of(DAY, 6), at(1, "06:00"))
    await site.round(at(2, "05:35"))
    assert site.files() == (sent := [name(), name(1), name(day=NEXT)])
    lose_ledger(site, ledger=older)
    third = DAY + timedelta(days=2)
    site.put(rows_of(third, 5), at(3, "04:10"), third)
    # Before the third day is out, whose file is younger than all, and after it.
    for now, word in ((at(2, "06:35"), "open"), (at(2, "09:35"), "open"), (at(3, "05:35"), "published")):
        outcome = await site.round(now)
        assert [result.word for result in outcome.results[:3]] == ["failed", "failed", word]
    assert site.files() == [*sent, name(day=third)]
    found = {(alarm.name, alarm.subject): alarm for alarm in site.alarms(at(2, "09:35"))}
    assert "; pickup-point manual restoring; " in found["day_failed", str(NEXT)].hint
    assert f"{name(1)} was published, but this ledger" in found["day_late_failed", str(DAY)].sentence
    # As the manual says.
    lose_ledger(site)
    await site.round(at(3, "06:35"))
    assert site.served() == site.files() == [*sent, name(day=third)]
    assert max(site.standing_ids().values()) == 1


ODD = ["a\tb", "a b", 'q"', "q%22", "%41", "\x00", " x"]


@pytest.mark.parametrize("ids", [IdCells.CLEANED, IdCells.EXACT])
async def test_a_new_ledger_knows_odd_ids_of_any_release(make_site: Callable[..., Site], ids: IdCells) -> None:
    """A file that was found does not show which release wrote it: its rows are recognised, whatever their ids."""
    site = make_site(rules=rules(Layout(ids=ids)))
    rows = [row(id=row_id, created_at=f"{DAY}T12:00:00Z") for row_id in ODD]
    site.put(rows, at(1, "04:10"))
    await site.round(at(1, "05:35"))
    lose_ledger(site, rules=rules())
    site.put([*rows, *rows_of(DAY, 1)], at(1, "06:00"))
    await site.round(at(1, "07:05"))
    assert site.files() == [name(), name(1)]
    assert site.ids(name(1)) == [f"{DAY}-0"]


async def test_a_new_ledger_leaves_torn_and_foreign_files_alone(site: Site) -> None:
    """Torn files and files whose names do not parse are neither served nor deleted; torn names are not used again."""
    whole = gzip.compress(Layout().header_lines(DAY).encode())
    foreign = {
        name(): whole[:-3],
        name(1): bytes([*whole[:30], whole[30] ^ 0x40, *whole[31:]]),
        name(2): b"",
        name(3): b"no gzip",
        "README.txt": b"x",
        "MEGA20261120-4.tsv.gz": whole,
        name(5) + ".part": whole,
    }
    for file, data in foreign.items():
        (site.point.pickup_dir / file).write_bytes(data)
    site.put(rows_of(DAY, 2), at(1, "04:10"))
    with capture_logs() as entries:
        await site.round(at(1, "05:35"))
    assert site.served() == [name(4)]
    assert sum("not a complete gzip file" in entry["event"] for entry in entries) == 4
    site.prune(at(70))
    assert {path.name: path.read_bytes() for path in site.point.pickup_dir.iterdir()} == foreign


async def test_an_adoption_that_was_interrupted_is_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between two days of an adoption does not make a ledger that can never be used."""
    for n, day in enumerate((DAY, NEXT)):
        site.put(rows_of(day, 2), at(n + 1, "04:10"), day)
    await site.round(at(2, "05:35"))
    lose_ledger(site)
    adopt, calls = site.publisher._adopt_day, []

    def interrupted(*args: object) -> int:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return adopt(*args)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(site.publisher, "_adopt_day", interrupted)
    with pytest.raises(KeyboardInterrupt):
        site.publisher.adopt(rules(), at(2, "06:00"))
    site.restart()
    assert (await site.round(at(2, "06:35"))).published == []
    assert site.served() == [name(), name(day=NEXT)]


async def test_a_lost_ledger_and_a_new_layout_still_know_what_was_sent(site: Site) -> None:
    """Files in a default layout are read as such, whatever is configured now; their late rows look like them."""
    site.put(rows_of(DAY, 5), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    lose_ledger(site, rules=rules(Layout(LogFormat.W3C)), prefix="NEW")
    site.put(rows_of(DAY, 6), at(1, "06:00"))
    await site.round(at(1, "07:05"))
    assert site.files() == [name(), name(1)]
    assert site.ids(name(1)) == [f"{DAY}-5"]


_TURNED = tuple(ColumnSpec(spec.name, value=spec.value) for spec in reversed(Layout().specs))


@pytest.mark.parametrize(("before", "after"), [
    (Layout(columns=(ColumnSpec("n", value="x-metric-id"), ColumnSpec("d", constant="x"))), Layout()),
    (Layout(columns=_TURNED), Layout(header="none")),
    (Layout(header="none", columns=_TURNED), Layout(header="none")),
    (Layout(header="none"), Layout()),
])  # fmt: skip
async def test_a_lost_ledger_and_an_unknown_layout_send_nothing_and_say_so_once(
    make_site: Callable[..., Site], before: Layout, after: Layout
) -> None:
    """If it is unknown what was sent, nothing more of the day is sent, and the journal says why, once."""
    site = make_site(rules=rules(before))
    site.put(rows_of(DAY, 5), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    lose_ledger(site, rules=rules(after))
    site.put(rows_of(DAY, 6), at(1, "06:00"))
    with capture_logs() as entries:
        await site.round(at(1, "07:05"))
        await site.round(at(1, "07:15"))
    assert site.files() == site.served() == [name()]
    left = [entry["why"] for entry in entries if entry["event"] == f"feed ignored late rows of {DAY}"]
    assert len(left) == 1 and "layout is not known" in left[0]


async def test_after_a_resend_an_adopted_day_sends_its_late_rows(make_site: Callable[..., Site]) -> None:
    """Whatever was unknown of the files that it replaces, a resend says what was sent."""
    site = make_site(rules=rules(Layout(header="none")))
    site.put(rows_of(DAY, 5), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    lose_ledger(site, rules=rules())
    await site.round(at(1, "06:00"), DAY, resend="nobody knows what was sent")
    site.put(rows_of(DAY, 6), at(1, "07:00"))
    await site.round(at(1, "08:05"))
    assert site.ids(name(1), name(2)) == [f"{DAY}-{n}" for n in range(6)]


async def test_a_file_restored_without_its_mtime_is_kept_for_its_time(site: Site) -> None:
    """A lost ledger adopts a file from 1970; it is neither pruned as old nor published again."""
    site.put(rows_of(DAY, 5), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    os.utime(site.point.pickup_dir / name(), (0, 0))
    lose_ledger(site)
    await site.round(at(1, "06:35"))
    assert site.ledger.publications(DAY)[0].published_at == datetime(1970, 1, 1, tzinfo=UTC)
    site.prune(at(61))
    assert site.files() == site.served() == [name()]
    site.prune(at(61, "00:00:01"))
    assert site.files() == []


async def test_what_was_sent_and_pruned_is_not_sent_again(site: Site) -> None:
    """Once the file that shows what was sent is pruned, by whatever clock, a changed export brings nothing."""
    site.put(rows_of(DAY, 5), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.point.remove(log_name())
    site.ledger.pruned(log_name(), at(1, "06:00"))
    site.put(rows_of(DAY, 6), at(1, "06:00"))
    assert (await site.round(at(1, "07:05"))).published == []
    assert site.files() == []


async def test_a_file_that_vanishes_or_grows_is_not_served(site: Site) -> None:
    """A file that is missing or of another size is logged once and not served until it is back."""
    site.put(rows_of(DAY, 5), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    path = site.point.pickup_dir / name()
    data = path.read_bytes()
    path.unlink()
    with capture_logs() as entries:
        await site.round(at(1, "05:45"))
        assert site.served() == []
        path.write_bytes(data + b"x")
        await site.round(at(1, "05:55"))
    assert site.served() == []
    assert [entry["event"] for entry in entries if "publisher found" in entry["event"]] == [
        f"publisher found {name()} missing"
    ]
    path.write_bytes(data)
    await site.round(at(1, "06:05"))
    assert site.served() == [name()]
