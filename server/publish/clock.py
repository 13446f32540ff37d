"""Which clock to believe: the local one, the source's own if it has one, or the newest instant on record.

Touches a fact of the ledger. Promise: nothing is removed for its age because one clock jumped ahead. The local clock is
believed while it is at most `LEAP` past the newest instant believed before, or has been behind it for as long; the
source's own clock, and an operator, are believed at once.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..storage.ledger import Ledger

LEAP = timedelta(days=7)
BACK = timedelta(hours=1)  # more than any correction of a clock that is kept
BEHIND = "clock_behind_since"  # a fact of the ledger: when the local clock was first seen a leap behind, or ''
STOPPED = "pruning_stopped"  # a fact of the ledger: why the last pass removed nothing, or ''
LEAP_HINT = "timedatectl; if the clock is right: pickup-point prune --clock-is-right"


def believed(ledger: Ledger) -> datetime | None:
    """Return the newest instant on record; None in an empty ledger."""
    facts = ledger.facts()
    if "clock_believed" in facts:
        return datetime.fromisoformat(facts["clock_believed"])
    # A ledger from before this fact was kept, or a new one that has adopted files.
    on_record = [p.published_at for p in ledger.live_publications() if p.published_at is not None]
    if "last_round" in facts:
        on_record.append(datetime.fromisoformat(facts["last_round"]))
    return max(on_record, default=None)


def believe(ledger: Ledger, now: datetime) -> None:
    """Record an instant by the source's own clock, or by an operator's word."""
    ledger.note(clock_believed=now.isoformat())


def saw_local_clock(ledger: Ledger, now: datetime) -> None:
    """Record the local clock's time, or, if it is a leap, the instant that speaks against it.

    Call it before anything is published by this clock: a publication would vouch for it.
    """
    known = believed(ledger)
    if known is None:
        believe(ledger, now)
    elif now <= known + LEAP:
        believe(ledger, now if _long_behind(ledger, now, known) else max(now, known))
    else:
        believe(ledger, known)


def _long_behind(ledger: Ledger, now: datetime, known: datetime) -> bool:
    """Return whether the clock has been behind by `LEAP` for as long as `LEAP`: it was ahead when it was believed.

    A new ledger believes any clock; after that, one that runs ahead again would not be noticed for as long as the first
    was ahead.
    """
    since = ledger.facts().get(BEHIND, "")
    if now >= known - LEAP:
        if since:
            ledger.note(**{BEHIND: ""})
        return False
    if since and datetime.fromisoformat(since) <= now:
        return now - datetime.fromisoformat(since) > LEAP
    ledger.note(**{BEHIND: now.isoformat()})
    return False


def _on_record(facts: Mapping[str, Any], now: datetime) -> datetime:
    """Return the instant believed last, or ``now`` if none is on record yet."""
    return datetime.fromisoformat(facts["clock_believed"]) if "clock_believed" in facts else now


def before_leap(facts: Mapping[str, Any], now: datetime) -> datetime:
    """Return ``now``, or, if it is a leap, the instant before: nothing is over only because a clock says so."""
    known = _on_record(facts, now)
    return known if now > known + LEAP else now


def set_back(facts: Mapping[str, Any], now: datetime) -> str:
    """Return the warning that ``now`` is before the newest instant on record, or ''; one of them is wrong."""
    known = _on_record(facts, now)
    if known - now <= BACK:
        return ""
    return (
        f"the clock says {now:%Y-%m-%d %H:%MZ}, although {known:%Y-%m-%d %H:%MZ} is on record: if it is behind, newer "
        "days are neither published nor shown"
    )


def doubt(ledger: Ledger, now: datetime) -> str:
    """Return why ``now`` is not believed, or ''."""
    known = believed(ledger)
    if known is None or now <= known + LEAP:
        return ""
    then = f"nothing on record is newer than {known:%Y-%m-%d %H:%MZ}"
    return f"nothing is pruned: the clock says {now:%Y-%m-%d %H:%MZ}, and {then}"


class SteadyClock:
    """The earlier of the local and the source's time at the last round, carried on by the monotonic clock.

    The skew in the ledger is that of the last round: a local clock that jumped since then would age the files.
    """

    def __init__(self) -> None:
        self._seen: tuple[datetime, float] | None = None

    def compared(self, now: datetime, source_now: datetime, counted: float) -> None:
        """Set the clock as a round compared the two; ``counted`` is the monotonic clock at that instant, in seconds."""
        self._seen = min(now, source_now), counted

    def now(self, counted: float) -> datetime | None:
        """Return the time when the monotonic clock shows ``counted`` seconds, or None before the first round."""
        return None if self._seen is None else self._seen[0] + timedelta(seconds=counted - self._seen[1])
