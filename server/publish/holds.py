"""When a converted day is held for an operator to decide, instead of being published.

Pure. Promise: none of these is published silently: a day with too many rejected rows, an empty day after days with
rows, a day mostly of another day's rows, (if so configured) a day with hash-like addresses, and late rows that look
like those sent before under other ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..convert.tally import FilterReason

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from ..convert.tally import Tally
    from ..storage.records import Hold

TOKENS_SHARE = 0.01  # above this share of hash-like addresses, tokens = "hold" holds the day
ENDS_IN_ZERO_SHARE = 0.05  # above this share, the addresses were probably truncated upstream
OUTSIDE_DAY_SHARE, OUTSIDE_DAY_HOLDS = 0.01, 0.5  # above these shares of the lines: a warning; the day is held
# (reason, sentence) of a hold that cannot be lifted: there is nothing to send.
ON_ONE_LINE = "one_line", "the export's rows are in one array on one line, so none of them can be sent"
OTHER_IDS = "other_ids"  # the reason of the only hold of late rows
REMOVED_SHARE = 0.1  # if more than this share of the rows sent before is gone, there is a warning
LOOK_BACK_DAYS = 7  # an empty day is suspicious if one of the seven days before it had rows


class HoldPolicy(NamedTuple):
    """The settings that decide: ``max_rejected`` is a share, 0 to 1; ``tokens`` is "hash", "hold" or None."""

    max_rejected: float = 0.01
    tokens: str | None = None


def hold_reason(tally: Tally, rows_before: Sequence[int], policy: HoldPolicy) -> tuple[str, str] | None:
    """Return (reason, sentence) for holding a day, or None.

    ``rows_before`` are the numbers of rows of the published days among the last `LOOK_BACK_DAYS`.
    """
    if tally.rows == 0 and any(rows_before):
        return "empty", f"the export is empty, although one of the last {LOOK_BACK_DAYS} days had rows"
    sentences = []
    reason = ""
    if tally.rows and tally.rejected_share > policy.max_rejected:
        most = max(tally.rejected, key=lambda reason: tally.rejected[reason])
        reason = "rejected"
        sentences.append(
            f"{tally.rejected.total()} of {tally.rows} rows were rejected ({tally.rejected_share:.1%}, "
            f"allowed {policy.max_rejected:.1%}), most of them {most}"
        )
    if policy.tokens == "hold" and tally.share_of_lines(tally.not_an_address) > TOKENS_SHARE:
        share = tally.share_of_lines(tally.not_an_address)
        reason = "tokens"  # stronger than rejected: such a day is never published without an operator
        sentences.append(f'{share:.1%} of the addresses are hash-like tokens, and log.tokens is "hold"')
    outside = tally.share_of_lines(tally.outside_day)
    if outside > OUTSIDE_DAY_HOLDS:
        reason = "outside_day"  # likewise: these may be another day's rows
        sentences.append(f"{outside:.1%} of the lines belong to another day: the export may be another day's")
    return (reason, "; and ".join(sentences)) if reason else None


def late_hold_reason(tally: Tally, removed: int) -> tuple[str, str] | None:
    """Return (reason, sentence) why the late rows of a published day are held, or None.

    ``tally`` is that of the new version, ``removed`` the number of lines sent before whose row is no longer in it.
    Megaphone removes no row, so a version that lacks most of them and adds a like number (at least half) has the same
    rows under other ids: rows that had none were given ids, or what ids are made from is spelt differently. Triton
    would count all of them twice.
    """
    still_there = tally.filtered[FilterReason.SENT_BEFORE]
    if removed <= still_there or 2 * tally.lines < removed:
        return None
    sentence = (
        f"{removed} of the {removed + still_there} rows sent before are not in its new version, and {tally.lines} look "
        "new: they are probably the same ones under other ids, and Triton would count them twice"
    )
    return OTHER_IDS, sentence


def acceptable(tally: Tally) -> bool:
    """Return whether a held day can be accepted: at least one of its rows would become a line, or it has no rows."""
    return tally.lines > 0 or tally.rows == 0


def way_out(tally: Tally, command: str) -> str:
    """Return how a held day can be published: with ``command``, if it is acceptable."""
    if acceptable(tally):
        return f"to publish it: {command}"
    return "no line would remain, so it cannot be accepted; wait for another version of its export, or correct [log]"


def way_out_of_late(day: date) -> str:
    """Return how a day's held late rows, or the day as a whole, can be published."""
    return (
        f"if Triton voids what it has of the day, send it again: pickup-point feed --day {day} --resend 'other ids'; "
        f"if these rows are others, send them, too: {accept_command(day)}"
    )


def accept_command(day: date) -> str:
    """Return the command that publishes what is held for a day."""
    return f"pickup-point feed --day {day} --accept-rejects"


def published_when_given_up(hold: Hold) -> bool:
    """Return whether a held day is published at ``give_up_waiting`` if nobody decides, so that no good row is lost."""
    return hold.reason == "rejected" and hold.tally.rejected_share < 0.5 and acceptable(hold.tally)


def shrunk(rows: int, before: int) -> list[str]:
    """Return the warning, if any, that a published day's export has fewer rows than ``before``."""
    return [f"its export was rewritten to {rows} rows; it had {before} when it was published"] if rows < before else []


def late_warnings(tally: Tally, policy: HoldPolicy, removed: int) -> list[str]:
    """Return the warnings about late rows: a bad new version is not held, so that its good rows are not lost.

    ``removed`` is the number of lines sent before whose row is gone, as for `late_hold_reason`.
    """
    found = outside_day(tally)
    sent = removed + tally.filtered[FilterReason.SENT_BEFORE]
    if removed > sent * REMOVED_SHARE and 2 * tally.lines >= removed:
        found.append(
            f"{removed} of the {sent} rows sent before are not in its new version: if they are among the {tally.lines} "
            "new ones under other ids, Triton counts them twice"
        )
    if tally.rejected_share > policy.max_rejected:
        found.append(
            f"{tally.rejected.total()} of {tally.rows} rows of its new version were rejected; look at rejects/"
        )
    return found


def outside_day(tally: Tally) -> list[str]:
    """Return the warning, if any, that a share of a day's lines belong to another day."""
    share = tally.share_of_lines(tally.outside_day)
    return [f"{share:.1%} of the lines belong to another day"] if share > OUTSIDE_DAY_SHARE else []


def warnings(tally: Tally, policy: HoldPolicy) -> list[str]:
    """Return the warnings about a day that is odd but not held."""
    found = outside_day(tally)
    tokens = tally.share_of_lines(tally.not_an_address)
    if tally.not_an_address and policy.tokens is None:
        found.append(
            f"{tokens:.1%} of the addresses are hash-like tokens, sent as Hashed-IP without an IP: ask Triton "
            'whether those rows count, then set log.tokens to "hash" or "hold"'
        )
    if tally.share_of_lines(tally.ends_in_zero) > ENDS_IN_ZERO_SHARE:
        share = tally.share_of_lines(tally.ends_in_zero)
        found.append(f"{share:.1%} of the IPv4 addresses end in 0: Megaphone probably delivered them truncated")
    if tally.rows == 0:
        found.append("the export is empty: the log has its header line only")
    elif tally.lines == 0:
        found.append("no row became a line: the log has its header line only")
    return found
