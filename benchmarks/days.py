"""The days that are measured: each a million rows with a fixed seed, and each another kind of listeners.

Writes one file each, and keeps it. ``sample`` is the demo's day (`server.cli.samples`), whose values repeat: 67 user
agents, times at .000. ``varied`` repeats next to nothing: milliseconds, an address of its own in every row, 20,000
user agents with a long tail, 20,000 episodes, escapes and letters beyond ASCII in 5 % of the rows. ``tokens`` is what
Megaphone sends where addresses are hashed: 32 hex digits in the place of each, of 30,000 listeners; ``addresses`` is
the same day with addresses, to see what tokens cost. ``delivery-v2`` is the demo's day as a Delivery export V2: no ids,
no sizes, a token in every row, one row in two hundred equal to the one before it; ``retries`` is one in which every row
comes a hundred times, scattered over the day, as a client makes it that asks again and again.
"""

from __future__ import annotations

import math
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

import orjson
from isal import isal_zlib

from server.cli.samples import day_rows, write_day
from server.megaphone.exports import DELIVERY_V2, KINDS, METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date
    from pathlib import Path

DAYS = ("sample", "varied", "tokens")
AGENTS, EPISODES, LISTENERS = 20_000, 20_000, 30_000
_PODCASTS = 400
_RETRIES = 100
_FOREIGN = 0.05  # of the rows

# How clients name themselves, after public lists of podcast user agents; %d, %s and %x become versions, models, hashes.
_SHAPES = (
    "AppleCoreMedia/1.0.0.%d%s (iPhone; U; CPU OS 17_%d like Mac OS X; en_us)",
    "Podcasts/%d.%d CFNetwork/%d.0.%d Darwin/%d.%d.0",
    "Spotify/8.9.%d Android/%d (SM-%s)",
    "Spotify/8.8.%d iOS/17.%d (iPhone%d,%d)",
    "Mozilla/5.0 (Linux; Android %d; SM-%s) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.%d.%d Mobile Safari/537",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%d.0.%d.%d Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_%d like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/%d%s",
    "Overcast/%d.%d (+http://overcast.fm/; iOS podcast app)",
    "PocketCasts/1.0 (Pocket Casts Feed Parser; +http://pocketcasts.com/) %d",
    "Castbox/%d.%d.%d (fm.castbox.audiobook.radio.podcast; build:%d; Android %d)",
    "iHeartRadio/10.%d.%d (Android %d; SM-%s Build/%s)",
    "AmazonMusic/9.%d.%d AlexaMediaPlayer/2.%d.%d ExoPlayerLib/1.%d",
    "Dalvik/2.1.0 (Linux; U; Android %d; SM-%s Build/%s)",
    "okhttp/4.%d.%d",
    "VLC/3.0.%d LibVLC/3.0.%d",
    "AntennaPod/3.%d.%d",
)
_ODD = (
    "Radio „Küche“/2.%d (Android; de)",
    'Pod "Home"\\2.%d',
    "Car\tRadio/%d.5",
    "播客/7.%d (iPhone)",
    "Écoute/1.%d 🎧",
)
_PLACES = (
    ("US", "TX", "Dallas", "Dallas-Ft. Worth, TX"), ("US", "NY", "New York", "New York, NY"),
    ("GB", "ENG", "London", ""),
    ("DE", "BY", "München", ""), ("BR", "SP", "São Paulo", ""), ("CA", "ON", "Toronto", ""), ("US", None, None, None),
)  # fmt: skip
_PRODUCTS = ("Apple Podcasts", "Spotify", "Overcast", "Castbox", "Web Browser", "other")
_ROW = (
    '{"country":%s,"ip":"%s","created_at":"%s","podcast_id":"%s","source":%s,"filesize":%d,"bytes_sent":%d,'
    '"seconds_downloaded":%d,"duration":%s,"blacklisted_ip":%s,"episode_id":"%s","blacklisted_ua":%s,"id":"%s",'
    '"user_agent":%s}\n'
)


def make_day(name: str, folder: Path, day: date, rows: int) -> Path:
    """The export of one of the days, made unless it is there."""
    kind = DELIVERY_V2 if name == "retries" else KINDS.get(name, METRICS)
    export = folder / name / kind.file_name.replace("YYYY-MM-DD", str(day))
    if not export.exists():
        export.parent.mkdir(parents=True, exist_ok=True)
        if name in ("sample", *KINDS):
            write_day(export, day, rows, kind=kind)
        elif name == "retries":
            _write(export, _repeated_rows(day, rows))
        else:
            _write(export, varied_rows(day, rows, name))
    return export


def _write(export: Path, rows: Iterator[str]) -> None:
    part, packer, block = export.with_name("part"), isal_zlib.compressobj(2, isal_zlib.DEFLATED, 31), list[str]()
    with part.open("wb") as file:
        for row in rows:
            block.append(row)
            if len(block) == 1000:
                file.write(packer.compress("".join(block).encode()))
                block.clear()
        file.write(packer.compress("".join(block).encode()) + packer.flush())
    part.replace(export)


