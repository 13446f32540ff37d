"""The folders under ``data_dir``: staging, publication, and the files that are served.

Touches one folder, ``data_dir`` (mode 0700), with ``pickup/``, ``staging/`` and ``rejects/`` in it, on one file system.
Promise: a name in ``pickup/`` is a whole file from the moment it appears, its bytes, size and mtime never change, and
nothing there is ever replaced. The order of a publication is: write, fsync, (the caller records the intention), link to
the final name, fsync of the folder, (the caller records the publication), unlink the staged name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shlex
import shutil
import stat
import threading
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from isal import igzip
from isal.isal_zlib import IsalError

from ..disk import data_folder_error, file_lock, fsync_folder, list_command, translate_os_errors
from ..errors import DataFolderBusy, DataFolderError
from ..paths import make_folder
from ..triton import LogFile, LogName
from .ledger import LEDGER_FILE
from .staging import LOG_MODE, Staging, link_staged

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from .records import LedgerLog

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: opening a FIFO must not wait
_CHUNK = 1 << 20
LOCK_GRACE = 0.5  # seconds to wait for the service's lock, which `status` and `check` may hold for an instant
REPORT_WAIT_AFTER = 0.5  # seconds: a shorter wait, for one of the service's own passes, is not worth a line


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file in the pickup folder, known to the ledger or not; ``name`` is None if ``file`` is not a log's name.

    ``sealed`` is whether it has the mode of a published log, which files from elsewhere rarely have.
    """

    file: str
    size: int
    mtime: int
    name: LogName | None
    sealed: bool


