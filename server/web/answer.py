"""An answer of the page, before it is sent. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

HTML = "text/html; charset=utf-8"
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
CSV = "text/csv; charset=utf-8; header=present"

# Only our own stylesheet and icon: no script, no frame, no form.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ALWAYS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "pickup-point",
}
# In JSON these occur only inside strings; escaped, they form no tag for a client that sniffs HTML.
_JSON_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


class Answer(NamedTuple):
    """Status, media type and body of an answer, and its headers besides `ALWAYS`."""

    status: int
    kind: str
    body: bytes
    headers: Mapping[str, str] = {}


def text(status: int, sentence: str, **headers: str) -> Answer:
    """Return a plain-text answer; underscores in the names of ``headers`` become hyphens."""
    return Answer(status, TEXT, f"{sentence}\n".encode(), {name.replace("_", "-"): it for name, it in headers.items()})


def json(value: Any, status: int = 200) -> Answer:
    """Return a JSON answer that is harmless when taken for HTML."""
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    for character, escape in _JSON_ESCAPES.items():
        body = body.replace(character, escape)
    return Answer(status, JSON, f"{body}\n".encode())
