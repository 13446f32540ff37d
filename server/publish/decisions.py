"""What to do about a day: one pure function of what is known about it, the settings and two clocks.

`decide` is the whole policy of the feed; `feed` collects its arguments and carries out its decision. No outside world,
and no clock of its own: ``now`` is the local clock's time, ``source_now`` the source's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from ..megaphone.exports import DayExport, start_of
from ..triton import LogName, expires
from .holds import OTHER_IDS, accept_command, published_when_given_up, way_out, way_out_of_late

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..settings import ExportSettings
    from ..storage.records import DayRecord, Hold, Kind, Publication
    from ..triton import LogRules
    from .holds import HoldPolicy


CLOCK_TOLERANCE = timedelta(minutes=1)  # how far the local clock may be from the source's


@dataclass(frozen=True, slots=True)
class FeedRequest:
    """What an operator asks for on the command line: only these ``days``, published although held, or sent again.

    ``resend`` is the reason for sending a day again, or ''. A round ``by_hand`` retries failed days at once.
    """

    days: tuple[date, ...] = ()
    accept_rejects: bool = False
    resend: str = ""
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class DayResult:
    """What a round did with one day: the word of a state, a sentence, and the names of the published files."""

    day: date
    word: str
    sentence: str
    files: tuple[LogName, ...] = ()

    @property
    def bad(self) -> bool:
        """Whether a person must act: a due day failed or is held, or a request was refused."""
        return self.word in ("failed", "held", "refused")


@dataclass(slots=True)
class Round:
    """One round: when it ran, what the source's clock said then, and the results by day."""

    at: datetime
    source_now: datetime
    results: list[DayResult] = field(default_factory=list)

    @property
    def published(self) -> list[LogName]:
        """The names of the files that this round published."""
        return [name for result in self.results for name in result.files]


@dataclass(frozen=True, slots=True)
class FeedPolicy:
    """The settings of a feed that do not change while it runs."""

    export: ExportSettings
    rules: LogRules
    prefix: str
    holds: HoldPolicy
    keep_days: int
    pull_every: timedelta = timedelta(hours=24)  # how often the partner pulls

    def out_of_reach(self, day: date, now: datetime) -> str:
        """Return why a day is not published, or no longer, or ''."""
        if self.export.first_day is not None and day < self.export.first_day:
            return f"it is before export.first_day ({self.export.first_day})"
        if now - start_of(day) > timedelta(days=self.keep_days):
            return f"it is older than retention.keep_days ({self.keep_days}): a pruned day never comes back"
        return ""

    def sent_as_it_is(self, day: date) -> tuple[datetime, datetime, datetime]:
        """Return the instants at which a published day's export is compared even though it keeps being rewritten.

        They are D+2 12:00Z; shortly before the partner's last chance to pull; and D+3 00:00Z, to report what is lost.
        """
        noon, end = start_of(day) + RELEASE_AFTER, expires(day)
        # Room for a round before the partner pulls.
        margin = max(timedelta(hours=1), self.export.poll_every * 1.5)
        last = end - self.pull_every - margin
        return noon, last if last > noon else end - margin, end


def catching_up(days: Iterable[date], now: datetime) -> list[date]:
    """Return the days in order of publication: those that Triton still counts come first; oldest first within each."""
    return sorted(days, key=lambda day: (now >= expires(day), day))


DOUBTED = "the clock says they are too late, but the clock is in doubt: pickup-point prune --clock-is-right"
# A fact of the ledger: by day, a version of its export and why what is new in it is not sent.
LATE_ROWS_IGNORED = "late_rows_ignored"
UNKNOWN_LAYOUT = "its layout is not known, so late rows cannot be told from rows already sent"


