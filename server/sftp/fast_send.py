"""The fast path for file data, through asyncssh's internals: from a reply to encrypted packets with one copy.

asyncssh sends each 32 KiB of channel data through nine copies, a new cipher object, a system call, and an IGNORE packet
before it (a defence for CBC, which is not offered). That takes more than half the time of a transfer. For AES-GCM, and
for AES-CTR with HMAC, the packets of a whole reply are built here in one buffer and written at once.

Touches the internals of asyncssh's connection, channel and cipher objects, and no outside world. Promise: the packets
are those that asyncssh would send, without the IGNOREs, and its counters end up as if it had sent them. With any other
cipher, during a key exchange, or with an asyncssh whose code cannot be read or is not the one this was written for,
nothing is done, and the reply takes the slow path, through the channel's public methods.
"""
# ruff: noqa: SLF001  # there is no public way to do this; `KNOWN_CODE` holds what is relied on

from __future__ import annotations

import hashlib
import inspect
import os
import struct
import time
from typing import TYPE_CHECKING, Any, Protocol

from asyncssh.channel import SSHChannel
from asyncssh.connection import SSHConnection
from asyncssh.crypto.cipher import BasicCipher, GCMCipher
from asyncssh.encryption import BasicEncryption, ETMEncryption, GCMEncryption
from asyncssh.mac import _HMAC, MAC
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hmac import HMAC

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

KNOWN_CODE = {
    "0b99cd2e14dc01d6fe45c8f70a84b66be3c6be09b829af71a593e78a9dc99632",  # asyncssh 2.24.1
}
_CHANNEL_DATA = 94
_HEADER = struct.Struct(">IBBII")  # packet length, padding length, message code, channel, length of the data
_SEQUENCE = struct.Struct(">I")
_NONCE = struct.Struct(">4sQ")  # of AES-GCM (RFC 5647, section 7.1): the fixed part and the counter of invocations
_LENGTH = 4  # bytes of a packet that its length does not count
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
    BasicEncryption,
    ETMEncryption,
    BasicCipher,
    MAC,
    _HMAC,
)


def code_in_use(parts: Iterable[Any] = _REPEATED) -> str:
    """Return a fingerprint (SHA-256, hex) of code, by default of what is repeated here; "" if its source is missing."""
    try:
        text = "\n".join(map(inspect.getsource, parts))
    except OSError:  # an installation with compiled files only
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


KNOWN = code_in_use() in KNOWN_CODE and hasattr(AESGCM, "encrypt_into")


class _Sealer(Protocol):
    """Encryption under one key; its state is that of asyncssh's own object, which goes on from there."""

    overhead: int  # bytes that follow a packet: tag or MAC
    clear: int  # bytes at the front of a packet that are not encrypted, and do not count for its padding

    def seal(self, sequence: int, packet: memoryview, target: memoryview) -> None:
        """Write a padded packet, its length in front, into ``target`` as it goes over the wire, with tag or MAC."""


class _Gcm:
    """AES-GCM (RFC 5647, section 7.2)."""

    overhead = _TAG
    clear = _LENGTH

    def __init__(self, cipher: GCMCipher) -> None:
        self._cipher = cipher
        self._aead = AESGCM(cipher._key)

    def seal(self, sequence: int, packet: memoryview, target: memoryview) -> None:
        nonce, length = self._cipher._iv, packet[:_LENGTH]
        target[:_LENGTH] = length
        self._aead.encrypt_into(nonce, packet[_LENGTH:], length, target[_LENGTH:])
        # Every packet needs a nonce of its own: a repeated one would break AES-GCM.
        fixed, invocation = _NONCE.unpack(nonce)
        self._cipher._iv = _NONCE.pack(fixed, (invocation + 1) & 0xFFFFFFFFFFFFFFFF)


class _Ctr:
    """AES-CTR (RFC 4344, section 4) with HMAC: of the packet (RFC 4253, section 6.4), or of what goes over the wire."""

    def __init__(self, cipher: BasicCipher, mac: _HMAC, *, encrypt_then_mac: bool) -> None:
        cipher.encrypt(b"")  # creates the encryptor, if this is the first packet under the key
        self._encryptor: Any = cipher._encryptor
        self._mac = HMAC(mac._key, getattr(hashes, mac._hash_alg().name.upper())())
        self._encrypt_then_mac = encrypt_then_mac
        self.overhead = mac._hash_size
        self.clear = _LENGTH if encrypt_then_mac else 0

    def seal(self, sequence: int, packet: memoryview, target: memoryview) -> None:
        clear = self.clear
        target[:clear] = packet[:clear]
        # Given all the room there is: older versions of cryptography want a block more than they write.
        self._encryptor.update_into(packet[clear:], target[clear:])
        mac = self._mac.copy()
        mac.update(_SEQUENCE.pack(sequence))
        mac.update(target[: len(packet)] if self._encrypt_then_mac else packet)
        target[len(packet) :] = mac.finalize()


