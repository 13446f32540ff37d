"""The caller's private file while an export is downloaded into it.

Touches that one file, in threads only, so that no disk ever blocks the event loop. The promise: from its position when
it was passed in, the file holds exactly the bytes written since the last `restart`; when a call returns, even a
cancelled one, no thread uses the file any longer (the caller may close it); a disk error is raised as the OSError that
it is.
"""

from __future__ import annotations

from typing import BinaryIO

from ..threads import in_thread

WRITE_SIZE = 1 << 20  # bytes


class DownloadFile:
    """The file of one download. ``size`` is how many bytes it holds; ``most`` is the most it ever held."""

    def __init__(self, into: BinaryIO, start: int) -> None:
        self._into = into
        self._start = start
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self.size = 0
        self.most = 0

    @classmethod
    async def at(cls, into: BinaryIO) -> DownloadFile:
        """Return a download that begins at the current position of ``into``."""
        return cls(into, await in_thread(into.tell))

    async def write(self, chunk: bytes) -> None:
        """Add bytes; they go to disk at least `WRITE_SIZE` at a time."""
        self._waiting.append(chunk)
        self._waiting_size += len(chunk)
        self.size += len(chunk)
        self.most = max(self.most, self.size)
        if self._waiting_size >= WRITE_SIZE:
            await self._write_out()

    async def restart(self) -> None:
        """Discard everything: the file ends again at its position when it was passed in."""
        self._waiting.clear()
        self._waiting_size = self.size = 0
        await in_thread(self._truncate)

    async def finish(self) -> None:
        """Write the last bytes, and flush what the file object itself buffers."""
        await self._write_out()
        await in_thread(self._into.flush)

    async def _write_out(self) -> None:
        # Taken before the thread runs: a `restart` after a cancelled write must not write these bytes again.
        chunks, self._waiting, self._waiting_size = self._waiting, [], 0
        await in_thread(self._write_all, chunks)

    def _write_all(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            rest = memoryview(chunk)
            # An unbuffered file may accept only part of it.
            while rest:
                rest = rest[self._into.write(rest) :]

    def _truncate(self) -> None:
        self._into.seek(self._start)
        self._into.truncate()
