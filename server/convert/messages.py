"""What the service and its conversion process say to each other: one request, then lines of JSON as the answer.

Pure. A request names open descriptors, never a path; an answer names nothing at all: the service knows the names of the
files and the words for a failure. The request is in Python's own format (`marshal`), which only a trusted writer may
produce; the answer is not trusted. Its lines, of at most a mebibyte:

    {"read": n}                                   bytes of the export so far, now and then
    {"logs": [[lines, size, sha256], ...]}        some of the logs that were written, in order
    {"podcasts": {...}}                           some of the books by podcast, as `PodcastBooks.as_json`
    {"done": {"tally": {...}, "changed": n, "removed": n, "rejects": bool, "one_line": bool}}       the end, or:
    {"failed": {"kind": "...", ...}}              see `server.convert.__main__`
"""

from __future__ import annotations

import json
import marshal
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ..triton import Layout, LogRules, UrlTemplate
from .conversion import Conversion

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..episodes.catalogue import Catalogue
    from .day import Converted

LENGTH = 8  # bytes of the length that precedes a request
_LOGS_A_LINE, _PODCASTS_A_LINE = 5000, 250  # keeps lines far below the limit, whatever the names


class FileNames(NamedTuple):
    """The names of the files that a conversion writes, in order: ``head``, a number (``first``, …), ``tail``.

    >>> FileNames("MEGA20261120-", 3, ".tsv.gz").at(1)
    'MEGA20261120-04.tsv.gz'
    """

    head: str
    first: int
    tail: str

    def at(self, index: int) -> str:
        """Return the name of the file with this index."""
        return f"{self.head}{self.first + index:02d}{self.tail}"


class WrittenLog(NamedTuple):
    """A log as it was written: lines without the header's, bytes, and SHA-256 in hex, '' if not asked for."""

    lines: int
    size: int
    sha256: str


class Request(NamedTuple):
    """One conversion. Files and folders are given as descriptors that the process was started with.

    ``rejects`` is a folder and a name, or None if nobody wants to see rejected rows. ``sent`` are logs that were
    published before, each with its layout. With ``digests`` each log is hashed as it is written. Without ``kernel``
    every row is converted the exact way.
    """

    conversion: Conversion
    export: int
    scratch: int
    logs: tuple[int, FileNames]
    rejects: tuple[int, str] | None = None
    sent: Sequence[tuple[int, Layout]] = ()
    mode: int = 0o440
    threads: int = 1
    kernel: bool = True
    digests: bool = True
    max_rows_per_file: int = 0
    fresh_after: str | None = None
    by_podcast: bool = False

    def pack(self) -> bytes:
        """Return the request as bytes, preceded by their length (`LENGTH` bytes, little-endian)."""
        conversion, catalogue = self.conversion, self.conversion.catalogue
        fields = {
            "rules": conversion.rules.as_json(),
            "hash_key": conversion.hash_key,
            "catalogue": None if catalogue is None else _pack_catalogue(catalogue, conversion.rules),
            "day": None if conversion.day is None else conversion.day.isoformat(),
            "sent": [(descriptor, layout.as_json()) for descriptor, layout in self.sent],
            "logs": (self.logs[0], tuple(self.logs[1])),
        } | {name: getattr(self, name) for name in _PLAIN_FIELDS}
        data = marshal.dumps(fields)
        return len(data).to_bytes(LENGTH, "little") + data

    @classmethod
    def unpack(cls, data: bytes) -> Request:
        """Return the request that `pack` turned into these bytes; ``data`` is without the length."""
        fields: dict[str, Any] = marshal.loads(data)  # noqa: S302  # from whoever started this process
        catalogue: Catalogue | None = None
        if fields["catalogue"] is not None:
            from ..episodes.catalogue import Catalogue, Episode  # only here: without one, the process starts sooner

            catalogue = Catalogue({key: Episode(*texts) for key, texts in fields["catalogue"].items()})
        conversion = Conversion(
            rules=LogRules.from_json(fields["rules"]),
            hash_key=fields["hash_key"],
            catalogue=catalogue,
            day=None if fields["day"] is None else date.fromisoformat(fields["day"]),
        )
        sent = [(descriptor, Layout.from_json(layout)) for descriptor, layout in fields["sent"]]
        folder, names = fields["logs"]
        logs = (folder, FileNames(*names))
        return cls(conversion, sent=sent, logs=logs, **{name: fields[name] for name in _PLAIN_FIELDS})


_PLAIN_FIELDS = ("export", "scratch", "rejects", "mode", "threads", "kernel", "digests", "max_rows_per_file",
                 "fresh_after", "by_podcast")  # fmt: skip


def _pack_catalogue(catalogue: Catalogue, rules: LogRules) -> dict[str, tuple[str, ...]]:
    """Return the episodes; what comes from their enclosures is included only if the rules use it."""
    if rules.object_size == "export" and {"token", "enclosure_url"}.isdisjoint(UrlTemplate(rules.url).fields):
        return {key: (e.guid, e.url) for key, e in catalogue.episodes.items()}
    return {key: tuple(episode) for key, episode in catalogue.episodes.items()}


def line(message: dict[str, Any]) -> bytes:
    """Return a message as a line."""
    return json.dumps(message, ensure_ascii=False).encode() + b"\n"


def answer(converted: Converted, logs: Sequence[WrittenLog], *, rejects: bool) -> Iterator[bytes]:
    """Yield the lines that report the result of a conversion."""
    for at in range(0, len(logs), _LOGS_A_LINE):
        yield line({"logs": [tuple(log) for log in logs[at : at + _LOGS_A_LINE]]})
    books = iter(converted.podcasts.as_json().items())
    while some := dict(islice(books, _PODCASTS_A_LINE)):
        yield line({"podcasts": some})
    done = {"tally": converted.tally.as_json(), "changed": converted.changed, "removed": converted.removed}
    yield line({"done": done | {"rejects": rejects, "one_line": converted.one_line}})
