"""Replay: the entries of a shared store's sequence become this node's folder and ledger, in order, without a gap.

Touches the shared store (read, but for checkpoints), the folder and the ledger; runs in a thread, under the round lock.
Catching up: check that the newest applied entry is still what it was; then read entries in order until the next number
has none, and apply each: bring its files into the folder, then record what it says, with its number, in one transaction
of the ledger. Promise: at any instant the ledger is the one after some entry, and after a crash a repeat does the rest.
"""

from __future__ import annotations

import gzip
import io
import os
import shlex
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from ..disk import discard, fsync_folder, translate_os_errors
from ..errors import DataFolderError, LedgerError, NodesDiffer, StoreError
from ..storage.sequence import (
    CHECKPOINT_EVERY,
    MOST_BYTES,
    MOST_CHECKPOINT,
    Entry,
    Terms,
    begins_entry,
    blob_name,
    entry_name,
    pruned_in,
    to_bytes,
)
from ..storage.shelf import entry_of
from .tending import COPIES, LOST_HINT, numbers_in, refuse_broken

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..storage.records import LedgerLog, Publication
    from ..storage.shelf import Shelf
    from ..triton import LogName
    from .tending import Tending

log = structlog.get_logger()

TERMS = "sequence_terms"  # a fact of the ledger: the newest terms of the sequence
BEGINNING = "sequence_beginning"  # a fact: the id of the first entry that this node tries to write
LEFT = "sequence_left"  # a fact: this node took part in the sequence, and has worked alone since


