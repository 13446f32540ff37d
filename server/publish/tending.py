"""What a shared store should hold: what it has lost is put back, and what nobody needs is removed.

Touches the shared store; reads the folder and the ledger; runs in a thread, under the round lock. Promise: only what a
node has applied is put back, and only on the condition that nothing has taken its place.

Every node has the older entries; the newest may be known to one node alone, which clients have seen and which may be
lost itself. So before a node shows what an entry says, it puts a copy of it into the store: whoever is about to write
that number finds it, and puts the entry back from it. If entry and copy are lost together (a bucket that falls back to
an older state), a node that has applied the entry puts it back. While something tells of one that is not there, nothing
is written.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from ..errors import DataFolderError, LedgerError, StoreError
from ..storage.sequence import MOST_BYTES, blob_name, broken_rule, entry_name
from ..storage.shelf import entry_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..storage.sequence import Entry
    from ..storage.shelf import Shelf

log = structlog.get_logger()

COPIES = "copies"  # a copy is named by its entry's number and the id of the first entry, which tells sequences apart
LOST_HINT = "start every node, since any that has it puts it back; pickup-point manual two-nodes"
BROKEN_HINT = "ask whoever else writes to the store; pickup-point manual two-nodes"
UNUSED_AFTER = timedelta(days=1)  # content this old that no entry names was left by a node that died


class Tending:
    """Compares a shared store with what this node has applied."""

    def __init__(self, ledger: Ledger, folder: DataFolder) -> None:
        self._ledger = ledger
        self._folder = folder
        self._refused_removal = False
        self._copied = 0  # the newest entry that this run has made sure there is a copy of
        self._uncopied = 0  # the newest entry that the store took no copy of, which was logged

    def _copy(self, number: int) -> str:
        return f"{COPIES}/{entry_name(number)}~{self._ledger.entries.id_of(1)}"

    def copy_newest(self, shelf: Shelf) -> None:
        """Put a copy of the newest applied entry into the store; if that fails, the next call tries again."""
        head = 0
        try:
            head = self._ledger.entries.head()
            if head not in (0, self._copied):
                shelf.put_new(self._copy(head), self._ledger.entries.data(head))
                self._copied = head
        except (StoreError, LedgerError) as error:
            if self._uncopied < head:
                log.warning(f"shared store took no copy of entry {head}", why=str(error), hint=error.hint)
            self._uncopied = head

    def restored(self, shelf: Shelf, number: int) -> bytes | None:
        """Put the entry after the newest applied one back from its copy, and return what has that number then.

        None if there is no copy: then nobody has shown what such an entry says.
        """
        copy = shelf.read(self._copy(number), MOST_BYTES) if number > 1 else None
        if copy is None:
            return None
        refuse_broken(self._ledger, entry_of(number, copy))
        name = f"sequence/{entry_name(number)}"
        if shelf.put_new(name, copy):
            log.warning(f"shared store got entry {number} of its sequence again", why="it was lost there")
        return shelf.read(name, MOST_BYTES)

    def tells_of_more(self, shelf: Shelf, head: int) -> bool:
        """Return whether something other than an entry tells of one after ``head``."""
        after, sequence = entry_name(head), self._ledger.entries.id_of(1)
        copies = [shelved.name for shelved in shelf.list(COPIES, f"{after}~~")]
        return any(name.endswith(f"~{sequence}") for name in copies) or bool(numbers_in(shelf, "checkpoints", after))

    def put_back_newest(self, shelf: Shelf) -> None:
        """Put back the newest applied entries, which the store has lost, if the sequence there is the one applied here.

        Do nothing if nothing is left: then an operator has removed the sequence, or it is another bucket.
        """
        head, sequence = self._ledger.entries.head(), self._ledger.entries.id_of(1)
        there = numbers_in(shelf, "sequence")
        if known := [number for number in there if int(number) <= head]:
            ours = self.holds(shelf, int(known[-1]))
        else:
            ours = any(shelved.name.endswith(f"~{sequence}") for shelved in shelf.list(COPIES))
        if ours:
            self._put_back(shelf, there)

    def _put_back(self, shelf: Shelf, there: Collection[str]) -> None:
        """Put back the applied entries that are not ``there``, in order, up to one whose place is taken by another."""
        for number in range(1, self._ledger.entries.head() + 1):
            if entry_name(number) in there:
                continue
            if shelf.put_new(f"sequence/{entry_name(number)}", self._ledger.entries.data(number)):
                log.warning(f"shared store got entry {number} of its sequence again", why="it was lost there")
            elif not self.holds(shelf, number):
                return

    def holds(self, shelf: Shelf, number: int) -> bool:
        """Return whether the store holds an entry as this node has applied it."""
        data = shelf.read(f"sequence/{entry_name(number)}", MOST_BYTES)
        return data is not None and entry_of(number, data).id == self._ledger.entries.id_of(number)

    def tend(self, shelf: Shelf) -> None:
        """Remove contents that no published log needs: of pruned logs, and of nodes that died before their entry.

        Put back what the store has lost: entries, and the contents of published logs.
        """
        self._put_back(shelf, set(numbers_in(shelf, "sequence")))
        for shelved in shelf.list(COPIES):
            if shelved.name < entry_name(self._ledger.entries.head()):
                self.remove(shelf, f"{COPIES}/{shelved.name}")
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


def refuse_broken(ledger: Ledger, entry: Entry) -> None:
    """Refuse an entry that cannot follow those that the ledger has applied.

    Raises:
        StoreError: it is another history's, or nobody can have written it.
    """
    head = ledger.entries.head()
    if why := broken_rule(entry, head, ledger.entries.id_of(head), ledger.newest_mtime()):
        raise StoreError(f"the shared store's {why}", hint=BROKEN_HINT)


def numbers_in(shelf: Shelf, folder: str, after: str = "") -> list[str]:
    """Return the names in a folder that are entries' numbers, sorted; other objects are left out."""
    names = [shelved.name for shelved in shelf.list(folder, after)]
    return [name for name in names if name.isdecimal() and name == entry_name(int(name))]
