"""Spreads the tests over processes that are forked from the one that has collected them: ``-n``.

Thousands of tests are imported and collected once, not by every worker, and a worker sends one message for each test.
``-n 0`` runs all tests in this process, as ``--pdb`` does. A worker that dies fails the test that it ran, and another
one carries on.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

_FORK = multiprocessing.get_context("fork")

# One expensive thing is shared by all tests of such a file: a booted machine, a demo, a store or a browser, or the
# syntax trees of the whole program.
_TOGETHER = (
    "tests/test_systemd_booted.py", "tests/cli/test_demo.py", "tests/megaphone/test_bucket_ceph.py",
    "tests/web/test_browser.py", "tests/test_layout.py", "tests/test_hints.py",
)  # fmt: skip
# Their tests take seconds each.
_LONG = (
    "tests/publish/test_simulation.py", "tests/publish/test_publisher_crash.py", "tests/publish/test_shared_nodes.py",
    "tests/test_two_nodes.py", "tests/sftp/test_greedy_clients.py", "tests/sftp/test_fuzz.py",
    "tests/sftp/test_clients.py", "tests/test_restoring.py", "tests/status/test_episodes.py",
)  # fmt: skip


def _unit_of(nodeid: str) -> str:
    """What a worker is given at once: all tests of a file, one test, or all cases of a test."""
    file = nodeid.partition("::")[0]
    return file if file in _TOGETHER else nodeid if file in _LONG else nodeid.partition("[")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``-n``; pytest keeps lower-case options for plug-ins, and this is the way in that all of them use."""
    parser.getgroup("workers")._addoption(
        "-n", "--workers", default="auto", metavar="N", help="processes that run tests; 0: this one (default: auto)"
    )


def _wanted(config: pytest.Config) -> int:
    """Half as many workers again as cores: many tests wait, for a time-out or for what a process of theirs says."""
    if config.option.usepdb:
        return 0
    cores = len(os.sched_getaffinity(0))
    return cores + cores // 2 if config.option.workers == "auto" else int(config.option.workers)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Name no files between the dots: they belong to several at once."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _wanted(config) and reporter.verbosity == 0:
        reporter.showfspath = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker is left alone with it at the end."""
    if _wanted(config):
        files = {item: item.nodeid.partition("::")[0] for item in items}
        items.sort(key=lambda item: (files[item] not in _TOGETHER, files[item] not in _LONG))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the tests of the session in workers."""
    count = _wanted(session.config)
    if not count or len(session.items) < 2 or session.config.option.collectonly or session.testsfailed:
        return None
    with closing(_Workers(session)) as workers:
        workers.run(min(count, len(workers.units)))
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    return True


@dataclass(eq=False)
class _Worker:
    """A worker as the others see it: ``waiting`` are the tests that it was told to run, the first one runs."""

    process: BaseProcess
    connection: Connection
    waiting: deque[int] = field(default_factory=deque)


