"""The bucket against a real S3 server: what is listed, what is read, and what each refusal says."""

from __future__ import annotations

import asyncio
import io
import random
import sys
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from server.errors import ExportChanged, SourceError, SourceRefused, SourceUnreachable
from server.megaphone.bucket import Bucket
from server.megaphone.exports import DELIVERY_V2
from server.megaphone.source import open_source
from server.s3.client import BucketClient
from server.s3.errors import Answer, BucketPlace
from server.s3.retry import RetryPolicy

from ..support.s3 import BUCKET, READ_POLICY, REGION, AwsChain, S3Server, S3Users, bucket_settings

if TYPE_CHECKING:
    from pathlib import Path

DAY = date(2026, 11, 20)
KEY = f"metrics-day-{DAY}.json.gz"
THREE = "there are 3 objects at s3://exports, none named metrics-day-YYYY-MM-DD.json.gz"
QUICK = RetryPolicy(connect=1, silence=1, call=8, window=1, tries=3, first_pause=0.01, longest_pause=0.05, sdk_tries=1)


async def bucket_of(server: S3Server, prefix: str = "") -> Bucket:
    """The bucket as a user's configuration opens it, but with little patience."""
    return await Bucket.open(server.settings(prefix).place, retry=QUICK)


async def read(bucket: Bucket, day: date = DAY) -> bytes:
    """List, then read one day."""
    into = io.BytesIO()
    await bucket.fetch((await bucket.day_exports()).exports[day], into)
    return into.getvalue()


async def test_a_day_is_listed_and_read_whole(s3: S3Server) -> None:
    """What was put is what is read, byte for byte, after what the file held already."""
    body = random.Random(1).randbytes(3_000_000)
    etag = s3.put(KEY, body, modified=datetime(2026, 11, 21, 3, 4, 5, tzinfo=UTC))
    bucket = await bucket_of(s3)
    listing = await bucket.day_exports()
    export = listing.exports[DAY]
    assert (export.day, export.key, export.etag, export.size) == (DAY, KEY, etag, len(body))
    assert export.last_modified == datetime(2026, 11, 21, 3, 4, 5, tzinfo=UTC)
    into = io.BytesIO()
    into.write(b"before")
    await bucket.fetch(export, into)
    assert into.getvalue() == b"before" + body
    await bucket.close()


@pytest.mark.parametrize(
    ("keys", "prefix", "said"),
    [
        ([], "", "there is nothing at s3://exports"),
        (["a\x07b"], "", "there is one object at s3://exports, none named metrics-day-YYYY-MM-DD.json.gz; it is a?b"),
        (
            [f"delivery-v2-day-{DAY}.json.gz", f"_finalized_delivery_{DAY}_1", f"x/{KEY}", "impression-day-1.json.gz"],
            "",
            f"{THREE}, but Delivery exports V2 and Impression exports; did you mean s3://exports/x?",
        ),
        ([f"a/b/{KEY}", "a/"], "a", "there is nothing at s3://exports/a; did you mean s3://exports/a/b?"),
        ([KEY], "a/b", "there is nothing at s3://exports/a/b; did you mean s3://exports?"),
    ],
)  # fmt: skip
async def test_without_an_export_the_listing_says_what_is_there_instead(
    s3: S3Server, keys: list[str], prefix: str, said: str
) -> None:
    """How many other objects, whose they look, and where in the bucket exports are."""
    for key in keys:
        s3.put(key)
    bucket = await bucket_of(s3, prefix)
    listing = await bucket.day_exports()
    assert not listing.exports and listing.others.sentence(bucket.name) == said


