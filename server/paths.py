"""Paths that an operator named: read and written so that no link leads root astray.

Touches the files and folders that it is given. The promises: root follows a link on the way only if root made it, since
whoever else may write to a folder on the way could point it at any file, and so does a command that has put root aside
but can still read everything (`rights`); what is written is new, restricted from the first moment to those whom its
mode admits, and appears whole; if root writes it, it belongs to the owner of its folder. What is not a regular file is
neither read nor replaced: a device, a FIFO and descriptors of ours, such as standard output, are written into.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import shlex
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .rights import has_read_right

if TYPE_CHECKING:
    from collections.abc import Iterator

STANDARD_OUTPUT = Path("-")
SEARCHED = (Path("config.toml"), Path("/etc/pickup-point/config.toml"))  # for the configuration, in this order
MOST_BYTES = 1 << 20  # of a file that is read whole
_MOST_LINKS = 40  # as the kernel allows, path_resolution(7)
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READABLE_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def place_of(path: Path, *, follow: bool = True) -> Iterator[tuple[int, str]]:
    """Yield an open folder, and the name in it that a path stands for; nothing need exist under that name.

    Links on the way are resolved here and not by the kernel, which does not look at their owners. With ``follow`` the
    last name is resolved as well, except in /proc, whose links lead to open files.

    Raises:
        OSError: the path cannot be walked.
    """
    waiting = list(reversed(path.absolute().parts[1:]))
    folder, name, links = os.open("/", _FOLDER), ".", 0
    try:
        while waiting:
            name = waiting.pop()
            try:
                found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            except FileNotFoundError:
                if waiting:
                    raise
                break
            status = os.fstat(found)
            if stat.S_ISLNK(status.st_mode):
                try:
                    if not waiting and (not follow or _is_of_proc(status)):
                        break
                    links += 1
                    target = _target(found, status, path, links)
                finally:
                    os.close(found)
                if target.is_absolute():
                    os.close(folder)
                    folder = os.open("/", _FOLDER)
                waiting += reversed(target.parts[1:] if target.is_absolute() else target.parts)
                name = "."
            elif waiting:
                os.close(folder)
                folder = found
            else:
                os.close(found)
        yield folder, name
    except OSError as error:
        if isinstance(error.filename, str) and "/" not in error.filename:
            error.filename = str(path)  # a bare name, relative to an open folder, does not show which file is meant
        raise
    finally:
        os.close(folder)


def _is_of_proc(status: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return status.st_dev == Path("/proc").stat().st_dev
    return False


def _open_found(folder: int, name: str, flags: int) -> int:
    """Open what `place_of` found, not a link that was put in its place since; only those in /proc are followed."""
    flags |= os.O_NOCTTY | os.O_CLOEXEC | (0 if _is_of_proc(os.fstat(folder)) else os.O_NOFOLLOW)
    return os.open(name, flags, dir_fd=folder)


def _status_found(folder: int, name: str) -> os.stat_result:
    """Return the status of what `place_of` found; of a link that came since, its own, as in `_open_found`."""
    return os.stat(name, dir_fd=folder, follow_symlinks=_is_of_proc(os.fstat(folder)))


def _target(link: int, status: os.stat_result, path: Path, links: int) -> Path:
    """Return where a link leads, if it may be followed."""
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if status.st_uid != 0 and (os.geteuid() == 0 or has_read_right()):
        why = f"root does not follow the link of user {status.st_uid} on the way"
        raise PermissionError(errno.EACCES, why, str(path))
    return Path(os.readlink("", dir_fd=link))


def file_problem(path: Path) -> tuple[str, str] | None:
    """Return (why a path is not a regular file, what to type about it), or None; never raise."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file", ""
    except OSError as error:
        return f"it cannot be looked at ({error.strerror})", f"namei -l {shlex.quote(str(path))}"
    return None if stat.S_ISREG(mode) else ("it is not a regular file", f"ls -ld {shlex.quote(str(path))}")


