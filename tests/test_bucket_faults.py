"""The bucket against a server that fails on command: always the bytes of exactly one version, or an exception."""

from __future__ import annotations

import asyncio
import io
import random
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import pytest

from server.bucket import Bucket
from server.errors import ExportChanged, SourceError, SourceRefused, SourceUnreachable
from server.patience import Pace, Patience, Tries
from server.refusals import Answer, Place, Remedy

from .fault_server import (
    BUCKET,
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
    page,
    raw,
    redirect,
    refuse,
    rewritten,
    silent,
    stall,
    torn,
    trickle,
)
from .fixtures_s3 import AwsChain, bucket_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from server.megaphone import DayExport

DAY = date(2026, 11, 20)
KEY = f"metrics-day-{DAY}.json.gz"
SIZE = 300_000
QUICK = Patience(
    connect=1,
    silence=0.3,
    call=3,
    window=0.4,
    least_rate=25_000,
    tries=4,
    first_pause=0.01,
    longest_pause=0.03,
    sdk_tries=1,
)


def body_of(seed: int, size: int = SIZE) -> bytes:
    """An object's bytes."""
    return random.Random(seed).randbytes(size)


@pytest.fixture
async def server(aws_chain: AwsChain) -> AsyncIterator[FaultServer]:
    """The fault server with one day in it."""
    aws_chain.use("AKIDTEST", "secret-of-the-test")
    async with fault_server() as running:
        running.put(KEY, body_of(1))
        yield running


async def bucket_of(server: FaultServer, patience: Patience = QUICK) -> Bucket:
    """The bucket with little patience."""
    return await Bucket.open(bucket_settings(f"s3://{BUCKET}", server.url), patience=patience)


async def listed(bucket: Bucket) -> DayExport:
    """The one day."""
    return (await bucket.day_exports()).exports[DAY]


async def read(server: FaultServer, *faults: Fault, patience: Patience = QUICK) -> bytes:
    """List, then read under these faults; a spool that holds something already keeps it."""
    bucket = await bucket_of(server, patience)
    export = await listed(bucket)
    server.script.extend(faults)
    into = io.BytesIO(b"kept")
    into.seek(4)
    await bucket.fetch(export, into)
    assert into.getvalue()[:4] == b"kept"
    return into.getvalue()[4:]


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
async def test_a_fault_that_passes_costs_no_byte(server: FaultServer, faults: list[Fault]) -> None:
    """The bytes read are those of the object, whatever happened on the way."""
    assert await read(server, *faults) == body_of(1)


# What is given up, with what.
GIVEN_UP: dict[str, tuple[list[Fault], type[SourceError], str]] = {
    "503 for good": ([refuse(503, "SlowDown")] * 99, SourceUnreachable, "cannot serve now"),
    "429 for good": ([refuse(429, "TooManyRequests")] * 99, SourceUnreachable, "429"),
    "409 for good": ([refuse(409, "OperationAborted")] * 99, SourceUnreachable, "409"),
    "two bytes a second for good": ([trickle(pause=0.1)] * 99, SourceUnreachable, "too slowly|in time"),
    "a stall for good": ([stall(10)] * 99, SourceUnreachable, "in time"),
    "no answer for good": ([silent()] * 99, SourceUnreachable, "in time"),
    "cut for good": ([cut(0)] * 99, SourceUnreachable, "broke the connection off"),
    "reset for good": ([cut(0, reset=True)] * 99, SourceUnreachable, "broke the connection off"),
    "no Content-Length for good": ([chunked()] * 99, SourceRefused, "no Content-Length"),
    "torn for good": ([torn(100_000)] * 99, SourceRefused, "another Content-Length"),
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
    server: FaultServer, faults: list[Fault], error: type[SourceError], words: str
) -> None:
    """Every fault ends: with the class that says what to do, a hint, and nothing of the server's own text."""
    with pytest.raises(error, match=words) as caught:
        await read(server, *faults)
    assert caught.value.hint
    assert "secret" not in f"{caught.value}{caught.value.hint}"
    assert len(server.reads) <= QUICK.tries * 2


async def test_a_read_that_always_begins_again_is_given_up(server: FaultServer) -> None:
    """Bytes that were had before are no progress: a server that ignores ranges and always cuts does not hold us."""
    bucket = await bucket_of(server)
    export = await listed(bucket)
    server.script.extend([cut(150_000, ignore_range=True)] * 99)
    with pytest.raises(SourceUnreachable):
        await bucket.fetch(export, io.BytesIO())
    assert len(server.reads) <= 2 * QUICK.tries


