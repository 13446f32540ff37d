"""Where the fixtures of each area are listed."""

from __future__ import annotations

from importlib.util import find_spec

pytest_plugins = [
    name
    for name in (
        "tests.fixtures_s3",
        "tests.fixtures_sftp",
        "tests.fixtures_feed",
        "tests.fixtures_service",
        "tests.fixtures_rss",
        "tests.fixtures_ops",
    )
    if find_spec(name) is not None
]
