"""Whether a day reached the partner, in plain words: whether in time, if not why, and who must do what.

For people who never use a shell: the account manager, ad operations, the publisher's operations. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..convert.tally import FilterReason
from ..hints import Step, steps
from ..megaphone.exports import start_of
from ..publish.holds import way_out_of_late
from .days import span
from .deadlines import Urgency

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime, timedelta

    from ..publish.store_state import StoreState
    from ..settings import Config
    from .days import DayOverview, UserPickups

NOBODY = "Nobody has to do anything."
SERVER = "Whoever runs this server"
PUBLISHER = "The publisher's operations"
PARTNER = "Whoever is in touch with the partner"


class Summary(NamedTuple):
    """A day for the page: ``word`` says whether the partner has it, ``mood`` is good, waiting, bad or none.

    ``who`` is who must act, or `NOBODY`; ``steps`` are what to do.
    """

    word: str
    mood: str
    sentence: str
    who: str = NOBODY
    steps: tuple[Step, ...] = ()


def summary(day: DayOverview, config: Config, store: StoreState | None = None, silent: Collection[str] = ()) -> Summary:
    """Return whether a day has reached the partner by now, and what has to be decided about its late rows.

    ``store`` is the state of the bucket that the partner reads from, if it reads from one; ``silent`` are the users who
    have not logged in for longer than usual.
    """
    found = _of_state(day, config, silent)
    if store is not None and day.state in ("published", "picked up"):
        found = _with_store(found, day, store)
    if not day.late_held:
        return found
    decides = f"{SERVER}, once you have agreed with the partner what these rows are"
    who = decides if found.who.startswith(NOBODY) else f"{found.who}; {decides}"
    sentence = f"{found.sentence} Its late rows are held: {day.late_held}."
    return found._replace(sentence=sentence, who=who, steps=(*found.steps, *steps(way_out_of_late(day.day))))


def _of_state(day: DayOverview, config: Config, silent: Collection[str]) -> Summary:
    to_do = tuple(steps(day.cure))
    given_up = start_of(day.day) + config.export.give_up_waiting
    match day.state:
        case "open":
            rule = config.export.finality
            final = f"cannot be final before {instant(rule.final_time(day.day))}"
            if rule.marked:  # then final_at is only our own expectation
                usual = rule._replace(final_at=config.export.export_kind.final_at).final_time(day.day)
                final = f"is final once Megaphone marks it, usually by {instant(usual)}"
            sentence = f"Megaphone is still writing this day; it {final}."
            return Summary("Not yet", "waiting", sentence)
        case "unmarked":
            otherwise = f"Without it the day is published as it is after {instant(given_up)}."
            asks = tuple(step for step in to_do if "give_up_waiting" not in step.prose)  # `otherwise` says when
            return Summary("Not yet", "waiting", f"{_sentence(day.why)} {otherwise}", PUBLISHER, asks)
        case "settling":
            patience, at = config.export.settle, day.export.last_modified if day.export is not None else None
            written = f" {_at(at)}; it is published after {instant(at + patience)}" if at is not None else ""
            sentence = f"Megaphone rewrote this day's export{written}, unless that happens again before."
            return Summary("Not yet", "waiting", sentence)
        case "due":
            return Summary("Not yet", "waiting", "Megaphone's export is final, and the next round publishes it.")
        case "missing":
            sentence = "Megaphone has delivered no export for this day, so there is nothing to publish."
            return Summary("No", "bad", sentence, PUBLISHER, to_do)
        case "stale":
            otherwise = f"If the rest does not come, the day is published as it is after {instant(given_up)}."
            return Summary("No", "bad", f"{_sentence(day.why)} {otherwise}", PUBLISHER, to_do)
        case "held":
            who = f"{SERVER}, once you have agreed that the day goes out as it is"
            otherwise = f"If nobody decides, it is published as it is after {instant(given_up)}."
            sentence = f"The day is held back: {day.why}."
            return Summary("No", "bad", f"{sentence} {otherwise}" if day.goes_out_undecided else sentence, who, to_do)
        case "failed":
            return Summary("No", "bad", f"The day could not be published: {day.why}.", SERVER, to_do)
        case "unknown":
            return Summary("Not known", "bad", _sentence(day.why), SERVER, to_do)
        case "pruned":
            taken = "Yes" if day.deadlines.picked_up.done is not None else "No"
            sentence = (
                f"Published {_at(day.published_at)}; its files were removed {config.retention.keep_days} days later."
            )
            return Summary(taken, "none", sentence)
        case "picked up":
            return _picked_up(day)
        case _:
            return _published(day, config.alerts.pull_every, silent)


def rows_sentence(day: DayOverview) -> str:
    """Return what became of a day's rows, or ''."""
    if not day.counted:
        lost = f"{day.lines:,} lines for the partner; how many rows they come from was lost with an earlier ledger."
        return lost if day.publications else ""
    good = day.rows - day.filtered - day.rejected
    kept = [f"{day.lines:,} lines for the partner" if day.publications else f"{good:,} could be lines"]
    kept += [f"{left_out(day):,} filtered", f"{day.rejected:,} rejected"]
    return f"{day.rows:,} rows from Megaphone: {', '.join(kept)}."


def left_out(day: DayOverview) -> int:
    """Return how many rows were filtered, without those that an earlier file of the day has sent."""
    newest = next((it.tally for it in reversed(day.publications) if it.tally is not None), None)
    return day.filtered - (newest.filtered[FilterReason.SENT_BEFORE] if newest is not None else 0)


