"""File systems of our own: small ones that can be full, read-only or away.

Touches the mounts of this process and its children, and nobody else's: they live in a mount namespace of their own, and
end with its last process.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEWNS, _NEWUSER = 0x20000, 0x10000000


def own_mounts() -> str:
    """Take this process, which must have no threads yet, into a mount namespace of its own; or why that is not to be.

    Who is not root becomes root in a user namespace of its own, too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEWNS if user == 0 else _NEWNS | _NEWUSER):
        return f"no rights to mount ({os.strerror(ctypes.get_errno())}): run it as root"
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False)
    return f"no rights to mount: {done.stderr.strip()}" if done.returncode else ""


def mount(*words: str | Path) -> None:
    """Run mount.

    Raises:
        OSError: it does not work, in its words.
    """
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


def unmount(folder: Path) -> None:
    """Unmount, at once, whoever still has something open there."""
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[None]:
    """A file system of this many bytes (``4m``) in memory, mounted at a folder; full by the page."""
    folder.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", folder)
    try:
        yield
    finally:
        unmount(folder)


@contextmanager
def ext4(folder: Path, image: Path, size: int) -> Iterator[None]:
    """A file system of this many bytes in a file, mounted at a folder; full by blocks of 1 KiB."""
    folder.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", "-m", "0", str(image)], check=True, capture_output=True)
    mount("-o", "loop", image, folder)
    (folder / "lost+found").rmdir()
    folder.chmod(0o700)
    try:
        yield
    finally:
        unmount(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder whose file system cannot be written: by nobody who opens a file from now on."""
    mount("--bind", folder, folder)
    try:
        mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        unmount(folder)


@contextmanager
def hidden(folder: Path) -> Iterator[None]:
    """A folder whose file system is away: an empty folder is in its place."""
    mount("-t", "tmpfs", "-o", "ro,mode=0700", "tmpfs", folder)
    try:
        yield
    finally:
        unmount(folder)


def free(folder: Path) -> int:
    """The bytes that are free."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def fill(folder: Path, leave: int) -> Path:
    """Fill a file system with one file, except for this many bytes, or as near to it as it lets us."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while (rest := free(folder) - leave) > 0:
            try:
                file.write(bytes(min(rest, 1 << 16)))
            except OSError:
                break
    return ballast
