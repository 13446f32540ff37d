"""How long a source is waited for: the time-outs, the least rate, the tries.

No outside world and no clock: seconds and bytes are handed in. The promise is that every wait ends: a source that is
silent, slow or failing is given up after a bounded time, however it fails.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

LEAST_RATE = 32 * 1024  # bytes a second: a tenth of the slowest line on which a large day could still be in time
RATE_WINDOW = 30.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The limits of one source, in seconds unless the name says otherwise.

    ``silence`` is the longest wait for the next byte, ``call`` for one whole request up to its headers, the SDK's own
    ``sdk_tries`` among them. A body must bring ``least_rate`` bytes a second over every ``window``. ``tries`` failures
    in a row, without ``worth`` new bytes between them, are the end; the pauses between them double from
    ``first_pause`` up to ``longest_pause``.
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
        """The bytes that make a broken read count as progress: what the slowest body allowed brings in a window."""
        return max(1, int(self.least_rate * self.window))

    def pause(self, failures: int) -> float:
        """The wait after so many failures in a row: half of it sure, half of it by chance."""
        longest = min(self.longest_pause, self.first_pause * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, no secret


class RetryCounter:
    """Failures in a row; bytes that came between them make the count begin again."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._most = 0
        self._refused = False

    def failed(self, most: int) -> float | None:
        """Count a failure; the seconds to wait before the next try, or None when there is none.

        ``most`` is the most bytes that were ever there: a read that begins again from zero is no progress.
        """
        self._progress(most)
        self._failures += 1
        return None if self._failures >= self._policy.tries else self._policy.pause(self._failures)

    def refused(self, most: int) -> float | None:
        """Count a refusal of credentials: one more try, at once, with those that are there now."""
        self._progress(most)
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
    """The rate of one body over a sliding window of time spent waiting for it (our own writing does not count)."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._steps: deque[tuple[float, int]] = deque()
        self._seconds = 0.0
        self._bytes = 0

    def too_slow(self, seconds: float, count: int) -> bool:
        """Note ``count`` bytes that came after ``seconds``; whether the window that ends here brought too few."""
        self._steps.append((seconds, count))
        self._seconds += seconds
        self._bytes += count
        while self._seconds - self._steps[0][0] >= self._policy.window:
            gone, brought = self._steps.popleft()
            self._seconds -= gone
            self._bytes -= brought
        return self._seconds >= self._policy.window and self._bytes < self._policy.worth
