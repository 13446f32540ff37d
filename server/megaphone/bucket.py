"""The bucket as the source: S3, through aiobotocore.

Touches one bucket, and only reads (s3:ListBucket, s3:GetObject). The promise: `Bucket.fetch` gives the bytes of exactly
one version of an object, the listed one, or an exception; every wait ends; no answer sends us to another host; a
foreign exception never leaves this file. Each operation, and each new try of one, has a session of its own, so
credentials that were renewed on disk or by the chain are taken up by themselves.
"""

from __future__ import annotations

import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from ..s3.client import BucketClient, has_status
from ..s3.errors import Answer, BucketPlace, FailedAttempt, Remedy
from ..s3.retry import RateWatch, RetryCounter, RetryPolicy
from .download import WRITE_SIZE, DownloadFile
from .exports import METRICS, DayExport, Listing

if TYPE_CHECKING:
    from datetime import date, datetime

    from .exports import ExportKind

PAGE_SIZE = 1000
# RFC 9110 wants quotes around the ETag; some versions of Ceph's gateway want none.
_IF_MATCH = ('"{}"', "{}")


class Bucket:
    """The exports of one kind directly under one prefix of one bucket."""

    def __init__(
        self,
        place: BucketPlace,
        kind: ExportKind = METRICS,
        *,
        retry: RetryPolicy | None = None,
        page_size: int = PAGE_SIZE,
    ) -> None:
        self._place = place
        self._kind = kind
        self._retry = retry or RetryPolicy()
        self._client = BucketClient(place, self._retry)
        self._page_size = page_size
        self._if_match = list(_IF_MATCH)
        self.name = str(place)

    @classmethod
    async def open(cls, place: BucketPlace, kind: ExportKind = METRICS, *, retry: RetryPolicy | None = None) -> Bucket:
        """Return the bucket at ``place``; nothing is asked of it yet."""
        await BucketClient.prepare()
        return cls(place, kind, retry=retry)

    async def day_exports(self) -> Listing:
        """The exports that are there now; `Listing.now` is the server's clock when the listing began."""
        counter = RetryCounter(self._retry)
        while True:
            try:
                async with self._client.connect() as client:
                    return await self._list(client)
            except FailedAttempt as attempt:
                if attempt.remedy is Remedy.WAIT and attempt.sdk_tried:
                    raise attempt.error from attempt
                await self._client.wait_for_next_try(attempt, counter, 0)

    async def fetch(self, export: DayExport, into: BinaryIO) -> None:
        """Write the listed version to ``into``, from where it stands; what was cut off is resumed.

        Raises ExportChanged when the object is another one by now, SourceUnreachable or SourceRefused when it cannot
        be had, and the OSError of ``into`` when its disk is full.
        """
        download = await DownloadFile.at(into)
        counter = RetryCounter(self._retry)
        while True:
            try:
                async with self._client.connect() as client:
                    await self._read(client, export, download)
            except FailedAttempt as attempt:
                await self._client.wait_for_next_try(attempt, counter, download.most)
            else:
                break
        await download.finish()

    async def close(self) -> None:
        """Nothing is held between two calls."""

    async def _list(self, client: Any) -> Listing:
        exports: dict[date, DayExport] = {}
        now: datetime | None = None
        page: dict[str, Any] = {}
        tokens: set[str] = set()
        while now is None or page["IsTruncated"]:
            more = {"ContinuationToken": self._next_page(page, tokens)} if now else {}
            async with self._client.answering():
                page = await client.list_objects_v2(
                    Bucket=self._place.bucket,
                    Prefix=self._place.prefix,
                    Delimiter="/",
                    MaxKeys=self._page_size,
                    **more,
                )
            if "IsTruncated" not in page:
                raise self._place.no_s3("no listing in the answer")
            now = now or self._server_clock(page)
            for entry in page.get("Contents", ()):
                day = self._kind.day_of(entry.get("Key", "").removeprefix(self._place.prefix))
                if day is not None:
                    exports[day] = self._day_export(day, entry)
        return Listing(exports, now)

    def _next_page(self, page: dict[str, Any], tokens: set[str]) -> str:
        token = page.get("NextContinuationToken")
        if not token or token in tokens:
            raise self._place.no_s3("the listing does not come to its end")
        tokens.add(token)
        return str(token)

    def _server_clock(self, page: dict[str, Any]) -> datetime:
        try:
            return parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"]).astimezone(UTC)
        except (KeyError, ValueError):
            raise self._place.no_s3("no Date header, by which a day's age is told") from None

    def _day_export(self, day: date, entry: dict[str, Any]) -> DayExport:
        try:
            modified = entry["LastModified"].astimezone(UTC)
            return DayExport(day, entry["Key"], _bare(entry["ETag"]), entry["Size"], modified)
        except KeyError as missing:
            raise self._place.no_s3(f"an object without {missing.args[0]} in the listing") from None

    async def _read(self, client: Any, export: DayExport, download: DownloadFile) -> None:
        """One try: read the object from where the spool ends, or from its beginning."""
        try:
            reply = await self._get(client, export, download.size)
        except FailedAttempt as attempt:
            if has_status(attempt, 416):
                await download.restart()
            raise
        async with reply["Body"] as body:
            if _bare(reply.get("ETag", export.etag)) != export.etag:  # a server that does not know If-Match
                raise self._place.meaning(Answer(412, "PreconditionFailed"), export.key)
            why = _mistrust(reply, export, download.size)
            if why is not None:
                await download.restart()
                raise self._place.altered(export.key, why)
            if download.size and "ContentRange" not in reply:  # the range was ignored: this is the whole object
                await download.restart()
            rate = RateWatch(self._retry)
            while True:
                began = time.monotonic()
                async with self._client.answering(export.key, self._retry.window):
                    chunk = await body.read(WRITE_SIZE)
                if not chunk:
                    break
                await download.write(chunk)
                if download.size > export.size:
                    await download.restart()
                    raise self._place.altered(export.key, "more bytes than announced")
                if download.size < export.size and rate.too_slow(time.monotonic() - began, len(chunk)):
                    raise self._place.unreachable("sends too slowly")
        if download.size < export.size:
            raise self._place.unreachable("ended the object too early")

    async def _get(self, client: Any, export: DayExport, offset: int) -> Any:
        """GetObject with If-Match, from ``offset``; of the two spellings of an ETag the one that works is kept."""
        more = {"Range": f"bytes={offset}-"} if offset else {}
        for spelling in tuple(self._if_match):
            try:
                async with self._client.answering(export.key):
                    reply = await client.get_object(
                        Bucket=self._place.bucket, Key=export.key, IfMatch=spelling.format(export.etag), **more
                    )
            except FailedAttempt as attempt:
                if not has_status(attempt, 412):
                    raise
                continue
            self._if_match.sort(key=spelling.__ne__)
            return reply
        raise self._place.meaning(Answer(412, "PreconditionFailed"), export.key)


def _mistrust(reply: dict[str, Any], export: DayExport, offset: int) -> str | None:
    """Why a reply is not what was asked for, or None. ``offset`` is what the range began with."""
    status = reply["ResponseMetadata"]["HTTPStatusCode"]
    length, etag, content_range = reply.get("ContentLength"), reply.get("ETag"), reply.get("ContentRange")
    if length is None:
        return "no Content-Length"
    if etag is None:
        return "no ETag"
    if (status == 206) != (content_range is not None) or (status == 206 and not offset):
        return "a range that was not asked for"
    if status == 206:
        if content_range != f"bytes {offset}-{export.size - 1}/{export.size}":
            return "another Content-Range than was asked for"
        return None if length == export.size - offset else "a Content-Length that is not the range's"
    if status != 200:
        return f"status {int(status)}"
    return None if length == export.size else "another Content-Length than was listed"


def _bare(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')
