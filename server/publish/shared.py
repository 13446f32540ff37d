"""Several services on one store: the order of the store's sequence decides what is published and pruned.

Touches the shared store, the folder and the ledger; runs in a thread, under the round lock. `storage.sequence` says why
this is enough; here is how. Catching up: read entries in order until the next number has none, and apply each: bring
its files into the folder, then record what it says, with its number, in one transaction of the ledger. Writing: catch
up; if there was anything new, the decision is stale (`Overtaken`); upload the contents; write the next entry on the
condition that there is none; if the outcome is not clear, read that number. Only an entry in the store has any effect,
and the node that wrote it applies it like every other.

Serving needs none of this. While the store is unreachable, nothing is published or pruned; afterwards all goes on.
"""

from __future__ import annotations

import gzip
import os
import secrets
import shlex
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from ..disk import discard, fsync_folder, translate_os_errors
from ..errors import DataFolderError, NodesDiffer, Overtaken, StoreError
from ..storage.records import LedgerLog
from ..storage.sequence import (
    CHECKPOINT_EVERY,
    MOST_BYTES,
    MOST_CHECKPOINT,
    Entry,
    NoEntry,
    Terms,
    as_committed,
    blob_name,
    broken_rule,
    entry_name,
    from_bytes,
    to_bytes,
)
from ..triton import LogFile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..storage.records import Publication
    from ..storage.shelf import Shelf
    from ..storage.staging import StagedLog
    from ..triton import LogName

log = structlog.get_logger()

TERMS = "sequence_terms"  # a fact of the ledger: the newest terms of the sequence
UNUSED_AFTER = timedelta(days=1)  # content this old that no entry names was left by a node that died
LONGEST_UPLOAD = 3600.0  # seconds from the first content to its entry; far less than `UNUSED_AFTER`
MOST_TURNS = 20  # times that a pruning is tried because another node was first


