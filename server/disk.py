"""The disk's word: an operating system error about a file becomes one sentence and something to type.

Touches the file system only to bring a folder to disk, to lock a file, and to discard one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from .errors import DataFolderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[Callable[[], bool]]:
    """A lock file; what it yields takes the lock and says whether it was to be had. It ends with the process."""
    with told(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def taken() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise translated(error, path) from error
        return True

    try:
        yield taken
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Bring a folder's names to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discarded(path: Path) -> None:
    """Remove a file in staging, also where the disk refuses: what is left, the next round removes, or says why not."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Operating system errors inside become a `DataFolderError` about ``path``."""
    try:
        yield
    except OSError as error:
        raise translated(error, path) from error


def translated(error: OSError, path: Path) -> DataFolderError:
    """The operating system's word about the data folder, with what to type."""
    hints = {
        errno.ENOSPC: f"df -h {path.parent}; free some space, the next round goes on by itself",
        errno.EDQUOT: f"quota; df -h {path.parent}",
        errno.EROFS: f"the file system became read-only: dmesg | tail; mount | grep {path.parent}",
        errno.EACCES: f"ls -ld {path.parent}; the service's user must own it",
        errno.EPERM: f"ls -ld {path.parent}; the service's user must own it",
    }
    return DataFolderError(f"{path}: {error.strerror}", hint=hints.get(error.errno or 0, "dmesg | tail; df -h"))