@dataclass(frozen=True, slots=True)
class Order:
    """What to publish: one version of a day's export, by which rules, under names with which prefix.

    Rows of the publications in ``sent`` are left out; rows created at or after ``fresh_after``
    (``YYYY-MM-DD HH:MM:SS``, UTC) are withheld. Without ``may_hold`` the day is published despite any hold that can be
    accepted; without ``may_publish`` its rows are only counted. ``exact`` converts without the kernel. ``rest_of`` is a
    publication with missing logs, whose names are used first. ``note`` opens the sentence that reports the outcome.
    """

    kind: Kind
    export: DayExport
    rules: LogRules
    prefix: str
    remark: str = ""
    sent: tuple[Publication, ...] = ()
    fresh_after: str | None = None
    may_hold: bool = True
    may_publish: bool = True
    exact: bool = False
    rest_of: Publication | None = None
    note: str = ""


TOO_FRESH = timedelta(hours=2)  # rows this new may still grow: withheld from a day that is published unfinal
RELEASE_AFTER = timedelta(days=2, hours=12)  # after the day began: at D+2 12:00Z withheld rows are sent in any case
_SETS_THE_RULES = ("first", "unfinal", "resend", "adopted")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a day: carry out ``order``, if there is one.

    ``result`` is what the round reports if there is no order, or if the order published nothing and held nothing.
    ``given_up``: waiting for the day to become final is over. ``left_alone`` is why the late rows of a changed export
    are ignored, for the journal; ``lost`` is why withheld rows will never be sent; both '' for none.
    """

    result: DayResult
    order: Order | None = None
    given_up: bool = False
    left_alone: str = ""
    lost: str = ""


def decide(
    record: DayRecord,
    publications: Sequence[Publication],
    policy: FeedPolicy,
    request: FeedRequest,
    *,
    now: datetime,
    source_now: datetime,
    clock_doubted: bool = False,
) -> Decision:
    """Decide what a round does about one day.

    ``record`` is what the round has just seen of the day; ``publications`` are its finished ones, oldest first.
    By a clock in doubt days are published, but no rows are given up: they may still be in time.
    """
    day, export, failure = record.day, record.export, record.failure
    if reason := policy.out_of_reach(day, source_now):
        return Decision(DayResult(day, "refused", reason))
    if reason := _refusal_of_resend(record, publications, request):
        return Decision(DayResult(day, "refused", reason))
    # A failure dated in the future was recorded by a clock that has been corrected since: do not wait for it.
    waiting = failure is not None and failure.at <= now < failure.next_try
    asked_for = bool(request.days) or request.by_hand
    if failure is not None and waiting and not asked_for and export is not None and failure.etag == export.etag:
        return Decision(DayResult(day, "failed", f"{failure.sentence} (next try {failure.next_try:%Y-%m-%d %H:%MZ})"))
    if request.resend and export is not None:
        order = Order(
            "resend",
            export,
            policy.rules,
            _prefix(publications, policy),
            remark=request.resend,
            may_hold=not _accepted(record, request, late=False),
            note=_judged_anew(record, request),
        )
        return Decision(_published(day, publications), order)
    rest = next((publication for publication in publications if publication.missing), None)
    if rest is not None:
        return _decide_rest(rest, record, publications, policy, source_now)
    if publications:
        return _decide_late(record, publications, policy, request, source_now, clock_doubted=clock_doubted)
    return _decide_first(record, policy, request, source_now)


def _refusal_of_resend(record: DayRecord, publications: Sequence[Publication], request: FeedRequest) -> str:
    """Return why a day cannot be sent again as requested, or ''."""
    if request.resend and not publications:
        return f"it was never published, so there is nothing to send again: pickup-point feed --day {record.day}"
    if request.resend and record.seen != "due":
        return f"its export cannot be read whole: {_SENTENCES[record.seen]}"
    return ""


def _decide_first(record: DayRecord, policy: FeedPolicy, request: FeedRequest, source_now: datetime) -> Decision:
    """Decide about a day that has not been published yet."""
    day, export = record.day, record.export
    given_up = source_now >= start_of(day) + policy.export.give_up_waiting
    note = _judged_anew(record, request)
    waiting = Decision(DayResult(day, record.seen, note + _SENTENCES.get(record.seen, "")))
    if export is None or not (record.seen == "due" or given_up):
        return waiting
    hold = _hold_of(record)
    accepted = hold is not None and request.accept_rejects
    order = Order("first", export, policy.rules, policy.prefix, may_hold=not accepted, note=note)
    if record.seen != "due":
        order = replace(order, kind="unfinal", remark=f"{AS_IT_STOOD}: {_NOT_FINAL[record.seen]}")
        # Later, rows withheld now would be sent by the next round, or, after D+3 00:00Z, never.
        if source_now < start_of(day) + RELEASE_AFTER:
            order = replace(order, fresh_after=_fresh_after(export), remark=f"{order.remark}; {WITHHELD}")
    if hold is not None and accepted and record.seen == "due":
        order = replace(order, remark=f"published because an operator accepted it: {hold.why}")
    elif hold is not None and not accepted:
        if not (given_up and published_when_given_up(hold)):
            return Decision(DayResult(day, "held", f"{hold.why}; {way_out(hold.tally, accept_command(day))}"))
        order = despite_hold(order, hold)
    return Decision(waiting.result, order, given_up=given_up)


def _hold_of(record: DayRecord) -> Hold | None:
    """Return the hold of the version that is there now, if any: a new version is converted and judged afresh."""
    etag = record.export.etag if record.export is not None else None
    return record.hold if record.hold is not None and record.hold.etag == etag else None


def _accepted(record: DayRecord, request: FeedRequest, *, late: bool) -> bool:
    """Return whether an operator accepts the held version: its ``late`` rows if that is why it is held, else all."""
    hold = _hold_of(record)
    return request.accept_rejects and hold is not None and (hold.reason == OTHER_IDS) is late


def _judged_anew(record: DayRecord, request: FeedRequest) -> str:
    """Return what to tell an operator who accepted a version that is no longer there, or ''."""
    if not request.accept_rejects or record.hold is None or _hold_of(record) is not None:
        return ""
    return "its export has changed since it was held, so the new version was not accepted: "


def despite_hold(order: Order, hold: Hold) -> Order:
    """Return the order that publishes a held day once waiting is over."""
    opening = f"{order.remark}; it was also held, and" if order.remark else "held until export.give_up_waiting, then"
    remark = f"{opening} published without its rejected rows, since nobody had decided: {hold.why}"
    return replace(order, remark=remark, may_hold=False)


def _decide_rest(
    rest: Publication, record: DayRecord, publications: Sequence[Publication], policy: FeedPolicy, source_now: datetime
) -> Decision:
    """Decide about a day with a publication that a crash left incomplete: its rows never count as late."""
    day, export = record.day, record.export
    same = export is not None and export.etag == rest.export.etag
    released = source_now >= start_of(day) + RELEASE_AFTER
    if export is None or not (same or released or record.seen == "due"):
        names = ", ".join(str(entry.name) for entry in rest.missing)
        why = _SENTENCES.get(record.seen, record.seen)
        return Decision(DayResult(day, "failed", f"a crash lost {names}, to be converted again, but {why}"))
    sent = standing(publications)
    if why := incomparable(sent, policy.rules):
        return Decision(_published(day, publications), left_alone=why)
    withheld = same and rest.tally is not None and rest.tally.filtered["too_fresh"]
    order = Order(
        "late",
        export,
        rest.rules,
        _prefix(publications, policy),
        remark="rows that a crash had kept back",
        sent=sent,
        fresh_after=_fresh_after(rest.export) if withheld else None,
        may_hold=False,
        rest_of=rest,
    )
    return Decision(_published(day, publications), order)


def standing(publications: Sequence[Publication]) -> tuple[Publication, ...]:
    """Return the publications that no resend has superseded."""
    return tuple(p for p in publications if any(entry.superseded_by is None for entry in p.logs))


def incomparable(sent: Sequence[Publication], rules: LogRules) -> str:
    """Return why nothing shows which rows were sent, or ''; ``rules`` are those configured now."""
    if any(publication.rules.kind != rules.kind for publication in sent):
        return "it was published from the other kind of export, whose rows cannot be told from those of this one"
    if rules.export_kind.identity and not all(p.rules.id_key == rules.id_key != "" for p in sent):
        return "its rows got their ids under another ip_hash.key, or an unknown one, so late rows cannot be recognised"
    if any(publication.remark == UNKNOWN_LAYOUT for publication in sent):
        return UNKNOWN_LAYOUT
    # Sent rows are read back from the files, so every one must still be there.
    if any(entry.state == "pruned" and entry.superseded_by is None for p in sent for entry in p.logs):
        return "a file of the day has already been pruned"
    return ""


def _fresh_after(export: DayExport) -> str:
    """Return the ``created_at`` from which the rows of an unfinal export may still grow."""
    return f"{export.last_modified - TOO_FRESH:%Y-%m-%d %H:%M:%S}"


def _decide_late(
    record: DayRecord,
    publications: Sequence[Publication],
    policy: FeedPolicy,
    request: FeedRequest,
    source_now: datetime,
    *,
    clock_doubted: bool,
) -> Decision:
    """Decide about a published day whose export may have changed, or of which rows may be withheld."""
    day, export = record.day, record.export
    result = _published(day, publications)
    changed = export is not None and export.etag != record.checked_etag
    if clock_doubted and source_now >= expires(day):
        return Decision(result, left_alone=DOUBTED if changed or record.withheld else "")
    if record.withheld and source_now >= expires(day):
        # Now the rows can only be counted; if not even that is possible, their number is on record.
        if export is None:
            return Decision(result, lost="its export is gone")
        if record.failure is not None and record.failure.etag == export.etag:
            return Decision(result, lost=record.failure.sentence)
    if export is None or not (changed or record.withheld):
        return Decision(result)
    if record.seen != "due" and not _sent_as_it_is(record, policy, source_now):
        return Decision(result)
    sent = standing(publications)
    if why := incomparable(sent, policy.rules):
        return Decision(result, left_alone=why)
    hold, in_time = _hold_of(record), source_now < expires(day)
    accepted = _accepted(record, request, late=True)
    if hold is not None and hold.reason == OTHER_IDS and in_time and not accepted:
        return Decision(DayResult(day, "held", f"{hold.why}; {way_out_of_late(day)}"))
    order = Order(
        "late",
        export,
        # Late rows are judged by the rules of the day's first file, whatever is configured now.
        next(p.rules for p in reversed(sent) if p.kind in _SETS_THE_RULES),
        _prefix(publications, policy),
        remark="withheld rows" if record.withheld else "late rows",
        sent=sent,
        may_hold=not accepted,
        may_publish=in_time,
        note=_judged_anew(record, request),
    )
    return Decision(result, order)


def _sent_as_it_is(record: DayRecord, policy: FeedPolicy, source_now: datetime) -> bool:
    """Return whether a day that is not final is compared all the same, because waiting longer would lose rows."""
    noon, *later = policy.sent_as_it_is(record.day)
    if record.withheld and source_now >= noon:
        return True
    return any(at <= source_now and (record.checked_at is None or record.checked_at < at) for at in (noon, *later))


def _prefix(publications: Sequence[Publication], policy: FeedPolicy) -> str:
    """Return the prefix of a day's names: that of its first file, or the configured one."""
    return publications[0].logs[0].name.prefix if publications else policy.prefix


def _published(day: date, publications: Sequence[Publication]) -> DayResult:
    return DayResult(day, "published", ", ".join(str(entry.name) for p in publications for entry in p.logs))


# A publication's remark says in plain words why it was not an ordinary one: `status` shows it for as long as the day.
AS_IT_STOOD = "not final by export.give_up_waiting, so published as it stood"
WITHHELD = "the rows of the two hours before its last change were withheld"
_NOT_FINAL = {
    "settling": "its export was still being rewritten",
    "stale": "its export had not been rewritten since the day ended",
    "unmarked": "Megaphone had not marked its export as final",
}
_SENTENCES = {
    "open": "it is not final yet",
    "missing": "there is no export: Megaphone does not deliver a day twice, ask support-megaphone@spotify.com",
    "stale": "its export was last written before the day ended",
    "settling": "its export changed too recently to be final",
    "unmarked": "Megaphone has not marked its export as final yet",
}
