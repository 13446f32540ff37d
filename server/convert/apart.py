"""A conversion apart from whoever asks for it: in a process of its own that is handed open files, and is not believed.

Opens the export, the folders, and the logs that were sent; starts `server.convert` as a process and reads its answer.
The promises: nothing of an export is unpacked or parsed in this process; whatever becomes of the other one, this one
gets a checked answer or an error; nothing of the other one is left when it does.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from ..errors import SourceError
from .process import ConversionProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from ..triton import Layout
    from .answer import Answer
    from .messages import FileNames
    from .process import StopToken
    from .row import Conversion

SWITCH = "PICKUP_POINT_KERNEL"
SMALL_EXPORT = 4 << 20  # bytes, compressed; below it threads bring nothing
DIED_OFTEN = 3  # deaths on one version of an export, after which it goes the exact way


class Outputs(NamedTuple):
    """Where the files go, and how they are called meanwhile: ``names()`` and the rejects' name are asked for late.

    ``rejects`` is None where nobody wants to see rejected rows.
    """

    folder: Path
    names: Callable[[], FileNames]
    rejects: tuple[Path, str] | None
    mode: int = 0o440


class SentFile(NamedTuple):
    """A published log of the day: its layout, what opens its gzip file, and its name."""

    layout: Layout
    open: Callable[[], BinaryIO]
    name: str


def convert_apart(
    export: Path,
    conversion: Callable[[], Conversion],
    outputs: Outputs,
    *,
    scratch: Path,
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
    """Convert an export as `day.convert_export` does, in a process of its own; what it says of it.

    ``conversion`` is asked for when the process has been started, which takes a while in which this one can think.
    ``workers`` 0 is a thread for each core. ``exact``: without the kernel, in one thread.

    Raises:
        ExportTorn: the export is not one whole, correct gzip file.
        ConversionDied: the process died, or its answer cannot be right.
        ConversionFailed: ``stop`` was set, or no process could be started.
        SourceError: the export cannot be read.
        DataFolderError: what was to be written could not be, or a log in ``sent`` is damaged.
        OSError: a folder, or a log in ``sent``, cannot be opened.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(export.open("rb", buffering=0))
        except OSError as error:
            raise SourceError(f"{export} cannot be read: {error.strerror}", hint=f"ls -l {export}") from error
        folders = [outputs.folder, scratch, *([outputs.rejects[0]] if outputs.rejects is not None else [])]
        opened = [stack.enter_context(_Folder(folder)).descriptor for folder in folders]
        logs = [stack.enter_context(log.open()).fileno() for log in sent]
        process = stack.enter_context(ConversionProcess([file.fileno(), *opened, *logs]))
        # Only now: while these are loaded, the process starts.
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
            folder=str(scratch),
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
    """An open folder."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def kernel_lack() -> tuple[str, str] | None:
    """That the kernel is not in use here, and the cure; None where it is."""
    from .kernel import load_kernel

    sentence = "exact way only: no kernel"
    if os.environ.get(SWITCH) == "none":
        return f"{sentence} ({SWITCH} is none)", f"unset {SWITCH}"
    if load_kernel() is not None:
        return None
    cure = "install it again where there is a C compiler, or on a platform that ziglang has a wheel for: "
    return sentence, f"{cure}pip install --force-reinstall --no-deps --no-cache-dir pickup-point"
