"""Publishing: one version of a day's export becomes log files, whole or not at all.

The order of the steps is the promise: convert into staging, fsync, record the intention, link, fsync the folder, record
the publication, serve, unlink the staged names. `recover` carries on after a crash between any two of them: a
publication is one thing, and a log that was promised a name gets it. Brings `folder`, `ledger` and `apart` together;
everything here is synchronous and runs in a thread, under the round lock.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO

import structlog

from ..convert.apart import Outputs, SentFile, convert_apart
from ..convert.conversion import Conversion
from ..disk import translate_os_errors
from ..errors import NameSpent
from ..megaphone.exports import DayExport, moment
from ..storage.records import LedgerLog, Publication
from ..triton import IdCells, LogFile, LogName, layouts_by_header
from .decisions import UNKNOWN_LAYOUT, Order
from .holds import LOOK_BACK_DAYS, ON_ONE_LINE, HoldPolicy, acceptable, hold_reason, late_hold_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import date, datetime
    from pathlib import Path

    from ..convert.messages import WrittenLog
    from ..convert.tally import Tally
    from ..episodes.catalogue import Catalogue
    from ..storage.folder import DataFolder, FoundFile
    from ..storage.ledger import Ledger
    from ..storage.staging import Staging
    from ..triton import Layout, LogRules
    from .shared import SharedSequence

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DayOutcome:
    """What became of an order: files, or a reason (word, sentence) to hold the day, or neither.

    ``changed`` rows differ from the line that was sent, ``removed`` ones are no longer in the export; ``unsent`` lines
    were not published because the order did not allow it.
    """

    tally: Tally
    files: tuple[LogFile, ...] = ()
    held: tuple[str, str] | None = None
    changed: int = 0
    removed: int = 0
    unsent: int = 0
    seconds: float = 0.0


class Publisher:
    """Carries out orders on one data folder; with ``shared``, as one of several nodes that publish together."""

    def __init__(
        self,
        ledger: Ledger,
        folder: DataFolder,
        *,
        hash_key: bytes,
        policy: HoldPolicy,
        workers: int,
        max_rows_per_file: int,
        stop: threading.Event,
        shared: SharedSequence | None = None,
    ) -> None:
        self._shared = shared
        self._ledger = ledger
        self._folder = folder
        self._hash_key = hash_key
        self._policy = policy
        self._workers = workers
        self._max_rows_per_file = max_rows_per_file
        self._stop = stop
        self._reported_missing: set[LogName] = set()
        self._serving = threading.Lock()  # held from reading the ledger to setting what is served
        if shared is not None:
            shared.on_change = self.serve_published

    def next_name(self, day: date, prefix: str, rules: LogRules) -> LogName:
        """Return the next name of a day that neither the ledger nor the folder has ever seen."""
        promised = [entry.name for publication in self._ledger.publications(day) for entry in publication.logs]
        # Several nodes must arrive at the same number, so a file that lies in this folder alone does not count.
        spent = promised if self._shared is not None else [*promised, *self._folder.names()]
        numbers = [name.number for name in spent if name.day == day]
        return LogName(prefix, day, max(numbers, default=-1) + 1, rules.layout.format)

    def refuse_unknown(self, order: Order) -> None:
        """Refuse an order for a day of which the folder has a published log that the ledger has never seen.

        This happens when an older ledger was restored: it does not know that the log's rows were sent, so they would go
        out a second time. An operator's resend is carried out.

        Raises:
            NameSpent: there is such a log; call this before the export is fetched.
        """
        day = order.export.day
        # Between several nodes the sequence says what was published, not the folder.
        if self._shared is not None or order.kind == "resend":
            return
        known = {entry.name for publication in self._ledger.publications(day) for entry in publication.logs}
        for file in self._folder.found():
            name = file.name
            if name is None or name.day != day or name in known or not file.sealed:
                continue
            if self._folder.newlines(name) is not None:
                raise NameSpent(
                    f"{name} was published, but this ledger does not know it: its rows would be sent a second time; "
                    "an older ledger has probably been restored",
                    hint="pickup-point manual restoring",
                )

    def publish(
        self,
        order: Order,
        spool: Path,
        catalogue: Catalogue | None,
        now: datetime,
        progress: Callable[[int], None] | None = None,
    ) -> DayOutcome:
        """Convert the export in ``spool`` and publish it, or return why it is not published.

        ``progress`` gets the number of bytes of the export read so far.

        Raises:
            ExportTorn, ConversionFailed, DataFolderError, LedgerError, NameSpent: nothing was published, or the next
                `recover` finishes it.
            Overtaken, NodesDiffer, StoreError: see `SharedSequence.publish`.
        """
        started = time.monotonic()
        day = order.export.day
        conversion = Conversion(order.rules, self._hash_key, catalogue, day)
        sent = [
            SentFile(publication.rules.layout, self._opener(entry.name), str(entry.name))
            for publication in order.sent
            for entry in publication.logs
            if entry.state == "published" and entry.superseded_by is None
        ]
        rest, rejects_name = order.rest_of, ""
        promised: list[LogName] = []
        # The same version: the missing logs become the interrupted publication's own, whose tally counts them already.
        completes = rest is not None and rest.export.etag == order.export.etag
        if rest is not None:
            taken = set(self._folder.names())
            promised = [entry.name for entry in rest.missing if entry.name not in taken]
            rejects_name = rest.logs[0].name.rejects if completes else ""
        first = self.next_name(day, order.prefix, order.rules)
        with (
            self._folder.stage(first, promised, rejects_name) as staging,
            translate_os_errors(self._folder.staging_dir),
        ):
            converted = convert_apart(
                spool,
                lambda: conversion,
                Outputs(staging.folder, lambda: staging.file_names, (staging.folder, staging.rejects_name)),
                scratch=self._folder.staging_dir,
                workers=self._workers,
                max_rows_per_file=self._max_rows_per_file,
                sent=sent,
                fresh_after=order.fresh_after,
                by_podcast=True,
                exact=order.exact,
                progress=progress,
                stop=self._stop,
            )
            tally, changed, removed = converted.tally, converted.changed, converted.removed
            rows_before = self._rows_before(day)
            if order.kind == "late":
                # What is only counted is not held: it comes too late in any case.
                judged = order.may_hold and order.may_publish
                held = late_hold_reason(tally, removed) if judged else None
            else:
                # A day of which nothing would remain is held even if accepted.
                judged = order.may_hold or not acceptable(tally)
                held = hold_reason(tally, rows_before, self._policy) if judged else None
                held = ON_ONE_LINE if converted.one_line else held
            staging.keep_rejects(written=converted.rejects)
            if held is not None:
                return DayOutcome(tally, held=held, changed=changed, removed=removed)
            if not converted.logs:
                if rest is not None:  # its rows are no longer in the export
                    self._ledger.release_missing(rest.id)
                return DayOutcome(tally, changed=changed, removed=removed)
            if not order.may_publish:
                return DayOutcome(tally, changed=changed, removed=removed, unsent=tally.lines)
            publication = Publication(
                id=0,
                day=day,
                kind=order.kind,
                export=order.export,
                rules=order.rules,
                tally=tally,
                intended_at=now,
                published_at=None,
                changed=changed,
                removed=removed,
                remark=order.remark,
                catalogue=catalogue.stamp if catalogue is not None else None,
                podcasts=converted.podcasts,
            )
            if rest is not None and completes:
                publication = rest
            files = self._link(staging, publication, converted.logs, now, rest.id if rest is not None else 0)
        return DayOutcome(tally, tuple(files), changed=changed, removed=removed, seconds=time.monotonic() - started)

    def _opener(self, name: LogName) -> Callable[[], BinaryIO]:
        return lambda: self._folder.open_log(name)

    def _link(
        self, staging: Staging, publication: Publication, written: Sequence[WrittenLog], now: datetime, rest_of: int
    ) -> list[LogFile]:
        """Turn files in staging into files that are served: the critical sequence. ``rest_of``: see `Ledger.intend`.

        Each step leaves enough on disk for `recover` to finish the sequence, or to undo it, after a crash.
        """
        header = publication.rules.layout.header_lines(publication.day)
        if self._shared is not None:
            return self._shared.publish(
                publication,
                lambda earliest: staging.seal(written, header, earliest, self._stop),
                [log.lines for log in written],
            )
        # Whole and on disk, with size, digest and mtime final: only such a file may be promised.
        logs = staging.seal(written, header, self._next_mtime(now), self._stop)
        # Set first: once the ledger has promised the names, `recover` links from staging what is not linked here.
        staging.keep = True
        # The intention comes before the first link: after a crash, a file whose name the ledger does not know would
        # count as a stranger's, and its rows would be sent again under another name.
        number = self._ledger.intend(publication, logs, [log.lines for log in written], rest_of=rest_of)
        # The links, and the fsync of their folder. From here on the names are spent, whatever happens.
        files = staging.publish()
        assert publication.tally is not None  # noqa: S101  # only an adopted publication has none
        withheld = publication.tally.filtered["too_fresh"]
        # Both under the lock: `serve_published`, in another thread, must not read the ledger before this and set what
        # is served after it. Recorded first: what a client has seen is published for good.
        with self._serving:
            self._ledger.published(number, now, checked_etag=publication.export.etag, withheld=withheld)
            self._folder.add_served(files)
        staging.keep = False
        return files

    def _next_mtime(self, now: datetime) -> int:
        """Return an mtime later than every earlier file's, whatever the clock says.

        Pullers skip a file that is older than the newest one they have seen.
        """
        newest = self._ledger.newest_mtime()
        last = [] if newest is None else [newest]
        last += [file.mtime for file in self._folder.found()]
        return max(int(now.timestamp()), *(mtime + 1 for mtime in last)) if last else int(now.timestamp())

    def _rows_before(self, day: date) -> list[int]:
        """Return the number of rows of each published day among the last `LOOK_BACK_DAYS`."""
        return [
            publication.tally.rows if publication.tally is not None else sum(entry.lines for entry in publication.logs)
            for publication in self._ledger.live_publications()
            if 0 < (day - publication.day).days <= LOOK_BACK_DAYS and publication.published_at is not None
        ]

    # After a crash, and at the first start

    def recover(self, now: datetime) -> None:
        """Finish interrupted publications, clear staging, and serve what the ledger and the folder agree on."""
        interrupted = self._ledger.interrupted()
        promised = {str(entry.name) for publication in interrupted for entry in publication.missing}
        # First remove what was promised no name: on a full disk, a link may need the room.
        removed = self._folder.clear_staging(keep=promised)
        for publication in interrupted:
            self._finish_interrupted(publication, now)
        for name in removed + self._folder.clear_staging():
            log.info(f"feed removed {name} from staging")
        self.serve_published()

    def _finish_interrupted(self, publication: Publication, now: datetime) -> None:
        """Give the intended logs of a publication their names, from staging, and record it.

        What is no longer staged is converted again by the next round, see `decisions`; if none of the publication's
        logs is left, it is forgotten and its names are free.
        """
        present = [entry.name for entry in publication.missing if self._folder.finish(entry)]
        if publication.published_at is not None and not present:
            return  # recorded before: the round will convert the rest
        # A link may not be on disk yet: the ledger must not record it before an fsync.
        self._folder.sync()
        withheld = publication.tally.filtered["too_fresh"] if publication.tally is not None else 0
        self._ledger.finish_interrupted(publication.id, present, now, withheld=withheld)
        lost = "lost" if present else "freed"
        for entry in publication.missing:
            outcome = "published" if entry.name in present else lost
            log.warning(f"feed {outcome} {entry.name} after an interruption", day=str(publication.day))

    def serve_published(self) -> None:
        """Serve the files that the ledger says are published and that are in the folder with the recorded size."""
        with self._serving:
            served = {}
            published = self._ledger.published_logs()
            # The folder is read after the ledger: whatever that has recorded as published was linked before.
            found = {file.file: file for file in self._folder.found()}
            for entry in published:
                file = found.get(str(entry.name))
                if file is None or file.size != entry.size:
                    if entry.name not in self._reported_missing:
                        state = "missing" if file is None else "with the wrong size"
                        log.error(f"publisher found {entry.name} {state}", folder=str(self._folder.pickup_dir))
                        self._reported_missing.add(entry.name)
                    continue
                self._reported_missing.discard(entry.name)
                served[str(entry.name)] = LogFile(entry.name, entry.size, entry.mtime)
            self._folder.serve(served)

    def catch_up(self, *, begin: bool = False) -> None:
        """Take over what other nodes have published and pruned; do nothing without a shared store.

        With ``begin``, a history of this data folder's own becomes the beginning of an empty sequence.

        Raises:
            StoreError: the shared store cannot be read.
            NodesDiffer: this data folder has a history of its own.
        """
        if self._shared is not None:
            self._shared.catch_up(begin=begin)

    def adopt(self, rules: LogRules, now: datetime) -> int:
        """Record and serve the whole files that an empty ledger finds in the folder, once; return how many.

        Call it after `catch_up`: with a shared store, the sequence says what was published, unless it is empty.
        """
        if self._shared is not None and self._ledger.entries.head():
            return 0
        if "folder_adopted" in self._ledger.facts():
            return 0
        days: dict[date, list[FoundFile]] = {}
        known = {entry.name for entry in self._ledger.logs()}  # by an adoption that a crash interrupted
        for file in self._folder.found():
            if file.name is not None and file.name not in known:
                days.setdefault(file.name.day, []).append(file)
        adopted = 0
        for day, files in sorted(days.items()):
            adopted += self._adopt_day(day, files, rules, now)
        # Last: an interrupted adoption goes on at the next start.
        self._ledger.note(folder_adopted=now.isoformat())
        self.serve_published()
        return adopted

    def _adopt_day(self, day: date, files: list[FoundFile], rules: LogRules, now: datetime) -> int:
        """Record the files of a day as one publication per layout; return the number of files."""
        by_layout: dict[Layout | None, list[LedgerLog]] = {}
        for file in files:
            assert file.name is not None  # noqa: S101  # only parsed names come here
            newlines = self._folder.newlines(file.name)
            if newlines is None:
                log.warning(f"feed left {file.file} alone: it is not a complete gzip file")
                continue
            layout = layouts_by_header(self._folder.head(file.name), rules.layout, file.name)
            headers = 0 if layout is None else layout.header_lines(day).count("\n")
            entry = LedgerLog(
                name=file.name,
                publication=0,
                size=file.size,
                sha256=self._folder.sha256(file.name),
                mtime=file.mtime,
                lines=max(0, newlines - headers),
                state="published",
            )
            by_layout.setdefault(layout, []).append(entry)
            log.warning(f"feed adopted {file.file}", lines=entry.lines)
        for layout, logs in by_layout.items():
            published = moment(max(entry.mtime for entry in logs))
            publication = Publication(
                id=0,
                day=day,
                kind="adopted",
                export=DayExport(day, "", "", 0, published),
                # The file does not say which release wrote it, and so how its ids are encoded, nor the key from which
                # rows without an id got theirs.
                rules=rules._replace(
                    layout=rules.layout if layout is None else layout._replace(ids=IdCells.UNKNOWN), id_key=""
                ),
                tally=None,
                intended_at=now,
                published_at=published,
                remark=UNKNOWN_LAYOUT if layout is None else "found in the folder when the ledger was new",
            )
            self._ledger.adopt(publication, logs)
        return sum(len(logs) for logs in by_layout.values())
