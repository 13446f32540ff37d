"""`decide`: a table of what is known of a day, of the settings and of the two clocks, and of what is done about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from server.convert.tally import Tally
from server.megaphone.exports import DayExport
from server.publish.decisions import UNKNOWN_LAYOUT, Decision, FeedPolicy, FeedRequest, decide, despite_hold
from server.publish.holds import HoldPolicy
from server.settings import ExportSettings
from server.storage.records import DayRecord, Failure, Hold, LedgerLog, Publication
from server.triton import Layout, LogFormat, LogName, LogRules

DAY = date(2026, 11, 20)
RULES, OLD_RULES = LogRules(), LogRules(rows="all")


def at(days: int, clock: str) -> datetime:
    """Return the instant this many days after the day's own, at a time in UTC."""
    return datetime.fromisoformat(f"{DAY + timedelta(days=days)}T{clock}:00+00:00")


EXPORT = DayExport(DAY, "metrics-day-2026-11-20.json.gz", "v1", 100, at(1, "03:00"))
NEXT_VERSION = EXPORT._replace(etag="v2", last_modified=at(1, "06:00"))
POLICY = FeedPolicy(
    ExportSettings(url="s3://exports", first_day=DAY - timedelta(days=5)), RULES, "MEGA", HoldPolicy(), 60
)
GIVEN_UP = at(1, "23:00")  # the day's start and give_up_waiting's 47 hours


def seen(word: str, export: DayExport | None = EXPORT, **more: Any) -> DayRecord:
    return DayRecord(DAY, word, at(1, "05:00"), export, **more)


def hold(reason: str = "rejected", rejected: int = 10, etag: str = "v1") -> Hold:
    return Hold(
        "too many were rejected", reason, etag, Tally(rows=100, lines=100 - rejected, rejected=Counter(no_ip=rejected))
    )


def failure(until: datetime, etag: str = "v1") -> Failure:
    return Failure("it is torn", "look", etag, until - timedelta(hours=1), until, 1)


def published(kind: str = "first", number: int = 0, state: str = "published", **more: Any) -> Publication:
    entry = LedgerLog(LogName("OLD", DAY, number, LogFormat.TSV), 1, 10, "00", 1, 5, state)  # type: ignore[arg-type]  # one of its words
    values: dict[str, Any] = {
        "id": 1, "day": DAY, "kind": kind, "export": EXPORT, "rules": OLD_RULES, "tally": Tally(),
        "intended_at": at(1, "05:00"), "published_at": at(1, "05:00"), "logs": (entry,),
    }  # fmt: skip
    return Publication(**(values | more))


SUPERSEDED = replace(published(), logs=(replace(published().logs[0], superseded_by=2),))
PIECES = replace(published(), logs=(published().logs[0], published(number=1, state="intended").logs[0]))
UNFINAL_PIECES = replace(PIECES, kind="unfinal", tally=Tally(rows=9, filtered=Counter(too_fresh=9)))
ANEW = "its export has changed since it was held, so the new version was not accepted: "
CHANGED = seen("due", NEXT_VERSION, checked_etag="v1")
UNFINAL = "not final by export.give_up_waiting, so published as it stood:"
WITHHELD = "the rows of the two hours before its last change were withheld"
SETTLING = replace(CHANGED, seen="settling", checked_at=at(1, "05:00"))

# what, record, publications, request, now, and what is expected: a result's word or an order's kind; more of either.
USUAL = FeedRequest()