async def test_the_newest_marker_of_a_day_counts_however_it_spells_the_date(s3: S3Server) -> None:
    """Over several pages, with both kinds side by side; whoever reads the other kind sees none."""
    at = datetime(2026, 11, 21, 12, 10, tzinfo=UTC)
    for n, key in enumerate((f"{DAY}_1", f"{DAY:%Y_%m_%d}_2", f"{DAY:%Y_%m_%d}_0", "2026-11-21_9", "x_2026-11-21")):
        s3.put(f"_finalized_delivery_{key}", modified=at + timedelta(hours=(0, 2, 1, 3, 4)[n]))
    for key in (KEY, f"delivery-v2-day-{DAY}.json.gz", f"_finalized_impressions_{DAY}_1"):
        s3.put(key, b"x", modified=at)
    place = s3.settings().place
    assert isinstance(place, BucketPlace)
    listing = await Bucket(place, DELIVERY_V2, retry=QUICK, page_size=2).day_exports()
    assert {day: export.key for day, export in listing.exports.items()} == {DAY: f"delivery-v2-day-{DAY}.json.gz"}
    assert listing.markers == {DAY: at + timedelta(hours=2), DAY + timedelta(days=1): at + timedelta(hours=3)}
    other = await Bucket(place, retry=QUICK).day_exports()
    assert (list(other.exports), other.markers) == ([DAY], {})


async def test_a_prefix_may_hold_what_a_web_address_would_not(s3: S3Server) -> None:
    """``?``, ``#`` and ``%`` stand for themselves in a key."""
    s3.put(f"a?b#c%20d/{KEY}", b"content")
    assert await read(await bucket_of(s3, "a?b#c%20d")) == b"content"


@pytest.mark.parametrize("endpoint", [None, "https://accesspoint.vpce-1.s3.eu-west-1.vpce.amazonaws.com"])
async def test_an_access_point_is_asked_at_its_own_host(endpoint: str | None, aws_chain: AwsChain) -> None:
    """In the region of its ARN, whatever the chain says, and also behind a private endpoint."""
    aws_chain.use("AKIDTEST", "secret")
    arn = "arn:aws:s3:eu-west-1:123456789012:accesspoint/mine"
    place = bucket_settings(f"s3://{arn}/a#b", endpoint, None).place
    assert isinstance(place, BucketPlace)
    async with BucketClient(place, QUICK).connect() as client:
        asked = await client.generate_presigned_url("get_object", Params={"Bucket": place.bucket, "Key": "a#b/x"})
    host = (endpoint or "https://s3-accesspoint.eu-west-1.amazonaws.com").removeprefix("https://")
    assert asked.startswith(f"https://mine-123456789012.{host}/a%23b/x?")
    assert "eu-west-1" in asked
    said = place.meaning(Answer(403, "AccessDenied"), "a#b/x").error
    assert f"{arn}/object/a#b/*" in said.hint and f"'s3://{arn}/a#b/x'" in said.hint


async def test_an_empty_object_is_read_as_empty(s3: S3Server) -> None:
    """An empty object is not a failure of the source (gzip will complain later)."""
    s3.put(KEY, b"")
    assert await read(await bucket_of(s3)) == b""


async def test_the_time_is_the_servers(s3: S3Server) -> None:
    """`Listing.now` is the Date header of the reply, in whole seconds and in UTC."""
    now = (await (await bucket_of(s3)).day_exports()).now
    assert now.utcoffset() == timedelta(0) and now.microsecond == 0
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=5)


IGNORED = (
    "impression-day-2026-11-20.json.gz",
    "delivery-v2-day-2026-11-20.json.gz",
    "impressions-v2-day-2026-11-20.json.gz",
    "_finalized_delivery_2026-11-20_1763697600",
    "_finalized_delivery_2026_11_20_1763697600",
    "metrics-day-2026-13-45.json.gz",
    "metrics-day-2026-02-30.json.gz",
    "metrics-day-2026-11-20.json",
    "metrics-day-2026-11-20.json.gz.tmp",
    "metrics-day-2026-11-20.json.gz/inside",
    "Xmetrics-day-2026-11-20.json.gz",
    "old/metrics-day-2026-11-19.json.gz",
    "metrics-day-٢٠٢٦-11-20.json.gz",
)


