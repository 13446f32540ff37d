"""The conversion process: ``python -m server.convert`` converts one export, and touches nothing that it was not handed.

Reads a request from standard input (`messages`), writes log files and rejected rows into the folders whose descriptors
it was started with, and says on standard output, in lines of JSON, how far it is and what came of it. The promises: it
ends when standard input does, and so with whoever started it; what it says of a failure is a word, a number, or a place
in the program, never a listener's address.

What it says of a failure, ``{"failed": {"kind": ...}}``:

    torn        the export is not a complete gzip file: "word", of `lines.TORN`
    unreadable  the export is not read by the system: "errno"
    sent        a published log is not a complete gzip file: "log", its place among ``sent``, and "word"
    disk        the disk refused what was to be written: "errno"
    memory      it would have taken more memory than it may
    error       something that nobody thought of: "type", and "at", the last places in the program
"""

from __future__ import annotations

import gc
import io
import os
import signal
import threading
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataFolderError, ExportTorn, SourceError
from . import sandbox
from .day import Export, SentLog, convert_export
from .kernel import Kernel
from .messages import LENGTH, Request, WrittenLog, answer, line

if TYPE_CHECKING:
    from typing import BinaryIO

    from typing_extensions import Buffer

_EVERY = 0.1  # seconds between two words on how far it is
_STACK = 1 << 20  # bytes, of a thread
_PLACES = 3


def main() -> None:
    """Do what is asked; exit 0 if an answer was given, whatever it is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this: it is ended from there
    sandbox.enter()
    asked = _read(LENGTH)
    asked = _read(int.from_bytes(asked, "little")) if len(asked) == LENGTH else b""
    if not asked:
        os.write(2, b"python -m server.convert is started by pickup-point, which asks it by standard input\n")
        os._exit(2)
    threading.stack_size(_STACK)
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        request = Request.unpack(asked)
        del asked
        sandbox.limit_memory(request.threads)
        gc.freeze()
        for said in _convert(request):
            _say(said)
    except BaseException as error:
        _say(line({"failed": _failure(error)}))
    os._exit(0)  # at once: there is nothing to put away


def _read(size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := os.read(0, size - len(data))):
        data += more
    return bytes(data)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _say(message: bytes) -> None:
    rest = memoryview(message)
    while rest:
        rest = rest[os.write(1, rest) :]


def _convert(request: Request) -> Any:
    """Convert; the lines of the answer."""
    os.fchdir(request.scratch)
    sink = _Files(request)
    said = [0.0]

    def tell(read: int) -> None:
        if time.monotonic() - said[0] >= _EVERY:
            _say(line({"read": read}))
            said[0] = time.monotonic()

    converted = convert_export(
        Export("the export", lambda: _rewound(request.export)),
        request.conversion,
        sink,
        kernel=Kernel.open() if request.kernel else None,
        scratch=Path(),
        threads=request.threads,
        max_rows_per_file=request.max_rows_per_file,
        sent=[
            SentLog(layout, lambda descriptor=descriptor: _rewound(descriptor), str(place))  # type: ignore[misc]
            for place, (descriptor, layout) in enumerate(request.sent)
        ],
        fresh_after=request.fresh_after,
        by_podcast=request.by_podcast,
        progress=tell,
    )
    logs = [WrittenLog(lines, *written) for lines, written in zip(converted.lines_per_log, sink.written(), strict=True)]
    return answer(converted, logs, rejects=sink.has_rejects)


def _rewound(descriptor: int) -> BinaryIO:
    """A file that stays open when its reader closes it, from its beginning."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return io.FileIO(descriptor, closefd=False)


class _Files:
    """The sink: files in the folders that were handed over, under the names that were asked for."""

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
        """Of each log its size and digest."""
        return [(log.size, log.sha256) for log in self._logs]


class _File(io.FileIO):
    """A new file; what is written is hashed on its way."""

    def __init__(self, folder: int, name: str, mode: int, *, digest: bool) -> None:
        _remove(folder, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        super().__init__(os.open(name, flags, mode, dir_fd=folder), "wb")
        self._digest = sha256() if digest else None
        self.size = 0

    @property
    def sha256(self) -> str:
        return "" if self._digest is None else self._digest.hexdigest()

    def write(self, data: Buffer) -> int:
        """Write all of it, also where the system writes less at once."""
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
    """What is said of an error; its words are left out."""
    cause = error.__cause__
    if isinstance(error, ExportTorn):
        return {"kind": "torn", "word": error.word}
    if isinstance(error, SourceError) and isinstance(cause, OSError):
        return {"kind": "unreadable", "errno": cause.errno or 0}
    if isinstance(error, DataFolderError) and isinstance(cause, ExportTorn):
        log = str(cause).partition(" ")[0]
        return {"kind": "sent", "log": int(log), "word": cause.word}
    if isinstance(error, DataFolderError) and isinstance(cause, OSError):
        return {"kind": "disk", "errno": cause.errno or 0}
    if isinstance(error, MemoryError):
        return {"kind": "memory"}
    from traceback import extract_tb  # only here: nothing else needs it

    places = [f"{Path(f.filename).name}:{f.lineno}" for f in extract_tb(error.__traceback__)[-_PLACES:]]
    return {"kind": "error", "type": type(error).__name__, "at": places}


if __name__ == "__main__":
    main()
