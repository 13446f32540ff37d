"""The data folder: what is published is never replaced, nothing else is served, modes and locks are right."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.convert.log_writer import LogFiles, deflate
from server.convert.messages import WrittenLog
from server.errors import ConversionDied, DataFolderBusy, DataFolderError, NameSpent
from server.storage.folder import DataFolder
from tests.support.reference_conversion import MemorySink
from tests.support.site import log_name, name

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.storage.staging import Staging
    from server.triton import LogFile

HEADER = "header\n"


@pytest.fixture
def point(tmp_path: Path) -> DataFolder:
    """A data folder, prepared."""
    point = DataFolder(tmp_path / "data")
    point.prepare()
    return point


def gzipped(text: bytes) -> bytes:
    """A log with these lines, as a conversion writes it."""
    sink = MemorySink()
    files = LogFiles(sink, HEADER)
    files.open()
    files.write(deflate(text, text.count(b"\n")))
    files.close()
    (log,) = sink.logs
    return log.content


def write(staging: Staging, *texts: bytes) -> list[WrittenLog]:
    """Write these lines, one text for each log, where a conversion would; what it would say of them."""
    logs = []
    for index, text in enumerate(texts):
        content = gzipped(text)
        with (staging.folder / staging.file_names.at(index)).open("xb") as file:
            file.write(content)
        logs.append(WrittenLog(text.count(b"\n"), len(content), hashlib.sha256(content).hexdigest()))
    return logs


def publish(point: DataFolder, *texts: bytes, number: int = 0, mtime: int = 1_800_000_000) -> list[LogFile]:
    """Stage these lines as logs, seal them, and link them."""
    with point.stage(log_name(number)) as staging:
        staging.seal(write(staging, *texts), HEADER, mtime)
        return staging.publish()


def begin_and_leave(point: DataFolder, fault: type[BaseException], *, sealed: bool) -> None:
    """Write two logs and rejects, seal the logs or not, then go."""
    with point.stage(log_name()) as staging:
        logs = write(staging, b"one\n", b"two\n")
        (staging.folder / staging.rejects_name).write_bytes(b"half")
        if sealed:
            staging.seal(logs, HEADER, 1)
        raise fault


def open_files() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def mode(path: Path) -> int:
    """Return a file's permissions."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o077])
def test_folders_are_private_and_files_read_only_under_any_umask(umask: int, tmp_path: Path) -> None:
    """``data_dir`` is made 0700 even if it was open before, its folders are made 0700, published files are 0440."""
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data").chmod(0o755)
    point = DataFolder(tmp_path / "data")
    before = os.umask(umask)
    try:
        point.prepare()
        publish(point, b"x\n")
    finally:
        os.umask(before)
    folders = (point.data_dir, point.pickup_dir, point.staging_dir, point.rejects_dir)
    assert [mode(folder) for folder in folders] == [0o700] * 4
    assert mode(point.pickup_dir / name()) == 0o440


def test_a_publication_appears_whole_with_size_digest_and_time(point: DataFolder) -> None:
    """Until `publish` nothing is in the folder; then every file is, with the mtimes and sums that were sealed."""
    texts = (b"line\n", b"line\n" * 2)
    with point.stage(log_name()) as staging:
        logs = write(staging, *texts)
        sealed = staging.seal(logs, HEADER, 1_800_000_000)
        assert point.found() == [] and len(list(point.staging_dir.iterdir())) == 2
        files = staging.publish()
    assert [(str(file.name), file.size, file.mtime) for file in files] == [
        (name(0), logs[0].size, 1_800_000_000), (name(1), logs[1].size, 1_800_000_001),
    ]  # fmt: skip
    for served, log, text in zip(files, sealed, texts, strict=True):
        path = point.pickup_dir / str(served.name)
        status = path.stat()
        assert (status.st_size, status.st_mtime, status.st_nlink) == (served.size, served.mtime, 1)
        assert gzip.decompress(path.read_bytes()) == HEADER.encode() + text
        assert point.sha256(served.name) == log.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(point.staging_dir.iterdir()) == []


