"""One export row, one log line: the rule of every column and of every filter.

No outside world.
"""

from __future__ import annotations

import json
import unicodedata
from datetime import date
from typing import Any
from urllib.parse import unquote

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.convert.conversion import Conversion
from server.convert.row import RowConverter, keyed_hash
from server.convert.tally import FilterReason, RejectReason, RowRejected, Tally
from server.episodes.catalogue import Catalogue, Episode
from server.megaphone.exports import EXPORT_FIELDS, KINDS
from server.triton import ColumnSpec, Layout, LogFormat, LogRules

from ..support.layouts import layouts
from ..support.rows import ABSENT, GOOD, KEY, V2, cells, converted, result, row, row_v2, rules

DAY = date(2026, 11, 20)


def test_a_good_row_is_this_line() -> None:
    """The whole default line, cell by cell."""
    assert cells(row()) == {
        "date": "2026-11-20",
        "start-time": "15:19:12",
        "IP": "203.0.113.77",
        "Hashed-IP": "-",
        "method": "GET",
        "url": "/7a1e6f0e-0000-11ec-8000-0123456789ab/9b2f7c1a-0000-11ec-9000-0123456789ab.mp3",
        "status": "200",
        "bytes": "67332401",
        "object-size": "67332401",
        "byte-range": "-",
        "episode-guid": "9b2f7c1a-0000-11ec-9000-0123456789ab",
        "podcast-id": "7a1e6f0e-0000-11ec-8000-0123456789ab",
        "x-metric-id": "e3b0c442-98fc-4c14-9afb-f4c8996fb924",
        "user-agent": "Podcasts/1745.3 CFNetwork/1494.0.7 Darwin/23.4.0",
    }


# (bytes_sent, filesize, partial_status, bytes) -> (status, bytes, object-size, byte-range, clamped)
BYTES = [
    ((100, 100, 206, "clamped"), ("200", "100", "100", "-", False)),
    ((99, 100, 206, "clamped"), ("206", "99", "100", "0-98", False)),
    ((1, 100, 206, "clamped"), ("206", "1", "100", "0-0", False)),
    ((101, 100, 206, "clamped"), ("200", "100", "100", "-", True)),
    ((149313406, 67332401, 206, "clamped"), ("200", "67332401", "67332401", "-", True)),
    ((149313406, 67332401, 206, "as-sent"), ("200", "149313406", "67332401", "-", False)),
    ((99, 100, 206, "as-sent"), ("206", "99", "100", "0-98", False)),
    ((99, 100, 200, "clamped"), ("200", "99", "100", "-", False)),
    ((101, 100, 200, "clamped"), ("200", "100", "100", "-", True)),
    ((101, 100, 200, "as-sent"), ("200", "101", "100", "-", False)),
    (("99", 100.0, 206, "clamped"), ("206", "99", "100", "0-98", False)),
    ((2**63 - 1, 2**63 - 1, 206, "clamped"), ("200", str(2**63 - 1), str(2**63 - 1), "-", False)),
    (("007", "0010", 206, "clamped"), ("206", "7", "10", "0-6", False)),
]


@pytest.mark.parametrize(("given_", "expected"), BYTES)
def test_status_bytes_and_range_follow_from_two_numbers(
    given_: tuple[Any, Any, int, str], expected: tuple[str, str, str, str, bool]
) -> None:
    """A whole file is 200 and no range; a part is 206 from its first byte, unless 200 was agreed; more is cut."""
    sent, size, partial_status, setting = given_
    raw = row(bytes_sent=sent, filesize=size)
    chosen = rules(partial_status=partial_status, bytes=setting)
    line = cells(raw, chosen)
    found = (line["status"], line["bytes"], line["object-size"], line["byte-range"], converted(raw, chosen).clamped)
    assert found == expected


@pytest.mark.parametrize(
    ("created_at", "day", "time", "outside"),
    [
        ("2026-11-20T00:00:00Z", "2026-11-20", "00:00:00", False),
        ("2026-11-20T23:59:59.999Z", "2026-11-20", "23:59:59", False),
        ("2026-11-20 07:08:09", "2026-11-20", "07:08:09", False),
        ("2026-11-21T00:00:00Z", "2026-11-21", "00:00:00", True),
        ("2026-11-19T23:59:59Z", "2026-11-19", "23:59:59", True),
        ("1999-01-01T00:00:00Z", "1999-01-01", "00:00:00", True),
    ],
)
def test_a_row_from_outside_the_day_is_kept_and_counted(created_at: str, day: str, time: str, outside: bool) -> None:
    """date and start-time are created_at, the fraction cut off; a file without a day has nothing outside it."""
    raw = row(created_at=created_at)
    line = cells(raw, day=DAY)
    assert (line["date"], line["start-time"]) == (day, time)
    assert converted(raw, day=DAY).outside_day is outside
    assert not converted(raw).outside_day
    assert converted(raw).created_at == f"{day} {time}"


