"""The store follows the folder: what is published is put there too, in the same order, and removed when it is pruned.

Touches the store (written), the folder (read) and a fact of the ledger. Promises: publication never waits for the
store; what is missing there is put later, in the order of publication; only what the ledger records as pruned is
removed; a stranger's object is neither replaced nor removed.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import structlog

from ..errors import DataFolderError, LedgerError, NodesDiffer, StoreError
from ..storage.log_store import NotTheLog
from ..threads import in_thread
from .store_state import STORE, StoreState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from ..s3.objects import StoredObject
    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..storage.log_store import ConnectedLogStore, LogStore
    from ..storage.records import LedgerLog
    from ..triton import LogName

log = structlog.get_logger()

FIRST_RETRY = timedelta(seconds=15)  # after a pass that failed; doubled each time, up to ``every``


class Plan(NamedTuple):
    """What a pass has to do: logs to ``put``, in order, names to ``remove``, logs to ``compare``.

    ``wrong`` are sentences about names in the store that only an operator can put right.
    """

    put: tuple[LedgerLog, ...]
    remove: tuple[LogName, ...]
    compare: tuple[LedgerLog, ...]
    wrong: tuple[str, ...]

    @classmethod
    def of(
        cls,
        published: Iterable[LedgerLog],
        stored: Mapping[LogName, StoredObject],
        known: Iterable[LedgerLog],
        compared: Mapping[LogName, str],
    ) -> Plan:
        """Return the plan.

        ``known`` are the ledger's logs whose names are in the store; ``compared`` has, by name, the ETag of an object
        that was found to be the log.
        """
        published = sorted(published, key=lambda entry: (entry.mtime, entry.name))
        remembered = {entry.name: entry for entry in known}
        wrong = [f"{name} in the store was never published" for name in stored if name not in remembered]
        new = [
            entry for entry in published if entry.name in stored and compared.get(entry.name) != stored[entry.name].etag
        ]
        wrong += [f"{entry.name} in the store has another size" for entry in new if _size(stored, entry) != entry.size]
        return cls(
            tuple(entry for entry in published if entry.name not in stored),
            tuple(sorted(name for name in stored if name in remembered and remembered[name].state == "pruned")),
            tuple(entry for entry in new if _size(stored, entry) == entry.size),
            tuple(wrong),
        )


def _size(stored: Mapping[LogName, StoredObject], entry: LedgerLog) -> int:
    return stored[entry.name].size


class StoreCopy:
    """Keeps the store as the ledger says; one pass at a time.

    ``catch_up`` is called before each pass: if other nodes publish and prune too, a log that is missing from the store
    may have been pruned.
    """

    def __init__(
        self,
        store: LogStore,
        ledger: Ledger,
        folder: DataFolder,
        stopped: Callable[[], bool],
        catch_up: Callable[[], None] | None = None,
        look_every: timedelta | None = None,
    ) -> None:
        self._catch_up = catch_up
        self._look_every = look_every
        self._store = store
        self._ledger = ledger
        self._folder = folder
        self._stopped = stopped
        self._compared: dict[LogName, str] = {}  # by name, the ETag of an object that this run found to be the log
        self._due = asyncio.Event()

    def wake(self) -> None:
        """Ask for a pass: something was published or pruned."""
        self._due.set()

    async def keep(self, every: timedelta, on_pass: Callable[[], None]) -> None:
        """Run passes for ever: at once, when woken, after ``every``, and sooner after a failure."""
        failures = 0
        every = min(every, self._look_every or every)
        while True:
            # Cleared before the pass: what is published during it asks for one more.
            self._due.clear()
            try:
                state = await self.follow()
                failures = failures + 1 if state.error else 0
            except LedgerError as error:
                log.error("store could not be compared with the ledger", why=str(error), hint=error.hint)
                failures += 1
            on_pass()
            pause = min(FIRST_RETRY * (1 << min(failures - 1, 12)), every) if failures else every
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause.total_seconds()):
                    await self._due.wait()

    async def follow(self) -> StoreState:
        """Run one pass, and record and return how the store is now.

        Raises:
            LedgerError: the ledger cannot be read or written.
        """
        before = StoreState.of(await in_thread(self._ledger.facts), self._store.name)
        there, wrong = set(before.there), list(before.wrong)
        error, hint = "", ""
        try:
            if self._catch_up is not None:
                await in_thread(self._catch_up)
            async with self._store.connected() as store:
                plan = await self._plan(store, there, wrong)
                await self._carry_out(store, plan, there, wrong)
        except (StoreError, NodesDiffer, DataFolderError) as failed:
            if self._stopped():  # then it is not the store's fault
                return before
            error, hint = str(failed), failed.hint
        state = StoreState(before.url, tuple(sorted(there)), tuple(dict.fromkeys(wrong)), error, hint)
        if state != before:
            self._report(before, state)
            await in_thread(lambda: self._ledger.note(**{STORE: state._asdict()}))
        return state

    async def _plan(self, store: ConnectedLogStore, there: set[str], wrong: list[str]) -> Plan:
        """Return the plan for what store and ledger hold; update ``there`` and ``wrong`` to what is known now."""
        found = await store.logs()
        # Read after the listing: a log published meanwhile is put, one pruned meanwhile is removed.
        published, known = await in_thread(self._remembered, found.logs)
        if self._catch_up is not None and len(known) < len(found.logs):
            # Published by another node since: its entry is older than what that node has put here.
            await in_thread(self._catch_up)
            published, known = await in_thread(self._remembered, found.logs)
        plan = Plan.of(published, found.logs, known, self._compared)
        self._compared = {name: etag for name, etag in self._compared.items() if name in found.logs}
        wrong[:] = plan.wrong
        if found.strangers:
            wrong.append(f"the store holds objects that are not logs: {found.strangers}")
        # What was right at the last pass, even an earlier run's, counts until it is compared again.
        there &= {str(entry.name) for entry in published if entry.name in found.logs}
        for entry in plan.compare:
            there.discard(str(entry.name))
            try:
                if await store.compare(entry):
                    self._compared[entry.name] = found.logs[entry.name].etag
                    there.add(str(entry.name))
            except NotTheLog as other:
                wrong.append(str(other))
        return plan

    def _remembered(self, names: Collection[LogName]) -> tuple[list[LedgerLog], list[LedgerLog]]:
        """Return the published logs, and those that have these names, whatever became of them."""
        return self._ledger.published_logs(), self._ledger.logs_of(names)

    async def _carry_out(self, store: ConnectedLogStore, plan: Plan, there: set[str], wrong: list[str]) -> None:
        kept = None
        for name in plan.remove:
            # A bucket that lets nothing be removed (Object Lock, a policy) still gets what is new.
            try:
                await store.remove(name)
            except StoreError as error:
                kept = kept or error
                continue
            log.info(f"store removed {name}", store=self._store.name)
        for entry in plan.put:
            # Read again before each: uploads take long, and a log pruned meanwhile must not come back.
            now = await in_thread(self._ledger.logs_of, [entry.name])
            if self._stopped() or not now or now[0].state != "published":
                continue
            try:
                file = await in_thread(self._folder.open_log, entry.name)
            except OSError:  # `serve_published` logs it
                wrong.append(f"{entry.name} cannot be put into the store: it is not in the folder")
                continue
            try:
                await store.put(entry, file)
            except NotTheLog as other:
                wrong.append(str(other))
                continue
            finally:
                file.close()
            there.add(str(entry.name))
            log.info(f"store received {entry.name}", store=self._store.name)
        if kept is not None:
            raise kept

    def _report(self, before: StoreState, now: StoreState) -> None:
        """Log what has changed about the store since the last pass."""
        if now.error and now.error != before.error:
            log.error("store cannot be used", why=now.error, hint=now.hint)
        elif before.error and not now.error:
            log.info("store answers again", store=self._store.name)
        for sentence in now.wrong:
            if sentence not in before.wrong:
                log.error("store differs from what was published", why=sentence, hint="pickup-point manual store")
