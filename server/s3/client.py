"""One bucket, asked safely: the SDK's client, its timeouts and its exceptions.

Touches one bucket through aiobotocore, which no other module imports. The promise: every wait ends; no answer sends us
to another host; a foreign exception never leaves this file. Each connection has its own session, so credentials that
were renewed on disk or by the chain are picked up automatically.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]  # ships no types
from aiobotocore.hooks import AioHierarchicalEmitter  # type: ignore[import-untyped]  # ships no types
from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]  # ships no types
from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # ships no types
from botocore import exceptions as sdk  # type: ignore[import-untyped]  # ships no types
from botocore.loaders import Loader  # type: ignore[import-untyped]  # ships no types
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # ships no types

from .errors import OPERATIONS, Answer, Remedy, safe_word

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .errors import BucketPlace, FailedAttempt
    from .retry import RetryCounter, RetryPolicy

_FOREIGN = (
    aiohttp.ClientError,
    sdk.BotoCoreError,
    sdk.ClientError,
    ResponseParserError,
    OSError,
    ValueError,
    OverflowError,  # a time in the answer that cannot be right
)
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
    """The SDK's HTTP session, following no redirect (aiohttp would follow one to any host)."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        return _WithoutRedirects(await super()._get_session(proxy_url))


# _OneHost overrides a private method. If a release renames it, the override would silently stop working.
if not hasattr(AIOHTTPSession, "_get_session"):
    raise ImportError("server/s3/client.py does not support this aiobotocore: it could not stop it following redirects")


