"""The caller's private file, while an export is read into it.

Touches that one file, in threads only, so that no disk ever holds up the event loop. The promise: the file holds,
from where it stood when it was handed over, exactly the bytes given since the last `restart`; no thread is at work on
it any more when a call returns, a cancelled one included (the caller may close it); an error of the disk comes out as
the OSError that it is.
"""

from __future__ import annotations

from typing import BinaryIO

from ..threads import in_thread

WRITE_SIZE = 1 << 20


class DownloadFile:
    """One download's file. ``size`` is what it holds in bytes; ``most`` is the most that it ever held."""

    def __init__(self, into: BinaryIO, start: int) -> None:
        self._into = into
        self._start = start
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self.size = 0
        self.most = 0

    @classmethod
    async def at(cls, into: BinaryIO) -> DownloadFile:
        """A spool that begins where ``into`` stands now."""
        return cls(into, await in_thread(into.tell))

    async def write(self, chunk: bytes) -> None:
        """Add bytes; they go to the disk a mebibyte or more at a time."""
        self._waiting.append(chunk)
        self._waiting_size += len(chunk)
        self.size += len(chunk)
        self.most = max(self.most, self.size)
        if self._waiting_size >= WRITE_SIZE:
            await self._write_out()

    async def restart(self) -> None:
        """Forget everything: the file ends again where it stood when it was handed over."""
        self._waiting.clear()
        self._waiting_size = self.size = 0
        await in_thread(self._truncate)

    async def finish(self) -> None:
        """Hand the last bytes, and what the file object holds back itself, to the system."""
        await self._write_out()
        await in_thread(self._into.flush)

    async def _write_out(self) -> None:
        chunks, self._waiting, self._waiting_size = self._waiting, [], 0
        await in_thread(self._write_all, chunks)

    def _write_all(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:  # an unbuffered file may take only part of it
                rest = rest[self._into.write(rest) :]

    def _truncate(self) -> None:
        self._into.seek(self._start)
        self._into.truncate()
