"""Several services on one store: the order of the store's sequence decides what is published and pruned.

Touches the shared store, the folder and the ledger; runs in a thread, under the round lock. `storage.sequence` says why
this is enough; here is how. Catching up: check that the newest applied entry is still what it was; then read entries in
order until the next number has none, and apply each: bring its files into the folder, then record what it says, with
its number, in one transaction of the ledger. Writing: catch up; if there was anything new, the decision is stale
(`Overtaken`); upload the contents; write the next entry on the condition that there is none; if the outcome is not
clear, read that number. Only an entry in the store has any effect, and the node that wrote it applies it like every
other.

A store may lose objects (a life-cycle rule, a person). Entries older than the newest applied one, and the contents of
published logs, are put back by whoever has them. Where newer entries may be lost, nothing is written: that would begin
a second history.

Serving needs none of this. While the store is unreachable, nothing is published or pruned; afterwards all goes on.
"""

from __future__ import annotations

import gzip
import io
import os
import secrets
import shlex
import time
import zlib
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from ..disk import discard, fsync_folder, translate_os_errors
from ..errors import DataFolderError, LedgerError, NodesDiffer, Overtaken, StoreError
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
    pruned_in,
    to_bytes,
)
from ..storage.shelf import try_rights
from ..triton import LogFile
from .clock import LEAP, LEAP_HINT, believed
from .shared_pickups import BETWEEN, PICKUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
BEGINNING = "sequence_beginning"  # a fact: the id of the first entry that this node tries to write
LEFT = "sequence_left"  # a fact: this node took part in the sequence, and has worked alone since
UNUSED_AFTER = timedelta(days=1)  # content this old that no entry names was left by a node that died
LONGEST_UPLOAD = 12 * 3600.0  # seconds from the first content to its entry; far less than `UNUSED_AFTER`
LOST_HINT = "restore it from the bucket's versions; pickup-point manual two-nodes"
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
        self._seen = 0  # the newest entry that the store was seen to hold as it was applied
        self._refused_removal = False
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
        """Apply what is new in the sequence; with ``begin``, write its first entry if this node has a history to share.

        A node that has published nothing begins none before it publishes: another one may have more to tell.

        Raises:
            StoreError: the store cannot be read; what was applied stays.
            NodesDiffer: this ledger has a history of its own.
            DataFolderError, LedgerError: the disk failed; the next call goes on from there.
        """
        with self._connected() as shelf:
            self._catch_up(shelf)
            if begin and self._terms is not None and self._known_terms() is None and self._ledger.entries.strangers():
                try:
                    self._begin(shelf)
                except Overtaken:
                    pass
                except StoreError as error:  # whatever is published tries again, and tells it with its day
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
                if self._catch_up(shelf):
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
                self._catch_up(shelf, anew=True)
                if self._known_terms() is None:
                    return []  # nothing was ever published in it
                try:
                    names = tuple(choose())
                    if names:
                        self._write(shelf, self._next("prune", shelf, pruned=names))
                    self._tend(shelf)
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

    def _catch_up(self, shelf: Shelf, *, anew: bool = False) -> int:
        """Apply what is new, and return how many entries that are; ``anew``: look at the newest known one again."""
        head = self._head(shelf, anew=anew)
        # Packed, and unpacked one by one: a sequence of years with its books is more than fits into memory.
        new = self._from_checkpoint(shelf) if head == 0 else []
        while (data := shelf.read(f"sequence/{entry_name(head + len(new) + 1)}", MOST_BYTES)) is not None:
            new.append(zlib.compress(data, 1))
        self._refuse_other_history(new, head)
        # Known before any is applied: files pruned since are no longer in the store, and are not fetched.
        gone: set[LogName] = set()
        for number, packed in enumerate(new, head + 1):
            with suppress(NoEntry):  # told when its turn comes
                gone.update(pruned_in(number, zlib.decompress(packed)))
        try:
            for number, packed in enumerate(new, head + 1):
                self._apply(shelf, self._entry(number, zlib.decompress(packed)), gone)
        except (DataFolderError, LedgerError):
            # On a full disk, pruning makes room for what follows: the next turn carries on from here.
            for name in gone:
                self._folder.remove(name)
            raise
        return len(new)

    def _head(self, shelf: Shelf, *, anew: bool) -> int:
        """Return the number of the newest applied entry, which must be in the store as it was applied.

        If it is not there, entries that others wrote after it may be lost as well.
        """
        head = self._ledger.entries.head()
        if head == (0 if anew else self._seen):
            return head
        data = shelf.read(f"sequence/{entry_name(head)}", MOST_BYTES)
        if data is not None and self._entry(head, data).id == self._ledger.entries.id_of(head):
            self._seen = head
            return head
        # An operator has removed the sequence, so as to share again what this node has since published alone.
        if data is None and self._ledger.facts().get(LEFT) and not any(map(shelf.list, ("sequence", "checkpoints"))):
            with self._ledger.together():
                self._ledger.entries.forget()
                self._ledger.note(**{TERMS: None, BEGINNING: None, LEFT: False})
            return 0
        what = "is lost" if data is None else "is not the one that this node has applied"
        raise StoreError(f"entry {head} of the shared store's sequence {what}", hint=LOST_HINT)

    def _refuse_other_history(self, new: Sequence[bytes], head: int) -> None:
        """Refuse, before anything is applied, to mix what this data folder published by itself with the sequence."""
        first = self._entry(1, zlib.decompress(new[0])).publications if new and head == 0 else ()
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
        names = [shelved.name for shelved in shelf.list("checkpoints") if shelved.name.isdecimal()]
        data = shelf.read(f"checkpoints/{names[-1]}", MOST_CHECKPOINT) if names else None
        found = []
        try:
            with gzip.open(io.BytesIO(data or b"")) as lines:
                for number, line in enumerate(lines, 1):
                    pruned_in(number, line)
                    found.append(zlib.compress(line, 1))
        except (OSError, EOFError, zlib.error, NoEntry):  # a stranger's: the sequence itself has them all
            return []
        return found

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
        data = io.BytesIO()
        with gzip.GzipFile("", "wb", 6, data, mtime=0) as file:
            for each in range(1, number + 1):
                file.write(self._ledger.entries.data(each) + b"\n")
        shelf.put_new(f"checkpoints/{entry_name(number)}", data.getvalue())

    # Writing

    def _take_turn(self, shelf: Shelf) -> None:
        """Make sure that this node is at the end of the sequence and may write the next entry; begin an empty one.

        Raises:
            Overtaken: there was something new, or the sequence was begun here.
            NodesDiffer: this node's terms are not those of the sequence.
        """
        if self._catch_up(shelf, anew=True):
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
            if self._catch_up(shelf):
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
        """Return what remains in the store of logs that are not among the ``known``, for example, or ''."""
        logs = [part for publication in known for part in publication.logs]
        names, digests = {str(part.name) for part in logs}, {part.sha256 for part in logs}
        found = [name for name in shelf.published() if name not in names]
        found += [name for name in contents if name.partition("-")[0] not in digests]
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
        return Entry(
            number=self._ledger.entries.head() + 1,
            id=entry_id or secrets.token_hex(8),
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
        self._refuse_replacing(shelf, entry.number - 1)
        # Only what is newer: the sequence grows for years.
        before, own = entry_name(entry.number - 1), entry_name(entry.number)
        later = [shelved.name for shelved in shelf.list("sequence", before)]
        taken = own in later
        if not taken and (later or shelf.list("checkpoints", before)):
            raise StoreError(f"entry {entry.number} of the shared store's sequence is lost", hint=LOST_HINT)
        if len(to_bytes(entry)) > MOST_BYTES:
            # A long history of a large network. Other nodes do without its books by podcast, not without the entry.
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
            there = self._entry(entry.number, found)
            if there.id != entry.id:
                for publication in entry.publications:
                    for part in publication.logs:
                        self._remove(shelf, f"blobs/{blob_name(part.sha256, entry.id)}")
                self._catch_up(shelf)
                raise Overtaken("another node has published meanwhile")
            entry = there
        self._apply(shelf, entry, ())

    def keeps_the_first(self) -> bool:
        """Return whether of two objects with one name the store keeps the first: everything here rests on that.

        Raises:
            StoreError: the store does not answer, or does not permit what is needed.
        """
        with self._open() as shelf:
            return self._keeps_the_first(shelf)

    def _keeps_the_first(self, shelf: Shelf) -> bool:
        return try_rights(shelf, lambda trial: self._remove(shelf, trial))

    def _refuse_replacing(self, shelf: Shelf, head: int) -> None:
        """Check again, before each entry, that the store keeps the first of two objects with one name.

        Tried with the newest entry, ``head``, which is there: to replace it by itself would do no harm.

        Raises:
            StoreError: it does not.
        """
        if head == 0:
            keeps = self._keeps_the_first(shelf)
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

    def _remove(self, shelf: Shelf, name: str) -> None:
        """Remove what nobody needs; a store that keeps everything for good (Object Lock, a policy) may refuse."""
        try:
            shelf.remove(name)
        except StoreError as error:
            if not self._refused_removal:
                log.warning("shared store kept what is no longer needed", why=str(error), hint=error.hint)
            self._refused_removal = True

    def _tend(self, shelf: Shelf) -> None:
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
                self._remove(shelf, f"blobs/{shelved.name}")
        for blob in needed.keys() - {shelved.name for shelved in contents}:
            name = needed[blob]
            with suppress(DataFolderError):
                if self._folder.sha256(name) == blob.partition("-")[0]:
                    shelf.put_file(f"blobs/{blob}", self._folder.pickup_dir / str(name))
                    log.warning(f"shared store got {name} again", why="it was lost there")
