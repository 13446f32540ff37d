"""Worker processes end with the conversion, however it ends, and a worker that dies ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from server.convert.crew import Workers
from server.convert.day import Tuning
from server.convert.job import Setup
from server.convert.slots import SLOT
from server.errors import ConversionFailed

from ..support.reference_conversion import SMALL, assert_is, conversion, convert, convert_slowly, export_file, sample
from ..support.rows import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable


def _all_children() -> set[int]:
    """The processes that any thread of this one has started and not waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_fails_the_conversion_and_leaves_nothing(tmp_path: Path, how: signal.Signals) -> None:
    """One sentence that names the signal; no process and no file remains."""
    path = export_file(tmp_path, sample(2000))
    before = _all_children()

    def kill(_: int) -> None:
        for child in _all_children() - before:
            os.kill(child, how)

    with pytest.raises(ConversionFailed, match=f"signal {how.value}"):
        convert(path, workers=2, progress=kill)
    assert _all_children() == before
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_from_another_thread_ends_everything_at_once(tmp_path: Path, workers: int) -> None:
    """The conversion raises, and its processes are gone."""
    path, stop, before = export_file(tmp_path, sample(3000)), threading.Event(), _all_children()
    with pytest.raises(ConversionFailed, match="stopped"):
        convert(path, workers=workers, stop=stop, progress=lambda _: stop.set())
    assert _all_children() == before


def test_an_error_of_the_sink_ends_the_workers(tmp_path: Path) -> None:
    """Whatever ends the conversion, no process outlives it."""
    path, before = export_file(tmp_path, sample(2000)), _all_children()

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(path, workers=2, progress=fail)
    assert _all_children() == before


_ORPHANS = """
import sys, time
from pathlib import Path
from tests.support.reference_conversion import SMALL, MemorySink, conversion
from server.convert.day import convert_export

def wait(_):
    import os
    children = [c for task in Path("/proc/self/task").iterdir() for c in (task / "children").read_text().split()]
    print(*children, flush=True)
    time.sleep(60)

export, scratch = map(Path, sys.argv[1:])
convert_export(export, conversion(), MemorySink(), scratch=scratch, workers=2, tuning=SMALL, progress=wait)
"""


def test_workers_end_when_the_service_is_killed(tmp_path: Path) -> None:
    """Even kill -9, which no process can handle, leaves no worker behind, and no file."""
    path, scratch = export_file(tmp_path, sample(2000)), tmp_path / "scratch"
    scratch.mkdir()
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", _ORPHANS, str(path), str(scratch)], stdout=subprocess.PIPE, cwd=root
    ) as service:
        assert service.stdout is not None
        workers = [int(word) for word in service.stdout.readline().split()]
        assert len(workers) == 2
        service.kill()
    deadline = time.monotonic() + 20
    while any(_is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_is_running(worker) for worker in workers)
    assert list(scratch.iterdir()) == []


def _is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def test_workers_know_nothing_of_systemd_and_need_no_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get no notify socket, and a folder with a server.py of its own is no trap."""
    (tmp_path / "server.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "server").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"):
        monkeypatch.setenv(name, "1")
    rows = sample(100)
    assert_is(convert_slowly(rows, conversion()), *convert(export_file(tmp_path, rows), workers=2))
    before = set(_all_children())  # other tests' processes, say
    with Workers(1, Setup(conversion()), threading.Event()):
        (worker,) = set(_all_children()) - before
        environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
        assert not [entry for entry in environment if entry.startswith((b"NOTIFY_", b"WATCHDOG_", b"LISTEN_"))]
        descriptors = [Path(f"/proc/{worker}/fd/{n}").resolve() for n in (0, 1)]
        assert all(path.name.startswith("pipe:") for path in descriptors)


@pytest.mark.parametrize("how", ["refused", "absent"])
def test_where_memory_cannot_be_shared_the_rows_go_through_the_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A sandbox may refuse it, a system may not have it: the lines are the same."""

    def refuse(*_: object) -> int:
        raise PermissionError

    if how == "refused":
        monkeypatch.setattr(os, "memfd_create", refuse)
    else:
        monkeypatch.delattr(os, "memfd_create")
    rows = sample(500)
    assert_is(convert_slowly(rows, conversion()), *convert(export_file(tmp_path, rows), workers=2))


def test_rows_that_are_too_long_for_a_slot_go_through_the_pipe(tmp_path: Path) -> None:
    """Between others that are not, in their order."""
    rows = [orjson.dumps(GOOD | {"id": f"i{n}", "city": "x" * (SLOT if n % 3 == 1 else 1)}) for n in range(9)]
    assert_is(convert_slowly(rows, conversion()), *convert(export_file(tmp_path, rows), workers=2))


def test_a_crew_leaves_no_descriptor_open() -> None:
    """Neither pipes nor shared memory."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with Workers(2, Setup(conversion()), threading.Event()):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_small_export_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a few megabytes the calling thread does it all."""

    def refuse(*_: object, **__: object) -> Callable[[], None]:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    rows = sample(50)
    path = export_file(tmp_path, rows)
    assert_is(convert_slowly(rows, conversion()), *convert(path, workers=4, tuning=Tuning()))
    assert_is(convert_slowly(rows, conversion()), *convert(path, workers=1, tuning=SMALL))


def test_the_engine_needs_neither_the_network_nor_ssh() -> None:
    """A conversion by hand imports neither asyncssh nor aiobotocore, nor asyncio itself."""
    code = (
        "import sys, server.convert.day; "
        "print([m for m in ('asyncssh', 'aiobotocore', 'asyncio', 'pydantic', 'structlog') if m in sys.modules])"
    )
    root = Path(__file__).parent.parent.parent
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"
