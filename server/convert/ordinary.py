"""Ordinary rows of an export, decoded many at a time: JSON to one column for each field that a line is made of.

No outside world. The promise: a row is ordinary only where `megaphone` would find the same in it; of all others
nothing is said but that they are `Unusual`.
"""

from __future__ import annotations

from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import orjson
from msgspec import Meta, defstruct
from msgspec.structs import astuple

from ..megaphone.exports import METRICS
from .export_row import LARGEST_WHOLE_NUMBER
from .memo import Unusual

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST_FIELDS = 100  # that are got used to
_MOST_ORDERS = 50  # of them; each is a class, which a worker, that collects no cycles, never gives back

_Size = Annotated[int, Meta(ge=1, le=LARGEST_WHOLE_NUMBER)]
_Sent = Annotated[int, Meta(ge=0, le=LARGEST_WHOLE_NUMBER)]
_Flag = bool | str | None
_Integer = Annotated[int, Meta(ge=-LARGEST_WHOLE_NUMBER, le=LARGEST_WHOLE_NUMBER)]  # orjson makes floats of larger ones
_Scalar = str | float | bool | None | _Integer
_TYPES: dict[str, Any] = {
    "id": str, "created_at": str, "ip": str, "podcast_id": str, "episode_id": str, "filesize": _Size,
    "bytes_sent": _Sent, "seconds_downloaded": float | _Integer,
}  # fmt: skip
_OPTIONAL: dict[str, Any] = {"blacklisted_ip": _Flag, "blacklisted_ua": _Flag, "user_agent": str | None}


class Columns(NamedTuple):
    """The fields that a line is made of, each with one entry a row; flags and agents are None where they are absent.

    Sizes are 1 and more, bytes sent 0 and more, both at most 2⁶³-1; seconds are any number.
    """

    ids: tuple[str, ...]
    times: tuple[str, ...]
    ips: tuple[str, ...]
    podcasts: tuple[str, ...]
    episodes: tuple[str, ...]
    sizes: tuple[int, ...]
    sents: tuple[int, ...]
    seconds: tuple[float, ...]
    bad_ips: tuple[bool | str | None, ...]
    bad_uas: tuple[bool | str | None, ...]
    agents: tuple[str | None, ...]


_SOURCES = (*_TYPES, *_OPTIONAL)  # of the columns, in their order


class RowDecoder:
    """Decodes rows, one text after the other; gets used to fields that Megaphone has added, and to their order."""

    def __init__(self) -> None:
        self._fields: tuple[str, ...] = ()
        self._orders = 0
        self._get_used_to(METRICS.fields)

    def decode(self, lines: Sequence[bytes]) -> Columns:
        """The columns of rows, one a line; there is at least one.

        Raises:
            Unusual: a line is no object, or one of its values is not of its ordinary type.
        """
        try:
            try:
                rows = list(map(astuple, map(self._decode, lines)))
            except msgspec.ValidationError:
                if not self._learn(lines[0]):
                    raise
                rows = list(map(astuple, map(self._decode, lines)))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise Unusual from error
        # A list, though * would do without: in CPython 3.11 an error in unpacking a map is never freed.
        return Columns(*self._pick(list(zip(*rows, strict=True))))

    def learn(self, line: bytes) -> None:
        """Expect the fields in the order of this row, which is half the work of finding them, if it is one."""
        with suppress(ValueError):
            self._learn(line)

    def _learn(self, line: bytes) -> bool:
        """Whether this row has fields that were unknown so far, and are known now."""
        row = orjson.loads(line)
        if not isinstance(row, dict) or len(row.keys() | self._fields) > _MOST_FIELDS:
            return False
        before = self._fields
        self._get_used_to((*row, *(name for name in before if name not in row)))
        return len(self._fields) > len(before)

    def _get_used_to(self, fields: tuple[str, ...]) -> None:
        if fields == self._fields or self._orders > _MOST_ORDERS:
            return
        self._orders += 1
        # Every field has a type, also those that no line is made of, and none may be nested. Of what it has no type
        # for msgspec checks neither the UTF-8 nor the size of numbers, and nesting only against another limit.
        named = {f"field_{place}": name for place, name in enumerate(fields)}
        typed = [
            (field, _TYPES[name]) if name in _TYPES else (field, _OPTIONAL.get(name, _Scalar), None)
            for field, name in named.items()
        ]
        row = defstruct("Row", typed, gc=False, forbid_unknown_fields=True, kw_only=True, rename=named)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(row).decode
        self._pick: Callable[[Sequence[Any]], tuple[Any, ...]] = itemgetter(*map(fields.index, _SOURCES))
        self._fields = fields
