"""Ids of rows in 16 bytes each: packed, spread over partitions, spilled to disk, and searched for duplicates.

Touches one nameless temporary file per `Spill`, which vanishes with the process, however that ends. The promise: exact
for any number of rows, in memory that does not grow with it (`HELD` bytes, and part of one partition at a time).
"""

from __future__ import annotations

import re
import struct
from array import array
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import IO, Self

PARTITIONS = 64
HELD = 2 << 20  # bytes kept in memory before they are spilled
AT_ONCE = 200_000  # records of a partition that are examined at a time

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # compiled for the first row
_TO_PARTITION = bytes(byte % PARTITIONS for byte in range(256))


def pack_id(text: str) -> bytes:
    """Return an id in 16 bytes: those of a canonical lower-case UUID, else a personalized BLAKE2b hash of the text."""
    if re.fullmatch(_UUID, text, re.ASCII):
        return bytes.fromhex(text.replace("-", ""))
    from hashlib import blake2b  # only here: it loads OpenSSL, and real ids are UUIDs

    return blake2b(text.encode(), digest_size=16, person=b"pickup-point id").digest()


class Partitioned(NamedTuple):
    """Records of one block, partition after partition; ``counts`` says how many are in each."""

    counts: array[int]
    data: bytes


def partition(records: Sequence[bytes], packed_ids: bytes) -> Partitioned:
    """Return records sorted by partition; record n belongs to the n-th of the packed ids."""
    # The XOR of these two bytes spreads UUIDs of version 1 (time), 4 (random) and 7 (time, then random) equally well.
    count = len(records)
    mixed = int.from_bytes(packed_ids[3::16], "little") ^ int.from_bytes(packed_ids[15::16], "little")
    parts: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    for part, record in zip(mixed.to_bytes(count, "little").translate(_TO_PARTITION), records, strict=True):
        parts[part].append(record)
    return Partitioned(array("I", map(len, parts)), b"".join(map(b"".join, parts)))