@pytest.mark.parametrize("first", [cut(100_000), cut(100_000, reset=True), stall(100_000), refuse(503, "SlowDown")])
async def test_a_rewrite_between_two_ranges_is_an_export_changed(server: FaultServer, first: Fault) -> None:
    """The rest of a new version is never put behind the beginning of the old one."""
    with pytest.raises(ExportChanged):
        await read(server, rewritten(body_of(2), first))
    assert await read(server) == body_of(2)


async def test_a_rewrite_on_a_server_without_if_match_is_noticed(server: FaultServer) -> None:
    """The ETag of each reply is compared, whatever the server makes of If-Match."""
    with pytest.raises(ExportChanged):
        await read(server, rewritten(body_of(2), cut(100_000)), ignoring_if_match(), ignoring_if_match())


async def test_a_resumed_read_asks_for_the_rest_of_the_same_version(server: FaultServer) -> None:
    """Range and If-Match stand in the request that resumes; what is there already is not asked for again."""
    await read(server, cut(100_000))
    first, second = server.reads
    etag = f'"{server.objects[KEY].etag}"'
    assert (first.range, first.if_match) == (None, etag)
    assert (second.range, second.if_match) == ("bytes=100000-", etag)


@pytest.mark.parametrize("spelling", ['"{}"', "{}"])
async def test_an_etag_is_spelt_as_the_server_wants_it(server: FaultServer, spelling: str) -> None:
    """With quotes or without: the spelling that works is found once, and kept."""
    server.spellings = (spelling,)
    bucket = await bucket_of(server)
    export = await listed(bucket)
    server.script.append(cut(100_000) if spelling != "{}" else answer)
    for _ in range(2):
        into = io.BytesIO()
        await bucket.fetch(export, into)
        assert into.getvalue() == body_of(1)
    assert len(server.reads) == 3
    assert server.reads[-1].if_match == spelling.format(export.etag)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("region", [None, "eu-west-1"])
async def test_a_redirect_is_never_followed(server: FaultServer, status: int, region: str | None) -> None:
    """Neither aiohttp nor the SDK goes to another host, on listing or on reading, whatever the answer promises."""
    async with fault_server() as elsewhere:
        elsewhere.put(KEY, body_of(1))
        more = {"x_amz_bucket_region": region} if region else {}
        away = refuse(status, "Moved", Location=f"{elsewhere.url}/{BUCKET}/{KEY}", **more)
        with pytest.raises(SourceRefused, match=r"redirects to 127|eu-west-1") as caught:
            await read(server, away)
        assert "region" in caught.value.hint or "endpoint_url" in caught.value.hint
        server.listing_script.append(away)
        with pytest.raises(SourceRefused, match=r"redirects to 127|eu-west-1"):
            await (await bucket_of(server)).day_exports()
        assert elsewhere.reads == []
        assert len(server.reads) == 1


async def test_a_redirect_is_not_followed_on_the_same_host_either(server: FaultServer) -> None:
    """An object under another key is another object."""
    server.put("other", body_of(1))
    with pytest.raises(SourceRefused, match="redirects"):
        await read(server, redirect(f"{server.url}/{BUCKET}/other"))
    assert [seen.key for seen in server.reads] == [KEY]


@pytest.mark.parametrize(
    ("fault", "words", "hint"),
    [
        (refuse(400, "AuthorizationHeaderMalformed", x_amz_bucket_region="eu-west-1"), "eu-west-1", '"eu-west-1"'),
        (refuse(301, "PermanentRedirect"), "another region", "get-bucket-location"),
        (refuse(400, "IllegalLocationConstraintException"), "another region", "get-bucket-location"),
        (refuse(400, "AuthorizationHeaderMalformed", x_amz_bucket_region="x; rm -rf /"), "another region", "get-"),
        (refuse(403, "RequestTimeTooSkewed"), "clock of this machine", "timedatectl"),
        (refuse(403, "AccessDenied"), "s3:ListBucket", "aws s3 ls"),
        (refuse(403, "InvalidAccessKeyId"), "refused the credentials", "aws sts"),
        (refuse(403, "SignatureDoesNotMatch"), "refused the credentials", "aws sts"),
        (refuse(401, "Unauthorized"), "refused the credentials", "aws sts"),
        (refuse(400, "ExpiredToken"), "have expired", "renew"),
        (refuse(404, "NoSuchBucket"), "no bucket exports", "export.url"),
        (refuse(400, "a message: AKIDTEST"), "no code", "aws s3 ls"),
        (page("<html></html>"), "not answer as S3", "export.endpoint_url"),
        (page(""), "not answer as S3", "export.endpoint_url"),
        (page('<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>'), "end", ""),
        (
            page(
                f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>{KEY}</Key></Contents>"
                "</ListBucketResult>"
            ),
            "without LastModified",
            "",
        ),
        (raw("HTTP/1.1 200 OK\nContent-Length: 0\nDate: soon"), "not answer as S3", ""),
    ],
)
async def test_a_listing_that_is_refused_says_why(server: FaultServer, fault: Fault, words: str, hint: str) -> None:
    """Each cause has its own sentence and its own command."""
    server.listing_script.extend([fault] * 9)
    with pytest.raises(SourceRefused, match=words) as caught:
        await (await bucket_of(server)).day_exports()
    assert hint in caught.value.hint and caught.value.hint
    assert "AKIDTEST" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize("date_line", ["", "\nDate: soon"])
