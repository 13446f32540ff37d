"""The binding to the kernel (`kernel.c`): finds and loads it, hands it the rules of a conversion and blocks of rows.

Touches the shared library beside this file. The promise: what is handed to the kernel is as the comment at the top of
`kernel.c` requires it (zeros after a block, rooms of the stated sizes), and outlives the call; so nothing here accepts
pointers from outside. Calls release the interpreter's lock; each thread has rooms (buffers) of its own.

Without the library, or with ``PICKUP_POINT_KERNEL=none`` in the environment, there is no kernel, and every row is
converted the exact way.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
from array import array
from ctypes import POINTER, byref, c_char, c_char_p, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import orjson

from ..megaphone.exports import EXPORT_FIELDS, METRICS
from ..triton import DEFAULT_URL, PLAIN, DerivedValue, LogFormat, UrlTemplate, no_comment, url_text
from .export_row import subkey
from .row_ids import PARTITIONS, Partitioned, unpack
from .tally import FilterReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..episodes.catalogue import Catalogue
    from ..megaphone.exports import ExportKind
    from ..triton import ColumnSpec
    from .conversion import Conversion

LIBRARY = Path(__file__).with_name("libkernel.so")  # Python would import a kernel.so instead of this module
SWITCH = "PICKUP_POINT_KERNEL"
# These must be the same numbers as in kernel.c.
_PADDING, _LONGEST_NAME, _MOST_NAMES, _MOST_PODCASTS, _NO_FIELD, _FILTERS, _COPY = 256, 200, 120, 1024, 20, 7, 16
_MOST_ODD = 4096  # rows that are noted in one call
_SHORTEST_ROW = 64  # bytes; every field that an ordinary row must have takes more
_SMALLEST, _LARGEST_KEPT = 64 << 10, 4 << 20  # bytes of a room
_PARTS = ("literal", "field", "date", "start-time", "IP", "Hashed-IP", "url", "stem", "query", "status", "bytes",
          "object-size", "byte-range", "plain", "x-metric-id", "guid", "token", "enclosure_url")  # fmt: skip
_FIELDS = {name: place for place, name in enumerate(EXPORT_FIELDS)}
_REQUIRED = {"created_at", "ip", "podcast_id", "episode_id", "filesize", "bytes_sent"}  # besides the id
_ROWS = ("not-blacklisted", "all", "reporting")
_REASONS = tuple(FilterReason)
_INSTANT = len("YYYY-MM-DD HH:MM:SS")


class _Part(ctypes.Structure):
    _fields_: ClassVar = [("part", c_int64), ("field", c_int64), ("offset", c_int64), ("length", c_int64)]


class _Rules(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_int64) for name in (
            "rows", "truncated", "partial", "clamp", "percent", "hashes", "has_day", "has_fresh_after", "by_podcast",
            "index_rows", "features", "known", "required", "typed", "sizeless", "rss_size",
        )),
        ("day", c_uint8 * 16), ("fresh_after", c_uint8 * 32), ("hash_key", c_uint8 * 32), ("id_key", c_uint8 * 32),
        ("literals", c_char_p), ("cells", POINTER(_Part)), ("url", POINTER(_Part)), ("other_url", POINTER(_Part)),
        *((name, c_int64) for name in (
            "cell_count", "url_count", "other_url_count", "wants_token", "wants_enclosure",
        )),
        ("catalogue", c_char_p), ("catalogue_slots", c_void_p), ("catalogue_slot_count", c_int64),
    ]  # fmt: skip


class _Odd(ctypes.Structure):
    _fields_: ClassVar = [(name, c_int64) for name in ("begin", "end", "written", "ids", "rows", "line")]


class _Podcast(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_int64) for name in ("begin", "length", "rows", "reporting", "lines")),
        ("filtered", c_int64 * _FILTERS),
    ]


class _Block(ctypes.Structure):
    _fields_: ClassVar = [
        ("text", c_void_p), ("size", c_int64), ("array", c_int64),
        ("seen_slots", c_void_p), ("seen_slot_count", c_int64), ("seen", c_void_p), ("seen_numbers", c_void_p),
        ("most_seen", c_int64),
        ("names", c_char_p), ("name_count", c_int64),
        ("out", c_void_p), ("out_room", c_int64), ("ids", c_void_p), ("digests", c_void_p), ("most_ids", c_int64),
        ("odd", POINTER(_Odd)), ("most_odd", c_int64), ("podcasts", POINTER(_Podcast)),
        ("fresh", c_char_p), ("fresh_slots", c_void_p), ("fresh_slot_count", c_int64),
        ("repeated", c_char_p), ("repeated_slots", c_void_p), ("repeated_slot_count", c_int64),
        *((name, c_int64) for name in (
            "seen_count", "taken", "written", "line_count", "row_count", "id_count", "odd_count", "podcast_count",
            "lines", "reporting", "clamped", "not_an_address", "ends_in_zero", "outside_day", "unmapped",
            "fallback_urls", "unmatched",
        )),
        ("filtered", c_int64 * _FILTERS),
    ]  # fmt: skip


class Kernel:
    """The loaded library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.kernel_layout.restype = library.kernel_features.restype = c_int64
        library.convert_block.argtypes, library.convert_block.restype = (POINTER(_Rules), POINTER(_Block)), None
        library.index_ids.argtypes, library.index_ids.restype = (c_char_p, c_int64, c_void_p, c_int64), None
        library.ids_differ.argtypes, library.ids_differ.restype = library.index_ids.argtypes, c_int64
        library.index_catalogue.argtypes, library.index_catalogue.restype = library.index_ids.argtypes, c_int64
        library.partition_ids.argtypes = (c_char_p, c_char_p, c_int64, c_void_p, c_void_p)
        library.partition_ids.restype = None
        library.index_lines.argtypes = (c_char_p, c_int64, c_int64, c_void_p, c_void_p, POINTER(c_int64))
        library.index_lines.restype = c_int64
        self.features: int = library.kernel_features()

    @classmethod
    def open(cls, path: Path = LIBRARY) -> Kernel | None:
        """Load the kernel at ``path``; return None if it is missing, of another version, or for another processor."""
        try:
            library = ctypes.CDLL(str(path))
            library.kernel_layout.restype = c_int64
            # A library of another version could be there after a half-done upgrade: the sizes of its structures tell,
            # or a function that it lacks.
            sizes = ctypes.sizeof(_Rules) << 40 | ctypes.sizeof(_Block) << 20 | ctypes.sizeof(_Podcast)
            return cls(library) if library.kernel_layout() == sizes else None
        except (OSError, AttributeError):
            return None

    def convert(self, rules: CompiledRules, block: _Block) -> None:
        """Convert rows until the block ends or a room is full; ``block.taken`` says how far it came."""
        self._library.convert_block(byref(rules.rules), byref(block))

    def ids_differ(self, ids: bytes) -> bool:
        """Return whether no id, of 16 bytes each, occurs twice."""
        count = len(ids) // 16
        slots = _slots(count)
        differ = self._library.ids_differ(ids, count, slots, len(slots))
        # Chosen to meet in the table: Python's hash of bytes has a key, which nobody can choose for.
        return differ > 0 if differ >= 0 else len(frozenset(unpack(ids))) == count

    def partition(self, ids: bytes, digests: bytes | None = None) -> Partitioned:
        """Do what `row_ids.partition` does to ids, 16 bytes each, with their digests of 8 bytes each if given."""
        count = len(ids) // 16
        counts = (c_uint32 * PARTITIONS)()
        out = ctypes.create_string_buffer(max(1, count * (16 if digests is None else 24)))
        self._library.partition_ids(ids, digests, count, counts, out)
        return Partitioned(array("I", counts), out.raw[: len(ids) + len(digests or b"")])

    def index_lines(self, log: bytes, column: int) -> tuple[bytes, bytes, int]:
        """Return the packed cells of a column of a log's lines, the lines' digests, and the number of lines.

        Every line of ``log`` ends with a newline. A line has a packed cell (16 bytes) and a digest (8 bytes) if it has
        the column; empty lines are not counted.
        """
        most = log.count(b"\n")
        ids, digests = ctypes.create_string_buffer(16 * most + 1), ctypes.create_string_buffer(8 * most + 1)
        lines = c_int64()
        count = self._library.index_lines(log, len(log), column, ids, digests, byref(lines))
        return ids.raw[: 16 * count], digests.raw[: 8 * count], lines.value

    def index(self, entries: bytes, count: int, most: int = 0, *, catalogue: bool = False) -> ctypes.Array[c_uint32]:
        """Return the hash table by which the kernel finds one of ``count`` ids, or one of as many catalogue entries.

        It has room for ``most``, if that is more.
        """
        slots = _slots(max(count, most))
        if not catalogue:
            self._library.index_ids(entries, count, slots, len(slots))
        elif self._library.index_catalogue(entries, len(entries) - _COPY, slots, len(slots)) != count:
            raise ValueError("an entry of the catalogue is incomplete")
        return slots


