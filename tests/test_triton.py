"""Triton's words: log names, columns, layouts, and the text that a log line may contain.

No outside world.
"""

from __future__ import annotations

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.triton import (
    ColumnSpec,
    DerivedValue,
    Layout,
    LogFormat,
    LogName,
    layout_problems,
    layouts_by_header,
    prefix_problem,
)

from .support.layouts import layouts
from .support.rows import GOOD, cells, converted, row, rules

DAY = date(2026, 11, 20)
W3C = Layout(LogFormat.W3C)
METRIC_ID = ColumnSpec("x-metric-id", value="x-metric-id")


# --- Names ----------------------------------------------------------------------------------------------------------

prefixes = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", fullmatch=True)
names = st.builds(
    LogName,
    prefixes,
    st.dates(date(1970, 1, 1), date(8999, 12, 31)),
    st.integers(0, 999_999_999),
    st.sampled_from(LogFormat),
)


@given(names)
def test_every_name_is_read_as_it_was_written(name: LogName) -> None:
    """Whatever the prefix (digits at its end too), the day and the number."""
    assert LogName.parse(str(name)) == name
    assert prefix_problem(name.prefix) == ""


@given(st.text(alphabet="MA09-_.tsvw3cgz2026110/\\\n\u0661 ", max_size=40))
def test_what_is_read_is_written_back_the_same(text: str) -> None:
    """No two texts are one name: whatever parses is spelt exactly so."""
    name = LogName.parse(text)
    assert name is None or str(name) == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MEGA20261120-00.tsv.gz", LogName("MEGA", DAY, 0, LogFormat.TSV)),
        ("MEGA20261120-07.w3c.gz", LogName("MEGA", DAY, 7, LogFormat.W3C)),
        ("MEGA20261120-100.tsv.gz", LogName("MEGA", DAY, 100, LogFormat.TSV)),
        ("a-b_c-20261120-00.tsv.gz", LogName("a-b_c-", DAY, 0, LogFormat.TSV)),
        ("20261120-0020261120-00.tsv.gz", LogName("20261120-00", DAY, 0, LogFormat.TSV)),
        ("120261120-00.tsv.gz", LogName("1", DAY, 0, LogFormat.TSV)),
    ],
)
def test_a_log_name_is_prefix_day_and_number(text: str, name: LogName) -> None:
    """Two digits or more, from 00."""
    assert LogName.parse(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "MEGA", "20261120-00.tsv.gz", "MEGA20261120-0.tsv.gz", "MEGA20261120-000.tsv.gz", "MEGA20261120-007.tsv.gz",
        "MEGA20261120.tsv.gz", "MEGA20261120-00.tsv", "MEGA20261120-00.csv.gz", "MEGA20261120-00.TSV.gz",
        "MEGA20261120-00.tsv.gz\n", " MEGA20261120-00.tsv.gz", "/MEGA20261120-00.tsv.gz", "../MEGA20261120-00.tsv.gz",
        "MEGA20261320-00.tsv.gz", "MEGA20260230-00.tsv.gz", "MEGA00001120-00.tsv.gz", "MEGA99991231-00.tsv.gz",
        "MEGA00010101-00.tsv.gz", "MEGA2026112-00.tsv.gz",
        "MEGA20261120--1.tsv.gz", "MEGA20261120-\u0660\u0660.tsv.gz", "MEGA\u0662\u06600261120-00.tsv.gz",
        "-MEGA20261120-00.tsv.gz", "ME.GA20261120-00.tsv.gz", "ME GA20261120-00.tsv.gz", "MEGÄ20261120-00.tsv.gz",
        "MEGA\x0020261120-00.tsv.gz", "MEGA20261120-00.tsv.gz.gz", "MEGA20261120-00xtsvxgz",
        "MEGA20261120-1000000000.tsv.gz", "a" * 65 + "20261120-00.tsv.gz",
    ],
)  # fmt: skip
def test_everything_else_is_no_log_name(text: str) -> None:
    """Paths, other spellings of a number, impossible days, other scripts' digits, line ends."""
    assert LogName.parse(text) is None


def test_names_sort_by_day_and_number() -> None:
    """In one delivery, the order of names is the order of publication, past a hundred files too."""
    days = [(date(2026, 1, 31), 5), (date(2026, 2, 1), 99), (date(2026, 2, 1), 100)]
    in_order = [LogName("M", day, number, LogFormat.TSV) for day, number in days]
    assert sorted([in_order[2], in_order[0], in_order[1]]) == in_order


def test_rejects_are_named_after_their_log() -> None:
    """The name of the first log without ``.gz``, then ``.rejects.ndjson.gz``."""
    assert LogName("MEGA", DAY, 1, LogFormat.TSV).rejects == "MEGA20261120-01.tsv.rejects.ndjson.gz"


# --- Columns and headers --------------------------------------------------------------------------------------------

