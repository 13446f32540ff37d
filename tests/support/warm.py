"""Processes of pickup-point that start at once: forked from a process that has already imported everything.

Commands, and the process that converts. Each is a process of its own, with its own files, environment, locks, sandbox
and end; only the imports are shared. One parent serves a whole run of tests: ``python -P tests/support/warm.py`` with a
socket as its standard input. Each worker of the tests has a copy of it, forked likewise.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parent.parent.parent
MOST = 1 << 20  # bytes of a request
MOST_FDS = 253  # of a message: SCM_MAX_FD of unix(7)
# What an interpreter reads when it starts: a command with other values of these needs an interpreter of its own.
_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "TZ", "SHIFTED_CLOCK", "MALLOC_")
OURS = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}  # of every process of the tests
_NOT_IMPORTED = ("__main__", "libkernel")  # a program; a library that is only named like a module


class Forked:
    """A process, with as much of `subprocess.Popen` as is used of it."""

    def __init__(
        self, pid: int, ended: int, args: Sequence[str], *, stdin: int | None = None, stdout: int, stderr: int | None
    ) -> None:
        self.pid = pid
        self.args = list(args)
        self.returncode: int | None = None
        self.stdin = None if stdin is None else os.fdopen(stdin, "wb", 0)
        self.stdout = os.fdopen(stdout, "rb", -1 if stdin is None else 0)
        self.stderr = None if stderr is None else os.fdopen(stderr, "rb")
        self._ended = ended

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end; return its exit code, or the negative number of the signal that killed it."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = int(os.read(self._ended, 100))
            os.close(self._ended)
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process at once."""
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that commands are forked from, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._at_start: dict[str, str] = {}
        self._owner = 0

    def serves(self, env: Mapping[str, str]) -> bool:
        """Return whether a command with this environment can be forked: its interpreter would start as this one did."""
        self.begin()
        return _what_counts_at_start(env) == self._at_start

    def _begin(self, env: Mapping[str, str]) -> None:
        """Start the process."""
        self._at_start = _what_counts_at_start(env)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [sys.executable, "-P", __file__], cwd=ROOT, env=dict(env),
            stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,  # pipes, as for its children: no seeking
        )  # fmt: skip
        theirs.close()
        self._socket = ours
        atexit.register(_end, ours, process)

    def start(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: int, first: str = ""
    ) -> Forked:
        """Start ``pickup-point`` with these arguments, once it has run ``first``; its output goes to pipes."""
        (out, out_end), (err, err_end), (ended, ended_end) = os.pipe(), os.pipe(), os.pipe()
        try:
            request = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env), "first": first}
            pid = self._fork(request, [stdin, out_end, err_end, ended_end])
        finally:
            for end in (out_end, err_end, ended_end):
                os.close(end)
        return Forked(pid, ended, ["pickup-point", *arguments], stdout=out, stderr=err)

    def start_conversion(self, descriptors: Sequence[int], environment: Mapping[str, str]) -> Forked:
        """Start a process that converts, as `server.convert.process.start` does; ``descriptors`` keep their numbers."""
        self.begin()
        (in_end, into), (out, out_end), (ended, ended_end) = os.pipe(), os.pipe(), os.pipe()
        try:
            request = {"descriptors": list(descriptors), "env": dict(environment)}
            pid = self._fork(request, [in_end, out_end, out_end, ended_end, *descriptors])
        finally:
            for end in (in_end, out_end, ended_end):
                os.close(end)
        return Forked(pid, ended, ["server.convert"], stdin=into, stdout=out, stderr=None)

    def begin(self) -> None:
        """Start the process that the others are forked from, unless it runs."""
        with self._lock:
            if self._socket is None:
                # Whatever comes first, a command or a conversion: it is the same process, for either.
                self._begin({**os.environ, **OURS})
            elif self._owner != os.getpid():
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                socket.send_fds(self._socket, [b"{}"], [theirs.fileno()])
                theirs.close()
                self._socket.close()
                self._socket = ours
            self._owner = os.getpid()

    def _fork(self, request: dict[str, Any], fds: list[int]) -> int:
        """Return the number of a process that does as the request says, and was given ``fds``."""
        assert self._socket is not None
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            return int(self._socket.recv(100))


WARM = Warm()


def _what_counts_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_AT_START)}


def _end(ours: socket.socket, process: subprocess.Popen[bytes]) -> None:
    ours.close()
    process.wait(10)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _serve(requests: socket.socket) -> None:
    """Fork a command for each request until the other side is gone; write each one's exit code into its pipe."""
    children: dict[int, int] = {}
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    signal.set_wakeup_fd(wake)
    while True:
        ready = select.select([requests, awake], [], [])[0]
        if awake in ready:
            os.read(awake, 1000)
            while children:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                pipe = children.pop(pid, None)
                if pipe is not None:
                    os.write(pipe, b"%d" % os.waitstatus_to_exitcode(status))
                    os.close(pipe)
        if requests in ready:
            data, fds, _, _ = socket.recv_fds(requests, MOST, MOST_FDS)
            if not data:
                return
            wanted = json.loads(data)
            pid = os.fork()
            if not pid and not wanted:  # another one that serves, which nobody waits for
                signal.set_wakeup_fd(-1)
                requests.close()
                requests = socket.socket(fileno=fds[0])
                for fd in (awake, wake, *children.values()):
                    os.close(fd)
                _serve(requests)
                os._exit(0)
            if not pid:
                _become(wanted, fds)
            if not wanted:
                os.close(fds[0])
                continue
            for fd in (*fds[:3], *fds[4:]):
                os.close(fd)
            children[pid] = fds[3]
            requests.send(b"%d" % pid)


def _become(wanted: dict[str, Any], fds: list[int]) -> None:
    """Turn this process into what was asked for; never return."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(wanted["env"])
    numbers = [0, 1, 2, *wanted.get("descriptors", ())]
    # First out of the way: a number that one of them is to have may be another one's now.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, max(numbers) + 1) for fd in (*fds[:3], *fds[4:])]
    for number, fd in zip(numbers, moved, strict=True):
        os.dup2(fd, number)
    for fd in (int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
        if fd not in numbers:
            with suppress(OSError):  # the one by which the folder was read
                os.close(fd)
    if "descriptors" in wanted:
        import_module("server.convert.__main__").main()
        os._exit(1)
    os.chdir(wanted["cwd"])
    sys.argv = [str(ROOT / "server" / "__main__.py"), *wanted["arguments"]]
    exec(wanted["first"], {})
    program = import_module("server.__main__")
    itself, sys.modules["__main__"] = sys.modules["__main__"], program  # click looks there for how it was started
    code = 1
    try:
        program.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter ends: joins non-daemon threads
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        del itself
        os._exit(code)


if __name__ == "__main__":
    requests_here = socket.socket(fileno=os.dup(0))
    import server

    for module in pkgutil.walk_packages(server.__path__, "server."):
        if module.name.rpartition(".")[2] not in _NOT_IMPORTED:
            import_module(module.name)
    import_module("server.convert.__main__")
    import_module("server.cli.app").commands()
    gc.freeze()
    _serve(requests_here)
