"""The conversion process from outside: started, asked, listened to, ended.

Starts one process with nothing but three standard descriptors, those it is handed, and a few words of the environment.
The promises: no process outlives its `ConversionProcess`; a stop that is asked for ends it at once, wherever it is; one
that dies, says nothing for `SILENCE`, or speaks out of turn is a `ConversionDied`.

This module is loaded before anything else of a conversion, so that the process starts while the rest is loaded: it
imports little.
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
        """Something thread-safe that says whether to stop, like `threading.Event`."""

        def is_set(self) -> bool:
            """Whether to stop."""


# -P: a folder that happens to hold a server.py is no reason to run that. -S: where modules lie is known here already.
COMMAND = (sys.executable, "-P", "-S", "-m", str(__package__))
LONGEST_LINE = 1 << 20  # bytes
SILENCE = 900.0  # seconds; it says at least once for each block how far it is
_POLL = 0.1  # seconds after which a stop that was asked for is seen
_PATIENCE = 10.0  # seconds that an end may take which was announced
# All that it is told by the environment: how Python and the C library find themselves.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "LANG", "LC_ALL")
_HINT = "it is repeated in the next round; journalctl -k tells whether memory ran out"


class ConversionProcess:
    """The process; it has started when this is made. ``descriptors`` keep their numbers in it."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        package = str(Path(__file__).absolute().parent.parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join((package, *filter(os.path.isabs, sys.path)))
        # Memory that a block needed is kept for the next one, not given back in between; threads share it.
        environment |= {"MALLOC_TRIM_THRESHOLD_": "33554432", "MALLOC_MMAP_THRESHOLD_": "33554432"}
        environment["MALLOC_ARENA_MAX"] = "2"
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
                bufsize=0, pass_fds=descriptors,
            )  # fmt: skip
        except OSError as error:
            sentence = f"no process could be started to convert: {error.strerror}"
            raise ConversionFailed(sentence, hint="ulimit -u; free -m") from error
        assert self._process.stdin is not None  # noqa: S101  # asked for
        assert self._process.stdout is not None  # noqa: S101  # asked for
        self._request, self._answer = self._process.stdin, self._process.stdout
        os.set_blocking(self._request.fileno(), False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it, if it still runs: it holds nothing that must be saved."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._request.close()
        self._answer.close()

    def ask(self, request: bytes, stop: StopToken | None) -> Iterator[dict[str, Any]]:
        """Send the request; yield what it says, message by message, until its last one.

        Raises:
            ConversionDied: it ended before that, or what it says is no message.
            ConversionFailed: ``stop`` was set.
        """
        inbox, last = bytearray(), False
        for piece in self._exchange(request, stop):
            seen = len(inbox)
            inbox += piece
            while (end := inbox.find(b"\n", seen)) >= 0 and end < LONGEST_LINE:
                message = _message(inbox[:end])
                del inbox[: end + 1]
                seen = 0
                last = not message.keys().isdisjoint(("done", "failed"))
                yield message
                if last and inbox:
                    raise refused("something follows its end")
            if len(inbox) > LONGEST_LINE:
                raise refused("a line of it is too long")
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise ConversionDied("the process that converts did not end in time", hint=_HINT) from None
        if code or not last:
            raise self._death(code)

    def _exchange(self, request: bytes, stop: StopToken | None) -> Iterator[bytes]:
        """Write what the pipe takes, yield what the other one holds, until that ends."""
        outbox, heard = memoryview(request), time.monotonic()
        poll = select.poll()
        poll.register(self._answer, select.POLLIN)
        poll.register(self._request, select.POLLOUT)
        while True:
            if stop is not None and stop.is_set():
                sentence = "the conversion was stopped before its end"
                raise ConversionFailed(sentence, hint="it is repeated in the next round")
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
                except OSError:  # it listens no more; what that means is seen where it answers
                    outbox = outbox[:0]
                if not outbox:
                    poll.unregister(self._request)  # it stays open: its end would be the process's
            if time.monotonic() - heard > SILENCE:
                raise ConversionDied(f"the process that converts said nothing for {SILENCE:.0f} s", hint=_HINT)

    def _death(self, code: int) -> ConversionDied:
        if code < 0:
            return ConversionDied(f"the process that converts was killed by signal {-code} in mid-work", hint=_HINT)
        hint = f"does it start? {sys.executable} -m {__package__} < /dev/null"
        return ConversionDied(f"the process that converts ended with status {code} and no answer", hint=hint)


def _message(data: bytearray) -> dict[str, Any]:
    import orjson  # only here: when it is wanted, the process has started

    try:
        message = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise refused("a line of it is no JSON") from None
    if not isinstance(message, dict) or len(message) != 1:
        raise refused("a line of it is no message")
    return message


def refused(why: str) -> ConversionDied:
    """The error about an answer that cannot be right; ``why`` is in our own words."""
    sentence = f"the answer of the process that converts cannot be right: {why}"
    return ConversionDied(sentence, hint=f"nothing of it was published; {_HINT}")