@pytest.mark.parametrize("user_agent", [None, ABSENT, "", "  ", "\t\u2028", [], {"a": "b"}])
def test_a_row_without_a_user_agent_has_a_dash(user_agent: Any) -> None:
    """Null, absent, empty, blank, or no text at all."""
    assert cells(row(user_agent=user_agent))["user-agent"] == "-"


@pytest.mark.parametrize(("value", "text"), [(5, "5"), (1.5, "1.5"), (True, "true")])
def test_a_number_or_boolean_is_its_json_text(value: Any, text: str) -> None:
    """Where a text was expected."""
    assert cells(row(user_agent=value))["user-agent"] == text


def test_podcast_or_episode_alone_will_do() -> None:
    """The missing one of the two is ``-`` wherever it is."""
    line = cells(row(podcast_id=ABSENT))
    assert (line["podcast-id"], line["url"]) == ("-", f"/-/{GOOD['episode_id']}.mp3")
    line = cells(row(episode_id=" "))
    assert (line["episode-guid"], line["url"]) == ("-", f"/{GOOD['podcast_id']}/-.mp3")
    line = cells(row(episode_id=["x"], podcast_id=12))
    assert (line["episode-guid"], line["podcast-id"], line["url"]) == ("-", "12", "/12/-.mp3")


# (change) -> what becomes of it under "not-blacklisted", "all", "reporting", and Megaphone's own count
FILTERS: list[tuple[dict[str, Any], tuple[str, str, str], bool]] = [
    ({}, ("line", "line", "line"), True),
    ({"bytes_sent": 0}, ("no_bytes", "no_bytes", "no_bytes"), True),
    ({"blacklisted_ip": True}, ("blacklisted_ip", "line", "blacklisted_ip"), False),
    ({"blacklisted_ua": True}, ("blacklisted_ua", "line", "blacklisted_ua"), False),
    ({"blacklisted_ua": "true"}, ("blacklisted_ua", "line", "blacklisted_ua"), False),
    ({"blacklisted_ip": "yes", "blacklisted_ua": 1}, ("line", "line", "line"), True),
    ({"blacklisted_ip": True, "blacklisted_ua": True}, ("blacklisted_ip", "line", "blacklisted_ip"), False),
    ({"seconds_downloaded": 59.9}, ("line", "line", "short"), False),
    ({"seconds_downloaded": 60}, ("line", "line", "line"), True),
    ({"seconds_downloaded": ABSENT}, ("line", "line", "short"), False),
    ({"seconds_downloaded": "?"}, ("line", "line", "short"), False),
    ({"seconds_downloaded": 5, "blacklisted_ua": True}, ("blacklisted_ua", "line", "blacklisted_ua"), False),
    ({"bytes_sent": 0, "blacklisted_ip": True, "seconds_downloaded": 0}, ("no_bytes",) * 3, False),
]


@pytest.mark.parametrize(("change", "expected", "reporting"), FILTERS)
def test_a_row_is_left_out_as_the_rows_setting_says(
    change: dict[str, Any], expected: tuple[str, str, str], reporting: bool
) -> None:
    """Nothing transferred is never sent; blacklists and the minute as agreed; Megaphone's count regardless of all."""
    found = tuple(result(row(**change), rules(rows=setting)) for setting in ("not-blacklisted", "all", "reporting"))
    assert found == expected
    for setting in ("not-blacklisted", "all", "reporting"):
        outcome = converted(row(**change), rules(rows=setting))
        assert outcome.reporting is reporting
        assert (outcome.line == "") is (outcome.filtered is not None)


