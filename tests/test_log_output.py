"""The service's own log: one line an event, a grammar, and the forms that other programs read."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from server import log_output

if TYPE_CHECKING:
    from .support.program import ServiceSite

NASTY = [
    "two\nlines",
    "carriage\rreturn",
    "\x1b[31mred\x1b[0m",
    'quotes " and \\ backslashes',
    "tab\there",
    "line\u2028separator\u2029and\x85next",
    "del\x7f and c1\x9b",
    "lone\udcff surrogate",
    "a=b c=d",
    "",
    " ",
]
GRAMMAR = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (debug|info|warning|error|critical) +"
    r"(?:\[conn=\d+[^\]]*\]|[a-z]+) [a-z]+\b[^=]*?"  # actor, verb, and what it is about
    r"(?: [a-z_]+=(?:\"(?:[^\"\\]|\\.)*\"|[\w.:/@,+%*=~\[\]-]+))*"
)
ANY_VALUE = st.one_of(
    st.text(st.characters()), st.integers(), st.floats(), st.binary(), st.none(), st.lists(st.text(), max_size=3)
)


def said(log_format: str, level: str, event: str, **values: Any) -> str:
    """What one event becomes."""
    stream = io.StringIO()
    log_output.configure(log_format, verbose=True, stream=stream)
    getattr(structlog.get_logger(), level)(event, **values)
    return stream.getvalue()


def test_an_event_is_actor_verb_name_and_then_keys_and_values() -> None:
    """The line of the design, as it is there, after time and level."""
    line = said("text", "info", "feed published MSLT20260816-00.tsv.gz", rows=812440, rejected=338, seconds=41.2)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ info    "
        r"feed published MSLT20260816-00\.tsv\.gz rows=812440 rejected=338 seconds=41\.2\n",
        line,
    )


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_event_stays_one_line_whatever_a_value_holds(log_format: str, value: str) -> None:
    """Nobody who chooses a name can write a line of the log, or a control character into a terminal."""
    for line in (said(log_format, "warning", f"sftp refused {value}", user=value), said(log_format, "info", value)):
        assert line.endswith("\n")
        assert len(line.splitlines()) == 1
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", line)


@given(value=ANY_VALUE, event=st.text(st.characters()))
def test_any_value_at_all_is_written_on_one_line(value: Any, event: str) -> None:
    """Numbers over 64 bits, bytes, lone surrogates: the log never fails, and JSON can be read back."""
    for log_format in ("text", "json"):
        line = said(log_format, "info", event, value=value)
        assert len(line.splitlines()) == 1
        line.encode()
    assert json.loads(line)["level"] == "info"


def test_a_value_that_could_be_taken_for_more_is_quoted() -> None:
    """A blank or a quote in a value does not begin another key."""
    line = said("text", "info", "sftp refused 203.0.113.9", user="x reason=none", plain="a-b_c.d:e")
    assert line.endswith(' user="x reason=none" plain=a-b_c.d:e\n')


def test_an_empty_value_is_left_out() -> None:
    """No key without a value."""
    assert "user" not in said("text", "info", "sftp refused x", user="", other=None)


def test_json_lines_parse_and_keep_types() -> None:
    """Time, level, event first; numbers stay numbers."""
    line = said("json", "error", "feed failed 2026-11-20", rows=12, why='it says "no"\n')
    parsed = json.loads(line)
    assert list(parsed)[:3] == ["timestamp", "level", "event"]
    assert (parsed["event"], parsed["rows"], parsed["why"]) == ("feed failed 2026-11-20", 12, 'it says "no"\n')
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", parsed["timestamp"])


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("critical", 2)]
)
def test_under_systemd_a_line_begins_with_its_priority_and_has_no_time(
    level: str, priority: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """journald knows the time and reads the level from the beginning of the line."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("JOURNAL_STREAM", "8:1234")
    log_output.configure(verbose=True)
    getattr(structlog.get_logger(), level)("service ended", transfers=0)
    assert stream.getvalue() == f"<{priority}>service ended transfers=0\n"


def test_debug_lines_are_for_the_verbose() -> None:
    """Without -v there are none."""
    stream = io.StringIO()
    log_output.configure(stream=stream)
    structlog.get_logger().debug("sftp looked x")
    assert stream.getvalue() == ""


def test_what_a_library_says_is_an_event_of_ours() -> None:
    """A library's warning has a time, a level and one line; its traceback stays away."""
    stream = io.StringIO()
    log_output.configure(stream=stream)
    try:
        int("inner")
    except ValueError:
        logging.getLogger("some.library").warning("went\nwrong with %s", "x", exc_info=True)
    logging.getLogger("some.library").info("chatter")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('warning library some.library said message="went\\nwrong with x"')


def test_an_exception_becomes_part_of_its_one_line() -> None:
    """A fault that nobody expected is logged whole, and still is one line."""
    stream = io.StringIO()
    log_output.configure(stream=stream)
    try:
        1 // 0  # noqa: B018  # for its error
    except ZeroDivisionError:
        structlog.get_logger().exception("feed failed 2026-11-20")
    (line,) = stream.getvalue().splitlines()
    assert "feed failed 2026-11-20 traceback=" in line
    assert "ZeroDivisionError: integer division" in line


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_every_line_of_a_running_service_keeps_the_grammar(log_format: str, service_site: ServiceSite) -> None:
    """From start to stop, with a publication, a held day, logins and a pickup between: all lines parse."""
    from .support.program import day_before, export_of

    service_site.configure(more=f'[log_output]\nformat = "{log_format}"\n')
    service_site.put(day_before(1), export_of(day_before(1)))
    service_site.put(day_before(2), export_of(day_before(2), 3, b"{", b"{", b"{"))
    running = service_site.program.start("serve", "--config", service_site.config)
    listened = (
        r"service started listening host=.* port=(\d+)"
        if log_format == "text"
        else r'"service started listening".*"port": ?(\d+)'
    )
    from .support.program import Serving

    service = Serving(running, int((await running.says(listened))[0][1]))
    name = f"TEST{day_before(1):%Y%m%d}-00.tsv.gz"
    await service.sees(name)
    await service.fetch(name)
    await running.says(f"feed held {day_before(2)}")
    assert await running.stops() == 0
    assert len(running.err) > 8
    for line in running.err:
        if log_format == "text":
            assert GRAMMAR.fullmatch(line), line
        else:
            assert {"timestamp", "level", "event"} <= set(json.loads(line))
