"""A folder as the source of exports that something else puts there.

Touches that folder, read-only, in threads. The promise is the bucket's: `Folder.fetch` gives the bytes of exactly the
version that was listed, or raises. A file's version is its inode, size and modification time; only regular files, or
links to them, count; a link that root finds leads where the service's user may go, and nowhere else. The folder's clock
is the local one.
"""

from __future__ import annotations

import os
import shlex
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO, ParamSpec, TypeVar

from ..errors import ExportChanged, SourceRefused, SourceUnreachable
from ..rights import without_read_right
from ..threads import in_thread
from .download import WRITE_SIZE, DownloadFile
from .exports import METRICS, DayExport, Listing, calendar_instant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..errors import SourceError
    from .exports import ExportKind

P = ParamSpec("P")
T = TypeVar("T")


class Folder:
    """The exports of one kind in one folder; subfolders are ignored."""

    def __init__(self, path: Path, kind: ExportKind = METRICS) -> None:
        self._path = path
        self._kind = kind
        self.name = str(path)

    async def day_exports(self) -> Listing:
        """Return the exports that are there now.

        Raises:
            SourceRefused: an operator must act before the folder can be read.
            SourceUnreachable: the folder cannot be read now.
        """
        exports = await self._ask(self._path, self._scan)
        return Listing({export.day: export for export in exports}, datetime.now(UTC))

    async def fetch(self, export: DayExport, into: BinaryIO) -> None:
        """Copy exactly the version that was listed.

        Raises:
            ExportChanged: the file has been replaced or removed.
            SourceRefused: an operator must act before it can be read.
            SourceUnreachable: it cannot be read now.
        """
        path = self._path / export.key
        download = await DownloadFile.at(into)
        # Filled in the thread: a cancellation while the file is being opened must not leak the descriptor.
        opened: list[int] = []

        def open_it() -> int:
            # Without O_NONBLOCK, a FIFO in the file's place would block the thread for ever.
            with without_read_right():
                opened.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            return opened[0]

        try:
            whole = await self._copy(await self._ask(path, open_it), path, export, download)
        finally:
            for fd in opened:
                os.close(fd)
        if not whole:
            await download.restart()
            raise ExportChanged(
                f"{path} was rewritten after it was listed",
                hint=f"nothing to do, the next round reads it again: ls -l {shlex.quote(str(path))}",
            )
        await download.finish()

    async def close(self) -> None:
        """Do nothing: no file is kept open between two calls."""

    async def _copy(self, fd: int, path: Path, export: DayExport, download: DownloadFile) -> bool:
        """Copy the file, and return whether it was the listed version before the first byte and after the last."""
        if _version(await self._ask(path, os.fstat, fd)) != export.etag:
            return False
        while download.size <= export.size:
            chunk = await self._ask(path, os.read, fd, 4 * WRITE_SIZE)
            if not chunk:
                break
            await download.write(chunk)
        # Looked at again: a file that was rewritten in place while we read has another time or size by now.
        return download.size == export.size and _version(await self._ask(path, os.fstat, fd)) == export.etag

    async def _ask(self, path: Path, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await in_thread(work, *args, **kwargs)
        except OSError as error:
            raise self._translated(error, path) from error

    def _scan(self) -> list[DayExport]:
        exports = []
        with without_read_right(), os.scandir(self._path) as entries:
            for entry in entries:
                day = self._kind.day_of(entry.name)
                if day is None:
                    continue
                try:
                    status = entry.stat()
                except OSError as error:
                    if not isinstance(error, FileNotFoundError) and not entry.is_symlink():
                        raise
                    # Removed since; or a link to nothing, to itself, or to where this user has no access.
                    continue
                if not stat.S_ISREG(status.st_mode):
                    continue
                try:
                    modified = calendar_instant(datetime.fromtimestamp(status.st_mtime, UTC))
                except (OverflowError, ValueError, OSError):  # a time beyond the calendar
                    continue
                exports.append(DayExport(day, entry.name, _version(status), status.st_size, modified))
        return exports

    def _translated(self, error: OSError, path: Path) -> SourceError:
        quoted = shlex.quote(str(path))
        if isinstance(error, FileNotFoundError):
            if path != self._path:
                return ExportChanged(
                    f"{path} is no longer there", hint=f"nothing to do if it was replaced: ls -l {quoted}"
                )
            return SourceRefused(
                f"the export folder {path} does not exist", hint=f"mkdir -p {quoted}, or correct export.url"
            )
        if isinstance(error, NotADirectoryError):
            return SourceRefused(f"the export folder {path} is not a folder", hint="correct export.url")
        if isinstance(error, PermissionError):
            return SourceRefused(
                f"this user may not read {path}",
                hint=f"grant access: chmod o+rX {quoted}, or setfacl -m u:{os.geteuid()}:rX {quoted}",
            )
        return SourceUnreachable(f"{path} cannot be read ({error.strerror or error})", hint=f"ls -l {quoted}")


def _version(status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
