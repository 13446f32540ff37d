"""The conversion process: ``python -m server.convert`` converts one export, and touches only what it was handed.

Reads a request from standard input (`messages`), writes log files and rejected rows into the folders whose descriptors
it was started with, and reports progress and result on standard output, in lines of JSON. The promises: it ends when
its standard input does, and so with whoever started it; it describes a failure by a word, a number or a place in the
program, never by anything of a listener's.

How it reports a failure, ``{"failed": {"kind": ...}}``:

    torn        the export is not a complete gzip file: "word", one of `torn.TORN`
    unreadable  the system cannot read the export: "errno"
    sent        a published log is not a complete gzip file: "log", its index in ``sent``, and "word"; or the system
                cannot read it: "log" and "errno"
    disk        a file could not be written: "errno"
    memory      it needed more memory than it is allowed
    error       an unforeseen error: "type", and "at", the last places (file:line) of its traceback
"""

from __future__ import annotations

import gc
import io
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import DataFolderError, ExportTorn, SourceError
from . import sandbox
from .day import Export, SentLog, convert_export
from .messages import LENGTH, Request, WrittenLog, answer, line

if TYPE_CHECKING:
    from typing import BinaryIO

    from typing_extensions import Buffer

    from .kernel import Kernel

_EVERY = 0.1  # seconds between two reports of progress
_STACK = 1 << 20  # bytes, of a thread
_PLACES = 3  # lines of a traceback that are reported


def main() -> None:
    """Serve one request; exit with 0 if it was answered, even by a failure."""
    # A terminal sends Ctrl-C to this process, too; whoever started it decides, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before any thread (the filter covers only the caller and its children) and before any byte from outside.
    sandbox.enter()
    asked = _read(LENGTH)
    asked = _read(int.from_bytes(asked, "little")) if len(asked) == LENGTH else b""
    if not asked:
        os.write(2, b"python -m server.convert is started by pickup-point and reads its request from standard input\n")
        os._exit(2)
    threading.stack_size(_STACK)
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        request = Request.unpack(asked)
        del asked
        # Only now: the limit depends on the number of threads, which the request states.
        sandbox.limit_memory(request.threads)
        gc.freeze()
        gc.enable()
        for said in _convert(request):
            _say(said)
    except BaseException as error:
        _say(line({"failed": _failure(error)}))
    # At once: files are written without a buffer, so nothing is left to be flushed.
    os._exit(0)


def _read(size: int) -> bytes:
    """Read ``size`` bytes of standard input, fewer if it ends first."""
    data = bytearray()
    while len(data) < size and (more := os.read(0, size - len(data))):
        data += more
    return bytes(data)


def _end_with_input() -> None:
    """End the process when standard input ends: whoever started it is gone, or wants no answer."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _say(message: bytes) -> None:
    """Write a line of the answer, all of it."""
    rest = memoryview(message)
    while rest:
        rest = rest[os.write(1, rest) :]


def _convert(request: Request) -> Any:
    """Convert, and return the lines of the answer."""
    os.fchdir(request.scratch)
    sink = _Files(request)
    said = [0.0]

    def report(read: int) -> None:
        if time.monotonic() - said[0] >= _EVERY:
            _say(line({"read": read}))
            said[0] = time.monotonic()

    converted = convert_export(
        Export("the export", lambda: _rewound(request.export)),
        request.conversion,
        sink,
        kernel=lambda: _kernel() if request.kernel else None,
        scratch=".",
        threads=request.threads,
        max_rows_per_file=request.max_rows_per_file,
        sent=[
            SentLog(layout, lambda descriptor=descriptor: _rewound(descriptor), str(place))  # type: ignore[misc]
            for place, (descriptor, layout) in enumerate(request.sent)
        ],
        fresh_after=request.fresh_after,
        by_podcast=request.by_podcast,
        progress=report,
    )
    logs = [WrittenLog(lines, *written) for lines, written in zip(converted.lines_per_log, sink.written(), strict=True)]
    return answer(converted, logs, rejects=sink.has_rejects)


def _kernel() -> Kernel | None:
    from .kernel import Kernel  # only here: an empty export needs none

    return Kernel.open()


def _rewound(descriptor: int) -> BinaryIO:
    """Return a descriptor's file, rewound; closing it leaves the descriptor open for another pass."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return io.FileIO(descriptor, closefd=False)


class _Files:
    """The sink: files in the folders of the request, under its names."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._logs: list[_File] = []
        self.has_rejects = False

    def restart(self) -> None:
        folder, names = self._request.logs
        for index in range(len(self._logs)):
            _remove(folder, names.at(index))
        if self.has_rejects and self._request.rejects is not None:
            _remove(*self._request.rejects)
        self._logs, self.has_rejects = [], False

    def open_log(self, index: int) -> BinaryIO:
        folder, names = self._request.logs
        self._logs.append(_File(folder, names.at(index), self._request.mode, digest=self._request.digests))
        return self._logs[-1]

    def open_rejects(self) -> BinaryIO:
        self.has_rejects = True
        if self._request.rejects is None:
            return open(os.devnull, "wb")  # noqa: PTH123  # nowhere; its writer closes it
        return _File(*self._request.rejects, self._request.mode, digest=False)

    def written(self) -> list[tuple[int, str]]:
        """Return the size and the digest of each log."""
        return [(log.size, log.sha256) for log in self._logs]


class _File(io.FileIO):
    """A new file that hashes what is written to it."""

    def __init__(self, folder: int, name: str, mode: int, *, digest: bool) -> None:
        _remove(folder, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        super().__init__(os.open(name, flags, mode, dir_fd=folder), "wb")
        self._digest = None
        if digest:
            from hashlib import sha256  # only here: it loads OpenSSL

            self._digest = sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return "" if self._digest is None else self._digest.hexdigest()

    def write(self, data: Buffer) -> int:
        """Write all of ``data``, even if the system takes it in parts."""
        rest = memoryview(data).cast("B")
        if self._digest is not None:
            self._digest.update(rest)
        size = len(rest)
        self.size += size
        while rest:
            rest = rest[super().write(rest) :]
        return size


def _remove(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _failure(error: BaseException) -> dict[str, Any]:
    """Return how an error is reported; its message is left out, since it may quote the export."""
    cause = error.__cause__
    if isinstance(error, ExportTorn):
        return {"kind": "torn", "word": error.word}
    if isinstance(error, SourceError) and isinstance(cause, OSError):
        return {"kind": "unreadable", "errno": cause.errno or 0}
    if isinstance(error, DataFolderError) and isinstance(cause, ExportTorn | SourceError):
        about = {"kind": "sent", "log": int(str(cause).partition(" ")[0])}
        if isinstance(cause, ExportTorn):
            return about | {"word": cause.word}
        return about | {"errno": getattr(cause.__cause__, "errno", None) or 0}
    if isinstance(error, DataFolderError) and isinstance(cause, OSError):
        return {"kind": "disk", "errno": cause.errno or 0}
    if isinstance(error, MemoryError):
        return {"kind": "memory"}
    from traceback import extract_tb  # only here: nothing else needs it

    places = [f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in extract_tb(error.__traceback__)[-_PLACES:]]
    return {"kind": "error", "type": type(error).__name__, "at": places}


if __name__ == "__main__":
    main()