@pytest.mark.parametrize("prefix", ["", "deliveries/mega phone+1"])
async def test_only_exact_names_directly_under_the_prefix_count(s3: S3Server, prefix: str) -> None:
    """Other exports, markers, impossible days, subfolders and other prefixes are ignored."""
    under = f"{prefix}/" if prefix else ""
    for name in IGNORED:
        s3.put(under + name, b"x")
    if prefix:
        s3.put("metrics-day-2026-11-18.json.gz", b"x")
        s3.put("deliveries/mega phone+1metrics-day-2026-11-18.json.gz", b"x")
    assert (await (await bucket_of(s3, prefix)).day_exports()).exports == {}
    s3.put(under + KEY, b"body")
    bucket = await bucket_of(s3, prefix)
    assert {day: export.key for day, export in (await bucket.day_exports()).exports.items()} == {DAY: under + KEY}
    assert await read(bucket) == b"body"
    assert bucket.name == f"s3://{BUCKET}/{prefix}".rstrip("/")


async def test_a_listing_of_many_pages_is_read_to_its_end(s3: S3Server) -> None:
    """Every day is found, however many pages it takes and whatever is between."""
    days = [date(2026, 1, 1) + timedelta(days=n) for n in range(11)]
    for day in days:
        s3.put(f"metrics-day-{day}.json.gz", b"x")
        s3.put(f"impression-day-{day}.json.gz", b"x")
    bucket = Bucket(BucketPlace(BUCKET, "", REGION, s3.url), retry=QUICK, page_size=4)
    assert sorted((await bucket.day_exports()).exports) == days


async def test_a_rewrite_after_the_listing_is_an_export_changed(s3: S3Server) -> None:
    """The bytes of another version are never given for the listed one."""
    s3.put(KEY, b"first")
    bucket = await bucket_of(s3)
    export = (await bucket.day_exports()).exports[DAY]
    s3.put(KEY, b"other")
    into = io.BytesIO()
    with pytest.raises(ExportChanged, match="was rewritten"):
        await bucket.fetch(export, into)
    assert into.getvalue() == b""


async def test_an_object_that_vanished_is_an_export_changed(s3: S3Server) -> None:
    """A 404 on reading means that the day must be listed again."""
    s3.put(KEY, b"first")
    bucket = await bucket_of(s3)
    export = (await bucket.day_exports()).exports[DAY]
    s3.delete(KEY)
    with pytest.raises(ExportChanged, match="no longer there"):
        await bucket.fetch(export, io.BytesIO())


async def test_a_multipart_object_is_read_by_its_opaque_etag(s3: S3Server) -> None:
    """The ETag of a multipart upload is not an MD5, and works all the same."""
    parts = [random.Random(n).randbytes(5 << 20) for n in range(2)]
    upload = s3.client.create_multipart_upload(Bucket=BUCKET, Key=KEY)["UploadId"]
    done = [
        {
            "PartNumber": n,
            "ETag": s3.client.upload_part(Bucket=BUCKET, Key=KEY, UploadId=upload, PartNumber=n, Body=part)["ETag"],
        }
        for n, part in enumerate(parts, 1)
    ]
    s3.client.complete_multipart_upload(Bucket=BUCKET, Key=KEY, UploadId=upload, MultipartUpload={"Parts": done})
    bucket = await bucket_of(s3)
    assert (await bucket.day_exports()).exports[DAY].etag.endswith("-2")
    assert await read(bucket) == b"".join(parts)


async def test_the_policy_of_the_readme_is_enough(s3_auth: S3Users) -> None:
    """ListBucket and GetObject on one bucket, and no more, list and read a day."""
    s3_auth.chain.use(*s3_auth.add("reader", READ_POLICY))
    s3_auth.server.put(KEY, b"body")
    assert await read(await bucket_of(s3_auth.server)) == b"body"


