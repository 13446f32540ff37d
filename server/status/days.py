"""An overview of the days: what `status`, `check`, the page and the metrics all show.

Pure: judged by the ledger's records and a clock that is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..publish.decisions import LATE_ROWS_IGNORED
from ..publish.holds import OTHER_IDS, accept_command, outside_day, published_when_given_up, shrunk, way_out
from ..storage.records import matched_share
from ..triton import expires
from .deadlines import DayDeadlines, Deadline, DeadlinePolicy, day_deadlines, patience

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ..convert.tally import Tally
    from ..megaphone.exports import DayExport
    from ..pickups import Delivered
    from ..publish.window import KnownDays
    from ..settings import ExportSettings
    from ..storage.records import DayRecord, LateCheck, LedgerLog, Publication


@dataclass(frozen=True, slots=True)
class UserPickups:
    """How much of a day a user has: how many of its ``files`` were picked up ``whole``, and when the last of them was.

    ``in_time`` is how many of them were before the day's deadline; ``parts`` is what the user has of files that were
    begun but are not whole.
    """

    user: str
    whole: int
    files: int
    last: datetime | None
    parts: tuple[Delivered, ...] = ()
    in_time: int = 0
    required: bool = True  # whether the deadlines wait for this user

    @property
    def begun(self) -> bool:
        """Whether the user has opened any file."""
        return self.whole > 0 or bool(self.parts)

    @property
    def done(self) -> bool:
        """Whether the user has picked up every file."""
        return self.files > 0 and self.whole == self.files


@dataclass(frozen=True, slots=True)
class Calendar:
    """The days that should exist by the clock, from ``first`` to ``today``, whether or not a round has seen them.

    ``overdue`` is the newest one that a round should have seen final, missing or stale by now.
    """

    first: date = date.max
    today: date = date.min
    overdue: date = date.min

    @classmethod
    def of(cls, export: ExportSettings, keep_days: int, known: KnownDays, now: datetime) -> Calendar:
        """Return the calendar of an installation; empty if no day was ever seen."""
        first = known.begin(export, keep_days, now.date())
        if first is None:
            return cls()
        final_time = export.finality.final_time
        overdue = now.date() - timedelta(days=1)
        while now < final_time(overdue) + patience(export.poll_every):
            overdue -= timedelta(days=1)
        return cls(first, now.date(), overdue)

    @property
    def days(self) -> list[date]:
        """The days, oldest first."""
        return [self.first + timedelta(days=n) for n in range((self.today - self.first).days + 1)]


@dataclass(frozen=True, slots=True)
class DayOverview:
    """One day.

    ``state`` is one word: open, unmarked, settling, due, missing, stale, unknown (no round could look at it since it
    could be final), held, failed, published, picked up, pruned.
    ``why`` says what is wrong and ``cure`` what to do, as a hint; '' if nothing is wrong, or the state says it all.
    ``remarks`` are worth knowing.
    """

    day: date
    state: str
    export: DayExport | None
    publications: tuple[Publication, ...]
    rows: int
    lines: int
    filtered: int
    rejected: int
    published_at: datetime | None
    pickups: tuple[UserPickups, ...]
    deadlines: DayDeadlines
    why: str
    cure: str
    remarks: tuple[str, ...]
    waits_for_pickup: bool = True  # False if no user's pickups count for the deadlines
    late_failure: str = ""  # why the late rows of a published day could not be published
    shrunk: str = ""  # the remark that its export was rewritten with fewer rows
    late_ignored: str = ""  # why what is new in the export of a published day is not sent
    goes_out_undecided: bool = False  # held, but published at give_up_waiting if nobody decides before
    late_held: str = ""  # why the late rows of a published day are held
    resend_held: str = ""  # why sending it again, as an operator asked, is held
    unsent: int = 0  # rows that came too late to be sent, or were withheld until then
    foreign: str = ""  # the remark that a version of its export, of which nothing was sent, has many rows of other days

    @property
    def state_in_words(self) -> str:
        """The state as a sentence about the day ends with it: ``is held``, ``has failed``."""
        return "has failed" if self.state == "failed" else f"is {self.state}"

    @property
    def advice(self) -> str:
        """What is wrong and what to do, or ''."""
        return "; ".join(filter(None, (self.why, self.cure)))

    @property
    def notes(self) -> list[str]:
        """The remarks, and what became of the day's export after it was published."""
        late = f"{self.unsent} rows came too late to be sent" if self.unsent else ""
        held = f"its late rows are held: {self.late_held}" if self.late_held else ""
        ignored = f"its late rows are not sent: {self.late_ignored}" if self.late_ignored else ""
        found = (late, ignored, held, self.resend_held, self.shrunk, self.foreign)
        return list(dict.fromkeys([*self.remarks, *filter(None, found)]))

    @property
    def counted(self) -> bool:
        """Whether its rows are known: they are not if they were never read, or went with a lost ledger."""
        return self.rows > 0 or any(publication.tally is not None for publication in self.publications)

    @property
    def logs(self) -> list[LedgerLog]:
        """The files of the day."""
        return [entry for publication in self.publications for entry in publication.logs]

    @property
    def matched_share(self) -> float | None:
        """The share of the day's lines, 0 to 1, whose episode the catalogue knew; None without a catalogue."""
        return matched_share(self.publications)

    def as_json(self) -> dict[str, Any]:
        """Return the day as ``status --json`` prints it."""
        return {
            "day": self.day.isoformat(),
            "state": self.state,
            "export": None
            if self.export is None
            else {
                "key": self.export.key,
                "etag": self.export.etag,
                "size": self.export.size,
                "last_modified": _iso(self.export.last_modified),
            },
            "files": [
                {
                    "name": str(entry.name),
                    "size": entry.size,
                    "lines": entry.lines,
                    "sha256": entry.sha256,
                    "state": entry.state,
                    "superseded": entry.superseded_by is not None,
                }
                for entry in self.logs
            ],
            "publications": [
                {
                    "kind": publication.kind,
                    "published_at": _iso(publication.published_at),
                    "remark": publication.remark,
                    "changed": publication.changed,
                    "removed": publication.removed,
                    "tally": None if publication.tally is None else publication.tally.as_json(),
                    "catalogue": None if publication.catalogue is None else publication.catalogue.as_json(),
                    "matched_share": rounded(publication.matched_share),
                }
                for publication in self.publications
            ],
            "rows": self.rows,
            "lines": self.lines,
            "filtered": self.filtered,
            "rejected": self.rejected,
            "matched_share": rounded(self.matched_share),
            "published_at": _iso(self.published_at),
            "picked_up": [
                {
                    "user": user.user,
                    "files": user.whole,
                    "of": user.files,
                    "at": _iso(user.last),
                    "parts": [
                        {"name": str(part.name), "state": part.state, "bytes": part.bytes, "size": part.size}
                        for part in user.parts
                    ],
                }
                for user in self.pickups
            ],
            "deadlines": {
                "published": _deadline_json(self.deadlines.published),
                "picked_up": _deadline_json(self.deadlines.picked_up),
            },
            "advice": self.advice,
            "remarks": self.notes,
        }


