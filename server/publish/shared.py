"""Several services on one store: the order of the store's sequence decides what is published and pruned.

Touches the shared store, the folder and the ledger; runs in a thread, under the round lock. `storage.sequence` says why
this is enough; here is how. Catching up: see `replay`. Writing: catch up; if there was anything new, the decision is
stale (`Overtaken`); upload the contents; write the next entry on the condition that there is none; if the outcome is
not clear, read that number. Only an entry in the store has any effect, and the node that wrote it applies it like every
other.

A store may lose objects (a life-cycle rule, a person): see `tending`. Where newer entries may be lost, nothing is
written: that would begin a second history.

Serving needs none of this. While the store is unreachable, nothing is published or pruned; afterwards all goes on.
"""

from __future__ import annotations

import secrets
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from ..errors import NodesDiffer, Overtaken, StoreError
from ..storage.records import LedgerLog
from ..storage.sequence import MOST_BYTES, Entry, as_committed, blob_name, entry_name, to_bytes
from ..storage.shelf import entry_of, try_rights
from ..triton import LogFile
from .clock import LEAP, LEAP_HINT, believed
from .replay import BEGINNING, Replay
from .shared_pickups import BETWEEN, PICKUPS
from .tending import COPIES, LOST_HINT, Tending, numbers_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..storage.records import Publication
    from ..storage.sequence import Terms
    from ..storage.shelf import Shelf
    from ..storage.staging import StagedLog
    from ..triton import LogName

log = structlog.get_logger()

