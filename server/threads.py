"""Blocking work, off the event loop; and tasks, to their end.

Promise: a caller is not cancelled while its thread is still running, so that no lock is released and no ledger or file
closed while the thread uses it; a task that is to end does, even if a cancellation of it was lost.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

log = structlog.get_logger()

CANCEL_EVERY = 5.0  # seconds between two cancellations of a task that has not ended

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


async def end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks until all have ended: a library may swallow a cancellation, but hardly every one."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_EVERY)
        if left:
            log.warning("service waits for its tasks", tasks=",".join(sorted(task.get_name() for task in left)))
    await asyncio.gather(*tasks, return_exceptions=True)  # or asyncio would log how they ended