def rounded(share: float | None) -> float | None:
    """Return a share, 0 to 1, as ``--json`` prints it."""
    return None if share is None else round(share, 4)


def overview(
    records: Mapping[date, DayRecord],
    publications: Iterable[Publication],
    delivered: Iterable[Delivered],
    users: Sequence[tuple[str, bool]],
    policy: DeadlinePolicy,
    now: datetime,
    checks: Mapping[date, LateCheck] | None = None,
    calendar: Calendar | None = None,
    unsent: Iterable[LateCheck] = (),
    facts: Mapping[str, Any] | None = None,
) -> list[DayOverview]:
    """Return these days, and those that should exist by the ``calendar``, newest first.

    ``users`` are (name, whether their pickups are required); ``checks`` is the last late check of each day,
    ``unsent`` are those that left rows unsent; ``facts`` are the ledger's.
    """
    checks, calendar = checks or {}, calendar or Calendar()
    ignored = (facts or {}).get(LATE_ROWS_IGNORED, {})
    by_day: dict[date, list[Publication]] = {}
    for publication in publications:
        if publication.published_at is not None:
            by_day.setdefault(publication.day, []).append(publication)
    by_owner = {(str(what.name), what.user): what for what in delivered}
    lost: dict[date, list[LateCheck]] = {}
    for check in unsent:
        lost.setdefault(check.day, []).append(check)
    # Days in the future, which a clock that ran ahead has recorded, are left out until they come.
    begun = (day for day in records if day <= now.date())
    days = sorted({*begun, *by_day, *calendar.days}, reverse=True)
    return [
        replace(
            _one(day, records.get(day), by_day.get(day, []), by_owner, users, policy, now, calendar),
            shrunk=_shrunk(by_day.get(day, []), checks.get(day)),
            unsent=_unsent(by_day.get(day, []), lost.get(day, [])),
            foreign=_foreign(by_day.get(day, []), checks.get(day)),
            late_ignored=_ignored(records.get(day), by_day.get(day, []), ignored.get(str(day))),
        )
        for day in days
    ]