async def test_a_listing_without_a_clock_is_refused(server: FaultServer, date_line: str) -> None:
    """Without the server's Date nobody can say how old an object is."""
    text = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    server.listing_script.append(raw(f"HTTP/1.1 200 OK\nContent-Length: {len(text)}{date_line}", text))
    with pytest.raises(SourceRefused, match="no Date header"):
        await (await bucket_of(server)).day_exports()


async def test_the_clock_of_a_listing_is_the_one_at_its_beginning(server: FaultServer) -> None:
    """Of many pages the first one's Date counts: an object cannot look older than it is."""
    text = (
        f"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{KEY}</NextContinuationToken>"
        "</ListBucketResult>"
    )
    head = f"HTTP/1.1 200 OK\nContent-Length: {len(text)}\nDate: Sat, 21 Nov 2026 05:00:00 GMT"
    server.listing_script.append(raw(head, text.encode()))
    assert (await (await bucket_of(server)).day_exports()).now == datetime(2026, 11, 21, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "faults", [[refuse(503, "SlowDown")], [refuse(429, "Slow")] * 2, [refuse(409, "Slow")] * 2, [hang_up()], [silent()]]
)
async def test_a_listing_gets_over_a_short_trouble(server: FaultServer, faults: list[Fault]) -> None:
    """503 and broken connections are repeated by the SDK, 429 and 409 by us."""
    server.listing_script.extend(faults)
    assert (await listed(await bucket_of(server, replace(QUICK, sdk_tries=2)))).size == SIZE


@pytest.mark.parametrize(
    "fault",
    [
        refuse(503, "SlowDown"),
        refuse(429, "Slow"),
        refuse(409, "Slow"),
        hang_up(reset=True),
        silent(),
        page("<html><p>Welcome to the guest network</html>"),
    ],
)
async def test_a_listing_that_fails_for_good_is_unreachable(server: FaultServer, fault: Fault) -> None:
    """It may come back by itself: SourceUnreachable, after a bounded number of requests."""
    server.listing_script.extend([fault] * 99)
    with pytest.raises(SourceUnreachable):
        await (await bucket_of(server)).day_exports()
    assert 99 - len(server.listing_script) <= QUICK.tries


async def test_a_listing_over_pages_survives_and_ends(server: FaultServer) -> None:
    """Pages are followed by their tokens; a token that comes again is no endless listing."""
    for n in range(7):
        server.put(f"metrics-day-2026-10-0{n + 1}.json.gz", b"x")
    server.page_size = 3
    assert len((await (await bucket_of(server)).day_exports()).exports) == 8
    again = page(
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        "</ListBucketResult>",
        "application/xml",
    )
    server.listing_script.extend([again] * 9)
    with pytest.raises(SourceRefused, match="does not come to its end"):
        await (await bucket_of(server)).day_exports()


@pytest.mark.parametrize("seed", range(12))
async def test_any_mixture_of_faults_gives_one_version_or_an_exception(server: FaultServer, seed: int) -> None:
    """Whatever comes in whatever order: the bytes are those that were listed, or there is a SourceError."""
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

    bucket = await bucket_of(server)
    export = await listed(bucket)
    server.script.extend(any_fault() for _ in range(dice.randrange(1, 8)))
    into = io.BytesIO()
    try:
        await bucket.fetch(export, into)
    except SourceError:
        return
    assert into.getvalue() == body_of(1)


