"""The service's own objects in a shared store, for use in a thread: entries of the sequence, contents, checkpoints.

Touches one bucket. `Shelf` is what the sequence needs of a store; `open_shelf` makes one of a bucket. Names are
relative to the service's own prefix. Every method raises `StoreError` if there is no usable answer.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import StoreError
from ..triton import LogName
from .sequence import NoEntry, from_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from datetime import datetime
    from pathlib import Path
    from typing import BinaryIO

    from ..s3.objects import Objects, ObjectStore
    from .sequence import Entry

_CHUNK = 1 << 20
_LOOK_EVERY = 0.5  # seconds between two checks whether the service is to end


class Shelved(NamedTuple):
    """An object in a listing: its name, when it was written by the store's clock, and its ETag."""

    name: str
    modified: datetime | None
    etag: str


class Shelf(Protocol):
    """What the sequence needs of a store."""

    @property
    def clock(self) -> datetime:
        """The store's clock, by the Date of its last answer."""

    def published(self) -> list[str]:
        """Return the names of the logs that lie where the partner reads."""

    def list(self, folder: str, after: str = "") -> list[Shelved]:
        """Return the objects in a folder whose names come after ``after``, sorted; names are relative to the folder."""

    def read(self, name: str, most: int) -> bytes | None:
        """Return an object of at most ``most`` bytes, or None if there is none."""

    def fetch(self, name: str, size: int, into: BinaryIO) -> None:
        """Download an object of ``size`` bytes ``into`` a file; after an error its content is meaningless."""

    def put_new(self, name: str, data: bytes) -> bool:
        """Write an object if there is none; return whether it was written. After an error it may yet appear."""

    def put(self, name: str, data: bytes) -> None:
        """Write an object, replacing what this node wrote there before."""

    def put_file(self, name: str, path: Path) -> None:
        """Write a file's content under a name that nobody else uses."""

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""


def try_rights(shelf: Shelf, remove: Callable[[str], None]) -> bool:
    """List, write, read and ``remove`` a small object of our own; return whether the store refuses to overwrite it.

    Raises:
        StoreError: one of these failed.
    """
    name, body = f"trial-{os.urandom(8).hex()}", b'"pickup-point tries what it may do here"\n'
    shelf.published()
    shelf.put_new(name, body)
    try:
        if shelf.read(name, len(body)) != body:
            raise StoreError("the store does not return what was written", hint="ask whoever runs it")
        return not shelf.put_new(name, body)
    finally:
        remove(name)


def entry_of(number: int, data: bytes) -> Entry:
    """Return the entry that an object of the sequence holds.

    Raises:
        StoreError: it is not one that this version can read.
    """
    try:
        return from_bytes(number, data)
    except NoEntry as error:
        hint = "install the version that the other nodes have, or ask whoever else writes to the store"
        raise StoreError(f"the shared store's {error}", hint=hint) from error


@contextmanager
def open_shelf(store: ObjectStore, state_prefix: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[Shelf]:
    """Open the shelf of a bucket, with one client and an event loop of its own; not for a thread that runs a loop.

    Soon after ``stopped`` returns True, whatever waits for the store ends with an error.

    Raises:
        StoreError: there are no usable credentials.
    """
    with asyncio.Runner() as runner:
        opening = store.connected()
        objects = runner.run(opening.__aenter__())
        try:
            yield _BucketShelf(objects, state_prefix, store.place.prefix, runner, stopped)
        finally:
            runner.run(opening.__aexit__(None, None, None))


class _BucketShelf:
    def __init__(
        self, objects: Objects, prefix: str, logs: str, runner: asyncio.Runner, stopped: Callable[[], bool]
    ) -> None:
        self._objects = objects
        self._prefix = prefix
        self._logs = logs
        self._runner = runner
        self._stopped = stopped

    @property
    def clock(self) -> datetime:
        if self._objects.clock is None:
            raise StoreError("the store's answers have no Date, which dates the logs", hint="pickup-point doctor")
        return self._objects.clock

    def published(self) -> list[str]:
        found = [stored.key.removeprefix(self._logs) for stored in self._run(self._objects.list(self._logs))]
        return [name for name in found if LogName.parse(name) is not None]

    def list(self, folder: str, after: str = "") -> list[Shelved]:
        prefix = f"{self._prefix}{folder}/"
        found = self._run(self._objects.list(prefix, after))
        return [Shelved(stored.key.removeprefix(prefix), stored.modified, stored.etag) for stored in found]

    def read(self, name: str, most: int) -> bytes | None:
        data: bytes | None = self._run(self._objects.read(f"{self._prefix}{name}", most))
        return data

    def fetch(self, name: str, size: int, into: BinaryIO) -> None:
        self._run(self._objects.fetch(f"{self._prefix}{name}", size, into))

    def put_new(self, name: str, data: bytes) -> bool:
        return self._put(name, data, new=True)

    def put(self, name: str, data: bytes) -> None:
        self._put(name, data, new=False)

    def _put(self, name: str, data: bytes, *, new: bool) -> bool:
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        key, size = f"{self._prefix}{name}", len(data)
        made: bool = self._run(self._objects.put_new(key, data, size, md5, "application/json", {}, new=new))
        return made

    def put_file(self, name: str, path: Path) -> None:
        md5, size = hashlib.md5(usedforsecurity=False), 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                md5.update(chunk)
                size += len(chunk)
            digest = base64.b64encode(md5.digest()).decode()
            put = self._objects.put_new(f"{self._prefix}{name}", file.fileno(), size, digest, "application/gzip", {})
            # The name is ours alone: if it is taken, our earlier write arrived and its answer was lost.
            if not self._run(put) and self._run(self._objects.look(f"{self._prefix}{name}")) is None:
                raise StoreError(f"{os.fspath(path.name)} could not be written to the store", hint="it is retried")

    def remove(self, name: str) -> None:
        self._run(self._objects.remove(f"{self._prefix}{name}"))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(self._unless_stopped(work))

    async def _unless_stopped(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.ensure_future(work)
        while not (await asyncio.wait([task], timeout=_LOOK_EVERY))[0]:
            # A frozen store may be waited for longer than the service manager waits for the service's end.
            if self._stopped():
                task.cancel()
                await asyncio.wait([task])
                raise StoreError("the service ended before the store had answered", hint="it is retried automatically")
        return task.result()
