"""The bucket of published logs: nothing else lies under its prefix, and each log has its own name and the same bytes.

Touches one bucket through `s3.objects`. Promises: an object appears whole or not at all, and none is ever replaced;
an object with a log's name is compared with what was published, never trusted for its name.
"""

from __future__ import annotations

import base64
import hashlib
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import StoreError
from ..s3.objects import MOST_BYTES, ObjectStore
from ..threads import in_thread
from ..triton import LogName

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import BinaryIO

    from ..s3.errors import BucketPlace
    from ..s3.objects import Objects, StoredObject
    from ..s3.retry import RetryPolicy
    from .records import LedgerLog

CONTENT_TYPE = "application/gzip"  # and no Content-Encoding, which makes clients unpack a log in transit
_CHUNK = 1 << 20


class NotTheLog(Exception):
    """What lies in a log's place, in the store or in the folder, is something else: an operator must look."""


@dataclass(frozen=True, slots=True)
class StoredLogs:
    """What lies under the prefix: the objects with a log's name, and the number of others."""

    logs: dict[LogName, StoredObject]
    strangers: int


class LogStore:
    """The logs in the bucket at ``place``; no request is sent before `connected`."""

    def __init__(self, place: BucketPlace, policy: RetryPolicy | None = None) -> None:
        self._store = ObjectStore(place, policy)
        self.name = str(place)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[ConnectedLogStore]:
        """Connect to the store with one client.

        Raises:
            StoreError: there are no usable credentials.
        """
        async with self._store.connected() as objects:
            yield ConnectedLogStore(objects, self._store.place.prefix)


class ConnectedLogStore:
    """The logs in the bucket. Every method raises `StoreError` if there is no usable answer."""

    def __init__(self, objects: Objects, prefix: str) -> None:
        self._objects = objects
        self._prefix = prefix

    async def logs(self) -> StoredLogs:
        """Return what lies under the prefix."""
        found, strangers = {}, 0
        for stored in await self._objects.list(self._prefix):
            name = LogName.parse(stored.key.removeprefix(self._prefix))
            if name is None:
                strangers += 1
            else:
                found[name] = stored
        return StoredLogs(found, strangers)

    async def compare(self, log: LedgerLog) -> bool:
        """Return True if a log is in the store, False if there is nothing under its name.

        Raises:
            NotTheLog: what lies there is not the log.
        """
        stored = await self._objects.look(self._key(log))
        if stored is None:
            return False
        # The digest is the one that we wrote: whoever may write there can forge it, but not by accident.
        if stored.size != log.size or stored.metadata.get("sha256") != log.sha256:
            raise NotTheLog(f"{log.name} in the store is not the file that was published")
        return True

    async def put(self, log: LedgerLog, file: BinaryIO) -> None:
        """Put a log under its name, from the published ``file``; do nothing if it is there already.

        Raises:
            NotTheLog: the file is not the log, or something else lies under its name; that was not touched.
            StoreError: also if another write came in between; the log may be there all the same.
        """
        if log.size > MOST_BYTES:
            raise NotTheLog(
                f"{log.name} is larger than the 5 GiB that S3 takes in one piece; set log.max_rows_per_file"
            )
        sha256, md5 = await in_thread(_digests, file)
        if sha256 != log.sha256:
            raise NotTheLog(f"{log.name} in the folder is not the file that was published")
        metadata = {"sha256": log.sha256, "mtime": str(log.mtime)}
        key, descriptor = self._key(log), file.fileno()
        if await self._objects.put_new(key, descriptor, log.size, md5, CONTENT_TYPE, metadata):
            return
        # It may be our own write: the SDK retries a request whose answer was lost.
        if not await self.compare(log):
            raise StoreError(f"another write to {log.name} in the store came in between", hint="it is retried")

    async def remove(self, name: LogName) -> None:
        """Remove a log, as retention removes the file."""
        await self._objects.remove(f"{self._prefix}{name}")

    def _key(self, log: LedgerLog) -> str:
        return f"{self._prefix}{log.name}"


def _digests(file: BinaryIO) -> tuple[str, str]:
    """Return the SHA-256 of a file in hex, and its MD5 in base64, which S3 checks the upload against."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    offset = 0
    while chunk := os.pread(file.fileno(), _CHUNK, offset):
        offset += len(chunk)
        sha256.update(chunk)
        md5.update(chunk)
    return sha256.hexdigest(), base64.b64encode(md5.digest()).decode()
