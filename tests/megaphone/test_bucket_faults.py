"""The bucket against a server that fails on command: always the bytes of exactly one version, or an exception."""

from __future__ import annotations

import asyncio
import io
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from server.errors import ExportChanged, SourceError, SourceRefused, SourceUnreachable
from server.s3.retry import RetryPolicy

from ..support.fault_s3 import (
    Fault,
    FaultServer,
    altered,
    answer,
    chunked,
    cut,
    fault_server,
    hang_up,
    ignoring_if_match,
    ignoring_range,
    raw,
    refuse,
    rewritten,
    shifted,
    silent,
    stall,
    torn,
    trickle,
)
from ..support.faulty_bucket import KEY, QUICK, SIZE, body_of, bucket_of, listed, read

if TYPE_CHECKING:
    from pathlib import Path

    from ..support.s3 import AwsChain


# What a new try, or a resumed read, gets over.
SURVIVED = {
    "cut by FIN": [cut(100_000)],
    "cut by RST": [cut(100_000, reset=True)],
    "cut at once, twice": [cut(0), cut(0, reset=True)],
    "cut one byte before the end": [cut(SIZE - 1)],
    "cut again and again, with progress": [cut(40_000, reset=bool(n % 2)) for n in range(6)],
    "hung up before the headers": [hang_up(), hang_up(reset=True)],
    "a stall in the body": [stall(120_000)],
    "no answer": [silent(), silent()],
    "two bytes a second": [trickle()],
    "a burst of 503": [refuse(503, "SlowDown")] * 3,
    "a burst of 500": [refuse(500, "InternalError")] * 3,
    "429": [refuse(429, "TooManyRequests")] * 2,
    "409": [refuse(409, "OperationAborted")] * 2,
    "503 while resuming": [cut(100_000), refuse(503, "SlowDown"), refuse(503, "SlowDown")],
    "no Content-Length": [chunked()],
    "no Content-Length, truncated": [chunked(50_000)],
    "no Content-Length while resuming": [cut(100_000), chunked()],
    "chunked with a length, truncated": [
        raw(
            f'HTTP/1.1 200 OK\nContent-Length: {SIZE}\nTransfer-Encoding: chunked\nETag: "x"',
            b"1000\r\n" + bytes(0x800),
        )
    ],
    "a torn answer, again and again": [torn(100_000), torn(50_000)],
    "a torn range": [cut(100_000), torn(50_000)],
    "a range that is ignored": [cut(100_000), ignoring_range()],
    "a range that is ignored, cut": [cut(100_000), ignoring_range(), cut(150_000), ignoring_range()],
    "another range": [cut(100_000), altered(Content_Range=f"bytes 99999-{SIZE - 1}/{SIZE}")],
    "the bytes of another range": [cut(100_000), shifted(1), cut(200_000), shifted(4096)],
    "another total": [cut(100_000), altered(Content_Range=f"bytes 100000-{SIZE - 1}/{SIZE + 1}")],
    "206 without a range": [cut(100_000), altered(Content_Range=None)],
    "200 with a range": [cut(100_000), altered(status=200)],
    "206 unasked": [altered(status=206)],
    "no ETag": [altered(ETag=None)],
    "no bytes but 204": [refuse(204, "")],
    "416": [cut(100_000), refuse(416, "InvalidRange")],
    "403 once (credentials were changed)": [refuse(403, "InvalidAccessKeyId")],
    "an expired token once": [refuse(400, "ExpiredToken")],
    "403 while resuming": [cut(100_000), refuse(403, "AccessDenied")],
}


@pytest.mark.parametrize("faults", SURVIVED.values(), ids=SURVIVED.keys())
async def test_a_fault_that_passes_costs_no_byte(faulty: FaultServer, faults: list[Fault]) -> None:
    """The bytes read are those of the object, whatever happened on the way."""
    assert await read(faulty, *faults) == body_of(1)


