"""One row of an export, parsed and checked, each field by its exact rule; and the id of a row that has none.

Pure. What a row may contain, and why it is rejected, follows Megaphone's documentation and our reading of it; the
reasons are in `tally`.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ..megaphone.exports import EXPORT_FIELDS, METRICS
from ..triton import json_text
from .tally import RejectReason, RowRejected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..megaphone.exports import ExportKind
    from ..triton import LogRules

_CREATED_AT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ]((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d)(?:\.\d+)?"
    r"(?:[Zz]| UTC| ?([+-](?:[01]\d|2[0-3])):?([0-5]\d))?",
    re.ASCII,
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Every escape of a JSON text, so that none is taken for another's end; a surrogate without its other half is group 1.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_IDS = ("id", "podcast_id", "episode_id")
_DIGITS = re.compile(r"\d+", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
LARGEST_WHOLE_NUMBER = 2**63 - 1
LARGE = 1 << 20  # bytes; a longer row is read in pieces
REPORTING_SECONDS = 60  # Megaphone: "seconds_downloaded >= 60 and blacklisted_ip = false and blacklisted_ua = false"


class ExportRow(NamedTuple):
    """One checked row of an export: the summary of one download.

    ``id`` is empty if the row has none, and ``identity`` is then what tells it from others; else that is empty.
    ``date`` and ``time`` are ``created_at`` in UTC, ``YYYY-MM-DD`` and ``HH:MM:SS``; ``podcast_id`` and ``episode_id``
    are empty if missing (never both); ``filesize`` and ``bytes_sent`` are in bytes, None if the row has neither.
    ``play`` is True if it was not a download; ``fields`` holds the row as received.
    """

    id: str
    identity: bytes
    date: str
    time: str
    ip: str
    podcast_id: str
    episode_id: str
    filesize: int | None
    bytes_sent: int | None
    play: bool
    blacklisted_ip: bool
    blacklisted_ua: bool
    short: bool
    fields: dict[str, Any]

    @property
    def reporting(self) -> bool:
        """Whether Megaphone's own reports count the row."""
        return not (self.short or self.blacklisted_ip or self.blacklisted_ua or self.play)

    @classmethod
    def parse(cls, line: bytes, kind: ExportKind = METRICS) -> ExportRow:
        """Parse one line of an export of this kind.

        Raises:
            RowRejected: with the first reason that applies.
        """
        fields = parse_fields(line)
        row_id = identifier(fields.get("id"))
        # An id that is not valid is an error; an absent one is allowed if the kind of export has an identity.
        if not row_id and not (kind.identity and fields.get("id") is None):
            raise RowRejected(RejectReason.NO_ID)
        created_at = parse_created_at(fields.get("created_at"))
        if created_at is None:
            raise RowRejected(RejectReason.BAD_CREATED_AT)
        ip = identifier(fields.get("ip"))
        if not ip:
            raise RowRejected(RejectReason.NO_IP)
        podcast_id, episode_id = identifier(fields.get("podcast_id")), identifier(fields.get("episode_id"))
        if not podcast_id and not episode_id:
            raise RowRejected(RejectReason.NO_EPISODE)
        delivery = fields.get("delivery_type")
        if kind.delivery_types is not None and delivery not in kind.delivery_types:
            raise RowRejected(RejectReason.BAD_DELIVERY_TYPE)
        filesize, bytes_sent = whole_number(fields.get("filesize")), whole_number(fields.get("bytes_sent"))
        if not (kind.bytes_optional and fields.get("filesize") is None and fields.get("bytes_sent") is None):
            if not filesize:
                raise RowRejected(RejectReason.BAD_FILESIZE)
            if bytes_sent is None:
                raise RowRejected(RejectReason.BAD_BYTES_SENT)
        timed = not kind.bytes_optional or fields.get("seconds_downloaded") is not None
        return cls(
            id=row_id,
            identity=b"" if row_id else identity_of(fields, kind.identity),
            date=created_at[0],
            time=created_at[1],
            ip=ip,
            podcast_id=podcast_id,
            episode_id=episode_id,
            filesize=filesize,
            bytes_sent=bytes_sent,
            play=kind.delivery_types is not None and delivery == kind.delivery_types[1],
            blacklisted_ip=flag(fields.get("blacklisted_ip")),
            blacklisted_ua=flag(fields.get("blacklisted_ua")),
            short=timed and seconds(fields.get("seconds_downloaded")) < REPORTING_SECONDS,
            fields=fields,
        )


