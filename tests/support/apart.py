"""A conversion in a process of its own that puts its files into one folder; and one in this process, for long walks."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from structlog.testing import capture_logs

import server.convert.__main__ as main
from server.convert import apart
from server.convert.apart import Outputs, convert_apart
from server.convert.messages import LENGTH, FileNames, Request

from .reference_conversion import conversion

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from server.convert.answer import Answer
    from server.convert.conversion import Conversion

Result = TypeVar("Result")
LOG_NAMES = FileNames("log-", 0, ".gz")


def apart_from(
    export: Path, folder: Path, made: Conversion | None = None, names: FileNames = LOG_NAMES, **more: Any
) -> Answer:
    """Convert an export in a process of its own; logs and rejects go to ``folder``."""
    made = made or conversion()
    outputs = Outputs(folder, lambda: names, (folder, "rejects"))
    return convert_apart(export, lambda: made, outputs, scratch=folder, **more)


class ConversionHere:
    """A conversion in this process, in the place of `ConversionProcess`: for walks of thousands of conversions."""

    def __init__(self, _descriptors: Sequence[int]) -> None:
        pass

    def __enter__(self) -> ConversionHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, request: bytes, _stop: object) -> Iterator[dict[str, Any]]:
        """Yield the answer, as the process would send it."""
        here, say = Path.cwd(), main._say
        main._say = lambda _message: None  # progress, which is written to standard output
        try:
            for said in main._convert(Request.unpack(request[LENGTH:])):
                yield orjson.loads(said)
        except Exception as error:
            yield {"failed": main._failure(error)}
        finally:
            main._say = say
            os.chdir(here)


@contextmanager
def conversions_here() -> Iterator[None]:
    """Convert in this process, and not in one of its own for each."""
    process, apart.ConversionProcess = apart.ConversionProcess, ConversionHere  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        apart.ConversionProcess = process  # type: ignore[misc]


class OneThread(asyncio.SelectorEventLoop):
    """A loop that does at once what is for a thread: a walk has thousands of rounds, each with dozens of errands."""

    def run_in_executor(self, _executor: object, work: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Do it now."""
        done = self.create_future()
        try:
            done.set_result(work(*args))
        except BaseException as error:
            done.set_exception(error)
        return done


def one_thread() -> asyncio.Runner:
    """Return what runs rounds in this thread alone."""
    return asyncio.Runner(loop_factory=OneThread)


def run_here(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a round in this thread alone, its conversions included, and log nothing."""
    with one_thread() as runner, capture_logs(), conversions_here():
        return runner.run(work)
