"""Commands of pickup-point without the second that an interpreter takes to start: forked from one that is running.

Each command is a process of its own, with its own files, locks and exit; only the imports are shared. It may be made to
wait until somebody, strace for one, has taken hold of it. Touches processes.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection
    from pathlib import Path

PATIENCE = 200.0  # seconds that a command may take
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "server.cli.app",
        "server.cli.feed",
        "server.cli.tables",
        "server.status.snapshot",
        "server.disk",
        "server.megaphone.folder",
    ]
)


def _nothing(_: int) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Ended:
    """What commands said, both streams in one, and their exit codes in order: None for one that did not end itself."""

    text: str
    codes: tuple[int | None, ...]


def _obey(commands: Sequence[Sequence[str]], told: Connection, go: Connection, most: int | None) -> None:
    for stream in (1, 2):
        os.dup2(told.fileno(), stream)
    # The streams that were inherited may believe that they are files, in which one can seek.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    go.recv()
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    from server.cli.app import run

    for command in commands:
        code = run(list(command))
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(1, f"\n== ended {code}\n".encode())
    os._exit(0)


def run(
    config: Path,
    *commands: Sequence[str],
    most: int | None = None,
    hold: Callable[[int], AbstractContextManager[None]] = _nothing,
) -> Ended:
    """Run commands on an installation, one after the other, in one process.

    ``most`` is the size in bytes that a file may grow to (RLIMIT_FSIZE); ``hold`` takes hold of the process, whose id
    it is handed, for as long as they run.
    """
    heard, told = _CONTEXT.Pipe(duplex=False)
    waits, go = _CONTEXT.Pipe(duplex=False)
    lines = [[command[0], "--config", str(config), *command[1:]] for command in commands]
    process = _CONTEXT.Process(target=_obey, args=(lines, told, waits, most))
    process.start()
    told.close()
    waits.close()
    assert process.pid is not None
    try:
        with hold(process.pid):
            go.send(True)
            text = _all_of(heard, time.monotonic() + PATIENCE)
            process.join(PATIENCE)
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        heard.close()
        go.close()
    ends = [line.split()[-1] for line in text.splitlines() if line.startswith("== ended ")]
    codes = [int(code) for code in ends]
    return Ended(text, (*codes, *[None] * (len(commands) - len(codes))))


def _all_of(pipe: Connection, deadline: float) -> str:
    data = b""
    while pipe.poll(max(0.0, deadline - time.monotonic())):
        chunk = os.read(pipe.fileno(), 1 << 16)
        if not chunk:
            break
        data += chunk
    return data.decode(errors="backslashreplace")