TSV_COLUMNS = [
    "date", "start-time", "IP", "Hashed-IP", "method", "url", "status", "bytes", "object-size", "byte-range",
    "episode-guid", "podcast-id", "x-metric-id", "user-agent",
]  # fmt: skip
W3C_COLUMNS = [
    "date", "time", "c-ip", "x-hashed-ip", "cs-method", "cs-uri-stem", "cs-uri-query", "sc-status", "sc-bytes",
    "x-object-size", "x-byte-range", "x-episode-guid", "x-podcast-id", "x-metric-id", "cs(User-Agent)",
]  # fmt: skip
TSV_NAMES = "\t".join(TSV_COLUMNS)


@pytest.mark.parametrize(
    ("header", "first"), [("plain", f"{TSV_NAMES}\n"), ("comment", f"#{TSV_NAMES}\n"), ("none", "")]
)
def test_a_tsv_header_is_plain_a_comment_or_none(header: str, first: str) -> None:
    """The fourteen names, tab-separated, in the contract's order."""
    assert Layout(header=header).header_lines(DAY) == first


@pytest.mark.parametrize("header", ["plain", "comment", "none"])
def test_a_w3c_header_is_its_directives_whatever_the_header_setting(header: str) -> None:
    """All four before the first entry; without a day there is no Start-Date."""
    layout = Layout(LogFormat.W3C, header)
    fields = " ".join(W3C_COLUMNS)
    assert layout.header_lines(DAY) == (
        f"#Version: 1.0\n#Software: pickup-point\n#Start-Date: 2026-11-20 00:00:00\n#Fields: {fields}\n"
    )
    assert layout.header_lines(None) == f"#Version: 1.0\n#Software: pickup-point\n#Fields: {fields}\n"


CUSTOM = (
    ColumnSpec("day", value="date"),
    ColumnSpec("ps", field="normalized_user_agent"),
    ColumnSpec("dist", constant='Publisher\t"B"'),
    ColumnSpec("key", value="x-metric-id"),
    ColumnSpec("seconds", field="duration"),
    ColumnSpec("bot", field="blacklisted_ua"),
    ColumnSpec("who", field="user_agent"),
    ColumnSpec("empty", constant=" "),
    ColumnSpec("link", value="url"),
)


def test_columns_are_values_fields_and_constants_in_the_order_given() -> None:
    """Each by its own name; text is cleaned wherever it comes from."""
    layout = Layout(columns=CUSTOM)
    assert layout.header_lines(DAY) == "day\tps\tdist\tkey\tseconds\tbot\twho\tempty\tlink\n"
    assert converted(row(), rules(layout)).line.split("\t") == [
        "2026-11-20", "Apple Podcasts", "Publisher %22B%22", GOOD["id"], "1679.36", "false", GOOD["user_agent"], "-",
        f"/{GOOD['podcast_id']}/{GOOD['episode_id']}.mp3",
    ]  # fmt: skip


def test_configured_columns_keep_their_names_in_w3c() -> None:
    """The W3C names apply unless columns are given; only a column called cs-uri-stem gets its query beside it."""
    layout = Layout(LogFormat.W3C, columns=CUSTOM)
    assert layout.header_lines(None).endswith("#Fields: day ps dist key seconds bot who empty link\n")
    line = cells(row(), rules(layout, url="/a?b=1"))
    assert (line["ps"], line["dist"]) == ("Apple%20Podcasts", "Publisher%09%22B%22")
    assert line["link"] == "/a?b=1"
    stem = Layout(
        LogFormat.W3C, columns=(METRIC_ID, ColumnSpec("cs-uri-stem", value="url"), ColumnSpec("z", field="id"))
    )
    assert [spec.name for spec in stem.specs] == ["x-metric-id", "cs-uri-stem", "cs-uri-query", "z"]
    assert cells(row(), rules(stem, url="/a?b=1"))["cs-uri-query"] == "b=1"


def test_a_stem_in_a_tsv_is_a_whole_url() -> None:
    """The W3C format's rules for a name do not affect the tsv format."""
    layout = Layout(columns=(METRIC_ID, ColumnSpec("cs-uri-stem", value="url")))
    assert cells(row(), rules(layout, url="/a?b=1")) == {"x-metric-id": GOOD["id"], "cs-uri-stem": "/a?b=1"}


@pytest.mark.parametrize("layout", [Layout(), W3C, Layout(columns=CUSTOM), Layout(LogFormat.W3C, columns=CUSTOM)])
def test_the_place_of_the_metric_id_is_known(layout: Layout) -> None:
    """This cell distinguishes late rows from rows already sent."""
    outcome = converted(row(), rules(layout))
    assert outcome.line.split("\t")[layout.id_column()] == layout.id_cell(outcome.id) == GOOD["id"]


@pytest.mark.parametrize(
    ("url", "stem", "query"),
    [
        ("/a.mp3", "/a.mp3", "-"),
        ("/a.mp3?b=1&c=2", "/a.mp3", "b=1&c=2"),
        ("/a.mp3?b=?", "/a.mp3", "b=?"),
        ("/a.mp3?", "/a.mp3", "-"),
        ("?b", "-", "b"),
        ("https://example.com/a.mp3?b", "https://example.com/a.mp3", "b"),
    ],
)
def test_a_w3c_url_is_a_stem_and_a_query(url: str, stem: str, query: str) -> None:
    """cs-uri-query always follows cs-uri-stem, and is ``-`` where there is none."""
    line = cells(row(), rules(W3C, url=url))
    assert (line["cs-uri-stem"], line["cs-uri-query"]) == (stem, query)
    assert cells(row(), rules(url=url))["url"] == url


