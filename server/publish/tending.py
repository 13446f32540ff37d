"""What a shared store should hold: what it has lost is put back, and what nobody needs is removed.

Touches the shared store; reads the folder and the ledger; runs in a thread, under the round lock. Promise: only what
this node has applied is put back, and only on the condition that nothing has taken its place.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from ..errors import DataFolderError, StoreError
from ..storage.sequence import blob_name, entry_name

if TYPE_CHECKING:
    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..storage.shelf import Shelf

log = structlog.get_logger()

UNUSED_AFTER = timedelta(days=1)  # content this old that no entry names was left by a node that died


class Tending:
    """Compares a shared store with what this node has applied."""

    def __init__(self, ledger: Ledger, folder: DataFolder) -> None:
        self._ledger = ledger
        self._folder = folder
        self._refused_removal = False

    def tend(self, shelf: Shelf) -> None:
        """Remove contents that no published log needs: of pruned logs, and of nodes that died before their entry.

        Put back what the store has lost: entries, and the contents of published logs.
        """
        head = self._ledger.entries.head()
        there = {shelved.name for shelved in shelf.list("sequence")}
        # The newest is not put again: see `_head`.
        for number in (number for number in range(1, head) if entry_name(number) not in there):
            shelf.put_new(f"sequence/{entry_name(number)}", self._ledger.entries.data(number))
            log.warning(f"shared store got entry {number} of its sequence again", why="it was lost there")
        needed = {blob_name(sha256, entry_id): name for name, sha256, entry_id in self._ledger.entries.blobs()}
        contents = shelf.list("blobs")
        for shelved in contents:
            old = shelved.modified is not None and shelf.clock - shelved.modified > UNUSED_AFTER
            if old and shelved.name not in needed:
                self.remove(shelf, f"blobs/{shelved.name}")
        for blob in needed.keys() - {shelved.name for shelved in contents}:
            name = needed[blob]
            with suppress(DataFolderError):
                if self._folder.sha256(name) == blob.partition("-")[0]:
                    shelf.put_file(f"blobs/{blob}", self._folder.pickup_dir / str(name))
                    log.warning(f"shared store got {name} again", why="it was lost there")

    def remove(self, shelf: Shelf, name: str) -> None:
        """Remove what nobody needs; a store that keeps everything for good (Object Lock, a policy) may refuse."""
        try:
            shelf.remove(name)
        except StoreError as error:
            if not self._refused_removal:
                log.warning("shared store kept what is no longer needed", why=str(error), hint=error.hint)
            self._refused_removal = True
