"""`pickup-point` with a bucket that is waited for less long and looked at more often: many faults fit into a minute.

Everything else is the program itself: ``python -m benchmarks.faults.bucket_hasty serve --config …``. `HASTE` is also
what the virtual hours read with.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

import server.megaphone.bucket
from server.cli.app import main
from server.s3.retry import RetryPolicy
from server.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

HASTE = RetryPolicy(
    connect=1, silence=0.3, call=3, window=0.4, least_rate=25_000, tries=4, first_pause=0.01, longest_pause=0.05,
    sdk_tries=1,
)  # fmt: skip
OFTEN = 8  # times in what `export.poll_every` says: no configuration may name less than a second


@contextmanager
def hastened() -> Iterator[None]:
    """Replace the program's patience within the block; fails if it is no longer where it was."""
    pause = Service._pause  # noqa: SLF001  # there is no other way to wait less

    async def shorter(service: Service, whole: timedelta) -> None:
        await pause(service, whole / OFTEN)

    patience = patch.object(server.megaphone.bucket, "RetryPolicy", lambda: HASTE)  # what `Bucket` takes by itself
    with patience, patch.object(Service, "_pause", shorter):
        yield


if __name__ == "__main__":
    with hastened():
        main()