def test_no_line_looks_like_a_comment() -> None:
    """A first cell that begins with ``#`` would make the line one; it is percent-encoded there, and only there."""
    agent_first = Layout(columns=(ColumnSpec("ua", value="user-agent"), METRIC_ID))
    assert converted(row(user_agent="#a#"), rules(agent_first)).line == f"%23a#\t{GOOD['id']}"
    agent_last = Layout(columns=(METRIC_ID, ColumnSpec("ua", value="user-agent")))
    assert converted(row(user_agent="#a#"), rules(agent_last)).line == f"{GOOD['id']}\t#a#"


# What is wrong with columns: (columns, format, place, a word of what is wrong)
COLUMN_PROBLEMS: list[tuple[list[ColumnSpec], LogFormat, list[tuple[int | None, str]]]] = [
    ([METRIC_ID], LogFormat.TSV, []),
    ([ColumnSpec("any name ü", value="x-metric-id")], LogFormat.TSV, []),
    ([ColumnSpec("any name", value="x-metric-id")], LogFormat.W3C, [(0, "header line")]),
    ([ColumnSpec("a\u00a0b", value="x-metric-id")], LogFormat.W3C, [(0, "header line")]),
    ([], LogFormat.TSV, [(None, "no x-metric-id")]),
    ([ColumnSpec("x-metric-id", field="id")], LogFormat.TSV, [(None, "no x-metric-id")]),
    ([METRIC_ID, ColumnSpec("a")], LogFormat.TSV, [(1, "no source")]),
    ([METRIC_ID, ColumnSpec("a", value="date", field="id")], LogFormat.TSV, [(1, "value and field")]),
    ([METRIC_ID, ColumnSpec("a", value="Date")], LogFormat.TSV, [(1, 'value "Date"')]),
    ([METRIC_ID, ColumnSpec("a", value="cs-uri-query")], LogFormat.W3C, [(1, "cs-uri-query")]),
    ([METRIC_ID, ColumnSpec("a", field="guid")], LogFormat.TSV, [(1, 'field "guid"')]),
    ([METRIC_ID, METRIC_ID], LogFormat.TSV, [(1, "twice")]),
]


COLUMN_PROBLEMS.extend(
    ([ColumnSpec(bad, value="x-metric-id")], any_format, [(0, "header line")])
    for bad in ("", " ", "a\tb", "a\nb", "a\x85b", "a\u2028b", "a\u2029b", "a\x7f", "#a", "a\0")
    for any_format in LogFormat
)


@pytest.mark.parametrize(("specs", "log_format", "expected"), COLUMN_PROBLEMS)
def test_columns_that_cannot_be_are_reported(
    specs: list[ColumnSpec], log_format: LogFormat, expected: list[tuple[int | None, str]]
) -> None:
    """With their index, what is wrong, and a cure."""
    problems = layout_problems(specs, log_format)
    assert [place for place, _, _ in problems] == [place for place, _ in expected]
    assert all(word in wrong and cure for (_, wrong, cure), (_, word) in zip(problems, expected, strict=True))


def test_the_default_layouts_have_no_problem() -> None:
    """Written out as configured columns, both formats' own columns pass; no columns at all is the default."""
    assert layout_problems(None, LogFormat.TSV) == []
    for layout in (Layout(), W3C):
        own = [spec for spec in layout.specs if spec.value in list(DerivedValue)]
        assert layout_problems(own, layout.format) == []


NAMELESS = Layout(header="none")
TURNED = Layout(columns=tuple(ColumnSpec(spec.name, value=spec.value) for spec in reversed(Layout().specs)))


@pytest.mark.parametrize(("head", "configured", "found"), [
    (Layout().header_lines(DAY), Layout(), Layout()),
    (Layout().header_lines(DAY), NAMELESS, Layout()),
    (TURNED.header_lines(DAY), TURNED, TURNED),
    (TURNED.header_lines(DAY), Layout(), None),
    (TURNED.header_lines(DAY), NAMELESS, None),
    ("\t".join("-" * 14) + "\n", NAMELESS, None),
    ("", NAMELESS, NAMELESS),
    ("", Layout(), None),
])  # fmt: skip
def test_only_a_header_shows_the_layout_of_a_file(head: str, configured: Layout, found: Layout | None) -> None:
    """As many cells may be other columns; a file without a line has whatever layout is configured."""
    assert layouts_by_header(head, configured, LogName("MEGA", DAY, 0, LogFormat.TSV)) == found


@given(layouts)
def test_a_layout_comes_back_from_the_ledger_as_it_went_in(layout: Layout) -> None:
    """Through JSON text, so that a late file has the layout of the day's first."""
    assert Layout.from_json(json.loads(json.dumps(layout.as_json()))) == layout
