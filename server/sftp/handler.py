"""The requests of one SFTP session, answered: a read-only view of the published files.

Touches the served files only through the two functions it is given, and reads the descriptors they return. Promise:
a path from a client is looked up as a name and never joined to a path on disk; no request changes anything; a listing
is a snapshot; an open file stays readable after it was pruned; a reply carries at most 255 KiB of data; the event loop
never waits for a disk. Bytes of a request beyond its fields are ignored, as OpenSSH's server does.

This implements the protocol itself instead of subclassing ``asyncssh.SFTPServer``: a subclass of something that can
write must refuse what it inherits, verb by verb and again with every release; what does not exist needs no refusal. The
requests of a session are answered strictly in turn, so a client that reads no replies holds one batch in memory.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..pickups import PickupProgress
from . import protocol as packets
from .protocol import Fields, Kind, Malformed, Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import Executor
    from typing import Literal

    from ..pickups import Pickup
    from ..triton import LogFile
    from .delivery import Delivery

NAMES_AT_ONCE = 100  # in one reply to READDIR
LONGEST_NAME = 255  # bytes (Linux's NAME_MAX)
READ_AHEAD = 8 << 20  # bytes asked of the kernel when a read had to wait for the disk


@dataclass(frozen=True, slots=True)
class ServedFiles:
    """The served files: what is published now, and how to open one of them (this blocks, and returns a descriptor)."""

    list_files: Callable[[], Mapping[str, LogFile]]
    open_file: Callable[[LogFile], int]


@dataclass(frozen=True, slots=True)
class Client:
    """A session's user, address and client software, for the records."""

    user: str
    address: str
    client: str


@dataclass(slots=True)
class Events:
    """Where a session reports pickups, refusals (verb, log's name or "") and failures (log's name, error)."""

    pickup: Callable[[Pickup], None]
    refused: Callable[[str, str], None]
    failed: Callable[[str, OSError], None]


@dataclass(slots=True)
class _OpenFile:
    descriptor: int
    size: int
    progress: PickupProgress
    cached_reads: bool = True  # False if the file system has no RWF_NOWAIT (tmpfs)


@dataclass(slots=True)
class _Listing:
    entries: list[LogFile]
    position: int = 0


Reply = bytes | bytearray

# Requests that would change something, and their verbs: refused with "permission denied", and the session goes on.
MUTATING = {
    Kind.WRITE: "write",
    Kind.SETSTAT: "setstat",
    Kind.FSETSTAT: "setstat",
    Kind.REMOVE: "remove",
    Kind.MKDIR: "mkdir",
    Kind.RMDIR: "rmdir",
    Kind.RENAME: "rename",
    Kind.SYMLINK: "symlink",
    Kind.READLINK: "readlink",
}
_MUTATING_EXTENSIONS = {
    b"posix-rename@openssh.com": "rename",
    b"hardlink@openssh.com": "link",
    b"copy-data": "write",
    b"lsetstat@openssh.com": "setstat",
}


