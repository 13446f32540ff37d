"""An S3 server in bad weather: what befalls each request is thrown, from a seed, out of a table of faults.

Listens on 127.0.0.1, as `tests.support.fault_s3` does, whose faults these are. The clock that its listings show is the
campaign's: virtual time for whoever reads the bucket. Every fault that was thrown is counted by its kind.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING

from aiohttp import web

from tests.support.fault_s3 import (
    FaultServer,
    Version,
    altered,
    answer,
    chunked,
    cut,
    hang_up,
    ignoring_if_match,
    ignoring_range,
    listing,
    page,
    raw,
    redirect,
    refuse,
    shifted,
    silent,
    stall,
    start_of,
    torn,
    trickle,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.support.fault_s3 import Fault

_REFUSALS = (
    (503, "SlowDown"), (503, "ServiceUnavailable"), (500, "InternalError"), (429, "TooManyRequests"),
    (409, "OperationAborted"), (403, "AccessDenied"), (403, "InvalidAccessKeyId"), (400, "ExpiredToken"),
    (404, "NoSuchKey"), (412, "PreconditionFailed"), (301, "PermanentRedirect"), (204, ""),
)  # fmt: skip
_SILENT = ("silence",)  # these cost the reader its patience, so they are thrown less often
_RARELY = 0.15


@dataclass
class Weather(FaultServer):
    """The server. ``rate`` is the share of reads that a fault befalls, and half of it that of listings: 0 is fine.

    ``elsewhere`` is where redirects point to; ``rewrite`` puts a new version of a key while it is read.
    """

    dice: random.Random = field(kw_only=True)
    rate: float = 0.5
    clock: datetime = datetime(2026, 1, 2, 6, tzinfo=UTC)
    elsewhere: str = "http://127.0.0.1:9/"
    rewrite: Callable[[str], object] = lambda _: None
    tried: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    _earlier: dict[str, Version] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request, in the weather of the moment."""
        self.requests += 1
        key = request.match_info["key"]
        if self.dice.random() < (self.rate if key else self.rate / 2):
            if not key:
                self.listing_script.append(self._any(self._listing_faults()))
            elif key in self.objects:
                self.script.append(self._any(self._read_faults(len(self.objects[key].body))))
        response = await super().handle(request)
        if not key and not response.prepared:
            response.headers["Date"] = format_datetime(self.clock, usegmt=True)
        return response

    def _any(self, faults: dict[str, Fault]) -> Fault:
        new = [name for name in faults if not self.tried[name]]
        names = [name for name in faults if name not in _SILENT or self.dice.random() < _RARELY]
        name = self.dice.choice(new or names)
        self.tried[name] += 1
        return faults[name]

    @property
    def untried(self) -> set[str]:
        """Kinds of faults that befell nobody yet."""
        return {*self._read_faults(1), *self._listing_faults()} - self.tried.keys()

    def put_version(self, key: str, body: bytes) -> Version:
        """Put an object that was modified now, by the server's clock; listings may still show the one before it."""
        self._earlier = dict(self.objects)
        self.objects[key] = Version(body, self.clock)
        return self.objects[key]

    def _read_faults(self, size: int) -> dict[str, Fault]:
        dice = self.dice
        some = dice.randrange(1, size + 1)
        return {
            "cut": cut(some, reset=dice.random() < 0.5, ignore_range=dice.random() < 0.2),
            "hang-up": hang_up(reset=dice.random() < 0.5),
            "silence": dice.choice([silent(), stall(some)]),
            "trickle": trickle(dice.choice([1, 300, 16_384]), 0.01),
            "refusal": refuse(*dice.choice(_REFUSALS)),
            "redirect": redirect(self.elsewhere, dice.choice([301, 302, 303, 307, 308])),
            "no length": chunked(dice.choice([None, some])),
            "torn": torn(some),
            "flipped bit": _flipped(some - 1),
            "wrong range": dice.choice(
                [shifted(dice.randrange(1, 9)), ignoring_range(), altered(Content_Range=None), altered(status=200),
                 altered(status=206), refuse(416, "InvalidRange")]
            ),
            "wrong ETag": dice.choice([altered(ETag=None), altered(ETag='"other"'), ignoring_if_match()]),
            "no S3": page("<html>Please log in.</html>"),
            "rewrite": _rewritten(dice.choice([answer, cut(some), cut(some, reset=True), refuse(503, "SlowDown")])),
        }  # fmt: skip

    def _listing_faults(self) -> dict[str, Fault]:
        dice, begun = self.dice, '<?xml version="1.0"?><ListBucketResult><Name>exports</Name>'
        return {
            "hang-up": hang_up(reset=dice.random() < 0.5),
            "silence": silent(),
            "refusal": refuse(*dice.choice([one for one in _REFUSALS if one[0] not in (204, 404, 412)])),
            "redirect": redirect(self.elsewhere, dice.choice([301, 302, 307])),
            "no S3": dice.choice([page("<html>"), page(""), page("{}", "application/json")]),
            "torn": dice.choice(
                [page(begun, "application/xml"), raw("HTTP/1.1 200 OK\nContent-Length: 9999", begun.encode())]
            ),
            "endless listing": page(
                f"{begun}<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>"
                "</ListBucketResult>",
                "application/xml",
            ),
            "old listing": _old(dict(self._earlier)),
        }


def _flipped(at: int) -> Fault:
    """A whole answer with one wrong bit, under the right ETag and length."""

    async def fault(server: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        body = bytearray(version.body)
        body[max(at, start_of(request))] ^= 0x10
        response = await answer(server, request, version)
        if response.status < 400 and isinstance(response, web.Response):
            response.body = bytes(body[start_of(request) :])
        return response

    return fault


def _rewritten(then: Fault) -> Fault:
    """A new version is put while the old one is answered, faultily."""

    async def fault(server: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        assert isinstance(server, Weather)
        server.rewrite(request.match_info["key"])
        return await then(server, request, version)

    return fault


def _old(objects: dict[str, Version]) -> Fault:
    """A listing of how it was before."""

    async def fault(_: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        return await listing(FaultServer(objects=objects), request, version)

    return fault
