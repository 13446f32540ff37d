"""The bucket as the source: S3, through aiobotocore.

Touches one bucket, and only reads (s3:ListBucket, s3:GetObject). The promise: `Bucket.fetch` gives the bytes of exactly
one version of an object, the listed one, or an exception; every wait ends; no answer sends us to another host; a
foreign exception never leaves this file. Each operation, and each new try of one, has a session of its own, so
credentials that were renewed on disk or by the chain are taken up by themselves.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import asynccontextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import aiohttp
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]  # ships no types
from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]  # ships no types
from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # ships no types
from botocore import exceptions as sdk  # type: ignore[import-untyped]  # ships no types
from botocore.loaders import Loader  # type: ignore[import-untyped]  # ships no types
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # ships no types

from ..s3.errors import Answer, Place, Remedy, Setback, safe_word
from ..s3.retry import Pace, Patience, Tries
from .download import WRITE_SIZE, Spool
from .exports import METRICS, DayExport, Listing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import date, datetime

    from ..config import ExportSettings
    from .exports import ExportKind

PAGE_SIZE = 1000
# RFC 9110 wants quotes around the ETag; some versions of Ceph's gateway want none.
_IF_MATCH = ('"{}"', "{}")
_FOREIGN = (aiohttp.ClientError, sdk.BotoCoreError, sdk.ClientError, ResponseParserError, OSError, ValueError)
_CREDENTIALS = (
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.CredentialRetrievalError,
    sdk.TokenRetrievalError,
    sdk.NoAuthTokenError,
    sdk.MetadataRetrievalError,
    sdk.RefreshWithMFAUnsupportedError,
    sdk.SSOError,
    sdk.ProfileNotFound,
    sdk.ConfigParseError,
    sdk.ConfigNotFound,
    sdk.InvalidConfigError,
    sdk.UnknownCredentialError,
)


class _OneHost(AIOHTTPSession):  # type: ignore[misc]  # an untyped class
    """The SDK's HTTP session, but no redirect is followed (aiohttp would, to anywhere)."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        return _Straight(await super()._get_session(proxy_url))


if not hasattr(AIOHTTPSession, "_get_session"):
    raise ImportError(
        "this aiobotocore is unknown to server/megaphone/bucket.py, which could not keep it from redirects"
    )


