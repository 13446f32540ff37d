"""Which SSH algorithms are offered, and why a client that shares none of them cannot connect.

No outside world, no asyncssh. Promise: nothing with SHA-1, CBC or a group of unproven size is in either profile; what
stands here is what a client sees, and the tests compare both with what is really sent.
"""

from __future__ import annotations

from dataclasses import dataclass

KEX = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "diffie-hellman-group16-sha512",
)
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes192-ctr",
    "aes128-ctr",
)
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
# Given in full: asyncssh's own list has duplicates, which crash libssh2 1.11.1 (curl) with an RSA key.
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
_PSEUDO = ("ext-info-", "kex-strict-")  # markers in a kex list that are no algorithms


@dataclass(frozen=True, slots=True)
class Profile:
    """The lists of one configuration, in the order in which they are offered."""

    kex: tuple[str, ...]
    host_keys: tuple[str, ...]
    ciphers: tuple[str, ...] = CIPHERS
    macs: tuple[str, ...] = MACS
    signatures: tuple[str, ...] = SIGNATURES


DEFAULT = Profile(KEX, HOST_KEYS)
LEGACY = Profile((*KEX, LEGACY_KEX), (*HOST_KEYS, LEGACY_HOST_KEY))


@dataclass(frozen=True, slots=True)
class Offer:
    """What one side of a key exchange offers (RFC 4253, section 7.1), as far as it matters here."""

    kex: tuple[str, ...]
    host_keys: tuple[str, ...]
    ciphers: tuple[str, ...]
    macs: tuple[str, ...]

    @classmethod
    def parse(cls, kexinit: bytes) -> Offer | None:
        """The offer in an SSH_MSG_KEXINIT payload, or None when there is none."""
        lists = []
        position = 17  # message code and cookie
        for _ in range(6):
            length = int.from_bytes(kexinit[position : position + 4], "big")
            text = kexinit[position + 4 : position + 4 + length]
            if len(kexinit) < position + 4 + length:
                return None
            lists.append(tuple(name for name in text.decode("ascii", "replace").split(",") if name))
            position += 4 + length
        return cls(kex=lists[0], host_keys=lists[1], ciphers=lists[3], macs=lists[5])


def agreed(client: tuple[str, ...], server: tuple[str, ...]) -> str | None:
    """The first of the client's algorithms that the server has too (RFC 4253, section 7.1)."""
    return next((name for name in client if name in server and not name.startswith(_PSEUDO)), None)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Why a key exchange failed: the list without a common entry, both sides of it, and what to do."""

    what: str
    client: tuple[str, ...]
    server: tuple[str, ...]
    hint: str


def disagreement(client: Offer, server: Offer, *, legacy: bool) -> Disagreement | None:
    """The first list in which the two sides have nothing in common, or None when they do agree on everything."""
    pairs = (
        ("key exchange", client.kex, server.kex, LEGACY_KEX),
        ("host key", client.host_keys, server.host_keys, LEGACY_HOST_KEY),
        ("cipher", client.ciphers, server.ciphers, None),
        ("MAC", client.macs, server.macs, None),
    )
    for what, theirs, ours, extra in pairs:
        if what == "MAC" and "gcm" in (agreed(client.ciphers, server.ciphers) or ""):
            continue
        if agreed(theirs, ours) is None:
            if not legacy and extra is not None and extra in theirs and _legacy_would_do(client):
                hint = "set legacy_algorithms = true in [sftp]"
            else:
                hint = "the partner must update their SSH client"
            plain = tuple(name for name in theirs if not name.startswith(_PSEUDO))
            return Disagreement(what, plain, tuple(name for name in ours if not name.startswith(_PSEUDO)), hint)
    return None


def _legacy_would_do(client: Offer) -> bool:
    return all(
        agreed(theirs, ours) is not None
        for theirs, ours in (
            (client.kex, LEGACY.kex),
            (client.host_keys, LEGACY.host_keys),
            (client.ciphers, LEGACY.ciphers),
        )
    )