class SharedSequence:
    """One node's part in the sequence; ``node`` is its name. Without ``terms`` it may prune, but not publish."""

    def __init__(
        self,
        open_shelf: Callable[[], AbstractContextManager[Shelf]],
        ledger: Ledger,
        folder: DataFolder,
        terms: Terms | None,
        node: str,
    ) -> None:
        self._open = open_shelf
        self._ledger = ledger
        self._folder = folder
        self._terms = terms
        self._node = node
        self.on_change: Callable[[], None] = lambda: None  # called when entries were applied

    @contextmanager
    def _connected(self) -> Iterator[Shelf]:
        head = self._ledger.entries.head()
        try:
            with self._open() as shelf:
                yield shelf
        finally:
            # However it ended: the entries applied so far are in force.
            if self._ledger.entries.head() != head:
                self.on_change()

    # What the publisher and retention ask for

    def catch_up(self) -> None:
        """Apply what is new in the sequence.

        Raises:
            StoreError: the store cannot be read; what was applied stays.
            NodesDiffer: this ledger has a history of its own.
            DataFolderError, LedgerError: the disk failed; the next call goes on from there.
        """
        with self._connected() as shelf:
            self._catch_up(shelf)

    def publish(
        self, publication: Publication, seal: Callable[[int], Sequence[StagedLog]], lines: Sequence[int]
    ) -> list[LogFile]:
        """Publish what was converted, or nothing; ``seal`` gets the earliest mtime and returns the staged logs.

        Raises:
            Overtaken: another node's entry came first; decide again.
            NodesDiffer: this node may not publish.
            StoreError: whether it was published is not known; catching up will show.
        """
        with self._connected() as shelf:
            self._take_turn(shelf)
            newest = self._ledger.newest_mtime()
            earliest = int(shelf.clock.timestamp())
            staged = seal(earliest if newest is None else max(earliest, newest + 1))
            logs = tuple(
                LedgerLog(entry.name, 0, entry.size, entry.sha256, entry.mtime, count, "published")
                for entry, count in zip(staged, lines, strict=True)
            )
            # Cannot happen: the names were chosen by the ledger as it stands. Checked because no entry can be undone.
            if self._ledger.logs_of(part.name for part in logs):
                raise Overtaken("a name was spent meanwhile")
            at = datetime.fromtimestamp(logs[0].mtime, UTC)
            entry = self._next("publication", shelf, publications=(as_committed(publication, logs, at),))
            began = time.monotonic()
            for part in logs:
                shelf.put_file(f"blobs/{blob_name(part.sha256, entry.id)}", self._folder.staging_dir / str(part.name))
            # The machine may have slept, and another node may have swept the contents, taking them for a dead node's.
            if time.monotonic() - began > LONGEST_UPLOAD:
                raise StoreError("the store took too long to accept the logs", hint="it is retried automatically")
            self._write(shelf, entry)
            return [LogFile(part.name, part.size, part.mtime) for part in logs]

    def prune(self, choose: Callable[[], Sequence[LogName]]) -> list[LogName]:
        """Prune what ``choose`` returns for the ledger as it stands then, on all nodes; return the names.

        Raises:
            StoreError: whether it was pruned is not known; catching up will show.
        """
        with self._connected() as shelf:
            for _ in range(MOST_TURNS):
                self._catch_up(shelf)
                if self._known_terms() is None:
                    return []  # nothing was ever published in it
                try:
                    names = tuple(choose())
                    if names:
                        self._write(shelf, self._next("prune", shelf, pruned=names))
                    self._sweep(shelf)
                except Overtaken:
                    continue
                return list(names)
            raise StoreError("other nodes were always first", hint="the next pass tries again")

    def change_rules(self) -> list[str]:
        """Make this node's terms those of the sequence; return what changed. The other nodes must be given the same."""
        assert self._terms is not None  # noqa: S101  # the command has the key
        with self._connected() as shelf:
            self._catch_up(shelf)
            if (known := self._known_terms()) is None:
                return []
            if changed := self._terms.differences(known):
                self._write(shelf, self._next("rules", shelf, terms=self._terms))
            return changed

    # Reading

    def _catch_up(self, shelf: Shelf) -> int:
        head = self._ledger.entries.head()
        new = self._from_checkpoint(shelf) if head == 0 else []
        while (data := shelf.read(f"sequence/{entry_name(head + len(new) + 1)}", MOST_BYTES)) is not None:
            new.append(self._entry(head + len(new) + 1, data))
        self._refuse_other_history(new)
        # Known before any is applied: files pruned since are no longer in the store, and are not fetched.
        gone = {name for entry in new for name in entry.pruned}
        for entry in new:
            self._apply(shelf, entry, gone)
        return len(new)

    def _refuse_other_history(self, new: Sequence[Entry]) -> None:
        """Refuse, before anything is applied, to mix what this data folder published by itself with the sequence."""
        begun = {
            (str(part.name), part.sha256)
            for entry in new
            if entry.kind == "begin"
            for publication in entry.publications
            for part in publication.logs
        }
        own = [log_name for log_name, sha256 in self._ledger.entries.strangers() if (log_name, sha256) not in begun]
        if own and (new or self._ledger.entries.head()):
            raise NodesDiffer(
                f"this data folder has {own[0]}{f' and {len(own) - 1} more logs' if own[1:] else ''} that the shared "
                "store does not know",
                hint="start this node with an empty data_dir; pickup-point manual two-nodes",
            )

    def _from_checkpoint(self, shelf: Shelf) -> list[Entry]:
        """Return the entries of the newest checkpoint, for a ledger that has none yet."""
        names = [shelved.name for shelved in shelf.list("checkpoints")]
        data = shelf.read(f"checkpoints/{names[-1]}", MOST_CHECKPOINT) if names else None
        if data is None:
            return []
        return [self._entry(number, line) for number, line in enumerate(gzip.decompress(data).splitlines(), 1)]

    def _entry(self, number: int, data: bytes) -> Entry:
        try:
            return from_bytes(number, data)
        except NoEntry as error:
            hint = "install the version that the other nodes have, or ask whoever else writes to the store"
            raise StoreError(f"the shared store's {error}", hint=hint) from error

    def _apply(self, shelf: Shelf, entry: Entry, gone: Collection[LogName]) -> None:
        """Make the folder and the ledger what they are after an entry; after a crash, a repeat does the rest."""
        ledger = self._ledger
        if why := broken_rule(entry, ledger.entries.head(), ledger.newest_mtime()):
            raise StoreError(f"the shared store's {why}", hint="ask whoever else writes to the store")
        for publication in entry.publications:
            for part in publication.logs:
                if part.state == "published" and part.name not in gone:
                    self._bring(shelf, entry, part)
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
        for publication in entry.publications:
            for part in publication.logs:
                discard(self._folder.staging_dir / str(part.name))
        what = ",".join(str(part.name) for publication in entry.publications for part in publication.logs)
        what = what or ",".join(map(str, entry.pruned)) or "the terms"
        if entry.node != self._node:
            log.info(f"feed took over {entry.kind} of {what}", node=entry.node, entry=entry.number)
        if entry.number % CHECKPOINT_EVERY == 0:
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

    def _bring(self, shelf: Shelf, entry: Entry, part: LedgerLog) -> None:
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
                self._download(shelf, entry, part, staged)
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

    def _download(self, shelf: Shelf, entry: Entry, part: LedgerLog, staged: Path) -> None:
        """Download a file's content into staging, and sync it to disk."""
        discard(staged)
        with staged.open("xb") as file:
            shelf.fetch(f"blobs/{blob_name(part.sha256, entry.id)}", part.size, file)
            file.flush()
            os.fchmod(file.fileno(), 0o440)
            os.utime(file.fileno(), (part.mtime, part.mtime))
            os.fsync(file.fileno())
        fsync_folder(self._folder.staging_dir)

    def _checkpoint(self, shelf: Shelf, number: int) -> None:
        """Write all entries so far as one object, for nodes that join; every node would write the same bytes."""
        lines = self._ledger.entries.data(1, number)
        data = gzip.compress(b"\n".join(lines), 6, mtime=0)
        shelf.put_new(f"checkpoints/{entry_name(number)}", data)

    # Writing

    def _take_turn(self, shelf: Shelf) -> None:
        """Make sure that this node is at the end of the sequence and may write the next entry; begin an empty one.

        Raises:
            Overtaken: there was something new, or the sequence was begun here.
            NodesDiffer: this node's terms are not those of the sequence.
        """
        if self._catch_up(shelf):
            raise Overtaken("another node has published meanwhile")
        known = self._known_terms()
        assert self._terms is not None  # noqa: S101  # whoever publishes has them
        if known is None:
            self._begin(shelf)
            # The decision may have counted on names that `_begin` released.
            raise Overtaken("the sequence of the shared store has begun")
        if different := self._terms.differences(known):
            raise NodesDiffer(
                f"this node differs from the others of the shared store in {', '.join(different)}, so it publishes "
                "nothing",
                hint="make them the same on all nodes; to change the rules of all: pickup-point feed --change-rules",
            )

    def _known_terms(self) -> Terms | None:
        fact = self._ledger.facts().get(TERMS)
        return None if fact is None else Terms(fact["key"], fact["rules"], fact["prefix"])

    def _begin(self, shelf: Shelf) -> None:
        """Write the first entry: the terms, and what this data folder has published so far."""
        for publication in self._ledger.publications():
            if publication.missing:  # promised, and lost in a crash: the rows are sent as late ones
                self._ledger.release_missing(publication.id)
        known = [p for p in self._ledger.publications() if p.published_at is not None]
        books = self._ledger.books.get([publication.id for publication in known])
        entry = self._next(
            "begin",
            shelf,
            terms=self._terms,
            publications=tuple(replace(p, podcasts=books.get(p.id)) for p in known),
        )
        for publication in known:
            for part in publication.logs:
                if part.state == "published":
                    name = f"blobs/{blob_name(part.sha256, entry.id)}"
                    shelf.put_file(name, self._folder.pickup_dir / str(part.name))
        self._write(shelf, entry)

    def _next(
        self,
        kind: str,
        shelf: Shelf,
        *,
        terms: Terms | None = None,
        publications: tuple[Publication, ...] = (),
        pruned: tuple[LogName, ...] = (),
    ) -> Entry:
        return Entry(
            number=self._ledger.entries.head() + 1,
            id=secrets.token_hex(8),
            node=self._node,
            at=int(shelf.clock.timestamp()),
            kind=kind,  # type: ignore[arg-type]  # a literal at every call
            terms=terms,
            publications=publications,
            pruned=pruned,
        )

    def _write(self, shelf: Shelf, entry: Entry) -> None:
        """Write an entry, which commits what it says, and apply it.

        Raises:
            Overtaken: the number is taken by another entry.
            StoreError: it is not known whether the entry was written.
        """
        name = f"sequence/{entry_name(entry.number)}"
        try:
            made = shelf.put_new(name, to_bytes(entry))
        except StoreError:
            made = False
        if not made:
            # A lost answer, or a conflict: what is there now decides. If nothing is, our write may still arrive: that
            # is an error, and the next turn reads the number again before it writes anything.
            there = shelf.read(name, MOST_BYTES)
            if there is None:
                raise StoreError("the shared store did not take an entry", hint="it is retried automatically")
            if self._entry(entry.number, there).id != entry.id:
                for publication in entry.publications:
                    for part in publication.logs:
                        shelf.remove(f"blobs/{blob_name(part.sha256, entry.id)}")
                self._catch_up(shelf)
                raise Overtaken("another node has published meanwhile")
        self._apply(shelf, entry, ())

    def _sweep(self, shelf: Shelf) -> None:
        """Remove contents that no published log needs: of pruned logs, and of nodes that died before their entry."""
        needed = {blob_name(*blob) for blob in self._ledger.entries.blobs()}
        for shelved in shelf.list("blobs"):
            old = shelved.modified is not None and shelf.clock - shelved.modified > UNUSED_AFTER
            if old and shelved.name not in needed:
                shelf.remove(f"blobs/{shelved.name}")
