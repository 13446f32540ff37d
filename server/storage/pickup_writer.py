"""The bookkeeper: notes pickups and logins in the ledger, in order and off the event loop.

Touches the ledger. Promise: what the listener told is written in the order in which it was told, waits while the ledger
cannot be written (so many entries and no more), and is all written before `close` returns, where that is possible.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from ..errors import LedgerError
from ..threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..pickups import Pickup
    from ..sftp.login import Login
    from .ledger import Ledger

log = structlog.get_logger()

LONGEST_DIARY = 10_000  # entries kept in memory while the ledger cannot be written
PATIENCE = 5.0  # seconds until the next try
LAST_WORDS = 10.0  # seconds that `close` waits


class PickupWriter:
    """Told by the listener, on the event loop; `write_forever` is its task."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._entries: deque[Callable[[], None]] = deque()
        self._told = asyncio.Event()
        self._closing = False

    def on_pickup(self, pickup: Pickup) -> None:
        """A handle was opened, or has ended."""
        self._enqueue(lambda: self._ledger.record_pickup(pickup))

    def on_login(self, login: Login) -> None:
        """A user is in."""
        at = datetime.now(UTC)
        self._enqueue(lambda: self._ledger.record_login(login.user, at, login.address, login.client))

    def _enqueue(self, entry: Callable[[], None]) -> None:
        if len(self._entries) >= LONGEST_DIARY:
            log.error("service dropped a pickup record", why="the ledger cannot be written")
            return
        self._entries.append(entry)
        self._told.set()

    async def write_forever(self) -> None:
        """Write what there is, wait for more; ends after `close`."""
        while True:
            while self._entries:
                try:
                    await in_thread(self._entries[0])
                except LedgerError as error:
                    log.error("service could not record a pickup", why=str(error), hint=error.hint)
                    if self._closing:
                        return
                    await asyncio.sleep(PATIENCE)
                else:
                    self._entries.popleft()
            if self._closing:
                return
            self._told.clear()
            await self._told.wait()

    async def close(self, task: asyncio.Task[None]) -> None:
        """Let ``task``, which runs `write_forever`, write the rest and end."""
        self._closing = True
        self._told.set()
        with contextlib.suppress(Exception):  # a task that died was told when it died
            await asyncio.wait_for(task, timeout=LAST_WORDS)