# JSON text of some fields -> cells of the line, or the reason why there is none. Each was seen, or is near to one.
SEEN: list[tuple[dict[str, str], dict[str, str] | str]] = [
    ({"ip": '"203.0.113.9:5678"'}, {"IP": "203.0.113.9", "Hashed-IP": "-"}),
    ({"ip": '"[2001:DB8::1]:443"'}, {"IP": "2001:db8::1", "Hashed-IP": "-"}),
    ({"ip": '"198.51.100.7, 203.0.113.2"'}, {"IP": "198.51.100.7", "Hashed-IP": "-"}),
    ({"ip": '"198.51.100.7, token"'}, {"IP": "-"}),
    ({"ip": r'"\ud83d"'}, {"IP": "-", "Hashed-IP": keyed_hash("\ufffd", KEY)}),
    ({"created_at": '"2026-11-20T10:00:00z"'}, {"date": "2026-11-20", "start-time": "10:00:00"}),
    ({"created_at": '"2026-11-20 10:00:00 UTC"'}, {"date": "2026-11-20", "start-time": "10:00:00"}),
    ({"created_at": '"2026-11-20 10:00:00.25 +0000"'}, {"date": "2026-11-20", "start-time": "10:00:00"}),
    ({"created_at": '"2026-11-20T10:00:00-00:00"'}, {"date": "2026-11-20", "start-time": "10:00:00"}),
    ({"created_at": '"2026-11-21T01:30:00+0200"'}, {"date": "2026-11-20", "start-time": "23:30:00"}),
    ({"created_at": '"2026-12-31T23:59:59.999-00:30"'}, {"date": "2027-01-01", "start-time": "00:29:59"}),
    ({"created_at": '"0001-01-02T00:30:00+01:00"'}, {"date": "0001-01-01", "start-time": "23:30:00"}),
    ({"created_at": '"0001-01-01T00:30:00+01:00"'}, "bad_created_at"),
    ({"created_at": '"9999-12-31T23:30:00-01:00"'}, "bad_created_at"),
    ({"created_at": '"2026-11-20T10:00:00+24:00"'}, "bad_created_at"),
    ({"created_at": '"2026-11-20T10:00:00+02:60"'}, "bad_created_at"),
    ({"created_at": '"2026-11-20T10:00:00 CET"'}, "bad_created_at"),
    ({"created_at": '"2026-11-20T10:00:00+02"'}, "bad_created_at"),
    ({"user_agent": r'"cut \ud83d"'}, {"user-agent": "cut \ufffd"}),
    ({"user_agent": r'"\uDE00 \ud83d\ud83d\ude00 \\ud83d"'}, {"user-agent": "\ufffd \ufffd\U0001f600 %5Cud83d"}),
    ({"city": r'"\udc00"', "region": r'{"\ud800": ["\udfff"]}'}, {"IP": GOOD["ip"]}),
    ({"id": r'"a\ud800"'}, "no_id"),
    ({"id": '{"":' * 1020 + "0" + "}" * 1020, "city": r'"\ud800"'}, "no_id"),
    ({"id": r'"a\ufffd"', "city": r'"\ud800"'}, {"x-metric-id": "a\ufffd"}),
    ({"podcast_id": "null", "episode_id": r'"\ud800"'}, "no_episode"),
    ({"podcast_id": '"p"', "episode_id": r'"e\ud800"'}, {"podcast-id": "p", "episode-guid": "-", "url": "/p/-.mp3"}),
    ({"podcast_id": r'"\udc00"', "episode_id": '"e"'}, {"podcast-id": "-", "episode-guid": "e", "url": "/-/e.mp3"}),
    ({"user_agent": r'"\ud83d'}, "malformed_json"),
    ({"user_agent": r'"\ud83"'}, "malformed_json"),
]


def row_of(texts: dict[str, str]) -> bytes:
    """The good row, with some fields as they are in an export."""
    raw = row(**{name: f"@{name}@" for name in texts})
    for name, text in texts.items():
        raw = raw.replace(f'"@{name}@"'.encode(), text.encode())
    return raw


@pytest.mark.parametrize(("texts", "wanted"), SEEN)
def test_what_exports_really_hold_is_read_as_it_is_meant(texts: dict[str, str], wanted: dict[str, str] | str) -> None:
    """Ports and lists, spellings of UTC, other time zones, halves of an emoji."""
    raw = row_of(texts)
    if isinstance(wanted, str):
        assert result(raw) == wanted
    else:
        assert cells(raw).items() >= wanted.items()


def test_bytes_that_only_look_like_half_a_character_are_not_json() -> None:
    """A surrogate that is not escaped is not UTF-8; and an array is not a row, with a half in it or without."""
    assert result(row().replace(b"Podcasts", b"\xed\xa0\x80")) == "malformed_json"
    assert result(rb'["\ud800"]') == "not_an_object"