def _one(
    day: date,
    record: DayRecord | None,
    publications: list[Publication],
    by_owner: Mapping[tuple[str, str], Delivered],
    users: Sequence[tuple[str, bool]],
    policy: DeadlinePolicy,
    now: datetime,
    calendar: Calendar,
) -> DayOverview:
    """Return one day; ``by_owner`` is what users have of files, by (file's name, user's name)."""
    standing = [entry for publication in publications for entry in publication.logs if entry.superseded_by is None]
    taken = tuple(replace(_user(name, day, standing, by_owner), required=needed) for name, needed in users)
    required = [user for user in taken if user.required]
    # A day is picked up once every required user has every file. If none is required, nobody is waited for, and the day
    # is picked up once all users have it.
    asked = required or taken
    all_done = bool(asked) and all(user.done for user in asked)
    picked_up_at = max((user.last for user in asked if user.last), default=None) if all_done else None
    published_at = publications[0].published_at if publications else None
    tallies = [publication.tally for publication in publications if publication.tally is not None]
    newest: Tally | None = tallies[-1] if tallies else None
    if newest is None and record is not None and record.hold is not None:
        newest = record.hold.tally
    state = _state(record, publications, all_done, overdue=calendar.first <= day <= calendar.overdue)
    why, cure = _advice(day, record, state)
    held, held_late = _held_though_published(record, publications)
    return DayOverview(
        day=day,
        state=state,
        export=record.export if record is not None else None,
        publications=tuple(publications),
        rows=newest.rows if newest is not None else 0,
        lines=sum(entry.lines for entry in standing if entry.state != "intended"),
        filtered=newest.filtered.total() if newest is not None else 0,
        rejected=newest.rejected.total() if newest is not None else 0,
        published_at=published_at,
        pickups=taken,
        deadlines=day_deadlines(day, policy, now, published=published_at, picked_up=picked_up_at),
        why=why,
        cure=cure,
        remarks=tuple(_remarks(publications)),
        waits_for_pickup=bool(required),
        late_failure=_late_failure(record, publications),
        goes_out_undecided=bool(state == "held" and record and record.hold and published_when_given_up(record.hold)),
        late_held=held if held_late else "",
        resend_held=f"sending it again is held: {held}" if held and not held_late else "",
    )


def _user(
    name: str, day: date, logs: Sequence[LedgerLog], by_owner: Mapping[tuple[str, str], Delivered]
) -> UserPickups:
    """Return how much of the files of a day a user has."""
    own = [what for entry in logs if (what := by_owner.get((str(entry.name), name))) is not None]
    ends = [what.completed for what in own if what.completed is not None]
    parts = tuple(what for what in own if what.completed is None)
    in_time = sum(1 for end in ends if end <= expires(day))
    return UserPickups(name, len(ends), len(logs), max(ends, default=None), parts, in_time)


def _state(record: DayRecord | None, publications: Sequence[Publication], all_done: bool, *, overdue: bool) -> str:
    """Return the word for a day's state; ``overdue`` if a round should have seen it after it could be final."""
    logs = [entry for publication in publications for entry in publication.logs]
    if logs and all(entry.state != "published" for entry in logs):
        return "pruned"
    if publications:
        return "picked up" if all_done else "published"
    if record is None:
        return "unknown" if overdue else "open"
    # A hold or a failure concerns one version of the export; a newer one has not been tried yet.
    etag = record.export.etag if record.export is not None else None
    if record.hold is not None and record.hold.etag == etag:
        return "held"
    if record.failure is not None and (record.seen == "due" or record.failure.etag == etag):
        return "failed"
    return "unknown" if overdue and record.seen == "open" else record.seen


def _ignored(record: DayRecord | None, publications: Sequence[Publication], ignored: Sequence[str] | None) -> str:
    """Return why the new rows in the present version of a published day are not sent, or ''."""
    etag, why = ignored or ("", "")
    return why if publications and record is not None and record.export and record.export.etag == etag else ""