def load_kernel() -> Kernel | None:
    """Return the installed kernel; None if there is none, or it is switched off."""
    return None if os.environ.get(SWITCH) == "none" else Kernel.open()


def _slots(count: int) -> ctypes.Array[c_uint32]:
    """Return an empty hash table for this many entries: a power of two of slots, at most half of them ever used."""
    return (c_uint32 * (1 << (2 * count + 1).bit_length()))()


class CompiledRules:
    """The rules of a conversion as the kernel reads them; ``rules`` points into memory that this object keeps alive."""

    def __init__(
        self,
        kernel: Kernel,
        conversion: Conversion,
        fresh_after: str | None = None,
        *,
        by_podcast: bool = False,
        index_rows: bool = False,
    ) -> None:
        rules, layout = conversion.rules, conversion.rules.layout
        if fresh_after is not None and len(fresh_after) != _INSTANT:
            raise ValueError(f"{fresh_after!r} is not YYYY-MM-DD HH:MM:SS")
        self._literals, kind = bytearray(), rules.export_kind
        template = UrlTemplate(rules.url)
        cells = [self._cell(spec, layout.format is LogFormat.W3C, layout.clean) for spec in layout.specs]
        if layout.specs[0].constant is not None:
            cells[0] = self._literal(no_comment(layout.clean(layout.specs[0].constant)))
        url = self._template(template)
        other = self._template(UrlTemplate(DEFAULT_URL))
        self._literals += bytes(_COPY)
        # Copied only when all literals are in: a bytearray that still grows may move, and the kernel keeps a pointer.
        self._kept: list[Any] = [bytes(self._literals)]
        day = conversion.day.isoformat() if conversion.day is not None else ""
        self.rules = _Rules(
            rows=_ROWS.index(rules.rows),
            truncated=rules.ip == "truncated",
            partial=rules.partial_status == 206,
            clamp=rules.bytes == "clamped",
            percent=layout.format is LogFormat.W3C or layout.text == "percent",
            hashes=any(spec.value == DerivedValue.HASHED_IP for spec in layout.specs),
            has_day=bool(day),
            has_fresh_after=fresh_after is not None,
            by_podcast=by_podcast,
            index_rows=index_rows,
            features=kernel.features,
            known=_bits(_FIELDS if kind is not METRICS else {*METRICS.fields, *rules.fields}),
            required=_bits(_REQUIRED if not kind.bytes_optional else _REQUIRED - {"filesize", "bytes_sent"}),
            typed=kind.delivery_types is not None,
            sizeless=kind.bytes_optional,
            rss_size=rules.object_size == "rss",
            day=_bytes(day.encode(), 16),
            fresh_after=_bytes((fresh_after or "").encode(), 32),
            hash_key=_bytes(conversion.hash_key, 32),
            id_key=_bytes(subkey(conversion.hash_key) if kind.identity else b"", 32),
            literals=self._kept[0],
            cells=(_Part * len(cells))(*cells),
            cell_count=len(cells),
            url=(_Part * len(url))(*url),
            url_count=len(url),
            other_url=(_Part * len(other))(*other),
            other_url_count=len(other),
            wants_token="token" in template.fields,
            wants_enclosure="enclosure_url" in template.fields,
        )
        if conversion.catalogue is not None:
            entries, count = _pack_catalogue(conversion.catalogue, template, layout.clean)
            slots = kernel.index(entries, count, catalogue=True)
            self._kept += [entries, slots]
            self.rules.catalogue = entries
            self.rules.catalogue_slots = ctypes.cast(slots, c_void_p)
            self.rules.catalogue_slot_count = len(slots)

    def _literal(self, text: str) -> _Part:
        """Add a text that is the same in every line, and return the part that writes it."""
        data = text.encode()
        self._literals += data
        return _Part(_PARTS.index("literal"), 0, len(self._literals) - len(data), len(data))

    def _cell(self, spec: ColumnSpec, w3c: bool, clean: Any) -> _Part:
        """Return the part that writes the cells of a column."""
        if spec.constant is not None:
            return self._literal(clean(spec.constant))
        if spec.field is not None:
            return _Part(_PARTS.index("field"), _FIELDS[spec.field])
        value = str(spec.value)
        if value == DerivedValue.METHOD:
            return self._literal("GET")
        if value == DerivedValue.USER_AGENT:
            return _Part(_PARTS.index("field"), _FIELDS["user_agent"])
        if value == DerivedValue.PODCAST_ID:
            return _Part(_PARTS.index("plain"), _FIELDS["podcast_id"])
        if value == DerivedValue.EPISODE_GUID:
            return _Part(_PARTS.index("guid"))
        if value == "cs-uri-query":
            return _Part(_PARTS.index("query"))
        if w3c and value == DerivedValue.URL and spec.name == "cs-uri-stem":
            return _Part(_PARTS.index("stem"))
        return _Part(_PARTS.index(value))

    def _template(self, template: UrlTemplate) -> list[_Part]:
        """Return the parts that write a URL."""
        parts: list[_Part] = []
        for literal, name in zip(template.literals, (*template.fields, ""), strict=True):
            if literal:
                parts.append(self._literal(literal))
            if name in ("guid", "token", "enclosure_url"):
                parts.append(_Part(_PARTS.index(name)))
            elif name in ("podcast_id", "episode_id"):
                parts.append(_Part(_PARTS.index("plain"), _FIELDS[name]))
            elif name:
                parts.append(_Part(_PARTS.index("field"), _FIELDS[name]))
        return parts