async def test_rotated_credentials_are_taken_up_without_a_restart(s3_auth: S3Users) -> None:
    """New keys in the shared file work on the next call, and no call with the old ones is needed."""
    s3_auth.chain.use(*s3_auth.add("reader"))
    s3_auth.server.put(KEY, b"body")
    bucket = await bucket_of(s3_auth.server)
    export = (await bucket.day_exports()).exports[DAY]
    s3_auth.chain.use(*s3_auth.rotate("reader"))
    into = io.BytesIO()
    await bucket.fetch(export, into)
    assert into.getvalue() == b"body"
    assert DAY in (await bucket.day_exports()).exports


async def test_credentials_rotated_between_two_tries_are_taken_up(
    s3_auth: S3Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 403 is retried once, with the keys that the chain gives by then."""
    s3_auth.chain.use(*s3_auth.add("reader"))
    s3_auth.server.put(KEY, b"body")
    bucket = await bucket_of(s3_auth.server)
    new = s3_auth.rotate("reader")
    waited = []

    async def rotate(seconds: float) -> None:
        waited.append(seconds)
        s3_auth.chain.use(*new)

    monkeypatch.setattr("server.s3.client.asyncio.sleep", rotate)
    assert DAY in (await bucket.day_exports()).exports
    assert waited == [0.0]


def checked_text(error: SourceError, *secrets: str) -> str:
    """Return the sentence and the hint, which must both exist and contain no secret."""
    text = f"{error}\n{error.hint}"
    assert str(error) and error.hint
    assert not [secret for secret in secrets if secret in text]
    return text


async def test_no_credentials_is_reported(s3: S3Server, aws_chain: AwsChain) -> None:
    """An empty chain: a sentence of its own, and where to put credentials."""
    (aws_chain.folder / "credentials").unlink()
    with pytest.raises(SourceRefused) as caught:
        await (await bucket_of(s3)).day_exports()
    assert "no usable credentials" in str(caught.value) and "aws configure" in checked_text(caught.value)


async def test_half_credentials_are_reported(s3: S3Server, aws_chain: AwsChain) -> None:
    """An access key without its secret is not blamed on the endpoint."""
    (aws_chain.folder / "credentials").write_text("[default]\naws_access_key_id = AKIDHALF\n")
    with pytest.raises(SourceRefused, match=r"no usable credentials .*PartialCredentials") as caught:
        await (await bucket_of(s3)).day_exports()
    checked_text(caught.value, "AKIDHALF")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo no-json-but-SECRET", "CredentialRetrieval|JSONDecode"),
        ("echo SECRET >&2; exit 3", "CredentialRetrieval"),
    ],
)
async def test_a_broken_credential_process_is_reported(
    s3: S3Server, aws_chain: AwsChain, script: str, why: str
) -> None:
    """A credential process that fails gives a sentence, and nothing of what it printed."""
    (aws_chain.folder / "credentials").unlink()
    program = aws_chain.folder / "process.sh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    aws_chain.configure(f"[default]\ncredential_process = {program}\n")
    with pytest.raises(SourceRefused, match=why) as caught:
        await (await bucket_of(s3)).day_exports()
    checked_text(caught.value, "SECRET")


async def test_a_missing_web_identity_token_is_reported(
    s3: S3Server, aws_chain: AwsChain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain's FileNotFoundError names the file, and is not taken for our disk."""
    (aws_chain.folder / "credentials").unlink()
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    with pytest.raises(SourceRefused, match=r"no usable credentials .*token"):
        await (await bucket_of(s3)).day_exports()


async def test_an_unknown_profile_is_reported(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that is not in the files is a matter of credentials."""
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    with pytest.raises(SourceRefused, match="ProfileNotFound"):
        await (await bucket_of(s3)).day_exports()


@pytest.mark.parametrize("wrong", ["access key", "secret key"])
async def test_wrong_credentials_are_reported(s3_auth: S3Users, wrong: str) -> None:
    """A wrong key is distinguished from a missing permission, and is never printed."""
    access, secret = s3_auth.add("reader")
    keys = ("AKIAWRONGWRONGWRONG1", secret) if wrong == "access key" else (access, "wrong-secret-key")
    s3_auth.chain.use(*keys)
    with pytest.raises(SourceRefused, match="refused the credentials") as caught:
        await (await bucket_of(s3_auth.server)).day_exports()
    assert "aws sts get-caller-identity" in checked_text(caught.value, *keys)


async def test_no_right_to_list_is_reported(s3_auth: S3Users) -> None:
    """Without s3:ListBucket the sentence names that right."""
    keys = s3_auth.add("getter", ("s3:GetObject",))
    s3_auth.chain.use(*keys)
    with pytest.raises(SourceRefused, match="s3:ListBucket") as caught:
        await (await bucket_of(s3_auth.server)).day_exports()
    assert f"aws s3 ls s3://{BUCKET}/" in checked_text(caught.value, *keys)


async def test_no_right_to_read_is_reported(s3_auth: S3Users) -> None:
    """Without s3:GetObject the listing works, and the read names that right."""
    keys = s3_auth.add("lister", ("s3:ListBucket",))
    s3_auth.chain.use(*keys)
    s3_auth.server.put(KEY, b"body")
    with pytest.raises(SourceRefused, match="s3:GetObject") as caught:
        await read(await bucket_of(s3_auth.server))
    assert f"arn:aws:s3:::{BUCKET}/*" in checked_text(caught.value, *keys)


async def test_no_such_bucket_is_reported(s3: S3Server) -> None:
    """A bucket that is not there is reported with its name and the endpoint's, on listing and on reading."""
    s3.put(KEY, b"body")
    export = (await (await bucket_of(s3)).day_exports()).exports[DAY]
    bucket = await Bucket.open(bucket_settings("s3://nowhere", s3.url).place, retry=QUICK)
    with pytest.raises(SourceRefused, match="no bucket nowhere at 127") as caught:
        await bucket.day_exports()
    assert "export.url" in checked_text(caught.value)
    with pytest.raises(SourceRefused, match="no bucket nowhere"):
        await bucket.fetch(export, io.BytesIO())


async def test_an_endpoint_where_nobody_listens_is_reported(aws_chain: AwsChain, unused_tcp_port: int) -> None:
    """A refused connection is SourceUnreachable: the server may come back."""
    aws_chain.use("AKIDTEST", "secret")
    settings = bucket_settings("s3://exports", f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(SourceUnreachable, match=f"127.0.0.1:{unused_tcp_port} cannot be connected to") as caught:
        await (await Bucket.open(settings.place, retry=QUICK)).day_exports()
    assert f"curl -sI http://127.0.0.1:{unused_tcp_port}/" in checked_text(caught.value, "secret")


async def test_a_password_in_the_endpoint_is_never_said(s3: S3Server) -> None:
    """An endpoint URL with a password does not work, and the sentence does not contain the password."""
    bucket = await Bucket.open(
        bucket_settings("s3://exports", s3.url.replace("//", "//me:pass-word@")).place, retry=QUICK
    )
    with pytest.raises(SourceUnreachable) as caught:
        await bucket.day_exports()
    checked_text(caught.value, "pass-word")


async def test_a_name_that_does_not_resolve_is_reported(aws_chain: AwsChain) -> None:
    """A misspelt host is SourceUnreachable, with the host in the sentence."""
    aws_chain.use("AKIDTEST", "secret")
    bucket = await Bucket.open(bucket_settings("s3://exports", "http://s3.nowhere.invalid").place, retry=QUICK)
    with pytest.raises(SourceUnreachable, match=r"s3\.nowhere\.invalid"):
        await bucket.day_exports()


async def test_a_server_that_is_no_tls_server_is_reported(s3: S3Server) -> None:
    """Speaking https to a plain port does not end in a foreign exception."""
    settings = bucket_settings(f"s3://{BUCKET}", s3.url.replace("http:", "https:"))
    bucket = await Bucket.open(settings.place, retry=QUICK)
    with pytest.raises((SourceRefused, SourceUnreachable)) as caught:
        await bucket.day_exports()
    checked_text(caught.value)


class FullDisk(io.BytesIO):
    """A file on a disk that is full after the first mebibyte."""

    def write(self, data: object, /) -> int:
        if self.tell() >= 1 << 20:
            raise OSError(28, "No space left on device")
        return super().write(data)  # type: ignore[arg-type]  # a buffer, as BytesIO takes


async def test_a_full_disk_is_reported_as_what_it_is(s3: S3Server) -> None:
    """ENOSPC while writing is not the source's fault, and is not retried."""
    s3.put(KEY, bytes(4 << 20))
    bucket = await bucket_of(s3)
    with pytest.raises(OSError, match="No space left") as caught:
        await bucket.fetch((await bucket.day_exports()).exports[DAY], FullDisk())
    assert caught.value.errno == 28


async def test_a_file_that_takes_bytes_in_parts_gets_them_all(s3: S3Server, tmp_path: Path) -> None:
    """An unbuffered file may write less than it was given; nothing is lost."""
    body = random.Random(2).randbytes(2_500_000)
    s3.put(KEY, body)

    class Sparing(io.FileIO):
        def write(self, data: object, /) -> int:
            return super().write(memoryview(data)[:100_000])  # type: ignore[arg-type]  # a buffer

    bucket = await bucket_of(s3)
    export = (await bucket.day_exports()).exports[DAY]
    with Sparing(tmp_path / "download", "w+") as into:
        await bucket.fetch(export, into)
    assert (tmp_path / "download").read_bytes() == body


async def test_two_operations_at_once_do_not_disturb_each_other(s3: S3Server) -> None:
    """Reads and listings of one bucket may run side by side."""
    bodies = {DAY - timedelta(days=n): random.Random(n).randbytes(300_000) for n in range(4)}
    for day, body in bodies.items():
        s3.put(f"metrics-day-{day}.json.gz", body)
    bucket = await bucket_of(s3)
    assert await asyncio.gather(*(read(bucket, day) for day in bodies)) == list(bodies.values())


async def test_a_connection_leaves_no_handler_to_the_next(aws_chain: AwsChain) -> None:
    """The SDK's own are shared by all; what stops redirects into other regions is added to each once."""
    aws_chain.use("AKIDTEST", "secret")
    place = bucket_settings("s3://exports", "http://127.0.0.1:1").place
    assert isinstance(place, BucketPlace)
    for _ in range(2):
        async with BucketClient(place, QUICK).connect() as client:
            handlers = client.meta.events._emitter._handlers.prefix_search("before-call.s3")
            assert [handler.__name__ for handler in handlers].count("_stay_in_region") == 1


async def test_open_source_gives_what_the_url_names(s3: S3Server, tmp_path: Path) -> None:
    """s3:// is a bucket and anything else is a folder; both have the same methods."""
    bucket = await open_source(s3.settings().place)
    folder = await open_source(bucket_settings(tmp_path.as_uri(), s3.url).place)
    assert (bucket.name, folder.name) == (f"s3://{BUCKET}", str(tmp_path))
    for source in (bucket, folder):
        assert (await source.day_exports()).exports == {}
        await source.close()


async def test_a_folder_never_loads_the_aws_sdk(tmp_path: Path) -> None:
    """`open_source` imports the bucket module only for a bucket."""
    program = (
        "import asyncio, sys\n"
        "from server.settings import ExportSettings\nfrom server.megaphone.source import open_source\n"
        f"asyncio.run(open_source(ExportSettings(url={tmp_path.as_uri()!r}).place))\n"
        "sys.exit(any(name.startswith(('aiobotocore', 'botocore', 'aiohttp')) for name in sys.modules))\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0
