"""Work that blocks, off the event loop.

No outside world. Promise: whoever awaits it is never cancelled while the thread still runs, so that no lock is let go,
no ledger and no file closed under a thread's hands.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, but a cancelled caller goes on only when the thread has ended."""
    # A future, not a task: nobody else can cancel it, the end of the loop included.
    running = asyncio.get_running_loop().run_in_executor(None, partial(work, *args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        running.exception()  # looked at: the cancellation is what the caller hears of
        raise cancelled
    return running.result()