def _sealer(encryption: Any) -> _Sealer | None:
    """Return the sealer for a connection's key, or None for a cipher that is not repeated here."""
    kind = type(encryption)
    if kind is GCMEncryption:
        return _Gcm(encryption._cipher)
    if kind in (BasicEncryption, ETMEncryption) and type(encryption._mac) is _HMAC:
        cipher = encryption._cipher
        if isinstance(cipher._cipher.mode, CTR):
            return _Ctr(cipher, encryption._mac, encrypt_then_mac=kind is ETMEncryption)
    return None


class FastSender:
    """The fast path of one channel."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._connection: Any = channel.get_connection()
        self._encryption: Any = None
        self._sealer: _Sealer | None = None
        self._packet = bytearray()

    def send(self, transport: asyncio.Transport, reply: memoryview) -> int | None:
        """Send as much of a reply as the client's window takes; return how many bytes, or None for the slow path."""
        channel, connection = self._channel, self._connection
        if (
            not KNOWN
            or channel._send_state != "open"
            # What the channel still holds must go first.
            or channel._send_buf
            or not connection._kex_complete
            or not connection._auth_complete
            or connection._compressor is not None
            # Near the rekeying limit asyncssh must send the packet itself, and then starts the key exchange.
            or connection._rekey_bytes_sent + 2 * len(reply) >= connection._rekey_bytes
            or (connection._rekey_seconds and time.monotonic() >= connection._rekey_time)
            or connection._transport is not transport
        ):
            return None
        # A key exchange brings a new object, with a new key.
        if connection._send_encryption is not self._encryption:
            self._encryption = connection._send_encryption
            self._sealer = _sealer(self._encryption)
        if self._sealer is None:
            return None
        count = min(len(reply), int(channel._send_window))
        if count:
            transport.write(self._packets(self._sealer, reply[:count]))
            channel._send_window -= count
        return count

    def _packets(self, sealer: _Sealer, source: memoryview) -> bytearray:
        """Return the encrypted packets that carry the data, counted as sent."""
        channel, connection = self._channel, self._connection
        longest, number, overhead = channel._send_pktsize, channel._send_chan, sealer.overhead
        whole, rest = divmod(len(source), longest)
        # (bytes of data, bytes of the packet, how many of them)
        kinds = [
            (size, _padded(size, sealer.clear), count)
            for size, count in ((longest, whole), (rest, 1))
            if size and count
        ]
        length = sum(padded * count for _, padded, count in kinds)
        output = bytearray(length + overhead * (whole + bool(rest)))
        if len(self._packet) < kinds[0][1]:
            self._packet = bytearray(kinds[0][1])
        padding = os.urandom(_BLOCK + _MIN_PADDING)
        sequence = connection._send_seq
        at, taken = 0, 0
        with memoryview(self._packet) as buffer, memoryview(output) as target:
            for size, padded, count in kinds:
                packet, end = buffer[:padded], _HEADER.size + size
                # Only the data differs from one packet to the next.
                _HEADER.pack_into(packet, 0, padded - _LENGTH, padded - end, _CHANNEL_DATA, number, size)
                packet[end:] = padding[: padded - end]
                for _ in range(count):
                    packet[_HEADER.size : end] = source[taken : taken + size]
                    taken += size
                    sealer.seal(sequence, packet, target[at : at + padded + overhead])
                    at += padded + overhead
                    sequence = (sequence + 1) & 0xFFFFFFFF
                packet.release()
        # The caller writes these packets at once, so sequence number and rekeying count advance here; the cipher's own
        # state has advanced with each packet.
        connection._send_seq = sequence
        connection._rekey_bytes_sent += length - _LENGTH * (whole + bool(rest))
        return output


def _padded(size: int, clear: int) -> int:
    """Return the length of a packet with ``size`` bytes of channel data, padded to blocks (RFC 4253, section 6)."""
    length = _HEADER.size + size
    padding = (clear - length) % _BLOCK
    return length + (padding if padding >= _MIN_PADDING else padding + _BLOCK)
