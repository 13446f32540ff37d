"""Megaphone's words: which objects are exports, when a day is final, and what a row is.

No outside world; the clock is handed in.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pytest

from server.convert.export_row import ExportRow, flag, identifier, parse_created_at, seconds, whole_number
from server.convert.tally import RejectReason, RowRejected
from server.megaphone.exports import (
    DELIVERY_V2,
    EXPORT_FIELDS,
    KINDS,
    METRICS,
    DayExport,
    FinalityRule,
    Others,
    start_of,
)

from ..support.rows import ABSENT, GOOD, result, row, row_v2, rules

DAY = date(2026, 11, 20)


# --- Which objects are exports --------------------------------------------------------------------------------------


def test_the_fields_are_those_of_the_article() -> None:
    """Megaphone's schema, field for field, in its order."""
    article = (
        "country,dma_name,normalized_user_agent,city,ip,created_at,podcast_id,source,filesize,bytes_sent,"
        "seconds_downloaded,duration,blacklisted_ip,episode_id,blacklisted_ua,id,region,user_agent"
    )
    assert ",".join(METRICS.fields) == article


@pytest.mark.parametrize(
    ("name", "day"),
    [
        ("metrics-day-2026-11-20.json.gz", DAY),
        ("metrics-day-2024-02-29.json.gz", date(2024, 2, 29)),
        ("metrics-day-2026-02-29.json.gz", None),
        ("metrics-day-2026-13-01.json.gz", None),
        ("metrics-day-0000-01-01.json.gz", None),
        ("metrics-day-9999-12-31.json.gz", None),
        ("metrics-day-9999-12-28.json.gz", None),
        ("metrics-day-0001-01-01.json.gz", None),
        ("metrics-day-2026-11-20.json", None),
        ("metrics-day-2026-11-20.json.gz.part", None),
        ("metrics-day-2026-11-20.json.gz\n", None),
        ("metrics-day-2026-11-20_json_gz", None),
        ("metrics-day-2026-1-2.json.gz", None),
        ("metrics-day-20261120.json.gz", None),
        ("metrics-day-\u0662\u0660\u0662\u0666-11-20.json.gz", None),
        (" metrics-day-2026-11-20.json.gz", None),
        ("x/metrics-day-2026-11-20.json.gz", None),
        ("Metrics-day-2026-11-20.json.gz", None),
        ("impression-day-2026-11-20.json.gz", None),
        ("impressions-v2-day-2026-11-20.json.gz", None),
        ("delivery-v2-day-2026-11-20.json.gz", None),
        ("_finalized_delivery_2026-11-20_1700000000", None),
        ("", None),
    ],
)  # fmt: skip
def test_only_the_exact_name_is_an_export(name: str, day: date | None) -> None:
    """Everything else in such a bucket is ignored."""
    assert METRICS.day_of(name) == day


@pytest.mark.parametrize(
    ("name", "day", "marked"),
    [
        ("delivery-v2-day-2026-11-20.json.gz", DAY, None),
        ("delivery-v2-day-2026-11-31.json.gz", None, None),
        ("delivery-v2-day-2026_11_20.json.gz", None, None),
        ("metrics-day-2026-11-20.json.gz", None, None),
        ("impressions-v2-day-2026-11-20.json.gz", None, None),
        ("_finalized_delivery_2026-11-20_1763651952", None, DAY),
        ("_finalized_delivery_2026_11_20_1763651952", None, DAY),
        ("_finalized_delivery_2026_11_20", None, DAY),
        ("_finalized_delivery_2026-11-20T12:10:00\u2028.json\n", None, DAY),
        ("_finalized_delivery_2026-11_20_1", None, None),
        ("_finalized_delivery_2026-11-201", None, None),
        ("_finalized_delivery_2026_13_20_1", None, None),
        ("_finalized_impressions_2026-11-20_1763651952", None, None),
        ("x_finalized_delivery_2026-11-20_1", None, None),
    ],
)
def test_the_other_kind_has_names_and_markers_of_its_own(name: str, day: date | None, marked: date | None) -> None:
    """A marker's date is spelled with hyphens or with underscores, and anything but another digit may follow it."""
    assert (DELIVERY_V2.day_of(name), DELIVERY_V2.marked_day(name)) == (day, marked)
    assert METRICS.marked_day(name) is None


