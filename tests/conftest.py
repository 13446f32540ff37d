"""Where the fixtures of each area are listed."""

from __future__ import annotations

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
