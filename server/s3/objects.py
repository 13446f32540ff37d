"""Objects of one bucket that are written once: by name, on the condition that none has that name.

Touches one bucket through `BucketClient`. Promises: nothing is replaced unless asked for; every wait ends; the outcome
of a write whose answer was lost, or is not clear, is never guessed: the caller can look.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..errors import ExportChanged, StoreError
from ..threads import in_thread
from .client import BucketClient, status_of
from .errors import FailedAttempt
from .retry import RateWatch, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime

    from .errors import BucketPlace

_CHUNK = 1 << 20
MOST_BYTES = 5 << 30  # of an object written in one request: S3's rule


class StoredObject(NamedTuple):
    """An object as a listing or `Objects.look` shows it; a listing has no ``metadata``."""

    key: str
    size: int
    etag: str
    modified: datetime | None = None
    metadata: Mapping[str, str] = {}


class ObjectStore:
    """The objects of the bucket at ``place``; keys are full ones, with the prefix."""

    def __init__(self, place: BucketPlace, policy: RetryPolicy | None = None) -> None:
        self.place = place
        self._policy = policy or RetryPolicy()
        self._client = BucketClient(place, self._policy)
        self._client.write_unsigned()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Objects]:
        """Connect with one client, and the credentials that the chain has now.

        Raises:
            StoreError: there are no usable credentials.
        """
        await self._client.prepare()
        opening = self._client.connect()
        # Entered by hand: only what opening raises is translated here.
        try:
            sdk = await opening.__aenter__()
        except FailedAttempt as attempt:
            raise _store_error(attempt) from attempt
        try:
            yield Objects(self.place, self._policy, self._client, sdk)
        finally:
            await opening.__aexit__(None, None, None)


class Objects:
    """A connection to the objects. Every method raises `StoreError` if there is no usable answer."""

    def __init__(self, place: BucketPlace, policy: RetryPolicy, client: BucketClient, sdk: Any) -> None:
        self._place = place
        self._policy = policy
        self._client = client
        self._sdk = sdk
        self.clock: datetime | None = None  # the store's own, by the Date of its last answer

    def _heard(self, reply: Any) -> None:
        if not isinstance(reply, dict):
            return
        date = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
        with contextlib.suppress(ValueError, OverflowError):
            found = parsedate_to_datetime(date)
            self.clock = found if found.tzinfo is not None else found.replace(tzinfo=UTC)  # "-0000" has none

    async def list(self, prefix: str, after: str = "") -> list[StoredObject]:
        """Return the objects directly under a prefix, in the order of their keys.

        With ``after``, only those whose keys without the prefix come after it: older ones cost no request.
        """
        found = []
        query = {"Prefix": prefix, "Delimiter": "/"} | ({"StartAfter": f"{prefix}{after}"} if after else {})
        try:
            async for page in self._client.pages(self._sdk, **query):
                self._heard(page)
                found += [
                    StoredObject(entry["Key"], entry["Size"], entry["ETag"], entry.get("LastModified"))
                    for entry in page.get("Contents", ())
                    if entry["Key"] > f"{prefix}{after}" or not after
                ]
        except FailedAttempt as attempt:
            raise _store_error(attempt) from attempt
        except KeyError as missing:
            raise _store_error(self._place.no_s3(f"an object without {missing.args[0]} in the listing")) from None
        return found

    async def look(self, key: str) -> StoredObject | None:
        """Return the object with a key, or None if there is none."""
        try:
            async with self._asking(key):
                reply = await self._sdk.head_object(Bucket=self._place.bucket, Key=key)
        except StoreError as error:
            if error.status == 404:
                return None
            raise
        return StoredObject(
            key,
            reply.get("ContentLength", -1),
            reply.get("ETag", ""),
            reply.get("LastModified"),
            reply.get("Metadata", {}),
        )

    async def read(self, key: str, most: int) -> bytes | None:
        """Return an object's bytes, or None if there is none; more than ``most`` of them are an error."""
        try:
            async with self._asking(key):
                reply = await self._sdk.get_object(Bucket=self._place.bucket, Key=key)
        except StoreError as error:
            if error.status == 404:
                return None
            raise
        self._heard(reply)
        async with reply["Body"] as body:
            length = reply.get("ContentLength")
            if length is None or length > most:
                raise _store_error(self._place.altered(key, "no Content-Length, or more bytes than it can have"))
            return b"".join([chunk async for chunk in self._chunks(key, body, length)])

    async def fetch(self, key: str, size: int, into: BinaryIO) -> None:
        """Download an object of ``size`` bytes into ``into``; after an error its content is meaningless."""
        try:
            async with self._asking(key):
                reply = await self._sdk.get_object(Bucket=self._place.bucket, Key=key)
        except StoreError as error:
            if error.status != 404:
                raise
            hint = "restore it from the bucket's versions; pickup-point manual two-nodes"
            raise StoreError(f"{key} is not in {self._place}", hint=hint, status=404) from error
        self._heard(reply)
        async with reply["Body"] as body:
            if reply.get("ContentLength") != size:
                raise _store_error(self._place.altered(key, "a Content-Length other than its size"))
            async for chunk in self._chunks(key, body, size):
                await in_thread(into.write, chunk)

    async def _chunks(self, key: str, body: Any, size: int) -> AsyncIterator[bytes]:
        """Yield a body of ``size`` bytes; it may take long, but not come too slowly."""
        rate, count = RateWatch(self._policy), 0
        while count < size:
            began = time.monotonic()
            async with self._asking(key):
                chunk = await body.read(_CHUNK)
            waited = time.monotonic() - began
            count += len(chunk)
            if not chunk or rate.too_slow(waited, len(chunk)):
                raise _store_error(self._place.unreachable("ended the object early, or sends too slowly"))
            yield chunk

    async def put_new(
        self,
        key: str,
        body: bytes | int,
        size: int,
        md5: str,
        content_type: str,
        metadata: Mapping[str, str],
        *,
        new: bool = True,
    ) -> bool:
        """Write an object if there is none; return False if it was not written: then look what is there.

        Without ``new`` it replaces what is there. ``body`` is the bytes, or the descriptor of a file; ``md5`` is their
        digest in base64. Even after an exception the object may be there.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with self._asking(key) as limit:

                def put_off(sent: int) -> None:
                    # Each piece sent extends the time for the next, but no further than the lowest permitted rate.
                    most = began + self._policy.call + sent / self._policy.least_rate
                    when = min(loop.time() + self._policy.call, most)
                    loop.call_soon_threadsafe(_reschedule, limit, when)

                reply = await self._sdk.put_object(
                    Bucket=self._place.bucket,
                    Key=key,
                    Body=_Taken(body, put_off) if isinstance(body, int) else body,
                    ContentLength=size,
                    ContentMD5=md5,
                    ContentType=content_type,
                    Metadata=dict(metadata),
                    **({"IfNoneMatch": "*"} if new else {}),
                )
        except StoreError as error:
            # 409 ConditionalRequestConflict: two writes overlapped, and this one was not done.
            if error.status in (409, 412):
                return False
            raise
        self._heard(reply)
        return True

    async def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        async with self._asking(key):
            await self._sdk.delete_object(Bucket=self._place.bucket, Key=key)

    @asynccontextmanager
    async def _asking(self, key: str) -> AsyncIterator[asyncio.Timeout]:
        try:
            async with self._client.answering(key) as limit:
                yield limit
        except FailedAttempt as attempt:
            self._heard(getattr(attempt.__cause__, "response", None))
            raise _store_error(attempt) from attempt


class _Taken(io.FileIO):
    """A file by its descriptor, which it does not close; it reports how much was read so far."""

    def __init__(self, descriptor: int, on_read: Callable[[int], None]) -> None:
        super().__init__(descriptor, "rb", closefd=False)
        self.seek(0)  # a descriptor has one position, whoever read from it before
        self._on_read = on_read

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._on_read(self.tell())
        return data


def _reschedule(limit: asyncio.Timeout, when: float) -> None:
    with contextlib.suppress(RuntimeError):  # the wait is over
        limit.reschedule(when)


def _store_error(attempt: FailedAttempt) -> StoreError:
    """Return a failed attempt as an error about the store; 404 means that an object is not there, not its bucket."""
    status = status_of(attempt)
    if status == 404 and not isinstance(attempt.error, ExportChanged):
        status = 0
    return StoreError(str(attempt.error), hint=attempt.error.hint, status=status)