def test_a_place_with_the_other_kind_says_which_setting_to_change() -> None:
    """Both ways; one's own markers without an export, or a name that is nearly an export's, point at no other kind."""
    for kind, other in ((METRICS, DELIVERY_V2), (DELIVERY_V2, METRICS)):
        others = Others(kind.file_name)
        for name in (f"{kind.begins[-1]}_2026-11-20_1", f"{kind.begins[0]}-2026-11-20.json", "notes.txt"):
            others = others.and_one(name)
        assert (others.objects, others.looks, others.cure) == (3, (), "")
        others = others.and_one(other.file_name.replace("YYYY-MM-DD", str(DAY)))
        assert (others.looks, others.cure) == ((other.label,), f'set export.kind = "{other.name}"')
    assert set(EXPORT_FIELDS) == {field for kind in KINDS.values() for field in kind.fields}
    assert EXPORT_FIELDS[: len(METRICS.fields)] == METRICS.fields


# --- When a day is final --------------------------------------------------------------------------------------------


def _at(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


@pytest.mark.parametrize(
    ("modified", "now", "state"),
    [
        (None, "2026-11-21T04:29:59", "open"),
        (None, "2026-11-21T04:30:00", "missing"),
        ("2026-11-20T23:15:00", "2026-11-20T23:30:00", "open"),
        ("2026-11-21T03:15:00", "2026-11-21T04:29:59.999", "open"),
        ("2026-11-21T03:15:00", "2026-11-21T04:30:00", "due"),
        ("2026-11-21T03:25:00", "2026-11-21T04:30:00", "due"),
        ("2026-11-21T03:25:01", "2026-11-21T04:30:00", "settling"),
        ("2026-11-21T05:16:00", "2026-11-21T06:20:59", "settling"),
        ("2026-11-21T05:16:00", "2026-11-21T06:21:00", "due"),
        ("2026-11-20T23:59:59", "2026-11-21T12:00:00", "stale"),
        ("2026-11-21T00:00:00", "2026-11-21T12:00:00", "due"),
        ("2026-11-21T13:00:00", "2026-11-21T12:00:00", "settling"),
        ("2026-12-01T00:00:00", "2026-12-01T00:10:00", "settling"),
    ],
)
def test_a_day_is_final_when_three_things_hold(modified: str | None, now: str, state: str) -> None:
    """The clock is past final_at, the object was written after the day, and has been unchanged for ``settle``."""
    export = None if modified is None else DayExport(DAY, "k", "e", 1, _at(modified))
    assert FinalityRule().state(DAY, export, _at(now)) == state


@pytest.mark.parametrize(
    ("modified", "marker", "now", "state"),
    [
        (None, None, "2026-11-21T10:59:59", "open"),
        (None, None, "2026-11-21T11:00:00", "missing"),
        (None, "2026-11-21T09:00:00", "2026-11-21T10:59:59", "open"),  # the marker before the object
        (None, "2026-11-21T09:00:00", "2026-11-21T11:00:00", "missing"),
        ("2026-11-21T10:15:00", None, "2026-11-21T10:59:59", "open"),
        ("2026-11-21T10:15:00", None, "2026-11-22T22:59:59", "unmarked"),  # however long it has not changed
        ("2026-11-20T23:15:00", None, "2026-11-21T12:00:00", "stale"),
        ("2026-11-21T08:15:00", "2026-11-21T08:15:00", "2026-11-21T08:15:00", "due"),  # of the same second
        ("2026-11-21T08:15:00", "2026-11-21T12:10:00", "2026-11-21T12:10:01", "due"),
        ("2026-11-20T23:59:00", "2026-11-21T00:10:00", "2026-11-21T00:10:00", "due"),  # nothing came after the day
        ("2026-11-21T08:15:00", "2026-11-20T23:59:59", "2026-11-21T11:00:00", "unmarked"),  # proves nothing
        ("2026-11-21T12:10:01", "2026-11-21T12:10:00", "2026-11-21T13:15:00", "settling"),  # rewritten after it
        ("2026-11-21T12:10:01", "2026-11-21T12:10:00", "2026-11-21T13:15:01", "due"),
        ("2026-11-21T09:10:01", "2026-11-21T08:10:00", "2026-11-21T10:00:00", "settling"),
        ("2026-11-21T09:10:00", "2026-11-21T09:30:00.9", "2026-11-21T09:30:00", "due"),  # now is in whole seconds
        ("2026-11-21T09:10:00", "2026-11-21T09:31:00", "2026-11-21T09:30:00", "settling"),
        ("2026-11-21T09:10:00", "2031-01-01T00:00:00", "2026-11-21T10:00:00", "settling"),  # it proves what is to come
        ("2026-11-21T09:10:00", "2031-01-01T00:00:00", "2026-11-21T10:15:00", "due"),
    ],
)
def test_a_marked_day_is_final_when_its_marker_says_so(
    modified: str | None, marker: str | None, now: str, state: str
) -> None:
    """The marker proves what did not change after it; what did settles; the hour alone proves nothing."""
    export = None if modified is None else DayExport(DAY, "k", "e", 1, _at(modified))
    rule = FinalityRule(DELIVERY_V2.final_at, marked=True)
    assert rule.state(DAY, export, _at(now), None if marker is None else _at(marker)) == state


def test_without_settle_an_object_may_be_brand_new() -> None:
    """``settle = "0s"`` switches this condition off, and no other."""
    rule = FinalityRule(time(5, 0), timedelta(0))
    export = DayExport(DAY, "k", "e", 1, _at("2026-11-21T05:00:00"))
    assert rule.state(DAY, export, _at("2026-11-21T05:00:00")) == "due"
    assert rule.state(DAY, export, _at("2026-11-21T04:59:59")) == "open"
    assert rule.final_time(DAY) == datetime(2026, 11, 21, 5, 0, tzinfo=UTC)
    assert start_of(DAY) == datetime(2026, 11, 20, tzinfo=UTC)


# --- Values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("2026-11-20T15:19:12.345Z", ("2026-11-20", "15:19:12")),
        ("2026-11-20T15:19:12Z", ("2026-11-20", "15:19:12")),
        ("2026-11-20T15:19:12+00:00", ("2026-11-20", "15:19:12")),
        ("2026-11-20T15:19:12.999999999+00:00", ("2026-11-20", "15:19:12")),
        ("2026-11-20 15:19:12Z", ("2026-11-20", "15:19:12")),
        ("2026-11-20 15:19:12.5", ("2026-11-20", "15:19:12")),
        ("2026-11-20T15:19:12", ("2026-11-20", "15:19:12")),
        ("2024-02-29T00:00:00Z", ("2024-02-29", "00:00:00")),
        ("2026-11-20T23:59:59.999Z", ("2026-11-20", "23:59:59")),
        ("2026-02-29T00:00:00Z", None),
        ("2026-11-20T24:00:00Z", None),
        ("2026-11-20T23:60:00Z", None),
        ("2026-11-20T23:59:60Z", None),
        ("0000-11-20T15:19:12Z", None),
        ("2026-11-20T15:19:12.Z", None),
        ("2026-11-20T15:19:12,5Z", None),
        ("2026-11-20T15:19:12+01:00", ("2026-11-20", "14:19:12")),
        ("2026-11-20T00:19:12+01:00", ("2026-11-19", "23:19:12")),
        ("2026-11-20T15:19:12-00:00", ("2026-11-20", "15:19:12")),
        ("2026-11-20T15:19:12+0000", ("2026-11-20", "15:19:12")),
        ("2026-11-20T15:19:12+25:00", None),
        ("2026-11-20T15:19Z", None),
        ("2026-11-20", None),
        ("2026-11-20T15:19:12Z\n", None),
        ("2026-11-20T1\u0665:19:12Z", None),
        ("", None),
        (None, None),
        (1763651952, None),
        (True, None),
        ([], None),
    ],
)  # fmt: skip
def test_created_at_is_an_instant_in_utc(value: Any, parsed: tuple[str, str] | None) -> None:
    """With or without fraction (cut off, not rounded), ``Z``, an offset or no zone, ``T`` or a blank."""
    assert parse_created_at(value) == parsed


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0), (1, 1), (2**63 - 1, 2**63 - 1), (2**63, None), (-1, None), ("0", 0), ("007", 7), ("12", 12),
        ("9" * 19, None), (str(2**63 - 1), 2**63 - 1), (str(2**63), None), ("9" * 5000, None), ("0" * 4301 + "7", 7),
        (12.0, 12), (0.0, 0), (-0.0, 0), (12.5, None), (1e18, 10**18), (1e19, None), (-1.0, None), ("12.0", None),
        ("-1", None), ("+1", None), (" 1", None), ("\u0661", None), ("", None), ("x", None), (None, None),
        (True, None), (False, None), ([], None), ({}, None),
    ],
)  # fmt: skip
def test_a_whole_number_may_come_in_three_forms(value: Any, number: int | None) -> None:
    """0 to 2⁶³-1, as an integer, a digit string or a whole float; nothing else is one."""
    assert whole_number(value) == number


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), ("true", True), (False, False), ("false", False), (None, False), (1, False), ("1", False),
     ("True", False), ("TRUE", False), (" true", False), ([True], False), (1.0, False)],
)  # fmt: skip
def test_a_flag_is_true_or_it_is_false(value: Any, expected: bool) -> None:
    """A boolean, or "true"; anything else means false."""
    assert flag(value) is expected


