"""Who does the jobs of a conversion: worker processes, or the calling thread.

Starts processes and speaks to them through pipes. The promises: results come in the order of their jobs, with few jobs
under way at a time; a worker that dies, and a stop that is asked for, end the conversion at once as `ConversionFailed`;
no process outlives it.

The processes are started afresh (never forked from the one that serves) with nothing but the three standard descriptors
and that of the memory for rows; the end of their standard input, which comes with the service's end however it ends, is
their end.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import ConversionFailed
from .job import Job, Result, Setup
from .slots import Slots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

AHEAD = 2  # jobs that one worker has at a time
_PIPE = 1 << 20
_KEPT = 32 << 20
_POLL = 0.1  # seconds after which a stop that was asked for is seen
_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class StopToken(Protocol):
    """Something thread-safe that says whether to stop, like `threading.Event`."""

    def is_set(self) -> bool:
        """Whether to stop."""


class Crew(Protocol):
    """Who does the jobs."""

    def run(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """The results of the jobs, in their order."""


class Alone:
    """The calling thread does the jobs, one at a time."""

    def __init__(self, setup: Setup, stop: StopToken) -> None:
        from .worker import Hand  # only here: with processes, this one need not know how a row becomes a line

        self._hand = Hand(setup)
        self._stop = stop

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def run(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """The results of the jobs, in their order."""
        for job in jobs:
            _check(self._stop)
            yield self._hand.do(job)


class Workers:
    """So many worker processes."""

    def __init__(self, count: int, setup: Setup, stop: StopToken) -> None:
        self._stop = stop
        self._workers: list[_Worker] = []
        try:
            for _ in range(count):
                self._workers.append(_Worker(setup.pack()))
        except OSError as error:
            self._end()
            raise ConversionFailed(f"no worker process could be started: {error.strerror}", hint="ulimit -u") from error
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.wait()

    def run(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """The results of the jobs, in their order."""
        done: dict[int, Result] = {}
        started = finished = 0
        more = True
        while more or finished < started or done:
            _check(self._stop)
            worker = min(self._workers, key=lambda worker: worker.under_way)
            if more and worker.under_way < AHEAD and started - finished < 2 * AHEAD * len(self._workers):
                job = next(jobs, None)
                if job is None:
                    more = False
                    continue
                worker.give(job, started)
                started += 1
                timeout = 0.0
            else:
                timeout = _POLL
            done.update(self._exchange(timeout))
            while finished in done:
                yield done.pop(finished)
                finished += 1

    def _exchange(self, timeout: float) -> Iterator[tuple[int, Result]]:
        """Write what pipes take, read what they hold."""
        poll = select.poll()
        by_descriptor = {}
        for worker in self._workers:
            by_descriptor[worker.results] = worker
            poll.register(worker.results, select.POLLIN)
            if worker.outbox:
                by_descriptor[worker.jobs] = worker
                poll.register(worker.jobs, select.POLLOUT)
        for descriptor, _ in poll.poll(timeout * 1000):
            worker = by_descriptor[descriptor]
            if descriptor == worker.jobs:
                worker.send()
            else:
                yield from worker.receive()


class _Worker:
    """One worker process and its two pipes."""

    def __init__(self, setup: bytes) -> None:
        package = Path(__file__).parent.parent
        environment = {name: value for name, value in os.environ.items() if name not in _SYSTEMD}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(package.parent), os.environ.get("PYTHONPATH"))))
        # Memory that a block needed is kept for the next one, not given back in between.
        environment |= {"MALLOC_TRIM_THRESHOLD_": str(_KEPT), "MALLOC_MMAP_THRESHOLD_": str(_KEPT)}
        self._slots = Slots.make(AHEAD)
        shared = () if self._slots is None else (self._slots.descriptor,)
        # -P: a folder that happens to hold a server.py is no reason to run that.
        command = [
            sys.executable,
            "-P",
            "-m",
            f"{__package__}.worker",
            *(f"{number}" for fd in shared for number in (fd, AHEAD)),
        ]
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0, pass_fds=shared
            )
        except BaseException:
            if self._slots is not None:
                self._slots.close()
            raise
        self._pipes = [pipe for pipe in (self._process.stdin, self._process.stdout) if pipe is not None]
        self.jobs, self.results = (pipe.fileno() for pipe in self._pipes)
        for descriptor in (self.jobs, self.results):
            os.set_blocking(descriptor, False)
            with suppress(OSError):  # a user has only so many large pipes; small ones do, more slowly
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)
        self.outbox: deque[memoryview] = deque([memoryview(setup)])
        self._inbox = bytearray()
        self._orders: deque[tuple[int, int | None]] = deque()  # of the jobs it has: the order, the slot

    @property
    def under_way(self) -> int:
        """How many jobs it has."""
        return len(self._orders)

    def give(self, job: Job, order: int) -> None:
        """One more job, the n-th of all."""
        slot = self._slots.put(job.pieces) if self._slots is not None else None
        self._orders.append((order, slot))
        self.outbox.extend(memoryview(piece) for piece in job.pack(slot) if piece)
        self.send()

    def send(self) -> None:
        """Write as much as the pipe takes."""
        try:
            while self.outbox:
                written = os.writev(self.jobs, list(self.outbox)[:64])
                while written:
                    piece = self.outbox.popleft()
                    if len(piece) > written:
                        self.outbox.appendleft(piece[written:])
                        break
                    written -= len(piece)
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._death() from error

    def receive(self) -> Iterator[tuple[int, Result]]:
        """Read what there is; the results that are whole, each with its job's number in order."""
        data = os.read(self.results, _PIPE)
        if not data:
            raise self._death()
        self._inbox += data
        while len(self._inbox) >= 4 and len(self._inbox) - 4 >= (size := int.from_bytes(self._inbox[:4], "little")):
            body = bytes(memoryview(self._inbox)[4 : 4 + size])
            del self._inbox[: 4 + size]
            order, slot = self._orders.popleft()
            if self._slots is not None and slot is not None:
                self._slots.free(slot)
            yield order, Result.unpack(body)

    def _death(self) -> ConversionFailed:
        self.end()
        code = self.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        hint = "it is repeated in the next round; journalctl -k tells whether memory ran out"
        return ConversionFailed(f"a worker process {how} in mid-work", hint=hint)

    def end(self) -> None:
        """Kill it: it holds nothing that must be saved."""
        if self._process.poll() is None:
            self._process.kill()

    def wait(self) -> int:
        """Wait for its end, and close the pipes."""
        code = self._process.wait()
        for pipe in self._pipes:
            pipe.close()
        if self._slots is not None:
            self._slots.close()
            self._slots = None
        return code


def _check(stop: StopToken) -> None:
    if stop.is_set():
        raise ConversionFailed("the conversion was stopped before its end", hint="it is repeated in the next round")
