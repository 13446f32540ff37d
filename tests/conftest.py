"""Where the fixtures of each area are listed."""

from __future__ import annotations

import os
from importlib.util import find_spec

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