@pytest.mark.parametrize(
    ("value", "short"),
    [(60, False), (59, True), (59.999, True), (60.0, False), ("60", False), ("59.9", True), ("60.5", False), (0, True),
     (None, True), ("", True), ("1e3", True), ("x", True), (True, True), ([], True), (-1, True), (2**63, False),
     ("9" * 400, False)],
)  # fmt: skip
def test_a_minute_is_sixty_seconds(value: Any, short: bool) -> None:
    """Seconds may have a fraction and may be text; what cannot be read counts as short."""
    assert (seconds(value) < 60) is short
    assert ExportRow.parse(row(seconds_downloaded=value)).short is short


def test_absent_seconds_are_short() -> None:
    """A missing field does not count as a minute."""
    assert ExportRow.parse(row(seconds_downloaded=ABSENT)).short


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (" a ", " a "), (7, "7"), (0, "0"), (2**64 - 1, str(2**64 - 1)), (float(2**64), ""), (7.0, ""),
     (True, ""), (None, ""), ("", ""), (" \t\u00a0\u2028", ""), ([], ""), ({}, ""), (["a"], "")],
)  # fmt: skip
def test_an_identifier_is_as_written(value: Any, text: str) -> None:
    """A string or an integer; every other type, and blanks, count as absent."""
    assert identifier(value) == text


