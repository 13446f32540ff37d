"""A bucket as the source of exports, through `BucketClient`.

Touches one bucket, and only reads (s3:ListBucket, s3:GetObject). The promise: `Bucket.fetch` returns the bytes of
exactly one version of an object, the listed one, or raises; every wait ends; no answer sends us to another host; no
foreign exception leaves this file. Each operation, and each retry, has its own session, so credentials that were
renewed on disk or by the chain are picked up automatically.
"""

from __future__ import annotations

import time
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import SourceError
from ..s3.client import BucketClient, has_status
from ..s3.errors import Answer, BucketPlace, FailedAttempt, Remedy
from ..s3.retry import RateWatch, RetryCounter, RetryPolicy
from .download import WRITE_SIZE, DownloadFile
from .exports import METRICS, DayExport, Listing, Others, calendar_instant

if TYPE_CHECKING:
    from datetime import date, datetime

    from .exports import ExportKind

PAGE_SIZE = 1000
# RFC 9110 requires quotes around the ETag; some versions of Ceph's gateway reject them.
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
        """Return the bucket at ``place``, without sending it a request yet."""
        await BucketClient.prepare()
        return cls(place, kind, retry=retry)

    async def day_exports(self) -> Listing:
        """Return the exports that are there now; `Listing.now` is the server's clock when the listing began."""
        counter = RetryCounter(self._retry)
        while True:
            try:
                async with self._client.connect() as client:
                    return await self._list(client)
            except FailedAttempt as attempt:
                # The SDK has retried it several times already; the next round lists again.
                if attempt.remedy is Remedy.WAIT and attempt.sdk_tried:
                    raise attempt.error from attempt
                await self._client.wait_for_next_try(attempt, counter, 0)

    async def fetch(self, export: DayExport, into: BinaryIO) -> None:
        """Write the listed version to ``into`` from its current position, resuming where a read was cut off.

        Raises:
            ExportChanged: the object has been replaced or removed.
            SourceUnreachable: it cannot be read now.
            SourceRefused: an operator must act before it can be read.
            OSError: ``into`` cannot be written; its disk is full, for example.
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
        """Do nothing: no connection is kept between two calls."""

    async def _list(self, client: Any) -> Listing:
        exports: dict[date, DayExport] = {}
        markers: dict[date, datetime] = {}
        others = Others(self._kind.file_name)
        now: datetime | None = None
        async for page in self._client.pages(client, Prefix=self._place.prefix, Delimiter="/", MaxKeys=self._page_size):
            # The first page's clock: a day must not look older only because the listing took long.
            now = now or self._server_clock(page)
            for entry in page.get("Contents", ()):
                name = entry.get("Key", "").removeprefix(self._place.prefix)
                day = self._kind.day_of(name)
                if day is not None:
                    exports[day] = self._day_export(day, entry)
                    continue
                others = others.and_one(name)
                marked = self._kind.marked_day(name)
                if marked is not None:
                    at = self._day_export(marked, entry).last_modified
                    markers[marked] = max(at, markers.get(marked, at))
        assert now is not None  # noqa: S101  # a listing has a page
        if not exports:
            others = others._replace(elsewhere=await self._elsewhere(client))
        return Listing(exports, now, others=others, markers=markers)

    async def _elsewhere(self, client: Any) -> str:
        """Return where else in the bucket exports are; '' if the first page below the prefix, or of all, shows none."""
        for prefix in dict.fromkeys((self._place.prefix, "")):
            try:
                async with self._client.answering():
                    page = await client.list_objects_v2(
                        Bucket=self._place.bucket, Prefix=prefix, MaxKeys=self._page_size
                    )
            except (FailedAttempt, SourceError):  # the rights may end at the prefix, which was just listed
                continue
            for entry in page.get("Contents", ()):
                folder, _, name = entry.get("Key", "").rpartition("/")
                if self._kind.day_of(name) is not None and folder.isprintable():
                    return str(replace(self._place, prefix=f"{folder}/" if folder else ""))
        return ""

    def _server_clock(self, page: dict[str, Any]) -> datetime:
        try:
            return calendar_instant(parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"]))
        except (KeyError, ValueError, OverflowError):
            raise self._place.no_s3("no Date header, from which a day's age is computed") from None

    def _day_export(self, day: date, entry: dict[str, Any]) -> DayExport:
        try:
            modified = calendar_instant(entry["LastModified"])
            return DayExport(day, entry["Key"], _bare(entry["ETag"]), entry["Size"], modified)
        except KeyError as missing:
            raise self._place.no_s3(f"an object without {missing.args[0]} in the listing") from None
        except ValueError:
            raise self._place.no_s3("a LastModified in the listing that cannot be right") from None

    async def _read(self, client: Any, export: DayExport, download: DownloadFile) -> None:
        """Try once to read the object, from where the download stopped or from its start."""
        try:
            reply = await self._get(client, export, download.size)
        except FailedAttempt as attempt:
            # The server says that the object ends before our offset, so what we have may be wrong: start again.
            if has_status(attempt, 416):
                await download.restart()
            raise
        async with reply["Body"] as body:
            # Checked again: a server that ignores If-Match answers with whatever version it has now.
            if _bare(reply.get("ETag", export.etag)) != export.etag:
                raise self._place.meaning(Answer(412, "PreconditionFailed"), export.key)
            why = _untrusted_reason(reply, export, download.size)
            if why is not None:
                await download.restart()
                raise self._place.altered(export.key, why)
            # The server ignored the range and sends the whole object, so drop what we have before writing it.
            if download.size and "ContentRange" not in reply:
                await download.restart()
            rate = RateWatch(self._retry)
            while True:
                # Only the wait for the server is timed: a slow disk of ours must not count as a slow source.
                began = time.monotonic()
                async with self._client.answering(export.key, self._retry.window):
                    chunk = await body.read(WRITE_SIZE)
                if not chunk:
                    break
                waited = time.monotonic() - began
                await download.write(chunk)
                if download.size > export.size:
                    await download.restart()
                    raise self._place.altered(export.key, "more bytes than announced")
                if download.size < export.size and rate.too_slow(waited, len(chunk)):
                    raise self._place.unreachable("sends too slowly")
        if download.size < export.size:
            raise self._place.unreachable("ended the object early")

    async def _get(self, client: Any, export: DayExport, offset: int) -> Any:
        """Request the object from ``offset`` with If-Match, and remember which spelling of the ETag works."""
        more = {"Range": f"bytes={offset}-"} if offset else {}
        for spelling in tuple(self._if_match):
            try:
                async with self._client.answering(export.key):
                    reply = await client.get_object(
                        Bucket=self._place.bucket, Key=export.key, IfMatch=spelling.format(export.etag), **more
                    )
            except FailedAttempt as attempt:
                # 412 means a changed object, or a spelling that this server rejects; if both fail, it is changed.
                if not has_status(attempt, 412):
                    raise
                continue
            self._if_match.sort(key=spelling.__ne__)
            return reply
        raise self._place.meaning(Answer(412, "PreconditionFailed"), export.key)


def _untrusted_reason(reply: dict[str, Any], export: DayExport, offset: int) -> str | None:
    """Return why a reply is not what was requested, or None; ``offset`` is where the requested range began."""
    status = reply["ResponseMetadata"]["HTTPStatusCode"]
    length, etag, content_range = reply.get("ContentLength"), reply.get("ETag"), reply.get("ContentRange")
    if length is None:
        return "no Content-Length"
    if etag is None:
        return "no ETag"
    if (status == 206) != (content_range is not None) or (status == 206 and not offset):
        return "a range that was not requested"
    if status == 206:
        if content_range != f"bytes {offset}-{export.size - 1}/{export.size}":
            return "a Content-Range other than the one requested"
        return None if length == export.size - offset else "a Content-Length that does not match the range"
    if status != 200:
        return f"status {int(status)}"
    return None if length == export.size else "a Content-Length other than the size listed"


def _bare(etag: str) -> str:
    return etag.strip().removeprefix("W/").strip('"')
