"""A listing that fails, and redirects: each cause has its own sentence, and nothing leads to another host."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from server.errors import SourceRefused, SourceUnreachable

from ..support.fault_s3 import (
    BUCKET,
    Fault,
    FaultServer,
    fault_server,
    hang_up,
    listing,
    page,
    raw,
    redirect,
    refuse,
    silent,
)
from ..support.faulty_bucket import KEY, QUICK, SIZE, body_of, bucket_of, listed, read


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("region", [None, "eu-west-1"])
async def test_a_redirect_is_never_followed(faulty: FaultServer, status: int, region: str | None) -> None:
    """Neither aiohttp nor the SDK goes to another host, on listing or on reading, whatever the answer promises."""
    async with fault_server() as elsewhere:
        elsewhere.put(KEY, body_of(1))
        more = {"x_amz_bucket_region": region} if region else {}
        away = refuse(status, "Moved", Location=f"{elsewhere.url}/{BUCKET}/{KEY}", **more)
        with pytest.raises(SourceRefused, match=r"redirects to 127|eu-west-1") as caught:
            await read(faulty, away)
        assert "region" in caught.value.hint or "endpoint_url" in caught.value.hint
        faulty.listing_script.append(away)
        with pytest.raises(SourceRefused, match=r"redirects to 127|eu-west-1"):
            await (await bucket_of(faulty)).day_exports()
        assert elsewhere.reads == []
        assert len(faulty.reads) == 1


async def test_rights_that_end_at_the_prefix_do_not_fail_the_listing(faulty: FaultServer) -> None:
    """Where else in the bucket exports are is then not known, and not said."""
    faulty.objects.clear()
    faulty.put("notes.txt", b"x")
    faulty.listing_script.extend([listing, refuse(403, "AccessDenied")] * 6)
    others = (await (await bucket_of(faulty)).day_exports()).others
    assert (others.objects, others.elsewhere) == (1, "") and len(faulty.listing_script) == 10


async def test_a_redirect_is_not_followed_on_the_same_host_either(faulty: FaultServer) -> None:
    """An object under another key is another object."""
    faulty.put("other", body_of(1))
    with pytest.raises(SourceRefused, match="redirects"):
        await read(faulty, redirect(f"{faulty.url}/{BUCKET}/other"))
    assert [seen.key for seen in faulty.reads] == [KEY]


@pytest.mark.parametrize(
    ("fault", "words", "hint"),
    [
        (refuse(400, "AuthorizationHeaderMalformed", x_amz_bucket_region="eu-west-1"), "eu-west-1", '"eu-west-1"'),
        (refuse(301, "PermanentRedirect"), "another region", "get-bucket-location"),
        (refuse(400, "IllegalLocationConstraintException"), "another region", "get-bucket-location"),
        (refuse(400, "AuthorizationHeaderMalformed", x_amz_bucket_region="x; rm -rf /"), "another region", "get-"),
        (refuse(403, "RequestTimeTooSkewed"), "clock of this machine", "timedatectl"),
        (refuse(403, "AccessDenied"), "s3:ListBucket", "aws s3 ls"),
        (refuse(403, "InvalidAccessKeyId"), "refused the credentials", "manual bucket"),
        (refuse(403, "SignatureDoesNotMatch"), "refused the credentials", "manual bucket"),
        (refuse(401, "Unauthorized"), "refused the credentials", "manual bucket"),
        (refuse(400, "ExpiredToken"), "have expired", "renew"),
        (refuse(404, "NoSuchBucket"), "no bucket exports", "export.url"),
        (refuse(400, "a message: AKIDTEST"), "no code", "aws s3 ls"),
        (page("<html></html>"), "not answer like S3", "export.endpoint_url"),
        (page(""), "not answer like S3", "export.endpoint_url"),
        (page('<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>'), "end", ""),
        (
            page(
                f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>{KEY}</Key></Contents>"
                "</ListBucketResult>"
            ),
            "without LastModified",
            "",
        ),
        (raw("HTTP/1.1 200 OK\nContent-Length: 0\nDate: soon"), "not answer like S3", ""),
        *(
            (
                page(
                    f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>{KEY}</Key><Size>1</Size>"
                    f"<ETag>x</ETag><LastModified>{modified}</LastModified></Contents></ListBucketResult>"
                ),
                "not answer like S3",
                "",
            )
            for modified in ("9999-12-31T23:59:59.000Z", "0001-01-01T00:00:00+05:00", "9" * 40, "yesterday")
        ),
    ],
)
async def test_a_listing_that_is_refused_says_why(faulty: FaultServer, fault: Fault, words: str, hint: str) -> None:
    """Each cause has its own sentence and its own command."""
    faulty.listing_script.extend([fault] * 9)
    with pytest.raises(SourceRefused, match=words) as caught:
        await (await bucket_of(faulty)).day_exports()
    assert hint in caught.value.hint and caught.value.hint
    assert "AKIDTEST" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    "date_line",
    [
        "",
        "\nDate: soon",
        "\nDate: Fri, 31 Dec 9999 23:59:59 GMT",
        f"\nDate: Mon, 01 Jan 2026 00:00:00 +{'9' * 30}",
    ],
)
async def test_a_listing_without_a_clock_is_refused(faulty: FaultServer, date_line: str) -> None:
    """Without the server's Date, the age of an object is unknown."""
    text = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    faulty.listing_script.append(raw(f"HTTP/1.1 200 OK\nContent-Length: {len(text)}{date_line}", text))
    with pytest.raises(SourceRefused, match="no Date header"):
        await (await bucket_of(faulty)).day_exports()


