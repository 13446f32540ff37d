"""A good export row, odd values for every field of it, rules of every kind, and a catalogue. No outside world."""

from __future__ import annotations

import itertools
from typing import Any

import orjson

from server.episodes.catalogue import Catalogue, Episode
from server.triton import ColumnSpec, Layout, LogFormat, LogRules

EPISODE = "d2b1c0a4-6f0d-11ec-8f0c-0f1f2f3f4f5f"
CATALOGUE = Catalogue(
    {
        EPISODE: Episode('guid %1\t"x"', ""),
        "only-url": Episode("", "https://example.com/a.mp3?b=c d"),
        "both": Episode("urn:both", "https://example.com/both.mp3"),
    }
)
COLUMNS = (
    ColumnSpec("agent", value="user-agent"),
    ColumnSpec("what", constant='a "b"\t%'),
    ColumnSpec("cs-uri-stem", value="url"),
    ColumnSpec("ps", field="normalized_user_agent"),
    ColumnSpec("x-metric-id", value="x-metric-id"),
    ColumnSpec("range", value="byte-range"),
    ColumnSpec("raw", field="duration"),
    ColumnSpec("dist", constant="Publisher B"),
    ColumnSpec("url", value="url"),
)
RULES = {
    "default": LogRules(),
    "truncated": LogRules(ip="truncated"),
    "w3c": LogRules(Layout(LogFormat.W3C), url="/{podcast_id}/{guid}.mp3?e={episode_id}"),
    "w3c truncated": LogRules(Layout(LogFormat.W3C), ip="truncated", rows="all"),
    "percent": LogRules(Layout(text="percent", header="comment"), rows="all"),
    "reporting": LogRules(Layout(header="none"), rows="reporting", partial_status=200, bytes="as-sent"),
    "as sent": LogRules(bytes="as-sent"),
    "200": LogRules(partial_status=200),
    "columns": LogRules(Layout(columns=COLUMNS), rows="all"),
    "w3c columns": LogRules(Layout(LogFormat.W3C, columns=COLUMNS), url="?{guid}"),
    "one column": LogRules(Layout(columns=(ColumnSpec("id", value="x-metric-id"),))),
    "url of every row": LogRules(url="/{id}/{country}/{guid}/{bytes_sent}?{city}"),
    "constant url": LogRules(url="/all.mp3"),
}
GOOD: dict[str, Any] = {
    "id": "11111111-2222-4333-8444-555555555555",
    "podcast_id": "c9f1e6f2-6f0d-11ec-8f0c-0f1f2f3f4f5f",
    "episode_id": EPISODE,
    "created_at": "2026-11-20T12:00:00.000Z",
    "ip": "192.0.2.55",
    "filesize": 1000,
    "bytes_sent": 1000,
    "seconds_downloaded": 61,
    "duration": 61.5,
    "blacklisted_ip": False,
    "blacklisted_ua": False,
    "user_agent": "Player/1.0",
    "normalized_user_agent": "other",
    "country": "US",
    "city": "São Paulo",
}
ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 59, 60, 999, 1001, 2**63 - 1, 2**63, 2**64, 10**30, 0.0, -0.0, 1.0, 1.5,
    1e3, 1e300, "",
    " ", "-", "0", "60", "1000", "1000.0", "\uff11\uff10\uff10\uff10", "true", "false", "True", "x" * 3000,
    "é\u2028\u0085\x7f", "\t\n\r\\\"%",
    "#comment", "\u00a0\u3000", "\ud7ff", "\U0010ffff", [], [1], {}, {"id": "x"}, ["true"],
]  # fmt: skip
ODD_FIELD_VALUES: dict[str, list[Any]] = {
    "id": ["abc", "A1-b_c.d~e:f", "with blank", "ümlaut", "11111111-2222-4333-8444-55555555555", "#1",
           "11111111-2222-4333-8444-55555555555G", "11111111-2222-4333-8444-55555555555A",
           "11111111222243338444555555555555    ", "11111111 2222-4333-8444-555555555555", 12345,
           "a%22b", '"', "\x00", "-", "\ta", "a ", "\u2028"],
    "created_at": ["2026-11-20T23:59:59Z", "2026-11-20 23:59:59.999999+00:00", "2026-11-21T00:00:00.000Z",
                   "2026-11-19T23:59:59", "2026-02-29T00:00:00Z", "2024-02-29T00:00:00Z", "2026-11-20T24:00:00Z",
                   "2026-11-20T23:59:60Z", "2026-11-20T12:00:00+01:00", "2026-11-20T12:00:00.Z", "0000-01-01T00:00:00Z",
                   "2026-11-20T12:00:00z", "2026-11-20 12:00:00 UTC", "2026-11-20T12:00:00+0000",
                   "2026-11-21T01:30:00+0200", "2026-11-20T12:00:00 -0130", "2026-11-20T12:00:00+24:00",
                   "0001-01-01T00:00:00+00:01",
                   "2026-11-20", "2026-11-20T12:00Z", " 2026-11-20T12:00:00Z", "\uff12026-11-20T12:00:00Z"],
    "ip": [" 203.0.113.77    ", "          1.2.3.0", "\u3000\u3000203.0.113.255\u3000", "token-token-token-token.0",
           "1.2.3.0", "255.255.255.255", "1.2.3.04", "1.2.3", "1.2.3.4.5", "256.1.1.1", " 1.2.3.4 ", "\u00a01.2.3.4",
           "1.2.3.4\n", "\uff11.2.3.4", "1.2.3.4\x00", "c19af70f3fb71c0f7adfb4d89dacccd3", "::", "::1", "::1.2.3.4",
           "::ffff:1.2.3.4", "::ffff:1.2.3.0", "::ffff:0102:0304", "::ffff:0:1.2.3.4", "0::1:2", "1::",
           "1:2:3:4:5:6:7::",
           "::2:3:4:5:6:7:8", "1:0:0:2:0:0:0:3", "1:0:2:3:4:5:6:7", "2001:DB8::A", "2001:db8:0:0:1:0:0:1",
           "2001:0db8:0000:0000:0001:0000:0000:0001", "fe80::1%eth0", "64:ff9b::1.2.3.4", "1:2:3:4:5:6:1.2.3.4", ":::",
           "1::2::3", "12345::", "g::", "0:0:0:0:0:ffff:102:304", "2002::1", "100:0:0:0:0:0:0:0", "1:2:3:4:5:6:7:8:9",
           "x\ty", "a:b", "127.1", "0x7f.0.0.1", "2130706433", 2130706433, "1.2.3.4/24", "[::1]", "::%",
           "1.2.3.0:80", "[::1]:80", "[::ffff:1.2.3.0]:1", "1.2.3.4:99999", "1.2.3.4, 5.6.7.0",
           "1.2.3.0,::1", "1.2.3.4,token", "1.2.3.4:1,[::1]:2", "1.2.3.4,"],
    "podcast_id": ["a b/ü?#", "p" * 2040, "\x01", 7],
    "episode_id": ["a b/ü?#", "only-url", "BOTH", " both ", "both", 7],
    "filesize": ["1", "01", "1.0", 2**53 + 1.0, "9" * 30, " 1"],
    "bytes_sent": ["0", "1", "01", "1.0", "9" * 30, 1e400],
    "seconds_downloaded": ["59.9", "60.0", "6e1", "-60", 59.999, 1e300],
    "user_agent": ["a\tb", 'say "hi"\\', "\u201eKüche\u201c", "%41", "\x00", "🎧", "#"],
}  # fmt: skip


