"""The file system: syncing, locking, private files, and its errors as one sentence with something to type.

Touches the files and folders that it is given. Promise: a private file that others can read is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import stat
from typing import TYPE_CHECKING

from .errors import DataFolderError, Problem
from .paths import MOST_BYTES, open_to_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that tries to take a lock, and returns whether it did.

    The kernel releases the lock when the process ends, however it ends.

    Raises:
        DataFolderError: the file cannot be opened or locked.
    """
    with translate_os_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def try_lock() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise data_folder_error(error, path) from error
        return True

    try:
        yield try_lock
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Sync a folder's names to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file in staging; if that fails, the next round removes it, or reports why it cannot."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn operating system errors into a `DataFolderError` about ``path``."""
    try:
        yield
    except OSError as error:
        raise data_folder_error(error, path) from error


def list_command(folder: Path) -> str:
    """Return the command that shows who owns a data folder and the files in it; under systemd the folder is a link."""
    return f"ls -la {shlex.quote(f'{folder}/')}"


def data_folder_error(error: OSError, path: Path) -> DataFolderError:
    """Return an operating system error about the data folder as ours, with something to type."""
    folder, owner = shlex.quote(str(path.parent)), f"{list_command(path.parent)}; the service's user must own it"
    hints = {
        errno.ENOSPC: f"df -h {folder}; free some space, and the next round carries on by itself",
        errno.EDQUOT: f"quota; df -h {folder}; raise the quota, or free some space",
        errno.EROFS: f"dmesg | tail; findmnt -T {folder}; the file system is read-only",
        errno.EACCES: owner,
        errno.EPERM: owner,
    }
    return DataFolderError(f"{path}: {error.strerror}", hint=hints.get(error.errno or 0, "dmesg | tail; df -h"))


def _candidates(name: str, keys_dir: Path) -> list[tuple[Path, bool]]:
    """Return the paths where a private file may be, in order, each with whether its mode is ours to judge."""
    paths = [(keys_dir / name, True)]
    if folder := os.environ.get("CREDENTIALS_DIRECTORY"):
        # What LoadCredential hands over comes first; systemd sets the modes there.
        paths.insert(0, (type(keys_dir)(folder, name), False))
    return paths


def exists(name: str, keys_dir: Path) -> bool:
    """Return whether a private file exists, even as a dangling link."""
    return any(os.path.lexists(path) for path, _ in _candidates(name, keys_dir))


def read_private(name: str, keys_dir: Path, problems: list[Problem]) -> bytes | None:
    """Return a private file's content, or None with the reason added to ``problems``."""
    for path, judged in _candidates(name, keys_dir):
        try:
            with open_to_read(path) as file:
                # Of the opened file: what the path names may change between two looks.
                mode = os.fstat(file.fileno()).st_mode
                if judged and stat.S_IMODE(mode) & 0o077:
                    problems.append(Problem(str(path), "can be read by others", f"chmod 600 {shlex.quote(str(path))}"))
                    return None
                return file.read(MOST_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(Problem(str(path), f"cannot be read: {error.strerror}", f"ls -l {shlex.quote(str(path))}"))
            return None
    cure = "make the missing keys: pickup-point keygen"
    problems.append(Problem(str(keys_dir / name), "no such file", cure))
    return None


def connection_failure(error: OSError) -> str:
    """Return why there was no connection, without the address that asyncio's own words name."""
    if error.errno is None:  # several addresses, each with its own failure
        return "none of its addresses can be connected to"
    return os.strerror(error.errno) if error.errno > 0 else error.strerror or "its name cannot be looked up"
