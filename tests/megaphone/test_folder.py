"""A folder as the source, and the file that an export is read into: exactly the listed version, or an exception."""

from __future__ import annotations

import asyncio
import io
import os
import random
import threading
from contextlib import nullcontext, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.errors import ExportChanged, SourceRefused, SourceUnreachable
from server.megaphone.download import DownloadFile, in_thread
from server.megaphone.exports import DELIVERY_V2
from server.megaphone.folder import EDGE, Folder

DAY = date(2026, 11, 20)
KEY = f"metrics-day-{DAY}.json.gz"


async def test_a_day_is_listed_and_read_whole(tmp_path: Path) -> None:
    """The file in the folder is what is read, after what the target held before."""
    body = random.Random(1).randbytes(9_000_000)
    (tmp_path / KEY).write_bytes(body)
    modified = datetime(2026, 11, 21, 4, 5, 6, 789000, tzinfo=UTC)
    os.utime(tmp_path / KEY, (0, modified.timestamp()))
    folder = Folder(tmp_path)
    listing = await folder.day_exports()
    export = listing.exports[DAY]
    assert (export.day, export.key, export.size, export.last_modified) == (DAY, KEY, len(body), modified)
    assert abs(listing.now - datetime.now(UTC)) < timedelta(minutes=1)
    into = io.BytesIO(b"kept")
    into.seek(4)
    await folder.fetch(export, into)
    assert into.getvalue() == b"kept" + body
    assert folder.name == str(tmp_path)
    await folder.close()


