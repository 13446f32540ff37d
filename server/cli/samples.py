"""Made-up exports: a realistic day of Megaphone's rows, the same on every machine for the same seed.

For the demo, the benchmarks and the tests. Touches only the file that `write_day` writes. Promise: the same arguments
give the same rows, and an unfinished day (``until``) is the beginning of the finished one, row for row.
"""

from __future__ import annotations

from datetime import UTC, datetime, time
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import orjson
from isal import isal_zlib

from ..megaphone.exports import METRICS
from ..paths import written_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date
    from pathlib import Path

    from ..megaphone.exports import ExportKind

_WEBKIT = "Mozilla/5.0 (%s) AppleWebKit/%s (KHTML, like Gecko) %s"
# (product as Megaphone names it, share of the downloads, user agents as clients send them)
_PLAYERS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("Apple Podcasts", 0.38, (
        "Podcasts/1650.20 CFNetwork/1333.0.4 Darwin/21.5.0",
        "Podcasts/1745.3 CFNetwork/1494.0.7 Darwin/23.4.0",
        "Podcasts/3.4.1 CFNetwork/1498.700.2 Darwin/23.6.0",
        "Podcasts/1625.30 CFNetwork/1331.0.7 Darwin/21.4.0",
        "AppleCoreMedia/1.0.0.21F90 (iPhone; U; CPU OS 17_5_1 like Mac OS X; en_us)",
        "AppleCoreMedia/1.0.0.20G75 (iPhone; U; CPU OS 16_6 like Mac OS X; en_gb)",
        "AppleCoreMedia/1.0.0.21E236 (iPad; U; CPU OS 17_4_1 like Mac OS X; de_de)",
        "AppleCoreMedia/1.0.0.23F79 (Macintosh; U; Intel Mac OS X 14_5; en_us)",
        "AppleCoreMedia/1.0.0.21T576 (HomePod; U; CPU OS 17_5 like Mac OS X; en_us)",
        "atc/1.0 watchOS/10.5 model/Watch6,2 hwp/t8301 build/21T576 (6; dt:253)",
        "iTunes/12.13.2 (Windows; Microsoft Windows 10 x64; x64) AppleWebKit/7613.2007.1014.14",
        "Balados/1650.20 CFNetwork/1333.0.4 Darwin/21.5.0",
    )),
    ("Spotify", 0.21, (
        "Spotify/8.9.42.575 Android/34 (SM-S918U)",
        "Spotify/8.9.38.494 Android/33 (Pixel 7)",
        "Spotify/8.9.40 iOS/17.5.1 (iPhone15,3)",
        "Spotify/8.8.96.364 Android/30 (moto g power (2021))",
        "Spotify/123200476 Win32_x86_64/0 (PC desktop)",
        "Spotify/1.0",
    )),
    ("YouTube Music", 0.05, (
        "com.google.android.apps.youtube.music/7.04.51 (Linux; U; Android 14; Pixel 8 Build/AP1A.240505.005) gzip",
        "com.google.ios.youtubemusic/7.04.1 (iPhone14,5; U; CPU iOS 17_5 like Mac OS X; en_US)",
    )),
    ("Overcast", 0.05, (
        "Overcast/3.0 (+http://overcast.fm/; iOS podcast app)",
        "Overcast (+http://overcast.fm/; Apple Watch podcast app)",
    )),
    ("Pocket Casts", 0.04, (
        "Pocket Casts",
        "PocketCasts/1.0 (Pocket Casts Feed Parser; +http://pocketcasts.com/)",
        "Shifty Jelly Pocket Casts, Android v7.64.1",
    )),
    ("Amazon Music", 0.03, (
        "AmazonMusic/24.7.0 iPhone14,7 CFNetwork/1496.0.7 Darwin/23.5.0",
        "Harley/24.8.2 (Android/13; SM-A546E) AmazonMusic",
    )),
    ("Alexa", 0.03, (
        "Alexa/1.0 (AEOAP; Echo Dot 4th Gen)",
        "Dalvik/2.1.0 (Linux; U; Android 9; AEOBP Build/PS7652.3583N) AlexaMediaPlayer/2.0.201528.0",
    )),
    ("Castbox", 0.02, (
        "CastBox/11.6.0-240520214 (Linux;Android 13) ExoPlayerLib/2.13.3",
        "Castbox/8.40.1 (fm.castbox.audiobook.radio.podcast; build:3; iOS 17.4.1) Alamofire/5.9.0",
    )),
    ("Podcast Addict", 0.02, (
        "PodcastAddict/v5 (+https://podcastaddict.com/; Android podcast app)",
        "Podcast Addict/v2024.7 (Android 14)",
    )),
    ("AntennaPod", 0.02, ("AntennaPod/3.4.1", "AntennaPod/3.3.2", "de.danoeh.antennapod/3.5.0 (Linux; Android 12)")),
    ("iHeartRadio", 0.02, (
        "iHeartRadio/10.41.0 (Android 13; SM-G991U Build/TP1A.220624.014)",
        "iHeartRadio/9.45 CFNetwork/1410.0.3 Darwin/22.6.0",
    )),
    ("TuneIn", 0.01, ("TuneIn Radio/36.2.1; iPhone13,2; iOS/17.5", "TuneIn Radio Pro/33.5 (Android 12; en-US)")),
    ("Google Podcasts", 0.01, (
        "Mozilla/5.0 (Linux; Android 12) AppleWebKit/537.36 (KHTML, like Gecko) GoogleApp/14.21 GooglePodcasts",
    )),
    ("Castro", 0.01, ("Castro 2024.4.1/1384", "Castro 2, Episode Duration Lookup")),
    ("Deezer", 0.01, ("Deezer/7.0.7.115 (Android; 13; Mobile; fr) samsung SM-A127F",)),
    ("Player FM", 0.01, ("Player FM", "Mozilla/5.0 (compatible; PlayerFM/1.0; podcast sync)")),
    ("Web Browser", 0.05, (
        _WEBKIT % ("Windows NT 10.0; Win64; x64", "537.36", "Chrome/125.0.0.0 Safari/537.36"),
        _WEBKIT % ("Macintosh; Intel Mac OS X 10_15_7", "605.1.15", "Version/17.5 Safari/605.1.15"),
        "Mozilla/5.0 (X11; Linux x86_64; rv:126.0) Gecko/20100101 Firefox/126.0",
        _WEBKIT % ("iPhone; CPU iPhone OS 17_5_1 like Mac OS X", "605.1.15", "Version/17.5 Mobile/15E148 Safari/604.1"),
        _WEBKIT % ("Windows NT 10.0; Win64; x64", "537.36", "Chrome/124.0.0.0 Safari/537.36 Edg/124.0.0.0"),
    )),
    ("other", 0.03, (
        "Sonos/79.1-53290 (ZPS27)",
        "Roku/DVP-12.5 (12.5.5.4174-29)",
        "stagefright/1.2 (Linux;Android 7.0)",
        "VLC/3.0.20 LibVLC/3.0.20",
        "okhttp/4.12.0",
        "Lavf/60.3.100",
        "Radio \u201eKüche\u201c/2.1 (Android 10; de)",
        'PodPlayer "Home"\\2.0',
        "Car\tRadio/5.5",
        "",
    )),
)  # fmt: skip
_BOTS = (
    "python-requests/2.31.0",
    "curl/8.5.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
    "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
    "Go-http-client/2.0",
)
# (country, region, city, dma_name)
_PLACES: tuple[tuple[str | None, str | None, str | None, str | None], ...] = (
    ("US", "TX", "Dallas", "Dallas-Ft. Worth, TX"), ("US", "NY", "New York", "New York, NY"),
    ("US", "CA", "Los Angeles", "Los Angeles, CA"), ("US", "IL", "Chicago", "Chicago, IL"),
    ("US", "WA", "Seattle", "Seattle-Tacoma, WA"), ("US", "GA", "Atlanta", "Atlanta, GA"),
    ("US", "MA", "Boston", "Boston (Manchester), MA-NH"), ("US", "CO", "Denver", "Denver, CO"),
    ("US", "FL", "Miami", "Miami-Ft. Lauderdale, FL"), ("US", "AZ", "Phoenix", "Phoenix (Prescott), AZ"),
    ("US", "MN", "Minneapolis", "Minneapolis-St. Paul, MN"), ("US", "OH", "", "Columbus, OH"),
    ("CA", "ON", "Toronto", ""), ("CA", "QC", "Montr\u00e9al", ""), ("GB", "ENG", "London", ""),
    ("GB", "SCT", "Glasgow", ""), ("DE", "BE", "Berlin", ""), ("DE", "BY", "M\u00fcnchen", ""),
    ("FR", "IDF", "Paris", ""), ("MX", "CMX", "Mexico City", ""), ("AU", "NSW", "Sydney", ""),
    ("BR", "SP", "S\u00e3o Paulo", ""), ("NL", "NH", "Amsterdam", ""), ("SE", "AB", "Stockholm", ""),
    ("ES", "MD", "Madrid", ""), ("IT", "25", "Milan", ""), ("IE", "L", "Dublin", None), ("IN", "MH", "Mumbai", ""),
    ("US", None, None, None), (None, None, None, None),
)  # fmt: skip