@dataclass(slots=True)
class RequestHandler:
    """Answers the requests of one session; its state is the open handles."""

    files: ServedFiles
    client: Client
    events: Events
    delivery: Delivery
    max_handles: int
    threads: Executor
    may_open: Callable[[], bool] = lambda: True
    turn: Callable[[], float] = lambda: 0.0  # seconds until one more file may be opened
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _greeted: bool = False
    _abandoned: bool = False
    _handles: dict[bytes, _OpenFile | _Listing] = field(default_factory=dict)
    _next_handle: int = 0
    _reported_verbs: set[str] = field(default_factory=set)

    @property
    def busy(self) -> bool:
        """Whether a file is open, or was closed with bytes still on the way."""
        return self.delivery.pending or any(isinstance(handle, _OpenFile) for handle in self._handles.values())

    def answer(self, request: bytes) -> Reply | Awaitable[Reply] | None:
        """Answer one packet (without its length), at once or, if it must wait for a disk, with an awaitable.

        Return None to end the session: this is not a packet, or the first one is not INIT.
        """
        if len(request) < 5:
            return None
        if self._greeted and (read := packets.read_fields(request)):
            return self._read(*read)
        kind, number = request[0], int.from_bytes(request[1:5], "big")
        if not self._greeted:
            self._greeted = kind == Kind.INIT
            return packets.version_reply() if self._greeted else None
        try:
            return self._answer(kind, number, Fields(request, 5))
        except Malformed:
            return packets.status_reply(number, Status.BAD_MESSAGE)

    def _answer(self, kind: int, number: int, fields: Fields) -> Reply | Awaitable[Reply]:
        if kind == Kind.READ:
            return self._read(number, fields.string(), fields.u64(), fields.u32())
        if kind == Kind.OPEN:
            return self._open(number, fields)
        if kind == Kind.CLOSE:
            return self._close(number, fields)
        if kind in (Kind.STAT, Kind.LSTAT):
            return self._stat(number, fields)
        if kind == Kind.FSTAT:
            return self._fstat(number, fields)
        if kind == Kind.OPENDIR:
            return self._opendir(number, fields)
        if kind == Kind.READDIR:
            return self._readdir(number, fields)
        if kind == Kind.REALPATH:
            return self._realpath(number, fields)
        if kind == Kind.EXTENDED:
            return self._extended(number, fields)
        if kind in MUTATING:
            self._report_request(MUTATING[Kind(kind)], fields)
            return packets.status_reply(number, Status.PERMISSION_DENIED)
        return packets.status_reply(number, Status.OP_UNSUPPORTED)

    # -- names --

    def _lookup(self, path: bytes) -> LogFile | Literal[True] | None:
        """Return the file that a path names, True for the one directory, or None if it names nothing."""
        name = _name_in_folder(path)
        if not name:
            return None if name is None else True
        try:
            # Never joined to a path on disk: the name is a key into the served files, and nothing else exists.
            return self.files.list_files().get(name.decode("ascii"))
        except UnicodeDecodeError:
            return None

    def _stat(self, number: int, fields: Fields) -> Reply:
        path = fields.string()
        found = self._lookup(path)
        if found is True:
            return packets.attrs_reply(number, self._folder_attrs())
        if not found:
            return packets.status_reply(number, Status.NO_SUCH_FILE)
        return packets.attrs_reply(number, packets.file_attrs(found))

    def _folder_attrs(self) -> bytes:
        return packets.folder_attrs(max((file.mtime for file in self.files.list_files().values()), default=0))

    def _realpath(self, number: int, fields: Fields) -> Reply:
        parts = fields.string().split(b"/")
        name = b""
        # Like OpenSSH's server: every name but the last must exist, whatever it is.
        for left, part in enumerate(parts, 1 - len(parts)):
            if part == b"..":
                name = b""
            elif part not in (b"", b"."):
                known = not name and (self._lookup(part) is not None or not left)
                if not known or b"\0" in part or len(part) > LONGEST_NAME:
                    return packets.status_reply(number, Status.NO_SUCH_FILE)
                name = part
        canonical = b"/" + name
        return packets.names_reply(number, [(canonical, canonical, bytes(4))])

    def _opendir(self, number: int, fields: Fields) -> Reply:
        path = fields.string()
        if self._lookup(path) is not True:
            return packets.status_reply(number, Status.NO_SUCH_FILE)
        if not self._has_room():
            return packets.status_reply(number, Status.FAILURE, "Too many open handles")
        snapshot = sorted(self.files.list_files().values(), key=lambda file: str(file.name))
        return packets.handle_reply(number, self._new_handle(_Listing(snapshot)))

    def _readdir(self, number: int, fields: Fields) -> Reply:
        listing = self._handles.get(fields.string())
        if not isinstance(listing, _Listing):
            return packets.status_reply(number, Status.FAILURE, "Invalid handle")
        part = listing.entries[listing.position : listing.position + NAMES_AT_ONCE]
        if not part:
            return packets.status_reply(number, Status.EOF)
        listing.position += len(part)
        now = self.clock()
        return packets.names_reply(
            number,
            [(str(file.name).encode(), packets.longname(file, now), packets.file_attrs(file)) for file in part],
        )

    # -- handles --

    def _has_room(self) -> bool:
        if len(self._handles) < self.max_handles:
            return True
        self._report_verb("handles", "")
        return False

    def _new_handle(self, what: _OpenFile | _Listing) -> bytes:
        handle = self._next_handle.to_bytes(packets.HANDLE_SIZE, "big")
        self._next_handle = (self._next_handle + 1) & 0xFFFFFFFF
        self._handles[handle] = what
        return handle

    def _open(self, number: int, fields: Fields) -> Reply | Awaitable[Reply]:
        path = fields.string()
        flags = fields.u32()
        fields.skip_attrs()
        found = self._lookup(path)
        # Before the name is judged: whoever uploads a new file must be told "read-only", not "no such file".
        if flags != packets.OPEN_READ:
            self._report_verb("write", str(found.name) if found and found is not True else "")
            return packets.status_reply(number, Status.PERMISSION_DENIED)
        if not found:
            return packets.status_reply(number, Status.NO_SUCH_FILE)
        if found is True:
            return packets.status_reply(number, Status.FAILURE, "Is a directory")
        if not self.may_open():
            return packets.status_reply(number, Status.FAILURE, "Try again later")
        if not self._has_room():
            return packets.status_reply(number, Status.FAILURE, "Too many open handles")
        return self._opened(number, found)

    async def _opened(self, number: int, file: LogFile) -> Reply:
        await asyncio.sleep(self.turn())
        try:
            opening = asyncio.get_running_loop().run_in_executor(self.threads, self.files.open_file, file)
            descriptor = await opening
        except OSError as error:
            # Pruned files are not listed any more: one that is listed and gone has been lost.
            self.events.failed(str(file.name), error)
            gone = isinstance(error, FileNotFoundError)
            return packets.status_reply(number, Status.NO_SUCH_FILE if gone else Status.FAILURE)
        # The session may have ended while a thread opened the file; nothing else would close the descriptor.
        if self._abandoned:
            os.close(descriptor)
            return b""
        client = self.client
        progress = PickupProgress(
            file.name, file.size, client.user, client.address, client.client, started=self.clock()
        )
        handle = self._new_handle(_OpenFile(descriptor, file.size, progress))
        self.events.pickup(progress.opened())
        return packets.handle_reply(number, handle)

    def _fstat(self, number: int, fields: Fields) -> Reply:
        handle = self._handles.get(fields.string())
        if isinstance(handle, _OpenFile):
            file = self.files.list_files().get(str(handle.progress.name))
            if file is not None:
                return packets.attrs_reply(number, packets.file_attrs(file))
            # Pruned meanwhile: the open file still has its attributes.
            return packets.attrs_reply(number, packets.open_attrs(os.fstat(handle.descriptor)))
        if isinstance(handle, _Listing):
            return packets.attrs_reply(number, self._folder_attrs())
        return packets.status_reply(number, Status.FAILURE, "Invalid handle")

    def _close(self, number: int, fields: Fields) -> Reply:
        key = fields.string()
        handle = self._handles.pop(key, None)
        if handle is None:
            return packets.status_reply(number, Status.FAILURE, "Invalid handle")
        if isinstance(handle, _OpenFile):
            os.close(handle.descriptor)
            # The pickup is not finished: the client may close a handle with its last bytes still on the way.
            self.delivery.closed(handle.progress)
        return packets.status_reply(number, Status.OK)

    def abandon(self) -> None:
        """Close what is open when the session ends; pickups not closed, or with bytes on the way, are interrupted."""
        self._abandoned = True
        open_files = [handle for handle in self._handles.values() if isinstance(handle, _OpenFile)]
        self._handles.clear()
        for handle in open_files:
            os.close(handle.descriptor)
        self.delivery.abandon(handle.progress for handle in open_files)

    # -- reading --

    def _read(self, number: int, name: bytes, offset: int, length: int) -> Reply | Awaitable[Reply]:
        handle = self._handles.get(name)
        if not isinstance(handle, _OpenFile):
            return packets.status_reply(number, Status.FAILURE, "Invalid handle")
        if not length:
            # Like OpenSSH's server: not the end of the file, which a client would believe, although nothing was read.
            return bytes(packets.data_buffer(number, 0))
        if handle.progress.first_read is None:
            # Also if the answer is EOF: a client that resumes at the end of the file shows that it has all of it.
            self.delivery.begins(handle.progress, offset)
        count = min(length, packets.MAX_READ, handle.size - offset)
        if count <= 0:
            return packets.status_reply(number, Status.EOF)
        buffer = packets.data_buffer(number, count)
        got = 0
        if handle.cached_reads:
            try:
                # From the page cache or not at all: waiting for a disk here would hold up everybody.
                with memoryview(buffer) as whole:
                    got = os.preadv(handle.descriptor, [whole[packets.DATA_HEADER_SIZE :]], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError:
                handle.cached_reads = False
        if got < count:
            return self._read_from_disk(number, handle, buffer, offset, got)
        self.delivery.answered(handle.progress, offset, count)
        return buffer

    async def _read_from_disk(self, number: int, handle: _OpenFile, buffer: bytearray, offset: int, got: int) -> Reply:
        start = packets.DATA_HEADER_SIZE
        try:
            got += await asyncio.get_running_loop().run_in_executor(
                self.threads, _fill, handle.descriptor, buffer, start + got, offset + got
            )
        except OSError as error:
            self.events.failed(str(handle.progress.name), error)
            return packets.status_reply(number, Status.FAILURE)
        # The range is within the published size: a file that ends before it is damaged, so this is not EOF.
        if got == 0:
            return packets.status_reply(number, Status.FAILURE)
        if start + got < len(buffer):
            del buffer[start + got :]
            packets.set_data_header(buffer, number, got)
        self.delivery.answered(handle.progress, offset, got)
        return buffer

    # -- the rest --

    def _extended(self, number: int, fields: Fields) -> Reply:
        name = fields.string()
        if name == packets.LIMITS:
            return packets.limits_reply(number, self.max_handles)
        if verb := _MUTATING_EXTENSIONS.get(name):
            self._report_request(verb, fields)
        return packets.status_reply(number, Status.OP_UNSUPPORTED)

    def _report_request(self, verb: str, fields: Fields) -> None:
        try:
            found = self._lookup(fields.string())
        except Malformed:
            found = None
        self._report_verb(verb, str(found.name) if found and found is not True else "")

    def _report_verb(self, verb: str, name: str) -> None:
        """Report a verb once per session: a client that deletes after fetching does so for every file."""
        if verb not in self._reported_verbs:
            self._reported_verbs.add(verb)
            self.events.refused(verb, name)


def _name_in_folder(path: bytes) -> bytes | None:
    """Return the name that a path has in the one directory, b"" for the directory itself, None for any other path."""
    parts = path.split(b"/")
    # The root's parent is the root (POSIX), and there is no other directory that ".." could leave.
    names = [part for part in parts if part not in (b"", b".", b"..")]
    if not names:
        return b""
    return names[0] if len(names) == 1 and parts[-1] == names[0] else None


def _fill(descriptor: int, buffer: bytearray, position: int, offset: int) -> int:
    """Fill the rest of the buffer from the file, in a thread; return how many bytes, fewer only at the file's end."""
    os.posix_fadvise(descriptor, offset, READ_AHEAD, os.POSIX_FADV_WILLNEED)
    got = 0
    with memoryview(buffer) as whole:
        while position + got < len(whole):
            count = os.preadv(descriptor, [whole[position + got :]], offset + got)
            if count == 0:
                break
            got += count
    return got
