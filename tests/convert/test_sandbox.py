"""What the conversion process can no longer do once it reads a byte of an export. Starts processes that try it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_FORBIDDEN = {
    "a socket": "socket.socket()",
    "a pair of sockets": "socket.socketpair()",
    "a program": "os.execv('/bin/true', ['true'])",
    "a child": "os.fork()",
    "a spawned program": "os.posix_spawn('/bin/true', ['true'], {})",
    "a signal to its parent": "os.kill(os.getppid(), 0)",
    "a signal to a thread of its parent": "call(tgkill, os.getppid(), os.getppid(), 0)",
    "a signal to any thread": "call(tkill, os.getppid(), 0)",
    "a signal by a descriptor": "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "a limit of its parent": "resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "its parent's priority": "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "its parent's processors": "os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))",
    "its parent's scheduling": "os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))",
    "its user's keys": "call(keyctl, 0, 0, 0)",
    "a key on its terminal": "fcntl.ioctl(0, termios.TIOCSTI, b'x')",
    "another's memory": "call(ptrace, 16, 1, 0, 0)",
}


def test_the_sandbox_denies() -> None:
    """What it can no longer do once it reads a byte of an export; to itself it still may."""
    program = f"""
import ctypes, fcntl, os, resource, signal, socket, sys, termios, threading
sys.path.insert(0, {str(ROOT)!r})
from server.convert import sandbox
sandbox.enter()
threads = [threading.Thread(target=os.write, args=(1, b"a thread\\n")) for _ in range(2)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
tgkill, tkill, ptrace, keyctl = {{"x86_64": (234, 200, 101, 250), "aarch64": (131, 130, 117, 219)}}[os.uname().machine]
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) == -1: raise OSError(ctypes.get_errno(), "")
for what, attempt in {_FORBIDDEN!r}.items():
    try: exec(attempt)
    except PermissionError: print(what, flush=True)
    except OSError: pass
signal.signal(signal.SIGUSR1, lambda *_: print("itself", flush=True))
signal.raise_signal(signal.SIGUSR1)
sandbox.limit_memory(1)
fcntl.fcntl(0, fcntl.F_GETFL)
print(resource.getrlimit(resource.RLIMIT_CORE), open("/proc/self/status").read())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    expected = "\n".join(["a thread", "a thread", *_FORBIDDEN, "itself", "(0, 0)"])
    assert done.stdout.startswith(expected), done
    assert "NoNewPrivs:\t1" in done.stdout
    assert "Seccomp:\t2" in done.stdout


def test_memory_is_limited() -> None:
    """More than it is allowed is a MemoryError, long before the machine runs out."""
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from server.convert import sandbox
sandbox.limit_memory(1)
bytes(1 << 30)
try:
    bytes(1280 << 20)
except MemoryError:
    print("no more")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "no more\n", done
