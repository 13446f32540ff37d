"""Ordinary rows of an export, decoded many at a time: JSON to one column for each field that a line is made of.

No outside world. The promise: a row is ordinary only where `megaphone` would find the same in it; of all others
nothing is said but that they are `Unusual`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import orjson
from msgspec import Meta
from msgspec.structs import astuple

from .megaphone import LARGEST_WHOLE_NUMBER, METRICS
from .memo import Unusual

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST_OTHERS = 64  # fields that Megaphone has added, and that are got used to

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


class RowDecoder:
    """Decodes rows, one text after the other; gets used to fields that Megaphone has added."""

    def __init__(self) -> None:
        self._others: tuple[str, ...] = ()
        self._decode = _decoder(())

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
        return Columns(*list(islice(zip(*rows, strict=True), len(Columns._fields))))

    def _learn(self, line: bytes) -> bool:
        """Whether this row has fields that were unknown so far, and are known now."""
        row = orjson.loads(line)
        known = {*METRICS.fields, *self._others}
        others = [name for name in row if name not in known] if isinstance(row, dict) else []
        if not others or len(others) + len(self._others) > _MOST_OTHERS:
            return False
        self._others += tuple(others)
        self._decode = _decoder(self._others)
        return True


def _decoder(others: Sequence[str]) -> Callable[[bytes], Any]:
    # Every field has a type, also those that no line is made of, and none may be nested. Of what it has no type for
    # msgspec checks neither the UTF-8 nor the size of numbers, and nesting only against a limit other than orjson's.
    names = [*_TYPES, *_OPTIONAL, *(name for name in METRICS.fields if name not in _TYPES | _OPTIONAL), *others]
    fields: list[Any] = [(f"field_{n}", (_TYPES | _OPTIONAL).get(name, _Scalar)) for n, name in enumerate(names)]
    fields[len(_TYPES) :] = [(field, kind, None) for field, kind in fields[len(_TYPES) :]]
    spelled = {field[0]: name for field, name in zip(fields, names, strict=True)}
    row = msgspec.defstruct("Row", fields, gc=False, forbid_unknown_fields=True, rename=spelled)
    return msgspec.json.Decoder(row).decode