class _Straight:
    """The one call that the SDK makes of an aiohttp session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._session.request(method, **options | {"allow_redirects": False})


class Bucket:
    """The exports of one kind directly under one prefix of one bucket."""

    def __init__(
        self, place: Place, kind: ExportKind = METRICS, *, patience: Patience | None = None, page_size: int = PAGE_SIZE
    ) -> None:
        self._place = place
        self._kind = kind
        self._patience = patience or Patience()
        self._page_size = page_size
        self._if_match = list(_IF_MATCH)
        self.name = str(place)

    @classmethod
    async def open(
        cls, settings: ExportSettings, kind: ExportKind = METRICS, *, patience: Patience | None = None
    ) -> Bucket:
        """The bucket that the configuration names; nothing is asked of it yet."""
        if settings.bucket is None:
            raise ValueError(f"{settings.url} is no bucket")
        place = Place(settings.bucket, settings.prefix, settings.region, settings.endpoint_url)
        await asyncio.to_thread(_models)  # before the event loop has to wait for it
        return cls(place, kind, patience=patience)

    async def day_exports(self) -> Listing:
        """The exports that are there now; `Listing.now` is the server's clock when the listing began."""
        tries = Tries(self._patience)
        while True:
            try:
                async with self._client() as client:
                    return await self._list(client)
            except Setback as setback:
                if setback.remedy is Remedy.WAIT and setback.sdk_tried:
                    raise setback.error from setback
                await self._before_next_try(setback, tries, 0)

    async def fetch(self, export: DayExport, into: BinaryIO) -> None:
        """Write the listed version to ``into``, from where it stands; what was cut off is resumed.

        Raises ExportChanged when the object is another one by now, SourceUnreachable or SourceRefused when it cannot
        be had, and the OSError of ``into`` when its disk is full.
        """
        spool = await Spool.at(into)
        tries = Tries(self._patience)
        while True:
            try:
                async with self._client() as client:
                    await self._read(client, export, spool)
            except Setback as setback:
                await self._before_next_try(setback, tries, spool.most)
            else:
                break
        await spool.finish()

    async def close(self) -> None:
        """Nothing is held between two calls."""

    async def _list(self, client: Any) -> Listing:
        exports: dict[date, DayExport] = {}
        now: datetime | None = None
        page: dict[str, Any] = {}
        tokens: set[str] = set()
        while now is None or page["IsTruncated"]:
            more = {"ContinuationToken": self._next_page(page, tokens)} if now else {}
            async with self._answering():
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

    async def _read(self, client: Any, export: DayExport, spool: Spool) -> None:
        """One try: read the object from where the spool ends, or from its beginning."""
        try:
            reply = await self._get(client, export, spool.size)
        except Setback as setback:
            if _is_status(setback, 416):
                await spool.restart()
            raise
        async with reply["Body"] as body:
            if _bare(reply.get("ETag", export.etag)) != export.etag:  # a server that does not know If-Match
                raise self._place.meaning(Answer(412, "PreconditionFailed"), export.key)
            why = _mistrust(reply, export, spool.size)
            if why is not None:
                await spool.restart()
                raise self._place.altered(export.key, why)
            if spool.size and "ContentRange" not in reply:  # the range was ignored: this is the whole object
                await spool.restart()
            pace = Pace(self._patience)
            while True:
                began = time.monotonic()
                async with self._answering(export.key, self._patience.window):
                    chunk = await body.read(WRITE_SIZE)
                if not chunk:
                    break
                await spool.write(chunk)
                if spool.size > export.size:
                    await spool.restart()
                    raise self._place.altered(export.key, "more bytes than announced")
                if spool.size < export.size and pace.too_slow(time.monotonic() - began, len(chunk)):
                    raise self._place.unreachable("sends too slowly")
        if spool.size < export.size:
            raise self._place.unreachable("ended the object too early")

    async def _get(self, client: Any, export: DayExport, offset: int) -> Any:
        """GetObject with If-Match, from ``offset``; of the two spellings of an ETag the one that works is kept."""
        more = {"Range": f"bytes={offset}-"} if offset else {}
        for spelling in tuple(self._if_match):
            try:
                async with self._answering(export.key):
                    reply = await client.get_object(
                        Bucket=self._place.bucket, Key=export.key, IfMatch=spelling.format(export.etag), **more
                    )
            except Setback as setback:
                if not _is_status(setback, 412):
                    raise
                continue
            self._if_match.sort(key=spelling.__ne__)
            return reply
        raise self._place.meaning(Answer(412, "PreconditionFailed"), export.key)

    async def _before_next_try(self, setback: Setback, tries: Tries, most: int) -> None:
        """Wait until it is worth another try; raises the error when it is not."""
        pause = None
        if setback.remedy is Remedy.WAIT:
            pause = tries.failed(most)
        elif setback.remedy is Remedy.NEW_CREDENTIALS:
            pause = tries.refused(most)
        if pause is None:
            raise setback.error from setback
        await asyncio.sleep(pause)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        """A client with the credentials that the chain gives now; all its connections end with it."""
        session = AioSession()
        session.register_component("data_loader", _models())
        opening = session.create_client(
            "s3",
            region_name=self._place.region,
            endpoint_url=self._place.endpoint_url,
            config=AioConfig(
                s3={"addressing_style": "path"} if self._place.endpoint_url else {},
                signature_version="s3v4",
                connect_timeout=self._patience.connect,
                read_timeout=self._patience.silence,
                retries={"mode": "standard", "total_max_attempts": self._patience.sdk_tries},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                http_session_cls=_OneHost,
            ),
        )
        async with self._answering():
            client = await opening.__aenter__()
        try:
            client.meta.events.register("before-call.s3", _stay_in_region)
            yield client
        finally:
            await opening.__aexit__(None, None, None)

    @asynccontextmanager
    async def _answering(self, key: str | None = None, seconds: float | None = None) -> AsyncIterator[None]:
        """Around everything that waits for the server, and nothing else: foreign exceptions become Setbacks."""
        try:
            async with asyncio.timeout(seconds or self._patience.call):
                yield
        except _FOREIGN as error:
            raise self._setback(error, key) from error
        except RuntimeError as error:
            if "redentials" not in str(error):  # botocore: "Credentials were refreshed, but … are still expired."
                raise
            raise self._place.no_credentials("they expired and new ones did not come") from error

    def _setback(self, error: Exception, key: str | None) -> Setback:
        if isinstance(error, sdk.ClientError):
            if error.operation_name not in ("ListObjectsV2", "GetObject"):  # the chain's own: AssumeRole…
                code = safe_word(error.response.get("Error", {}).get("Code"))
                return self._place.no_credentials(f"{error.operation_name} was refused: {code}")
            return self._place.meaning(_answer(error), key)
        if isinstance(error, _CREDENTIALS):
            return self._place.no_credentials(type(error).__name__.removesuffix("Error"))
        if isinstance(error, FileNotFoundError | PermissionError):  # a web-identity token, a credential process
            return self._place.no_credentials(f"{error.filename}: {error.strerror}")
        if isinstance(error, sdk.SSLError | aiohttp.ClientSSLError):
            return self._place.not_trusted()
        if isinstance(error, sdk.ProxyConnectionError):
            return self._place.unreachable("lies behind a proxy that does not answer")
        if isinstance(error, TimeoutError | sdk.ConnectTimeoutError | sdk.ReadTimeoutError):
            return self._place.unreachable("does not answer in time")
        if isinstance(error, sdk.EndpointConnectionError):
            return self._place.unreachable("cannot be connected to")
        if type(error) is sdk.HTTPClientError:  # whatever else aiohttp raises: a URL that it cannot use
            return self._place.unreachable(f"cannot be spoken to ({type(error.__cause__ or error).__name__})")
        if isinstance(error, aiohttp.ClientError | sdk.HTTPClientError | sdk.IncompleteReadError | OSError):
            return self._place.unreachable("broke the connection off")
        if isinstance(error, ResponseParserError):
            return self._place.no_s3("no XML in the answer")
        return self._place.no_s3(type(error).__name__)


