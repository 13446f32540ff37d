"""Memory that the service shares with one worker process: a few slots, in each the rows of a job under way.

Touches one nameless file in memory, which both have open and which is gone with them. Rows go through it with one copy
on either side; through a pipe they cost a third as much as their conversion. The promise: what does not fit, or cannot
be shared on this system, goes through the pipe, with the same result.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

SLOT = 2 << 20  # bytes; a block of rows is half as long, but for its last line


class Slots:
    """So many slots behind a descriptor."""

    def __init__(self, descriptor: int, count: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, count * SLOT)
        self._free = list(range(count))

    @classmethod
    def make(cls, count: int) -> Self | None:
        """New ones, or None where memory cannot be shared so."""
        with suppress(OSError, AttributeError, ValueError):
            descriptor = os.memfd_create("pickup-point rows", os.MFD_CLOEXEC)
            try:
                os.ftruncate(descriptor, count * SLOT)
                return cls(descriptor, count)
            except BaseException:
                os.close(descriptor)
                raise
        return None

    def put(self, pieces: Sequence[bytes | memoryview]) -> int | None:
        """The slot that holds these pieces now, or None where they do not fit or no slot is free."""
        if not self._free or sum(map(len, pieces)) > SLOT:
            return None
        slot = self._free.pop()
        start = slot * SLOT
        for piece in pieces:
            self._memory[start : start + len(piece)] = piece
            start += len(piece)
        return slot

    def take(self, slot: int, length: int) -> bytes:
        """What a slot holds."""
        return self._memory[slot * SLOT : slot * SLOT + length]

    def free(self, slot: int) -> None:
        """A slot may be used again."""
        self._free.append(slot)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
        os.close(self.descriptor)