LONGEST_UPLOAD = 12 * 3600.0  # seconds from the first content to its entry; far less than `tending.UNUSED_AFTER`
MOST_TURNS = 20  # how often a pruning is tried because another node was first


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
        self._tending = Tending(ledger, folder)
        self._replay = Replay(ledger, folder, self._tending, node)
        self.on_change: Callable[[], None] = lambda: None  # called when other files are published than before

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

    def catch_up(self, *, begin: bool = False) -> None:
        """Apply what is new in the sequence, and bring back what the folder has lost.

        With ``begin``, also write its first entry if this node has a history to share.

        A node that has published nothing does not begin one before it publishes: another may have a longer history.

        Raises:
            StoreError: the store cannot be read; what was applied stays.
            NodesDiffer: this ledger has a history of its own.
            DataFolderError, LedgerError: the disk failed; the next call goes on from there.
        """
        with self._connected() as shelf:
            self._replay.catch_up(shelf)
            if self._replay.bring_back(shelf):
                self.on_change()
            may_begin = begin and self._terms is not None and self._replay.known_terms() is None
            if may_begin and self._ledger.entries.strangers():
                try:
                    self._begin(shelf)
                except Overtaken:
                    pass
                except StoreError as error:  # the next publication tries again, and reports it with its day
                    log.warning("shared store could not begin", why=str(error), hint=error.hint)

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
            self._refuse_leaping_clock(shelf, publication.intended_at)
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
            lie = {*shelf.published(), *(shelved.name.partition(BETWEEN)[0] for shelved in shelf.list(PICKUPS))}
            if lost := [part.name for part in logs if str(part.name) in lie]:
                if self._replay.catch_up(shelf):
                    raise Overtaken("another node has published meanwhile")
                why = f"{lost[0]} lies in the store already, and no entry of its sequence names it"
                raise StoreError(why, hint=LOST_HINT)
            at = datetime.fromtimestamp(logs[0].mtime, UTC)
            entry = self._next("publication", shelf, publications=(as_committed(publication, logs, at),))
            # CLOCK_BOOTTIME also runs while the machine sleeps.
            began = time.clock_gettime(time.CLOCK_BOOTTIME)
            for part in logs:
                shelf.put_file(f"blobs/{blob_name(part.sha256, entry.id)}", self._folder.staging_dir / str(part.name))
            # The machine may have slept, and another node may have removed the contents, taking them for a dead node's.
            if time.clock_gettime(time.CLOCK_BOOTTIME) - began > LONGEST_UPLOAD:
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
                self._replay.catch_up(shelf, anew=True)
                if self._replay.known_terms() is None:
                    return []  # nothing was ever published in it
                try:
                    names = tuple(choose())
                    if names:
                        self._write(shelf, self._next("prune", shelf, pruned=names))
                    self._tending.tend(shelf)
                except Overtaken:
                    continue
                return list(names)
            raise StoreError("other nodes were always first", hint="the next pass tries again")

    def change_rules(self) -> list[str]:
        """Make this node's terms those of the sequence; return what changed. The other nodes must be given the same."""
        assert self._terms is not None  # noqa: S101  # the command has the key
        with self._connected() as shelf:
            self._replay.catch_up(shelf, anew=True)
            if (known := self._replay.known_terms()) is None:
                return []
            if changed := self._terms.differences(known):
                self._write(shelf, self._next("rules", shelf, terms=self._terms))
            return changed

    # Writing

    def _take_turn(self, shelf: Shelf) -> None:
        """Make sure that this node is at the end of the sequence and may write the next entry; begin an empty one.

        Raises:
            Overtaken: there was something new, or the sequence was begun here.
            NodesDiffer: this node's terms are not those of the sequence.
        """
        if self._replay.catch_up(shelf, anew=True):
            raise Overtaken("another node has published meanwhile")
        known = self._replay.known_terms()
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

    def _begin(self, shelf: Shelf) -> None:
        """Write the first entry: the terms, and what this data folder has published so far."""
        for publication in self._ledger.publications():
            if publication.missing:  # promised, and lost in a crash: the rows are sent as late ones
                self._ledger.release_missing(publication.id)
        for part in self._ledger.published_logs():
            if not self._folder.finish(part):
                # A missing file cannot be given to the others; its name stays spent.
                log.warning(
                    f"shared store begins without {part.name}", why="it is not in the folder as it was published"
                )
                self._ledger.pruned(part.name, datetime.fromtimestamp(int(shelf.clock.timestamp()), UTC))
        known = [p for p in self._ledger.publications() if p.published_at is not None]
        contents = {shelved.name for shelved in shelf.list("blobs")}
        if strange := self._never_published_here(shelf, contents, known):
            if self._replay.catch_up(shelf):
                raise Overtaken("the sequence of the shared store has begun elsewhere")
            raise NodesDiffer(
                f"{strange} lies in the store, and this data folder has never published it, so its sequence cannot "
                "begin here",
                hint="begin with the node that has published it; pickup-point manual two-nodes",
            )
        books = self._ledger.books.get([publication.id for publication in known])
        # The same after a failure: a large folder need not be sent in one go.
        self._ledger.note(**{BEGINNING: self._ledger.facts().get(BEGINNING) or secrets.token_hex(8)})
        entry = self._next(
            "begin",
            shelf,
            terms=self._terms,
            publications=tuple(replace(p, podcasts=books.get(p.id)) for p in known),
            entry_id=self._ledger.facts()[BEGINNING],
        )
        for publication in known:
            for part in publication.logs:
                blob = blob_name(part.sha256, entry.id)
                if part.state == "published" and blob not in contents:
                    shelf.put_file(f"blobs/{blob}", self._folder.pickup_dir / str(part.name))
        self._write(shelf, entry)

    def _never_published_here(self, shelf: Shelf, contents: Iterable[str], known: Iterable[Publication]) -> str:
        """Return an example of what the store holds of logs that are not among the ``known``, or ''."""
        logs = [part for publication in known for part in publication.logs]
        names, digests = {str(part.name) for part in logs}, {part.sha256 for part in logs}
        found = [name for name in shelf.published() if name not in names]
        found += [name for name in contents if name.partition("-")[0] not in digests]
        # What tells of an entry that the store has lost.
        found += [f"{COPIES}/{shelved.name}" for shelved in shelf.list(COPIES)]
        return found[0] if found else ""

    def _next(
        self,
        kind: str,
        shelf: Shelf,
        *,
        terms: Terms | None = None,
        publications: tuple[Publication, ...] = (),
        pruned: tuple[LogName, ...] = (),
        entry_id: str = "",
    ) -> Entry:
        head = self._ledger.entries.head()
        return Entry(
            number=head + 1,
            id=entry_id or secrets.token_hex(8),
            node=self._node,
            at=int(shelf.clock.timestamp()),
            kind=kind,  # type: ignore[arg-type]  # a literal at every call
            terms=terms,
            publications=publications,
            pruned=pruned,
            after=self._ledger.entries.id_of(head),
        )

    def _write(self, shelf: Shelf, entry: Entry) -> None:
        """Write an entry, which commits what it says, and apply it.

        Raises:
            Overtaken: the number is taken by another entry.
            StoreError: it is not known whether the entry was written.
        """
        self._refuse_replacing(shelf, entry.number - 1)
        before, own = entry_name(entry.number - 1), entry_name(entry.number)
        # Before the entries are listed: one that another node writes in between would look lost.
        more = self._tending.tells_of_more(shelf, entry.number - 1)
        # Only what is newer: the sequence grows for years.
        later = numbers_in(shelf, "sequence", before)
        taken = own in later
        if not taken and (later or more):
            raise StoreError(f"entry {entry.number} of the shared store's sequence is lost", hint=LOST_HINT)
        if len(to_bytes(entry)) > MOST_BYTES:
            # The history of a large network. Other nodes do without its books by podcast, but not without the entry.
            bare = tuple(replace(publication, podcasts=None) for publication in entry.publications)
            entry = replace(entry, publications=bare)
        name, made, failed = f"sequence/{own}", False, None
        try:
            made = not taken and shelf.put_new(name, to_bytes(entry))
        except StoreError as error:
            failed = error
        if not made:
            # A lost answer, or a conflict: what is there now decides. If nothing is, our write may still arrive: that
            # is an error, and the next turn reads the number again before it writes anything.
            found = shelf.read(name, MOST_BYTES)
            if found is None:
                raise failed or StoreError("the shared store did not take an entry", hint="it is retried automatically")
            there = entry_of(entry.number, found)
            if there.id != entry.id:
                for publication in entry.publications:
                    for part in publication.logs:
                        self._tending.remove(shelf, f"blobs/{blob_name(part.sha256, entry.id)}")
                self._replay.catch_up(shelf)
                raise Overtaken("another node has published meanwhile")
            entry = there
        self._replay.apply(shelf, entry, ())
        self._tending.copy_newest(shelf)

    def keeps_the_first(self, open_shelf: Callable[[], AbstractContextManager[Shelf]]) -> bool:
        """Return whether the store keeps the first of two objects with one name: everything here rests on that.

        ``open_shelf`` opens the store, as patiently as there is time for.

        Raises:
            StoreError: the store does not answer, or does not permit what is needed.
        """
        with open_shelf() as shelf:
            return self._keeps_the_first(shelf)

    def _keeps_the_first(self, shelf: Shelf) -> bool:
        return try_rights(shelf, lambda trial: self._tending.remove(shelf, trial))

    def _refuse_replacing(self, shelf: Shelf, head: int) -> None:
        """Check again, before each entry, that the store keeps the first of two objects with one name.

        Tried with the newest entry, ``head``: replacing it with itself would do no harm. Where it has been lost since
        the turn began, and others may have written since, it is not put back here.

        Raises:
            StoreError: it does not, or has lost that entry.
        """
        if head == 0:
            keeps = self._keeps_the_first(shelf)
        elif not self._tending.holds(shelf, head):
            raise StoreError(f"entry {head} of the shared store's sequence is lost", hint=LOST_HINT)
        else:
            keeps = not shelf.put_new(f"sequence/{entry_name(head)}", self._ledger.entries.data(head))
        if not keeps:
            hint = "use another store, or set store.shared = false on one service only"
            raise StoreError("the store ignores If-None-Match, so it cannot tell who was first", hint=hint)

    def _refuse_leaping_clock(self, shelf: Shelf, now: datetime) -> None:
        """Refuse to date logs by a store's clock that is far ahead of this machine's and of everything on record."""
        newest = max(now, believed(self._ledger) or now)
        if shelf.clock > newest + LEAP:
            why = f"the store's clock says {shelf.clock:%Y-%m-%d %H:%MZ}, and this machine's {now:%Y-%m-%d %H:%MZ}"
            raise StoreError(f"nothing is published: {why}", hint=LEAP_HINT)
