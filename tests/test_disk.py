"""A disk that refuses: its errors are reported as the data folder's, and nothing that was done is undone by them.

Each of these was found by the fault campaign (`python -m benchmarks.faults disk`).
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from server.cli.privileges import become_owner
from server.disk import file_lock
from server.errors import DataFolderError, LedgerError
from server.storage import folder as pickup
from server.storage.ledger import Ledger
from tests.support.site import DAY, Site, at, log_name, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable


def refuses(number: int, *, of: Callable[..., bool] = lambda *_: True, then: Any = None) -> Callable[..., Any]:
    """Return a system call that fails for these arguments."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if of(*args):
            raise OSError(number, os.strerror(number))
        return then(*args, **kwargs)

    return call


async def test_a_staged_name_that_cannot_be_removed_does_not_make_a_published_day_fail(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day is published; what is left in staging goes with the next round."""
    site.put(rows_of(DAY, 20), at(1, "04:10"))
    unlink = Path.unlink
    with monkeypatch.context() as patch, capture_logs() as entries:
        patch.setattr(Path, "unlink", refuses(errno.EIO, of=lambda path, **_: path.parent.name == "staging",
                                              then=unlink))  # fmt: skip
        assert await site.word(at(1, "05:35")) == "published"
    assert not [entry for entry in entries if entry["log_level"] == "error"]
    assert sorted(path.name for path in site.point.staging_dir.iterdir()) == [name(), f"export-{DAY}.json.gz"]
    assert site.ledger.days()[DAY].failure is None
    await site.round(at(1, "05:45"))
    site.check_folder()


def test_a_folder_that_cannot_be_synced_ends_a_retention_pass_with_a_sentence(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anything but a `DataFolderError` would end the service; the next pass records what was removed."""
    (site.point.pickup_dir / name()).write_bytes(b"")
    monkeypatch.setattr(os, "fsync", refuses(errno.EIO))
    with pytest.raises(DataFolderError, match="Input/output error"):
        site.point.remove(log_name())
    assert site.point.remove(log_name()) is False


def test_a_lock_that_the_disk_refuses_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO and ENOLCK are the data folder's fault; a lock that somebody holds is not."""
    monkeypatch.setattr(fcntl, "flock", refuses(errno.ENOLCK))
    with file_lock(tmp_path / "lock") as taken, pytest.raises(DataFolderError, match="No locks available"):
        taken()


def test_a_ledger_whose_mode_cannot_be_set_is_reported_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a `LedgerError`, and no connection is left open."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", refuses(errno.EROFS))
        with pytest.raises(LedgerError, match="Read-only file system"):
            Ledger.open(tmp_path / "ledger.sqlite3")
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(fd)]


def test_a_folder_whose_owner_cannot_be_read_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of root's asks for it first."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "stat", refuses(errno.EIO))
    with pytest.raises(DataFolderError, match="Input/output error"):
        become_owner(SimpleNamespace(data_dir=Path("/data")))  # type: ignore[arg-type]  # all that it looks at


async def test_a_file_that_cannot_be_read_is_not_taken_for_a_torn_one_by_a_new_ledger(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left alone, its day would go out a second time; so the round ends, and the next one adopts the file."""
    site.put(rows_of(DAY, 20), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    site.stop()
    for file in site.point.data_dir.glob("ledger.sqlite3*"):
        file.unlink()
    site.start()
    with monkeypatch.context() as patch:
        patch.setattr(pickup.igzip, "IGzipFile", refuses(errno.EIO))
        with pytest.raises(DataFolderError, match="Input/output error"):
            await site.round(at(1, "05:45"))
    await site.round(at(1, "05:55"))
    assert site.files() == site.served() == [name()]
    assert len(site.ids()) == 20


async def test_an_interrupted_publication_is_synced_before_it_is_finished(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger must not promise a name that a power loss could still take away: the fsync before had failed."""
    site.put(rows_of(DAY, 20), at(1, "04:10"))
    fsync, folder = os.fsync, site.point.pickup_dir.stat().st_ino
    asked: list[int] = []

    def failing(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == folder:
            asked.append(descriptor)
            if len(asked) <= 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    assert await site.word(at(1, "05:35")) == "failed"
    with pytest.raises(DataFolderError, match="Input/output error"):
        await site.round(at(1, "05:45"))
    assert site.served() == []
    await site.round(at(1, "05:55"))
    assert len(asked) == 3
    site.check_folder()
    assert site.served() == [name()]