async def test_without_an_export_the_listing_says_what_is_there_instead(tmp_path: Path) -> None:
    """How many other files, and the folder beside them that has exports; a file that begins with a dot is nothing."""
    for name in (".DS_Store", "impression-day-2026-11-20.json.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / KEY).write_bytes(b"x")
    others = (await Folder(tmp_path).day_exports()).others
    assert others.objects == 2 and others.looks == ("Impression exports",) and others.elsewhere == str(tmp_path / "b")


async def test_an_empty_file_marks_a_day(tmp_path: Path) -> None:
    """The newest one counts; a folder of such a name, a link to nothing and the other kind's reader see none."""
    at = datetime(2026, 11, 21, 12, 10, tzinfo=UTC)
    for hours, key in ((0, f"{DAY}_1"), (2, f"{DAY:%Y_%m_%d}_2"), (1, f"{DAY}_3")):
        marker = tmp_path / f"_finalized_delivery_{key}"
        marker.touch()
        os.utime(marker, (0, (at + timedelta(hours=hours)).timestamp()))
    (tmp_path / "_finalized_delivery_2026-11-21_1").mkdir()
    (tmp_path / "_finalized_delivery_2026-11-22_1").symlink_to("nowhere")
    (tmp_path / f"delivery-v2-day-{DAY}.json.gz").write_bytes(b"x")
    listing = await Folder(tmp_path, DELIVERY_V2).day_exports()
    assert (list(listing.exports), listing.markers) == ([DAY], {DAY: at + timedelta(hours=2)})
    other = await Folder(tmp_path).day_exports()
    assert (other.exports, other.markers, other.others.kind) == ({}, {}, "delivery-v2")


async def test_only_regular_files_with_exact_names_count(tmp_path: Path) -> None:
    """Folders, FIFOs, sockets, links to nothing, impossible days and times: ignored; a link to a file counts."""
    for name in ("impression-day-2026-11-20.json.gz", "metrics-day-2026-13-45.json.gz", KEY + ".part", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "metrics-day-2026-11-01.json.gz").mkdir()
    (tmp_path / "metrics-day-2026-11-01.json.gz" / KEY).write_bytes(b"x")
    os.mkfifo(tmp_path / "metrics-day-2026-11-02.json.gz")
    (tmp_path / "metrics-day-2026-11-03.json.gz").symlink_to("nowhere")
    (tmp_path / "metrics-day-2026-11-04.json.gz").symlink_to("/dev/zero")
    (tmp_path / "metrics-day-2026-11-05.json.gz").touch()
    os.utime(tmp_path / "metrics-day-2026-11-05.json.gz", (-2_000_000_000, -2_000_000_000))
    (tmp_path / "elsewhere").write_bytes(b"body")
    (tmp_path / KEY).symlink_to("elsewhere")
    folder = Folder(tmp_path)
    with capture_logs() as entries:
        exports = (await folder.day_exports()).exports
        await folder.day_exports()
    assert list(exports) == [DAY]
    passed_over = {entry["event"][-18:-8]: entry["why"] for entry in entries}
    assert passed_over == {
        "2026-11-01": "it is not a regular file", "2026-11-02": "it is not a regular file",
        "2026-11-03": "it is a link that leads to no file this user can reach",
        "2026-11-04": "it is not a regular file", "2026-11-05": "it is dated beyond the calendar",
    } and len(entries) == 5  # fmt: skip
    into = io.BytesIO()
    await folder.fetch(exports[DAY], into)
    assert into.getvalue() == b"body"


async def test_a_link_that_leads_nowhere_costs_its_own_day_and_no_other(tmp_path: Path) -> None:
    """A link to itself once made the whole folder unreadable: no day was published while it existed."""
    (tmp_path / KEY).write_bytes(b"export")
    for number, target in enumerate((f"{KEY}/beyond-a-file", "x" * 300), 3):
        (tmp_path / f"metrics-day-2026-11-{number:02}.json.gz").symlink_to(target)
    (tmp_path / "metrics-day-2026-11-01.json.gz").symlink_to("metrics-day-2026-11-02.json.gz")
    (tmp_path / "metrics-day-2026-11-02.json.gz").symlink_to("metrics-day-2026-11-01.json.gz")
    assert set((await Folder(tmp_path).day_exports()).exports) == {DAY}


async def test_an_empty_file_is_read_as_empty(tmp_path: Path) -> None:
    """An empty file is not a failure of the source."""
    (tmp_path / KEY).touch()
    folder = Folder(tmp_path)
    into = io.BytesIO()
    await folder.fetch((await folder.day_exports()).exports[DAY], into)
    assert into.getvalue() == b""


@pytest.mark.parametrize(("change", "same"), [
    ("nothing", True), ("an inode", True), ("a time", True), ("an inode and a time", True),
    ("the first byte", False), ("the last byte", False), ("one byte more", False), ("one byte less", False),
])  # fmt: skip
async def test_a_version_is_what_the_file_holds(tmp_path: Path, change: str, same: bool) -> None:
    """Size and edges tell versions apart, for a new process too: mounts give new inodes and times for old files."""
    path, folder, body = tmp_path / KEY, Folder(tmp_path), bytes(3 * EDGE)
    path.write_bytes(body)
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    before = (await folder.day_exports()).exports[DAY]
    changed = {
        "the first byte": b"x" + body[1:], "the last byte": body[1:] + b"x", "one byte more": body + b"\0",
        "one byte less": body[1:],
    }  # fmt: skip
    if change != "nothing":
        (tmp_path / "new").write_bytes(changed.get(change, body))
        time = 1_700_000_000_123_456_789 + (change != "an inode")
        os.utime(tmp_path / "new", ns=(1, time))
        (tmp_path / "new").rename(path)
    for source in (folder, Folder(tmp_path)):
        assert ((await source.day_exports()).exports[DAY].etag == before.etag) is same
        into = io.BytesIO()
        with nullcontext() if same else pytest.raises(ExportChanged):
            await source.fetch(before, into)
        assert into.getvalue() == (body if same else b"")


async def test_the_edges_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose size and time stay is not opened again, whatever its inode: a mount may be a slow network."""
    path, folder = tmp_path / KEY, Folder(tmp_path)
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    before = await folder.day_exports()
    (tmp_path / "new").write_bytes(b"one")
    os.utime(tmp_path / "new", (1, 1))
    (tmp_path / "new").rename(path)
    monkeypatch.setattr("server.megaphone.folder.os.pread", None)
    assert (await folder.day_exports()).exports == before.exports


async def test_a_file_that_cannot_be_read_costs_its_own_day_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed, its fetch says what to do, and its version is asked for again."""
    (tmp_path / KEY).write_bytes(b"x")
    (tmp_path / "metrics-day-2026-11-21.json.gz").write_bytes(b"x")
    folder, really = Folder(tmp_path), os.open

    def refuse(path: str | Path, flags: int) -> int:
        if str(path).endswith(KEY):
            raise PermissionError(13, "no")
        return really(path, flags)

    with monkeypatch.context() as patch:
        patch.setattr("server.megaphone.folder.os.open", refuse)
        exports = (await folder.day_exports()).exports
        assert len(exports) == 2
        with pytest.raises(SourceRefused, match="may not read"):
            await folder.fetch(exports[DAY], io.BytesIO())
    await folder.fetch((await folder.day_exports()).exports[DAY], io.BytesIO())


@pytest.mark.parametrize("change", ["replaced", "grown", "shrunk", "fifo", "folder", "gone"])
async def test_a_change_after_the_listing_is_an_export_changed(tmp_path: Path, change: str) -> None:
    """Whatever took the file's place: nothing of it is given for the listed version, and nothing blocks."""
    path, folder = tmp_path / KEY, Folder(tmp_path)
    path.write_bytes(b"listed")
    export = (await folder.day_exports()).exports[DAY]
    if change == "grown":
        with path.open("ab") as file:
            file.write(b"+")
    elif change == "shrunk":
        os.truncate(path, 3)
    else:
        path.unlink()
    if change == "replaced":
        path.write_bytes(b"others")
        os.utime(path, (2, 2))
    elif change == "fifo":
        os.mkfifo(path)
    elif change == "folder":
        path.mkdir()
    into = io.BytesIO(b"kept")
    into.seek(4)
    with pytest.raises(ExportChanged) as caught:
        await folder.fetch(export, into)
    assert caught.value.hint
    assert into.getvalue() == b"kept"


@pytest.mark.parametrize("change", ["grows", "is cut off", "is written over"])
async def test_a_change_in_mid_read_is_an_export_changed(tmp_path: Path, change: str) -> None:
    """The version is compared again after the last byte."""
    path, folder = tmp_path / KEY, Folder(tmp_path)
    path.write_bytes(bytes(9_000_000))
    os.utime(path, (1, 1))
    export = (await folder.day_exports()).exports[DAY]

    class Meddling(io.BytesIO):
        def write(self, data: object, /) -> int:
            if change == "is cut off":
                os.truncate(path, 5_000_000)
            else:
                with path.open("r+b") as file:
                    file.seek(0, os.SEEK_END if change == "grows" else os.SEEK_SET)
                    file.write(b"new")
            return super().write(data)  # type: ignore[arg-type]  # a buffer, as BytesIO takes

    into = Meddling()
    with pytest.raises(ExportChanged):
        await folder.fetch(export, into)
    assert into.getvalue() == b""


async def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """No folder, or something else in its place: SourceRefused, with something to type."""
    with pytest.raises(SourceRefused, match="does not exist") as caught:
        await Folder(tmp_path / "no folder").day_exports()
    assert f"mkdir -p '{tmp_path}/no folder'" in caught.value.hint
    (tmp_path / "file").touch()
    with pytest.raises(SourceRefused, match="is not a folder"):
        await Folder(tmp_path / "file").day_exports()


@pytest.mark.parametrize(
    ("error", "expected"), [(PermissionError(13, "no"), SourceRefused), (OSError(5, "EIO"), SourceUnreachable)]
)
async def test_what_the_system_refuses_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: type[Exception]
) -> None:
    """A missing permission needs an operator; a failing disk or network share may recover."""
    (tmp_path / KEY).write_bytes(b"x")
    folder = Folder(tmp_path)
    export = (await folder.day_exports()).exports[DAY]

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("server.megaphone.folder.os.read", fail)
        with pytest.raises(expected) as reading:
            await folder.fetch(export, io.BytesIO())
    with monkeypatch.context() as patch:
        patch.setattr("server.megaphone.folder.os.scandir", fail)
        with pytest.raises(expected) as listing:
            await folder.day_exports()
    assert getattr(reading.value, "hint", "") and getattr(listing.value, "hint", "")


