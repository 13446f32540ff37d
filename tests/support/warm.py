"""Processes of pickup-point that start at once: forked from a process that has already imported everything.

Commands, and the process that converts. Each is a process of its own, with its own files, environment, locks, sandbox
and end; only the imports are shared. One parent serves a whole run of tests, its workers and the commands it forked:
``python -P tests/support/warm.py NUMBER`` listens on the socket with that number; it ends with its standard input.
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
from functools import partial, wraps
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
_LATER = ("encodings.idna", "pwd", "rich._emoji_codes", "uvloop")  # what commands import while they run
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
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end; return its exit code, or the negative number of the signal that killed it."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            with self._lock:  # one thread may wait while another one kills
                if self.returncode is None:
                    self.returncode = int(os.read(self._ended, 100))
        return self.returncode

    def __del__(self) -> None:
        """Close only now: another thread may have been about to wait, for what would be another file by then."""
        os.close(self._ended)

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # its end is told a moment after it
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process at once."""
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that commands are forked from, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address = ""
        self._at_start: dict[str, str] = {}

    def serves(self, env: Mapping[str, str]) -> bool:
        """Return whether a command with this environment can be forked: its interpreter would start as this one did."""
        self.begin()
        return _what_counts_at_start(env) == self._at_start

    def begin(self) -> str:
        """Start the process that the others are forked from, unless it runs; return where it listens."""
        with self._lock:
            if not self._address:
                # Whatever comes first, a command or a conversion: it is the same process, for either.
                self._begin({**os.environ, **OURS})
        return self._address

    def _begin(self, env: Mapping[str, str]) -> None:
        """Start the process."""
        self._at_start = _what_counts_at_start(env)
        ours, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind("")  # unix(7): the system chooses an abstract name
            listener.listen(100)
            self._address = listener.getsockname().decode()
            process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(listener.fileno())], cwd=ROOT, env=dict(env),
                pass_fds=[listener.fileno()],
                stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE,  # pipes, as for its children: no seeking
            )  # fmt: skip
        atexit.register(_end, ours, process)

    def join(self, address: str) -> None:
        """Ask the process that listens there, which was started with the environment of this one."""
        self._address, self._at_start = address, _what_counts_at_start({**os.environ, **OURS})

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

    def _fork(self, request: dict[str, Any], fds: list[int]) -> int:
        """Return the number of a process that does as the request says, and was given ``fds``."""
        # A connection for each request: none stays open in a command that converts.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
            asked.connect(self._address)
            socket.send_fds(asked, [json.dumps(request).encode()], fds)
            return int(asked.recv(100))


WARM = Warm()
# What a command runs ``first`` whose conversions are to be its own children, started as an operator's are.
OWN_CONVERSIONS = "import inspect; from server.convert import process; process.start = inspect.unwrap(process.start)"


def _what_counts_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_AT_START)}


def _end(ours: socket.socket, process: subprocess.Popen[bytes]) -> None:
    ours.shutdown(socket.SHUT_RDWR)  # whoever else may hold a copy
    ours.close()
    process.wait(10)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _serve(listener: socket.socket) -> None:
    """Fork a process for each request until standard input ends; write each one's exit code into its pipe."""
    children: dict[int, int] = {}
    address = listener.getsockname().decode()
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    signal.set_wakeup_fd(wake)
    while True:
        ready = select.select([0, listener, awake], [], [])[0]
        if awake in ready:
            os.read(awake, 1000)
            while children:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                pipe = children.pop(pid)
                os.write(pipe, b"%d" % os.waitstatus_to_exitcode(status))
                os.close(pipe)
        if 0 in ready:
            return
        if listener in ready:
            with listener.accept()[0] as asking:
                data, fds, _, _ = socket.recv_fds(asking, MOST, MOST_FDS)
                if not data:  # who asked was killed
                    continue
                pid = os.fork()
                if not pid:
                    _become(json.loads(data), fds, address)
                for fd in (*fds[:3], *fds[4:]):
                    os.close(fd)
                children[pid] = fds[3]
                with suppress(OSError):  # as above
                    asking.send(b"%d" % pid)


def _become(wanted: dict[str, Any], fds: list[int], address: str) -> None:
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
    process = import_module("server.convert.process")
    WARM.join(address)
    process.start = wraps(process.start)(partial(WARM.start_conversion))
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
    import server

    for module in pkgutil.walk_packages(server.__path__, "server."):
        if module.name.rpartition(".")[2] not in _NOT_IMPORTED:
            import_module(module.name)
    for name in ("server.__main__", "server.convert.__main__", *_LATER):
        import_module(name)
    bucket = import_module("server.s3.client")
    bucket._models()  # 0.3 s of work for each process that reads from a bucket
    bucket._handlers()
    # Its parameters are made when a command is parsed for the first time.
    for name, one in import_module("server.cli.app").commands().commands.items():
        one.make_context(name, [], resilient_parsing=True).close()
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
