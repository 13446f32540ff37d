"""What a cell may contain: text made safe for a log line, and URLs.

No outside world.
"""

from __future__ import annotations

import tracemalloc
import unicodedata
from typing import Any
from urllib.parse import quote

import pytest

from server.megaphone.exports import METRICS
from server.triton import (
    URL_LIMIT,
    ColumnSpec,
    Layout,
    LogFormat,
    UrlTemplate,
    percent_id,
    percent_text,
    safe_text,
    url_text,
)

from .support.rows import cells, result, row, rules

METRIC_ID = ColumnSpec("x-metric-id", value="x-metric-id")
W3C = Layout(LogFormat.W3C)


# (value, the cell in safe text, the cell in percent text)
TEXTS: list[tuple[Any, str, str]] = [
    ("Podcasts/1.0 (x; y)", "Podcasts/1.0 (x; y)", "Podcasts/1.0%20(x;%20y)"),
    ('say "hi"', "say %22hi%22", "say%20%22hi%22"),
    ("a\\b", "a%5Cb", "a%5Cb"),
    ("100%", "100%", "100%25"),
    ("a%20b", "a%20b", "a%2520b"),
    ("a\tb\r\nc", "a b  c", "a%09b%0D%0Ac"),
    ("\x00\x1f\x7f|", "   |", "%00%1F%7F|"),
    ("\x80\x85\x9f|", "   |", "%C2%80%C2%85%C2%9F|"),
    ("\u2028\u2029|", "  |", "%E2%80%A8%E2%80%A9|"),
    ("a\u00a0b\u3000c", "a\u00a0b\u3000c", "a%C2%A0b%E3%80%80c"),
    (" a ", " a ", "%20a%20"),
    ("Müller 日本 😀", "Müller 日本 😀", "Müller%20日本%20😀"),
    ("\u200b\ufeff", "\u200b\ufeff", "\u200b\ufeff"),
    ("-", "-", "-"),
    ("#x", "#x", "#x"),
    ("", "-", "-"),
    (" \t\u2028\u00a0", "-", "-"),
    ("\x00\x01", "-", "-"),
    (None, "-", "-"),
    ([], "-", "-"),
    (["a"], "-", "-"),
    ({"a": 1}, "-", "-"),
    (0, "0", "0"),
    (-7, "-7", "-7"),
    (2**64 - 1, "18446744073709551615", "18446744073709551615"),
    (1679.36, "1679.36", "1679.36"),
    (True, "true", "true"),
    (False, "false", "false"),
]


@pytest.mark.parametrize(("value", "safe", "percent"), TEXTS)
def test_text_is_cleaned_one_for_one(value: Any, safe: str, percent: str) -> None:
    """The same cleaning for the user agent, the ids, a configured field; always percent-encoded in W3C."""
    assert (safe_text(value), percent_text(value)) == (safe, percent)
    columns = (METRIC_ID, ColumnSpec("user-agent", value="user-agent"), ColumnSpec("city", field="city"))
    for layout, expected in (
        (Layout(columns=columns), safe),
        (Layout(columns=columns, text="percent"), percent),
        (Layout(LogFormat.W3C, columns=columns), percent),
        (Layout(LogFormat.W3C, columns=columns, text="percent"), percent),
    ):
        line = cells(row(user_agent=value, city=value), rules(layout))
        assert (line["user-agent"], line["city"]) == (expected, expected)


def test_every_control_character_becomes_one_blank() -> None:
    """All of C0, DEL, C1 and the two Unicode line ends; nothing else changes but the quote and the backslash."""
    for code in [*range(0xD800), *range(0xE000, 0x11000)]:
        character = chr(code)
        control = unicodedata.category(character) == "Cc" or character in "\u2028\u2029"
        expected = " " if control else {'"': "%22", "\\": "%5C"}.get(character, character)
        assert safe_text(f"a{character}") == f"a{expected}"


def test_the_ids_are_cleaned_too() -> None:
    """A tab in an id does not make a column."""
    changes = {"id": "i\tj", "podcast_id": "p\nq", "episode_id": 'e"f'}
    line = cells(row(**changes))
    assert (line["x-metric-id"], line["podcast-id"], line["episode-guid"]) == ("i%09j", "p q", "e%22f")
    assert line["url"] == "/p%0Aq/e%22f.mp3"
    line = cells(row(**changes), rules(W3C))
    assert (line["x-metric-id"], line["x-podcast-id"], line["x-episode-guid"]) == ("i%09j", "p%0Aq", "e%22f")


