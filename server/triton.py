"""Triton's words: log names, columns, layouts, and the text that may stand in a log line.

Rules come from Triton Digital's "Podcast Log Requirements" (names, columns, TSV) and from the W3C's
"Extended Log File Format" (WD-logfile-960221). Pure.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .megaphone.exports import EXPORT_FIELDS, KINDS, METRICS, calendar_day, start_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .megaphone.exports import ExportKind


URL_LIMIT = 2048  # Triton: "Up to 2048 characters complete URI"
DEFAULT_URL = "/{podcast_id}/{episode_id}.mp3"
OF_CATALOGUE = ("guid", "token", "enclosure_url")  # what a URL may contain besides the export's fields
_PREFIX = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}"
_LOG_NAME = rf"({_PREFIX})(\d{{8}})-(\d{{2,9}})\.(tsv|w3c)\.gz"


class IdCells(StrEnum):
    """How ids are encoded in the ``x-metric-id`` cells of a log.

    ``EXACT``: different ids have different cells. ``CLEANED``: like any other text, as the first releases wrote them,
    so that two ids may have the same cell. ``UNKNOWN``: one of the two, in a log that was found in the folder.
    """

    EXACT = "exact"
    CLEANED = "cleaned"
    UNKNOWN = "unknown"


class LogFormat(StrEnum):
    """The two formats, spelled as in a log's name."""

    TSV = "tsv"
    W3C = "w3c"


class LogName(NamedTuple):
    """The name of one log file, ``{prefix}{YYYYMMDD}-{NN}.{format}.gz``; NN counts from 00, in two or more digits.

    >>> LogName.parse("MEGA20261120-00.tsv.gz").day
    datetime.date(2026, 11, 20)
    """

    prefix: str
    day: date
    number: int
    format: LogFormat

    def __str__(self) -> str:
        return f"{self.prefix}{self.day.isoformat().replace('-', '')}-{self.number:02d}.{self.format}.gz"

    @property
    def rejects(self) -> str:
        """The name of the rejects file of the publication whose first log this is."""
        return f"{str(self).removesuffix('.gz')}.rejects.ndjson.gz"

    @classmethod
    def parse(cls, text: str) -> LogName | None:
        """Return the name that ``text`` spells, or None if it is not exactly one."""
        # No name is longer; and a browser may ask for anything, so longer texts do not fill the cache.
        return _parsed_name(text) if len(text) < 100 else None


@lru_cache(maxsize=4096)  # the same files are looked at in every round
def _parsed_name(text: str) -> LogName | None:
    match = re.fullmatch(_LOG_NAME, text, re.ASCII)
    if match is None:
        return None
    prefix, day, number, log_format = match.groups()
    parsed = calendar_day(f"{day[:4]}-{day[4:6]}-{day[6:]}")
    if parsed is None:
        return None
    name = LogName(prefix, parsed, int(number), LogFormat(log_format))
    # "-000" parses as a number, too, but two spellings of a name would be two files for Triton.
    return name if str(name) == text else None


class LogFile(NamedTuple):
    """A published log file; its size in bytes and its mtime in whole seconds since 1970 never change."""

    name: LogName
    size: int
    mtime: int


def prefix_problem(prefix: str) -> str:
    """Return what is wrong with a prefix for log names, or ''."""
    return "" if re.fullmatch(_PREFIX, prefix) else "it would make bad file names"


class DerivedValue(StrEnum):
    """The values derived from a row; these are the default column names, in the default order."""

    DATE = "date"
    START_TIME = "start-time"
    IP = "IP"
    HASHED_IP = "Hashed-IP"
    METHOD = "method"
    URL = "url"
    STATUS = "status"
    BYTES = "bytes"
    OBJECT_SIZE = "object-size"
    BYTE_RANGE = "byte-range"
    EPISODE_GUID = "episode-guid"
    PODCAST_ID = "podcast-id"
    X_METRIC_ID = "x-metric-id"
    USER_AGENT = "user-agent"


