"""The bucket against Ceph's radosgw: a real object store, with real authorisation, that is killed in mid-read."""

from __future__ import annotations

import asyncio
import io
import random
import threading
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError  # type: ignore[import-untyped]  # ships no types

from server.errors import ExportChanged, SourceRefused, SourceUnreachable, StoreError
from server.megaphone.bucket import Bucket
from server.megaphone.exports import DELIVERY_V2, METRICS, ExportKind, FinalityRule
from server.publish.store_copy import StoreCopy
from server.s3.errors import BucketPlace
from server.s3.objects import ObjectStore
from server.s3.retry import RetryPolicy
from server.storage.log_store import LogStore
from server.storage.shelf import open_shelf, try_rights

from ..support.ceph import OWNER, READER, STRANGER, Ceph
from ..support.s3 import REGION, AwsChain, S3Server, bucket_settings, client_of
from ..support.site import Site, at, log_name, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.megaphone.exports import DayExport

DAY = date(2026, 11, 20)
KEY = f"metrics-day-{DAY}.json.gz"
LARGE = 48 << 20
QUICK = RetryPolicy(connect=1, silence=3, call=10, window=3, tries=3, first_pause=0.05, longest_pause=0.2, sdk_tries=1)
names = iter(f"exports-{n}" for n in range(1000))


@pytest.fixture
def s3(ceph: Ceph, aws_chain: AwsChain) -> Iterator[S3Server]:
    """A new bucket of the owner's, which the reader may list and read; the chain has the reader's keys."""
    aws_chain.use(*READER)
    bucket = next(names)
    with closing(client_of(ceph.url, "s3", *OWNER)) as client:
        client.create_bucket(Bucket=bucket)
        client.put_bucket_policy(Bucket=bucket, Policy=ceph.read_policy(bucket))
        yield S3Server(ceph.url, bucket, client)


async def bucket_of(server: S3Server, prefix: str = "", kind: ExportKind = METRICS) -> Bucket:
    """The bucket as a user's configuration opens it, but with little patience."""
    return await Bucket.open(server.settings(prefix).place, kind, retry=QUICK)


async def listed(bucket: Bucket) -> DayExport:
    """The one day."""
    return (await bucket.day_exports()).exports[DAY]


async def test_an_empty_object_marks_a_day_by_the_stores_clock(s3: S3Server) -> None:
    """Written after the object it proves it final; once the object is written again, it does not."""
    day, rule = datetime.now(UTC).date() - timedelta(days=1), FinalityRule(marked=True)
    key = f"delivery-v2-day-{day}.json.gz"
    s3.put(key, b"x")
    bucket = await bucket_of(s3, kind=DELIVERY_V2)
    states = []
    for written in (None, f"_finalized_delivery_{day:%Y_%m_%d}_1", key):
        if written is not None:
            await asyncio.sleep(1.1)  # the store tells whole seconds
            s3.put(written)
        listing = await bucket.day_exports()
        states.append(rule.state(day, listing.exports[day], listing.now, listing.markers.get(day)))
    assert states[1:] == ["due", "settling"] and states[0] in ("open", "unmarked")


async def test_a_day_is_listed_and_read_whole_with_two_rights(s3: S3Server) -> None:
    """ListBucket and GetObject are enough; the bytes, the ETag, the size and the times are the store's."""
    body = random.Random(1).randbytes(9_000_000)
    etag = s3.put(KEY, body)
    for name in ("impression-day-2026-11-20.json.gz", "metrics-day-2026-13-45.json.gz", f"deeper/{KEY}"):
        s3.put(name, b"x")
    bucket = await bucket_of(s3)
    listing = await bucket.day_exports()
    assert list(listing.exports) == [DAY]
    export = listing.exports[DAY]
    assert (export.key, export.etag, export.size) == (KEY, etag, len(body))
    assert abs(listing.now - datetime.now(UTC)) < timedelta(minutes=1)
    assert timedelta(minutes=-1) < listing.now - export.last_modified < timedelta(minutes=1)
    into = io.BytesIO()
    await bucket.fetch(export, into)
    assert into.getvalue() == body


async def test_a_listing_of_many_pages_under_a_prefix_is_read_to_its_end(s3: S3Server) -> None:
    """Every day is found, and each key is whole."""
    days = [date(2026, 1, 1) + timedelta(days=n) for n in range(9)]
    for day in days:
        s3.put(f"mega phone/metrics-day-{day}.json.gz", b"x")
        s3.put(f"mega phone/impression-day-{day}.json.gz", b"x")
    place = BucketPlace(s3.bucket, "mega phone/", REGION, s3.url)
    exports = (await Bucket(place, retry=QUICK, page_size=4).day_exports()).exports
    assert sorted(exports) == days
    assert exports[days[0]].key == "mega phone/metrics-day-2026-01-01.json.gz"


