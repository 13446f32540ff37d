"""Ordinary rows of an export, decoded many at a time: JSON to one column for each field that a line is made of.

No outside world. The promise: a row is ordinary only where `megaphone` would find the same in it; of all others
nothing is said but that they are `Unusual`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from .megaphone import LARGEST_WHOLE_NUMBER
from .memo import Unusual

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST = 2000  # bytes of a line

_Size = Annotated[int, Meta(ge=1, le=LARGEST_WHOLE_NUMBER)]
_Sent = Annotated[int, Meta(ge=0, le=LARGEST_WHOLE_NUMBER)]


class _Row(Struct, gc=False):
    id: str
    created_at: str
    ip: str
    podcast_id: str
    episode_id: str
    filesize: _Size
    bytes_sent: _Sent
    seconds_downloaded: int | float  # msgspec tells them apart
    blacklisted_ip: bool | str | None = None
    blacklisted_ua: bool | str | None = None
    user_agent: str | None = None


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


_decode = msgspec.json.Decoder(_Row).decode


def decode(lines: Sequence[bytes]) -> Columns:
    """The columns of rows, one a line; there is at least one.

    Raises:
        Unusual: a line is no object, or one of its values is not of its ordinary type.
    """
    # Of the fields that it skips, the decoder checks all but the UTF-8, and nesting only against the interpreter's
    # limit of recursion. orjson's limit, 1024, does not fit into a line of this length.
    if max(map(len, lines)) > _LONGEST:
        raise Unusual
    try:
        for line in lines:
            if not line.isascii():
                line.decode()
        # A list, though * would do without: in CPython 3.11 an error in unpacking a map is never freed.
        return Columns(*zip(*list(map(msgspec.structs.astuple, map(_decode, lines))), strict=True))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Unusual from error
