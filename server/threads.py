"""Work that blocks, off the event loop.

No outside world. Promise: whoever awaits it is never cancelled while the thread still runs, so that no lock is let go
and a ledger not closed under a thread's hands.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``job`` in a thread; a cancellation takes effect when the thread has ended."""
    thread = asyncio.ensure_future(asyncio.to_thread(job, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise
