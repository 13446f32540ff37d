"""Where the fixtures of each area are listed."""

from __future__ import annotations

import gc
import logging
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog

from tests.support.warm import WARM

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = [
    name
    for name in (
        "tests.support.workers",
        "tests.support.s3",
        "tests.support.sftp",
        "tests.support.site",
        "tests.support.program",
        "tests.support.rss_server",
        "tests.support.webhook_server",
    )
    if find_spec(name) is not None
]


# So many tests are not those of one room.
MANY = 1000

# No test measures time, Hypothesis' own deadline included: both cores may be busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Every process of a test would compile all of its modules again: a start takes twice as long then. And every run would
# rewrite the assertions of all tests again, in ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare each later collection of garbage what stays to the end: thousands of tests."""
    gc.freeze()
    if len(session.items) >= MANY and not session.config.option.collectonly:
        WARM.begin()  # every worker will want one, and forks it from this one


@pytest.fixture(autouse=True)
def _log_output_as_it_was() -> Iterator[None]:
    """Forget how a command that ran in this process has set up the log: its standard error ends with its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
