"""Whether a day reached the partner, in plain words: whether in time, if not why, and who must do what.

For people who never use a shell: the account manager, ad operations, the publisher's operations. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..convert.tally import FilterReason
from ..hints import Step, steps
from ..publish.holds import way_out_of_late
from .days import span
from .deadlines import Urgency

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from ..settings import Config
    from .days import DayOverview

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


def summary(day: DayOverview, config: Config) -> Summary:
    """Return whether a day has reached the partner by now, and what has to be decided about its late rows."""
    found = _of_state(day, config)
    if not day.late_held:
        return found
    decides = f"{SERVER}, once you have agreed with the partner what these rows are"
    who = decides if found.who.startswith(NOBODY) else f"{found.who}; {decides}"
    sentence = f"{found.sentence} Late rows of it are held: {day.late_held}."
    return found._replace(sentence=sentence, who=who, steps=(*found.steps, *steps(way_out_of_late(day.day))))


def _of_state(day: DayOverview, config: Config) -> Summary:
    to_do = tuple(steps(day.cure))
    partner = _named(user.name for user in config.sftp.users if user.required) or "The partner"
    match day.state:
        case "open":
            rule = config.export.finality
            final = f"can be final from {instant(rule.final_time(day.day))} on"
            if rule.marked:  # then final_at is only our own expectation
                usual = rule._replace(final_at=config.export.export_kind.final_at).final_time(day.day)
                final = f"is final once Megaphone marks it, by about {instant(usual)} as a rule"
            sentence = f"Megaphone is still writing this day; it {final}."
            return Summary("Not yet", "waiting", sentence)
        case "unmarked":
            return Summary("Not yet", "waiting", _sentence(day.why), PUBLISHER, to_do)
        case "settling":
            written = f" at {instant(day.export.last_modified)}" if day.export is not None else ""
            patience = span(config.export.settle)
            sentence = f"Megaphone rewrote this day's export{written}; it counts as final {patience} after that."
            return Summary("Not yet", "waiting", sentence)
        case "due":
            return Summary("Not yet", "waiting", "Megaphone's export is final, and the next round publishes it.")
        case "missing":
            sentence = "Megaphone has delivered no export for this day, so there is nothing to publish."
            return Summary("No", "bad", sentence, PUBLISHER, to_do)
        case "stale":
            return Summary("No", "bad", _sentence(day.why), PUBLISHER, to_do)
        case "held":
            who = f"{SERVER}, once you have agreed that the day goes out as it is"
            return Summary("No", "bad", f"The day is held back: {day.why}.", who, to_do)
        case "failed":
            return Summary("No", "bad", _sentence(day.why), SERVER, to_do)
        case "unknown":
            return Summary("Not known", "bad", _sentence(day.why), SERVER, to_do)
        case "pruned":
            taken = "Yes" if day.deadlines.picked_up.done is not None else "No"
            sentence = (
                f"Published {_at(day.published_at)}; its files were removed {config.retention.keep_days} days later."
            )
            return Summary(taken, "none", sentence)
        case "picked up":
            return _picked_up(day, partner)
        case _:
            return _published(day, partner, config.alerts.pull_every)


def rows_sentence(day: DayOverview) -> str:
    """Return what became of a day's rows, or ''."""
    if not (day.rows or day.publications):
        return ""
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


def _picked_up(day: DayOverview, partner: str) -> Summary:
    deadline = day.deadlines.picked_up
    names = partner if day.waits_for_pickup else _named(user.user for user in day.pickups) or partner
    sentence = f"{names} picked it up {_at(deadline.done)}"
    if deadline.urgency is Urgency.LATE:
        sentence += f", {span(deadline.left)} after the deadline: Triton counts no session after three days."
        return Summary("Yes, too late", "bad", sentence, f"{PARTNER}: ask whether the day can still be counted")
    return Summary("Yes, in time", "good", f"{sentence}, {span(deadline.left)} before the deadline.")


def _published(day: DayOverview, partner: str, pull_every: timedelta) -> Summary:
    sentence = f"Published {_at(day.published_at)}"
    if day.deadlines.published.urgency is Urgency.LATE:
        sentence += f", {span(day.deadlines.published.left)} late"
    if not day.waits_for_pickup:
        return Summary("Ready", "good", f"{sentence}; no user is required to pick it up.")
    deadline = day.deadlines.picked_up
    begun = [f"{user.user} has {user.whole} of {user.files} files" for user in day.pickups if user.begun]
    so_far = ", ".join(begun) if begun else f"{partner} has not fetched it yet"
    if deadline.urgency is Urgency.LATE:
        sentence += f"; {so_far}. The deadline was {instant(deadline.by)}, {span(deadline.left)} ago."
        return Summary("No", "bad", sentence, f"{PARTNER}: ask why {partner} did not pull, and whether it still counts")
    sentence += f"; {so_far}. The deadline is {instant(deadline.by)}, in {span(deadline.left)}."
    if deadline.urgency is Urgency.AHEAD:
        return Summary("Not yet", "waiting", sentence, f"{NOBODY} {partner} comes once every {span(pull_every)}.")
    return Summary("Not yet", "bad", sentence, f"{PARTNER}: ask whether {partner}'s puller runs")


def _at(at: datetime | None) -> str:
    return "at an unknown time" if at is None else f"at {instant(at)}"


def _named(names: Iterable[str]) -> str:
    return " and ".join(names)


def _sentence(why: str) -> str:
    """Return a reason as a sentence of its own."""
    return f"{why[:1].upper()}{why[1:]}." if why else ""