# The W3C names; cs-uri-query always follows cs-uri-stem.
_W3C_NAMES = {
    DerivedValue.DATE: "date", DerivedValue.START_TIME: "time", DerivedValue.IP: "c-ip",
    DerivedValue.HASHED_IP: "x-hashed-ip", DerivedValue.METHOD: "cs-method", DerivedValue.URL: "cs-uri-stem",
    DerivedValue.STATUS: "sc-status", DerivedValue.BYTES: "sc-bytes", DerivedValue.OBJECT_SIZE: "x-object-size",
    DerivedValue.BYTE_RANGE: "x-byte-range", DerivedValue.EPISODE_GUID: "x-episode-guid",
    DerivedValue.PODCAST_ID: "x-podcast-id", DerivedValue.X_METRIC_ID: "x-metric-id",
    DerivedValue.USER_AGENT: "cs(User-Agent)",
}  # fmt: skip
_STEM, _QUERY = "cs-uri-stem", "cs-uri-query"


class ColumnSpec(NamedTuple):
    """A configured column: a name and exactly one of a derived value, a field of the export, and a constant."""

    name: str
    value: str | None = None
    field: str | None = None
    constant: str | None = None


class LogLine(NamedTuple):
    """The values derived from one row, each as in its column, except for text that is still to be cleaned."""

    date: str
    start_time: str
    ip: str
    hashed_ip: str
    url: str
    status: str
    bytes: str
    object_size: str
    byte_range: str
    episode_guid: str
    podcast_id: str
    metric_id: str
    user_agent: Any
    method: str = "GET"


class _LayoutFields(NamedTuple):
    format: LogFormat = LogFormat.TSV
    header: str = "plain"
    text: str = "safe"
    columns: tuple[ColumnSpec, ...] | None = None
    ids: IdCells = IdCells.EXACT


class Layout(_LayoutFields):
    """The columns, header and text cleaning of a log file; ``columns`` None means the format's default.

    It is stored with every publication (`as_json`), so that a day's late file has the layout of its first file.
    """

    @property
    def clean(self) -> Callable[[Any], str]:
        """The function that turns any JSON value into text that is safe in a column."""
        return percent_text if self.format is LogFormat.W3C or self.text == "percent" else safe_text

    @cached_property  # every row asks for them
    def specs(self) -> tuple[ColumnSpec, ...]:
        """The columns as they are written, including ``cs-uri-query``."""
        w3c = self.format is LogFormat.W3C
        specs = self.columns
        if specs is None:
            specs = tuple(ColumnSpec(_W3C_NAMES[value] if w3c else value, value=value) for value in DerivedValue)
        if not w3c or any(spec.name == _QUERY for spec in specs):
            return specs
        # The W3C format has no column for a whole URL, so its query follows the stem.
        return tuple(
            written
            for spec in specs
            for written in ((spec, ColumnSpec(_QUERY, value=_QUERY)) if _is_stem(spec) else (spec,))
        )

    def header_lines(self, day: date | None) -> str:
        """Return the lines before the first log line, each with its newline."""
        names = [spec.name for spec in self.specs]
        if self.format is LogFormat.W3C:
            start = f"#Start-Date: {day} 00:00:00\n" if day is not None else ""
            return f"#Version: 1.0\n#Software: pickup-point\n{start}#Fields: {' '.join(names)}\n"
        return {"plain": "", "comment": "#"}[self.header] + "\t".join(names) + "\n" if self.header != "none" else ""

    def id_column(self) -> int:
        """Return the index of ``x-metric-id`` among the columns, from 0."""
        return next(i for i, spec in enumerate(self.specs) if spec.value == DerivedValue.X_METRIC_ID)

    @property
    def id_cell(self) -> Callable[[str], str]:
        """The function that turns an id into its ``x-metric-id`` cell, as written in a line."""
        cell = self._clean_id
        return (lambda row_id: no_comment(cell(row_id))) if self.specs[0].value == DerivedValue.X_METRIC_ID else cell

    def same_ids(self, other: Layout) -> bool:
        """Return whether equal ids, and only those, have equal cells in logs of the two layouts."""
        first, other_first = (layout.id_column() == 0 for layout in (self, other))
        same = (self.ids, self.clean, first) == (other.ids, other.clean, other_first)
        return same and self.ids is not IdCells.UNKNOWN

    @property
    def _clean_id(self) -> Callable[[str], str]:
        if self.ids is IdCells.CLEANED:
            return self.clean
        return percent_id if self.clean is percent_text else safe_id

    def render(self, line: LogLine, row: Mapping[str, Any]) -> str:
        """Return one log line without its newline; ``row`` holds the export's fields as received."""
        clean, clean_id = self.clean, self._clean_id
        cells = []
        for spec in self.specs:
            if spec.constant is not None:
                cells.append(clean(spec.constant))
            elif spec.field is not None:
                cells.append(clean(row.get(spec.field)))
            elif spec.value == DerivedValue.X_METRIC_ID:
                cells.append(clean_id(line.metric_id))
            elif spec.value in _TEXT_VALUES:
                cells.append(clean(getattr(line, _TEXT_VALUES[spec.value])))
            elif spec.value == _QUERY:
                cells.append(line.url.partition("?")[2] or "-")
            elif self.format is LogFormat.W3C and _is_stem(spec):
                cells.append(line.url.partition("?")[0] or "-")
            else:
                cells.append(getattr(line, _PLAIN_VALUES[str(spec.value)]))
        return no_comment("\t".join(cells))

    def as_json(self) -> dict[str, Any]:
        """Return the layout as the ledger keeps it."""
        columns = None
        if self.columns is not None:
            columns = [{name: str(v) for name, v in c._asdict().items() if v is not None} for c in self.columns]
        return {"format": str(self.format), "header": self.header, "text": self.text, "columns": columns,
                "ids": str(self.ids)}  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Layout:
        """Return the layout that `as_json` returned as ``data``."""
        columns = data["columns"]
        return cls(
            format=LogFormat(data["format"]),
            header=data["header"],
            text=data["text"],
            columns=None if columns is None else tuple(ColumnSpec(**column) for column in columns),
            ids=IdCells(data.get("ids", IdCells.CLEANED)),  # absent: kept by a release that wrote them so
        )


