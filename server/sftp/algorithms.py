"""Which SSH algorithms are offered, and why a client that shares none of them cannot connect.

No outside world, no asyncssh. Promise: nothing with SHA-1, CBC or a group of unproven size is in either profile; a
client sees the lists that stand here, and the tests compare them with what goes over the wire.
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
# Given in full because asyncssh's own list has duplicates, which crash libssh2 1.11.1 (curl) with an RSA key.
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
_MARKERS = ("ext-info-", "kex-strict-")  # in a kex list, but no algorithms


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
        """Parse an SSH_MSG_KEXINIT payload; return None when it is none."""
        lists = []
        # RFC 4253, section 7.1: a message code, 16 bytes of cookie, then ten name-lists, of which six matter here.
        position = 17
        for _ in range(6):
            length = int.from_bytes(kexinit[position : position + 4], "big")
            text = kexinit[position + 4 : position + 4 + length]
            if len(kexinit) < position + 4 + length:
                return None
            lists.append(tuple(name for name in text.decode("ascii", "replace").split(",") if name))
            position += 4 + length
        return cls(kex=lists[0], host_keys=lists[1], ciphers=lists[3], macs=lists[5])


def negotiate(client: tuple[str, ...], server: tuple[str, ...]) -> str | None:
    """Return the first of the client's algorithms that the server has too, or None (RFC 4253, section 7.1)."""
    return next((name for name in client if name in server and not name.startswith(_MARKERS)), None)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Why a key exchange failed: the list without a common entry, both sides of it, and what to do."""

    what: str
    client: tuple[str, ...]
    server: tuple[str, ...]
    hint: str


def find_disagreement(client: Offer, server: Offer, *, legacy: bool) -> Disagreement | None:
    """Return the first list in which the two sides have nothing in common, or None when they agree on everything."""
    pairs = (
        ("key exchange", client.kex, server.kex, LEGACY_KEX),
        ("host key", client.host_keys, server.host_keys, LEGACY_HOST_KEY),
        ("cipher", client.ciphers, server.ciphers, None),
        ("MAC", client.macs, server.macs, None),
    )
    for what, theirs, ours, extra in pairs:
        # AES-GCM authenticates by itself: its MAC lists are not compared (RFC 5647, section 5.1).
        if what == "MAC" and "gcm" in (negotiate(client.ciphers, server.ciphers) or ""):
            continue
        if negotiate(theirs, ours) is None:
            if not legacy and extra is not None and extra in theirs and _legacy_would_do(client):
                hint = "set legacy_algorithms = true in [sftp]"
            else:
                hint = "the partner must update their SSH client"
            plain = tuple(name for name in theirs if not name.startswith(_MARKERS))
            return Disagreement(what, plain, tuple(name for name in ours if not name.startswith(_MARKERS)), hint)
    return None


def _legacy_would_do(client: Offer) -> bool:
    return all(
        negotiate(theirs, ours) is not None
        for theirs, ours in (
            (client.kex, LEGACY.kex),
            (client.host_keys, LEGACY.host_keys),
            (client.ciphers, LEGACY.ciphers),
        )
    )