class _Workers:
    """Hands out units, each a list of tests for one worker, in the order of the session."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._hook = session.config.hook
        self._running: list[_Worker] = []
        self._started = 0
        units: dict[str, list[int]] = {}
        for index, item in enumerate(session.items):
            units.setdefault(_unit_of(item.nodeid), []).append(index)
        self.units = deque(units.values())

    def run(self, count: int) -> None:
        """Return when every test has run, or as soon as the session is to stop."""
        self._session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # before anybody forks
        for _ in range(count):
            self._start()
        while self._running:
            of = {worker.connection: worker for worker in self._running}
            # A process that a test left behind holds the connection open when its worker is dead.
            for connection in wait(list(of), 1) or [c for c, worker in of.items() if not worker.process.is_alive()]:
                self._listen(of[connection])

    def _start(self) -> None:
        ours, theirs = _FORK.Pipe()
        # A copy of our end in another worker would keep this one waiting for ever after our own death.
        foreign = [worker.connection for worker in self._running]
        gc.freeze()
        process = _FORK.Process(target=_work, args=(self._session, theirs, [ours, *foreign], self._started))
        process.start()
        theirs.close()
        self._started += 1
        worker = _Worker(process, ours)
        self._running.append(worker)
        self._give(worker)

    def _stopping(self) -> bool:
        return bool(self._session.shouldfail or self._session.shouldstop)

    def _give(self, worker: _Worker) -> None:
        unit = self.units.popleft() if self.units and not self._stopping() else []
        worker.waiting.extend(unit)
        worker.connection.send(unit)

    def _listen(self, worker: _Worker) -> None:
        """Take one message: the reports of a test, warnings, or the wish for more."""
        try:
            said, more = worker.connection.recv() if worker.connection.poll() else ("ended", None)
            if said == "more":
                self._give(worker)
        except (EOFError, OSError):  # a reset too: it died before it had read all that it was given
            said, more = "ended", None
        if said == "ended":
            self._ended(worker)
        elif said == "warning":
            self._hook.pytest_warning_recorded.call_historic(kwargs=more)
        elif said == "reports":
            item = self._session.items[worker.waiting.popleft()]
            restore = self._hook.pytest_report_from_serializable
            self._tell(item, [restore(config=self._session.config, data=data) for data in more])

    def _tell(self, item: pytest.Item, reports: list[pytest.TestReport]) -> None:
        self._hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        went_on = not self._stopping()
        for report in reports:
            self._hook.pytest_runtest_logreport(report=report)
        self._hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if went_on and self._stopping():
            for worker in self._running:
                with suppress(OSError):  # it has just died
                    worker.connection.send([])

    def _ended(self, worker: _Worker) -> None:
        """Let another one carry on, if there is still something to do."""
        self._running.remove(worker)
        worker.connection.close()
        worker.process.join()
        if worker.process.exitcode == 0 and self._stopping():
            return
        if worker.waiting:
            item = self._session.items[worker.waiting.popleft()]
            words = f"the process that ran this test ended: exit code {worker.process.exitcode}"
            self._tell(item, [pytest.TestReport(item.nodeid, item.location, {}, "failed", words, "call")])
            if worker.waiting:
                self.units.appendleft(list(worker.waiting))
        elif worker.process.exitcode:
            raise RuntimeError(f"a worker ended after its tests: exit code {worker.process.exitcode}")
        if self.units and not self._stopping():
            self._start()

    def close(self) -> None:
        """End those that still run, which is so if we were interrupted: by a terminal, and so were they."""
        for worker in self._running:
            worker.connection.close()
        for number in (0, signal.SIGINT, signal.SIGKILL):
            for worker in self._running:
                if number and worker.process.pid and worker.process.is_alive():
                    os.kill(worker.process.pid, number)
            for worker in self._running:
                worker.process.join(5)


def _work(session: pytest.Session, ours: Connection, foreign: list[Connection], number: int) -> None:
    """Be a worker: run what is given until there is nothing any more."""
    for connection in foreign:
        connection.close()
    capture: Any = session.config.pluginmanager.get_plugin("capturemanager")
    if capture.is_globally_capturing():  # into files of its own
        capture.stop_global_capturing()
        capture.start_global_capturing()
        capture.suspend_global_capture()
    folders = session.config._tmp_path_factory  # type: ignore[attr-defined]
    folders._basetemp = folders.getbasetemp() / f"w{number}"
    folders._basetemp.mkdir(0o700)
    session.config.pluginmanager.register(_Sender(session.config, ours))
    with suppress(KeyboardInterrupt, EOFError, OSError):  # of those who interrupt us, or are gone
        tests = _given(session, ours)
        item = next(tests, None)
        while item is not None:
            following = next(tests, None)  # asked for first: what both share is not torn down between them
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            item = following
    session._setupstate.teardown_exact(None)  # what an interrupted test has left, such as a demo or a store


def _given(session: pytest.Session, ours: Connection) -> Iterator[pytest.Item]:
    while unit := ours.recv():
        for index in unit:
            if ours.poll():  # nothing more, before we asked: another worker's test was the last one to be run
                return
            yield session.items[index]
        ours.send(("more", None))


class _Sender:
    """Runs a test as pytest does, and sends what it would have told its plug-ins."""

    def __init__(self, config: pytest.Config, ours: Connection) -> None:
        self._config = config
        self._ours = ours

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Send the reports of one test, in one message."""
        serialize = self._config.hook.pytest_report_to_serializable
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        self._ours.send(("reports", [serialize(config=self._config, report=report) for report in reports]))
        return True

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str, location: Any) -> None:
        """Send a warning; its class may be one that only exists here."""
        warning_message.message, warning_message.category = UserWarning(str(warning_message.message)), UserWarning
        warning_message.source = None
        more = {"warning_message": warning_message, "when": when, "nodeid": nodeid, "location": location}
        self._ours.send(("warning", more))