# --- Rows -----------------------------------------------------------------------------------------------------------


def test_a_good_row_is_read_whole() -> None:
    """Every checked field has its type, and all fields are kept as received."""
    parsed = ExportRow.parse(row())
    assert (parsed.id, parsed.ip) == (GOOD["id"], GOOD["ip"])
    assert (parsed.podcast_id, parsed.episode_id) == (GOOD["podcast_id"], GOOD["episode_id"])
    assert (parsed.date, parsed.time) == ("2026-11-20", "15:19:12")
    assert (parsed.filesize, parsed.bytes_sent) == (67332401, 67332401)
    assert not (parsed.blacklisted_ip or parsed.blacklisted_ua or parsed.short)
    assert parsed.fields == GOOD
    assert parsed.reporting


@pytest.mark.parametrize(
    ("change", "reporting"),
    [
        ({}, True),
        ({"seconds_downloaded": 60}, True),
        ({"seconds_downloaded": 59.99}, False),
        ({"blacklisted_ip": True}, False),
        ({"blacklisted_ua": True}, False),
        ({"blacklisted_ip": "true"}, False),
        ({"blacklisted_ip": "false", "blacklisted_ua": "false"}, True),
        ({"blacklisted_ip": None, "blacklisted_ua": ABSENT}, True),
    ],
)
def test_megaphones_own_rule(change: dict[str, Any], reporting: bool) -> None:
    """``seconds_downloaded >= 60 and blacklisted_ip = false and blacklisted_ua = false``."""
    assert ExportRow.parse(row(**change)).reporting is reporting


