"""Blocking work, off the event loop.

Promise: a caller is not cancelled while its thread is still running, so that no lock is released and no ledger or file
closed while the thread uses it.
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
    """Run ``work`` like `asyncio.to_thread`, but hold a cancellation of the caller back until the thread has ended."""
    # A future, not a task: nobody else can cancel it, not even the end of the loop, which cancels all tasks.
    running = asyncio.get_running_loop().run_in_executor(None, partial(work, *args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        # `wait` leaves the future alone when it is cancelled itself; awaiting the future would cancel that, too.
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Retrieved, or asyncio would log it as never retrieved; the caller gets the cancellation.
        running.exception()
        raise cancelled
    return running.result()
