"""Where the fixtures of each area are listed."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

from tests.support.warm import WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.workermanage import WorkerController

pytest_plugins = [
    name
    for name in (
        "tests.support.s3",
        "tests.support.sftp",
        "tests.support.site",
        "tests.support.program",
        "tests.support.rss_server",
        "tests.support.webhook_server",
    )
    if find_spec(name) is not None
]


def pytest_xdist_auto_num_workers() -> int:
    """Twice as many workers as cores: many tests wait, for a time-out or for what a process of theirs says."""
    return 2 * len(os.sched_getaffinity(0))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Let all workers fork their commands from one process, which is ready when the first of them asks."""
    node.workerinput["warm"] = WARM.begin()


def pytest_configure(config: pytest.Config) -> None:
    """Be one of these workers."""
    if hasattr(config, "workerinput"):
        WARM.join(config.workerinput["warm"])


# No test measures time, Hypothesis' own deadline included: both cores may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Every process of a test would compile all of its modules again: a start takes twice as long then. And every worker
# would rewrite the assertions of all tests again, in ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What we write is synced, and the tests would wait for the disk for a quarter of their time. In memory nothing waits.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
    _status = os.statvfs(_MEMORY)
    # So much that no disk of a test is nearly full, which is an alarm.
    _room = _status.f_bavail * _status.f_frsize >= 2 << 30 and _status.f_bavail * 2 >= _status.f_blocks
    if _room and not _status.f_flag & os.ST_NOEXEC:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# One expensive thing is shared by all tests of such a file: a booted machine, a demo, a store or a browser, or the
# syntax trees of the whole program.
_TOGETHER = (
    "tests/test_systemd_booted.py", "tests/cli/test_demo.py", "tests/megaphone/test_bucket_ceph.py",
    "tests/web/test_browser.py", "tests/test_layout.py", "tests/test_hints.py",
)  # fmt: skip
# Their tests take seconds each.
_LONG = (
    "tests/publish/test_simulation.py", "tests/publish/test_publisher_crash.py", "tests/publish/test_shared_nodes.py",
    "tests/sftp/test_fuzz.py",
)  # fmt: skip
# Their tests wait most of the time: for a time-out, or for what another process says.
_WAITING = (
    "tests/test_systemd_booted.py", "tests/cli/test_demo.py", "tests/megaphone/test_bucket_ceph.py",
    "tests/web/test_browser.py",
    "tests/cli/test_check.py", "tests/cli/test_days.py", "tests/cli/test_doctor.py", "tests/episodes/test_fetch.py",
    "tests/sftp/attacks/test_words.py", "tests/sftp/test_algorithms.py", "tests/sftp/test_clients.py",
    "tests/sftp/test_greedy_clients.py", "tests/sftp/test_login.py", "tests/sftp/test_slow_clients.py",
    "tests/status/test_episodes.py", "tests/status/test_metrics.py", "tests/status/test_webhook.py",
    "tests/test_restoring.py", "tests/test_service.py", "tests/test_service_signals.py", "tests/test_two_nodes.py",
)  # fmt: skip


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


class _InThreeSizes(LoadScopeScheduling):
    """Gives a worker all tests of a file, one test, or all cases of a test: a message to it costs a millisecond.

    Half of the workers wait while the others compute: if all of them waited at the same time, the cores would rest.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        waits = node in self.nodes[: len(self.nodes) // 2]
        scope = next((scope for scope in self.workqueue if (_file(scope) in _WAITING) is waits), None)
        if scope is not None:
            self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)

    def _split_scope(self, nodeid: str) -> str:
        file = _file(nodeid)
        return file if file in _TOGETHER else nodeid if file in _LONG else nodeid.partition("[")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Distribute the tests in the order of `pytest_collection_modifyitems`.

    The mark xdist_group has no effect under pytest 9.2 with xdist 3.8.
    """
    config.option.loadscopereorder = False
    return _InThreeSizes(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Let the workers begin at different files, so that the assertions of each are rewritten once, by one of them."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None:
        return
    paths = [session.config.invocation_params.dir / arg.partition("::")[0] for arg in session.config.args]
    files = sorted({file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))})
    begin = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for file in files[begin:] + files[:begin]:
        with suppress(Exception, pytest.skip.Exception):  # collecting it says what is wrong
            importlib.import_module(".".join(file.relative_to(session.config.rootpath).with_suffix("").parts))


def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker is left alone with it at the end."""
    if hasattr(session.config, "workerinput"):
        items.sort(key=lambda item: (_file(item.nodeid) not in _TOGETHER, _file(item.nodeid) not in _LONG))


def pytest_collection_finish() -> None:
    """Spare each collection of garbage what stays: thousands of tests, and later what has outlived a whole one."""
    # Before: Hypothesis looks, once, for what refers to its dice, and does not find what is frozen.
    hypothesis.find(hypothesis.strategies.none(), lambda _: True)
    gc.freeze()
    gc.callbacks.append(_freeze_what_is_left)


def _freeze_what_is_left(phase: str, about: dict[str, int]) -> None:
    if phase == "stop" and about["generation"] == 2:
        gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the last collections, which find what nobody has closed, look at everything."""
    with suppress(ValueError):  # the controller of the workers collects no tests
        gc.callbacks.remove(_freeze_what_is_left)
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _log_output_as_it_was() -> Iterator[None]:
    """Forget how a command that ran in this process has set up the log: its standard error ends with its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
