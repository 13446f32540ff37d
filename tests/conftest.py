"""Where the fixtures of each area are listed."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """Half as many workers again as cores: many tests wait, for a time-out or for what a process of theirs says."""
    cores = len(os.sched_getaffinity(0))
    return cores + cores // 2


# No test measures time, Hypothesis' own deadline included: both cores may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Every process of a test would compile all of its modules again: a start takes twice as long then.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# One expensive thing is shared by all tests of such a file: a booted machine, a demo, a store or a browser.
_TOGETHER = (
    "tests/test_systemd_booted.py", "tests/cli/test_demo.py", "tests/megaphone/test_bucket_ceph.py",
    "tests/web/test_browser.py",
)  # fmt: skip


class _TogetherByFile(LoadScopeScheduling):
    """Gives the tests of some files to one worker each, and these first; all others one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file in _TOGETHER else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Distribute the tests. The mark xdist_group has no effect under pytest 9.2 with xdist 3.8."""
    return _TogetherByFile(config, log)


@pytest.fixture(autouse=True)
def _log_output_as_it_was() -> Iterator[None]:
    """Forget how a command that ran in this process has set up the log: its standard error ends with its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