_TEXT_VALUES = {
    "episode-guid": "episode_guid",
    "podcast-id": "podcast_id",
    "user-agent": "user_agent",
}
_PLAIN_VALUES = {
    "date": "date", "start-time": "start_time", "IP": "ip", "Hashed-IP": "hashed_ip", "method": "method", "url": "url",
    "status": "status", "bytes": "bytes", "object-size": "object_size", "byte-range": "byte_range",
}  # fmt: skip


def no_comment(line: str) -> str:
    """Return a line that no reader takes for a comment: Triton and W3C treat one with a leading "#" as such."""
    return f"%23{line[1:]}" if line.startswith("#") else line


def _is_stem(spec: ColumnSpec) -> bool:
    return spec.value == DerivedValue.URL and spec.name == _STEM


def layouts_by_header(head: str, configured: Layout, name: LogName) -> Layout | None:
    """Return the layout of a log that begins with ``head``: the configured one, or a default one; None if neither.

    Only a header shows which columns a log has; their number alone does not. So the layout of a log without a header is
    known only if it has no lines.
    """
    defaults = [Layout(name.format, header, configured.text) for header in ("plain", "comment")]
    for layout in (configured, *defaults):
        if layout.format is not name.format:
            continue
        header = layout.header_lines(name.day)
        if head.startswith(header) if header else not head:
            return layout
    return None


def layout_problems(specs: Sequence[ColumnSpec] | None, log_format: LogFormat) -> list[tuple[int | None, str, str]]:
    """Return what is wrong with configured columns: (index, or None for the whole list; what is wrong; the cure)."""
    if specs is None:
        return []
    problems: list[tuple[int | None, str, str]] = []
    values = [str(value) for value in DerivedValue]
    seen: set[str] = set()
    for index, spec in enumerate(specs):
        given = [name for name in ("value", "field", "constant") if getattr(spec, name) is not None]
        if len(given) != 1:
            wrong = f'column "{spec.name}" has {" and ".join(given) or "no source"}'
            problems.append((index, wrong, "give exactly one of value, field and constant"))
        if spec.value is not None and spec.value not in values:
            wrong = f'column "{spec.name}" asks for the unknown value "{spec.value}"'
            problems.append((index, wrong, f"the values are: {', '.join(values)}"))
        if spec.field is not None and spec.field not in EXPORT_FIELDS:
            wrong = f'column "{spec.name}" asks for the unknown field "{spec.field}"'
            problems.append((index, wrong, f"Megaphone's fields are: {', '.join(EXPORT_FIELDS)}"))
        blank = r"[\s\x00-\x1f\x7f-\x9f]" if log_format is LogFormat.W3C else r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
        if not spec.name.strip() or re.search(blank, spec.name) or spec.name.startswith("#"):
            wrong = f"column name {spec.name!r} would break the header line"
            problems.append((index, wrong, "name it with visible characters, not beginning with #"))
        if spec.name in seen:
            problems.append((index, f'column "{spec.name}" appears twice', "give every column its own name"))
        seen.add(spec.name)
    if not any(spec.value == DerivedValue.X_METRIC_ID for spec in specs):
        cure = 'add { name = "x-metric-id", value = "x-metric-id" }'
        problems.append((None, "has no x-metric-id: late rows could not be distinguished from rows already sent", cure))
    return problems