REASONS: list[tuple[bytes, str]] = [
    (b"{", "malformed_json"),
    (b"", "malformed_json"),
    (b"\xff", "malformed_json"),
    (b'{"id": "\xc3"}', "malformed_json"),
    (b'{"id": "\xed\xa0\x80"}', "malformed_json"),
    (b'{"id": "\\ud800"}', "no_id"),
    (b'{"id": "a\x01"}', "malformed_json"),
    (b'{"id": NaN}', "malformed_json"),
    (b'{"id": 1e999}', "malformed_json"),
    (b"\xef\xbb\xbf" + row(), "malformed_json"),
    (row() + b",", "malformed_json"),
    (row() + b" x", "malformed_json"),
    (b"[" * 100_000, "malformed_json"),
    (b"[]", "not_an_object"),
    (b"null", "not_an_object"),
    (b'"text"', "not_an_object"),
    (b"12", "not_an_object"),
    (b"[" + row() + b"]", "not_an_object"),
    (b"{}", "no_id"),
    *((row(id=value), "no_id") for value in (ABSENT, None, "", "  ", "\u2003", True, 1.5, 1.0, [], {"a": 1})),
    (row().replace(b'"e3b0c442-98fc-4c14-9afb-f4c8996fb924"', b"18446744073709551616"), "no_id"),
    *((row(created_at=value), "bad_created_at") for value in (ABSENT, None, "", "yesterday", 1763651952)),
    *((row(ip=value), "no_ip") for value in (ABSENT, None, "", " \t ", False, 1.0, [], {})),
    *((row(podcast_id=value, episode_id=other), "no_episode") for value in (ABSENT, None, " ", True)
      for other in (ABSENT, "", 1.5, [])),
    *((row(filesize=value), "bad_filesize") for value in (ABSENT, None, -1, 0, "0", 0.0, 1.5, "big", True, 2**63, [])),
    *((row(bytes_sent=value), "bad_bytes_sent") for value in (ABSENT, None, -1, 1.5, "", "x", False, 2**63, {})),
    (row(episode_id="x" * 2049), "url_too_long"),
    (row(bytes_sent=0), "no_bytes"),
    (row(bytes_sent="0"), "no_bytes"),
    (row(id=17, ip=16909060, podcast_id=0, episode_id=ABSENT, filesize="10", bytes_sent=9.0), "line"),
    (b" \t" + row() + b" \r", "line"),
    (row(podcast_id=ABSENT), "line"),
    (row(episode_id=None), "line"),
    (row(unknown={"a": [1]}), "line"),
    (row(source=None, country=ABSENT, duration="long", user_agent=None, normalized_user_agent=[]), "line"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), REASONS, ids=lambda value: str(value)[:60])
def test_a_row_comes_to_a_line_or_to_its_reason(raw: bytes, expected: str) -> None:
    """Each rejection reason, by everything that leads to it."""
    assert result(raw) == expected


# One defect for each reason, in the order in which the reasons are looked for.
DEFECTS: list[tuple[str, dict[str, Any]]] = [
    ("no_id", {"id": None}),
    ("bad_created_at", {"created_at": "x"}),
    ("no_ip", {"ip": ""}),
    ("no_episode", {"podcast_id": None, "episode_id": None}),
    ("bad_filesize", {"filesize": 0}),
    ("bad_bytes_sent", {"bytes_sent": -1}),
    ("url_too_long", {"podcast_id": "x" * 2100}),
    ("no_bytes", {"bytes_sent": 0}),
    ("blacklisted_ip", {"blacklisted_ip": True}),
    ("blacklisted_ua", {"blacklisted_ua": True}),
    ("short", {"seconds_downloaded": 1}),
]


