"""Alarms: what is wrong now, how badly, and what to type.

Pure: judged by the overview, the ledger's facts and what was measured. Levels are those of Nagios plug-ins.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import IntEnum
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from ..episodes.rss import safe_url
from ..megaphone.exports import start_of
from ..publish.clock import LEAP, LEAP_HINT, STOPPED, before_leap, set_back
from ..publish.decisions import CLOCK_TOLERANCE
from ..publish.first_delivery import NOTHING_DELIVERED, NothingDelivered
from ..publish.holds import HoldPolicy, late_warnings, warnings, way_out_of_late
from ..publish.store_state import NODES
from ..triton import expires
from .days import span
from .deadlines import DeadlinePolicy, Urgency, patience, still_open

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..episodes.rss import RssFeed
    from ..publish.store_state import StoreState
    from ..triton import LogName
    from .days import DayOverview
    from .deadlines import Deadline


PATIENCE = timedelta(days=1)  # Megaphone may not have begun to write to an empty place
NOT_BEGUN = "if Triton has not begun to pull, set export.first_day to the day that it will begin with"
SETTLING = "nothing to do: it is published once its export has not changed for export.settle"
NOT_AGREED = "ask Triton's account manager whether such lines count, then set export.agreed = true"
LEAST_SHARE, MOST_SHARE = 0.5, 2.0  # shares of the weekday's usual rows; outside of them there is an alarm
OVER_AFTER = timedelta(days=4)  # this long after a day has expired, nothing can be mended, and its alarms end
# The newest days: those whose alarms have not ended, and the four weeks that their volumes are compared with.
ALARMING_DAYS = 33
STATE_ALARMS = frozenset({"day_held", "day_failed", "day_missing", "day_stale"})  # those that report a day's state
# Facts of the ledger: when the service last started, and when it last ended because it was asked to.
STARTED, ENDED = "service_started", "service_ended"
RESTART = timedelta(minutes=1)  # a service that was asked to end may be away this long without an alarm
START_HINT = "journalctl -u pickup-point -n 20; systemctl start pickup-point; or pickup-point serve"
MOST_LOST = 3  # logs gone from the folder, each with its own alarm; if more are, they have one cause
MATCHED_SHARE = 0.95  # of a day's lines that the episode catalogue should know


class Level(IntEnum):
    """The exit codes of a Nagios plug-in."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Alarm:
    """One thing that is wrong: ``sentence`` says what, ``hint`` is something to type.

    ``name`` and ``subject`` (a day, a file, or '') stay the same for as long as the alarm stands. ``deadline`` is the
    one that a ``day_not_…`` alarm is about.
    """

    level: Level
    name: str
    sentence: str
    hint: str = ""
    subject: str = ""
    deadline: Deadline | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a snapshot measures: the disk's free share (0 to 1), private keys that others can read, the ledger.

    ``ledger_damage`` is why the ledger is damaged; ``ledger_away`` why it cannot be read without being damaged (rights,
    a read-only or full disk, another version), with ``ledger_hint``; '' for none.
    """

    disk_free: float
    disk_free_bytes: int
    readable_keys: tuple[str, ...] = ()
    ledger_damage: str = ""
    ledger_away: str = ""
    ledger_hint: str = ""
    lost: tuple[LogName, ...] = ()  # published logs that are not in the folder any more


@dataclass(frozen=True, slots=True)
class Partner:
    """A user whose logins are expected: the last one, and the longest time between two so far."""

    user: str
    last_login: datetime
    longest_silence: timedelta


class Store(NamedTuple):
    """The bucket of published logs; with ``deadlines`` the partner reads from it, so days must be there in time."""

    state: StoreState
    deadlines: DeadlinePolicy | None


def alarms(
    days: Sequence[DayOverview],
    facts: Mapping[str, Any],
    measured: Measured,
    holds: HoldPolicy,
    poll_every: timedelta,
    now: datetime,
    *,
    partners: Sequence[Partner] = (),
    pull_every: timedelta = timedelta(hours=24),
    rss_feeds: Sequence[RssFeed] = (),
    refresh_every: timedelta = timedelta(hours=6),
    first_day: date | None = None,
    store: Store | None = None,
    unagreed: str = "",
    running: bool = True,
) -> list[Alarm]:
    """Return everything that is wrong, worst first; nothing about days before ``first_day``.

    ``unagreed`` is what Triton has yet to agree to, or ''; ``running`` is whether the service runs.
    """
    days = [day for day in days if first_day is None or day.day >= first_day]
    # If Megaphone has exported these days, the clock is about right: the service was away for a long time.
    away = any(day.export is not None and day.day >= now.date() - LEAP for day in days)
    steady = now if away else before_leap(facts, now)
    found = [
        replace(alarm, subject=str(day.day))
        for day in days
        for alarm in _of_day(day, holds, now, steady, pulled=bool(partners))
    ]
    found += _of_volume(days, now)
    found += _of_matching(days)
    found += [alarm for feed in rss_feeds for alarm in _of_rss_feed(feed, refresh_every, now)]
    found += [alarm for partner in partners for alarm in _of_partner(partner, pull_every, now)]
    # An unreadable ledger has no facts, which does not mean that there was no round.
    if facts or not (measured.ledger_away or measured.ledger_damage):
        found += _of_service(facts, poll_every, now, running=running)
    found += _of_source(facts, first_day, now)
    found += _of_machine(measured)
    lost = [name for name in measured.lost if first_day is None or name.day >= first_day]
    found += _of_lost_logs(lost, days, store, now, shared=NODES in facts)
    found += _of_store(store, days, now) if store is not None else []
    if unagreed:
        found.append(Alarm(Level.WARNING, "not_agreed", unagreed, NOT_AGREED))
    return sorted(found, key=lambda alarm: (-alarm.level, alarm.name))


def _of_day(day: DayOverview, holds: HoldPolicy, now: datetime, steady: datetime, *, pulled: bool) -> list[Alarm]:
    """Return what is wrong with a day: its state, its deadlines, its late rows, its publications.

    ``steady`` is ``now``, or the instant before the clock leapt; ``pulled`` says whether a partner has ever logged in.
    """
    found = []
    # A day that can still be published is not over, whatever a clock that leapt says.
    over = (steady if day.export and not day.publications else now) >= expires(day.day) + OVER_AFTER
    if over or day.state == "pruned":
        return []
    if f"day_{day.state}" in STATE_ALARMS:
        level = Level.CRITICAL
        # While there is time, Megaphone may still deliver or rewrite the day.
        if day.state in ("missing", "stale") and day.deadlines.published.urgency is Urgency.AHEAD:
            level = Level.WARNING
        found.append(Alarm(level, f"day_{day.state}", f"{day.day} {day.state_in_words}", day.advice))
    for verb, deadline in (("published", day.deadlines.published), ("picked up", day.deadlines.picked_up)):
        waited_for = verb == "published" or (day.published_at is not None and day.waits_for_pickup)
        if not deadline.alarming or not waited_for or day.state == "open":
            continue
        late = deadline.urgency is Urgency.LATE
        level = Level.CRITICAL if late or deadline.urgency is Urgency.CRITICAL else Level.WARNING
        when = f"{span(deadline.left)} ago" if late else f"in {span(deadline.left)}"
        hint = {"due": f"pickup-point feed --day {day.day}", "settling": SETTLING}.get(day.state, day.advice)
        if steady != now:  # no round looks at it, and `feed --day` may refuse it
            hint = LEAP_HINT
        if verb == "picked up":
            hint = _what_to_ask(day) if pulled else f"{NOT_BEGUN}; {_what_to_ask(day)}"
        name = f"day_not_{verb.replace(' ', '_')}"
        sentence = f"{day.day} is not {verb} yet; its deadline {'was' if late else 'is'} {when}"
        found.append(Alarm(level, name, sentence, hint, deadline=deadline))
    if day.late_failure:
        sentence = f"late rows of {day.day} cannot be published: {day.late_failure}"
        found.append(Alarm(Level.WARNING, "day_late_failed", sentence, day.cure))
    if day.late_held:
        sentence = f"late rows of {day.day} are held: {day.late_held}"
        found.append(Alarm(Level.WARNING, "day_late_held", sentence, way_out_of_late(day.day)))
    if day.late_ignored:
        sentence = f"late rows of {day.day} are not sent: {day.late_ignored}"
        again = f"pickup-point feed --day {day.day} --resend 'other ids'"
        hint = f"if Triton voids what it has of the day, send it again: {again}"
        found.append(Alarm(Level.WARNING, "day_late_ignored", sentence, hint))
    for name, note in (("day_shrunk", day.shrunk), ("day_noticed", day.foreign)):
        if note:
            found.append(Alarm(Level.WARNING, name, f"{day.day}: {note}", "ask support-megaphone@spotify.com"))
    if day.resend_held:
        hint = f"pickup-point trace {day.logs[0].name}"
        found.append(Alarm(Level.WARNING, "day_noticed", f"{day.day}: {day.resend_held}", hint))
    if day.unsent:
        hint = f"tell the partner; the whole story: pickup-point trace {day.logs[0].name}"
        sentence = f"{day.day}: {day.unsent} rows came too late to be sent"
        found.append(Alarm(Level.WARNING, "day_unsent", sentence, hint))
    missing = [entry for publication in day.publications for entry in publication.missing]
    if missing:
        names, lines = ", ".join(str(entry.name) for entry in missing), sum(entry.lines for entry in missing)
        sentence = f"{day.day}: a crash lost {names} with {lines} lines before they had their names"
        found.append(Alarm(Level.CRITICAL, "day_interrupted", sentence, f"pickup-point feed --day {day.day}"))
    for publication in day.publications:
        # Remarks of earlier releases name give_up_waiting as well.
        if publication.kind == "unfinal" or "give_up_waiting" in publication.remark:
            trace = f"pickup-point trace {publication.logs[0].name}"
            hint = f"nothing to do, what it lacks is sent if it comes in time: {trace}"
            found.append(Alarm(Level.WARNING, "day_given_up", f"{day.day}: {publication.remark}", hint))
        if publication.tally is not None:
            odd = warnings(publication.tally, holds)
            if publication.kind == "late":
                odd = late_warnings(publication.tally, holds, publication.removed)
            found += [Alarm(Level.WARNING, "day_noticed", f"{day.day}: {warning}") for warning in odd]
    return found


def _what_to_ask(day: DayOverview) -> str:
    """Return what to ask the partner about a day that is not picked up; if some of it is, ask about the rest."""
    lacking = [user for user in day.pickups if user.required and not user.done]
    begun = [(user, part) for user in lacking for part in user.parts]
    if not begun:
        login = "its last login: pickup-point status"
        if some := next((user for user in lacking if user.whole), None):
            return f"{some.user} has {some.whole} of {some.files} files: ask the partner to fetch the rest; {login}"
        if any(user.required and user.done for user in day.pickups):
            return f"ask {' and '.join(user.user for user in lacking)} whether the puller runs; {login}"
        return f"ask the partner whether its puller runs; {login}"
    user, part = begun[0]
    has = f"{user.user} has {part.bytes} of {part.size} bytes of {part.name}"
    if part.fragmented:
        has = f"{user.user} read {part.name} in so many pieces that nobody can tell what is missing ({part.state})"
    return f"{has}: ask the partner to fetch it again; pickup-point trace {part.name}"


def _of_volume(days: Sequence[DayOverview], now: datetime) -> list[Alarm]:
    """Return alarms for days whose rows are far from those of the same weekday in the four weeks before."""
    # A publication that a new ledger adopted from the folder has no tally.
    rows = {day.day: day.rows for day in days if any(publication.tally for publication in day.publications)}
    found = []
    for day in days:
        if day.day not in rows or now >= expires(day.day) + timedelta(days=1):
            continue
        before = [rows[then] for weeks in range(1, 5) if (then := day.day - timedelta(weeks=weeks)) in rows]
        # Fewer than three weeks show nothing usual; a median, so that one holiday does not count.
        usual = median(before) if len(before) >= 3 else 0
        if usual and not usual * LEAST_SHARE <= rows[day.day] <= usual * MOST_SHARE:
            sentence = f"{day.day} has {rows[day.day]} rows; the same weekday usually has about {usual:.0f}"
            hint = f"compare with Megaphone's dashboard: pickup-point reconcile {day.day}"
            found.append(Alarm(Level.WARNING, "day_volume", sentence, hint, str(day.day)))
    return found


def _of_matching(days: Sequence[DayOverview]) -> list[Alarm]:
    """Return an alarm if too few lines matched on the newest day with a catalogue; older ones cannot be mended."""
    day = next((day for day in days if day.matched_share is not None), None)
    if day is None or day.matched_share is None or day.matched_share >= MATCHED_SHARE:
        return []
    sentence = f"only {day.matched_share:.1%} of the lines of {day.day} match an episode in the catalogue"
    return [Alarm(Level.WARNING, "episodes_unmatched", sentence, "pickup-point episodes --unmatched")]


def _of_rss_feed(feed: RssFeed, refresh_every: timedelta, now: datetime) -> list[Alarm]:
    """Return an alarm if an RSS feed was not read for too long; one failure raises none: its last items stay in use."""
    if not feed.error or (feed.read_at is not None and now - feed.read_at <= max(timedelta(days=1), refresh_every * 2)):
        return []
    since = f"last read {span(now - feed.read_at)} ago" if feed.read_at is not None else "it was never read"
    return [Alarm(Level.WARNING, "rss_feed", f"{feed.error}; {since}", feed.hint, safe_url(feed.url))]


def _of_partner(partner: Partner, pull_every: timedelta, now: datetime) -> list[Alarm]:
    """Return an alarm if a partner has not logged in for longer than usual."""
    silence = now - partner.last_login
    # Judged by its own rhythm: a few hours are long for a partner that comes hourly, not for one that comes daily.
    if silence <= max(partner.longest_silence * 1.5, pull_every * 1.25):
        return []
    sentence = f"{partner.user} has not logged in for {span(silence)}"
    hint = "ask the partner whether its puller runs; logins that failed: journalctl -u pickup-point | grep refused"
    return [Alarm(Level.WARNING, "partner_silent", sentence, hint, partner.user)]


def ended_when_asked(facts: Mapping[str, Any]) -> datetime | None:
    """Return when the service ended because it was asked to; None if it runs, or died, or never ran."""
    if STARTED not in facts or ENDED not in facts:
        return None
    started, ended = (datetime.fromisoformat(facts[name]) for name in (STARTED, ENDED))
    return ended if ended >= started else None


def _of_service(facts: Mapping[str, Any], poll_every: timedelta, now: datetime, *, running: bool) -> list[Alarm]:
    """Return what is wrong with the service and its rounds: none at all, the source, the data folder, the clock."""
    found = []
    last = facts.get("last_round")
    ago = "" if last is None else f"the last round was {span(now - datetime.fromisoformat(last))} ago"
    ended = ended_when_asked(facts)
    restarting = ended is not None and timedelta() <= now - ended < RESTART
    # Where no service was ever started, rounds by hand are enough; but once one has ended, nobody can fetch a file.
    if not running and STARTED in facts and not restarting:
        stopped = "" if ended is None else f": it was stopped {span(now - ended)} ago"
        sentence = "; ".join(filter(None, (f"the service is not running{stopped}", ago)))
        found.append(Alarm(Level.CRITICAL, "feed_not_running", sentence, START_HINT))
    elif last is None and running and STARTED in facts:
        # A first start pages nobody: it may have three large days to publish.
        begun = now - datetime.fromisoformat(facts[STARTED]) <= patience(poll_every)
        level, sentence = Level.WARNING if begun else Level.CRITICAL, "the first round has not ended yet"
        found.append(Alarm(level, "feed_not_running", sentence, "journalctl -u pickup-point -n 20"))
    elif last is None:
        found.append(Alarm(Level.CRITICAL, "feed_not_running", "no round has run yet", "systemctl start pickup-point"))
    elif now - datetime.fromisoformat(last) > patience(poll_every):
        hint = "systemctl status pickup-point; journalctl -u pickup-point"
        found.append(Alarm(Level.CRITICAL, "feed_not_running", ago, hint))
    if facts.get("source_error"):
        hint = str(facts.get("source_hint", ""))
        found.append(Alarm(Level.WARNING, "source", str(facts["source_error"]), hint))
    if facts.get("round_error"):
        found.append(
            Alarm(Level.CRITICAL, "data_folder", str(facts["round_error"]), "df -h; journalctl -u pickup-point")
        )
    if facts.get(STOPPED):
        found.append(Alarm(Level.WARNING, STOPPED, str(facts[STOPPED]), LEAP_HINT))
    skew = float(facts.get("clock_skew", 0))
    if abs(skew) > CLOCK_TOLERANCE.total_seconds():
        found.append(Alarm(Level.WARNING, "clock", f"the local clock is {skew:+.0f} s off the bucket's", "timedatectl"))
    elif why := set_back(facts, now):
        found.append(Alarm(Level.CRITICAL, "clock", why, LEAP_HINT))
    return found


def _of_source(facts: Mapping[str, Any], first_day: date | None, now: datetime) -> list[Alarm]:
    """Return an alarm if the source has never delivered an export, although it should have."""
    nothing = NothingDelivered.of(facts)
    # What was found last says nothing about a source that cannot be read now: it may even be another one.
    if nothing is None or facts.get("source_error"):
        return []
    others = nothing.others
    begins = nothing.since if first_day is None else max(nothing.since, start_of(first_day))
    # Exports elsewhere show a wrong export.url at once; other objects do once there should be exports among them. To an
    # empty place Megaphone may not have begun to write; it writes hourly, so after a day something is wrong.
    patience_ends = begins + (timedelta() if others.objects else PATIENCE)
    if not others.elsewhere and now < patience_ends:
        return []
    hint = "pickup-point doctor"
    if others.cure:
        hint = others.cure
    elif others.looks:
        hint = "ask support-megaphone@spotify.com for the Metrics Export Service"
    return [Alarm(Level.WARNING, NOTHING_DELIVERED, f"no export has ever arrived: {nothing.sentence}", hint)]


def _of_store(store: Store, days: Sequence[DayOverview], now: datetime) -> list[Alarm]:
    """Return what is wrong with the store: its answers, what else lies in it, and days missing from it."""
    state, hint = store.state, "pickup-point doctor"
    found = [Alarm(Level.WARNING, "store", state.error, state.hint)] if state.error else []
    level = Level.WARNING if store.deadlines is None else Level.CRITICAL
    found += [Alarm(level, "store_differs", sentence, "pickup-point manual store") for sentence in state.wrong]
    if store.deadlines is None:
        return found
    for day in days:
        lacking = [entry for entry in day.logs if entry.superseded_by is None and state.lacks(entry)]
        deadline = still_open(day.deadlines.published, store.deadlines, now)
        if not lacking or not deadline.alarming or now >= expires(day.day) + OVER_AFTER:
            continue
        late = deadline.urgency is Urgency.LATE
        level = Level.CRITICAL if late or deadline.urgency is Urgency.CRITICAL else Level.WARNING
        names, when = ", ".join(str(entry.name) for entry in lacking), span(deadline.left)
        sentence = f"{day.day} is not in the store, where the partner reads ({names}); its deadline "
        sentence += f"was {when} ago" if late else f"is in {when}"
        found.append(Alarm(level, "day_not_stored", sentence, hint, str(day.day), deadline))
    return found


def _of_lost_logs(
    names: Sequence[LogName], days: Sequence[DayOverview], store: Store | None, now: datetime, *, shared: bool
) -> list[Alarm]:
    """Return the alarms of published logs that are not in the folder any more: one alarm if they are many."""
    by_day = {day.day: day for day in days}
    found = [_of_lost_log(name, by_day.get(name.day), now) for name in names]
    if shared:
        journal = "journalctl -u pickup-point | grep 'could not bring'"
        hint = f"the service fetches it from the store within a minute; if it cannot, the journal says why: {journal}"
        found = [replace(it, hint=hint) for it in found]
    elif store is not None:
        place, there = store.state.url.rstrip("/"), store.state.there
        found = [
            replace(it, hint=f"it lies in the store: {place}/{it.subject}; {it.hint}") if it.subject in there else it
            for it in found
        ]
    if len(found) <= MOST_LOST:
        return found
    first, last = min(names, key=lambda name: name.day), max(names, key=lambda name: name.day)
    sentence = f"{len(names)} files, {first} to {last}, are not in the pickup folder as they were published"
    hint = found[0].hint if shared else "restore them from a backup and restart: pickup-point manual restoring"
    return [Alarm(max(alarm.level for alarm in found), "log_lost", f"{sentence}: nobody can fetch them", hint)]


def _of_lost_log(name: LogName, day: DayOverview | None, now: datetime) -> Alarm:
    """Return the alarm of a published log that is not in the folder any more."""
    sentence = f"{name} is not in the pickup folder as it was published: nobody can fetch it"
    # Sent again, what somebody has would be counted twice.
    again = f"pickup-point feed --day {name.day} --resend 'lost from the disk'"
    way = f"if there is none, send the day again: {again}"
    everybody_has_it = day is not None and day.state == "picked up"
    if everybody_has_it:
        way = "do not send the day again, since everybody has it"
    elif day is not None and any(user.begun for user in day.pickups):
        way = f"if there is none, and Triton voids what it has of the day, send it again: {again}"
    over = now >= expires(name.day) + OVER_AFTER
    level = Level.WARNING if everybody_has_it or over else Level.CRITICAL
    return Alarm(level, "log_lost", sentence, f"restore it from a backup and restart; {way}", str(name))


def _of_machine(measured: Measured) -> list[Alarm]:
    """Return what is wrong with the disk, the key files and the ledger."""
    found = []
    if measured.disk_free < 0.1 or measured.disk_free_bytes < 1 << 30:
        level = Level.CRITICAL if measured.disk_free < 0.03 or measured.disk_free_bytes < 200 << 20 else Level.WARNING
        free = f"{measured.disk_free:.0%} ({measured.disk_free_bytes >> 20} MiB)"
        found.append(
            Alarm(level, "disk", f"only {free} of the data folder's disk is free", "df -h; pickup-point prune")
        )
    found += [
        Alarm(Level.CRITICAL, "key_readable", f"{path} is readable by others", f"chmod 600 {shlex.quote(str(path))}")
        for path in measured.readable_keys
    ]
    if measured.ledger_away:
        found.append(Alarm(Level.CRITICAL, "ledger_unreadable", measured.ledger_away, measured.ledger_hint))
    if measured.ledger_damage:
        hint = "restore the ledger from a backup: pickup-point manual restoring"
        found.append(Alarm(Level.CRITICAL, "ledger_damaged", f"the ledger is damaged: {measured.ledger_damage}", hint))
    return found
