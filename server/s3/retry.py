"""How long to wait for a source: the timeouts, the lowest rate, the number of tries.

Pure: seconds and bytes are passed in. The promise: every wait ends; a source that is silent, slow or failing is given
up after a bounded time, however it fails.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

LEAST_RATE = 32 * 1024  # bytes per second: a tenth of the slowest line on which a large day would still be on time
RATE_WINDOW = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The limits of one source, in seconds unless the name says otherwise.

    ``silence`` is the longest wait for the next byte; ``call`` is the longest wait for one whole request up to its
    headers, including the SDK's own ``sdk_tries``. A body must bring ``least_rate`` bytes per second over every
    ``window``. ``tries`` failures in a row, with fewer than ``worth`` new bytes between them, are the end; the pauses
    between them double from ``first_pause`` up to ``longest_pause``.
    """

    connect: float = 5.0
    silence: float = 20.0
    call: float = 120.0
    window: float = RATE_WINDOW
    least_rate: float = LEAST_RATE
    tries: int = 5
    first_pause: float = 0.5
    longest_pause: float = 20.0
    sdk_tries: int = 4

    @property
    def worth(self) -> int:
        """The bytes that make a broken-off read count as progress: as many as a window requires."""
        return max(1, int(self.least_rate * self.window))

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after ``failures`` in a row, half of it fixed and half random."""
        longest = min(self.longest_pause, self.first_pause * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, no secret


class RetryCounter:
    """Counts failures in a row; enough bytes between two of them reset the count."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._most = 0
        self._refused = False

    def failed(self, most: int) -> float | None:
        """Count a failure, and return the seconds to wait before the next try, or None to give up.

        ``most`` is the largest number of bytes ever received: a read that starts again from zero is no progress.
        """
        self._progress(most)
        self._failures += 1
        return None if self._failures >= self._policy.tries else self._policy.pause(self._failures)

    def refused(self, most: int) -> float | None:
        """Count a refusal of credentials: return 0 once, for a try with the credentials there are now, then None."""
        self._progress(most)
        # They may have been rotated meanwhile: the next session reads them again.
        if self._refused:
            return None
        self._refused = True
        return 0.0

    def _progress(self, most: int) -> None:
        if most >= self._most + self._policy.worth:
            self._most = most
            self._failures = 0
            self._refused = False


class RateWatch:
    """Measures one body's rate over a sliding window of time spent waiting for it (our own writing does not count)."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._steps: deque[tuple[float, int]] = deque()
        self._seconds = 0.0
        self._bytes = 0

    def too_slow(self, seconds: float, count: int) -> bool:
        """Add ``count`` bytes that took ``seconds``; return whether the window that ends here brought too few."""
        self._steps.append((seconds, count))
        self._seconds += seconds
        self._bytes += count
        # A step is dropped only if the rest still fills the window.
        while self._seconds - self._steps[0][0] >= self._policy.window:
            gone, brought = self._steps.popleft()
            self._seconds -= gone
            self._bytes -= brought
        return self._seconds >= self._policy.window and self._bytes < self._policy.worth