# What is given up, with what.
GIVEN_UP: dict[str, tuple[list[Fault], type[SourceError], str]] = {
    "503 for good": ([refuse(503, "SlowDown")] * 99, SourceUnreachable, "cannot serve requests at the moment"),
    "429 for good": ([refuse(429, "TooManyRequests")] * 99, SourceUnreachable, "429"),
    "409 for good": ([refuse(409, "OperationAborted")] * 99, SourceUnreachable, "409"),
    "two bytes a second for good": ([trickle(pause=0.1)] * 99, SourceUnreachable, "too slowly|in time"),
    "a stall for good": ([stall(10)] * 99, SourceUnreachable, "in time"),
    "no answer for good": ([silent()] * 99, SourceUnreachable, "in time"),
    "cut for good": ([cut(0)] * 99, SourceUnreachable, "broke off the connection"),
    "reset for good": ([cut(0, reset=True)] * 99, SourceUnreachable, "broke off the connection"),
    "no Content-Length for good": ([chunked()] * 99, SourceRefused, "no Content-Length"),
    "torn for good": ([torn(100_000)] * 99, SourceRefused, "a Content-Length other than"),
    "no ETag for good": ([altered(ETag=None)] * 99, SourceRefused, "no ETag"),
    "403 for good": ([refuse(403, "AccessDenied")] * 99, SourceRefused, "s3:GetObject"),
    "expired for good": ([refuse(400, "ExpiredToken")] * 99, SourceRefused, "have expired"),
    "archived": ([refuse(403, "InvalidObjectState")], SourceRefused, "archive"),
    "gone": ([refuse(404, "NoSuchKey")], ExportChanged, "no longer there"),
    "another version, If-Match ignored": ([altered(ETag='"other"')], ExportChanged, "rewritten"),
    "another version while resuming": ([cut(9), altered(ETag='"other"')], ExportChanged, "rewritten"),
}


@pytest.mark.parametrize(("faults", "error", "words"), GIVEN_UP.values(), ids=GIVEN_UP.keys())
async def test_a_fault_that_stays_ends_in_a_sentence(
    faulty: FaultServer, faults: list[Fault], error: type[SourceError], words: str
) -> None:
    """Every fault ends in the class that says what to do, with a hint and without any text from the server."""
    with pytest.raises(error, match=words) as caught:
        await read(faulty, *faults)
    assert caught.value.hint
    assert "secret" not in f"{caught.value}{caught.value.hint}"
    assert len(faulty.reads) <= QUICK.tries * 2


async def test_a_read_that_always_begins_again_is_given_up(faulty: FaultServer) -> None:
    """Bytes received before are not progress: a server that ignores ranges and always cuts is given up."""
    bucket = await bucket_of(faulty)
    export = await listed(bucket)
    faulty.script.extend([cut(150_000, ignore_range=True)] * 99)
    with pytest.raises(SourceUnreachable):
        await bucket.fetch(export, io.BytesIO())
    assert len(faulty.reads) <= 2 * QUICK.tries


@pytest.mark.parametrize("first", [cut(100_000), cut(100_000, reset=True), stall(100_000), refuse(503, "SlowDown")])
async def test_a_rewrite_between_two_ranges_is_an_export_changed(faulty: FaultServer, first: Fault) -> None:
    """The rest of a new version is never appended to the beginning of the old one."""
    with pytest.raises(ExportChanged):
        await read(faulty, rewritten(body_of(2), first))
    assert await read(faulty) == body_of(2)


async def test_a_rewrite_on_a_server_without_if_match_is_noticed(faulty: FaultServer) -> None:
    """The ETag of each reply is compared, whatever the server makes of If-Match."""
    with pytest.raises(ExportChanged):
        await read(faulty, rewritten(body_of(2), cut(100_000)), ignoring_if_match(), ignoring_if_match())


async def test_a_resumed_read_asks_for_the_rest_of_the_same_version(faulty: FaultServer) -> None:
    """The resuming request has Range and If-Match; what has been received is not requested again."""
    await read(faulty, cut(100_000))
    first, second = faulty.reads
    etag = f'"{faulty.objects[KEY].etag}"'
    assert (first.range, first.if_match) == (None, etag)
    assert (second.range, second.if_match) == ("bytes=100000-", etag)