def open_to_read(path: Path) -> io.FileIO:
    """Open a regular file, without a buffer.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    with place_of(path) as (folder, name):
        # O_NONBLOCK: a FIFO in the file's place would keep us waiting for ever.
        descriptor = _open_found(folder, name, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        why = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "it is not a regular file"
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, why, str(path))
    return io.FileIO(descriptor, "rb")


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes; a larger one is refused, not truncated.

    Raises:
        OSError: it cannot be read, is not a regular file, or is too large.
    """
    with open_to_read(path) as file:
        data = b""
        while len(data) <= most and (more := file.read(most + 1 - len(data))):
            data += more
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 10} KiB", str(path))
    return data


def status_of(path: Path) -> os.stat_result:
    """Return the status of what a path stands for, as `Path.stat` does.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: the path cannot be walked.
    """
    with place_of(path) as (folder, name):
        return _status_found(folder, name)


def create(folder: int, name: str, mode: int) -> int:
    """Create a file in an open folder, and return its descriptor; if root makes it, it belongs to the folder's owner.

    Raises:
        FileExistsError: the name is taken, even if by a dangling link.
        OSError: it cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, mode, dir_fd=folder)
    try:
        _give(descriptor, folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _give(descriptor: int, folder: int) -> None:
    """Give what root has made to the owner of its folder, who could not use a file of root's."""
    if os.geteuid() == 0:
        owner = os.fstat(folder)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def is_standard_output(path: Path) -> bool:
    """Return whether a path is ``-``, or leads to this process's standard output, as ``/dev/stdout`` does."""
    return _own_descriptor(path) == 1


def _own_descriptor(path: Path) -> int | None:
    """Return which of this process's descriptors a path stands for: ``-``, ``/dev/stdout``, ``/dev/fd/3``; or None."""
    if path == STANDARD_OUTPUT:
        return 1
    with contextlib.suppress(OSError), place_of(path) as (folder, name):
        if name.isdecimal() and os.path.samestat(Path("/proc/self/fd").stat(), os.fstat(folder)):
            return int(name)
    return None


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, each private to the owner of the one above it; leave existing ones alone.

    Raises:
        OSError: it cannot be made, or is something else.
    """
    whole = path.absolute()
    for each in (*reversed(whole.parents), whole):
        with place_of(each) as (folder, name):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=folder)
                made = os.open(name, _READABLE_FOLDER, dir_fd=folder)
                try:
                    _give(made, folder)
                finally:
                    os.close(made)
            os.close(os.open(name, _FOLDER, dir_fd=folder))


class Destination:
    """Where an operator wants a file: it is made whole in a private ``folder`` (a descriptor), and then delivered.

    ``place`` is an open folder and a name in it, or one of this process's own descriptors. If ``replaces``, a regular
    file is created or replaced there; else the bytes are written into what is there.
    """

    def __init__(self, path: Path, folder: int, *, replaces: bool, place: tuple[int, str] | int) -> None:
        self.path = path
        self.folder = folder
        self.replaces = replaces
        self._place = place

    def deliver(self, part: str | None) -> None:
        """Put the file ``part`` of the private folder in its place; with None, write nothing into what is there.

        Raises:
            OSError: it cannot be written.
        """
        if self.replaces:
            if part is not None:
                self._rename(part)
            return
        with contextlib.ExitStack() as stack:
            if isinstance(self._place, int):
                into = self._place
            else:
                into = _open_found(*self._place, os.O_WRONLY)
                stack.callback(os.close, into)
                # Again: another thing may lie there by now.
                _check_written_into(os.fstat(into), self.path)
            if part is not None:
                descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder)
                with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
                    while chunk := memoryview(file.read(1 << 20)):
                        while chunk:
                            chunk = chunk[os.write(into, chunk) :]

    def _rename(self, part: str) -> None:
        assert not isinstance(self._place, int)  # noqa: S101  # a descriptor is never replaced
        folder, name = self._place
        descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder)
        try:
            # A file that was closed to others stays so when it is replaced.
            with contextlib.suppress(FileNotFoundError):
                before = os.stat(name, dir_fd=folder, follow_symlinks=False)
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) & before.st_mode)
            _give(descriptor, folder)
        finally:
            os.close(descriptor)
        os.rename(part, name, src_dir_fd=self.folder, dst_dir_fd=folder)


@contextlib.contextmanager
def destination(path: Path) -> Iterator[Destination]:
    """Open the place that ``path`` names (``-`` is standard output), and a private folder to make the file in.

    Raises:
        OSError: nothing can be written there; ``strerror`` says why.
    """
    with contextlib.ExitStack() as stack:
        if (own := _own_descriptor(path)) is not None:
            _check_own(own, path)
            yield Destination(path, stack.enter_context(_private_folder(None)), replaces=False, place=own)
            return
        folder, name = place = stack.enter_context(place_of(path))
        status = None
        with contextlib.suppress(FileNotFoundError):
            status = _status_found(folder, name)
        replaces = status is None or stat.S_ISREG(status.st_mode)
        if status is not None and not replaces:
            _check_written_into(status, path)
        private = stack.enter_context(_private_folder(place if replaces else None))
        yield Destination(path, private, replaces=replaces, place=place)


def _check_own(descriptor: int, path: Path) -> None:
    """Refuse a descriptor that is a terminal, or that nothing can be written to."""
    if os.isatty(descriptor):
        where = "standard output" if descriptor == 1 else str(path)
        raise OSError(errno.EINVAL, "it is binary, and is not written to a terminal", where)
    try:
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        writable = False
    if not writable:
        raise OSError(errno.EBADF, "it is not open for writing", str(path))


def _check_written_into(status: os.stat_result, path: Path) -> None:
    """Refuse what is neither a character device nor a FIFO, and for root, another user's FIFO."""
    why = ""
    if stat.S_ISDIR(status.st_mode):
        why = os.strerror(errno.EISDIR)
    elif not stat.S_ISCHR(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
        why = "it is neither a file nor anything to write into"
    elif os.geteuid() == 0 and stat.S_ISFIFO(status.st_mode) and status.st_uid != 0:
        why = f"it is a FIFO of user {status.st_uid}, and root does not write into it"
    if why:
        raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, why, str(path))


