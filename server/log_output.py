"""The journal: the service's own log, on standard error, one line per event, as text or as JSON.

Tests check its grammar: actor, past-tense verb, the name, then ``key=value``. Under systemd the lines carry journald's
priority and no time of their own. Promise: an event is one line, whatever a value holds.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    Event = MutableMapping[str, Any]

_BARE = re.compile(r"[\w.:/@,+%*=~\[\]-]+", re.ASCII)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPED = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # what JSON does not escape
# syslog(3) priorities, as journald reads them at the beginning of a line (sd-daemon(3)).
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure(
    log_format: str = "text",
    *,
    verbose: bool = False,
    stream: TextIO | None = None,
    hint: Callable[[str], str] = str,
) -> None:
    """Send the events of structlog and of the libraries to ``stream``, by default standard error.

    ``hint`` turns an event's hint into one that can be pasted.
    """

    def fill_hint(_logger: object, _method: str, event: Event) -> Event:
        if "hint" in event:
            event["hint"] = hint(str(event["hint"]))
        return event

    stream = stream or sys.stderr
    under_systemd = "JOURNAL_STREAM" in os.environ and stream is sys.stderr
    processors: list[Any] = [fill_hint, structlog.processors.add_log_level, structlog.processors.format_exc_info]
    if log_format == "json":
        processors += [structlog.processors.TimeStamper(fmt="iso", utc=True), _json_line]
    elif under_systemd:
        processors += [_journal_line]
    else:
        processors += [structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%SZ", utc=True), _text_line]
    level = logging.DEBUG if verbose else logging.INFO
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    # A second call replaces the first: every command configures the journal once it knows the format.
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_Libraries())
    root.setLevel(logging.WARNING)


class _Libraries(logging.Handler):
    """Sends what libraries log the same way, without their tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        logger = structlog.get_logger()
        method = getattr(logger, level if level in _PRIORITY else "info")
        method(f"library {record.name} said", message=record.getMessage())


def _text_line(_logger: object, _method: str, event: Event) -> str:
    return f"{event.pop('timestamp')} {event.pop('level'):8}{_plain(event)}"


def _journal_line(_logger: object, _method: str, event: Event) -> str:
    return f"<{_PRIORITY.get(event.pop('level'), 6)}>{_plain(event)}"


def _plain(event: Event) -> str:
    exception = event.pop("exception", "")
    words = [_UNSAFE.sub(" ", str(event.pop("event")))]
    words += [f"{key}={_value(value)}" for key, value in event.items() if value is not None and value != ""]
    if exception:
        words.append(f"traceback={_value(exception)}")
    return " ".join(words)


def _value(value: object) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else _json(text)


def _json(value: object) -> str:
    """Return a value as JSON on one line; line ends and control characters that JSON allows are also escaped."""
    # Not orjson: it refuses lone surrogates (file names may have them) and integers over 64 bits.
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _json_line(_logger: object, _method: str, event: Event) -> str:
    ordered = {"timestamp": event.pop("timestamp"), "level": event.pop("level"), "event": event.pop("event")}
    return _json(ordered | dict(event))
