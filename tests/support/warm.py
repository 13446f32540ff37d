"""Commands of pickup-point that start at once: forked from a process that has already imported everything.

Each is a process of its own, with its own files, environment, locks and end; only the imports are shared. One parent
serves a whole run of tests: ``python -P tests/support/warm.py`` with a socket as its standard input.
"""

from __future__ import annotations

import atexit
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
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parent.parent.parent
MOST = 1 << 20  # bytes of a request
# What an interpreter reads when it starts: a command with other values of these needs an interpreter of its own.
_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "TZ", "SHIFTED_CLOCK", "MALLOC_")
_NOT_IMPORTED = ("__main__", "libkernel")  # a program; a library that is only named like a module


class Forked:
    """A command, with as much of `subprocess.Popen` as the tests use."""

    def __init__(self, pid: int, ended: int, args: Sequence[str], pipes: Sequence[int]) -> None:
        self.pid = pid
        self.args = list(args)
        self.returncode: int | None = None
        self.stdin = None
        self.stdout, self.stderr = (os.fdopen(pipe, "rb") for pipe in pipes)
        self._ended = ended

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the command to end; return its exit code, or the negative number of the signal that killed it."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = int(os.read(self._ended, 100))
            os.close(self._ended)
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, if the command still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the command at once."""
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that commands are forked from, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._at_start: dict[str, str] = {}

    def serves(self, env: Mapping[str, str]) -> bool:
        """Return whether a command with this environment can be forked: its interpreter would start as this one did."""
        with self._lock:
            if self._socket is None:
                self._begin(env)
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

    def start(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: int) -> Forked:
        """Start ``pickup-point`` with these arguments; its output goes to pipes."""
        assert self._socket is not None
        (out, out_end), (err, err_end), (ended, ended_end) = os.pipe(), os.pipe(), os.pipe()
        request = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
        try:
            with self._lock:
                socket.send_fds(self._socket, [request], [stdin, out_end, err_end, ended_end])
                pid = int(self._socket.recv(100))
        finally:
            for end in (out_end, err_end, ended_end):
                os.close(end)
        return Forked(pid, ended, ["pickup-point", *arguments], (out, err))


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
                pipe = children.pop(pid)
                os.write(pipe, b"%d" % os.waitstatus_to_exitcode(status))
                os.close(pipe)
        if requests in ready:
            data, fds, _, _ = socket.recv_fds(requests, MOST, 4)
            if not data:
                return
            pid = os.fork()
            if not pid:
                _become(json.loads(data), fds)
            for fd in fds[:3]:
                os.close(fd)
            children[pid] = fds[3]
            requests.send(b"%d" % pid)


def _become(wanted: dict[str, Any], fds: list[int]) -> None:
    """Turn this process into the command; never return."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    os.closerange(3, max(fds) + 100)
    os.chdir(wanted["cwd"])
    os.environ.clear()
    os.environ.update(wanted["env"])
    sys.argv = [str(ROOT / "server" / "__main__.py"), *wanted["arguments"]]
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
    gc.freeze()
    _serve(requests_here)