@contextlib.contextmanager
def _private_folder(beside: tuple[int, str] | None) -> Iterator[int]:
    """Yield a new private folder, beside a name or where temporary files go; remove it and its content at the end."""
    if beside is None:
        import tempfile  # only here: a plain convert to a file need not wait for it

        with tempfile.TemporaryDirectory(prefix="pickup-point-") as made:
            descriptor = os.open(made, _READABLE_FOLDER)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        return
    folder, name = beside
    own = f".{name[:200]}.{os.urandom(4).hex()}"
    os.mkdir(own, 0o700, dir_fd=folder)
    descriptor = os.open(own, _READABLE_FOLDER, dir_fd=folder)
    try:
        # The owner of the folder above may replace ours, but not by one that we own.
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(errno.EACCES, "somebody else writes to the folder", name)
        yield descriptor
    finally:
        for part in os.listdir(descriptor):  # noqa: PTH208  # a descriptor
            with contextlib.suppress(OSError):
                os.unlink(part, dir_fd=descriptor)
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.rmdir(own, dir_fd=folder)


@contextlib.contextmanager
def written_whole(path: Path, mode: int) -> Iterator[BinaryIO]:
    """Yield a file to fill, which then replaces the one that is there.

    Raises:
        OSError: it cannot be written.
    """
    with destination(path) as wanted:
        descriptor = create(wanted.folder, "part", mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor
            yield file
        wanted.deliver("part")


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Write a file whole, replacing the one that is there.

    Raises:
        OSError: it cannot be written.
    """
    with written_whole(path, mode) as file:
        file.write(data)


def write_new(path: Path, data: bytes, mode: int = 0o600) -> bool:
    """Write a file whole or not at all, and sync it to disk; return False if the name is taken.

    Raises:
        OSError: it cannot be written.
    """
    with place_of(path, follow=False) as (folder, name):
        temporary = f".{name}.{os.urandom(4).hex()}"
        descriptor = create(folder, temporary, mode)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor
                os.fchmod(descriptor, mode)  # regardless of the umask
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            try:
                # A link refuses a name that exists; a rename would replace it.
                os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                return False
        finally:
            os.unlink(temporary, dir_fd=folder)
        # After the temporary name is gone: one sync covers both changes.
        synced = os.open(".", _READABLE_FOLDER, dir_fd=folder)
        try:
            os.fsync(synced)
        finally:
            os.close(synced)
    return True
