"""One text for each password, however a keyboard or a client spells it: SASLprep (RFC 4013), as RFC 4252 asks for.

Pure. Promise: what a password is hashed from and what a login compares are prepared here and nowhere else.
"""

from __future__ import annotations

import stringprep
import unicodedata

_PROHIBITED = (  # RFC 4013, section 2.3
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


class Unprepared(ValueError):
    """A text cannot be prepared; the words say which character of it is in the way."""


def prepare(text: str) -> str:
    """Return the text as SASLprep has it: compatible characters as one, odd blanks as blanks, soft hyphens left out.

    Raises:
        Unprepared: it has a character that SASLprep does not allow, at least not there.
    """
    if text.isascii() and text.isprintable():
        return text
    for character in text:
        if stringprep.in_table_a1(character):
            raise Unprepared(_named(character))
    kept = (" " if stringprep.in_table_c12(c) else c for c in text if not stringprep.in_table_b1(c))
    prepared = unicodedata.normalize("NFKC", "".join(kept))
    for character in prepared:
        if any(prohibits(character) for prohibits in _PROHIBITED):
            raise Unprepared(_named(character))
    _check_direction(prepared)
    return prepared


def _check_direction(text: str) -> None:
    """Refuse letters of both directions in one text (RFC 3454, section 6).

    Raises:
        Unprepared: it has them, or its letters from right to left have something else before or after them.
    """
    if not any(map(stringprep.in_table_d1, text)):
        return
    for character in text:
        if stringprep.in_table_d2(character):
            raise Unprepared(f"{_named(character)} beside letters that are written from right to left")
    for character in (text[0], text[-1]):
        if not stringprep.in_table_d1(character):
            raise Unprepared(f"{_named(character)} before or after letters that are written from right to left")


_NAMELESS = {"Cc": "control character", "Co": "private-use character", "Cs": "surrogate"}  # by Unicode's category


def _named(character: str) -> str:
    """Return the character itself where it can be printed, its code point and its name."""
    if "\udc80" <= character <= "\udcff":  # what Python's surrogateescape makes of a byte that is not UTF-8
        return f"the byte 0x{ord(character) - 0xDC00:02X}, which is not UTF-8"
    kind = _NAMELESS.get(unicodedata.category(character), "unassigned code point")
    point = f"U+{ord(character):04X} {unicodedata.name(character, kind)}"
    return f"{character} ({point})" if character.isprintable() else point