async def test_a_full_disk_is_reported_as_what_it_is(tmp_path: Path) -> None:
    """ENOSPC on the target file is not the source's fault."""
    (tmp_path / KEY).write_bytes(b"x" * 100)
    folder = Folder(tmp_path)
    with open("/dev/full", "wb", buffering=0) as into, pytest.raises(OSError, match="No space left"):  # noqa: ASYNC230, PTH123  # a device
        await folder.fetch((await folder.day_exports()).exports[DAY], into)


async def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    """No read, failed or cancelled ones included, keeps the file open."""
    (tmp_path / KEY).write_bytes(bytes(5_000_000))
    folder = Folder(tmp_path)
    export = (await folder.day_exports()).exports[DAY]
    await folder.fetch(export, io.BytesIO())
    for _ in range(20):
        reading = asyncio.create_task(folder.fetch(export, io.BytesIO()))
        await asyncio.sleep(random.random() / 500)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    held = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that iterdir itself had
            held.append(str(descriptor.readlink()))
    assert str(tmp_path / KEY) not in held


async def test_a_spool_begins_again_where_it_began(tmp_path: Path) -> None:
    """After a restart the file ends at its position when it was passed in, buffered or not."""
    for buffering in (-1, 0):
        with (tmp_path / "download").open("w+b", buffering=buffering) as into:  # a test's own file
            into.write(b"kept")
            download = await DownloadFile.at(into)
            for _ in range(3):
                await download.write(bytes(600_000))
            assert (download.size, download.most) == (1_800_000, 1_800_000)
            await download.restart()
            assert (download.size, download.most) == (0, 1_800_000)
            await download.write(b"anew")
            await download.finish()
            assert (tmp_path / "download").read_bytes() == b"keptanew"


async def test_a_cancelled_caller_waits_for_the_thread() -> None:
    """The cancellation proceeds only when the thread has released the file, however often it is repeated."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.wait([task], timeout=0.02)
        assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