async def test_a_cancelled_read_lets_go_of_the_file_first(server: FaultServer, tmp_path: Path) -> None:
    """After a cancellation the file can be closed at once, and no connection is left."""
    bucket = await bucket_of(server, Patience(tries=1))
    export = await listed(bucket)
    server.script.append(stall(100_000))
    with (tmp_path / "spool").open("w+b") as into:
        reading = asyncio.create_task(bucket.fetch(export, into))
        await asyncio.wait([reading], timeout=0.3)
        assert server.reads
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    into_again = io.BytesIO()
    await bucket.fetch(export, into_again)
    assert into_again.getvalue() == body_of(1)


async def test_the_server_goes_away_and_comes_back(aws_chain: AwsChain) -> None:
    """A bucket that was down needs no new object on our side: the next call works."""
    aws_chain.use("AKIDTEST", "secret")
    async with fault_server() as server:
        server.put(KEY, body_of(1))
        bucket = await bucket_of(server)
        server.listing_script.extend([hang_up()] * 9)
        with pytest.raises(SourceUnreachable):
            await bucket.day_exports()
        server.listing_script.clear()
        assert await listed(bucket)


def test_tries_end_without_progress_and_begin_again_with_it() -> None:
    """So many failures in a row are the end; a window's worth of new bytes begins the count again."""
    patience = Patience(tries=3, least_rate=10, window=10, first_pause=1, longest_pause=3)
    tries = Tries(patience)
    assert tries.failed(0) is not None and tries.failed(99) is not None
    assert tries.failed(100) is not None and tries.failed(150) is not None
    assert tries.failed(199) is None
    pauses = [patience.pause(failures) for failures in (1, 2, 3, 4, 1000)]
    assert all(0.5 * full <= pause <= full for full, pause in zip((1, 2, 3, 3, 3), pauses, strict=True))


def test_refused_credentials_have_one_more_try() -> None:
    """One new session for each stretch of progress."""
    tries = Tries(Patience(least_rate=10, window=10))
    assert tries.refused(0) == 0.0
    assert tries.refused(50) is None
    assert tries.refused(100) == 0.0


def test_the_pace_is_told_over_a_sliding_window() -> None:
    """A quick beginning does not excuse a trickle, and a short pause is no trickle."""
    pace = Pace(Patience(least_rate=100, window=10))
    assert not pace.too_slow(1, 5_000)
    assert not any(pace.too_slow(1, 2) for _ in range(9))
    assert pace.too_slow(1, 2)
    steady = Pace(Patience(least_rate=100, window=10))
    assert not any(steady.too_slow(0.5, 60) for _ in range(500))
    assert not steady.too_slow(5, 600)


@pytest.mark.parametrize(
    ("answer_", "key", "error", "remedy"),
    [
        (Answer(412, "PreconditionFailed"), KEY, ExportChanged, Remedy.NONE),
        (Answer(404, "NoSuchKey"), KEY, ExportChanged, Remedy.NONE),
        (Answer(404, "NoSuchBucket"), KEY, SourceRefused, Remedy.NONE),
        (Answer(404, "404"), None, SourceRefused, Remedy.NONE),
        (Answer(403, "AccessDenied"), None, SourceRefused, Remedy.NEW_CREDENTIALS),
        (Answer(403, "RequestTimeTooSkewed"), KEY, SourceRefused, Remedy.NONE),
        (Answer(400, "RequestTimeout"), KEY, SourceUnreachable, Remedy.WAIT),
        (Answer(504, "504"), None, SourceUnreachable, Remedy.WAIT),
        (Answer(405, "MethodNotAllowed"), None, SourceRefused, Remedy.NONE),
    ],
)
def test_every_answer_has_one_meaning(
    answer_: Answer, key: str | None, error: type[SourceError], remedy: Remedy
) -> None:
    """The table of what a status and S3's word for it ask of us."""
    place = Place("exports", "pre/", "eu-west-1", "https://me:word@s3.example.com:9000/x")
    setback = place.meaning(answer_, key)
    assert (type(setback.error), setback.remedy) == (error, remedy)
    assert setback.error.hint and "word@" not in f"{setback.error}{setback.error.hint}"


def test_a_place_without_an_endpoint_is_at_aws() -> None:
    """Sentences name the AWS endpoint of the region, and hints give the region to the AWS tool."""
    setback = Place("exports", "", "eu-west-1", None).meaning(Answer(403, "AccessDenied"))
    assert setback.error.hint.endswith("aws s3 ls s3://exports/ --region eu-west-1")
    assert "s3.eu-west-1.amazonaws.com" in str(Place("exports", "", "eu-west-1", None).unreachable("x").error)
