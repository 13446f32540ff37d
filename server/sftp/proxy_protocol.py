"""The PROXY protocol, by which a balancer says whose connection it passes on, in a header before everything else.

Versions 1 and 2 of HAProxy's doc/proxy-protocol.txt. Pure: bytes in, an address or an error out. Promise: not one byte
after the header is asked for, since those are SSH's.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from .limits import parse_address

if TYPE_CHECKING:
    from .limits import Address

LINE = b"PROXY "  # begins version 1 (section 2.1)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # begins version 2 (section 2.2)
LONGEST_LINE = 107  # bytes, with its line end (section 2.1)
LONGEST_HEADER = 4096  # bytes of version 2, our limit: what balancers add to the addresses takes a few hundred
_SHORTEST = 15  # bytes: "PROXY UNKNOWN" and its line end; version 2 has at least one more
_FIXED = 16  # bytes of version 2 before the addresses
_PORT = re.compile("0|[1-9][0-9]{0,4}")
_LOCAL, _PROXY = 0x20, 0x21  # version and command
# By family and transport: the length of all addresses in bytes, and of the client's own, 0 if it cannot be used here.
_FAMILIES = {0x00: (0, 0), 0x11: (12, 4), 0x12: (12, 0), 0x21: (36, 16), 0x22: (36, 0), 0x31: (216, 0), 0x32: (216, 0)}
_CHECKSUM = 3  # PP2_TYPE_CRC32C (section 2.2.3)


class BadHeader(ValueError):
    """What a balancer sent is not a header that can be trusted; the text says what is wrong with it."""


def missing(head: bytes) -> int:
    """Return how many more bytes may safely be read, 0 if ``head`` is a whole header.

    Raises:
        BadHeader: it cannot become one.
    """
    if not head.startswith((LINE[: len(head)], SIGNATURE[: len(head)])):
        raise BadHeader("it sends no PROXY header")
    if len(head) < _SHORTEST:
        return _SHORTEST - len(head)
    if head.startswith(LINE):
        if head.endswith(b"\r\n"):
            return 0
        if len(head) >= LONGEST_LINE:
            raise BadHeader(f"its PROXY line has no end within {LONGEST_LINE} bytes")
        # The line end is two bytes, so reading two at a time cannot go beyond it.
        return 1 if head.endswith(b"\r") else min(2, LONGEST_LINE - len(head))
    if len(head) < _FIXED:
        return _FIXED - len(head)
    size = _FIXED + int.from_bytes(head[14:16], "big")
    if size > LONGEST_HEADER:
        raise BadHeader(f"its PROXY header is {size} bytes long, and at most {LONGEST_HEADER} are read")
    return size - len(head)


def client_of(head: bytes) -> Address | None:
    """Return the client that a whole header names, or None if the balancer names none, or speaks for itself.

    Raises:
        BadHeader: it is malformed.
    """
    return _named_in_line(head[:-2]) if head.startswith(LINE) else _named_in_block(head)


def announcement(client: Address, server: Address) -> bytes:
    """Return a header of version 1 that names ``client``; both addresses must be of one family."""
    return f"PROXY TCP{client.version} {client} {server} 0 0\r\n".encode("ascii")


def _named_in_line(line: bytes) -> Address | None:
    try:
        words = line.decode("ascii").split(" ")
        if words[1] == "UNKNOWN":  # the rest of it is to be ignored
            return None
        kind = {"TCP4": IPv4Address, "TCP6": IPv6Address}[words[1]]
        _, _, client, server, *ports = words
        kind(server)
        if len(ports) != 2 or not all(_PORT.fullmatch(port) and int(port) <= 0xFFFF for port in ports) or "%" in client:
            raise BadHeader("its PROXY line is malformed")
        return parse_address(str(kind(client)))
    except (ValueError, KeyError):  # not ASCII, too few words, another protocol, no addresses
        raise BadHeader("its PROXY line is malformed") from None


def _named_in_block(head: bytes) -> Address | None:
    if head[12] == _LOCAL:  # whatever follows
        return None
    if head[12] != _PROXY:
        raise BadHeader(f"its PROXY header is of an unknown version or command: 0x{head[12]:02x}")
    if head[13] not in _FAMILIES:
        raise BadHeader(f"its PROXY header is of an unknown family or transport: 0x{head[13]:02x}")
    length, client = _FAMILIES[head[13]]
    if len(head) < _FIXED + length:
        raise BadHeader("the addresses in its PROXY header are cut short")
    if not client:  # not from the internet, or not by TCP: "the receiver is free to accept the connection anyway"
        return None
    _check_additions(head, _FIXED + length)
    packed = head[_FIXED : _FIXED + client]
    return parse_address(str(IPv4Address(packed) if client == 4 else IPv6Address(packed)))


def _check_additions(head: bytes, at: int) -> None:
    """Check that what follows the addresses is well-formed, and the checksum, if there is one (section 2.2).

    Raises:
        BadHeader: it is not.
    """
    while at < len(head):
        kind, length = head[at], int.from_bytes(head[at + 1 : at + 3], "big")
        start, at = at + 3, at + 3 + length
        if start > len(head) or at > len(head):
            raise BadHeader("what its PROXY header adds to the addresses is cut short")
        if kind == _CHECKSUM and (
            length != 4 or _crc32c(head[:start] + bytes(4) + head[at:]).to_bytes(4, "big") != head[start:at]
        ):
            raise BadHeader("the checksum of its PROXY header is wrong")


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C (RFC 4960, appendix B)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
