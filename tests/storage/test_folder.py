"""The data folder: what is published is never replaced, nothing else is served, modes and locks are right."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.errors import DataFolderBusy, DataFolderError, NameSpent
from server.storage.folder import DataFolder
from tests.support.site import log_name, name

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.triton import LogFile


@pytest.fixture
def point(tmp_path: Path) -> DataFolder:
    """A data folder, prepared."""
    point = DataFolder(tmp_path / "data")
    point.prepare()
    return point


def publish(point: DataFolder, *texts: bytes, number: int = 0, mtime: int = 1_800_000_000) -> list[LogFile]:
    """Stage these as logs, seal them, and link them."""
    with point.stage(log_name(number)) as staging:
        for index, text in enumerate(texts):
            with staging.open_log(index) as file:
                file.write(text)
        staging.seal(mtime)
        return staging.publish()


def begin_and_leave(point: DataFolder, fault: type[BaseException]) -> None:
    """Write half of a log and half of the rejects, then go."""
    with point.stage(log_name()) as staging:
        staging.open_log(0).write(b"half")
        staging.open_rejects().write(b"half")
        raise fault


def open_files() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def mode(path: Path) -> int:
    """Return a file's permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_private_and_files_read_only(tmp_path: Path) -> None:
    """``data_dir`` is made 0700 even if it was open before, its folders are made 0700, published files are 0440."""
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data").chmod(0o755)
    point = DataFolder(tmp_path / "data")
    before = os.umask(0)
    try:
        point.prepare()
        publish(point, b"x")
    finally:
        os.umask(before)
    folders = (point.data_dir, point.pickup_dir, point.staging_dir, point.rejects_dir)
    assert [mode(folder) for folder in folders] == [0o700] * 4
    assert mode(point.pickup_dir / name()) == 0o440


def test_a_publication_appears_whole_with_size_digest_and_time(point: DataFolder) -> None:
    """Until `publish` nothing is in the folder; then every file is, with the mtimes and sums that were sealed."""
    with point.stage(log_name()) as staging:
        for index in range(2):
            with staging.open_log(index) as file:
                file.write(b"line\n" * (index + 1))
        sealed = staging.seal(1_800_000_000)
        assert point.found() == [] and len(list(point.staging_dir.iterdir())) == 2
        files = staging.publish()
    assert [(str(file.name), file.size, file.mtime) for file in files] == [
        (name(0), 5, 1_800_000_000), (name(1), 10, 1_800_000_001),
    ]  # fmt: skip
    for served, log in zip(files, sealed, strict=True):
        status = (point.pickup_dir / str(served.name)).stat()
        assert (status.st_size, status.st_mtime, status.st_nlink) == (served.size, served.mtime, 1)
        assert point.sha256(served.name) == log.sha256
    assert list(point.staging_dir.iterdir()) == []


def test_an_existing_name_is_never_replaced(point: DataFolder) -> None:
    """A file of the name that is to be published stays as it is, byte for byte; the error names it."""
    publish(point, b"first")
    with pytest.raises(NameSpent, match=name()) as caught:
        publish(point, b"second")
    assert "trace" in caught.value.hint
    assert (point.pickup_dir / name()).read_bytes() == b"first"
    assert list(point.staging_dir.iterdir()) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_staging_that_is_left_early_leaves_nothing(point: DataFolder, fault: type[BaseException]) -> None:
    """Whatever ends it before `publish`, neither logs nor rejects remain anywhere."""
    with pytest.raises(fault):
        begin_and_leave(point, fault)
    assert [*point.staging_dir.iterdir(), *point.pickup_dir.iterdir(), *point.rejects_dir.iterdir()] == []


def test_a_second_pass_begins_again(point: DataFolder) -> None:
    """`restart` forgets what was written, files and rejects."""
    with point.stage(log_name()) as staging:
        staging.open_log(0).write(b"first pass")
        staging.open_rejects().write(b"first pass")
        staging.restart()
        with staging.open_log(0) as file:
            file.write(b"second")
        assert staging.keep_rejects() is False
        staging.seal(1)
        staging.publish()
    assert (point.pickup_dir / name()).read_bytes() == b"second"
    assert list(point.rejects_dir.iterdir()) == []


def test_a_link_in_staging_is_not_followed(point: DataFolder, tmp_path: Path) -> None:
    """A link planted under a staged name does not make the service write elsewhere."""
    (tmp_path / "victim").write_bytes(b"mine")
    (point.staging_dir / name()).symlink_to(tmp_path / "victim")
    with pytest.raises(DataFolderError):
        publish(point, b"x")
    assert (tmp_path / "victim").read_bytes() == b"mine"


# What is served


def _of_the_same_size(path: Path) -> Path:
    """Another file, outside the folder, as large as the one that was published."""
    other = path.parents[2] / "secret"
    other.write_bytes(b"s")
    return other


