"""A large row, read in pieces: as objects, the whole of one could take fifty times as many bytes as its text.

Pure. The promise: a text can be read in pieces if and only if it is JSON, and what is returned of an object are its own
fields as `orjson.loads` has them, but for lists and objects in them, which become empty ones. A row over 16 MiB never
comes here; what one takes beside its text are the objects of `PIECE` bytes, and a copy or two of its longest string.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Collection

PIECE = 1 << 20  # bytes
_OPENING = b"[{"
_CLOSED_BY = bytes.maketrans(b"[{", b"]}")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def load_large(text: bytes | bytearray, wanted: Collection[str]) -> Any:
    """Return the wanted fields of an object, or anything else for a JSON text that is not an object.

    The text is cut after commas. Each piece is made a whole text by the brackets that are open where it begins and
    ends: so what is JSON, and how deep it may be, is for the library to say.

    Raises:
        orjson.JSONDecodeError: the text is not JSON.
    """
    fields: dict[str, Any] = {}
    opened, begin = bytearray(), 0
    while True:
        head = _head(opened) if begin else b""
        end, brackets = _next_cut(text, begin)
        _follow(brackets, opened)
        tail = _tail(opened) if end < len(text) else b""
        is_object = _load_piece((head, memoryview(text)[begin:end], tail), wanted, fields)
        if end == len(text):
            return fields if is_object else None
        begin = end


def _load_piece(piece: tuple[bytes, memoryview, bytes], wanted: Collection[str], fields: dict[str, Any]) -> bool:
    """Add the wanted fields of a piece, and return whether it is of an object; its other objects are gone by then."""
    value = orjson.loads(b"".join(piece))
    if not isinstance(value, dict):
        return False
    for name in value.keys() & wanted:
        one = value[name]
        fields[name] = type(one)() if isinstance(one, dict | list) else one
    return True


def _next_cut(text: bytes | bytearray, begin: int) -> tuple[int, bytes]:
    """Return where the piece that begins at ``begin`` ends, and the brackets in it outside strings (none for the last).

    It ends after the last comma outside strings in `PIECE` bytes; if there is none, after the next one.
    Without commas there are few values, or it is not JSON.
    """
    at, size, brackets = begin, PIECE, b""
    while len(text) - at > PIECE:
        # As long as before, with quotes only where a string begins or ends. Nothing but a string has backslashes.
        plain = bytes(text[at : at + size]).replace(rb"\\", b"__").replace(rb"\"", b"__")
        end = len(plain)
        if size > PIECE:  # a string began here and goes on: look no further than to its end
            end = plain.find(b'"', 1) + 1
        elif plain.count(b'"') % 2:
            end = plain.rfind(b'"')
        if not end and at + size >= len(text):
            break
        if not end:
            size *= 2
            continue
        parts = plain[:end].split(b'"')
        place = at + end
        for number in range(len(parts) - 1, -1, -2):  # every other part is between strings
            place -= len(parts[number])
            comma = parts[number].rfind(b",") + 1
            if comma:
                between = b"".join((*parts[:number:2], parts[number][:comma]))
                return place + comma, brackets + between.translate(None, _NO_BRACKETS)
            place -= len(parts[number - 1]) + 2
        brackets += b"".join(parts[::2]).translate(None, _NO_BRACKETS)
        at, size = at + end, PIECE
    return len(text), b""


def _follow(brackets: bytes, opened: bytearray) -> None:
    """Open and close these brackets; wrong ones are found by whoever reads the piece."""
    for bracket in brackets:
        if bracket in _OPENING:
            opened.append(bracket)
        elif opened:
            opened.pop()


def _head(opened: bytearray) -> bytes:
    """Return what comes before a piece that begins after a comma within these brackets."""
    innermost = b'{"":0,' if opened.endswith(b"{") else b"[0,"
    return bytes(opened[:-1]).replace(b"{", b'{"":') + innermost


def _tail(opened: bytearray) -> bytes:
    """Return what comes after a piece that ends with a comma within these brackets; nothing if there are none."""
    innermost = b'"":0}' if opened.endswith(b"{") else b"0]"
    return innermost + opened[-2::-1].translate(_CLOSED_BY) if opened else b""