UNKNOWN_VALUES = [
    b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"', b'"\xf0\x9f\x8e\xa7"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\x41"',
    b'"\x01"', b'"\x7f"', b'"', b"01", b"-", b"1.", b".5", b"+1", b"1e", b"1e5", b"1e400", b"9" * 400, b"-0", b"9" * 40,
    b"0x1", b"NaN", b"Infinity", b"tru", b"nulll", b"'a'", b"", b",", b"[1,]", b'{"a":1,}', b'{"a"}', b"{1:2}",
    b'[{"a":[null]}]', b'{"id":"inner"}', b"[" * 500 + b"]" * 500, b"[" * 990 + b"]" * 990, b"[" * 1023 + b"]" * 1023,
    b"[" * 1030 + b"]" * 1030, b'{"a":' * 400 + b"1" + b"}" * 400, b"1 /* note */", b"1\x00", b"1\x0b", b'"a" "b"',
]  # fmt: skip


# Surrogates without their other half, as they stand in a JSON string; and what only looks like one.
HALVES = [
    rb"\ud83d",
    rb"x\uDE00",
    rb"\ud83d\ud83d\ude00",
    rb"\\ud83d",
    rb"\\\ud83d",
    rb"\ufffd",
    b"\xed\xa0\xbd",
    rb"\ud83",
]