def _repeated_rows(day: date, rows: int) -> Iterator[str]:
    """The rows of ``retries``."""
    random = Random(f"retries {day}")  # made-up data
    each = [row.decode() for row in day_rows(day, rows // _RETRIES, kind=DELIVERY_V2)]
    for _ in range(_RETRIES):
        random.shuffle(each)
        yield from each


def varied_rows(day: date, rows: int, name: str) -> Iterator[str]:
    """The rows of ``varied``, ``tokens`` or ``addresses``, the last two alike but for the field ``ip``."""
    random = Random(f"{name.replace('addresses', 'tokens')} {day}")  # made-up data
    agents, weights = _agents(random, escapes=False), list(accumulate(1 / (rank + 3) for rank in range(AGENTS)))
    foreign = _agents(random, escapes=True)
    places = [
        '{},"region":{},"city":{},"dma_name":{},"normalized_user_agent":"{}"'.format(*map(_quoted, place), product)
        for place in _PLACES
        for product in _PRODUCTS
    ]
    podcasts = [_uuid(random) for _ in range(_PODCASTS)]
    episodes = [
        (podcasts[int(_PODCASTS * random.random() ** 2)], _uuid(random), int(length * 16_000), f"{length:.2f}")
        for length in (random.uniform(180, 7200) for _ in range(EPISODES))
    ]
    agent_of = random.choices(agents, cum_weights=weights, k=1 << 17)
    address = _own_addresses() if name == "varied" else None
    listeners = [
        (_token(random), _address(random.getrandbits(64)), random.choice(agent_of)) for _ in range(LISTENERS)
    ]  # fmt: skip
    for number in range(rows):
        milliseconds = number * 86_400_000 // rows
        seconds = milliseconds // 1000
        clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{random.randrange(1000):03d}"
        podcast, episode, size, duration = episodes[int(EPISODES * random.random() ** 3)]
        kind, share = random.random(), random.random()
        sent = size if kind < 0.6 else int(size * (1 + share)) if kind < 0.7 else int(size * share)
        if address is not None:
            ip, agent = address(number), agent_of[random.getrandbits(17)]
        else:
            token, full, agent = listeners[int(LISTENERS * random.random() ** 1.5)]
            ip = token if name == "tokens" else full
        if random.random() < _FOREIGN:
            agent = foreign[random.getrandbits(10)]
        yield _ROW % (
            places[random.getrandbits(10) % len(places)], ip, f"{day}T{clock}Z", podcast, "0" if kind < 0.9 else "null",
            size, sent, float(duration) * sent // size, duration, "true" if kind > 0.99 else "false", episode,
            "true" if 0.5 < kind < 0.51 else "false", _uuid(random), agent,
        )  # fmt: skip


def _agents(random: Random, *, escapes: bool) -> list[str]:
    """Different user agents as JSON; with ``escapes`` those with quotes, backslashes, tabs and foreign letters."""
    found: dict[str, None] = {}
    while len(found) < (1 << 10 if escapes else AGENTS):
        shape = random.choice(_ODD if escapes else _SHAPES)
        while "%d" in shape:
            shape = shape.replace("%d", str(int(math.exp(random.uniform(0, 7)))), 1)
        while "%s" in shape:
            shape = shape.replace("%s", _token(random)[:5].upper(), 1)
        found[_quoted(shape)] = None
    return list(found)


def _own_addresses() -> Callable[[int], str]:
    """Addresses that are all different: a step through all numbers of 24 bits, a quarter of them IPv6."""

    def address(number: int) -> str:
        mixed = number * 0x9E3779B1 & 0xFFFFFF
        if number & 3:
            return f"{24 + (number & 3) * 40}.{mixed >> 16}.{mixed >> 8 & 255}.{mixed & 255}"
        return f"2600:{mixed >> 12 | 1:x}:{mixed & 0xFFF | 1:x}:{(number >> 16) + 1:x}:{number & 0xFFFF | 1:x}::1"

    return address


def _address(bits: int) -> str:
    if bits & 3 == 0:
        return f"2600:{bits >> 50 | 1:x}:{bits >> 36 & 0x3FFF | 1:x}:{bits >> 20 & 0xFFFF | 1:x}::1"
    return f"{24 + (bits >> 2) % 180}.{bits >> 16 & 255}.{bits >> 24 & 255}.{bits >> 32 & 255}"


def _token(random: Random) -> str:
    return f"{random.getrandbits(128):032x}"


def _uuid(random: Random) -> str:
    digits = _token(random)
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"
    )


def _quoted(text: str | None) -> str:
    return orjson.dumps(text).decode()