# The same of the Delivery export V2, where a row with an id and with sizes is judged by them as ever.
DEFECTS_V2: list[tuple[str, dict[str, Any]]] = [
    ("no_id", {"id": 1.5}),
    ("bad_created_at", {"created_at": "x"}),
    ("no_ip", {"ip": ""}),
    ("no_episode", {"podcast_id": None, "episode_id": None}),
    ("bad_delivery_type", {"delivery_type": "stream"}),
    ("bad_filesize", {"filesize": 0}),
    ("bad_bytes_sent", {"bytes_sent": -1}),
    ("url_too_long", {"podcast_id": "x" * 2100}),
    ("play", {"delivery_type": "play"}),
    ("no_bytes", {"bytes_sent": 0}),
    ("blacklisted_ip", {"blacklisted_ip": True}),
    ("blacklisted_ua", {"blacklisted_ua": "true"}),
    ("short", {"seconds_downloaded": 1}),
]


def test_the_other_kind_counts_a_row_under_the_first_reason_too() -> None:
    """Every pair of defects, in a row with all fields of both kinds."""
    for first, (reason, change) in enumerate(DEFECTS_V2):
        for _, other in DEFECTS_V2[first:]:
            later = {key: value for key, value in other.items() if key not in change}
            raw = row(**({"delivery_type": "download"} | later | change))
            assert result(raw, rules(kind="delivery-v2", rows="reporting")) == reason


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "line"),
        ({"id": "x"}, "line"),
        ({"id": None}, "line"),
        ({"id": ""}, "no_id"),
        ({"id": []}, "no_id"),
        ({"delivery_type": ABSENT}, "bad_delivery_type"),
        ({"delivery_type": None}, "bad_delivery_type"),
        ({"delivery_type": "Download"}, "bad_delivery_type"),
        ({"delivery_type": ["download"]}, "bad_delivery_type"),
        ({"delivery_type": "play"}, "play"),
        ({"delivery_type": "play", "blacklisted_ip": True}, "play"),
        ({"media_type": "video"}, "line"),
        ({"filesize": None, "bytes_sent": None}, "line"),
        ({"filesize": 5}, "bad_bytes_sent"),
        ({"bytes_sent": 5}, "bad_filesize"),
        ({"filesize": 5, "bytes_sent": 0}, "no_bytes"),
        ({"seconds_downloaded": 59}, "short"),
        ({"seconds_downloaded": "x"}, "short"),
        ({"user_agent": ABSENT, "episode_id": ABSENT}, "line"),
    ],
)
def test_a_row_of_the_other_kind_needs_what_is_known_of_it(change: dict[str, Any], expected: str) -> None:
    """No id, no bytes and no seconds are no fault; a delivery that is neither download nor play is one."""
    assert result(row_v2(**change), rules(kind="delivery-v2", rows="reporting")) == expected
    reporting = ExportRow.parse(row_v2(**change), DELIVERY_V2).reporting if expected in ("line", "play") else None
    assert reporting is {"line": True, "play": False}.get(expected)


@pytest.mark.parametrize("first", range(len(DEFECTS)), ids=lambda i: DEFECTS[i][0])
@pytest.mark.parametrize("second", range(len(DEFECTS)), ids=lambda i: DEFECTS[i][0])
def test_a_row_is_counted_under_the_first_reason_that_applies(first: int, second: int) -> None:
    """With two defects the earlier reason counts, whichever two they are."""
    reason, change = DEFECTS[min(first, second)]
    later = {key: value for key, value in DEFECTS[max(first, second)][1].items() if key not in change}
    assert result(row(**later, **change), rules(rows="reporting")) == reason


def test_the_reasons_stand_in_the_order_of_the_books() -> None:
    """The order of the rejection reasons is the contract's."""
    assert [str(reason) for reason in RejectReason] == [
        "malformed_json", "not_an_object", "no_id", "bad_created_at", "no_ip", "no_episode", "bad_delivery_type",
        "bad_filesize", "bad_bytes_sent", "url_too_long", "duplicate_id",
    ]  # fmt: skip
    named = [str(reason) for reason in RejectReason if reason is not RejectReason.BAD_DELIVERY_TYPE]
    assert [name for name, _ in DEFECTS[:7]] == named[2:9]
    assert [name for name, _ in DEFECTS_V2[:7]] == [str(reason) for reason in RejectReason][2:9]


def test_a_rejection_says_why() -> None:
    """The reason is data, not a sentence to be parsed."""
    with pytest.raises(RowRejected) as caught:
        ExportRow.parse(b"[]")
    assert caught.value.reason is RejectReason.NOT_AN_OBJECT