def instant(at: datetime) -> str:
    """Return an instant as the page's sentences write it: ``2026-11-20 04:30Z``."""
    return f"{at:%Y-%m-%d %H:%M}Z"


def _with_store(found: Summary, day: DayOverview, store: StoreState) -> Summary:
    """Return what to say about a published day that the partner reads from the store."""
    standing = [entry for entry in day.logs if entry.superseded_by is None]
    lacking = [str(entry.name) for entry in standing if store.lacks(entry)]
    if not lacking:
        return found._replace(sentence=f"{found.sentence} It is in the store, where the partner reads.")
    some = day.state == "picked up" or len(lacking) < len(standing)
    word, mood = "In part" if some else "Not yet", "bad" if store.error else "waiting"
    sentence = f"{found.sentence} The store, where the partner reads, does not have {_named(lacking)}."
    return Summary(word, mood, sentence, SERVER if store.error else NOBODY, tuple(steps(store.hint)))


def _picked_up(day: DayOverview) -> Summary:
    deadline = day.deadlines.picked_up
    asked = [user for user in day.pickups if user.required or not day.waits_for_pickup]
    names = _named(user.user for user in asked) or "The partner"
    sentence = f"{names} picked it up {_at(deadline.done)}"
    if not day.waits_for_pickup:
        return Summary("Yes", "good", f"{sentence}; no user is required to.")
    if deadline.urgency is not Urgency.LATE:
        return Summary("Yes, in time", "good", f"{sentence}, {span(deadline.left)} before the deadline.")
    sentence += f", {span(deadline.left)} after the deadline: Triton counts no session after three days."
    some = [f"{user.user} had {user.in_time} of {user.files} files in time" for user in asked if user.in_time]
    word = "Yes, partly too late" if some else "Yes, too late"
    sentence = " ".join([sentence, *(f"{words[:1].upper()}{words[1:]}." for words in some)])
    return Summary(word, "bad", sentence, f"{PARTNER}: ask whether what came too late can still be counted")


def _published(day: DayOverview, pull_every: timedelta, silent: Collection[str]) -> Summary:
    sentence = f"Published {_at(day.published_at)}"
    if resent := [it.published_at for it in day.publications if it.kind == "resend"]:
        sentence = f"Sent again {_at(resent[-1])}"
    elif day.deadlines.published.urgency is Urgency.LATE:
        sentence += f", {span(day.deadlines.published.left)} late"
    if not day.waits_for_pickup:
        return Summary("Ready", "good", f"{sentence}; no user is required to pick it up.")
    deadline = day.deadlines.picked_up
    asked = [user for user in day.pickups if user.required]
    lacking = [user for user in asked if not user.done]
    over = deadline.urgency is Urgency.LATE
    sentence += f"; {', '.join(map(_so_far, asked))}. The deadline "
    sentence += f"was {instant(deadline.by)}, {span(deadline.left)} ago." if over else ""
    sentence += f"is {instant(deadline.by)}, in {span(deadline.left)}." if not over else ""
    word = "In part" if any(map(_has_some, asked)) else "No" if over else "Not yet"
    overdue = [user for user in lacking if user.user in silent]
    if deadline.urgency is Urgency.AHEAD and overdue:
        questions = [_question(user, over=False) for user in overdue]
        return Summary(word, "warn", sentence, f"{PARTNER}: ask {_named(questions)}")
    if deadline.urgency is Urgency.AHEAD:
        come = "comes" if len(lacking) == 1 else "come"
        every = f"{_named(user.user for user in lacking)} {come} once every {span(pull_every)}"
        return Summary(word, "waiting", sentence, f"{NOBODY} {every}.")
    questions = [_question(user, over=over) for user in lacking] + ["whether the day still counts"] * over
    return Summary(word, "bad", sentence, f"{PARTNER}: ask {_named(questions)}")


def _has_some(user: UserPickups) -> bool:
    return user.whole > 0 or any(part.bytes for part in user.parts)


def _so_far(user: UserPickups) -> str:
    """Return how much of a day a user has: ``triton has 3 of 4 files and 50 % of another``."""
    if user.done:
        return f"{user.user} picked it up {_at(user.last)}"
    if not _has_some(user):
        return f"{user.user} has not fetched it yet"
    shares = [f"{100 * part.bytes // part.size} %" for part in user.parts if part.bytes]
    if user.files == 1:
        return f"{user.user} has {shares[0]} of it"
    others = f" and {_named(shares)} of {'another' if len(shares) == 1 else 'others'}" if shares else ""
    return f"{user.user} has {user.whole} of {user.files} files{others}"


def _question(user: UserPickups, *, over: bool) -> str:
    """Return what to ask about a user who does not have the whole day."""
    if over:
        return f"why {user.user} did not pull{' all of it' * _has_some(user)}"
    return f"whether {user.user} fetches the rest" if _has_some(user) else f"whether {user.user}'s puller runs"


def _at(at: datetime | None) -> str:
    return "at an unknown time" if at is None else f"at {instant(at)}"


def _named(names: Iterable[str]) -> str:
    """Return names as a sentence has them: ``a, b and c``."""
    *others, last = list(names) or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _sentence(why: str) -> str:
    """Return a reason as a sentence of its own."""
    return f"{why[:1].upper()}{why[1:]}." if why else ""