def parse_fields(line: bytes) -> dict[str, Any]:
    """Return the fields of one line of an export.

    A lone surrogate (half of a pair, where a string was cut in the middle of an emoji) becomes U+FFFD. An id with one
    is emptied, since two of them might become the same: ``id`` becomes "", another one None.

    Raises:
        RowRejected: the line is not JSON, or not an object.
    """
    import orjson  # only here: it takes long to load

    try:
        fields = _load(line)
    except orjson.JSONDecodeError:
        fields = _without_lone_surrogates(line)
    if not isinstance(fields, dict):
        raise RowRejected(RejectReason.NOT_AN_OBJECT)
    return fields


def _load(line: bytes | bytearray) -> Any:
    """Parse a JSON text; of a large object only the fields that mean something."""
    import orjson

    if len(line) <= LARGE:
        return orjson.loads(line)
    from .large_row import load_large  # only here: rows are small

    return load_large(line, EXPORT_FIELDS)


def _without_lone_surrogates(line: bytes) -> Any:
    """Parse a line that is not JSON unless its lone surrogates are replaced."""
    import orjson

    if not _SURROGATE.search(line):
        raise RowRejected(RejectReason.MALFORMED_JSON)
    replaced, other = bytearray(line), bytearray(line)
    for escape in _ESCAPE.finditer(line):
        if escape[1] is not None:
            replaced[escape.start(1) : escape.end(1)] = b"ufffd"
            other[escape.start(1) : escape.end(1)] = b"ufffe"
    try:
        # One after the other: as objects, a row can be fifty times as large as its line.
        again = _texts_of_ids(_load(other))
        fields = _load(replaced)
    except orjson.JSONDecodeError:
        raise RowRejected(RejectReason.MALFORMED_JSON) from None
    # An id that another replacement changes holds a lone surrogate, and not a U+FFFD of its own.
    if isinstance(fields, dict):
        cut = [name for name, text in _texts_of_ids(fields).items() if text != again[name]]
        # Not None for the row's own: some kinds of export allow an absent id, but none allows one that is not valid.
        fields |= {name: "" if name == "id" else None for name in cut}
    return fields


def _texts_of_ids(fields: Any) -> dict[str, str]:
    """Return the ids that are texts. Nothing else is compared: Python cannot compare what is nested too deeply."""
    if not isinstance(fields, dict):
        return {}
    return {name: fields[name] for name in _IDS if type(fields.get(name)) is str}


def identifier(value: Any) -> str:
    """Return an id or address: a string as is, an integer as its digits, and "" for blanks and for anything else."""
    # `type(...) is`, here and below: isinstance would take True for an integer.
    if type(value) is str:
        return value if value.strip() else ""
    return str(value) if type(value) is int else ""


def parse_created_at(value: Any) -> tuple[str, str] | None:
    """Return ``created_at`` as (``YYYY-MM-DD``, ``HH:MM:SS``) in UTC, without its fraction; None if it is not valid."""
    match = _CREATED_AT.fullmatch(value) if type(value) is str else None
    if match is None or not _is_date(match[1]):
        return None
    return (match[1], match[2]) if match[3] is None else _in_utc(match[1], match[2], f"{match[3]}:{match[4]}")


def _in_utc(day: str, time: str, offset: str) -> tuple[str, str] | None:
    """Return an instant with an offset (``+HH:MM``) in UTC; None if it is then outside the calendar."""
    try:
        at = datetime.fromisoformat(f"{day} {time}{offset}").astimezone(UTC)
    except OverflowError:
        return None
    return at.date().isoformat(), at.time().isoformat()


@lru_cache(64)
def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def whole_number(value: Any) -> int | None:
    """Return a whole number from 0 to 2⁶³-1, also from a digit string or a whole float; None for anything else."""
    if type(value) is float:
        value = int(value) if value.is_integer() else None
    elif type(value) is str:
        # int() refuses strings of more than 4300 digits; 20 significant ones already exceed the limit.
        value = int(value.lstrip("0")[:20] or "0") if _DIGITS.fullmatch(value) else None
    return value if type(value) is int and 0 <= value <= LARGEST_WHOLE_NUMBER else None


def flag(value: Any) -> bool:
    """Return whether a value is true or "true"; anything else means false."""
    return value is True or value == "true"


def seconds(value: Any) -> float:
    """Return a number of seconds, also from a string such as "61" or "61.5"; -1 for anything else."""
    if type(value) is int or type(value) is float:
        return value
    return float(value) if type(value) is str and _NUMBER.fullmatch(value) else -1.0


# The id of a row that has none: the same in every version of its day, under the site's secret. Rows that are equal in
# every field of `ExportKind.identity` are still two rows, told apart by their number among those that become lines: so
# neither the order of the rows nor what is left out changes an id. An unkeyed hash would not do: whoever knows the
# other fields could try all addresses until one fits.

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
