"""The feed: what happens to each day. One pass over the days is a round.

Collects what the source lists, the ledger remembers and the clocks say; `decide` judges each day by it, and `Publisher`
carries the decision out. Promises: only final days are published, or days given up waiting for; a day once, its late
rows once; one bad day never stops the others.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import replace
from datetime import date, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog

from ..convert.apart import DIED_OFTEN
from ..convert.tally import Tally
from ..disk import discard, translate_os_errors
from ..errors import ConversionDied, ExportChanged, ExportTorn, Overtaken, PickupPointError, unexpected
from ..storage.records import DayRecord, Failure, Hold, LateCheck
from ..threads import in_thread
from ..triton import expires
from .clock import LEAP_HINT, before_leap, believe, doubt, saw_local_clock, set_back
from .decisions import (
    CLOCK_TOLERANCE,
    DOUBTED,
    LATE_ROWS_IGNORED,
    DayResult,
    FeedPolicy,
    FeedRequest,
    Order,
    Round,
    catching_up,
    decide,
    despite_hold,
)
from .first_delivery import NothingDelivered, source_facts
from .holds import (
    accept_command,
    late_warnings,
    published_when_given_up,
    shrunk,
    warnings,
    way_out,
    way_out_of_late,
)
from .window import KnownDays, window

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from datetime import datetime

    from ..episodes.catalogue import Catalogue
    from ..megaphone.exports import DayExport, Listing
    from ..megaphone.source import ExportSource
    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..triton import LogRules
    from .publisher import DayOutcome, Publisher

log = structlog.get_logger()

MOST_TURNS = 10  # how often a round decides a day again because another node was first
LONGEST_PAUSE = timedelta(hours=1)  # between two tries of the same version of a day
REPORT_CLOCK_EVERY = timedelta(days=1)  # while the local clock stays wrong
TOLD_FOR = timedelta(days=7)  # how long after a day's expiry its late rows are still reported
DEATHS = "conversion_deaths"  # a fact of the ledger: by day, [ETag of its export, how often its process died]


class Feed:
    """Runs rounds; ``catalogue`` returns the newest snapshot of the episode catalogue, or None."""

    def __init__(
        self,
        policy: FeedPolicy,
        source: ExportSource,
        publisher: Publisher,
        ledger: Ledger,
        folder: DataFolder,
        *,
        catalogue: Callable[[], Catalogue | None],
        stop: threading.Event,
        progress: Callable[[date, int, int], None] | None = None,
    ) -> None:
        self._policy = policy
        self._source = source
        self._publisher = publisher
        self._ledger = ledger
        self._folder = folder
        self._catalogue = catalogue
        self._stop = stop
        self._progress = progress
        self._warned: set[tuple[date, str]] = set()
        self._clock_doubted = False
        self._clock_off: datetime | None = None  # by the source's clock, when the local one was last reported as off

    @property
    def rules(self) -> LogRules:
        """The configured rules by which rows become lines."""
        return self._policy.rules

    async def run_round(self, now: datetime, request: FeedRequest | None = None) -> Round:
        """Run one pass over the days, and return what became of each.

        ``now`` is the local clock's time, which dates everything recorded. Whether a day is final is decided by the
        source's own clock.

        Raises:
            SourceError: the source could not be listed; no day was touched.
            DataFolderError, LedgerError: the data folder or the ledger cannot be used.
            StoreError, NodesDiffer: other nodes publish too, and this one cannot take part now.
        """
        request = request or FeedRequest()
        began = monotonic()
        async with self._round_lock():
            await in_thread(self._begin, now)
            listing = await self._source.day_exports()
            # Waiting for another round or a slow bucket may have taken minutes: compare the clocks at one instant.
            now += timedelta(seconds=int(monotonic() - began))
            outcome = Round(now, listing.now)
            days = await in_thread(self._take_in, now, listing, request)
            for day in catching_up(days, listing.now):
                # Between two days a stop cancels nothing and leaves nothing half done.
                if self._stop.is_set():
                    break
                outcome.results.append(await self._one_day(day, listing, now, request))
            outcome.results.sort(key=lambda result: result.day)
            return outcome

    @contextlib.asynccontextmanager
    async def _round_lock(self) -> AsyncIterator[None]:
        """Hold the round lock, which another process may hold for minutes."""

        def waiting() -> None:
            log.info("feed waited for another round to end", lock=str(self._folder.data_dir / "round.lock"))

        # Entered by hand, in a thread: `with` would block the event loop, which serves clients meanwhile.
        lock = self._folder.round_lock(waiting, self._stop.is_set)
        await in_thread(lock.__enter__)
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def _begin(self, now: datetime) -> None:
        """Put in order what earlier processes and other nodes have left."""
        # First finish what a killed process left behind, the service's or a command's: under this lock nobody else
        # publishes, so whatever is in staging is a leftover.
        self._publisher.recover(now)
        # Before anything is decided: what other nodes have done counts as this one's doing.
        self._publisher.catch_up(begin=True)
        self._publisher.adopt(self._policy.rules, now)
        # After the adoption, whose files bring their own dates; before anything is published by this clock.
        saw_local_clock(self._ledger, now)

    def _take_in(self, now: datetime, listing: Listing, request: FeedRequest) -> list[date]:
        """Record what the listing says of the clock and of the days; return the days that this round is about."""
        # Together, so that a round without news writes to the disk twice, not once for each day and clock.
        with self._ledger.together():
            self._check_clock(now, listing)
            self._clock_doubted = bool(doubt(self._ledger, listing.now))
            days = self._look(listing, request)
            self._announce_first_start(days, listing)
        return days

    def _check_clock(self, now: datetime, listing: Listing) -> None:
        """Record how far the local clock is ahead of the source's; report when that begins or ends to be too far.

        A source's own clock is believed; see `clock`.
        """
        skew = now - listing.now
        self._ledger.note(clock_skew=skew.total_seconds())
        if listing.own_clock:
            believe(self._ledger, listing.now)
        why = set_back(self._ledger.facts(), now)
        if abs(skew) <= CLOCK_TOLERANCE and not why:
            if self._clock_off is not None:
                log.info("feed found the local clock right again")
            self._clock_off = None
        # The alarm stands all the time; a line in every round would bury the others.
        elif self._clock_off is None or abs(listing.now - self._clock_off) >= REPORT_CLOCK_EVERY:
            self._clock_off = listing.now
            if abs(skew) > CLOCK_TOLERANCE:
                hint = "see whether the clock is synchronised: timedatectl"
                log.warning("feed found the local clock off", seconds=round(skew.total_seconds()), hint=hint)
            else:
                log.warning("feed found the local clock behind", why=why, hint=LEAP_HINT)

    # Which days there are

    def _look(self, listing: Listing, request: FeedRequest) -> list[date]:
        """Record what the listing says about each day of the window; return the days that this round is about."""
        facts = self._ledger.facts()
        steady = before_leap(facts, listing.now)
        horizon = self._ledger.horizon(today=steady.date())
        records = self._ledger.live_days(horizon)
        known = KnownDays(records, self._ledger.published_days(horizon), facts.get("first_start"), horizon)
        self._note_delivery(facts, known, listing)
        # The last round, or one before the clock leapt.
        last = min(steady, max((record.seen_at for record in records.values()), default=steady))
        found = window(self._policy.export, self._policy.keep_days, known, listing, last.date())
        # However old: a log that was promised a name gets it.
        missing = {publication.day for publication in self._ledger.interrupted()}
        days = sorted({*found.days, *(day for day in missing if not self._policy.out_of_reach(day, listing.now))})
        # First: once a killed round has recorded the days, it counts as the last one, and these would not be logged.
        self._note_passed_over([day for day in found.passed_over if day not in days], known, listing)
        for day in sorted({*days, *request.days}):
            export = listing.exports.get(day)
            # A mistyped day leaves no trace: no round would look at it, and nothing was ever there.
            typed_wrong = day not in days and export is None and self._ledger.day(day) is None
            if not typed_wrong and not self._policy.out_of_reach(day, listing.now):
                self._ledger.see(DayRecord(day, self._state(day, listing), listing.now, export))
        return sorted(request.days) if request.days else days

    def _state(self, day: date, listing: Listing) -> str:
        """Return the word for what the listing shows of a day; see `FinalityRule.state`."""
        rule = self._policy.export.finality
        return rule.state(day, listing.exports.get(day), listing.now, listing.markers.get(day))

    def _note_delivery(self, facts: Mapping[str, Any], known: KnownDays, listing: Listing) -> None:
        """Record whether the source has ever delivered; if not, log once what it holds instead of exports."""
        delivered = bool(known.published) or any(record.export is not None for record in known.records.values())
        kind = self._policy.export.kind
        changed = source_facts(facts, self._source.name, listing, delivered=delivered, kind=kind)
        if changed:
            self._ledger.note(**changed)
        nothing = NothingDelivered.of(changed)
        before = NothingDelivered.of(facts)
        if nothing is not None and (before is None or before.since != nothing.since):
            log.warning("feed found no export", why=nothing.sentence, hint=nothing.others.cure or "pickup-point doctor")

    def _note_passed_over(self, days: Sequence[date], known: KnownDays, listing: Listing) -> None:
        """Log the days that left the window unpublished, in an outage longer than that, and record their state."""
        lost = [day for day in days if day in listing.exports]
        if lost and (lost[-1], "passed over") not in self._warned:
            self._warned.add((lost[-1], "passed over"))
            within = [day for day in lost if not self._policy.out_of_reach(day, listing.now)]
            hints = [LEAP_HINT] if self._clock_doubted else []
            hints += [f"if Triton still accepts it: pickup-point feed --day {day}" for day in within[:1]]
            why = "look_back" if within else self._policy.out_of_reach(lost[-1], listing.now)
            hint = "; ".join(hints) or "none of them can be published any more"
            log.warning(f"feed passed over {lost[0]}", to=str(lost[-1]), days=len(lost), why=why, hint=hint)
        for day in days:
            record, export = known.records.get(day), listing.exports.get(day)
            state = self._state(day, listing)
            if record is None or (record.seen, record.export) != (state, export):
                self._ledger.see(DayRecord(day, state, listing.now, export))

    def _announce_first_start(self, days: Sequence[date], listing: Listing) -> None:
        """Log once, on an empty ledger without ``first_day``, which days the first round is about to publish."""
        if self._policy.export.first_day is None and "first_start" not in self._ledger.facts():
            done = self._ledger.published_days(date.min)
            due = [str(day) for day in days if day not in done and self._state(day, listing) == "due"]
            hint = "to begin with a later day, set export.first_day"
            log.info("feed started on an empty ledger", publishes=",".join(due) or "nothing yet", hint=hint)
            self._ledger.note(first_start=listing.now.isoformat())

    # One day

    async def _one_day(self, day: date, listing: Listing, now: datetime, request: FeedRequest) -> DayResult:
        """Publish a day if it is time; turn any error into its result, so that the other days go on."""
        export = listing.exports.get(day)
        try:
            for _ in range(MOST_TURNS):
                with contextlib.suppress(Overtaken):
                    return await self._decide_and_publish(day, export, listing.now, now, request)
            return await self._decide_and_publish(day, export, listing.now, now, request)
        except PickupPointError as error:
            return await in_thread(self._failed, day, export, now, error)
        # A bug fails this day only; its message is not logged, since it may hold a listener's address.
        except Exception as error:
            return await in_thread(self._failed, day, export, now, unexpected(error))

    def _failed(self, day: date, export: DayExport | None, now: datetime, error: PickupPointError) -> DayResult:
        """Record and log a failure, and when the day is retried."""
        if self._stop.is_set():  # no fault of the day: the conversion was stopped
            return DayResult(day, "stopped", "stopped before it was done; the next round publishes it")
        record = self._ledger.day(day)
        before = record.failure if record is not None else None
        # Tries are counted per version of the export; a new one starts afresh.
        etag = export.etag if export is not None else ""
        if isinstance(error, ConversionDied):
            self._count_death(day, etag)
        tries = before.tries + 1 if before is not None and before.etag == etag else 1
        pause = min(self._policy.export.poll_every * 2 ** min(tries - 1, 10), LONGEST_PAUSE)
        # Rewritten while it was read: the new version need not wait.
        if isinstance(error, ExportChanged):
            pause = timedelta()
        self._ledger.fail(day, Failure(str(error), error.hint, etag, now, now + pause, tries))
        log.error(f"feed failed {day}", why=str(error), hint=error.hint, next_try=f"{now + pause:%H:%MZ}")
        return DayResult(day, "failed", f"{error} (next try {now + pause:%Y-%m-%d %H:%MZ})")

    def _count_death(self, day: date, etag: str) -> None:
        """Count one more death of the process that converted this version; in the ledger, to survive a restart."""
        deaths = self._ledger.facts().get(DEATHS, {})
        self._ledger.note(**{DEATHS: {**deaths, str(day): [etag, self._deaths(day, etag) + 1]}})

    def _deaths(self, day: date, etag: str) -> int:
        version, count = self._ledger.facts().get(DEATHS, {}).get(str(day), ("", 0))
        return count if version == etag else 0

    def _forget_deaths(self, day: date) -> None:
        deaths = self._ledger.facts().get(DEATHS, {})
        if deaths.pop(str(day), None) is not None:
            self._ledger.note(**{DEATHS: deaths})

    async def _decide_and_publish(
        self, day: date, export: DayExport | None, source_now: datetime, now: datetime, request: FeedRequest
    ) -> DayResult:
        """Decide about a day, and carry out the decision."""
        known, seen = await in_thread(lambda: (self._ledger.publications(day), self._ledger.day(day)))
        finished = [publication for publication in known if publication.published_at is not None]
        # A day out of reach, or mistyped, has no record.
        unseen = self._policy.export.finality.state(day, export, source_now, None)
        record = seen or DayRecord(day, unseen, source_now, export)
        decision = decide(
            record, finished, self._policy, request, now=now, source_now=source_now, clock_doubted=self._clock_doubted
        )
        if decision.left_alone and export is not None:
            self._warn_once(day, export, decision.left_alone)
        if export is not None:
            await in_thread(self._note_ignored, export, decision.left_alone, source_now)
        if decision.lost:
            await in_thread(self._tell_lost, record, finished[-1].tally or Tally(), decision.lost, now)
        if decision.order is None:
            return decision.result
        result = await self._carry_out(decision.order, now, given_up=decision.given_up)
        nothing_new = decision.order.kind == "late" and not (result.files or result.bad)
        return decision.result if nothing_new else result

    def _warn_once(self, day: date, export: DayExport, why: str) -> None:
        """Log once per version of an export that its late rows are ignored."""
        if (day, export.etag) not in self._warned:
            self._warned.add((day, export.etag))
            log.warning(f"feed ignored late rows of {day}", why=why)

    def _note_ignored(self, export: DayExport, why: str, source_now: datetime) -> None:
        """Record why the late rows of a day are ignored, or, without ``why``, that they are not."""
        known = self._ledger.facts().get(LATE_ROWS_IGNORED, {})
        ignored = {day: it for day, it in known.items() if source_now < expires(date.fromisoformat(day)) + TOLD_FOR}
        ignored.pop(str(export.day), None)
        # A doubted clock has its own alarm, which says what to do.
        if why and why != DOUBTED:
            ignored[str(export.day)] = [export.etag, why]
        if ignored != known:
            self._ledger.note(**{LATE_ROWS_IGNORED: ignored})

    def _tell_lost(self, record: DayRecord, tally: Tally, why: str, now: datetime) -> None:
        """Record and log once that withheld rows will never be sent; ``tally`` is that of the last publication."""
        etag, unsent = record.checked_etag or "", record.withheld
        self._ledger.late_checked(LateCheck(record.day, now, etag, None, unsent, 0, 0, tally))
        log.warning(
            f"feed lost the rows withheld from {record.day}: it is too late to send them", unsent=unsent, why=why
        )

    async def _carry_out(self, order: Order, now: datetime, *, given_up: bool = False) -> DayResult:
        """Fetch the export into staging and publish it; return what became of it."""
        export, day = order.export, order.export.day
        await in_thread(self._publisher.refuse_unknown, order)
        spool = self._folder.staging_dir / f"export-{day}.json.gz"
        catalogue = await in_thread(self._catalogue)
        progress = self._progress
        deaths = await in_thread(self._deaths, day, export.etag)
        if deaths >= DIED_OFTEN and not order.exact:
            why = f"converted without the kernel: the conversion had died {deaths} times"
            log.warning(f"feed converts {day} without the kernel", why=why, hint="please report this, with the export")
            order = replace(order, exact=True, remark="; ".join(filter(None, (order.remark, why))))

        def read(count: int) -> None:
            if progress is not None:
                progress(day, count, export.size)

        try:
            with translate_os_errors(spool), spool.open("wb") as file:
                await self._source.fetch(export, file)
            done = await in_thread(self._publisher.publish, order, spool, catalogue, now, read)
        except ExportTorn as error:  # its sentence names our copy, which is about to be removed
            hint = f"the next version is tried at once; to retry this one: pickup-point feed --day {day}"
            raise ExportTorn(str(error).replace(str(spool), export.key), hint=hint) from error
        finally:
            discard(spool)
        await in_thread(self._forget_deaths, day)
        result = await in_thread(self._record_outcome, order, done, now)
        if done.held is not None and given_up:
            reason, why = done.held
            hold = Hold(why, reason, export.etag, done.tally)
            if published_when_given_up(hold):
                return await self._carry_out(despite_hold(order, hold), now)
        return result

    def _record_outcome(self, order: Order, done: DayOutcome, now: datetime) -> DayResult:
        """Record and log what became of an order."""
        day, tally = order.export.day, done.tally
        if done.held is not None:
            reason, why = done.held
            accept = accept_command(day)
            if order.kind == "resend":
                accept += f" --resend {shlex.quote(order.remark)}"
            hold = Hold(why, reason, order.export.etag, tally)
            self._ledger.hold(day, hold)
            if order.kind == "late":
                what, way = f"late rows of {day}", way_out_of_late(day)
                hint = way
            else:
                what, way = f"{day}", way_out(tally, accept)
                hint = f"look at {self._folder.rejects_dir}; {way}"
            log.warning(f"feed held {what}", why=why, hint=hint)
            return DayResult(day, "held", f"{order.note}{why}; {way}")
        if not done.files:
            export = order.export
            check = LateCheck(
                day, now, export.etag, export.last_modified, done.unsent, done.changed, done.removed, tally
            )
            self._ledger.late_checked(check)
            news = "its new rows came too late to be sent" if done.unsent else "no row is new"
            logger = log.warning if done.unsent else log.info
            logger(
                f"feed compared {day}: its export changed, {news}",
                unsent=done.unsent, changed=done.changed, removed=done.removed,
            )  # fmt: skip
            self._notice(f"{day}", order, done)
            return DayResult(day, "published", f"its export changed, {news}")
        names = tuple(file.name for file in done.files)
        expired = "its first sessions are over three days old: Triton counts those only if it has agreed to"
        late = f" (late: {expired})" if now >= expires(day) else ""
        log.info(
            f"feed published {','.join(str(name) for name in names)}",
            rows=tally.rows,
            lines=tally.lines,
            filtered=tally.filtered.total(),
            rejected=tally.rejected.total(),
            seconds=round(done.seconds, 1),
            **({"changed": done.changed, "removed": done.removed} if order.kind == "late" else {}),
            **({"remark": order.remark} if order.remark else {}),
        )
        if late:
            log.warning(f"feed published {names[0]} after the three-day limit", why=expired)
        self._notice(f"{names[0]}", order, done)
        files = ", ".join(str(name) for name in names)
        lines = f"{files} ({tally.lines} lines of {tally.rows} rows){late}"
        return DayResult(day, "published", f"{order.note}{lines}", names)

    def _notice(self, what: str, order: Order, done: DayOutcome) -> None:
        """Log what is odd about a day that was converted and not held."""
        tally = done.tally
        if order.kind == "late":
            before = max((p.tally.rows for p in order.sent if p.tally is not None), default=0)
            found = [*late_warnings(tally, self._policy.holds, done.removed), *shrunk(tally.rows, before)]
        else:
            found = warnings(tally, self._policy.holds)
        for warning in found:
            log.warning(f"feed noticed {what}", why=warning)