def test_an_id_that_was_cut_is_not_an_absent_one() -> None:
    """Where a row may have none, too."""
    raw = row_v2(id="@")
    assert [result(raw.replace(b"@", end), V2) for end in (rb"a\ud800", rb"a\ufffd")] == ["no_id", "line"]


COUNTED = [
    ({"ip": "1.2.3.4:80"}, True),
    ({"ip": "1.2.3.4"}, False),
    ({"ip": "token, token"}, False),
    ({"ip": "1.2.3.4,::1", "bytes_sent": 1}, True),
]


@pytest.mark.parametrize(("change", "readdressed"), COUNTED)
def test_an_address_that_was_looked_for_is_told(change: dict[str, Any], readdressed: bool) -> None:
    """It is counted beside its line."""
    assert converted(row(**change)).readdressed is readdressed


ID_LAYOUTS = [
    Layout(),
    Layout(text="percent"),
    Layout(LogFormat.W3C),
    Layout(columns=(ColumnSpec("id", value="x-metric-id"), ColumnSpec("day", value="date"))),
]


@pytest.mark.parametrize(
    ("row_id", "cell", "w3c"),
    [
        ("e3b0c442-98fc-4c14-9afb-f4c8996fb924", "e3b0c442-98fc-4c14-9afb-f4c8996fb924", None),
        ("A1-b_c.d~e:f/g?h=i&j+k,l;m", "A1-b_c.d~e:f/g?h=i&j+k,l;m", None),
        ("ümlaut", "ümlaut", None),
        ("-", "-", None),
        ("a b", "a b", "a%20b"),
        ("a\u00a0b", "a\u00a0b", "a%C2%A0b"),
        (' a"b%\\ ', "%20a%22b%25%5C%20", None),
        ("\ta\x00b\u2028", "%09a%00b%E2%80%A8", None),
        ("\x00", "%00", None),
        ("\x85\x7f", "%C2%85%7F", None),
        ("\u3000x", "%E3%80%80x", None),
        ("a%22b", "a%2522b", None),
    ],
)
def test_an_id_is_recognised_by_its_cell(row_id: str, cell: str, w3c: str | None) -> None:
    """What other texts lose is percent-encoded in it, and so is the percent sign."""
    assert cells(row(id=row_id))["x-metric-id"] == cell
    assert cells(row(id=row_id), rules(Layout(LogFormat.W3C)))["x-metric-id"] == (w3c or cell)


@pytest.mark.parametrize("layout", ID_LAYOUTS)
@given(st.text(st.sampled_from('a \t\x00\x85\u2028\u00a0"\\%2509#-') | st.characters(exclude_categories=["Cs"])))
def test_the_cell_of_an_id_says_which_id_it_was(layout: Layout, row_id: str) -> None:
    """Two ids never have one cell: it can be read back."""
    if row_id.strip():
        cell = cells(row(id=row_id), rules(layout))[layout.specs[layout.id_column()].name]
        assert unquote(cell, errors="strict") == row_id
        assert layout.id_cell(row_id) == cell


def test_unknown_fields_change_nothing() -> None:
    """Megaphone may add fields."""
    assert converted(row(new={"deep": [1, 2]}, other="x")).line == converted(row()).line


def test_a_repeated_conversion_gives_the_same_line() -> None:
    """Nothing of a row is remembered for the next."""
    converter = RowConverter(Conversion(LogRules(), KEY))
    first = converter.convert(row())
    converter.convert(row(id="other", ip="2001:db8::1", podcast_id=None))
    assert converter.convert(row()) == first


@pytest.mark.parametrize(
    ("change", "object_size", "expected"),
    [
        ({}, "export", ("200", "-", "-", "-")),
        ({}, "rss", ("200", "-", "4711", "-")),
        ({"episode_id": "unknown"}, "rss", ("200", "-", "-", "-")),
        ({"filesize": 1000, "bytes_sent": 250}, "rss", ("206", "250", "1000", "0-249")),
        ({"filesize": 1000, "bytes_sent": 2000}, "export", ("200", "1000", "1000", "-")),
    ],
)
def test_a_row_without_sizes_has_dashes_or_the_feeds_size(
    change: dict[str, Any], object_size: str, expected: tuple[str, ...]
) -> None:
    """Of the Delivery export V2; how much was sent is not made up, and a row's own sizes come first."""
    line = cells(row_v2(**change), rules(kind="delivery-v2", object_size=object_size), catalogue=CATALOGUES[3])
    assert tuple(line[name] for name in ("status", "bytes", "object-size", "byte-range")) == expected


