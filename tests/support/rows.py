"""Rows of an export, made by hand for the tests of the words: one good row, and ways to change it.

No outside world.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from server.convert.conversion import Conversion
from server.convert.row import Outcome, RowConverter
from server.convert.tally import RowRejected
from server.triton import Layout, LogRules

if TYPE_CHECKING:
    from server.episodes.catalogue import Catalogue

KEY = bytes(range(32))
ABSENT = object()

# After the one public real row: types as Megaphone sends them.
GOOD: dict[str, Any] = {
    "country": "US",
    "dma_name": "Dallas-Ft. Worth",
    "normalized_user_agent": "Apple Podcasts",
    "city": "Dallas",
    "ip": "203.0.113.77",
    "created_at": "2026-11-20T15:19:12.345Z",
    "podcast_id": "7a1e6f0e-0000-11ec-8000-0123456789ab",
    "source": 0,
    "filesize": 67332401,
    "bytes_sent": 67332401,
    "seconds_downloaded": 3720,
    "duration": 1679.36,
    "blacklisted_ip": False,
    "episode_id": "9b2f7c1a-0000-11ec-9000-0123456789ab",
    "blacklisted_ua": False,
    "id": "e3b0c442-98fc-4c14-9afb-f4c8996fb924",
    "region": "TX",
    "user_agent": "Podcasts/1745.3 CFNetwork/1494.0.7 Darwin/23.4.0",
}


# What public programs read of a Delivery export V2, and nothing else.
GOOD_V2: dict[str, Any] = {
    "episode_id": "9b2f7c1a-0000-11ec-9000-0123456789ab",
    "podcast_id": "7a1e6f0e-0000-11ec-8000-0123456789ab",
    "created_at": "2026-11-20T15:19:12.345Z",
    "ip": "c19af70f3fb71c0f7adfb4d89dacccd3",
    "user_agent": "Podcasts/1745.3 CFNetwork/1494.0.7 Darwin/23.4.0",
    "normalized_user_agent": "Apple Podcasts",
    "delivery_type": "download",
    "media_type": "audio",
    "blacklisted_ip": False,
    "blacklisted_ua": False,
}


def row_v2(**changes: Any) -> bytes:
    """The good row of a Delivery export V2 with some fields changed, as `row` does."""
    return orjson.dumps({key: value for key, value in (GOOD_V2 | changes).items() if value is not ABSENT})


def row(**changes: Any) -> bytes:
    """The good row with some fields changed, as a line of an export; ``ABSENT`` takes a field away."""
    return orjson.dumps({key: value for key, value in (GOOD | changes).items() if value is not ABSENT})


def converted(
    raw: bytes, rules: LogRules | None = None, *, catalogue: Catalogue | None = None, key: bytes = KEY, day: Any = None
) -> Outcome:
    """What the reference makes of one line of an export."""
    return RowConverter(Conversion(rules or LogRules(), key, catalogue, day)).convert(raw)


def result(raw: bytes, rules: LogRules | None = None, **conversion: Any) -> str:
    """In one word: ``line``, or the reason why there is none."""
    try:
        outcome = converted(raw, rules, **conversion)
    except RowRejected as rejected:
        return str(rejected.reason)
    return "line" if outcome.filtered is None else str(outcome.filtered)


def cells(raw: bytes, rules: LogRules | None = None, **conversion: Any) -> dict[str, str]:
    """The line's cells by the names of their columns."""
    rules = rules or LogRules()
    names = [spec.name for spec in rules.layout.specs]
    line = converted(raw, rules, **conversion).line
    return dict(zip(names, line.split("\t"), strict=True))


V2 = LogRules(kind="delivery-v2")


def rules(layout: Layout | None = None, **changes: Any) -> LogRules:
    """The default rules with some changed."""
    return LogRules(layout=layout or Layout(), **changes)