def _json(name: str, value: Any) -> bytes:
    if isinstance(value, int) and value.bit_length() > 64:  # orjson writes none of these
        return orjson.dumps({**GOOD, name: "BIG"}).replace(b'"BIG"', str(value).encode())
    if value == float("inf"):
        return orjson.dumps({**GOOD, name: "BIG"}).replace(b'"BIG"', b"1e400")
    return orjson.dumps({**GOOD, name: value})


def nasty_rows() -> list[bytes]:
    """Rows with every odd value in every field, with and without the field, and lines that are not rows."""
    rows = [
        orjson.dumps(GOOD),
        b"", b" ", b"\r", b"\xc2\xa0\xe3\x80\x80", b"\x1c", b"null", b"1", b'"text"', b"[]", b"{}", b"{",
        b"\xff", b"\xef\xbb\xbf{}",
        b'{"id":"\\ud800"}', b'{"id":"x","id":null}', b"[" * 2000, b'{"a":NaN}', b"nul", b"]", b"[", b",", b"{},",
        orjson.dumps(GOOD)[:-1] + b',"id":"twice"}',
        orjson.dumps(GOOD)[:-1] + b',"filesize":01}',
        orjson.dumps(GOOD)[:-1] + b',"user_agent":"\\u2028\\u0000\\ud83d\\ude00"}',
        orjson.dumps(GOOD)[:-1] + b',"unknown":[1,{"x":2}]}',
        orjson.dumps(GOOD) + b"\r", b"\t " + orjson.dumps(GOOD) + b" ", orjson.dumps(GOOD).replace(b":", b" : "),
        orjson.dumps(GOOD).replace(b"\xc3", b"\xff"),
        *(orjson.dumps(GOOD)[:-1] + b',"unknown":' + value + b"}" for value in UNKNOWN_VALUES),
        *(orjson.dumps(GOOD).replace(b'"US"', value) for value in UNKNOWN_VALUES),
        orjson.dumps(GOOD).replace(b"Player", b"Pl\x01ayer"),
        *(orjson.dumps({**GOOD, name: "@"}).replace(b"@", half) for name in GOOD for half in HALVES),
    ]  # fmt: skip
    for name in GOOD:
        rows.append(orjson.dumps({key: value for key, value in GOOD.items() if key != name}))
        values = [*ODD_VALUES, *ODD_FIELD_VALUES.get(name, [])]
        rows += [_json(name, value) for value in values]
    for ip, episode in itertools.product(["1.2.3.0", "token", "2001:db8::1"], ["", None, "only-url", "x?y=z"]):
        rows.append(orjson.dumps({**GOOD, "ip": ip, "episode_id": episode}))
    for sent, size in itertools.product([0, 1, 2, 10], repeat=2):
        rows.append(orjson.dumps({**GOOD, "bytes_sent": sent, "filesize": size}))
    for bad_ip, bad_ua, seconds in itertools.product([True, False, "true", "false", None], [True, "true", 0], [1, 60]):
        flags = {"blacklisted_ip": bad_ip, "blacklisted_ua": bad_ua, "seconds_downloaded": seconds}
        rows.append(orjson.dumps({**GOOD, **flags}))
        rows.append(orjson.dumps({**GOOD, **flags, "bytes_sent": 1001, "ip": "1.2.3.0", "episode_id": "nowhere"}))
        rows.append(orjson.dumps({**GOOD, **flags, "ip": "token", "created_at": "2026-11-21T00:00:00Z"}))
    return rows


def with_ids(rows: list[bytes]) -> list[bytes]:
    """The same rows, with an id of its own for each that has the common one."""
    own = (f"11111111-2222-4333-8444-{number:012x}".encode() for number in itertools.count())
    return [row.replace(GOOD["id"].encode(), next(own)) for row in rows]