def test_an_existing_name_is_never_replaced(point: DataFolder) -> None:
    """A file of the name that is to be published stays as it is, byte for byte; the error names it."""
    publish(point, b"first\n")
    with pytest.raises(NameSpent, match=name()) as caught:
        publish(point, b"second\n")
    assert "trace" in caught.value.hint
    assert (point.pickup_dir / name()).read_bytes() == gzipped(b"first\n")
    assert list(point.staging_dir.iterdir()) == []


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_staging_that_is_left_early_leaves_nothing(point: DataFolder, fault: type[BaseException], sealed: bool) -> None:
    """Whatever ends it before `publish`, neither logs nor rejects remain anywhere."""
    with pytest.raises(fault):
        begin_and_leave(point, fault, sealed=sealed)
    assert [*point.staging_dir.iterdir(), *point.pickup_dir.iterdir(), *point.rejects_dir.iterdir()] == []


def test_rejects_are_those_of_the_last_conversion(point: DataFolder) -> None:
    """They are moved to ``rejects/``, replace what a held version left there, and are removed where there are none."""
    kept = point.rejects_dir / log_name().rejects
    for content in (b"first", b"second"):
        with point.stage(log_name()) as staging:
            (staging.folder / staging.rejects_name).write_bytes(content)
            staging.keep_rejects(written=True)
            assert list(point.staging_dir.iterdir()) == []
        assert (kept.read_bytes(), mode(kept)) == (content, 0o440)
    with point.stage(log_name()) as staging:
        staging.keep_rejects(written=False)
    assert list(point.rejects_dir.iterdir()) == []


@pytest.mark.parametrize("kind", ["log", "rejects"])
def test_a_link_in_staging_is_not_followed(point: DataFolder, tmp_path: Path, kind: str) -> None:
    """A link under a staged name, to a file that would be right, goes nowhere; what it points to is not touched."""
    victim = tmp_path / "victim"
    victim.write_bytes(gzipped(b"x\n"))
    victim.chmod(0o600)
    with point.stage(log_name()) as staging:
        logs = write(staging, b"x\n")
        link = staging.folder / (staging.rejects_name if kind == "rejects" else staging.file_names.at(0))
        link.unlink(missing_ok=True)
        link.symlink_to(victim)
        take = {"log": lambda: staging.seal(logs, HEADER, 1), "rejects": lambda: staging.keep_rejects(written=True)}
        with pytest.raises(ConversionDied, match="there is no file"):
            take[kind]()
    assert (victim.read_bytes(), mode(victim)) == (gzipped(b"x\n"), 0o600)
    assert [*point.staging_dir.iterdir(), *point.pickup_dir.iterdir(), *point.rejects_dir.iterdir()] == []


# What is served


def _of_the_same_size(path: Path) -> Path:
    """Another file, outside the folder, as large as the one that was published."""
    other = path.parents[2] / "secret"
    other.write_bytes(gzipped(b"s\n"))
    assert other.stat().st_size == len(gzipped(b"x\n"))
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
    (file,) = publish(point, b"x\n")
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
    publish(point, b"x\n", number=3)
    assert [(file.file, file.name) for file in point.found()] == [(name(3), log_name(3)), ("notes", None)]
    assert sorted(point.names()) == [log_name(n) for n in range(4)]


def test_the_served_files_are_a_snapshot(point: DataFolder) -> None:
    """A listing in progress does not change when files are published or pruned."""
    first, second = publish(point, b"x\n", b"y\n")
    point.serve({str(first.name): first})
    before = point.served
    point.add_served([second])
    assert sorted(before) == [name(0)] and sorted(point.served) == [name(0), name(1)]
    assert point.remove(first.name) and not point.remove(first.name)
    assert sorted(before) == [name(0)] and sorted(point.served) == [name(1)]


def test_an_open_file_stays_readable_after_it_is_pruned(point: DataFolder) -> None:
    """A transfer that has begun ends well although its file is removed."""
    (file,) = publish(point, b"content\n")
    descriptor = point.open(file)
    point.remove(file.name)
    assert os.read(descriptor, 1000) == gzipped(b"content\n")
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