@cache
def _models() -> Any:
    """The SDK's descriptions of S3, parsed once: 0.3 s of work that each session would do again."""
    loader = Loader()
    for name in ("_retry", "endpoints", "partitions", "sdk-default-configuration"):
        loader.load_data_with_path(name)
    for kind in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", kind)
    return loader


def _stay_in_region(context: dict[str, Any], **_: Any) -> None:
    """The SDK would follow a bucket into another region, on the word of an answer: let it think that it has."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _answer(error: Any) -> Answer:
    metadata = error.response.get("ResponseMetadata", {})
    headers = metadata.get("HTTPHeaders", {})
    said = error.response.get("Error", {})
    region = headers.get("x-amz-bucket-region") or said.get("Region") or ""
    location = urlsplit(headers.get("location", "")).hostname or ""
    return Answer(
        status=metadata.get("HTTPStatusCode", 0),
        code=safe_word(said.get("Code")),
        region=region if re.fullmatch(r"[a-z0-9-]{1,40}", region) else None,
        location=location if re.fullmatch(r"[a-z0-9.:-]{1,253}", location) else None,
    )


def _is_status(setback: Setback, status: int) -> bool:
    cause = setback.__cause__
    return isinstance(cause, sdk.ClientError) and _answer(cause).status == status


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
