"""The fast path for file data: from a reply to encrypted packets with one copy.

asyncssh sends each 32 KiB of channel data through nine copies, a new cipher object, a system call, and an IGNORE packet
before it (a defence for CBC, which is not offered). That is more than half of the time that a transfer takes. For
AES-GCM the packets of a whole reply are built here in one buffer and written at once.

Touches the internals of asyncssh's connection, channel and cipher objects, and no outside world. Promise: the packets
are those that asyncssh would send, without the IGNOREs, and leave its counters as if it had sent them; with any other
cipher, during a key exchange, or with an asyncssh whose code cannot be read or is not the one that this was written
against, nothing is done, and the reply takes the slow path, through the channel's public methods.
"""
# ruff: noqa: SLF001  # there is no public way to do this; `KNOWN_CODE` holds what is relied on

from __future__ import annotations

import hashlib
import inspect
import os
import struct
import time
from typing import TYPE_CHECKING, Any

from asyncssh.channel import SSHChannel
from asyncssh.connection import SSHConnection
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

KNOWN_CODE = {
    "8d6cc0c0f649e921a072bedfc63d4f6d8b483053728305e24ad2913812907989",  # asyncssh 2.24.1
}
_CHANNEL_DATA = 94
_HEADER = struct.Struct(">BBII")  # padding length, message code, channel, length of the data
_LENGTH = struct.Struct(">I")
_BLOCK = 16
_TAG = 16
_MIN_PADDING = 4


_REPEATED: tuple[Any, ...] = (
    SSHConnection.send_packet,
    SSHConnection._send,
    SSHConnection._send_kexinit,
    SSHConnection.send_newkeys,
    SSHChannel.write,
    SSHChannel._flush_send_buf,
    SSHChannel.send_packet,
    SSHChannel._process_window_adjust,
    GCMEncryption,
    GCMCipher,
)


def code_in_use(parts: Iterable[Any] = _REPEATED) -> str:
    """Return a fingerprint (SHA-256, hex) of code, by default of what is repeated here; "" where it has no sources."""
    try:
        text = "\n".join(map(inspect.getsource, parts))
    except OSError:  # an installation that has only compiled files
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


KNOWN = code_in_use() in KNOWN_CODE and hasattr(AESGCM, "encrypt_into")


class FastSender:
    """The fast path of one channel."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._connection: Any = channel.get_connection()
        self._cipher: GCMCipher | None = None
        self._gcm = AESGCM(bytes(16))
        self._packet = bytearray()

    def send(self, transport: asyncio.Transport, reply: memoryview) -> int | None:
        """Send as much of a reply as the client's window takes; return the count, or None to send it the slow way."""
        channel, connection = self._channel, self._connection
        encryption = connection._send_encryption
        if (
            not KNOWN
            or type(encryption) is not GCMEncryption
            or channel._send_state != "open"
            # What the channel still holds must go first.
            or channel._send_buf
            or not connection._kex_complete
            or not connection._auth_complete
            or connection._compressor is not None
            # Near the rekeying limit asyncssh sends the packet itself, and then starts the key exchange.
            or connection._rekey_bytes_sent + 2 * len(reply) >= connection._rekey_bytes
            or (connection._rekey_seconds and time.monotonic() >= connection._rekey_time)
            or connection._transport is not transport
        ):
            return None
        cipher = encryption._cipher
        # A key exchange brings a new cipher object, with a new key.
        if cipher is not self._cipher:
            self._cipher, self._gcm = cipher, AESGCM(cipher._key)
        count = min(len(reply), int(channel._send_window))
        if count:
            transport.write(self._packets(cipher, reply[:count]))
            channel._send_window -= count
        return count

    def _packets(self, cipher: GCMCipher, source: memoryview) -> bytearray:
        """Return the encrypted packets (RFC 5647, section 7.2) that carry the data; count them as sent."""
        channel, connection = self._channel, self._connection
        longest, number = channel._send_pktsize, channel._send_chan
        whole, rest = divmod(len(source), longest)
        sizes = [longest] * whole + [rest] * bool(rest)
        packets = [(size, _padded(size)) for size in sizes]
        output = bytearray(sum(padded for _, padded in packets) + (4 + _TAG) * len(packets))
        if len(self._packet) < packets[0][1]:
            self._packet = bytearray(packets[0][1])
        padding = os.urandom(_BLOCK + _MIN_PADDING)
        invocation = int.from_bytes(cipher._iv[4:], "big")
        fixed = cipher._iv[:4]
        at, taken = 0, 0
        with memoryview(self._packet) as packet, memoryview(output) as target:
            for size, padded in packets:
                end = _HEADER.size + size
                _HEADER.pack_into(packet, 0, padded - end, _CHANNEL_DATA, number, size)
                packet[_HEADER.size : end] = source[taken : taken + size]
                packet[end:padded] = padding[: padded - end]
                _LENGTH.pack_into(target, at, padded)
                self._gcm.encrypt_into(
                    fixed + invocation.to_bytes(8, "big"),
                    packet[:padded],
                    target[at : at + 4],
                    target[at + 4 : at + 4 + padded + _TAG],
                )
                # Every packet has a nonce of its own: one that repeats would break AES-GCM.
                invocation = (invocation + 1) & 0xFFFFFFFFFFFFFFFF
                at += 4 + padded + _TAG
                taken += size
        # The caller writes these packets at once, so invocation, sequence number and rekeying count move on here.
        cipher._iv = fixed + invocation.to_bytes(8, "big")
        connection._send_seq = (connection._send_seq + len(packets)) & 0xFFFFFFFF
        connection._rekey_bytes_sent += sum(padded for _, padded in packets)
        return output


def _padded(size: int) -> int:
    """Return the length of a packet with ``size`` bytes of channel data, padded to blocks (RFC 4253, section 6)."""
    payload = _HEADER.size + size
    padding = -payload % _BLOCK
    return payload + (padding if padding >= _MIN_PADDING else padding + _BLOCK)
