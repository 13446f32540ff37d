"""Listeners' addresses: what is one, how much of it is sent, and the keyed hash beside it.

No outside world. The expected hashes are made here, with hmac and hashlib alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tracemalloc

import pytest

from server.convert.row import keyed_hash, listener_address, sent_address

from ..support.rows import KEY, cells, converted, row, rules


def mac(text: str, key: bytes = KEY) -> str:
    """HMAC-SHA-256, the long way."""
    return hmac.new(key, text.encode("utf-8"), hashlib.sha256).hexdigest()


TOKEN = "c19af70f3fb71c0f7adfb4d89dacccd3"

# (as it came, canonical, truncated, what the hash is over)
ADDRESSES = [
    ("203.0.113.77", "203.0.113.77", "203.0.113.0", "203.0.113.77"),
    ("203.0.113.0", "203.0.113.0", "203.0.113.0", "203.0.113.0"),
    (" \t203.0.113.77\u00a0\n", "203.0.113.77", "203.0.113.0", "203.0.113.77"),
    ("0.0.0.0", "0.0.0.0", "0.0.0.0", "0.0.0.0"),
    ("255.255.255.255", "255.255.255.255", "255.255.255.0", "255.255.255.255"),
    ("2001:0DB8:0000:0000:0008:0800:200C:417A", "2001:db8::8:800:200c:417a", "2001:db8::", "2001:db8::"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6", "2001:db8:1::", "2001:db8:1:2::"),
    ("2001:db8:1:2:0:0:0:1", "2001:db8:1:2::1", "2001:db8:1::", "2001:db8:1:2::"),
    ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1", "2001:db8::", "2001:db8::"),
    ("2001:DB8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8:ffff::",
     "2001:db8:ffff:ffff::"),
    ("::1", "::1", "::", "::"),
    ("::ffff:203.0.113.77", "203.0.113.77", "203.0.113.0", "203.0.113.77"),
    ("::FFFF:cb00:714d", "203.0.113.77", "203.0.113.0", "203.0.113.77"),
    ("::ffff:0:0", "0.0.0.0", "0.0.0.0", "0.0.0.0"),
    ("64:ff9b::203.0.113.77", "64:ff9b::cb00:714d", "64:ff9b::", "64:ff9b::"),
    ("0000:0000:0000:0000:0000:ffff:255.255.255.255", "255.255.255.255", "255.255.255.0", "255.255.255.255"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "full", "cut", "hashed"), ADDRESSES)
def test_an_address_is_sent_full_or_truncated_and_hashed(text: str, full: str, cut: str, hashed: str) -> None:
    """Full, it stands alone in canonical text; truncated, the keyed hash of the whole (IPv6: its /64) is beside it."""
    sent = sent_address(text, truncated=False, key=KEY)
    assert (sent.ip, sent.hashed_ip, sent.is_address) == (full, "-", True)
    sent = sent_address(text, truncated=True, key=KEY)
    assert (sent.ip, sent.hashed_ip, sent.is_address) == (cut, mac(hashed), True)


@pytest.mark.parametrize(
    "text",
    [TOKEN, "1.2.3", "1.2.3.4.5", "01.2.3.4", "256.1.1.1", "1.2.3.4/32", "[::1]", "fe80::1%eth0",
     "fe80::1%", "::ffff:1.2.3.4%1", "1:2:3:4:5:6:7:8:9", "16909060", "0x01020304", "127.1", "unknown", "-", "ß∂ƒ",
     "1.2.3.\u0664", "2001:db8:::1", "1.2.3.0 1", "1.2.3.4:", "1.2.3.4:65536", "1.2.3.4:\u0661", "1.2.3.4:80:80",
     "01.2.3.4:80", "[1.2.3.4]:80", "[::1]:", "[::1]80", "[::1%eth0]:80", "[token]:80", "host:80", "1.2.3.4,",
     ",1.2.3.4", "1.2.3.4, token", "token, 1.2.3.4", "1.2.3.4;5.6.7.8", "1.2.3.4,,5.6.7.8", ","],
)  # fmt: skip
@pytest.mark.parametrize("truncated", [False, True])
def test_what_is_no_address_is_a_token(text: str, truncated: bool) -> None:
    """Its IP is ``-`` and its hash is over the token as it came, whatever the ``ip`` setting."""
    sent = sent_address(text, truncated=truncated, key=KEY)
    assert (sent.ip, sent.hashed_ip, sent.is_address, sent.ends_in_zero) == ("-", mac(text), False, False)
    assert listener_address(text) is None


# (as it came, the address in it)
READDRESSED = [
    ("203.0.113.9:5678", "203.0.113.9"),
    ("203.0.113.0:0", "203.0.113.0"),
    (" 203.0.113.9:65535\t", "203.0.113.9"),
    ("[2001:DB8::1]:443", "2001:db8::1"),
    ("[::ffff:203.0.113.9]:1", "203.0.113.9"),
    ("198.51.100.7, 203.0.113.2", "198.51.100.7"),
    ("2001:db8::1,203.0.113.2,\u00a0198.51.100.7", "2001:db8::1"),
    ("198.51.100.7:80, [2001:db8::2]:443", "198.51.100.7"),
    ("[0000:0000:0000:0000:0000:ffff:255.255.255.255]:65535", "255.255.255.255"),
]


@pytest.mark.parametrize(("text", "address"), READDRESSED)
@pytest.mark.parametrize("truncated", [False, True])
def test_an_address_with_a_port_or_in_a_list_is_that_address(text: str, address: str, truncated: bool) -> None:
    """Of a list the first one: the client, as in X-Forwarded-For. It is noticed, and else like the bare address."""
    sent = sent_address(text, truncated=truncated, key=KEY)
    assert sent == sent_address(address, truncated=truncated, key=KEY)._replace(readdressed=True)


@pytest.mark.parametrize(
    "text", ["[" + ":" * 8_000_000, "1." * 40_000, "1.2.3.4," * 10_000, "1.2.3.4," * 9 + "1" * 80_000]
)
def test_what_looks_like_an_address_for_megabytes_takes_neither_time_nor_memory(text: str) -> None:
    """A bracket and a megabyte of colons took hours; sixteen of dots and digits 350 MB, as many addresses 200."""
    tracemalloc.start()
    try:
        sent = sent_address(text, truncated=False, key=KEY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not sent.is_address
    assert peak < 3 * len(text)


def test_blanks_around_a_token_do_not_count_and_its_case_does() -> None:
    """Stripped, else as it came."""
    assert sent_address(f"\u2003 {TOKEN}\t", truncated=False, key=KEY).hashed_ip == mac(TOKEN)
    assert sent_address(TOKEN.upper(), truncated=False, key=KEY).hashed_ip == mac(TOKEN.upper()) != mac(TOKEN)


@pytest.mark.parametrize(
    ("text", "zero"),
    [("203.0.113.0", True), ("::ffff:203.0.113.0", True), ("203.0.113.10", False), ("203.0.0.1", False),
     ("2001:db8::", False), ("203.0.113.100", False), ("x.0", False)],
)  # fmt: skip
@pytest.mark.parametrize("truncated", [False, True])
def test_an_ipv4_address_that_ends_in_zero_is_noticed(text: str, zero: bool, truncated: bool) -> None:
    """It may have been truncated before it came; what we truncate ourselves does not count."""
    assert sent_address(text, truncated=truncated, key=KEY).ends_in_zero is zero


def test_the_hash_is_a_known_hmac() -> None:
    """RFC 4231, test case 2: the function is HMAC-SHA-256, in lower-case hex."""
    expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert keyed_hash("what do ya want for nothing?", b"Jefe") == expected


def test_the_key_is_part_of_the_hash() -> None:
    """Two sites have two hashes of one address, and none is the hash without a key."""
    one, other = (sent_address("203.0.113.77", truncated=True, key=key).hashed_ip for key in (KEY, b"\1" * 32))
    assert one != other
    assert hashlib.sha256(b"203.0.113.77").hexdigest() not in (one, other)
    assert re.fullmatch("[0-9a-f]{64}", one)


def test_listeners_of_one_ipv6_network_are_one() -> None:
    """The IAB's /64: addresses that a device changes daily hash alike, the neighbour's do not."""
    hashes = [
        sent_address(text, truncated=True, key=KEY).hashed_ip
        for text in ("2001:db8:1:2:aaaa::1", "2001:db8:1:2:bbbb::2", "2001:db8:1:3::1")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("ip", "setting", "sent", "hashed"),
    [
        ("203.0.113.77", "full", "203.0.113.77", "-"),
        ("203.0.113.77", "truncated", "203.0.113.0", mac("203.0.113.77")),
        (TOKEN, "full", "-", mac(TOKEN)),
        (TOKEN, "truncated", "-", mac(TOKEN)),
        (98127365, "full", "-", mac("98127365")),
        ("::ffff:203.0.113.77", "truncated", "203.0.113.0", mac("203.0.113.77")),
    ],
)
def test_a_line_carries_what_the_setting_allows(ip: object, setting: str, sent: str, hashed: str) -> None:
    """The two columns, and nowhere else in the line the address."""
    line = cells(row(ip=ip), rules(ip=setting))
    assert (line["IP"], line["Hashed-IP"]) == (sent, hashed)
    whole = converted(row(ip=ip), rules(ip=setting)).line
    if sent != str(ip):
        assert str(ip) not in whole