async def test_a_multipart_object_is_read_by_its_opaque_etag(s3: S3Server) -> None:
    """If-Match works with an ETag that is not an MD5."""
    parts = [random.Random(n).randbytes(5 << 20) for n in range(2)]
    upload = s3.client.create_multipart_upload(Bucket=s3.bucket, Key=KEY)["UploadId"]
    where = {"Bucket": s3.bucket, "Key": KEY, "UploadId": upload}
    etags = [s3.client.upload_part(**where, PartNumber=n, Body=part)["ETag"] for n, part in enumerate(parts, 1)]
    done = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
    s3.client.complete_multipart_upload(**where, MultipartUpload={"Parts": done})
    bucket, into = await bucket_of(s3), io.BytesIO()
    await bucket.fetch(await listed(bucket), into)
    assert into.getvalue() == b"".join(parts)


async def test_a_rewrite_or_a_removal_after_the_listing_is_an_export_changed(s3: S3Server) -> None:
    """Another version's bytes are never given, and a later listing shows the new version."""
    s3.put(KEY, b"first")
    bucket = await bucket_of(s3)
    export = await listed(bucket)
    s3.put(KEY, b"other")
    with pytest.raises(ExportChanged, match="was rewritten"):
        await bucket.fetch(export, io.BytesIO())
    into = io.BytesIO()
    await bucket.fetch(await listed(bucket), into)
    assert into.getvalue() == b"other"
    export = await listed(bucket)
    s3.delete(KEY)
    with pytest.raises(ExportChanged, match="no longer there"):
        await bucket.fetch(export, io.BytesIO())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("NOSUCHKEY", "x"), "refused the credentials"),
        ((READER[0], "wrong-secret"), "refused the credentials"),
        (STRANGER, "s3:ListBucket"),
    ],
)
async def test_refused_credentials_are_reported(
    s3: S3Server, aws_chain: AwsChain, keys: tuple[str, str], words: str
) -> None:
    """A wrong key, a wrong secret and a missing permission each have a sentence; correct ones work on the next call."""
    s3.put(KEY, b"body")
    bucket = await bucket_of(s3)
    aws_chain.use(*keys)
    with pytest.raises(SourceRefused, match=words) as caught:
        await bucket.day_exports()
    assert keys[0] not in f"{caught.value}{caught.value.hint}"
    aws_chain.use(*READER)
    assert (await listed(bucket)).size == 4


async def test_no_such_bucket_is_reported(s3: S3Server) -> None:
    """The bucket in the configuration does not exist."""
    bucket = await Bucket.open(bucket_settings("s3://nowhere", s3.url).place, retry=QUICK)
    with pytest.raises(SourceRefused, match="no bucket nowhere"):
        await bucket.day_exports()


class Killing(io.BytesIO):
    """A file that kills the gateway when it holds this many bytes, and starts it again on request."""

    def __init__(self, ceph: Ceph, at: int, *, comes_back: bool) -> None:
        super().__init__()
        self._ceph = ceph
        self._at = at
        self._comes_back = comes_back
        self.killed = False
        self.starting = threading.Thread(target=ceph.start_gateway)

    def write(self, data: object, /) -> int:
        if not self.killed and self.tell() >= self._at:
            self.killed = True
            self._ceph.kill_gateway()
            if self._comes_back:
                self.starting.start()
        return super().write(data)  # type: ignore[arg-type]  # a buffer, as BytesIO takes


async def test_a_gateway_killed_in_mid_read_that_comes_back_costs_no_byte(s3: S3Server, ceph: Ceph) -> None:
    """After kill -9 the read is resumed where it was cut off, as soon as radosgw is back."""
    body = random.Random(2).randbytes(LARGE)
    s3.put(KEY, body)
    patience = RetryPolicy(connect=1, silence=5, call=10, tries=60, first_pause=0.1, longest_pause=0.5, sdk_tries=1)
    bucket = await Bucket.open(s3.settings().place, retry=patience)
    into = Killing(ceph, 5 << 20, comes_back=True)
    await bucket.fetch(await listed(bucket), into)
    await asyncio.to_thread(into.starting.join)
    assert into.killed and into.getvalue() == body


async def test_a_gateway_killed_in_mid_read_that_stays_away_is_unreachable(s3: S3Server, ceph: Ceph) -> None:
    """The read ends with SourceUnreachable; when radosgw is back, the same bucket reads the day whole."""
    body = random.Random(3).randbytes(LARGE)
    s3.put(KEY, body)
    bucket = await bucket_of(s3)
    export = await listed(bucket)
    into = Killing(ceph, 5 << 20, comes_back=False)
    try:
        with pytest.raises(SourceUnreachable, match="cannot be connected to"):
            await bucket.fetch(export, into)
        with pytest.raises(SourceUnreachable):
            await bucket.day_exports()
    finally:
        await asyncio.to_thread(ceph.start_gateway)
    assert into.killed
    again = io.BytesIO()
    await bucket.fetch(await listed(bucket), again)
    assert again.getvalue() == body


