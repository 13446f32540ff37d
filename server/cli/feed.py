"""One round of the feed, and one retention pass, by hand: what ``feed`` and ``prune`` do.

Touches what the feed touches, and this process's signals. Promise: Ctrl-C and SIGTERM end a conversion or a download at
once, and leave nothing behind that the next round does not clean up.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..errors import DataFolderError, LedgerError, NodesDiffer, SourceError, StoreError
from ..megaphone.source import open_source
from ..publish.clock import doubt
from ..publish.nodes import shared_sequence
from ..publish.retention import prune
from ..service import FIRST_CATALOGUE, assembled, round_facts
from ..storage.folder import DataFolder
from ..storage.ledger import Ledger
from ..threads import in_thread
from .progress import progress_bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..publish.decisions import DayResult, FeedRequest
    from ..publish.retention import Pruned
    from ..service import Installation
    from ..settings import Config


async def one_round(
    config: Config, hash_key: bytes, request: FeedRequest, *, change_rules: bool = False
) -> list[DayResult]:
    """Run one round now, which counts like one of the service's; return what became of each day.

    With ``change_rules``, this node's terms first become those of the shared store.
    """
    with progress_bars() as show:
        progress = None if show is None else lambda day, done, total: show(str(day), done, total)
        async with assembled(config, hash_key, progress=progress) as installation:
            with _stopping(installation.stop.set):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FIRST_CATALOGUE):
                        if await in_thread(installation.catalogue.untried):
                            await installation.catalogue.refresh(datetime.now(UTC))
                if change_rules and installation.shared is not None:
                    await in_thread(_change_rules, installation)
                now = datetime.now(UTC)
                try:
                    outcome = await installation.feed.run_round(now, request)
                except (SourceError, DataFolderError, LedgerError, StoreError, NodesDiffer) as error:
                    # If the ledger fails, too, the round's own error is the one to report.
                    with contextlib.suppress(LedgerError):
                        await in_thread(_note, installation.ledger, round_facts(now, error))
                    raise
                await in_thread(_note, installation.ledger, round_facts(now, outcome))
                return outcome.results


def _change_rules(installation: Installation) -> None:
    with installation.folder.round_lock(lambda: None, installation.stop.is_set):
        assert installation.shared is not None  # noqa: S101  # the caller checked
        installation.shared.change_rules()


def _note(ledger: Ledger, facts: dict[str, Any]) -> None:
    ledger.note(**facts)


async def one_prune(config: Config, *, dry_run: bool, clock_is_right: bool, on_wait: Callable[[], None]) -> Pruned:
    """Run one retention pass now; return what was removed, or would be. ``clock_is_right``: an operator says so."""
    folder = DataFolder(config.data_dir)
    folder.prepare()
    with (
        contextlib.closing(_open_ledger(folder)) as ledger,
        folder.round_lock(on_wait, lambda: False),
    ):
        now = datetime.now(UTC)
        vouched = now if clock_is_right else None
        if not clock_is_right and doubt(ledger, now):
            # A bucket has a clock of its own, worth asking only if the local one is in doubt.
            with contextlib.suppress(SourceError):
                source = await open_source(config.export.place, config.export.export_kind)
                try:
                    listing = await source.day_exports()
                finally:
                    await source.close()
                if listing.own_clock:
                    vouched = listing.now
        # In a thread: a shared store is used through an event loop of its own.
        return await in_thread(
            prune,
            ledger,
            folder,
            config.retention.keep_days,
            now,
            dry_run=dry_run,
            steady=clock_is_right,
            vouched=vouched,
            shared=shared_sequence(config, ledger, folder),
        )


def _open_ledger(folder: DataFolder) -> Ledger:
    """Open the ledger, even on a disk without room for SQLite's files beside it, if no service runs."""
    try:
        return Ledger.open(folder.ledger_path)
    except LedgerError:
        with contextlib.suppress(LedgerError):
            return Ledger.open(folder.ledger_path, alone=True)
        raise


@contextlib.contextmanager
def _stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM call ``stop`` and cancel this task."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None  # noqa: S101  # a coroutine runs in a task

    def end() -> None:
        # Both are needed: a conversion in a thread sees the event, a download on the loop the cancellation.
        stop()
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
