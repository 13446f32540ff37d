"""A conversion in a process of its own, which is handed open files and whose answer is not trusted.

Opens the export, the folders and the published logs; starts `server.convert` as a process and reads its answer. The
promises: the calling process neither unpacks nor parses anything of an export; whatever happens to the other one, the
caller gets a checked answer or an error, and by then the other one is gone.
"""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import SourceError
from ..paths import open_to_read
from .process import ConversionProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

    from ..triton import Layout
    from .answer import Answer
    from .conversion import Conversion
    from .messages import FileNames
    from .process import StopToken

SWITCH = "PICKUP_POINT_KERNEL"
SMALL_EXPORT = 4 << 20  # bytes, compressed; below it threads gain nothing
DIED_OFTEN = 3  # deaths over one version of an export after which it is converted without the kernel


class Outputs(NamedTuple):
    """Where the files go, and their names until they are published; ``names()`` is called once the process has started.

    A folder is given by path or descriptor. ``rejects`` is the folder and the name of the rejects file; None if nobody
    wants to see rejected rows.
    """

    folder: Path | int
    names: Callable[[], FileNames]
    rejects: tuple[Path | int, str] | None
    mode: int = 0o440


class SentFile(NamedTuple):
    """A published log of the day: its layout, a function that opens its gzip file, and its name."""

    layout: Layout
    open: Callable[[], BinaryIO]
    name: str


def convert_apart(
    export: Path,
    conversion: Callable[[], Conversion],
    outputs: Outputs,
    *,
    scratch: Path | int,
    workers: int = 0,
    max_rows_per_file: int = 0,
    sent: Sequence[SentFile] = (),
    fresh_after: str | None = None,
    by_podcast: bool = False,
    digests: bool = True,
    exact: bool = False,
    progress: Callable[[int], None] | None = None,
    stop: StopToken | None = None,
) -> Answer:
    """Convert an export as `day.convert_export` does, in a process of its own; return the checked answer.

    ``conversion`` is called once the process has been started: both prepare at the same time. ``workers`` 0 means one
    thread per core; ``exact`` means without the kernel, in one thread. ``digests``: hash the logs as they are written.

    Raises:
        ExportTorn: the export is not one whole, correct gzip file.
        ConversionDied: the process died, or its answer cannot be right.
        ConversionFailed: ``stop`` was set, or no process can be started.
        SourceError: the export cannot be read.
        DataFolderError: a file cannot be written, or a log in ``sent`` is damaged.
        OSError: a folder, or a log in ``sent``, cannot be opened.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_to_read(export))
        except OSError as error:
            raise SourceError(
                f"{export} cannot be read: {error.strerror}", hint=f"ls -l {shlex.quote(str(export))}"
            ) from error
        folders = [outputs.folder, scratch, *([outputs.rejects[0]] if outputs.rejects is not None else [])]
        opened = [stack.enter_context(_Folder(folder)).descriptor for folder in folders]
        logs = [stack.enter_context(log.open()).fileno() for log in sent]
        process = stack.enter_context(ConversionProcess([file.fileno(), *opened, *logs]))
        # Imported only now: the process starts while these are loaded.
        from .answer import AnswerReader
        from .messages import Request

        size = os.fstat(file.fileno()).st_size
        threads = 1 if exact or size < SMALL_EXPORT else workers or len(os.sched_getaffinity(0))
        request = Request(
            conversion=conversion(),
            export=file.fileno(),
            scratch=opened[1],
            logs=(opened[0], outputs.names()),
            rejects=None if outputs.rejects is None else (opened[2], outputs.rejects[1]),
            sent=[(descriptor, log.layout) for descriptor, log in zip(logs, sent, strict=True)],
            mode=outputs.mode,
            threads=threads,
            kernel=not exact and os.environ.get(SWITCH) != "none",
            digests=digests,
            max_rows_per_file=max_rows_per_file,
            fresh_after=fresh_after,
            by_podcast=by_podcast,
        )
        reader = AnswerReader(
            size=size,
            name=str(export),
            sent=[log.name for log in sent],
            folder=str(Path(f"/proc/self/fd/{scratch}").readlink().parent if isinstance(scratch, int) else scratch),
            most_rows=max_rows_per_file,
            digests=digests,
            by_podcast=by_podcast,
        )
        for message in process.ask(request.pack(), stop):
            read = reader.take(message)
            if read is not None and progress is not None:
                progress(read)
        if progress is not None:
            progress(size)
        return reader.answer


class _Folder:
    """An open folder, closed at the end of a ``with``."""

    def __init__(self, folder: Path | int) -> None:
        path, beside = (".", folder) if isinstance(folder, int) else (folder, None)
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=beside)

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def kernel_lack() -> tuple[str, str] | None:
    """Return (sentence, cure) if the kernel is not in use, else None."""
    from .kernel import load_kernel

    sentence = "exact way only: no kernel"
    if os.environ.get(SWITCH) == "none":
        return f"{sentence} ({SWITCH} is none)", f"unset {SWITCH}"
    if load_kernel() is not None:
        return None
    cure = "reinstall where there is a C compiler, or on a platform that ziglang has a wheel for: "
    return sentence, f"{cure}pip install --force-reinstall --no-deps --no-cache-dir pickup-point"