class StallingFile(io.BytesIO):
    """A disk that hangs during its first write, for longer than the rate's window."""

    stalled = False

    def write(self, data: Any) -> int:
        if not self.stalled:
            self.stalled = True
            time.sleep(2.5)
        return super().write(data)


async def test_a_slow_disk_is_not_a_slow_source(faulty: FaultServer) -> None:
    """Only the wait for the server counts for the rate: a disk that hangs costs no second read."""
    whole = body_of(3, 3 << 20)
    faulty.put(KEY, whole)
    patience = RetryPolicy(window=2, least_rate=600_000, tries=1)
    bucket = await bucket_of(faulty, patience)
    into = StallingFile()
    await bucket.fetch(await listed(bucket), into)
    assert into.getvalue() == whole
    assert len(faulty.reads) == 1


@pytest.mark.parametrize("spelling", ['"{}"', "{}"])
async def test_an_etag_is_spelt_as_the_server_wants_it(faulty: FaultServer, spelling: str) -> None:
    """With quotes or without: the spelling that works is found once, and kept."""
    faulty.spellings = (spelling,)
    bucket = await bucket_of(faulty)
    export = await listed(bucket)
    faulty.script.append(cut(100_000) if spelling != "{}" else answer)
    for _ in range(2):
        into = io.BytesIO()
        await bucket.fetch(export, into)
        assert into.getvalue() == body_of(1)
    assert len(faulty.reads) == 3
    assert faulty.reads[-1].if_match == spelling.format(export.etag)


@pytest.mark.parametrize("seed", range(12))
async def test_any_mixture_of_faults_gives_one_version_or_an_exception(faulty: FaultServer, seed: int) -> None:
    """Whatever happens in whatever order, the bytes are those of the listed version, or there is a SourceError."""
    dice = random.Random(seed)
    new = body_of(100 + seed)

    def any_fault() -> Fault:
        return dice.choice(
            [
                cut(dice.randrange(SIZE)),
                cut(dice.randrange(SIZE), reset=True),
                cut(dice.randrange(SIZE)),
                torn(dice.randrange(SIZE)),
                chunked(dice.randrange(SIZE)),
                refuse(503, "SlowDown"),
                ignoring_range(),
                hang_up(),
                rewritten(new, cut(dice.randrange(SIZE))) if dice.random() < 0.3 else answer,
            ]
        )

    bucket = await bucket_of(faulty)
    export = await listed(bucket)
    faulty.script.extend(any_fault() for _ in range(dice.randrange(1, 8)))
    into = io.BytesIO()
    try:
        await bucket.fetch(export, into)
    except SourceError:
        return
    assert into.getvalue() == body_of(1)


async def test_a_cancelled_read_lets_go_of_the_file_first(faulty: FaultServer, tmp_path: Path) -> None:
    """After a cancellation the file can be closed at once, and no connection is left."""
    bucket = await bucket_of(faulty, RetryPolicy(tries=1))
    export = await listed(bucket)
    faulty.script.append(stall(100_000))
    with (tmp_path / "download").open("w+b") as into:
        reading = asyncio.create_task(bucket.fetch(export, into))
        async with asyncio.timeout(20):
            while not faulty.reads:  # noqa: ASYNC110  # the server signals nothing
                await asyncio.sleep(0.01)
        await asyncio.wait([reading], timeout=0.3)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    into_again = io.BytesIO()
    await bucket.fetch(export, into_again)
    assert into_again.getvalue() == body_of(1)


async def test_the_server_goes_away_and_comes_back(aws_chain: AwsChain) -> None:
    """After an outage of the bucket, the next call on the same object works."""
    aws_chain.use("AKIDTEST", "secret")
    async with fault_server() as faulty:
        faulty.put(KEY, body_of(1))
        bucket = await bucket_of(faulty)
        faulty.listing_script.extend([hang_up()] * 9)
        with pytest.raises(SourceUnreachable):
            await bucket.day_exports()
        faulty.listing_script.clear()
        assert await listed(bucket)
