"""The pickup writer: records pickups and logins in the ledger, in order and off the event loop.

Touches the ledger. Promise: reports of the SFTP server are written in their order; they wait while the ledger cannot be
written (up to `MAX_QUEUED` of them), and all are written before `close` returns, if possible.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from ..errors import LedgerError
from ..pickups import Grade
from ..threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..pickups import Delivered, Pickup
    from ..sftp.registry import Login
    from .ledger import Ledger

log = structlog.get_logger()

MAX_QUEUED = 10_000  # reports kept in memory while the ledger cannot be written
MOST_AT_ONCE = 200  # reports written in one transaction
RETRY_AFTER = 5.0  # seconds
CLOSE_TIMEOUT = 10.0  # seconds that `close` waits


class PickupWriter:
    """Queues what the SFTP server reports on the event loop; `write_forever`, as a task, writes it.

    ``doubt`` returns why the local clock is not believed at an instant, or ''.
    """

    def __init__(self, ledger: Ledger, doubt: Callable[[datetime], str] = lambda _: "") -> None:
        self._ledger = ledger
        self._doubt = doubt
        self._entries: deque[Callable[[], None]] = deque()
        self._whole: list[Delivered] = []
        self._logins: dict[str, float] = {}  # by user, when the last login was by a clock that nobody sets
        self._wake = asyncio.Event()
        self._closing = False

    def on_pickup(self, pickup: Pickup) -> None:
        """Queue the record of a pickup whose handle was opened, is being read, or has ended."""
        at = datetime.now(UTC)
        self._enqueue(lambda: self._completed(pickup, self._ledger.pickups.record(pickup, at)))

    def on_login(self, login: Login) -> None:
        """Queue the record of a login."""
        at, now = datetime.now(UTC), time.clock_gettime(time.CLOCK_BOOTTIME)
        before = self._logins.get(login.user)
        self._logins[login.user] = now
        self._enqueue(lambda: self._record_login(login, at, None if before is None else now - before))

    def _record_login(self, login: Login, at: datetime, counted: float | None) -> None:
        # A clock that ran ahead would leave a silence of years, after which none is long enough for an alarm; one that
        # was behind, and was put right, a silence as long as it was behind.
        measured = not self._doubt(at)
        self._ledger.record_login(login.user, at, login.address, login.client, measured=measured, counted=counted)

    def _completed(self, pickup: Pickup, whole: Delivered | None) -> None:
        """Remember a log that more than one handle completed: its line in the journal is ours to write."""
        if whole is not None and pickup.grade is not Grade.COMPLETE:
            self._whole.append(whole)

    def _write(self, entries: Sequence[Callable[[], None]]) -> list[Delivered]:
        """Write entries in one transaction; return the logs that this completed."""
        self._whole = []
        # One commit for all: each waits for the disk, and a client may open and close files by the thousand.
        with self._ledger.together():
            for entry in entries:
                entry()
        return self._whole

    def _enqueue(self, entry: Callable[[], None]) -> None:
        if len(self._entries) >= MAX_QUEUED:
            log.error("service dropped a pickup record", why="the ledger cannot be written, and the queue is full")
            return
        self._entries.append(entry)
        self._wake.set()

    async def write_forever(self) -> None:
        """Write what is queued and wait for more, until `close`."""
        while True:
            while self._entries:
                # Removed from the queue only once written: what failed is retried first, so the order stays.
                entries = list(islice(self._entries, MOST_AT_ONCE))
                try:
                    completed = await in_thread(self._write, entries)
                except LedgerError as error:
                    log.error("service could not record a pickup", why=str(error), hint=error.hint)
                    if self._closing:
                        return
                    await asyncio.sleep(RETRY_AFTER)
                else:
                    for _ in entries:
                        self._entries.popleft()
                    for whole in completed:
                        addresses = ",".join(whole.addresses)
                        log.info(f"{whole.user} picked up {whole.name} in pieces", handles=whole.handles, by=addresses)
            if self._closing:
                return
            # There was no await since the queue was found empty, so no report is missed.
            self._wake.clear()
            await self._wake.wait()

    async def close(self, task: asyncio.Task[None]) -> None:
        """Let ``task``, which runs `write_forever`, write the rest and end."""
        self._closing = True
        self._wake.set()
        with contextlib.suppress(Exception):  # if the task died, that has been reported
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await task