@pytest.mark.parametrize("make", [
    os.mkfifo,
    os.mkdir,
    lambda path: path.symlink_to("/etc/hostname"),
    lambda path: path.symlink_to("/nowhere"),
    lambda path: path.symlink_to(_of_the_same_size(path)),
    lambda path: path.write_bytes(b"another size"),
    lambda path: None,
])  # fmt: skip
def test_only_the_file_that_was_published_is_opened(point: DataFolder, make: Callable[[Path], None]) -> None:
    """A FIFO, a folder, a link, a file of another size or nothing at all under a served name does not exist."""
    (file,) = publish(point, b"x")
    (point.pickup_dir / name()).unlink()
    make(point.pickup_dir / name())
    before = open_files()
    with pytest.raises(FileNotFoundError):
        point.open(file)
    assert open_files() == before


def test_what_is_not_a_regular_file_is_not_found(point: DataFolder) -> None:
    """FIFOs, folders and links do not count as files, but the names they bear are taken."""
    os.mkfifo(point.pickup_dir / name(0))
    (point.pickup_dir / name(1)).mkdir()
    (point.pickup_dir / name(2)).symlink_to("/etc/hostname")
    (point.pickup_dir / "notes").write_bytes(b"")
    publish(point, b"x", number=3)
    assert [(file.file, file.name) for file in point.found()] == [(name(3), log_name(3)), ("notes", None)]
    assert sorted(point.names()) == [log_name(n) for n in range(4)]


def test_the_served_files_are_a_snapshot(point: DataFolder) -> None:
    """A listing in progress does not change when files are published or pruned."""
    first, second = publish(point, b"x", b"y")
    point.serve({str(first.name): first})
    before = point.served
    point.add_served([second])
    assert sorted(before) == [name(0)] and sorted(point.served) == [name(0), name(1)]
    assert point.remove(first.name) and not point.remove(first.name)
    assert sorted(before) == [name(0)] and sorted(point.served) == [name(1)]


def test_an_open_file_stays_readable_after_it_is_pruned(point: DataFolder) -> None:
    """A transfer that has begun ends well although its file is removed."""
    (file,) = publish(point, b"content")
    descriptor = point.open(file)
    point.remove(file.name)
    assert os.read(descriptor, 100) == b"content"
    os.close(descriptor)


# Folders that cannot be used


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("folder", ["staging", "rejects"])
def test_another_file_system_is_refused(tmp_path: Path, folder: str) -> None:
    """Staging or rejects on another file system is refused: no file could appear whole in one step."""
    target = tmp_path / "data" / folder
    target.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(target)], check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        with pytest.raises(DataFolderError, match="different file systems") as caught:
            DataFolder(tmp_path / "data").prepare()
        assert caught.value.hint.startswith("df ")
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    """A data folder that is a file is one sentence with a hint."""
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(DataFolderError) as caught:
        DataFolder(tmp_path / "data").prepare()
    assert caught.value.hint


def test_leftovers_of_every_kind_are_cleared_from_staging(point: DataFolder, tmp_path: Path) -> None:
    """Files, folders and links go; what a link points to stays."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    (point.staging_dir / "file").write_bytes(b"")
    (point.staging_dir / "folder").mkdir()
    (point.staging_dir / "folder" / "file").write_bytes(b"")
    (point.staging_dir / "link").symlink_to(tmp_path / "kept")
    assert point.clear_staging() == ["file", "folder", "link"]
    assert list(point.staging_dir.iterdir()) == [] and (tmp_path / "kept" / "file").exists()


# Locks


def test_a_second_service_is_refused(point: DataFolder) -> None:
    """Two services on one folder: the second one says which folder, and the first one's end lets it in."""
    second = DataFolder(point.data_dir)
    with point.service_lock(), pytest.raises(DataFolderBusy, match="already serves"), second.service_lock():
        pass
    with DataFolder(point.data_dir).service_lock():
        pass


def test_a_look_at_the_lock_does_not_prevent_a_start(point: DataFolder) -> None:
    """What `status` and `check` do to see whether a service runs does not keep one from starting at that instant."""
    descriptor = os.open(point.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    timer = threading.Timer(0.1, os.close, (descriptor,))
    timer.start()
    with point.service_lock():
        pass
    timer.join()


HOLDER = """
import sys, time
from pathlib import Path
from server.storage.folder import DataFolder
with DataFolder(Path(sys.argv[1])).round_lock(lambda: None, lambda: False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_round_waits_for_another_process(point: DataFolder) -> None:
    """The round lock waits for a round in another process, says so, goes on at its end, and can be stopped."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(point.data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataFolderBusy), point.round_lock(lambda: None, lambda: True):
            pass
        waits = threading.Event()
        entered = threading.Event()

        def wait() -> None:
            with point.round_lock(waits.set, lambda: False):
                entered.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(30) and not entered.is_set()
        holder.stdin.close()
        assert entered.wait(30)
        thread.join()
