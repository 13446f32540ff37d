"""A process under ptrace(2): every system call by which it changes one folder, and its death at exactly one of them.

Forks, traces its child with all the child's threads, and reads what the child did from /proc. A seccomp filter in the
child stops it at the calls in question and at no others. x86-64 only. Promise: killed *before* a call, the call was
not made (the kernel skips it when a fatal signal comes at its entry); killed *after* it, it was made and nothing came
of its result; and a child does not outlive its tracer.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_TRACEME, _CONT, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 7, 24, 0x4200, 0x420E
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000  # SYSGOOD, FORK, VFORK, CLONE, EXEC, SECCOMP, EXITKILL
_EVENT_SECCOMP = 7
_OPENAT = 257
_WALL = 0x40000000
_AT_FDCWD = -100
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_ALLOW, _TRACE = 0x7FFF0000, 0x7FF00000
_CHANGING = os.O_CREAT | os.O_TRUNC | 0o20000000  # and __O_TMPFILE

# Where the arguments are: f a descriptor, p a path, d a folder's descriptor before a path, - anything else.
_CALLS: dict[int, tuple[str, str]] = {
    1: ("write", "f"), 18: ("pwrite64", "f"), 20: ("writev", "f"), 296: ("pwritev", "f"), 328: ("pwritev2", "f"),
    40: ("sendfile", "f"), 326: ("copy_file_range", "--f"), 275: ("splice", "--f"),
    77: ("ftruncate", "f"), 76: ("truncate", "p"), 285: ("fallocate", "f"),
    74: ("fsync", "f"), 75: ("fdatasync", "f"), 306: ("syncfs", "f"), 277: ("sync_file_range", "f"),
    2: ("open", "p"), 85: ("creat", "p"), 257: ("openat", "dp"), 437: ("openat2", "dp"),
    83: ("mkdir", "p"), 258: ("mkdirat", "dp"), 84: ("rmdir", "p"), 87: ("unlink", "p"), 263: ("unlinkat", "dp"),
    82: ("rename", "pp"), 264: ("renameat", "dpdp"), 316: ("renameat2", "dpdp"),
    86: ("link", "pp"), 265: ("linkat", "dpdp"), 88: ("symlink", "-p"), 266: ("symlinkat", "-dp"),
    90: ("chmod", "p"), 91: ("fchmod", "f"), 268: ("fchmodat", "dp"), 452: ("fchmodat2", "dp"),
    92: ("chown", "p"), 93: ("fchown", "f"), 260: ("fchownat", "dp"),
    132: ("utime", "p"), 235: ("utimes", "p"), 261: ("futimesat", "dp"), 280: ("utimensat", "dp"),
    133: ("mknod", "p"), 259: ("mknodat", "dp"), 188: ("setxattr", "p"), 190: ("fsetxattr", "f"),
}  # fmt: skip
WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range", "splice")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def cannot_trace() -> str:
    """Why this machine cannot do it, or an empty text. The promise above is tried for real."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "the tracer knows the system calls of Linux on x86-64 only"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def make_two() -> int:
            (folder / "1").mkdir()
            (folder / "2").mkdir()
            return 0

        try:
            before = traced(make_two, folder, kill_at=0)
            made_before = sorted(path.name for path in folder.iterdir())
            after = traced(make_two, folder, kill_at=0, after=True)
            made_after = sorted(path.name for path in folder.iterdir())
        except OSError as error:
            return f"ptrace(2) is refused ({error.strerror}): sysctl kernel.yama.ptrace_scope=1; --cap-add SYS_PTRACE"
    if (before.code, after.code) != (-signal.SIGKILL,) * 2 or (made_before, made_after) != ([], ["1"]):
        return f"the tracer does not kill where it should: {before.code} {made_before}, {after.code} {made_after}"
    return ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its name, its paths, whether it succeeded; what it wrote and where, and what the file is after it."""

    name: str
    path: str
    to: str = ""
    done: bool = True
    offset: int = 0
    data: bytes = b""
    inode: int = 0
    size: int = 0
    mtime: int = 0  # in nanoseconds
    mode: int = 0

    def __str__(self) -> str:
        return f"{self.name} {Path(self.path).name}" + (f" to {Path(self.to).name}" if self.to else "")


@dataclass(slots=True)
class Trace:
    """What a process did to the folder, in order. ``code`` is its exit code, or -9 when it was killed."""

    calls: list[Call] = field(default_factory=list)
    code: int | None = None


@dataclass(slots=True)
class _Entered:
    """A call that a thread is in."""

    name: str
    path: str
    to: str
    descriptor: int | None
    offset: int


def traced(
    work: Callable[[], int], folder: Path, *, kill_at: int | None = None, after: bool = False, contents: bool = False
) -> Trace:
    """Run ``work`` in a traced child to its end, or until it dies before (or ``after``) the call of that number.

    Calls are numbered from 0 over all threads. With ``contents`` the written bytes are kept. The caller must have no
    other child: every child that ends is reaped here.

    Raises:
        OSError: tracing is refused.
    """
    leader = os.fork()
    if leader == 0:
        _be_traced(work)
    _, status = os.waitpid(leader, _WALL)
    if not os.WIFSTOPPED(status):
        raise PermissionError(1, "Operation not permitted")
    _ptrace(_SETOPTIONS, leader, _OPTIONS)
    _ptrace(_CONT, leader, 0)
    trace, known, inside = Trace(), {leader}, dict[int, tuple[int, _Entered]]()
    tracer = _Tracer(str(folder), contents=contents)
    count = 0
    while True:
        try:
            thread, status = os.waitpid(-1, _WALL)
        except ChildProcessError:
            return trace
        if not os.WIFSTOPPED(status):
            if thread == leader:
                trace.code = os.waitstatus_to_exitcode(status)
            continue
        number, event = os.WSTOPSIG(status), status >> 16
        resume, deliver = _CONT, 0
        if event == _EVENT_SECCOMP:
            entered = tracer.entered(thread)
            if entered is not None:
                inside[thread] = (count, entered)
                resume = _SYSCALL
                if kill_at == count and not after:
                    os.kill(leader, signal.SIGKILL)
                    continue
                count += 1
        elif number == signal.SIGTRAP | 0x80:
            if (left := inside.pop(thread, None)) is not None:
                index, entered = left
                trace.calls.append(tracer.left(thread, entered))
                if after and kill_at == index:
                    os.kill(leader, signal.SIGKILL)
                    continue
        elif event == 0 and not (number == signal.SIGSTOP and thread not in known):  # a new thread begins stopped
            deliver = number
        known.add(thread)
        _ptrace(resume, thread, deliver)


def _be_traced(work: Callable[[], int]) -> None:
    """In the child; it never returns."""
    code = 255
    try:
        if _libc.ptrace(_TRACEME, 0, None, None) != 0:
            os._exit(254)
        os.kill(os.getpid(), signal.SIGSTOP)
        _filter()
        code = work()
    finally:
        os._exit(code)


def _filter() -> None:
    """Stop for the tracer at the calls of the table; at an openat(2) only where it can change something."""
    load, equal, bits, end = 0x20, 0x15, 0x45, 0x06
    others = [number for number in _CALLS if number != _OPENAT]
    program = [struct.pack("HBBI", load, 0, 0, 0)]
    program += [struct.pack("HBBI", equal, len(others) - at + 3, 0, number) for at, number in enumerate(others)]
    program += [
        struct.pack("HBBI", equal, 0, 2, _OPENAT),
        struct.pack("HBBI", load, 0, 0, 16 + 2 * 8),  # its flags
        struct.pack("HBBI", bits, 1, 0, _CHANGING),
        struct.pack("HBBI", end, 0, 0, _ALLOW),
        struct.pack("HBBI", end, 0, 0, _TRACE),
    ]
    code = ctypes.create_string_buffer(b"".join(program))
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(whole), 0, 0) != 0:
        os._exit(253)


def _ptrace(request: int, thread: int, data: int) -> None:
    if _libc.ptrace(request, thread, None, data) != 0:
        number = ctypes.get_errno()
        if number != 3:  # ESRCH: killed in the meantime
            raise OSError(number, os.strerror(number))


def _link(thread: int, descriptor: int) -> str:
    """What a descriptor of a thread is of, as the kernel names it now."""
    return str(Path(f"/proc/{thread}/cwd" if descriptor == _AT_FDCWD else f"/proc/{thread}/fd/{descriptor}").readlink())


class _Tracer:
    """Reads a stopped thread's call. ``folder`` is the one that counts; its parent holds its name."""

    def __init__(self, folder: str, *, contents: bool) -> None:
        self._folder, self._parent, self._contents = folder, os.path.dirname(folder), contents  # noqa: PTH120  # as text

    def entered(self, thread: int) -> _Entered | None:
        """The call at whose entry the thread is stopped, if it is about the folder."""
        info = ctypes.create_string_buffer(88)
        if _libc.ptrace(_GET_SYSCALL_INFO, thread, 88, info) < 0:
            return None
        number, *arguments = struct.unpack_from("=7Q", info.raw, 24)
        name, shape = _CALLS[number]
        paths, base, descriptor = [], _AT_FDCWD, None
        with suppress(OSError):
            for kind, value in zip(shape, arguments, strict=False):
                if kind == "f":
                    descriptor = value & 0xFFFFFFFF
                    paths.append(_link(thread, descriptor).removesuffix(" (deleted)"))
                elif kind == "d":
                    base = ctypes.c_int(value & 0xFFFFFFFF).value
                elif kind == "p":
                    paths.append(self._path(thread, base, value))
        if not any(path in (self._folder, self._parent) or path.startswith(f"{self._folder}/") for path in paths):
            return None
        offset = 0
        if name in ("pwrite64", "pwritev", "pwritev2"):
            offset = arguments[3]
        elif name in WRITES and descriptor is not None:
            offset = self._position(thread, descriptor)
        return _Entered(name, paths[0], paths[1] if len(paths) > 1 else "", descriptor, offset)

    def left(self, thread: int, entered: _Entered) -> Call:
        """The same call at its end."""
        info = ctypes.create_string_buffer(88)
        _libc.ptrace(_GET_SYSCALL_INFO, thread, 88, info)
        result, failed = struct.unpack_from("=qB", info.raw, 24)
        if failed:
            return Call(entered.name, entered.path, entered.to, done=False)
        path = entered.to or entered.path
        if entered.descriptor is not None:
            path = f"/proc/{thread}/fd/{entered.descriptor}"
        data, found = b"", None
        with suppress(FileNotFoundError):
            found = os.stat(path)  # noqa: PTH116  # of the descriptor, or of the path as it was given
        if self._contents and entered.name in WRITES and result:
            descriptor = os.open(path, os.O_RDONLY)
            data = os.pread(descriptor, result, entered.offset)
            os.close(descriptor)
        if found is None:
            return Call(entered.name, entered.path, entered.to)
        return Call(entered.name, entered.path, entered.to, True, entered.offset, data, found.st_ino, found.st_size,
                    found.st_mtime_ns, found.st_mode & 0o7777)  # fmt: skip

    def _path(self, thread: int, base: int, address: int) -> str:
        if address == 0:  # utimensat(2) of a descriptor
            return _link(thread, base)
        with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            text = b""
            while b"\0" not in text and len(text) < 4096:
                text += memory.read(4096 - address % 4096 if not text else 4096)
        path = os.fsdecode(text.partition(b"\0")[0])
        folder = _link(thread, base)
        return os.path.normpath(os.path.join(folder, path))  # noqa: PTH118  # an absolute path stays what it is

    def _position(self, thread: int, descriptor: int) -> int:
        """Where the next write goes."""
        facts = dict(line.split(":\t") for line in Path(f"/proc/{thread}/fdinfo/{descriptor}").read_text().splitlines()
                     if ":\t" in line)  # fmt: skip
        if int(facts["flags"], 8) & os.O_APPEND:
            return os.stat(f"/proc/{thread}/fd/{descriptor}").st_size  # noqa: PTH116  # of the descriptor
        return int(facts["pos"])