async def test_the_clock_of_a_listing_is_the_one_at_its_beginning(faulty: FaultServer) -> None:
    """Of many pages the first one's Date counts: an object cannot look older than it is."""
    text = (
        f"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{KEY}</NextContinuationToken>"
        "</ListBucketResult>"
    )
    head = f"HTTP/1.1 200 OK\nContent-Length: {len(text)}\nDate: Sat, 21 Nov 2026 05:00:00 GMT"
    faulty.listing_script.append(raw(head, text.encode()))
    assert (await (await bucket_of(faulty)).day_exports()).now == datetime(2026, 11, 21, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "faults", [[refuse(503, "SlowDown")], [refuse(429, "Slow")] * 2, [refuse(409, "Slow")] * 2, [hang_up()], [silent()]]
)
async def test_a_listing_gets_over_a_short_trouble(faulty: FaultServer, faults: list[Fault]) -> None:
    """503 and broken connections are retried by the SDK, 429 and 409 by us."""
    faulty.listing_script.extend(faults)
    assert (await listed(await bucket_of(faulty, replace(QUICK, sdk_tries=2)))).size == SIZE


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
async def test_a_listing_that_fails_for_good_is_unreachable(faulty: FaultServer, fault: Fault) -> None:
    """It may recover: SourceUnreachable, after a bounded number of requests."""
    faulty.listing_script.extend([fault] * 99)
    with pytest.raises(SourceUnreachable):
        await (await bucket_of(faulty)).day_exports()
    assert 99 - len(faulty.listing_script) <= QUICK.tries


async def test_a_listing_over_pages_survives_and_ends(faulty: FaultServer) -> None:
    """Pages are followed by their tokens; a repeated token does not cause an endless listing."""
    for n in range(7):
        faulty.put(f"metrics-day-2026-10-0{n + 1}.json.gz", b"x")
    faulty.page_size = 3
    assert len((await (await bucket_of(faulty)).day_exports()).exports) == 8
    again = page(
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        "</ListBucketResult>",
        "application/xml",
    )
    faulty.listing_script.extend([again] * 9)
    with pytest.raises(SourceRefused, match="never ends"):
        await (await bucket_of(faulty)).day_exports()
