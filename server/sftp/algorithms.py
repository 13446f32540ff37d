"""Which SSH algorithms are offered, and why a client that shares none of them cannot connect.

Pure; knows nothing of asyncssh. Promise: no profile has anything with SHA-1, CBC or a group of unproven size; clients
are offered exactly these lists, which tests compare with what goes over the wire.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

KEX = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "diffie-hellman-group16-sha512",
)
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
# Only if configured: the client's order decides (RFC 4253, section 7.1), OpenSSH's begins with it, and it is slow here.
CHACHA20 = "chacha20-poly1305@openssh.com"
# PuTTY has AES-GCM since 0.78, but prefers AES-CTR, which costs this server twice as much.
_RATHER_CTR = r"PuTTY_Release_(?:0\.(?:7[89]|[89]\d)|[1-9]\d*\.\d+)"
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
# Listed in full because asyncssh's own list has duplicates, which crash libssh2 1.11.1 (curl) with an RSA key.
SIGNATURES = (
    "ssh-ed25519",
    "rsa-sha2-512",
    "rsa-sha2-256",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
)
HOST_KEYS = ("ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256")
RSA_HOST_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")
LEGACY_KEX = "ecdh-sha2-nistp256"
LEGACY_HOST_KEY = "ecdsa-sha2-nistp256"
HOST_KEY_FILES = {  # name of the file: asyncssh's name of the algorithm
    "ssh_host_ed25519_key": "ssh-ed25519",
    "ssh_host_ecdsa_key": LEGACY_HOST_KEY,
    "ssh_host_rsa_key": "ssh-rsa",
}
_MARKERS = ("ext-info-", "kex-strict-")  # in a kex list, but not algorithms


@dataclass(frozen=True, slots=True)
class Offer:
    """What one side of a key exchange offers, list by list in the order of RFC 4253, section 7.1."""

    kex: tuple[str, ...]
    host_keys: tuple[str, ...]
    ciphers_in: tuple[str, ...]  # from the client to the server, and back
    ciphers_out: tuple[str, ...]
    macs_in: tuple[str, ...]
    macs_out: tuple[str, ...]
    compressions_in: tuple[str, ...] = ("none",)
    compressions_out: tuple[str, ...] = ("none",)

    @classmethod
    def parse(cls, kexinit: bytes) -> Offer | None:
        """Parse an SSH_MSG_KEXINIT payload; return None if it is malformed."""
        lists = []
        position = 17  # after the message code and 16 bytes of cookie
        for _ in range(8):
            length = int.from_bytes(kexinit[position : position + 4], "big")
            text = kexinit[position + 4 : position + 4 + length]
            # Names are in US-ASCII (RFC 4251, section 6).
            if len(kexinit) < position + 4 + length or not text.isascii():
                return None
            lists.append(tuple(name for name in text.decode("ascii").split(",") if name))
            position += 4 + length
        return cls(*lists)


@dataclass(frozen=True, slots=True)
class Profile:
    """The lists of one configuration, in the order they are offered."""

    kex: tuple[str, ...] = KEX
    host_keys: tuple[str, ...] = HOST_KEYS
    ciphers: tuple[str, ...] = CIPHERS
    macs: tuple[str, ...] = MACS
    signatures: tuple[str, ...] = SIGNATURES

    @classmethod
    def of(cls, *, legacy: bool = False, chacha20: bool = False) -> Profile:
        """Return the profile of the settings ``legacy_algorithms`` and ``chacha20``."""
        return cls(
            kex=(*KEX, LEGACY_KEX) if legacy else KEX,
            host_keys=(*HOST_KEYS, LEGACY_HOST_KEY) if legacy else HOST_KEYS,
            ciphers=(*CIPHERS, CHACHA20) if chacha20 else CIPHERS,
        )

    @property
    def offer(self) -> Offer:
        """What a server with this profile offers."""
        return Offer(self.kex, self.host_keys, self.ciphers, self.ciphers, self.macs, self.macs)


DEFAULT = Profile.of()
LEGACY = Profile.of(legacy=True)


def negotiate(client: tuple[str, ...], server: tuple[str, ...]) -> str | None:
    """Return the first of the client's algorithms that the server has too, or None (RFC 4253, section 7.1)."""
    return next((name for name in client if name in server and not name.startswith(_MARKERS)), None)


def ciphers_for(client: str, ciphers: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of these ciphers are offered to a client, by its version without the protocol's.

    The client's order decides (RFC 4253, section 7.1); a client that has the faster cipher but would choose the
    slower one is not offered the slower one. With ChaCha20 the operator has said that speed here does not count.
    """
    if CHACHA20 in ciphers or not re.match(_RATHER_CTR, client, re.ASCII):
        return ciphers
    return tuple(name for name in ciphers if authenticates(name))


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Why a key exchange failed: which list has no common entry, both sides of it, and what to do."""

    what: str
    client: tuple[str, ...]
    server: tuple[str, ...]
    hint: str


def find_disagreement(client: Offer, server: Offer) -> Disagreement | None:
    """Return the first list in which the two sides have nothing in common, or None if they agree on everything."""
    found = _first_without_common(client, server)
    if found is None:
        return None
    what, theirs, ours = (found[0], *(tuple(n for n in names if not n.startswith(_MARKERS)) for names in found[1:]))
    return Disagreement(what, theirs, ours, _cure(client, server))


def _first_without_common(client: Offer, server: Offer) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """Return the name of the first list without a common entry, and both sides of it."""
    pairs = (
        ("key exchange", client.kex, server.kex, ""),
        ("host key", client.host_keys, server.host_keys, ""),
        ("cipher", client.ciphers_in, server.ciphers_in, ""),
        ("cipher", client.ciphers_out, server.ciphers_out, ""),
        ("MAC", client.macs_in, server.macs_in, negotiate(client.ciphers_in, server.ciphers_in)),
        ("MAC", client.macs_out, server.macs_out, negotiate(client.ciphers_out, server.ciphers_out)),
        ("compression", client.compressions_in, server.compressions_in, ""),
        ("compression", client.compressions_out, server.compressions_out, ""),
    )
    for what, theirs, ours, cipher in pairs:
        # A cipher that authenticates by itself needs no MAC (RFC 5647, section 5.1).
        if negotiate(theirs, ours) is None and not authenticates(cipher or ""):
            return what, theirs, ours
    return None


def authenticates(cipher: str) -> bool:
    """Return whether a cipher authenticates what it encrypts, and so needs no MAC."""
    return "gcm" in cipher or "poly1305" in cipher


def _cure(client: Offer, server: Offer) -> str:
    """Return what to do: the settings with which the two sides would agree, if there are any."""
    legacy_now, chacha20_now = LEGACY_KEX in server.kex, CHACHA20 in server.ciphers_out
    for legacy, chacha20 in ((True, False), (False, True), (True, True)):
        better = Profile.of(legacy=legacy or legacy_now, chacha20=chacha20 or chacha20_now).offer
        if _first_without_common(client, better) is None:
            settings = ["legacy_algorithms = true"] * legacy + ["chacha20 = true"] * chacha20
            return f"set {' and '.join(settings)} in [sftp]"
    return "the partner must update their SSH client"