def _bits(names: Iterable[str]) -> int:
    """Return the set of these fields as the kernel has it."""
    return sum(1 << _FIELDS[name] for name in names)


def _bytes(data: bytes, room: int) -> ctypes.Array[c_uint8]:
    return (c_uint8 * room)(*data)


def _pack_catalogue(catalogue: Catalogue, template: UrlTemplate, clean: Any) -> tuple[bytes, int]:
    """Return the entries of a catalogue in one text, with zeros after the last one; and their number.

    Entries whose id is not plain are left out: the kernel looks up plain ids only.
    """
    wanted, as_published = template.fields, template.as_published
    entries, count = [], 0
    for key, (guid, url, token, enclosure, length) in catalogue.episodes.items():
        if not PLAIN.fullmatch(key):
            continue
        published = ""
        if enclosure and "enclosure_url" in wanted:
            published = url_text(enclosure) if as_published else _quoted(enclosure)
        texts = (
            key.encode(),
            (guid if PLAIN.fullmatch(guid) else clean(guid)).encode() if guid else b"",
            _quoted(guid).encode() if guid else b"",
            url.encode(),
            _quoted(token).encode() if token and "token" in wanted else b"",
            published.encode(),
            length.encode(),
        )
        entry = struct.pack("<7I", *map(len, texts)) + b"".join(texts)
        entries.append(entry + bytes(-len(entry) % 4))
        count += 1
    return b"".join(entries) + bytes(_COPY), count