async def test_a_rewrite_while_the_gateway_is_away_is_an_export_changed(s3: S3Server, ceph: Ceph) -> None:
    """The rest of a new version is not appended to the beginning of the old one by a read that is resumed."""
    s3.put(KEY, random.Random(4).randbytes(LARGE))
    patience = RetryPolicy(connect=1, silence=5, call=10, tries=60, first_pause=0.1, longest_pause=0.5, sdk_tries=1)
    bucket = await Bucket.open(s3.settings().place, retry=patience)
    export = await listed(bucket)

    class Rewriting(Killing):
        def write(self, data: object, /) -> int:
            written = super().write(data)
            if self.starting.ident is not None and self.starting.is_alive():
                self.starting.join()
                s3.put(KEY, random.Random(5).randbytes(LARGE))
            return written

    into = Rewriting(ceph, 5 << 20, comes_back=True)
    with pytest.raises(ExportChanged):
        await bucket.fetch(export, into)
    assert into.killed


async def test_published_logs_lie_in_a_real_store_too(
    site: Site, s3: S3Server, ceph: Ceph, aws_chain: AwsChain
) -> None:
    """Written once, on the condition; its gateway dies meanwhile; what was pruned is removed, and nothing else."""
    aws_chain.use(*OWNER)
    place = BucketPlace(s3.bucket, "for triton/", REGION, s3.url, None, "store")

    def keeps_the_first() -> bool:
        with open_shelf(ObjectStore(place, QUICK), ".pickup-point/for triton/") as shelf:
            return try_rights(shelf, shelf.remove)

    assert await asyncio.to_thread(keeps_the_first)
    copy = StoreCopy(LogStore(place, QUICK), site.ledger, site.point, lambda: False)
    site.put(rows_of(DAY, 40), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    ceph.kill_gateway()
    try:
        assert "cannot be connected to" in (await copy.follow()).error
    finally:
        await asyncio.to_thread(ceph.start_gateway)
    site.put(rows_of(DAY, 45), at(1, "09:00"))
    await site.round(at(1, "10:15"))
    assert (await copy.follow()).there == (str(log_name()), str(log_name(1)))
    for log in site.ledger.logs():
        found = s3.client.get_object(Bucket=s3.bucket, Key=f"for triton/{log.name}")
        assert found["Body"].read() == (site.point.pickup_dir / str(log.name)).read_bytes()
        assert (found["ContentType"], found["Metadata"]["sha256"]) == ("application/gzip", log.sha256)
        assert "ContentEncoding" not in found
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.client.put_object(Bucket=s3.bucket, Key=f"for triton/{log_name()}", Body=b"", IfNoneMatch="*")
    site.prune(at(62, "06:00"))
    assert (await copy.follow()).there == ()
    assert "Contents" not in s3.client.list_objects_v2(Bucket=s3.bucket)


async def test_two_nodes_publish_by_a_real_store(tmp_path: Path, s3: S3Server, ceph: Ceph, aws_chain: AwsChain) -> None:
    """Its condition decides; the gateway dies when one of them publishes; both show the same in the end."""
    aws_chain.use(*OWNER)
    place = BucketPlace(s3.bucket, "logs/", REGION, s3.url, None, "store")
    shared = {"store": True, "open_shelf": partial(open_shelf, ObjectStore(place, QUICK), ".pickup-point/logs/")}
    day = datetime.now(UTC).date() - timedelta(days=1)  # by the store's own clock, which dates what is published
    nodes = [Site(tmp_path / word, exports=tmp_path / "exports", **shared) for word in "ab"]
    try:
        nodes[0].put(rows_of(day, 40), at(1, "04:10", day), day)
        await asyncio.gather(*(site.round(at(1, "05:35", day)) for site in nodes))
        nodes[0].put(rows_of(day, 45), at(1, "09:00", day), day)
        ceph.kill_gateway()
        try:
            with pytest.raises(StoreError):
                await nodes[0].round(at(1, "10:15", day))
        finally:
            await asyncio.to_thread(ceph.start_gateway)
        for site in (*nodes, nodes[0]):
            await site.round(at(1, "11:15", day))
        shown = [{log.name: (log.sha256, log.mtime) for log in site.ledger.logs()} for site in nodes]
        assert shown[0] == shown[1]
        for site in nodes:
            site.check_folder()
            assert site.standing_ids() == {f"{day}-{n}": 1 for n in range(45)}
    finally:
        for site in nodes:
            site.stop()