# Each control character, including tab, CR and LF, becomes one blank.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029]
_SAFE = {**dict.fromkeys(_CONTROLS, " "), ord('"'): "%22", ord("\\"): "%5C"}
_HEX = frozenset(b"0123456789abcdefABCDEF")
_BLANKS = dict.fromkeys(_CONTROLS, " ")
PLAIN = re.compile(r"[0-9A-Za-z._~-]+", re.ASCII)  # unchanged in any text column, and in a URL


def _encode(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


# Tables rather than regular expressions, which take a millisecond to compile. White space is what `str.isspace` says.
_WHITE = [0x20, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000]
_ID = {code: _encode(chr(code)) for code in [*_CONTROLS, *b'"\\%']}
_PERCENT = _ID | {code: _encode(chr(code)) for code in _WHITE}
_IN_URL = {code: text for code, text in _PERCENT.items() if code != ord("%")}


def json_text(value: Any) -> str:
    """Return a JSON value as text: a string as is, a number or boolean as its JSON text, anything else as ''."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        import orjson  # only here: it takes long to load, and few cells are numbers

        return orjson.dumps(value).decode()
    return ""


def safe_text(value: Any) -> str:
    """Return a text cell: control characters blanked, ``"`` and backslash percent-encoded, ``-`` if it is blank."""
    text = json_text(value).translate(_SAFE)
    return text if text.strip() else "-"


def percent_text(value: Any) -> str:
    """Return a W3C text cell: white space, control characters, ``"``, ``\\`` and ``%`` percent-encoded as UTF-8."""
    text = json_text(value)
    return text.translate(_PERCENT) if text.translate(_SAFE).strip() else "-"


def safe_id(row_id: str) -> str:
    """Return an id's cell: what `safe_text` would replace, ``%``, and blanks at either end are percent-encoded."""
    inner = row_id.strip()
    begin = row_id.find(inner)
    ends = (0, begin), (begin + len(inner), len(row_id))
    before, after = (_encode(row_id[start:end]) for start, end in ends)
    return f"{before}{inner.translate(_ID)}{after}"


def percent_id(row_id: str) -> str:
    """Return an id's W3C cell: like `percent_text`, except that a blank id does not become ``-``."""
    return row_id.translate(_PERCENT)


def plain_id(text: str) -> str:
    """Return what an id and every cell ever written for it have in common; other ids may share it.

    Cells are percent-encoded, and in the first releases lost their control characters; ``-`` stood for a blank id.
    """
    decoded = bytearray()
    for byte in text.encode():
        decoded.append(byte)
        # Until nothing is left to decode: whether ``%25`` is the cell's or the id's own cannot be known.
        while decoded[-3:-2] == b"%" and decoded[-2] in _HEX and decoded[-1] in _HEX:
            decoded[-3:] = bytes((int(decoded[-2:], 16),))
    return decoded.decode(errors="replace").translate(_BLANKS).strip() or "-"


def url_text(url: str) -> str:
    """Return a URL as published, with whatever would break a log line percent-encoded."""
    return url.translate(_IN_URL)


class UrlTemplate:
    """The ``url`` column's template, with Megaphone's fields, ``{guid}``, ``{token}`` and ``{enclosure_url}``.

    Values are percent-encoded, except ``{enclosure_url}`` if it is the whole template: that is already a URL, and is
    used as published. An episode whose ``{token}`` or ``{enclosure_url}`` is unknown, or would make its URL too long,
    gets the URL of `DEFAULT_URL`: a publisher's RSS feed never costs a row.

    Raises:
        ValueError: the template is blank, names an unknown field, or has an unmatched brace.
    """

    def __init__(self, template: str) -> None:
        pieces = re.split(r"\{([^{}]*)\}", template)
        self.fields = tuple(pieces[1::2])
        self.literals = [url_text(piece) for piece in pieces[::2]]
        for name in self.fields:
            if name not in EXPORT_FIELDS and name not in OF_CATALOGUE:
                raise ValueError(f"{{{name}}} is not a field of the export")
        if any("{" in piece or "}" in piece for piece in pieces[::2]):
            raise ValueError("it has an unmatched brace")
        if not template.strip():
            raise ValueError("it is empty")
        self._needed = tuple({"token", "enclosure_url"}.intersection(self.fields))
        self.as_published = self.fields == ("enclosure_url",) and not any(self.literals)
        self._else = UrlTemplate(DEFAULT_URL) if self._needed else None

    def fill(self, row: Mapping[str, Any], guid: str) -> tuple[str, bool]:
        """Return the URL of a row, and whether it had to fall back to the default one.

        A missing field is written as ``-``. ``row`` holds the export's fields, and the catalogue's ``token`` and
        ``enclosure_url``, empty if unknown.
        """
        if self._else is not None:
            url = self._fill(row, guid) if all(map(row.get, self._needed)) else ""
            # A publisher can put any URL into an RSS feed: an overlong one falls back, while our own rejects the row.
            if not 0 < len(url) <= URL_LIMIT:
                return self._else.fill(row, guid)[0], True
            return url, False
        return self._fill(row, guid), False

    def _fill(self, row: Mapping[str, Any], guid: str) -> str:
        if self.as_published:
            return url_text(str(row["enclosure_url"]))
        parts = [self.literals[0]]
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            text = guid if name == "guid" else json_text(row.get(name))
            if not PLAIN.fullmatch(text):
                from urllib.parse import quote  # only here: ids are plain, and a conversion starts sooner without it

                # What is beyond the limit makes no difference, and quoting it takes fifteen times its length.
                text = quote(text[: URL_LIMIT + 1], safe="") if text.strip() else "-"
            parts += (text, literal)
        return "".join(parts)


class LogRules(NamedTuple):
    """How rows become lines: ``[log]`` without file names and without secrets.

    Stored with every publication (`as_json`), so that a day's late rows follow the rules of its first file. ``kind`` is
    the name of the rows' `ExportKind`. ``object_size`` says where the size comes from if a row has none: ``export``
    (nowhere) or ``rss``. ``id_key`` is the fingerprint of the key that gave rows without ``id`` theirs; '' if it is not
    known, or if the kind does not need it.
    """

    layout: Layout = Layout()
    rows: str = "not-blacklisted"
    ip: str = "full"
    partial_status: int = 206
    bytes: str = "clamped"
    url: str = DEFAULT_URL
    kind: str = METRICS.name
    object_size: str = "export"
    id_key: str = ""

    @property
    def export_kind(self) -> ExportKind:
        """The kind of export that the rows come from."""
        return KINDS[self.kind]

    @property
    def fields(self) -> set[str]:
        """The fields of the export that a column or the URL asks for."""
        in_columns = {spec.field for spec in self.layout.specs if spec.field is not None}
        return in_columns | {field for field in UrlTemplate(self.url).fields if field not in OF_CATALOGUE}

    def as_json(self) -> dict[str, Any]:
        """Return the rules as the ledger keeps them: without what earlier releases did not know, if it is not used."""
        newer = {"kind": self.kind, "object_size": self.object_size, "id_key": self.id_key}
        return {
            "layout": self.layout.as_json(),
            "rows": self.rows,
            "ip": self.ip,
            "partial_status": self.partial_status,
            "bytes": self.bytes,
            "url": self.url,
        } | {name: value for name, value in newer.items() if value != type(self)._field_defaults[name]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LogRules:
        """Return the rules that `as_json` returned as ``data``."""
        return cls(**{**data, "layout": Layout.from_json(data["layout"])})


COUNTED_DAYS = timedelta(days=3)  # Triton counts a session that reaches it within three days


def expires(day: date) -> datetime:
    """Return when the first sessions of a day stop counting: 00:00 UTC three days later."""
    return start_of(day) + COUNTED_DAYS