_ROW = (
    '{"country":%s,"ip":"%s","created_at":"%s.000Z","podcast_id":"%s","source":%s,"filesize":%d,"bytes_sent":%d,'
    '"seconds_downloaded":%d,"duration":%s,"blacklisted_ip":%s,"episode_id":"%s","blacklisted_ua":%s,"id":"%s",'
    '"user_agent":%s}\n'
)
# A row of a Delivery export V2, with the fields that are known.
_ROW_V2 = (
    '{"episode_id":"%s","podcast_id":"%s","created_at":"%s.%03dZ","ip":"%s","user_agent":%s,'
    '"normalized_user_agent":"%s","delivery_type":"%s","media_type":"%s","blacklisted_ip":%s,"blacklisted_ua":%s}\n'
)
_PODCASTS = 60
_EPISODES = 4000
_KNOWN_LISTENERS = 40_000
_JITTER = 20.0  # seconds by which rows are out of order


class _Episode(NamedTuple):
    podcast_id: str
    episode_id: str
    filesize: int
    duration: str


class _Listener(NamedTuple):
    place: str
    ip: str
    user_agent: str
    bot: str
    product: str

    @property
    def token(self) -> str:
        """A hashed identifier, which Delivery exports V2 have in place of an address."""
        return blake2b(self.ip.encode(), digest_size=16).hexdigest()


