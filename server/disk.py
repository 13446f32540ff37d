"""The disk's word: an operating system error about a file becomes one sentence and something to type.

Touches the file system only to bring a folder to disk, to lock a file, and to discard one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from typing import TYPE_CHECKING

from .errors import DataFolderError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[Callable[[], bool]]:
    """A lock file; what it yields takes the lock and says whether it was to be had. It ends with the process."""
    with translate_os_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def taken() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise data_folder_error(error, path) from error
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


def discard(path: Path) -> None:
    """Remove a file in staging, also where the disk refuses: what is left, the next round removes, or says why not."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Operating system errors inside become a `DataFolderError` about ``path``."""
    try:
        yield
    except OSError as error:
        raise data_folder_error(error, path) from error


def data_folder_error(error: OSError, path: Path) -> DataFolderError:
    """The operating system's word about the data folder, with what to type."""
    hints = {
        errno.ENOSPC: f"df -h {path.parent}; free some space, the next round goes on by itself",
        errno.EDQUOT: f"quota; df -h {path.parent}",
        errno.EROFS: f"the file system became read-only: dmesg | tail; mount | grep {path.parent}",
        errno.EACCES: f"ls -ld {path.parent}; the service's user must own it",
        errno.EPERM: f"ls -ld {path.parent}; the service's user must own it",
    }
    return DataFolderError(f"{path}: {error.strerror}", hint=hints.get(error.errno or 0, "dmesg | tail; df -h"))


MOST_BYTES = 1 << 20  # of a key file
_PRIVATE_MODE = 0o600


def _places(name: str, keys_dir: Path) -> list[tuple[Path, bool]]:
    """Where a private file may be, in order, and whether its mode is ours to judge."""
    places = [(keys_dir / name, True)]
    if folder := os.environ.get("CREDENTIALS_DIRECTORY"):
        places.insert(0, (type(keys_dir)(folder, name), False))  # systemd sets the modes there
    return places


def exists(name: str, keys_dir: Path) -> bool:
    """Whether a private file is in one of its places."""
    return any(path.exists() or path.is_symlink() for path, _ in _places(name, keys_dir))


def read_private(name: str, keys_dir: Path, problems: list[Problem]) -> bytes | None:
    """A private file's content, or None with the reason added to ``problems``."""
    for path, judged in _places(name, keys_dir):
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                if judged and stat.S_IMODE(mode) & 0o077:
                    problems.append(Problem(str(path), "can be read by others", f"chmod 600 {path}"))
                    return None
                return file.read(MOST_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(Problem(str(path), f"cannot be read: {error.strerror}", f"ls -l {path}"))
            return None
    cure = "make what is missing: pickup-point keygen"
    problems.append(Problem(str(keys_dir / name), "there is no such file", cure))
    return None


def write_new(path: Path, data: bytes) -> bool:
    """Write a private file whole or not at all; False when another process made it first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)  # a link refuses a name that is there, a rename would replace it
        except FileExistsError:
            return False
    finally:
        temporary.unlink()
    fsync_folder(path.parent)
    return True
