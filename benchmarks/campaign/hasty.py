"""`pickup-point` with a bucket that is waited for less long, so that many faults fit into a minute.

Everything else is the program itself: ``python -m benchmarks.campaign.hasty serve --config …``. `HASTE` is also what
the virtual hours read with.
"""

from __future__ import annotations

import server.bucket
from server.cli import main
from server.patience import Patience

HASTE = Patience(
    connect=1, silence=0.3, call=3, window=0.4, least_rate=25_000, tries=4, first_pause=0.01, longest_pause=0.05,
    sdk_tries=1,
)  # fmt: skip


def _hasty() -> Patience:
    return HASTE


if __name__ == "__main__":
    vars(server.bucket)["Patience"] = _hasty  # what `Bucket` takes when it is told nothing
    main()
