"""Runs pickup-point under libfaketime: `python -m benchmarks.faults.tools.set_clock serve …`, preloaded by the caller.

libfaketime 0.9.10 cannot sleep on the monotonic clock as Python 3.11 does (clock_nanosleep until an instant: EINVAL),
so this process sleeps by waiting for what never comes.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import SupportsIndex

from server import service
from server.cli.app import main


def _sleep(seconds: float | SupportsIndex) -> None:
    threading.Event().wait(float(seconds))


if __name__ == "__main__":
    time.sleep = _sleep
    service.PRUNE_EVERY = timedelta(seconds=0.2)  # so that a jump often comes between a round and a pass
    main()