def day_rows(
    day: date,
    rows: int,
    seed: int = 1,
    *,
    broken: bool = False,
    tokens_share: float = 0.01,
    until: datetime | None = None,
    kind: ExportKind = METRICS,
) -> Iterator[bytes]:
    """Yield the rows of a day, each a line of JSON with its newline, in nearly increasing order of ``created_at``.

    ``rows`` counts the rows of the whole day; ``until`` leaves out those created at or after it. ``tokens_share`` is
    the share of listeners whose ``ip`` is 32 hex digits instead of an address. ``broken`` adds a few rows of every kind
    that is rejected; ``rows`` does not count them. In a ``kind`` without ids, some rows equal the one before.
    """
    episodes = _episodes(seed)
    random = Random(f"day {seed} {day}")  # noqa: S311  # made-up data
    listener = _listeners(random, tokens_share)
    known = [listener() for _ in range(min(_KNOWN_LISTENERS, rows // 4 + 1))]
    broken_rows = list(_broken_rows(day, kind)) if broken else []
    v2, line = kind is not METRICS, ""
    spacing = rows // (len(broken_rows) + 1) + 1
    end = 86400.0 if until is None else (until - datetime.combine(day, time(), UTC)).total_seconds()
    minutes = [f"{day}T{h:02d}:{m:02d}" for h in range(24) for m in range(60)]
    seconds = [f"{s:02d}" for s in range(60)]
    for i in range(rows):
        at = (i + 0.5) * 86400 / rows
        second = min(86399, max(0, int(at + (random.random() - 0.5) * 2 * _JITTER)))
        who = random.random()
        if who < 0.5:  # a listener of today; a new one takes the place of a known one
            known[int(who * 2 * len(known))] = downloader = listener()
        else:
            downloader = known[int((who - 0.5) * 2 * len(known))]
        episode = episodes[int(_EPISODES * random.random() ** 4)]
        share, fate = random.random(), random.random()
        filesize = episode.filesize
        if fate < 0.62:
            bytes_sent = filesize
        elif fate < 0.70:
            bytes_sent = int(filesize * (1 + 1.3 * share * share))
        elif fate < 0.95:
            bytes_sent = int(filesize * share)
        elif fate < 0.995:
            bytes_sent = int(filesize * share * 0.03)
        else:
            bytes_sent = 0
        duration = float(episode.duration)
        blocked = random.random() < 0.015
        created = f"{minutes[second // 60]}:{seconds[second % 60]}"
        if not v2:
            line = _ROW % (
                downloader.place, downloader.ip, created, episode.podcast_id, "0" if fate < 0.9 else "null", filesize,
                bytes_sent, duration * bytes_sent // filesize, episode.duration, "true" if blocked else "false",
                episode.episode_id, downloader.bot, _uuid4(random), downloader.user_agent,
            )  # fmt: skip
        elif fate < 0.995 or not line:
            line = _ROW_V2 % (
                episode.episode_id, episode.podcast_id, created, share * 1000, downloader.token, downloader.user_agent,
                downloader.product, "play" if downloader.product == "Spotify" and share < 0.6 else "download",
                "video" if fate < 0.04 else "audio", "true" if blocked else "false", downloader.bot,
            )  # fmt: skip
        if at - _JITTER > end:
            return
        if second < end:
            yield line.encode()
            if i % spacing == spacing - 1 and broken_rows:
                yield broken_rows.pop()
    yield from broken_rows


def write_day(
    path: Path,
    day: date,
    rows: int,
    seed: int = 1,
    *,
    broken: bool = False,
    tokens_share: float = 0.01,
    until: datetime | None = None,
    keep: Callable[[bytes], bool] | None = None,
    kind: ExportKind = METRICS,
) -> int:
    """Write a day's export, gzip with one row per line, as `day_rows` yields it; return the number of rows.

    The file appears whole. ``keep`` can leave rows out, to make an earlier version of the same day.
    """
    written = 0
    packer = isal_zlib.compressobj(2, isal_zlib.DEFLATED, 31)
    with written_whole(path, 0o666) as file:
        block: list[bytes] = []
        for row in day_rows(day, rows, seed, broken=broken, tokens_share=tokens_share, until=until, kind=kind):
            if keep is None or keep(row):
                block.append(row)
                written += 1
            if len(block) >= 1000:
                file.write(packer.compress(b"".join(block)))
                block.clear()
        file.write(packer.compress(b"".join(block)) + packer.flush())
    return written


@lru_cache(1)
def _episodes(seed: int) -> list[_Episode]:
    random = Random(f"world {seed}")  # noqa: S311  # made-up data
    node = f"{random.getrandbits(48):012x}"
    podcasts = [_uuid1(random, node) for _ in range(_PODCASTS)]
    episodes = []
    for _ in range(_EPISODES):
        length = random.randint(180, 7200) + random.choice((0.0, 0.0, random.random()))
        duration = str(int(length)) if length.is_integer() else f"{length:.2f}"
        podcast = podcasts[int(_PODCASTS * random.random() ** 2)]
        episodes.append(
            _Episode(podcast, _uuid1(random, node), int(length * 16_000) + random.randrange(9999), duration)
        )
    return episodes


def _listeners(random: Random, tokens_share: float) -> Callable[[], _Listener]:
    """Return a function that makes up a new listener with every call."""
    agents: list[tuple[str, str]] = []
    weights: list[float] = []
    for product, share, user_agents in _PLAYERS:
        for rank, user_agent in enumerate(user_agents):
            agents.append((product, user_agent))
            weights.append(share / (rank + 1) / sum(1 / (n + 1) for n in range(len(user_agents))))
    products, quoted = [product for product, _ in agents], [orjson.dumps(agent).decode() for _, agent in agents]
    bots = [orjson.dumps(bot).decode() for bot in _BOTS]
    places = [
        f'{_quoted(country)},"region":{_quoted(region)},"city":{_quoted(city)},"dma_name":{_quoted(dma)}'
        for country, region, city, dma in _PLACES
    ]
    indexes = random.choices(range(len(agents)), weights, k=1 << 15)

    def listener() -> _Listener:
        bits = random.getrandbits(64)
        if random.random() < tokens_share:
            ip = f"{random.getrandbits(128):032x}"
        elif bits & 3 == 0:
            ip = f"2600:{bits >> 50 | 1:x}:{bits >> 36 & 0x3FFF | 1:x}:{bits >> 20 & 0xFFFF | 1:x}"
            ip += (
                "::1"
                if bits & 12 == 0
                else f":{bits >> 9 & 0xFFFF:x}:{bits >> 33 & 0xFFFF:x}:{bits >> 41 & 0xFFFF:x}:1"
            )
        else:
            ip = f"{24 + (bits >> 2) % 180}.{bits >> 16 & 255}.{bits >> 24 & 255}.{bits >> 32 & 255}"
        rank = random.random()
        place = places[int(len(places) * rank * rank)]
        agent = indexes[bits >> 48 & 0x7FFF]
        product, user_agent, bot = products[agent], quoted[agent], "false"
        if bits >> 40 & 63 == 0:
            product, user_agent, bot = "other", bots[bits % len(bots)], "true"
        return _Listener(f'{place},"normalized_user_agent":"{product}"', ip, user_agent, bot, product)

    return listener


def _broken_rows(day: date, kind: ExportKind) -> Iterator[bytes]:
    """Yield rows of every kind that is rejected."""
    good = {
        "id": "11111111-2222-4333-8444-555555555555", "podcast_id": "c9f1e6f2-6f0d-11ec-8f0c-0f1f2f3f4f5f",
        "episode_id": "d2b1c0a4-6f0d-11ec-8f0c-0f1f2f3f4f5f", "created_at": f"{day}T12:00:00.000Z",
        "ip": "192.0.2.55", "filesize": 1000, "bytes_sent": 1000, "seconds_downloaded": 61, "duration": 61,
        "blacklisted_ip": False, "blacklisted_ua": False, "user_agent": "Broken/1.0",
    }  # fmt: skip
    wrongs: list[tuple[str, object]] = [
        ("id", None), ("created_at", "yesterday"), ("created_at", f"{day}T12:00:00+25:00"), ("ip", " "),
        ("filesize", 0), ("filesize", -5), ("bytes_sent", 1.5), ("podcast_id", "p" * 2100), ("user_agent", "Again/1.0"),
    ]  # fmt: skip
    if kind.delivery_types is not None:
        good["delivery_type"] = kind.delivery_types[0]
        wrongs[0] = "id", 7.5
        wrongs += [("delivery_type", None), ("delivery_type", "stream")]
    yield orjson.dumps(good) + b"\n"  # the row that the duplicate repeats
    yield orjson.dumps(good)[:-9] + b"\n"
    yield b'{"id":"not UTF-8: \xff\xfe"}\n'
    yield b'["an","array"]\n'
    for number, (name, value) in enumerate(wrongs):
        own_id = {} if name == "user_agent" else {"id": f"broken-{number}"}
        yield orjson.dumps({**good, **own_id, name: value}) + b"\n"
    yield orjson.dumps({**good, "id": "broken-x", "podcast_id": None, "episode_id": ""}) + b"\n"


def _quoted(text: str | None) -> str:
    return orjson.dumps(text).decode()


def _uuid1(random: Random, node: str) -> str:
    bits = random.getrandbits(64)
    return f"{bits & 0xFFFFFFFF:08x}-{bits >> 32 & 0xFFFF:04x}-11e{8 + bits % 7:x}-{0x8000 | bits >> 50:04x}-{node}"


def _uuid4(random: Random) -> str:
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[ord(digits[16]) & 3]}{digits[17:20]}-{digits[20:]}"