class Replay:
    """Applies entries to the folder and the ledger of ``node``."""

    def __init__(self, ledger: Ledger, folder: DataFolder, tending: Tending, node: str) -> None:
        self._ledger = ledger
        self._tending = tending
        self._folder = folder
        self._node = node
        self._lost: set[LogName] = set()  # logs of which it was reported that they could not be brought back
        self._seen = 0  # the newest entry that the store was seen to hold as it was applied

    def catch_up(self, shelf: Shelf, *, anew: bool = False) -> int:
        """Apply what is new, and return how many entries that are.

        With ``anew``, before a write, look at the newest known one again, and look for a copy of a lost one.
        """
        head = self._head(shelf, anew=anew)
        # Packed, and unpacked one by one: a sequence of years with its books is more than fits into memory.
        new = self._from_checkpoint(shelf) if head == 0 else []
        while (data := self._next(shelf, head + len(new) + 1, anew=anew and not new)) is not None:
            new.append(zlib.compress(data, 1))
        self._refuse_other_history(new, head)
        # Known before any is applied: files pruned since are no longer in the store, and are not fetched.
        gone = {name for packed in new for name in pruned_in(zlib.decompress(packed))}
        try:
            for number, packed in enumerate(new, head + 1):
                self.apply(shelf, entry_of(number, zlib.decompress(packed)), gone)
        except (DataFolderError, LedgerError):
            # On a full disk, pruning makes room for what follows: the next turn carries on from here.
            for name in gone:
                self._folder.remove(name)
            raise
        finally:
            # Before anybody sees what it says.
            self._tending.copy_newest(shelf)
        return len(new)

    def _next(self, shelf: Shelf, number: int, *, anew: bool) -> bytes | None:
        data = shelf.read(f"sequence/{entry_name(number)}", MOST_BYTES)
        return self._tending.restored(shelf, number) if data is None and anew else data

    def _head(self, shelf: Shelf, *, anew: bool) -> int:
        """Return the number of the newest applied entry, which must be in the store as it was applied."""
        head = self._ledger.entries.head()
        if head == (0 if anew else self._seen):
            return head
        left = self._ledger.facts().get(LEFT)
        data = shelf.read(f"sequence/{entry_name(head)}", MOST_BYTES)
        # Whoever has left may have to begin anew, see below.
        if data is None and not left:
            self._tending.put_back_newest(shelf)
            data = shelf.read(f"sequence/{entry_name(head)}", MOST_BYTES)
        if data is not None and entry_of(head, data).id == self._ledger.entries.id_of(head):
            self._seen = head
            return head
        # An operator has removed the sequence, so as to share again what this node has since published alone.
        if data is None and left and not any(map(shelf.list, ("sequence", "checkpoints"))):
            # First: once the entries are forgotten, a copy that is left would be another node's.
            for shelved in shelf.list(COPIES):
                shelf.remove(f"{COPIES}/{shelved.name}")
            with self._ledger.together():
                self._ledger.entries.forget()
                self._ledger.note(**{TERMS: None, BEGINNING: None, LEFT: False})
            return 0
        if data is None:
            raise StoreError(f"entry {head} of the shared store's sequence is lost", hint=LOST_HINT)
        what = f"entry {head} of the shared store's sequence is not the one that this node has applied"
        raise StoreError(what, hint="pickup-point manual two-nodes")

    def _refuse_other_history(self, new: Sequence[bytes], head: int) -> None:
        """Refuse, before anything is applied, to mix what this data folder published by itself with the sequence."""
        first = entry_of(1, zlib.decompress(new[0])).publications if new and head == 0 else ()
        begun = {(str(part.name), part.sha256, part.mtime) for publication in first for part in publication.logs}
        own = [it[0] for it in self._ledger.entries.strangers() if it not in begun]
        left = self._ledger.facts().get(LEFT)
        if own and (new or head):
            logs = f"{own[0]}{f' and {len(own) - 1} more logs' if own[1:] else ''}"
            if left:
                raise NodesDiffer(
                    f"this node has published {logs} while it was alone, and the shared store's sequence lacks that",
                    hint="to share again: pickup-point manual two-nodes",
                )
            raise NodesDiffer(
                f"this data folder has {logs} that the shared store does not know",
                hint="start this node with an empty data_dir; pickup-point manual two-nodes",
            )
        # Not before: until then the node may have to begin the sequence anew, see `_head`.
        if left:
            self._ledger.note(**{LEFT: False})

    def _from_checkpoint(self, shelf: Shelf) -> list[bytes]:
        """Return the entries of the newest checkpoint, each packed, for a ledger that has none yet."""
        names = numbers_in(shelf, "checkpoints")
        data = shelf.read(f"checkpoints/{names[-1]}", MOST_CHECKPOINT) if names else None
        found = []
        try:
            with gzip.open(io.BytesIO(data or b"")) as lines:
                for number, line in enumerate(lines, 1):
                    if not begins_entry(number, line):
                        return []
                    found.append(zlib.compress(line, 1))
        except (OSError, EOFError, zlib.error):  # a stranger's, as above: the sequence itself has them all
            return []
        # Left over from an earlier sequence, it would be another history.
        newest = shelf.read(f"sequence/{entry_name(len(found))}", MOST_BYTES) if found else None
        return found if newest is None or newest == zlib.decompress(found[-1]).rstrip(b"\n") else []

    def apply(self, shelf: Shelf, entry: Entry, gone: Collection[LogName]) -> None:
        """Make the folder and the ledger what they are after an entry; after a crash, a repeat does the rest."""
        ledger = self._ledger
        refuse_broken(ledger, entry)
        for publication in entry.publications:
            for part in publication.logs:
                if part.state == "published" and part.name not in gone:
                    self._bring(shelf, entry.id, part)
        # Files before the ledger: what that says is published must be there, and on disk.
        self._folder.sync()
        now = datetime.fromtimestamp(entry.at, UTC)
        if entry.pruned:
            for name in entry.pruned:
                self._folder.remove(name)
        with ledger.together():
            # First: a publication refers to its entry.
            ledger.entries.applied(entry.number, entry.id, entry.node, to_bytes(entry))
            for publication in entry.publications:
                self._record(entry, publication)
            for name in entry.pruned:
                ledger.pruned(name, now)
            if entry.terms is not None:
                terms = {"key": entry.terms.key, "rules": dict(entry.terms.rules), "prefix": entry.terms.prefix}
                ledger.note(**{TERMS: terms})
        self._seen = entry.number
        for publication in entry.publications:
            for part in publication.logs:
                discard(self._folder.staging_dir / str(part.name))
        what = ",".join(str(part.name) for publication in entry.publications for part in publication.logs)
        what = what or ",".join(map(str, entry.pruned)) or "the terms"
        if entry.node != self._node:
            log.info(f"feed took over {entry.kind} of {what}", node=entry.node, entry=entry.number)
        if entry.number % CHECKPOINT_EVERY == 0:
            with suppress(StoreError):  # another node's, or the next one, serves as well
                self._checkpoint(shelf, entry.number)

    def _record(self, entry: Entry, publication: Publication) -> None:
        """Record a publication in the ledger, unless it is one that the ledger already had when the sequence began."""
        ledger = self._ledger
        known = ledger.logs_of(part.name for part in publication.logs)
        if known and entry.kind != "begin":
            raise StoreError(f"the shared store's entry {entry.number} has {known[0].name}, a name that is spent",
                             hint="ask whoever else writes to the store")  # fmt: skip
        if known:
            ledger.entries.belongs(known[0].publication, entry.number)
            return
        number = ledger.intend(publication, publication.logs, [part.lines for part in publication.logs])
        at = publication.published_at or publication.intended_at
        withheld = publication.tally.filtered["too_fresh"] if publication.tally is not None else 0
        etag = publication.export.etag if publication.kind != "adopted" else ""
        ledger.published(number, at, checked_etag=etag, withheld=withheld)
        ledger.entries.belongs(number, entry.number)
        for part in publication.logs:
            if part.state == "pruned":
                ledger.pruned(part.name, part.pruned_at or at)

    def _bring(self, shelf: Shelf, entry_id: str, part: LedgerLog) -> None:
        """Bring a file into the folder with its mtime, wherever it lies: there already, in staging, or in the store."""
        path, staged = self._folder.pickup_dir / str(part.name), self._folder.staging_dir / str(part.name)
        with translate_os_errors(path):
            if not self._folder.finish(part):
                if os.path.lexists(path):
                    quoted = shlex.quote(str(path)), shlex.quote(str(self._folder.data_dir))
                    raise DataFolderError(
                        f"{path} is in the way: another file was published under its name",
                        hint=f"mv {quoted[0]} {quoted[1]}/",
                    )
                self._download(shelf, entry_id, part, staged)
                if not self._folder.finish(part):
                    raise StoreError(
                        f"the content of {part.name} in the shared store is not what was published",
                        hint="ask whoever else writes to the store",
                    )
            # A file from staging may be one that this node made before another one was first: the same bytes, but
            # perhaps not on disk yet, and with another mtime. And a folder may have been copied without its times. The
            # file is not served before this is done.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, 0o440)
                os.utime(descriptor, (part.mtime, part.mtime))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def bring_back(self, shelf: Shelf) -> bool:
        """Bring published logs that the folder has lost back from the store; return whether there were any."""
        lost = {part.name: part for part in self._ledger.published_logs() if not self._folder.has(part)}
        found = [(lost[name], entry_id) for name, _, entry_id in self._ledger.entries.blobs() if name in lost]
        for part, entry_id in found:
            path = self._folder.pickup_dir / str(part.name)
            try:
                with translate_os_errors(path), suppress(FileNotFoundError):
                    path.rename(self._folder.data_dir / path.name)  # what lies there instead
                self._bring(shelf, entry_id, part)
                self._folder.sync()
                discard(self._folder.staging_dir / path.name)
            except (StoreError, DataFolderError) as error:  # no reason to take over or publish nothing
                if part.name not in self._lost:
                    log.error(f"publisher could not bring {part.name} back", why=str(error), hint=error.hint)
                self._lost.add(part.name)
                if not (isinstance(error, StoreError) and error.status == 404):
                    break  # a store that does not answer keeps no round waiting for each
                continue
            self._lost.discard(part.name)
            log.warning(f"publisher brought {part.name} back from the shared store", why="the folder had lost it")
        return bool(found)

    def _download(self, shelf: Shelf, entry_id: str, part: LedgerLog, staged: Path) -> None:
        """Download a file's content into staging, and sync it to disk."""
        discard(staged)
        with staged.open("xb") as file:
            shelf.fetch(f"blobs/{blob_name(part.sha256, entry_id)}", part.size, file)
            file.flush()
            os.fchmod(file.fileno(), 0o440)
            os.utime(file.fileno(), (part.mtime, part.mtime))
            os.fsync(file.fileno())
        fsync_folder(self._folder.staging_dir)

    def _checkpoint(self, shelf: Shelf, number: int) -> None:
        """Write all entries so far as one object, for nodes that join; every node would write the same bytes."""
        data = io.BytesIO()
        with gzip.GzipFile("", "wb", 6, data, mtime=0) as file:
            for each in range(1, number + 1):
                file.write(self._ledger.entries.data(each) + b"\n")
        shelf.put_new(f"checkpoints/{entry_name(number)}", data.getvalue())

    def known_terms(self) -> Terms | None:
        """Return the newest terms of the sequence, as far as it is applied."""
        fact = self._ledger.facts().get(TERMS)
        return None if fact is None else Terms(fact["key"], fact["rules"], fact["prefix"])
