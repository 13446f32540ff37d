"""`pickup-point` with a bucket that is waited for less long and looked at more often: many faults fit into a minute.

Everything else is the program itself: ``python -m benchmarks.faults.bucket_hasty serve --config …``. `HASTE` is also
what the virtual hours read with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import server.megaphone.bucket
import server.service
from server.cli.app import main
from server.s3.retry import RetryPolicy

if TYPE_CHECKING:
    from datetime import timedelta

HASTE = RetryPolicy(
    connect=1, silence=0.3, call=3, window=0.4, least_rate=25_000, tries=4, first_pause=0.01, longest_pause=0.05,
    sdk_tries=1,
)  # fmt: skip
OFTEN = 8  # times in what `export.poll_every` says: no configuration may name less than a second


class _Hasty(server.service.Service):
    async def _pause(self, pause: timedelta) -> None:
        await super()._pause(pause / OFTEN)


def _haste() -> RetryPolicy:
    return HASTE


if __name__ == "__main__":
    vars(server.megaphone.bucket)["Patience"] = _haste  # what `Bucket` takes when it is told nothing
    vars(server.service)["Service"] = _Hasty
    main()
