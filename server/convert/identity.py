"""The id of a row that has none: the same in every version of its day, under the site's secret.

Pure. Two rows that are equal in every field of `ExportKind.identity` are still two rows: they are told apart by their
number among those that become lines. So neither the order of the rows nor what is left out changes an id. An unkeyed
hash would not do: whoever knows the other fields could try all addresses until one fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..triton import json_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..triton import LogRules

_ABSENT = b"\xff" * 4
_SUBKEY, _FINGERPRINT = b"pickup-point row id", b"pickup-point key fingerprint"


def identity_of(fields: Mapping[str, Any], names: tuple[str, ...]) -> bytes:
    """Return these fields of a row as bytes, each preceded by its length; an absent field differs from an empty one."""
    parts = []
    for name in names:
        value = fields.get(name)
        if value is None or isinstance(value, dict | list):
            parts.append(_ABSENT)
            continue
        text = json_text(value).encode()
        parts += (len(text).to_bytes(4, "little"), text)
    return b"".join(parts)


def derived_id(subkey: bytes, identity: bytes, number: int) -> str:
    """Return the id of the row with this number, from 0, among its equals: a UUID of version 8 (RFC 9562)."""
    digest = bytearray(_hmac(subkey, identity + number.to_bytes(8, "little"))[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def subkey(key: bytes) -> bytes:
    """Return the key for ids, derived from the key for addresses (32 bytes), so that one key has one use."""
    return _hmac(key, _SUBKEY)


def with_fingerprint(rules: LogRules, key: bytes) -> LogRules:
    """Return the rules with the fingerprint of the key that gives rows without ``id`` theirs, if their kind has any.

    The fingerprint, 16 hex digits, shows whether two keys are the same, and nothing else about them.
    """
    return rules._replace(id_key=_hmac(key, _FINGERPRINT)[:8].hex()) if rules.export_kind.identity else rules


def _hmac(key: bytes, data: bytes) -> bytes:
    import hmac  # only here: it loads OpenSSL

    return hmac.digest(key, data, "sha256")
