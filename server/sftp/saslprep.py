"""One text for each password, however a keyboard or a client encodes it: SASLprep (RFC 4013), as RFC 4252 wants it.

Pure. Promise: passwords are prepared here and nowhere else, both when they are hashed and when they are checked.
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
    """A text cannot be prepared; the message names the character that is in the way."""


def prepare(text: str) -> str:
    """Return the text as SASLprep has it: compatible characters unified, odd blanks as blanks, soft hyphens left out.

    Raises:
        Unprepared: it has a character that SASLprep does not allow, or not in that place.
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
    """Check a text with right-to-left letters (RFC 3454, section 6).

    Raises:
        Unprepared: it also has left-to-right ones, or does not begin and end with right-to-left ones.
    """
    if not any(map(stringprep.in_table_d1, text)):
        return
    for character in text:
        if stringprep.in_table_d2(character):
            raise Unprepared(f"{_named(character)} beside right-to-left letters")
    for character in (text[0], text[-1]):
        if not stringprep.in_table_d1(character):
            raise Unprepared(f"{_named(character)} before or after right-to-left letters")


_NAMELESS = {"Cc": "control character", "Co": "private-use character", "Cs": "surrogate"}  # by Unicode's category


def _named(character: str) -> str:
    """Return the character itself if it can be printed, its code point and its name."""
    if "\udc80" <= character <= "\udcff":  # Python's surrogateescape for a byte that is not UTF-8
        return f"the byte 0x{ord(character) - 0xDC00:02X}, which is not UTF-8"
    kind = _NAMELESS.get(unicodedata.category(character), "unassigned code point")
    point = f"U+{ord(character):04X} {unicodedata.name(character, kind)}"
    return f"{character} ({point})" if character.isprintable() else point
