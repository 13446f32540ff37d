"""The conversion process from outside: how it is started, asked, read and ended.

Starts one process with nothing but three standard descriptors, those it is handed, and a few environment variables. The
promises: no process outlives its `ConversionProcess`; a stop ends it at once, whatever it is doing; a process that
dies, is silent for `SILENCE` seconds, or sends what is not an answer raises `ConversionDied`.

This module is loaded before the rest of a conversion, so that the process starts while the rest loads: it imports
little.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConversionDied, ConversionFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Protocol, Self

    class StopToken(Protocol):
        """Something thread-safe that tells whether to stop, like `threading.Event`."""

        def is_set(self) -> bool:
            """Return whether to stop."""


# -P: otherwise a server.py in the current folder would run instead. -S: PYTHONPATH below says where modules are.
# No garbage collection while modules load: they leave none, and looking for it takes milliseconds. So would -m.
_PROGRAM = f"import gc; gc.disable(); from {__package__}.__main__ import main; main()"
COMMAND = (sys.executable, "-P", "-S", "-c", _PROGRAM)
LONGEST_LINE = 1 << 20  # bytes
SILENCE = 900.0  # seconds; the process reports progress as it reads, a block at a time
_POLL = 0.1  # seconds between two looks at the stop token
_PATIENCE = 10.0  # seconds in which it must exit after its last message
# All it gets of the environment: what Python and the C library need to start.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "LANG", "LC_ALL")
_HINT = "the next round tries again; to see whether memory ran out: journalctl -k"


def start(descriptors: Sequence[int], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the process with pipes as its input and output.

    Raises:
        OSError: that is not possible.
    """
    return subprocess.Popen(  # noqa: S603  # our own interpreter and module
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        bufsize=0, pass_fds=descriptors,
    )  # fmt: skip


class ConversionProcess:
    """The process, started by the constructor; ``descriptors`` keep their numbers in it.

    Raises:
        ConversionFailed: no process can be started.
    """

    def __init__(self, descriptors: Sequence[int]) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        package = str(Path(__file__).absolute().parent.parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join((package, *filter(os.path.isabs, sys.path)))
        # glibc: keep the memory of a block for the next one instead of returning it, and let threads share it.
        environment |= {"MALLOC_TRIM_THRESHOLD_": "33554432", "MALLOC_MMAP_THRESHOLD_": "33554432"}
        environment["MALLOC_ARENA_MAX"] = "2"
        try:
            self._process = start(descriptors, environment)
        except OSError as error:
            sentence = f"cannot start a process to convert: {error.strerror}"
            raise ConversionFailed(sentence, hint="ulimit -u; free -m") from error
        assert self._process.stdin is not None  # noqa: S101  # asked for
        assert self._process.stdout is not None  # noqa: S101  # asked for
        self._request, self._answer = self._process.stdin, self._process.stdout
        # A process that does not read must not block this one: a stop is noticed only between two writes.
        os.set_blocking(self._request.fileno(), False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the process if it is still running: it holds nothing that must be saved."""
        if self._process.poll() is None:
            self._process.kill()
        # Before the caller touches the files: nothing may be writing to them any more.
        self._process.wait()
        self._request.close()
        self._answer.close()

    def ask(self, request: bytes, stop: StopToken | None) -> Iterator[dict[str, Any]]:
        """Send the request; yield the answer, message by message, up to the last.

        Raises:
            ConversionDied: the process ended before that, or sent something that is not a message.
            ConversionFailed: ``stop`` was set.
        """
        inbox, last = bytearray(), False
        for piece in self._exchange(request, stop):
            if last:
                raise refused("something follows its last message")
            seen = len(inbox)
            inbox += piece
            while (end := inbox.find(b"\n", seen)) >= 0 and end < LONGEST_LINE:
                message = _message(inbox[:end])
                del inbox[: end + 1]
                seen = 0
                last = not message.keys().isdisjoint(("done", "failed"))
                yield message
                if last and inbox:
                    raise refused("something follows its last message")
            if len(inbox) > LONGEST_LINE:
                raise refused("a line is too long")
        # It closed its output. A good last message counts only together with exit status 0.
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise ConversionDied("the conversion process did not end in time", hint=_HINT) from None
        if code or not last:
            raise self._death(code)

    def _exchange(self, request: bytes, stop: StopToken | None) -> Iterator[bytes]:
        """Write the request and yield what is read, as far as the pipes allow, until the answer ends."""
        outbox, heard = memoryview(request), time.monotonic()
        poll = select.poll()
        poll.register(self._answer, select.POLLIN)
        poll.register(self._request, select.POLLOUT)
        while True:
            if stop is not None and stop.is_set():
                sentence = "the conversion was stopped before it finished"
                raise ConversionFailed(sentence, hint="the next round tries again")
            for descriptor, _ in poll.poll(_POLL * 1000):
                if descriptor == self._answer.fileno():
                    piece = os.read(descriptor, 1 << 16)
                    if not piece:
                        return
                    heard = time.monotonic()
                    yield piece
                    continue
                try:
                    outbox = outbox[os.write(descriptor, outbox) :]
                except BlockingIOError:
                    continue
                except OSError:  # it closed its input; its answer or its exit status will say why
                    outbox = outbox[:0]
                if not outbox:
                    poll.unregister(self._request)  # but not closed: the process ends when its input does
            if time.monotonic() - heard > SILENCE:
                raise ConversionDied(f"the conversion process said nothing for {SILENCE:.0f} s", hint=_HINT)

    def _death(self, code: int) -> ConversionDied:
        """Return the error about a process that ended without an answer."""
        if code < 0:
            return ConversionDied(f"the conversion process was killed by signal {-code} before it finished", hint=_HINT)
        hint = f"check that it starts: {sys.executable} -m {__package__} < /dev/null"
        return ConversionDied(f"the conversion process ended with status {code} and no answer", hint=hint)


def _message(data: bytearray) -> dict[str, Any]:
    """Return the message in a line of the answer.

    Raises:
        ConversionDied: there is none in it.
    """
    import json  # only here: by now the process has started

    try:
        message = json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise refused("a line is not JSON") from None
    if not isinstance(message, dict) or len(message) != 1:
        raise refused("a line is not a message")
    return message


def _no_constant(name: str) -> None:
    """Refuse NaN and the infinities, which Python accepts in JSON."""
    raise ValueError(name)


def refused(why: str) -> ConversionDied:
    """Return the error about an answer that cannot be right; ``why`` is in our own words."""
    sentence = f"the conversion process gave an answer that cannot be right: {why}"
    return ConversionDied(sentence, hint=f"nothing was published; {_HINT}")
