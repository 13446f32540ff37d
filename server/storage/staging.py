"""Staging: the logs of one publication, written and synced to disk before anybody can see them.

Touches ``staging/``, and links from there into ``pickup/``. Promise: without `Staging.publish` nothing of the logs
remains at the end; a name that exists is never replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from ..disk import data_folder_error, discard, fsync_folder, translate_os_errors
from ..errors import NameSpent
from ..triton import LogFile, LogName

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class StagedLog:
    """A whole log in staging, on disk: what will be published under ``name``."""

    name: LogName
    size: int
    sha256: str
    mtime: int


class Staging:
    """The logs of one publication on their way: written, sealed, linked. A conversion writes into it."""

    def __init__(self, staging_dir: Path, pickup_dir: Path, rejects_dir: Path, first: LogName) -> None:
        self._staging_dir, self._pickup_dir, self._rejects_dir = staging_dir, pickup_dir, rejects_dir
        self._first = first
        self._open: list[_StagedFile] = []
        self._rejects: _StagedFile | None = None
        self._sealed: list[StagedLog] = []

    def restart(self) -> None:
        """Discard what was written so far, to begin again."""
        for staged in [*self._open, *([self._rejects] if self._rejects else [])]:
            staged.discard()
        self._open, self._rejects, self._sealed = [], None, []

    def name(self, index: int) -> LogName:
        """Return the name that the log at ``index`` will have."""
        first = self._first
        return LogName(first.prefix, first.day, first.number + index, first.format)

    def open_log(self, index: int) -> BinaryIO:
        """Open the file for the log at ``index`` (0, 1, …, in order); the writer closes it."""
        assert index == len(self._open)  # noqa: S101  # logs are written in order
        staged = _StagedFile(self._staging_dir / str(self.name(index)))
        self._open.append(staged)
        return staged.file

    def open_rejects(self) -> BinaryIO:
        """Open the file for the rejected rows."""
        self._rejects = _StagedFile(self._staging_dir / self._first.rejects)
        return self._rejects.file

    def keep_rejects(self) -> bool:
        """Move the rejected rows to ``rejects/`` and sync them; return False when there are none.

        This replaces or removes what an earlier, held version of the day left there under the same name.
        """
        if self._rejects is None:
            with translate_os_errors(self._rejects_dir / self._first.rejects):
                (self._rejects_dir / self._first.rejects).unlink(missing_ok=True)
            return False
        # Content, then name, then folder: after a power cut the name stands for whole content or does not exist.
        with translate_os_errors(self._rejects.path):
            self._rejects.sync()
            self._rejects.path.replace(self._rejects_dir / self._rejects.path.name)
            fsync_folder(self._rejects_dir)
        self._rejects = None
        return True

    def seal(self, earliest_mtime: int) -> list[StagedLog]:
        """Sync the logs to disk, each with an mtime one second after the one before it.

        Raises:
            DataFolderError: the disk refused.
        """
        self._sealed = []
        for index, staged in enumerate(self._open):
            mtime = earliest_mtime + index
            with translate_os_errors(staged.path):
                size, digest = staged.seal(mtime)
            self._sealed.append(StagedLog(self.name(index), size, digest, mtime))
        return self._sealed

    def publish(self) -> list[LogFile]:
        """Link the sealed logs to their final names, in order; from here on the names are taken.

        Raises:
            NameSpent: a file of that name is in the folder; it was not touched.
            DataFolderError: the disk refused.
        """
        pickup = self._pickup_dir
        files = []
        for log in self._sealed:
            # A link, not a rename: it fails where the name exists. The content is on disk since `seal`.
            try:
                os.link(self._staging_dir / str(log.name), pickup / str(log.name), follow_symlinks=False)
            except FileExistsError:
                raise NameSpent(f"{log.name} is already in {pickup}", hint=f"pickup-point trace {log.name}") from None
            except OSError as error:
                raise data_folder_error(error, pickup / str(log.name)) from error
            files.append(LogFile(log.name, log.size, log.mtime))
        # Before the caller records the publication and serves it: no client may see a name that a power cut takes back.
        with translate_os_errors(pickup):
            fsync_folder(pickup)
        return files

    def discard(self) -> None:
        """Remove the staged names; a published file keeps its final name."""
        self.restart()


class _StagedFile:
    """A file in staging, whose digest is computed while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with translate_os_errors(path):
            # O_NOFOLLOW: a link planted under the name must not lead elsewhere. Readable only, as it will be published.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o440)
        self.file = _HashingFile(descriptor)

    def sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def seal(self, mtime: int) -> tuple[int, str]:
        # In this order: a write would change the mtime, and the sync must cover both.
        self.file.close()
        os.utime(self.path, (mtime, mtime))
        self.sync()
        return self.path.stat().st_size, self.file.digest.hexdigest()

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
        discard(self.path)


class _HashingFile(io.FileIO):
    """A file that hashes what is written to it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb")
        self.digest = hashlib.sha256()

    def write(self, data: Buffer) -> int:
        """Write all of ``data``, even where the system writes less at once; return its size in bytes."""
        rest = memoryview(data).cast("B")
        self.digest.update(rest)
        size = len(rest)
        while rest:
            rest = rest[super().write(rest) :]
        return size