CASES: list[tuple[str, DayRecord, list[Publication], FeedRequest, datetime, str, dict[str, Any]]] = [
    # A day of which nothing was published
    ("open", seen("open", None), [], USUAL, at(0, "23:00"), "open", {}),
    ("open, with an export", seen("open"), [], USUAL, at(1, "03:30"), "open", {}),
    ("missing", seen("missing", None), [], USUAL, at(1, "05:00"), "missing", {}),
    ("missing for good", seen("missing", None), [], USUAL, GIVEN_UP, "missing", {}),
    ("stale", seen("stale"), [], USUAL, at(1, "05:00"), "stale", {}),
    ("settling", seen("settling"), [], USUAL, at(1, "05:00"), "settling", {}),
    ("due", seen("due"), [], USUAL, at(1, "05:00"), "first", {"prefix": "MEGA", "remark": "", "may_hold": True}),
    ("a minute before the end of waiting", seen("stale"), [], USUAL, GIVEN_UP - timedelta(minutes=1), "stale", {}),
    ("stale at the end of waiting", seen("stale"), [], USUAL, GIVEN_UP, "unfinal",
     {"remark": f"{UNFINAL} its export had not been rewritten since the day ended; {WITHHELD}", "given_up": True,
      "fresh_after": "2026-11-21 01:00:00"}),
    ("unmarked at the end of waiting", seen("unmarked"), [], USUAL, GIVEN_UP, "unfinal",
     {"remark": f"{UNFINAL} Megaphone had not marked its export as final; {WITHHELD}"}),
    ("due at the end of waiting", seen("due"), [], USUAL, GIVEN_UP, "first", {"given_up": True, "fresh_after": None}),
    ("a minute before what is withheld is sent", seen("stale"), [], USUAL, at(2, "11:59"), "unfinal",
     {"fresh_after": "2026-11-21 01:00:00"}),
    ("unfinal, when nothing is withheld any more", seen("stale"), [], USUAL, at(2, "12:00"), "unfinal",
     {"fresh_after": None, "remark": f"{UNFINAL} its export had not been rewritten since the day ended"}),
    ("unfinal, too late for Triton", seen("settling"), [], USUAL, at(4, "05:00"), "unfinal", {"fresh_after": None}),
    # Held
    ("held", seen("due", hold=hold()), [], USUAL, at(1, "05:00"), "held", {"sentence": "--accept-rejects"}),
    ("held, and accepted", seen("due", hold=hold()), [], FeedRequest(accept_rejects=True), at(1, "05:00"), "first",
     {"may_hold": False, "remark": "published because an operator accepted it: too many were rejected"}),
    ("accepted before it was held", seen("due"), [], FeedRequest(accept_rejects=True), at(1, "05:00"), "first",
     {"may_hold": True, "remark": "", "note": ""}),
    ("accepted, but another version", seen("due", hold=hold(etag="v0")), [], FeedRequest(accept_rejects=True),
     at(1, "05:00"), "first",
     {"may_hold": True, "remark": "", "note": ANEW}),
    ("accepted, but another version that is not final", seen("settling", hold=hold(etag="v0")), [],
     FeedRequest(accept_rejects=True), at(1, "05:00"), "settling", {"sentence": f"{ANEW}its export changed too"}),
    ("held, and without a line", seen("due", hold=hold(rejected=100)), [], USUAL, at(1, "05:00"), "held",
     {"sentence": "no line would remain, so it cannot be accepted"}),
    ("held for an older version", seen("due", hold=hold(etag="v0")), [], USUAL, at(1, "05:00"), "first",
     {"may_hold": True}),
    ("held until the end of waiting", seen("due", hold=hold()), [], USUAL, GIVEN_UP, "first",
     {"may_hold": False, "remark": "held until export.give_up_waiting, then published without its rejected rows, since "
      "nobody had decided: too many were rejected"}),
    ("half of it rejected", seen("due", hold=hold(rejected=50)), [], USUAL, GIVEN_UP, "held", {}),
    ("tokens are never published undecided", seen("due", hold=hold("tokens")), [], USUAL, GIVEN_UP, "held", {}),
    ("an empty day is never published undecided", seen("due", hold=hold("empty")), [], USUAL, GIVEN_UP, "held", {}),
    ("held and never final", seen("settling", hold=hold()), [], USUAL, GIVEN_UP, "unfinal",
     {"may_hold": False, "remark": f"{UNFINAL} its export was still being rewritten; {WITHHELD}; it was also held, and "
      "published without its rejected rows, since nobody had decided: too many were rejected"}),
    # Failed
    ("failed, not yet tried again", seen("due", failure=failure(at(1, "06:00"))), [], USUAL, at(1, "05:30"), "failed",
     {"sentence": "it is torn (next try 2026-11-21 06:00Z)"}),
    ("failed, and its time has come", seen("due", failure=failure(at(1, "06:00"))), [], USUAL, at(1, "06:00"), "first",
     {}),
    ("failed, another version", seen("due", failure=failure(at(1, "06:00"), "v0")), [], USUAL, at(1, "05:30"), "first",
     {}),
    ("failed, asked for by day", seen("due", failure=failure(at(1, "06:00"))), [], FeedRequest((DAY,)), at(1, "05:30"),
     "first",
     {}),
    ("failed, by hand", seen("due", failure=failure(at(1, "06:00"))), [], FeedRequest(by_hand=True), at(1, "05:30"),
     "first",
     {}),
    ("failed by a clock that ran ahead", seen("due", failure=failure(at(9, "06:00"))), [], USUAL,
     at(1, "05:30"), "first", {}),
    # Published
    ("unchanged", seen("due", checked_etag="v1"), [published()], USUAL, at(1, "07:00"), "published",
     {"sentence": "OLD20261120-00.tsv.gz"}),
    ("gone from the source", seen("missing", None, checked_etag="v1"), [published()], USUAL, at(1, "07:00"),
     "published",
     {}),
    ("changed", CHANGED, [published()], USUAL, at(1, "08:00"), "late",
     {"prefix": "OLD", "rules": OLD_RULES, "may_hold": True, "may_publish": True, "remark": "late rows"}),
    ("late rows held", replace(CHANGED, hold=hold("other_ids", 0, "v2")), [published()], USUAL, at(1, "08:00"), "held",
     {"sentence": f"if these rows are others, send them, too: pickup-point feed --day {DAY} --accept-rejects"}),
    ("late rows held, and accepted", replace(CHANGED, hold=hold("other_ids", 0, "v2")), [published()],
     FeedRequest(accept_rejects=True), at(1, "08:00"), "late", {"may_hold": False, "note": ""}),
    ("late rows held, and another version accepted", replace(CHANGED, hold=hold("other_ids", 0)), [published()],
     FeedRequest(accept_rejects=True), at(1, "08:00"), "late", {"may_hold": True, "note": ANEW}),
    ("late rows held until nothing counts any more", replace(CHANGED, hold=hold("other_ids", 0, "v2")), [published()],
     USUAL, at(3, "00:00"), "late", {"may_publish": False}),
    ("late rows of a version whose resend was held", replace(CHANGED, hold=hold(etag="v2")), [published()], USUAL,
     at(1, "08:00"), "late", {"may_hold": True}),
    ("changed, settling", replace(CHANGED, seen="settling"), [published()], USUAL, at(1, "06:30"), "published", {}),
    ("changed at the last instant", CHANGED, [published()], USUAL, at(3, "00:00") - timedelta(seconds=1), "late",
     {"may_publish": True}),
    ("changed when nothing counts any more", CHANGED, [published()], USUAL, at(3, "00:00"), "late",
     {"may_publish": False}),
    ("rows withheld", seen("settling", checked_etag="v1", withheld=9), [published("unfinal")], USUAL, at(2, "11:59"),
     "published", {}),
    ("rows withheld, and released", seen("settling", checked_etag="v1", withheld=9), [published("unfinal")], USUAL,
     at(2, "12:00"), "late", {"remark": "withheld rows"}),
    ("final at last, rows withheld", seen("due", checked_etag="v1", withheld=9), [published("unfinal")], USUAL,
     at(2, "01:00"), "late", {"remark": "withheld rows"}),
    ("changed and settling at noon", SETTLING, [published()], USUAL, at(2, "12:00"), "late", {"may_publish": True}),
    ("changed and settling, compared at noon", replace(SETTLING, checked_at=at(2, "12:00")), [published()], USUAL,
     at(2, "22:59"), "published", {}),
    ("changed and settling at the last chance", replace(SETTLING, checked_at=at(2, "12:00")), [published()], USUAL,
     at(2, "23:00"), "late", {"may_publish": True}),
    ("changed and settling, compared at the last chance", replace(SETTLING, checked_at=at(2, "23:00")), [published()],
     USUAL, at(2, "23:59"), "published", {}),
    ("changed and settling when nothing counts any more", replace(SETTLING, checked_at=at(2, "23:00")), [published()],
     USUAL, at(3, "00:00"), "late", {"may_publish": False}),
    ("changed and settling, told", replace(SETTLING, checked_at=at(3, "00:00")), [published()], USUAL, at(3, "05:00"),
     "published", {}),
    ("rows withheld, and found too late", seen("settling", checked_etag="v1", withheld=9), [published("unfinal")],
     USUAL, at(3, "00:00"), "late", {"may_publish": False, "lost": ""}),
    ("rows withheld, the export gone", seen("missing", None, checked_etag="v1", withheld=9), [published("unfinal")],
     USUAL, at(2, "23:59"), "published", {"lost": ""}),
    ("rows withheld, the export gone for good", seen("missing", None, checked_etag="v1", withheld=9),
     [published("unfinal")], USUAL, at(3, "00:00"), "published", {"lost": "its export is gone"}),
    ("rows withheld, the export torn", seen("due", NEXT_VERSION, checked_etag="v1", withheld=9,
                                            failure=failure(at(2, "23:00"), "v2")),
     [published("unfinal")], USUAL, at(3, "00:00"), "published", {"lost": "it is torn"}),
    ("changed, its layout unknown", CHANGED, [published("adopted", remark=UNKNOWN_LAYOUT)], USUAL, at(1, "08:00"),
     "published", {"left_alone": UNKNOWN_LAYOUT}),
    ("changed, a file pruned", CHANGED, [published(state="pruned")], USUAL, at(1, "08:00"), "published",
     {"left_alone": "a file of the day has already been pruned"}),
    ("changed, superseded and pruned", CHANGED, [SUPERSEDED, published("resend", 1, rules=RULES)], USUAL,
     at(1, "08:00"),
     "late", {"rules": RULES, "prefix": "OLD"}),
    ("changed, superseded and its layout unknown", CHANGED,
     [replace(SUPERSEDED, kind="adopted", remark=UNKNOWN_LAYOUT), published("resend", 1, rules=RULES)], USUAL,
     at(1, "08:00"), "late", {"rules": RULES, "left_alone": ""}),
    # Left in pieces by a crash
    ("in pieces", seen("due", checked_etag=""), [PIECES], USUAL, at(1, "08:00"), "late",
     {"rest_of": PIECES, "rules": OLD_RULES, "prefix": "OLD", "sent": (PIECES,), "may_publish": True, "may_hold": False,
      "fresh_after": None}),
    ("in pieces, when nothing counts any more", seen("due", checked_etag=""), [PIECES], USUAL, at(40, "08:00"), "late",
     {"rest_of": PIECES, "may_publish": True}),
    ("in pieces, of a version that was never final", seen("stale", checked_etag=""), [UNFINAL_PIECES], USUAL,
     at(2, "01:00"), "late", {"fresh_after": "2026-11-21 01:00:00"}),
    ("in pieces, changed", seen("due", NEXT_VERSION, checked_etag=""), [PIECES], USUAL, at(4, "08:00"), "late",
     {"rest_of": PIECES, "may_publish": True, "fresh_after": None}),
    ("in pieces, changed, settling", seen("settling", NEXT_VERSION, checked_etag=""), [PIECES], USUAL, at(1, "06:30"),
     "failed", {"sentence": "OLD20261120-01.tsv.gz, to be converted again, but its export changed too recently"}),
    ("in pieces, changed, and no time left", seen("settling", NEXT_VERSION, checked_etag=""), [PIECES], USUAL,
     at(2, "12:00"), "late", {"rest_of": PIECES}),
    ("in pieces, its export gone", seen("missing", None), [PIECES], USUAL, at(1, "08:00"), "failed",
     {"sentence": "there is no export"}),
    ("in pieces, a file pruned", seen("due"),
     [replace(PIECES, logs=(published(state="pruned").logs[0], PIECES.logs[1]))], USUAL, at(1, "08:00"), "published",
     {"left_alone": "a file of the day has already been pruned"}),
    ("in pieces, sent again", seen("due"), [PIECES], FeedRequest((DAY,), resend="voided"), at(1, "09:00"), "resend",
     {"rest_of": None}),
    # Sent again
    ("resend", seen("due", checked_etag="v1"), [published()], FeedRequest((DAY,), resend="voided"), at(1, "09:00"),
     "resend",
     {"remark": "voided", "rules": RULES, "prefix": "OLD", "may_hold": True}),
    ("resend, rejects accepted", seen("due", hold=hold()), [published()],
     FeedRequest((DAY,), accept_rejects=True, resend="voided"), at(1, "09:00"), "resend", {"may_hold": False}),
    ("resend, rejects of another version accepted", seen("due", hold=hold(etag="v0")), [published()],
     FeedRequest((DAY,), accept_rejects=True, resend="voided"), at(1, "09:00"), "resend",
     {"may_hold": True, "note": ANEW}),
    ("resend, late rows accepted, which says nothing of rejects", replace(CHANGED, hold=hold("other_ids", 0, "v2")),
     [published()], FeedRequest((DAY,), accept_rejects=True, resend="voided"), at(1, "09:00"), "resend",
     {"may_hold": True}),
    ("resend of nothing", seen("due"), [], FeedRequest((DAY,), resend="voided"), at(1, "09:00"), "refused",
     {"sentence": "never published"}),
    ("resend of what is not there", seen("missing", None), [published()], FeedRequest((DAY,), resend="voided"), at(1,
     "09:00"),
     "refused", {"sentence": "cannot be read whole: there is no export"}),
    # Out of reach
    ("too old", seen("due"), [], USUAL, at(61, "00:00"), "refused", {"sentence": "retention.keep_days"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "publications", "request_", "now", "word", "more"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_what_is_done_about_a_day(
    record: DayRecord,
    publications: list[Publication],
    request_: FeedRequest,
    now: datetime,
    word: str,
    more: dict[str, Any],
) -> None:
    """One line of the table."""
    decision = decide(record, publications, POLICY, request_, now=now, source_now=now)
    assert (decision.order.kind if decision.order else decision.result.word) == word
    for name, value in more.items():
        if name == "sentence":
            assert value in decision.result.sentence
        else:
            found = getattr(decision if name in Decision.__slots__ else decision.order, name)
            assert found == value, name


@pytest.mark.parametrize(("pull_every", "poll_every", "last"), [
    (24, 10, at(2, "23:00")), (11, 10, at(2, "23:00")), (1, 10, at(2, "22:00")), (6, 10, at(2, "17:00")),
    (1, 360, at(2, "14:00")), (24, 360, at(2, "15:00")),
])  # fmt: skip
def test_a_restless_day_is_sent_at_noon_and_shortly_before_the_last_pull(
    pull_every: int, poll_every: int, last: datetime
) -> None:
    """Early enough for a round and a pull; where no pull after noon is certain, an hour before nothing counts."""
    export = POLICY.export.model_copy(update={"poll_every": timedelta(minutes=poll_every)})
    policy = replace(POLICY, export=export, pull_every=timedelta(hours=pull_every))
    assert policy.sent_as_it_is(DAY) == (at(2, "12:00"), last, at(3, "00:00"))


def test_a_day_before_the_first_is_refused() -> None:
    """The service's work begins with `first_day`."""
    day = DAY - timedelta(days=6)
    decision = decide(
        DayRecord(day, "due", at(1, "05:00"), None), [], POLICY, FeedRequest((day,)), now=GIVEN_UP, source_now=GIVEN_UP
    )
    assert (decision.order, decision.result.word) == (None, "refused")
    assert "export.first_day" in decision.result.sentence


def test_the_source_s_clock_decides_what_is_final_and_the_local_one_when_to_try_again() -> None:
    """A local clock that is a day ahead publishes nothing early."""
    ahead = decide(seen("stale"), [], POLICY, FeedRequest(), now=at(4, "00:00"), source_now=at(1, "05:00"))
    assert (ahead.order, ahead.result.word) == (None, "stale")
    waiting = seen("due", failure=failure(at(1, "06:00")))
    assert (
        decide(waiting, [], POLICY, FeedRequest(), now=at(1, "05:30"), source_now=at(1, "06:30")).result.word
        == "failed"
    )


def test_late_rows_never_leave_out_what_was_sent() -> None:
    """Every publication that stands is handed to the conversion; one that was superseded is not."""
    second = published("late", 1)
    decision = decide(
        CHANGED,
        [SUPERSEDED, published("resend", 2), second],
        POLICY,
        FeedRequest(),
        now=at(1, "08:00"),
        source_now=at(1, "08:00"),
    )
    assert decision.order is not None
    assert [p.kind for p in decision.order.sent] == ["resend", "late"]


def test_a_day_that_is_held_only_after_its_conversion_goes_out_as_one_that_was_held_before() -> None:
    """The same remark, and nothing holds it again."""
    before = decide(seen("due", hold=hold()), [], POLICY, FeedRequest(), now=GIVEN_UP, source_now=GIVEN_UP).order
    after = decide(seen("due"), [], POLICY, FeedRequest(), now=GIVEN_UP, source_now=GIVEN_UP).order
    assert after is not None and despite_hold(after, hold()) == before
    assert after.rules.layout == Layout() and GIVEN_UP.tzinfo is UTC