def _quoted(text: str) -> str:
    """Quote a value as `UrlTemplate` does."""
    if PLAIN.fullmatch(text):
        return text
    return quote(text, safe="") if text.strip() else "-"


class Names:
    """The field names that rows are expected to have: the first row's in its order, then the others known so far.

    They change only the speed of a row, never its outcome; so threads may share this object without a lock.
    """

    def __init__(self, kind: ExportKind = METRICS) -> None:
        self._known: tuple[str, ...] = kind.fields
        self._packed: tuple[tuple[str, ...], tuple[bytes, int]] = (), (b"", 0)  # a row's names, and their packed form

    def packed(self, first: tuple[str, ...]) -> tuple[bytes, int]:
        """Return the names as the kernel reads them, in the order of this row; and their number."""
        # One read and one assignment of a tuple: another thread may replace it between the two, never tear it.
        order, packed = self._packed
        if order == first and packed[1]:
            return packed
        self._known = tuple(dict.fromkeys((*self._known, *first)))[:_MOST_NAMES]
        data, count, known = bytearray(), 0, frozenset(self._known)
        for name in dict.fromkeys((*filter(known.__contains__, first), *self._known)):
            quoted = orjson.dumps(name) + b":"
            if len(quoted) <= _LONGEST_NAME:
                data += bytes((_FIELDS.get(name, _NO_FIELD), len(quoted))) + quoted
                count += 1
        packed = bytes(data) + bytes(8), count
        self._packed = first, packed
        return packed


