"""The sequence of a shared store: numbered entries, each written once, that say what was published and pruned.

Pure: types and their JSON. Why this is enough (`publish.shared` and `publish.replay` do what is said here):

1. Entry N is one object, written on the condition that none has its name. So each number has one entry, the same for
   every node, for ever.
2. A node writes entry N+1 only when its ledger holds the effects of entries 1 to N and nothing else, and that ledger
   decided what it writes. So the entries are one history, as if one node had made them one after the other, and what
   holds for one node (each row once, no name twice, rising mtimes) holds for all. Each entry names the one before it,
   so no node mixes two histories, even if the store has lost entries and others were written in their place.
3. A node applies entries in order, without a gap, each in one transaction with its number. So at any instant a ledger
   is the one after some entry N; after a crash at most work on files is repeated, which is harmless.
4. Content is written before the entry that names it, under a name that includes the entry's own random id. So whoever
   sees the entry can fetch its files, and content that no entry names belongs to nobody.
5. Whether a write took effect, if its answer was lost, shows when its number is read, by the random id. Nothing is
   guessed, and waiting loses nothing: a write that arrives late is an entry like any other, or finds the number taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Literal

import orjson

from ..convert.tally import PodcastBooks, Tally
from ..episodes.catalogue import CatalogueStamp
from ..megaphone.exports import DayExport
from ..triton import LogName, LogRules
from .records import LedgerLog, Publication

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
MOST_BYTES = 64 << 20  # of an entry; most of them are its books by podcast
MOST_CHECKPOINT = 1 << 30  # bytes of a checkpoint, compressed
CHECKPOINT_EVERY = 100
MOST_COUNT = 1 << 37  # of bytes, of lines, of seconds since 1970: thousands of years, which a date can still be

_PRUNES = b'"kind":"prune"'  # as `to_bytes` writes it; in a text, its quotes would be escaped

EntryKind = Literal["begin", "publication", "prune", "rules"]


class NoEntry(ValueError):
    """These bytes are not an entry that this version can read."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all nodes must agree on: a fingerprint of ``ip_hash.key``, the rules of ``[log]``, and its prefix."""

    key: str
    rules: Mapping[str, Any]
    prefix: str

    def differences(self, other: Terms) -> list[str]:
        """Return the names of what differs from ``other``: keys of the configuration, and ``keys/ip_hash.key``."""
        words = []
        if self.key != other.key:
            words.append("keys/ip_hash.key")
        if self.prefix != other.prefix:
            words.append("log.prefix")
        ours, theirs = _by_setting(self.rules), _by_setting(other.rules)
        return words + sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _by_setting(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return rules as `LogRules.as_json` wrote them, by the names that an operator can change."""
    flat = {**rules, **rules.get("layout", {})}
    flat.pop("layout", None)
    others = {"kind": "export.kind", "ids": "the release of pickup-point"}
    return {others.get(name, f"log.{name}"): value for name, value in flat.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. ``id`` is random, ``at`` is in seconds since 1970 by the store's clock.

    ``after`` is the id of the entry before it: '' for the first, and for those that earlier versions wrote.

    By ``kind``: ``begin``, the first, has the ``terms``, and the ``publications`` of the data folder that began it;
    ``publication`` has one; ``prune`` has the names ``pruned``; ``rules`` has new terms.
    """

    number: int
    id: str
    node: str
    at: int
    kind: EntryKind
    terms: Terms | None = None
    publications: tuple[Publication, ...] = ()
    pruned: tuple[LogName, ...] = ()
    after: str = ""


def entry_name(number: int) -> str:
    """Return the name of an entry's object: eight digits, so that names sort like numbers."""
    return f"{number:08d}"


def blob_name(sha256: str, entry_id: str) -> str:
    """Return the name of a file's content, which belongs to one entry alone."""
    return f"{sha256}-{entry_id}"


def to_bytes(entry: Entry) -> bytes:
    """Return an entry as its object holds it: JSON."""
    found: dict[str, Any] = {
        "format": FORMAT,
        "number": entry.number,
        "id": entry.id,
        "node": entry.node,
        "at": entry.at,
        "kind": entry.kind,
    }
    if entry.after:
        found["after"] = entry.after
    if entry.terms is not None:
        found["terms"] = {"key": entry.terms.key, "rules": entry.terms.rules, "prefix": entry.terms.prefix}
    if entry.publications:
        found["publications"] = [_publication_json(publication) for publication in entry.publications]
    if entry.pruned:
        found["pruned"] = [str(name) for name in entry.pruned]
    return orjson.dumps(found)


def from_bytes(number: int, data: bytes) -> Entry:
    """Return the entry that an object holds.

    Raises:
        NoEntry: it is not one, is another number's, or has a later format.
    """
    try:
        found = orjson.loads(data)
        if found["format"] > FORMAT:
            raise NoEntry(f"entry {number} was written by a newer pickup-point")
        terms = found.get("terms")
        entry = Entry(
            number=found["number"],
            id=found["id"],
            node=found["node"],
            at=found["at"],
            kind=found["kind"],
            terms=None if terms is None else Terms(terms["key"], terms["rules"], terms["prefix"]),
            publications=tuple(map(_publication_of, found.get("publications", ()))),
            pruned=tuple(map(_name, found.get("pruned", ()))),
            after=found.get("after", ""),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, NoEntry):
            raise
        raise NoEntry(f"entry {number} cannot be read ({type(error).__name__})") from error
    shape = {
        "begin": entry.number == 1 and entry.terms is not None,
        "publication": len(entry.publications) == 1,
        "prune": bool(entry.pruned),
        "rules": entry.terms is not None,
    }
    logs = [log for publication in entry.publications for log in publication.logs]
    words = [entry.id, entry.node, entry.after, *(log.sha256 for log in logs)]
    counts = [entry.at, *(count for log in logs for count in (log.mtime, log.size, log.lines))]
    fits = all(isinstance(word, str) for word in words)
    fits &= all(type(count) is int and 0 <= count <= MOST_COUNT for count in counts)
    if entry.number != number or not fits or not shape.get(entry.kind, False):
        raise NoEntry(f"entry {number} is not what an entry of this number and kind must be")
    return entry


def pruned_in(data: bytes) -> list[LogName]:
    """Return the names that an entry prunes; only one of that kind, which is small, is parsed for it.

    What cannot be read prunes nothing: `from_bytes` says what is wrong with it.
    """
    if _PRUNES not in data:
        return []
    try:
        return [_name(text) for text in orjson.loads(data)["pruned"]]
    except (KeyError, TypeError, AttributeError, ValueError):
        return []


def begins_entry(number: int, data: bytes) -> bool:
    """Return whether bytes begin as `to_bytes` begins the entry of this number."""
    return data.startswith(b'{"format":%d,"number":%d,' % (FORMAT, number))


def _name(text: str) -> LogName:
    name = LogName.parse(text)
    if name is None:
        raise ValueError("not a log name")
    return name


def _publication_json(publication: Publication) -> dict[str, Any]:
    export = publication.export
    return {
        "delivery": publication.delivery,
        "day": publication.day.isoformat(),
        "kind": publication.kind,
        "export": [export.key, export.etag, export.size, export.last_modified.isoformat()],
        "rules": publication.rules.as_json(),
        "tally": None if publication.tally is None else publication.tally.as_json(),
        "published_at": None if publication.published_at is None else publication.published_at.isoformat(),
        "changed": publication.changed,
        "removed": publication.removed,
        "remark": publication.remark,
        "catalogue": None if publication.catalogue is None else publication.catalogue.as_json(),
        "podcasts": None if publication.podcasts is None else publication.podcasts.as_json(),
        "logs": [
            {
                "name": str(log.name),
                "size": log.size,
                "sha256": log.sha256,
                "mtime": log.mtime,
                "lines": log.lines,
                "pruned": log.state == "pruned",
            }
            for log in publication.logs
        ],
    }


def _publication_of(found: dict[str, Any]) -> Publication:
    day = date.fromisoformat(found["day"])
    key, etag, size, modified = found["export"]
    tally, podcasts, catalogue = found["tally"], found["podcasts"], found["catalogue"]
    published = datetime.fromisoformat(found["published_at"])
    return Publication(
        id=0,
        day=day,
        kind=found["kind"],
        export=DayExport(day, key, etag, size, datetime.fromisoformat(modified)),
        rules=LogRules.from_json(found["rules"]),
        tally=None if tally is None else Tally.from_json(tally),
        intended_at=published,
        published_at=published,
        changed=found["changed"],
        removed=found["removed"],
        remark=found["remark"],
        logs=tuple(
            LedgerLog(
                name=_name(log["name"]),
                publication=0,
                size=log["size"],
                sha256=log["sha256"],
                mtime=log["mtime"],
                lines=log["lines"],
                state="pruned" if log["pruned"] else "published",
                pruned_at=datetime.fromtimestamp(log["mtime"], UTC) if log["pruned"] else None,
            )
            for log in found["logs"]
        ),
        delivery=found["delivery"],
        catalogue=None if catalogue is None else CatalogueStamp(**catalogue),
        podcasts=None if podcasts is None else PodcastBooks.from_json(podcasts),
    )


def broken_rule(entry: Entry, head: int, head_id: str, newest_mtime: int | None) -> str:
    """Return which rule of the sequence an entry breaks after ``head`` entries, or ''.

    ``head_id`` is the id of the newest of these, ``newest_mtime`` the largest in them (seconds since 1970).
    """
    if entry.number != head + 1:
        return f"entry {entry.number} follows entry {head}"
    if entry.after not in ("", head_id):
        return f"entry {entry.number} follows another entry {head} than the one that this node has applied"
    mtimes = [log.mtime for publication in entry.publications for log in publication.logs]
    if entry.kind == "publication" and any(
        later <= earlier for earlier, later in zip([newest_mtime or 0, *mtimes], mtimes, strict=False)
    ):
        return f"entry {entry.number} has a file that is not newer than those before it"
    names = [log.name for publication in entry.publications for log in publication.logs]
    return "" if len(names) == len(set(names)) else f"entry {entry.number} has a name twice"


def as_committed(publication: Publication, logs: tuple[LedgerLog, ...], at: datetime) -> Publication:
    """Return a publication as its entry states it: with its logs, published at the entry's instant."""
    return replace(publication, id=0, logs=logs, published_at=at, intended_at=at)