class DataFolder:
    """The folders under ``data_dir``; call `prepare` first. Every method may be called from any thread."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.pickup_dir = data_dir / "pickup"
        self.staging_dir = data_dir / "staging"
        self.rejects_dir = data_dir / "rejects"
        self.ledger_path = data_dir / LEDGER_FILE
        self._served: dict[str, LogFile] = {}
        self._change = threading.Lock()

    def prepare(self) -> None:
        """Make the folders that are missing, private to their owner and safe from a power cut.

        Raises:
            DataFolderError: they cannot be made or written, or are on different file systems.
        """
        with translate_os_errors(self.data_dir):
            # Existing ones are synced too: the process that made them may have been killed before the sync.
            above = [folder.parent for folder in self.data_dir.absolute().parents if not folder.exists()]
            for folder in (self.data_dir, self.pickup_dir, self.staging_dir, self.rejects_dir):
                make_folder(folder)
            for folder in (self.data_dir, self.data_dir.absolute().parent, *above):
                with contextlib.suppress(PermissionError):  # /var/lib/private is root's; systemd made it
                    fsync_folder(folder)
            if stat.S_IMODE(self.data_dir.stat().st_mode) & 0o077:
                self.data_dir.chmod(0o700)
            for folder in (self.pickup_dir, self.rejects_dir):
                if folder.stat().st_dev != self.staging_dir.stat().st_dev:
                    raise DataFolderError(
                        f"{self.staging_dir} and {folder} are on different file systems, so a file cannot "
                        "appear whole in one step",
                        hint=f"df {shlex.quote(str(self.staging_dir))} {shlex.quote(str(folder))}",
                    )
            for folder in (self.pickup_dir, self.staging_dir, self.rejects_dir):
                if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                    raise DataFolderError(f"this user cannot write to {folder}", hint=list_command(folder))

    def clear_staging(self, keep: Collection[str] = ()) -> list[str]:
        """Remove what an earlier run left in staging, except the names to ``keep``; return the names removed.

        Call it under the round lock.
        """
        removed = []
        with translate_os_errors(self.staging_dir):
            for entry in sorted(self.staging_dir.iterdir()):
                if entry.name in keep:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
                removed.append(entry.name)
        return removed

    # What is served

    @property
    def served(self) -> Mapping[str, LogFile]:
        """The published files by name: a snapshot that never changes."""
        return self._served

    def serve(self, files: Mapping[str, LogFile]) -> None:
        """Serve exactly these files from now on."""
        # A new mapping: listings hold the old one as their snapshot.
        with self._change:
            self._served = dict(files)

    def open(self, file: LogFile) -> int:
        """Open a served file, and return the descriptor.

        Raises:
            FileNotFoundError: it is no longer there, or is not the file that was published.
        """
        folder = os.open(self.pickup_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = os.open(str(file.name), _OPEN, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
                raise FileNotFoundError(errno.ENOENT, "no such log file", str(file.name)) from error
            raise
        finally:
            os.close(folder)
        # By descriptor: the name may stand for another file by now.
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "not the file that was published", str(file.name))
        return descriptor

    # What is in the folder

    def found(self) -> list[FoundFile]:
        """Return the regular files in the pickup folder, sorted by name."""
        files = []
        with translate_os_errors(self.pickup_dir), os.scandir(self.pickup_dir) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    name = LogName.parse(entry.name)
                    sealed = stat.S_IMODE(status.st_mode) == LOG_MODE
                    files.append(FoundFile(entry.name, status.st_size, int(status.st_mtime), name, sealed))
        return sorted(files, key=lambda file: file.file)

    def names(self) -> list[LogName]:
        """Return every log name in the pickup folder, whatever kind of file has it: none can be used again."""
        with translate_os_errors(self.pickup_dir):
            return [name for path in self.pickup_dir.iterdir() if (name := LogName.parse(path.name))]

    def sha256(self, name: LogName) -> str:
        """Return the SHA-256 of a file in the pickup folder, in hex."""
        digest = hashlib.sha256()
        with translate_os_errors(self.pickup_dir / str(name)), self.open_log(name) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def newlines(self, name: LogName) -> int | None:
        """Return how many lines a file in the pickup folder has, or None if it is not a complete gzip file.

        Raises:
            DataFolderError: it cannot be read, which says nothing about its content.
        """
        count = 0
        try:
            with self.open_log(name) as packed, igzip.IGzipFile(fileobj=packed) as file:  # type: ignore[no-untyped-call]  # no types in isal
                while chunk := file.read(_CHUNK):
                    count += chunk.count(b"\n")
                if os.fstat(packed.fileno()).st_size == 0:  # igzip accepts an empty file
                    return None
        except OSError as error:
            if error.errno is None:  # gzip.BadGzipFile
                return None
            raise data_folder_error(error, self.pickup_dir / str(name)) from error
        except (EOFError, zlib.error, IsalError):  # type: ignore[misc]  # isal's stub says instance
            return None
        return count

    def head(self, name: LogName) -> str:
        """Return the first 64 KiB of a complete gzip file's text: more than its header lines can take."""
        with (
            translate_os_errors(self.pickup_dir / str(name)),
            self.open_log(name) as packed,
            igzip.IGzipFile(fileobj=packed) as file,  # type: ignore[no-untyped-call]  # no types in isal
        ):
            return bytes(file.read(1 << 16)).decode(errors="replace")

    def open_log(self, name: LogName) -> BinaryIO:
        """Open a file in the pickup folder; never a symbolic link, which could lead where only root may read."""
        return open(os.open(self.pickup_dir / str(name), _OPEN), "rb")  # noqa: PTH123  # the caller closes it

    def remove(self, name: LogName) -> bool:
        """Prune one file; return False if it was already gone. Open handles stay readable."""
        # Unlisted first: no client sees a name that it cannot open.
        with self._change:
            self._served = {file: log for file, log in self._served.items() if file != str(name)}
        try:
            (self.pickup_dir / str(name)).unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise data_folder_error(error, self.pickup_dir / str(name)) from error
        self.sync()
        return True

    def sync(self) -> None:
        """Sync the pickup folder's names to disk."""
        with translate_os_errors(self.pickup_dir):
            fsync_folder(self.pickup_dir)

    def rejects(self) -> list[tuple[str, int]]:
        """Return (name, mtime in seconds since 1970) of each rejects file, sorted."""
        with translate_os_errors(self.rejects_dir), os.scandir(self.rejects_dir) as entries:
            return sorted(
                (entry.name, int(entry.stat(follow_symlinks=False).st_mtime))
                for entry in entries
                if entry.name.endswith(".rejects.ndjson.gz") and entry.is_file(follow_symlinks=False)
            )

    def remove_rejects(self, file: str) -> None:
        """Prune one rejects file."""
        with translate_os_errors(self.rejects_dir / file):
            (self.rejects_dir / file).unlink(missing_ok=True)

    # Staging and publication

    @contextlib.contextmanager
    def stage(self, first: LogName, promised: Sequence[LogName] = (), rejects_name: str = "") -> Iterator[Staging]:
        """Stage the logs of one publication, see `Staging`; at the end nothing stays in staging but promised logs."""
        staging = Staging(self.staging_dir, self.pickup_dir, self.rejects_dir, first, promised, rejects_name)
        try:
            yield staging
        finally:
            staging.discard()

    def finish(self, log: LedgerLog) -> bool:
        """Give an intended log its name if it still lies in staging; return whether it has it now.

        Until `sync` the name may not survive a power cut.
        """
        path = self.pickup_dir / str(log.name)
        with translate_os_errors(path):
            try:
                found = path.lstat()
            except FileNotFoundError:
                return link_staged(self.staging_dir, self.pickup_dir, log)
        # The name is not enough: it may be somebody else's file.
        return stat.S_ISREG(found.st_mode) and found.st_size == log.size and self.sha256(log.name) == log.sha256

    def has(self, log: LedgerLog) -> bool:
        """Return whether a log is in the pickup folder by its name and size; its content is not read."""
        path = self.pickup_dir / str(log.name)
        with translate_os_errors(path):
            try:
                found = path.lstat()
            except FileNotFoundError:
                return False
        return stat.S_ISREG(found.st_mode) and found.st_size == log.size

    def add_served(self, files: list[LogFile]) -> None:
        """Serve these files too."""
        with self._change:
            self._served = self._served | {str(file.name): file for file in files}

    # Locks

    @contextlib.contextmanager
    def service_lock(self) -> Iterator[None]:
        """Hold the lock of the one service that uses the data folder.

        Raises:
            DataFolderBusy: another service holds it.
        """
        with file_lock(self.data_dir / "lock") as try_lock:
            asked = time.monotonic()
            while not try_lock():
                if time.monotonic() - asked > LOCK_GRACE:
                    raise DataFolderBusy(
                        f"another pickup-point already serves {self.data_dir}",
                        hint="pickup-point status; systemctl status pickup-point",
                    )
                time.sleep(0.02)
            yield

    @contextlib.contextmanager
    def round_lock(self, on_wait: Callable[[], None], stopped: Callable[[], bool]) -> Iterator[None]:
        """Hold the lock of every round, prune and clean-up; wait for it, and call ``on_wait`` once if that takes long.

        Raises:
            DataFolderBusy: ``stopped()`` became true while waiting.
        """
        with file_lock(self.data_dir / "round.lock") as try_lock:
            asked = time.monotonic()
            reported = False
            while not try_lock():
                if stopped():
                    raise DataFolderBusy("stopped while waiting for another round to end")
                if not reported and time.monotonic() - asked > REPORT_WAIT_AFTER:
                    on_wait()
                    reported = True
                time.sleep(0.05)
            yield