def make_room(size: int) -> ctypes.Array[c_char]:
    """Return this many bytes of memory, which the system provides page by page as they are first written to."""
    return (c_char * size).from_buffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Rooms(threading.local):
    """A thread's rooms (buffers) for blocks: call `load` first; views are valid until the thread's next `load`."""

    def __init__(self) -> None:
        self._size = 0  # bytes of the largest block that fits
        self._loaded = 0

    def load(self, pieces: Sequence[bytes | memoryview]) -> memoryview:
        """Copy a block to where the kernel reads it; return a view of it, ending with a newline, without the zeros."""
        size = sum(map(len, pieces)) + 1
        if not size <= self._size:
            self._size = max(size, _SMALLEST)
            self._text = make_room(self._size + _PADDING)
            self._out = make_room(self._size + _SMALLEST)
            self._most_ids = self._size // _SHORTEST_ROW + 1
            self._ids = make_room(16 * self._most_ids)
            self._digests = make_room(8 * self._most_ids)
            self._odd = (_Odd * _MOST_ODD)()
            self._podcasts = (_Podcast * _MOST_PODCASTS)()
        view, end = memoryview(self._text).cast("B"), 0
        for piece in pieces:
            view[end : end + len(piece)] = piece
            end += len(piece)
        if end and view[end - 1] != ord("\n"):
            view[end] = ord("\n")
            end += 1
        # The kernel loads up to this many bytes after the block; the last block may have left others there.
        view[end : end + _PADDING] = bytes(_PADDING)
        self._loaded = end
        return view[:end]

    def leave(self) -> None:
        """Give back rooms that one huge line made far too large; others are kept for the thread's next block."""
        if self._size > _LARGEST_KEPT:
            self.__dict__.clear()
            self._size = self._loaded = 0

    def block(
        self,
        start: int,
        names: tuple[bytes, int],
        *,
        array: bool,
        derive: Equals | None = None,
        fresh: IdTable | None = None,
        repeated: IdTable | None = None,
    ) -> _Block:
        """Return what the kernel is handed for the loaded block, beginning at ``start``; keep the arguments alive.

        ``derive``, of this block: its rows have no ids of their own, and one that has is odd; else it is the other way
        round.
        """
        block = _Block(
            text=ctypes.addressof(self._text) + start,
            size=self._loaded - start,
            array=array,
            names=names[0],
            name_count=names[1],
            out=ctypes.addressof(self._out),
            out_room=ctypes.sizeof(self._out),
            ids=ctypes.addressof(self._ids),
            digests=ctypes.addressof(self._digests),
            most_ids=self._most_ids,
            odd=self._odd,
            most_odd=_MOST_ODD,
            podcasts=self._podcasts,
        )
        if derive is not None:
            block.seen, block.seen_numbers = ctypes.addressof(derive.ids), ctypes.addressof(derive.numbers)
            block.seen_slots, block.seen_slot_count = ctypes.addressof(derive.slots), len(derive.slots)
            block.seen_count, block.most_seen = derive.count, len(derive.numbers)
        if fresh is not None:
            block.fresh, block.fresh_slots, block.fresh_slot_count = fresh.ids, fresh.address, len(fresh.slots)
        if repeated is not None:
            block.repeated, block.repeated_slots = repeated.ids, repeated.address
            block.repeated_slot_count = len(repeated.slots)
        return block

    def out(self, block: _Block) -> memoryview:
        """Return a view of the lines that were written."""
        return memoryview(self._out).cast("B")[: block.written]

    def ids(self, block: _Block) -> memoryview:
        """Return a view of the packed ids of the rows, 16 bytes each."""
        return memoryview(self._ids).cast("B")[: 16 * block.id_count]

    def digests(self, block: _Block) -> memoryview:
        """Return a view of the digests of their lines, 8 bytes each."""
        return memoryview(self._digests).cast("B")[: 8 * block.id_count]

    def odd(self, block: _Block) -> list[_Odd]:
        """Return the odd rows: begin and end, and the bytes written, ids packed, rows and lines counted before each."""
        return self._odd[: block.odd_count]

    def podcasts(self, block: _Block, start: int) -> list[tuple[str, int, int, int, dict[FilterReason, int]]]:
        """Return each podcast: its id, rows, reporting rows, lines, and filtered rows by reason."""
        view = memoryview(self._text).cast("B")[start:]
        return [
            (
                bytes(view[podcast.begin : podcast.begin + podcast.length]).decode(),
                podcast.rows,
                podcast.reporting,
                podcast.lines,
                filtered(podcast),
            )
            for podcast in self._podcasts[: block.podcast_count]
        ]