# --- URLs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "change", "url"),
    [
        ("/{podcast_id}/{episode_id}.mp3", {"podcast_id": "p", "episode_id": "e"}, "/p/e.mp3"),
        ("/{podcast_id}/{episode_id}.mp3", {"podcast_id": "p", "episode_id": None}, "/p/-.mp3"),
        ("/{podcast_id}/{episode_id}.mp3", {"podcast_id": True, "episode_id": 7}, "/-/7.mp3"),
        ("/{podcast_id}.mp3", {"podcast_id": "a/b?c&d=ä%"}, "/a%2Fb%3Fc%26d%3D%C3%A4%25.mp3"),
        ("/{city}", {"city": "São Paulo"}, "/S%C3%A3o%20Paulo"),
        ("/{city}", {"city": " "}, "/-"),
        ("/{city}", {"city": None}, "/-"),
        ("/{city}", {"city": ["x"]}, "/-"),
        ("/{duration}/{blacklisted_ip}/{source}", {"duration": 1679.36, "source": 0}, "/1679.36/false/0"),
        ("/{id}?ps={normalized_user_agent}", {"id": "i"}, "/i?ps=Apple%20Podcasts"),
        ("{id}{id}", {"id": "i"}, "ii"),
        ("/fixed.mp3", {}, "/fixed.mp3"),
        ('/a b"c\\d%41\u2028', {}, "/a%20b%22c%5Cd%41%E2%80%A8"),
        ("/-._~{id}", {"id": "-._~"}, "/-._~-._~"),
        ("/ü/{id}", {"id": "i"}, "/ü/i"),
    ],
)
def test_a_url_is_a_template_filled_with_encoded_values(template: str, change: dict[str, Any], url: str) -> None:
    """Any of the 18 fields and ``{guid}``; a missing value is ``-``; the template's own text is yours."""
    assert cells(row(**change), rules(url=template))["url"] == url


@pytest.mark.parametrize(
    "template", ["", " ", "/{", "/}", "/{}", "/{ id }", "/{nope}", "/{{id}}", "/{id", "/id}", "/{id}{"]
)
def test_a_template_with_anything_else_in_braces_is_refused(template: str) -> None:
    """An unknown field, an empty one, or an unmatched brace."""
    with pytest.raises(ValueError, match=r"not a field|unmatched brace|is empty"):
        UrlTemplate(template)


@pytest.mark.parametrize("name", [*METRICS.fields, "guid"])
def test_every_field_may_stand_in_a_template(name: str) -> None:
    """The 18 fields and the guid."""
    assert UrlTemplate(f"/{{{name}}}").fields == (name,)


@pytest.mark.parametrize(("length", "expected"), [(URL_LIMIT, "line"), (URL_LIMIT + 1, "url_too_long")])
def test_a_url_has_at_most_2048_characters_as_written(length: int, expected: str) -> None:
    """Triton's limit, counted after encoding."""
    assert URL_LIMIT == 2048
    assert result(row(podcast_id="x" * (length - 1)), rules(url="/{podcast_id}")) == expected
    assert result(row(podcast_id=" a" * 511), rules(url="/" + "x" * (length - 2045) + "{podcast_id}")) == expected
    assert result(row(podcast_id="x" * (length - 1) + "\u00e9"), rules(url="{podcast_id}")) == "url_too_long"


def test_a_url_that_is_far_too_long_is_not_made() -> None:
    """Quoting a text of 16 MiB took 200 MB."""
    template, row = UrlTemplate("/{podcast_id}"), {"podcast_id": "\u00e9" * 100_000}
    template.fill({"podcast_id": "\u00e9"}, "")  # what it loads
    tracemalloc.start()
    try:
        assert len(template.fill(row, "")[0]) > URL_LIMIT
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_white_space_of_every_kind_is_percent_encoded_in_w3c() -> None:
    """A reader that splits at any white space of Unicode finds one cell; a URL and an id have none either."""
    blanks = "".join(chr(code) for code in range(0x10000) if chr(code).isspace())
    assert len(blanks) > 20
    assert percent_text(f"a{blanks}b") == percent_id(f"a{blanks}b") == url_text(f"a{blanks}b") == f"a{quote(blanks)}b"