class _WithoutRedirects:
    """The one method of an aiohttp session that the SDK calls."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> aiohttp.ClientResponse:
        return await self._session.request(method, **options | {"allow_redirects": False})


class BucketClient:
    """Connects to one bucket; call `prepare` first, once per process."""

    def __init__(self, place: BucketPlace, policy: RetryPolicy) -> None:
        self._place = place
        self._policy = policy
        self._s3_options: dict[str, Any] = {}
        if place.endpoint_url and not place.is_access_point:
            self._s3_options["addressing_style"] = "path"

    def write_unsigned(self) -> None:
        """Sign no bodies, which the SDK would read on the event loop to do so; Content-MD5 vouches for the bytes."""
        self._s3_options["payload_signing_enabled"] = False

    @staticmethod
    async def prepare() -> None:
        """Parse the SDK's service descriptions in a thread, so that the event loop never waits for it."""
        await asyncio.to_thread(_models)
        await asyncio.to_thread(_handlers)

    async def wait_for_next_try(self, attempt: FailedAttempt, counter: RetryCounter, most: int) -> None:
        """Wait until another try is worthwhile.

        ``most`` is the largest number of bytes ever received.

        Raises:
            SourceError: no further try is worthwhile; this is the failed attempt's error.
        """
        pause = None
        if attempt.remedy is Remedy.WAIT:
            pause = counter.failed(most)
        elif attempt.remedy is Remedy.NEW_CREDENTIALS:
            pause = counter.refused(most)
        if pause is None:
            raise attempt.error from attempt
        await asyncio.sleep(pause)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Open a client with the credentials that the chain provides now; all its connections end with it."""
        # A session caches its credentials, so one that outlived this connection would never see renewed ones.
        session = AioSession(event_hooks=_handlers(), include_builtin_handlers=False, profile=self._place.profile)
        session.register_component("data_loader", _models())
        opening = session.create_client(
            "s3",
            region_name=self._place.region,
            endpoint_url=self._place.endpoint_url,
            config=AioConfig(
                s3=self._s3_options,
                signature_version="s3v4",
                connect_timeout=self._policy.connect,
                read_timeout=self._policy.silence,
                retries={"mode": "standard", "total_max_attempts": self._policy.sdk_tries},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                http_session_cls=_OneHost,
            ),
        )
        # Entered by hand: `answering` must translate what opening raises, but not what our caller's block raises.
        async with self.answering():
            client = await opening.__aenter__()
        try:
            client.meta.events.register("before-call.s3", _stay_in_region)
            yield client
        finally:
            await opening.__aexit__(None, None, None)

    async def pages(self, client: Any, **query: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield the pages of a listing.

        Raises:
            FailedAttempt: a page could not be read, or the listing does not end.
        """
        tokens: set[str] = set()
        more: dict[str, str] = {}
        while True:
            async with self.answering():
                page = await client.list_objects_v2(Bucket=self._place.bucket, **query, **more)
            if "IsTruncated" not in page:
                raise self._place.no_s3("no listing in the answer")
            yield page
            if not page["IsTruncated"]:
                return
            # A token that comes twice would keep us listing for ever.
            token = page.get("NextContinuationToken")
            if not token or token in tokens:
                raise self._place.no_s3("the listing never ends")
            tokens.add(token)
            more = {"ContinuationToken": str(token)}

    @asynccontextmanager
    async def answering(self, key: str | None = None, seconds: float | None = None) -> AsyncIterator[asyncio.Timeout]:
        """Turn foreign exceptions into `FailedAttempt`; wrap it around waiting for the server, and nothing else.

        ``key`` is the object concerned, if any; ``seconds`` is the longest wait, which the yielded time-out can extend.
        """
        try:
            async with asyncio.timeout(seconds or self._policy.call) as limit:
                yield limit
        except _FOREIGN as error:
            raise self._failed_attempt(error, key) from error
        except RuntimeError as error:
            if "timezone offset" in str(error):  # botocore: "Unable to calculate correct timezone offset for …"
                raise self._place.no_s3("a time that cannot be right") from error
            if "redentials" not in str(error):  # botocore: "Credentials were refreshed, but … are still expired."
                raise
            raise self._place.no_credentials("they expired and were not renewed") from error

    def _failed_attempt(self, error: Exception, key: str | None) -> FailedAttempt:
        if isinstance(error, sdk.ClientError):
            # Any other operation is the credential chain's own: AssumeRole and the like.
            if error.operation_name not in OPERATIONS:
                code = safe_word(error.response.get("Error", {}).get("Code"))
                return self._place.no_credentials(f"{error.operation_name} was refused: {code}")
            return self._place.meaning(_answer(error), key, error.operation_name)
        # The order matters: several of these classes derive from one another or from OSError.
        if isinstance(error, _CREDENTIALS):
            return self._place.no_credentials(type(error).__name__.removesuffix("Error"))
        if isinstance(error, FileNotFoundError | PermissionError):  # a web-identity token, a credential process
            return self._place.no_credentials(f"{error.filename}: {error.strerror}")
        if isinstance(error, sdk.SSLError | aiohttp.ClientSSLError):
            return self._place.not_trusted()
        if isinstance(error, sdk.ProxyConnectionError):
            return self._place.unreachable("is behind a proxy that does not answer")
        if isinstance(error, TimeoutError | sdk.ConnectTimeoutError | sdk.ReadTimeoutError):
            return self._place.unreachable("does not answer in time")
        if isinstance(error, sdk.EndpointConnectionError):
            return self._place.unreachable("cannot be connected to")
        if type(error) is sdk.HTTPClientError:  # whatever else aiohttp raises: a URL that it cannot use
            return self._place.unreachable(f"could not be queried ({type(error.__cause__ or error).__name__})")
        if isinstance(error, aiohttp.ClientError | sdk.HTTPClientError | sdk.IncompleteReadError | OSError):
            return self._place.unreachable("broke off the connection")
        if isinstance(error, ResponseParserError):
            return self._place.no_s3("no XML in the answer")
        return self._place.no_s3(type(error).__name__)


@cache
def _models() -> Any:
    """Return the SDK's descriptions of S3, parsed once: 0.3 s of work that each session would repeat."""
    loader = Loader()
    for name in ("_retry", "endpoints", "partitions", "sdk-default-configuration"):
        loader.load_data_with_path(name)
    for kind in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", kind)
    return loader


@cache
def _handlers() -> Any:
    """Return the SDK's own event handlers, which a client copies: registering them takes half a connection's time."""
    emitter = AioHierarchicalEmitter()
    AioSession(event_hooks=emitter)
    return emitter


def _stay_in_region(context: dict[str, Any], **_: Any) -> None:
    """Stop the SDK from following a bucket into another region because an answer says so."""
    # botocore follows one such redirect per request; this mark makes it believe that it already has.
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


def status_of(attempt: FailedAttempt) -> int:
    """Return the HTTP status that the server answered this attempt with, or 0 if it did not answer."""
    cause = attempt.__cause__
    return _answer(cause).status if isinstance(cause, sdk.ClientError) else 0


def has_status(attempt: FailedAttempt, status: int) -> bool:
    """Return whether the server answered this attempt with the HTTP status ``status``."""
    return status_of(attempt) == status
