"""A folder as the source of exports that something else puts there.

Touches that folder, read-only, in threads. The promise is the bucket's: `Folder.fetch` returns the bytes of exactly the
version that was listed, or raises. Only regular files, and links to them, count; even for root, a link leads only where
the service's user may go. The folder's clock is the local one.

A file's version is its size and a hash of its first and last `EDGE` bytes: a gzip file ends with the checksum of all of
it. While size and modification time (in nanoseconds) stay the same, the edges are not read again. Inodes say nothing:
mounts (FUSE, rclone) give old files new ones, and some new modification times, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO, ParamSpec, TypeVar

import structlog

from ..errors import ExportChanged, SourceRefused, SourceUnreachable
from ..rights import without_read_right
from ..threads import in_thread
from .download import WRITE_SIZE, DownloadFile
from .exports import METRICS, DayExport, Listing, Others, calendar_instant

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date
    from pathlib import Path

    from ..errors import SourceError
    from .exports import ExportKind

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

EDGE = 1 << 16  # bytes at either end of a file that tell its versions apart
_MOST_FOLDERS = 20  # subfolders that are searched if the folder itself has no exports
_UNREAD = "unread"  # the version of a file that cannot be read
# Without O_NONBLOCK, a FIFO in the file's place would block the thread for ever.
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Folder:
    """The exports of one kind in one folder; subfolders are ignored."""

    def __init__(self, path: Path, kind: ExportKind = METRICS) -> None:
        self._path = path
        self._kind = kind
        self.name = str(path)
        self._known: dict[str, tuple[int, int, str]] = {}  # by name: size, mtime in nanoseconds, version
        self._odd: set[str] = set()  # names of an export that are something else

    async def day_exports(self) -> Listing:
        """Return the exports that are there now.

        Raises:
            SourceRefused: an operator must act before the folder can be read.
            SourceUnreachable: the folder cannot be read now.
        """
        exports, markers, others = await self._ask(self._path, self._scan)
        by_day = {export.day: export for export in exports}
        return Listing(by_day, datetime.now(UTC), own_clock=False, others=others, markers=markers)

    async def fetch(self, export: DayExport, into: BinaryIO) -> None:
        """Copy exactly the version that was listed into ``into``, from its current position.

        Raises:
            ExportChanged: the file has been replaced or removed.
            SourceRefused: an operator must act before it can be read.
            SourceUnreachable: it cannot be read now.
        """
        path = self._path / export.key
        download = await DownloadFile.at(into)
        # Filled by the thread, so that a cancellation while the file is being opened does not leak the descriptor.
        opened: list[int] = []

        def open_it() -> int:
            with without_read_right():
                opened.append(os.open(path, _OPEN))
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
        before = await self._ask(path, os.fstat, fd)
        if await self._ask(path, _version, fd) != export.etag:
            return False
        while download.size <= export.size:
            chunk = await self._ask(path, os.read, fd, 4 * WRITE_SIZE)
            if not chunk:
                break
            await download.write(chunk)
        # Looked at again: a file that was rewritten in place while it was read has another time or size by now.
        after = await self._ask(path, os.fstat, fd)
        unchanged = (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        return unchanged and download.size == export.size

    async def _ask(self, path: Path, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await in_thread(work, *args, **kwargs)
        except OSError as error:
            raise self._translated(error, path) from error

    def _scan(self) -> tuple[list[DayExport], dict[date, datetime], Others]:
        exports, known, folders, others = [], {}, [], Others(self._kind.file_name)
        markers: dict[date, datetime] = {}
        odd: dict[str, str] = {}
        with without_read_right(), os.scandir(self._path) as entries:
            for entry in entries:
                day, marked = self._kind.day_of(entry.name), self._kind.marked_day(entry.name)
                if day is None:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                        continue
                    others = others.and_one(entry.name)
                    if marked is None:
                        continue
                try:
                    status = entry.stat()
                except OSError as error:
                    if not isinstance(error, FileNotFoundError) and not entry.is_symlink():
                        raise
                    # Removed since; or a link to nothing, to itself, or to where this user has no access.
                    if entry.is_symlink():
                        odd[entry.name] = "a link that leads to no file this user can reach"
                    continue
                if not stat.S_ISREG(status.st_mode):
                    odd[entry.name] = "not a regular file"
                    continue
                try:
                    modified = calendar_instant(datetime.fromtimestamp(status.st_mtime, UTC))
                except (OverflowError, ValueError, OSError):
                    odd[entry.name] = "dated beyond the calendar"
                    continue
                if marked is not None:
                    markers[marked] = max(modified, markers.get(marked, modified))
                    continue
                assert day is not None  # noqa: S101  # neither one was skipped above
                version = self._version_of(entry, status)
                known[entry.name] = status.st_size, status.st_mtime_ns, version
                exports.append(DayExport(day, entry.name, version, status.st_size, modified))
        for name in odd.keys() - self._odd:
            log.warning(
                f"feed passed over {name}", why=f"it is {odd[name]}", hint=f"ls -l {shlex.quote(str(self._path))}"
            )
        self._known, self._odd = known, set(odd)
        if not exports:
            with without_read_right():
                others = others._replace(elsewhere=self._elsewhere(sorted(folders)[:_MOST_FOLDERS]))
        return exports, markers, others

    def _elsewhere(self, folders: list[str]) -> str:
        """Return the path of the first of these subfolders that holds an export, or ''."""
        for name in folders:
            with contextlib.suppress(OSError), os.scandir(self._path / name) as entries:
                if name.isprintable() and any(self._kind.day_of(entry.name) for entry in entries):
                    return str(self._path / name)
        return ""

    def _version_of(self, entry: os.DirEntry[str], status: os.stat_result) -> str:
        """Return a file's version; read the file only if its size or modification time is new."""
        size, modified, version = self._known.get(entry.name, (-1, 0, ""))
        if (size, modified) == (status.st_size, status.st_mtime_ns) and version != _UNREAD:
            return version
        try:
            fd = os.open(entry.path, _OPEN)
            try:
                return _version(fd)
            finally:
                os.close(fd)
        except OSError:  # this day's fetch will say why; the other days are listed all the same
            return _UNREAD

    def _translated(self, error: OSError, path: Path) -> SourceError:
        quoted = shlex.quote(str(path))
        if isinstance(error, FileNotFoundError):
            if path != self._path:
                return ExportChanged(
                    f"{path} is no longer there", hint=f"nothing to do if it was replaced: ls -l {quoted}"
                )
            return SourceRefused(
                f"the export folder {path} does not exist", hint=f"correct export.url, or: mkdir -p {quoted}"
            )
        if isinstance(error, NotADirectoryError):
            return SourceRefused(f"the export folder {path} is not a folder", hint="correct export.url")
        if isinstance(error, PermissionError):
            return SourceRefused(
                f"this user may not read {path}",
                hint=f"grant access: chmod o+rX {quoted}; or setfacl -m u:{os.geteuid()}:rX {quoted}",
            )
        return SourceUnreachable(f"{path} cannot be read ({error.strerror or error})", hint=f"ls -l {quoted}")


def _version(fd: int) -> str:
    """Return the version of an open file."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    edges = hashlib.sha256(os.pread(fd, EDGE, 0))
    edges.update(os.pread(fd, EDGE, max(EDGE, status.st_size - EDGE)))  # no byte twice
    return f"{status.st_size:x}-{edges.hexdigest()[:32]}"