def _late_failure(record: DayRecord | None, publications: Sequence[Publication]) -> str:
    """Return why the late rows of a published day could not be published, or ''."""
    if not publications or record is None or record.failure is None or record.export is None:
        return ""
    unsent = record.export.etag != record.checked_etag or record.withheld
    return record.failure.sentence if unsent and record.failure.etag == record.export.etag else ""


def _held_though_published(record: DayRecord | None, publications: Sequence[Publication]) -> tuple[str, bool]:
    """Return why the present version of a published day is held, or '', and whether its late rows are the reason.

    If they are not, an operator asked to send the day again.
    """
    if not publications or record is None or record.hold is None or record.export is None:
        return "", False
    late = record.hold.reason == OTHER_IDS
    # Compared since then: it became too late to send them, and that is reported instead.
    over = late and record.checked_etag == record.export.etag
    return (record.hold.why, late) if record.hold.etag == record.export.etag and not over else ("", False)


def _shrunk(publications: Sequence[Publication], check: LateCheck | None) -> str:
    """Return the remark that the last version read of a published day has fewer rows than were published, or ''."""
    standing = [p for p in publications if p.tally and any(entry.superseded_by is None for entry in p.logs)]
    rows = [publication.tally.rows for publication in standing if publication.tally is not None]
    published_at = publications[-1].published_at if publications else None
    if check is not None and published_at is not None and check.at > published_at:
        rows.append(check.tally.rows)
    return "".join(shrunk(rows[-1], max(rows))) if rows else ""


def _remarks(publications: Sequence[Publication]) -> Iterator[str]:
    """Yield what is worth knowing about publications: their remarks, and that rows are another day's."""
    for publication in publications:
        if publication.remark:
            yield _plain(publication)
        if publication.tally is not None:
            yield from outside_day(publication.tally)


def _plain(publication: Publication) -> str:
    """Return a publication's remark as a sentence about its day."""
    remark = publication.remark
    if publication.kind == "resend":
        return f"the whole day was sent again: {remark}"
    if publication.kind == "late" and publication.published_at is not None:
        what, semicolon, more = remark.partition("; ")
        return f"{what} followed in a file of their own{semicolon}{more}"
    return remark


def _unsent(publications: Sequence[Publication], checks: Sequence[LateCheck]) -> int:
    """Return how many rows of a published day were never sent: the most that any check since then found."""
    since = publications[-1].published_at if publications else None
    return max((check.unsent for check in checks if since is not None and check.at > since), default=0)


def _foreign(publications: Sequence[Publication], check: LateCheck | None) -> str:
    """Return the remark that a published day's newest version, of which nothing was sent, has foreign rows, or ''."""
    since = publications[-1].published_at if publications else None
    if check is None or since is None or check.at <= since:
        return ""
    return "".join(f"rows that its new version brought: {warning}" for warning in outside_day(check.tally))


def _advice(day: date, record: DayRecord | None, state: str) -> tuple[str, str]:
    """Return (what is wrong with a day, or '' if the state says it all; what to do, as a hint, or '')."""
    if state == "unknown":
        return "no round has been able to look for its export since it could be final", "pickup-point doctor"
    if record is None:
        return "", ""
    if state == "held" and record.hold is not None:
        way = way_out(record.hold.tally, accept_command(day))
        if record.hold.reason == "rejected":
            way = way.replace("to publish it:", "look at rejects/, then:")
        return record.hold.why, way
    if record.failure is not None:
        next_try = f"the next try is at {record.failure.next_try:%Y-%m-%d %H:%MZ}"
        return record.failure.sentence, "; ".join(filter(None, (record.failure.hint, next_try)))
    if state == "missing":
        return "", "ask support-megaphone@spotify.com (Megaphone does not backfill on its own)"
    if state == "unmarked":
        what = "at export.give_up_waiting it is published as it is; ask support-megaphone@spotify.com for the object"
        return "Megaphone has not put the object that proves it final (_finalized_delivery_...) beside its export", what
    if state == "stale":
        return "its export was last written before the day ended", "ask support-megaphone@spotify.com for the rest"
    return "", ""


def _deadline_json(deadline: Deadline) -> dict[str, Any]:
    return {
        "by": _iso(deadline.by),
        "done": _iso(deadline.done),
        "state": str(deadline.urgency),
        "seconds_left": round(deadline.left.total_seconds()),
    }


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds").replace("+00:00", "Z")


def span(left: timedelta) -> str:
    """Return a time span in words, without its sign: ``43 h``, ``2 d 3 h``, ``12 min``."""
    minutes = int(abs(left.total_seconds()) // 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
