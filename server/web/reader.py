"""Makes the page's answers at a pace that harms nobody.

Owns one thread: however many clients ask, one answer is made at a time, and a question repeated within `FRESH` seconds
gets the same answer.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .answer import Answer

FRESH = 1.0  # seconds
MOST_KEPT = 32  # answers


class Reader:
    """Makes answers, one at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="web")
        # By question: when it was asked, and the answer, made or being made; the oldest first.
        self._kept: OrderedDict[str, tuple[float, asyncio.Future[Answer]]] = OrderedDict()

    async def ask(self, question: str, make: Callable[[], Answer]) -> Answer:
        """Return the answer to a question; ``make`` makes it in the thread, unless a fresh one is kept."""
        now = monotonic()
        asked, answer = self._kept.get(question, (0.0, None))
        if answer is None or (answer.done() and now - asked > FRESH):
            answer = asyncio.get_running_loop().run_in_executor(self._thread, make)
            answer.add_done_callback(_retrieved)
            self._kept[question] = now, answer
            self._kept.move_to_end(question)
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        # A client that leaves must not cancel the answer for others who wait for it.
        return await asyncio.shield(answer)

    def close(self) -> None:
        """Finish the answer under way, cancel those that wait, and stop the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _retrieved(answer: asyncio.Future[Answer]) -> None:
    """Retrieve an error, or asyncio complains about it when nobody waits for the answer any more."""
    if not answer.cancelled():
        answer.exception()
