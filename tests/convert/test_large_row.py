"""A large row that is read in pieces is the row that it is when it is read at once, in much less memory."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import orjson
import pytest

from server.convert import export_row, large_row
from server.convert.block import BlockConverter
from server.convert.conversion import Conversion
from server.convert.job import Job, Task
from server.convert.large_row import load_large
from server.megaphone.exports import EXPORT_FIELDS
from server.triton import LogRules

from ..support.odd_rows import nasty_rows
from ..support.reference_conversion import DAY, KEY
from ..support.rows import row

_STRINGS = (b'""', b'"a"', b'"\\""', b'"\\\\"', b'"\\\\\\","', b'"[{"', b'"]}"', b'"\\u00e9"', '"é"'.encode(),
            b'"a,b:c"', b'"id"', b'"ip"', b'"city"', b'"a long text, longer than most pieces are"')  # fmt: skip
_SCALARS = (*_STRINGS, b"0", b"-1.5e3", b"true", b"false", b"null")
_NOISE = (b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"0", b"\n", b"\xff", b'"id":', b",,", b'{"":')


def _value(dice: random.Random, depth: int) -> bytes:
    kind = dice.random()
    if depth == 0 or kind < 0.4:
        return dice.choice(_SCALARS)
    inside = [_value(dice, depth - 1) for _ in range(dice.randrange(5))]
    if kind < 0.65:
        return b"[%b]" % b", ".join(inside)
    return b"{%b}" % b",".join(dice.choice(_STRINGS) + b":" + value for value in inside)


def _texts(dice: random.Random) -> list[bytes]:
    """Texts that are JSON, and others that a byte or two keep from being it."""
    good = [_value(dice, depth) for depth in (1, 2, 3, 4, 5) for _ in range(60)]
    bad = []
    for text in good:
        for _ in range(2):
            at, length = dice.randrange(len(text) + 1), dice.choice((0, 0, 1, 2))
            bad.append(text[:at] + dice.choice((b"", *_NOISE)) + text[at + length :])
    deep = [b'{"a":[0,' * n + b"0" + b"]}" * n for n in (511, 512, 513)]
    return [*good, *bad, *deep, *nasty_rows()[::20], b"", b",", b"[,", b"[,0]", b"[0,]", b'{"a":0,}', b"0,0", b"{},{}"]


def _told(load: Any, text: bytes | bytearray) -> Any:
    """What comes of a text: an error, no object, or its fields, of lists and objects only which of the two they are."""
    try:
        fields = load(text)
    except orjson.JSONDecodeError:
        return "no JSON"
    if not isinstance(fields, dict):
        return "no object"
    return {
        name: repr(type(value)() if isinstance(value, list | dict) else value)
        for name, value in fields.items()
        if name in EXPORT_FIELDS
    }


@pytest.mark.parametrize("piece", [1, 2, 7, 30, 200])
def test_what_is_read_in_pieces_is_what_is_read_at_once(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces are, and wherever they end: in lists, objects, and strings full of commas and brackets."""
    monkeypatch.setattr(large_row, "PIECE", piece)
    told = [(_told(orjson.loads, text), text) for text in _texts(random.Random(piece))]
    for expected, text in told:
        for form in (text, bytearray(text)):
            assert _told(lambda one: load_large(one, EXPORT_FIELDS), form) == expected, text
    assert sum(isinstance(expected, dict) for expected, _ in told) > 80
    assert sum(expected == "no JSON" for expected, _ in told) > 150


@pytest.mark.parametrize("more", [{}, {"city": "@"}], ids=["plain", "half an emoji"])
def test_a_large_row_takes_little_more_memory_than_its_text(
    more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 16 MiB of nested objects took 850 MB: fifty times as much as its text."""
    monkeypatch.setattr(large_row, "PIECE", 1 << 12)
    monkeypatch.setattr(export_row, "LARGE", 1 << 12)
    nested = b'{"":' * 500 + b"0" + b"}" * 500
    raw = row(source="!", **more).replace(b'"!"', b"[" + b",".join([nested] * 40) + b"]").replace(b"@", rb"\ud800")
    converter = BlockConverter(None, Conversion(LogRules(), KEY, day=DAY))
    job = Job(0, Task.RENDER, (raw,))
    converter.do(job)  # what it loads and keeps
    tracemalloc.start()
    try:
        assert converter.do(job).tally.lines == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(raw)
