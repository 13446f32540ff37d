"""Staging: the logs of one publication, checked and synced to disk before anybody can see them.

Touches ``staging/``, and links from there into ``pickup/``. The conversion's process wrote the files and is not
trusted: each is opened again, and what the descriptor holds must be what the process reported. Promise: nothing stays
in staging at the end, unless logs were promised and not all have their names: those stay for `link_staged`; an existing
name is never replaced.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isal import isal_zlib
from isal.isal_zlib import IsalError

from ..convert.log_writer import GZIP_HEADER
from ..convert.messages import FileNames
from ..convert.process import refused
from ..disk import data_folder_error, discard, fsync_folder, translate_os_errors
from ..errors import ConversionDied, ConversionFailed, NameSpent
from ..triton import LogFile, LogName

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..convert.messages import WrittenLog
    from ..convert.process import StopToken
    from .records import LedgerLog

LOG_MODE = 0o440  # of a published log
_CHUNK = 1 << 20
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # O_NONBLOCK: opening a FIFO must not wait


@dataclass(frozen=True, slots=True)
class StagedLog:
    """A whole log in staging, on disk, that will be published under ``name``; ``mtime`` in seconds since 1970."""

    name: LogName
    size: int
    sha256: str
    mtime: int


class Staging:
    """The logs of one publication on their way: written by a conversion, checked, linked.

    They get the ``promised`` names, then ``first``, the day's next unspent one, and those after it. With ``keep`` the
    sealed logs stay in staging at the end: set it from when the ledger promises them until their
    publication is recorded.
    """

    def __init__(
        self,
        staging_dir: Path,
        pickup_dir: Path,
        rejects_dir: Path,
        first: LogName,
        promised: Sequence[LogName] = (),
        rejects_name: str = "",
    ) -> None:
        self.folder = staging_dir
        self.keep = False
        self._pickup_dir, self._rejects_dir = pickup_dir, rejects_dir
        self._first = first
        self._promised = promised
        self.rejects_name = rejects_name or self.name(0).rejects
        self._sealed: list[StagedLog] = []

    @property
    def file_names(self) -> FileNames:
        """The names under which the conversion writes the logs; `seal` renames them to those of `name`."""
        head, _, rest = str(self._first).rpartition("-")
        return FileNames(f"{head}-", self._first.number, f".{rest.partition('.')[2]}")

    def name(self, index: int) -> LogName:
        """Return the name that the log at ``index`` will have."""
        if index < len(self._promised):
            return self._promised[index]
        first = self._first
        return LogName(first.prefix, first.day, first.number + index - len(self._promised), first.format)

    def keep_rejects(self, *, written: bool) -> None:
        """Move the rejected rows, if any were ``written``, to ``rejects/`` and sync them.

        What an earlier, held version of the day left there under the same name is replaced or removed.

        Raises:
            ConversionDied: there is no such file.
            DataFolderError: the disk failed.
        """
        kept = self._rejects_dir / self.rejects_name
        if not written:
            with translate_os_errors(kept):
                kept.unlink(missing_ok=True)
            return
        path = self.folder / self.rejects_name
        # Content, then name, then folder: after a power cut the file is whole or does not exist.
        with translate_os_errors(path):
            descriptor = _opened(path)
            try:
                os.fchmod(descriptor, 0o440)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            path.replace(kept)
            fsync_folder(self._rejects_dir)

    def seal(
        self, logs: Sequence[WrittenLog], header: str, earliest_mtime: int, stop: StopToken | None = None
    ) -> list[StagedLog]:
        """Check the logs and sync them to disk, each with an mtime one second after the one before it.

        Raises:
            ConversionDied: a log is not a regular file with a single name, not one gzip member with this header and the
                reported number of lines, or has another size or digest.
            ConversionFailed: ``stop`` was set.
            DataFolderError: the disk failed.
        """
        self._sealed = []
        for index, log in enumerate(logs):
            name = self.name(index)
            mtime = earliest_mtime + index
            path = self.folder / self.file_names.at(index)
            with translate_os_errors(path):
                descriptor = _opened(path)
                try:
                    # By one descriptor: what was checked is what is synced and linked.
                    _check(descriptor, log, header.encode(), stop)
                    os.fchmod(descriptor, LOG_MODE)
                    os.utime(descriptor, (mtime, mtime))
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                self._sealed.append(StagedLog(name, log.size, log.sha256, mtime))
                # This replaces nothing: promised numbers are lower than those written, and the rest move down in order.
                path.rename(self.folder / str(name))
        # The staged names too: after a crash between two links, the rest is linked from staging.
        with translate_os_errors(self.folder):
            fsync_folder(self.folder)
        return self._sealed

    def publish(self) -> list[LogFile]:
        """Link the sealed logs to their final names, in order; from here on the names are taken.

        Raises:
            NameSpent: a file of that name is in the folder; it was not touched.
            DataFolderError: the disk failed.
        """
        pickup = self._pickup_dir
        files = []
        for log in self._sealed:
            # A link, not a rename: it fails if the name exists. The content is on disk since `seal`.
            try:
                os.link(self.folder / str(log.name), pickup / str(log.name), follow_symlinks=False)
            except FileExistsError:
                raise NameSpent(f"{log.name} is already in {pickup}", hint=f"pickup-point trace {log.name}") from None
            except OSError as error:
                raise data_folder_error(error, pickup / str(log.name)) from error
            files.append(LogFile(log.name, log.size, log.mtime))
        # Before the caller records and serves the publication: no client may see a name that a power cut could undo.
        with translate_os_errors(pickup):
            fsync_folder(pickup)
        return files

    def discard(self) -> None:
        """Remove the staged names, unless ``keep`` is set; a published file keeps its final name."""
        index = 0
        while not self.keep and (index < len(self._sealed) or os.path.lexists(self.folder / self.file_names.at(index))):
            discard(self.folder / str(self.name(index)))
            discard(self.folder / self.file_names.at(index))
            index += 1
        discard(self.folder / self.rejects_name)
        self._sealed = []


def link_staged(staging_dir: Path, pickup_dir: Path, log: LedgerLog) -> bool:
    """Give a log that was sealed before a crash the name it was promised; return False if it is not whole in staging.

    The caller syncs the folder.

    Raises:
        DataFolderError: the disk failed.
    """
    path = staging_dir / str(log.name)
    with translate_os_errors(path):
        try:
            descriptor = _opened(path)
        except ConversionDied:  # there is no such file, or it is not ours
            return False
        try:
            if os.fstat(descriptor).st_size != log.size:
                return False
            digest = hashlib.sha256()
            while chunk := os.read(descriptor, _CHUNK):
                digest.update(chunk)
        finally:
            os.close(descriptor)
        if digest.hexdigest() != log.sha256:
            return False
    with translate_os_errors(pickup_dir / str(log.name)):
        try:
            os.link(path, pickup_dir / str(log.name), follow_symlinks=False)
        except FileExistsError:  # somebody else's file took the name
            return False
    return True


def _opened(path: Path) -> int:
    """Open a regular file that has a single name, and return its descriptor."""
    try:
        descriptor = os.open(path, _OPEN)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or path.is_symlink():
            raise refused(f"there is no file {path.name}") from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise refused(f"{path.name} is not a regular file with a single name")
    return descriptor


def _check(descriptor: int, log: WrittenLog, header: bytes, stop: StopToken | None) -> None:
    """Compare a whole log with what the process reported about it, piece by piece."""
    digest, member = hashlib.sha256(), isal_zlib.decompressobj(31)
    size = newlines = 0
    beginning, last = bytearray(), b"\n"
    while chunk := os.read(descriptor, _CHUNK):
        if size == 0 and not chunk.startswith(GZIP_HEADER):
            raise refused("a log does not begin with the gzip header that is written here")
        size += len(chunk)
        digest.update(chunk)
        if member.eof or size > log.size:
            break
        packed = chunk
        while packed or not member.eof:
            if stop is not None and stop.is_set():
                raise ConversionFailed("stopped before the publication", hint="it is repeated in the next round")
            try:
                text = member.decompress(packed, _CHUNK)
            except (zlib.error, IsalError):  # type: ignore[misc]  # isal's stub says instance
                raise refused("a log is not a complete gzip file") from None
            newlines += text.count(b"\n")
            beginning += text[: len(header) - len(beginning)]
            last = text[-1:] or last
            packed = member.unconsumed_tail
            if not packed and len(text) < _CHUNK:
                break
    if size != log.size or digest.hexdigest() != log.sha256:
        raise refused("a log has another size or digest")
    if not member.eof or member.unused_data:
        raise refused("a log is not a single gzip member")
    if beginning != header or last != b"\n" or newlines != header.count(b"\n") + log.lines:
        raise refused("a log has another header or number of lines")