# --- Anything at all ------------------------------------------------------------------------------------------------

json_texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('\t\r\n\x00\x85\u2028\u2029"\\%#?{}- '), max_size=20
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | json_texts | st.sampled_from(["0", "12", "true", "false", "1.5", "203.0.113.9", "2001:db8::9", " "]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(json_texts, inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
changes = st.dictionaries(st.sampled_from(EXPORT_FIELDS), json_values | st.just(ABSENT), max_size=6)
all_rules = st.builds(
    LogRules,
    layout=layouts,
    rows=st.sampled_from(["not-blacklisted", "all", "reporting"]),
    ip=st.sampled_from(["full", "truncated"]),
    partial_status=st.sampled_from([206, 200]),
    bytes=st.sampled_from(["clamped", "as-sent"]),
    url=st.sampled_from(["/{podcast_id}/{episode_id}.mp3", "/{guid}?a={user_agent}&b={ip}", "\t{city}{region}\u2028"]),
    kind=st.sampled_from(sorted(KINDS)),
    object_size=st.sampled_from(["export", "rss"]),
    id_key=st.sampled_from(["", "0123456789abcdef"]),
)
CATALOGUES = (
    None,
    Catalogue({}),
    Catalogue({GOOD["episode_id"]: Episode("a\tb\u2028", "/x?y=%C2%A0")}),
    Catalogue({GOOD["episode_id"]: Episode("g", "", "ABC1", "https://x.example/ABC1.mp3", "4711")}),
)


def is_clean(line: str) -> bool:
    """Whether the line holds no control character beyond its tabs, and can be written."""
    line.encode()
    return not any(
        (unicodedata.category(character) == "Cc" and character != "\t") or character in "\u2028\u2029"
        for character in line
    )


@settings(max_examples=150)
@given(changes, all_rules, st.sampled_from(CATALOGUES))
@example({"id": "\t#\n"}, LogRules(Layout(columns=(ColumnSpec("x", value="x-metric-id"),))), None)
def test_any_value_in_any_field_gives_a_clean_line_or_a_reason(
    change: dict[str, Any], chosen: LogRules, catalogue: Catalogue | None
) -> None:
    """Exactly the right number of cells, none empty, no control character, no comment; or a named reason."""
    raw = row(**({"delivery_type": "download"} | change))
    width = len(chosen.layout.specs)
    tally = Tally(rows=1)
    try:
        outcome = converted(raw, chosen, catalogue=catalogue, day=DAY)
    except RowRejected as rejected:
        tally.rejected[rejected.reason] += 1
    else:
        if outcome.filtered is not None:
            assert outcome.filtered in set(FilterReason)
            tally.filtered[outcome.filtered] += 1
        else:
            parts = outcome.line.split("\t")
            assert len(parts) == width
            assert all(parts)
            assert is_clean(outcome.line)
            assert not outcome.line.startswith("#")
            if chosen.layout.format is LogFormat.W3C or chosen.layout.text == "percent":
                assert not any(character.isspace() for part in parts for character in part)
                assert '"' not in outcome.line
            tally.lines += 1
    assert tally.balanced
    assert set(tally.rejected) <= set(RejectReason)


@settings(max_examples=100)
@given(st.binary(max_size=60) | json_values.map(orjson.dumps))
def test_any_bytes_give_a_line_or_a_reason(raw: bytes) -> None:
    """No line of an export, whatever is in it, raises anything but its rejection."""
    assert result(raw) in {"line", *map(str, FilterReason), *map(str, RejectReason)}


@settings(max_examples=50)
@given(all_rules)
def test_rules_come_back_from_the_ledger_as_they_went_in(chosen: LogRules) -> None:
    """Through JSON text, so that late rows are judged by the rules of the day's first."""
    assert LogRules.from_json(json.loads(json.dumps(chosen.as_json()))) == chosen


def test_the_rules_in_the_ledger_hold_no_secret() -> None:
    """The key of the hashes is not part of them."""
    assert set(LogRules().as_json()) == {"layout", "rows", "ip", "partial_status", "bytes", "url"}