def unpack(packed: bytes) -> tuple[bytes, ...]:
    """Return the 16-byte ids that are concatenated in ``packed``."""
    return struct.unpack("16s" * (len(packed) // 16), packed)


class Spill:
    """Records of equal size in partitions, each in the order of addition; beyond `HELD` bytes they are on disk."""

    def __init__(self, scratch: Path | str, record_size: int, partitions: int = PARTITIONS, held: int = HELD) -> None:
        self.record_size = record_size
        self.partitions = partitions
        self._scratch = scratch
        self._held_limit = held
        self._held = 0
        self._buffers = [bytearray() for _ in range(partitions)]
        self._extents: list[list[tuple[int, int]]] = [[] for _ in range(partitions)]
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, part: int, data: bytes | memoryview) -> None:
        """Add records to one partition."""
        self._buffers[part] += data
        self._held += len(data)

    def flush_if_large(self) -> None:
        """Write what is in memory to disk, if it is more than the limit."""
        if self._held <= self._held_limit:
            return
        if self._file is None:
            import tempfile  # only here: a small export spills nothing

            self._file = tempfile.TemporaryFile(dir=self._scratch, buffering=0)  # noqa: SIM115  # closed by __exit__
        # `chunks` moves the position, so always append at the end.
        offset = self._file.seek(0, 2)
        for part, buffer in enumerate(self._buffers):
            if buffer:
                self._extents[part].append((offset, len(buffer)))
                offset += len(buffer)
        for buffer in self._buffers:
            # Unbuffered, a write may be taken in parts.
            rest = memoryview(buffer)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._buffers = [bytearray() for _ in range(self.partitions)]
        self._held = 0

    def chunks(self, part: int) -> Iterator[bytes]:
        """Yield a partition's records, in order, some at a time."""
        if self._file is not None:
            for offset, length in self._extents[part]:
                self._file.seek(offset)
                yield self._file.read(length)
        if self._buffers[part]:
            yield bytes(self._buffers[part])

    def count(self, part: int) -> int:
        """Return how many records a partition has."""
        return (sum(length for _, length in self._extents[part]) + len(self._buffers[part])) // self.record_size


class BlockRecords:
    """The records of all blocks by partition; `RecordGroup.block_of` finds a record's block."""

    def __init__(self, scratch: Path | str, record_size: int, held: int = HELD) -> None:
        self._spill = Spill(scratch, record_size, held=held)
        self._counts = [array("I") for _ in range(PARTITIONS)]
        self._size = record_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spill.__exit__(kind, error, trace)

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self._counts[0])

    def add(self, records: Partitioned | None) -> None:
        """Add the next block's records, if it has any."""
        if records is None:
            for counts in self._counts:
                counts.append(0)
            return
        data, start = memoryview(records.data), 0
        for part, count in enumerate(records.counts):
            self._counts[part].append(count)
            if count:
                end = start + count * self._size
                self._spill.append(part, data[start:end])
                start = end
        self._spill.flush_if_large()

    def __iter__(self) -> Iterator[RecordGroup]:
        """Yield groups of records: equal ids are in one group, and every group is small enough to examine at once."""
        for part in range(PARTITIONS):
            count = self._spill.count(part)
            passes = -(-count // AT_ONCE)
            for turn in range(passes):
                yield RecordGroup(self, part, turn, passes)

    def groups_with(self, other: BlockRecords) -> Iterator[tuple[RecordGroup, RecordGroup]]:
        """Yield the groups of two collections side by side: equal ids are in the same pair."""
        for part in range(PARTITIONS):
            count = max(self._spill.count(part), other._spill.count(part))  # the other one is of the same class
            passes = -(-count // AT_ONCE)
            for turn in range(passes):
                yield RecordGroup(self, part, turn, passes), RecordGroup(other, part, turn, passes)


class RecordGroup(NamedTuple):
    """Some of the records of one partition: those whose ids belong to this one of several ``turns``."""

    records: BlockRecords
    part: int
    turn: int
    turns: int

    def ids(self) -> bytes:
        """Return the ids (the first 16 bytes of each record), concatenated, in order."""
        if self.turns == 1 and self.records._size == 16:  # noqa: SLF001  # a part of it
            return b"".join(self.records._spill.chunks(self.part))  # noqa: SLF001
        return b"".join(record[:16] for _, record in self.positions())

    def positions(self) -> Iterator[tuple[int, bytes]]:
        """Yield each record with its position in the partition, in order."""
        size, position = self.records._size, 0  # noqa: SLF001  # a part of it
        for chunk in self.records._spill.chunks(self.part):  # noqa: SLF001
            for (record,) in struct.iter_unpack(f"{size}s", chunk):
                # Python's hash: its key is this process's, so nobody can choose ids that are all of one turn.
                if self.turns == 1 or hash(record[:16]) % self.turns == self.turn:
                    yield position, record
                position += 1

    def block_of(self) -> BlockFinder:
        """Return a function from a position to its block."""
        return BlockFinder(self.records._counts[self.part])  # noqa: SLF001


class BlockFinder:
    """Finds the block of a record by its position in its partition."""

    def __init__(self, counts: array[int]) -> None:
        self._starts = list(accumulate(counts, initial=0))

    def __call__(self, position: int) -> int:
        return bisect_right(self._starts, position) - 1


class BlockIds:
    """A set of ids for every block, on disk if there are many; to be taken out block by block, in order.

    An entry is ``size`` bytes: an id, and what is known about it.
    """

    GROUPS = 64

    def __init__(self, scratch: Path | str, blocks: int, held: int = HELD, size: int = 16) -> None:
        self._per_group = max(1, -(-blocks // self.GROUPS))
        self._entry = struct.Struct(f"<I{size}s")
        self._spill = Spill(scratch, self._entry.size, self.GROUPS, held)
        self._group, self._of_group = -1, {}  # type: tuple[int, dict[int, bytearray]]
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spill.__exit__(kind, error, trace)

    def add(self, block: int, entry: bytes) -> None:
        """Add an entry to a block's set."""
        self._spill.append(block // self._per_group, self._entry.pack(block, entry))
        self._spill.flush_if_large()
        self.count += 1

    def of(self, block: int) -> bytes:
        """Return a block's entries, concatenated."""
        group = block // self._per_group
        if group != self._group:
            self._group, self._of_group = group, {}
            for chunk in self._spill.chunks(group):
                for number, entry in self._entry.iter_unpack(chunk):
                    self._of_group.setdefault(number, bytearray()).extend(entry)
        return bytes(self._of_group.get(block, b""))


def ids_differ(ids: bytes) -> bool:
    """Return whether all ids (16 bytes each) are different; `Kernel.ids_differ` does the same in less memory."""
    # The quick way: if the first 8 bytes all differ, so do the ids. Only if not, compare whole ids.
    firsts = set(memoryview(ids).cast("Q")[::2])
    return len(firsts) == len(ids) // 16 or len(set(unpack(ids))) == len(ids) // 16


def find_duplicates(ids: BlockRecords, found: BlockIds, differ: Callable[[bytes], bool] = ids_differ) -> None:
    """Add to ``found``, for every block, the ids that occurred in an earlier one; no block holds an id twice."""
    for group in ids:
        if differ(group.ids()):
            continue
        block_of, seen = group.block_of(), set[bytes]()
        for position, packed_id in group.positions():
            if packed_id in seen:
                found.add(block_of(position), packed_id)
            seen.add(packed_id)


def find_numbers(counted: BlockRecords, found: BlockIds, differ: Callable[[bytes], bool] = ids_differ) -> None:
    """Add to ``found``, for every block, the ids that occurred in earlier ones, and how often.

    Records and entries are an id and a number of 8 bytes (little-endian); no block holds an id twice.
    """
    for group in counted:
        if differ(group.ids()):
            continue
        block_of, totals = group.block_of(), dict[bytes, int]()
        for position, record in group.positions():
            packed_id, count = record[:16], int.from_bytes(record[16:], "little")
            if packed_id in totals:
                found.add(block_of(position), packed_id + totals[packed_id].to_bytes(8, "little"))
            totals[packed_id] = totals.get(packed_id, 0) + count