class Equals:
    """The rows of one block that have no id, counted by the id that each would have as the first of its equals.

    ``numbers`` at first: packed ids, each with 8 bytes more, how many rows of it became lines in earlier blocks.
    ``count`` is how many ids there are; set it to the kernel's ``seen_count`` after each call.
    """

    def __init__(self, kernel: Kernel, numbers: bytes, size: int) -> None:
        """Prepare for a block of this many bytes."""
        before = list(struct.iter_unpack("<16sQ", numbers))
        self._before = [number for _, number in before]
        self.count = len(before)
        most = self.count + size // _SHORTEST_ROW + 1
        self.ids, self.numbers = make_room(16 * most), (c_uint64 * most)(*self._before)
        known = b"".join(row_id for row_id, _ in before)
        memoryview(self.ids).cast("B")[: len(known)] = known
        self.slots = kernel.index(known, self.count, most)

    def counted(self) -> tuple[bytes, bytes]:
        """Return the packed ids of rows of this block that became lines, and how many each did, in 8 bytes."""
        known, ids = len(self._before), bytes(memoryview(self.ids).cast("B")[: 16 * self.count])
        first = [(ids[16 * n : 16 * n + 16], self.numbers[n] - self._before[n]) for n in range(known)]
        here = [(row_id, count) for row_id, count in first if count]
        numbers = bytes(memoryview(self.numbers).cast("B")[8 * known : 8 * self.count])
        return (
            b"".join(row_id for row_id, _ in here) + ids[16 * known :],
            b"".join(count.to_bytes(8, "little") for _, count in here) + numbers,
        )


class IdTable:
    """Packed ids, with the hash table by which the kernel looks them up."""

    def __init__(self, kernel: Kernel, ids: bytes) -> None:
        self.ids = ids
        self.slots = kernel.index(ids, len(ids) // 16)

    @property
    def address(self) -> c_void_p:
        """The address of the slots."""
        return ctypes.cast(self.slots, c_void_p)


def filtered(counts: _Block | _Podcast) -> dict[FilterReason, int]:
    """Return how many rows were filtered, by reason; reasons that did not occur are left out."""
    return {reason: count for reason, count in zip(_REASONS, counts.filtered, strict=True) if count}
