"""Listeners' addresses: what is one, how much of it is sent, and the keyed hash beside it.

No outside world; the key is handed in. Sources: Triton's IP and Hashed-IP columns ("full, or partial with the last
digit at 0 and the hashed address in an extra field"), the IAB's /64 for IPv6, RFC 5952 for writing it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address


@dataclass(frozen=True, slots=True)
class SentAddress:
    """The two columns of an address, ``IP`` and ``Hashed-IP``, and what it was.

    ``is_address`` is False for a token (what Megaphone sends where addresses are hashed); ``ends_in_zero`` is True for
    an IPv4 address whose last octet is 0, which may have been truncated before it came.
    """

    ip: str
    hashed_ip: str
    is_address: bool
    ends_in_zero: bool


def sent_address(text: str, *, truncated: bool, key: bytes) -> SentAddress:
    """What is sent of the address (or token) ``text``; blanks around it do not count.

    The hash is the lower-case hex HMAC-SHA-256 under ``key`` of the full IPv4 address, of the first address of the
    IPv6 /64, or of the token.
    """
    text = text.strip()
    address = parse_address(text)
    if address is None:
        return token(text, key)
    zero = isinstance(address, IPv4Address) and address.packed[3] == 0
    if not truncated:
        return SentAddress(str(address), "-", is_address=True, ends_in_zero=zero)
    if isinstance(address, IPv4Address):
        cut = str(IPv4Address(int(address) & 0xFFFFFF00))
        return SentAddress(cut, keyed_hash(str(address), key), is_address=True, ends_in_zero=zero)
    network64 = IPv6Address(int(address) >> 64 << 64)
    cut = str(IPv6Address(int(address) >> 80 << 80))
    return SentAddress(cut, keyed_hash(str(network64), key), is_address=True, ends_in_zero=False)


def token(text: str, key: bytes) -> SentAddress:
    """What is sent of a text that is no address."""
    return SentAddress("-", keyed_hash(text, key), is_address=False, ends_in_zero=False)


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """The address that ``text`` spells (an IPv4-mapped IPv6 address is its IPv4), or None for a token."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def keyed_hash(text: str, key: bytes) -> str:
    """HMAC-SHA-256 of a text under the site's secret, as 64 lower-case hex digits."""
    return hmac.digest(key, text.encode(), "sha256").hex()
