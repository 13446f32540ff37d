"""A real S3 server on loopback (moto, in process), its users and their rights, and an AWS chain of the test's own.

``aws_chain`` shuts the machine's own credentials out; ``s3`` is a bucket that asks for no rights; ``s3_auth`` is the
same server with real checks of keys, signatures and policies switched on.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import urllib.request
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore  # type: ignore[import-untyped]  # ships no types
import pytest

from server.s3.client import BucketClient
from server.settings import ExportSettings

from .ceph import Ceph, missing_packages
from .fault_s3 import FaultServer, fault_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime

BUCKET = "exports"
REGION = "us-east-1"
ACCOUNT = "123456789012"
# One certificate authority instead of a hundred and fifty: 20 ms less for each client.
_LAST_LINE = "-----END CERTIFICATE-----\n"
_ONE_AUTHORITY = Path(botocore.__file__).with_name("cacert.pem").read_text().partition(_LAST_LINE)[0] + _LAST_LINE
READ_POLICY = ("s3:ListBucket", "s3:GetObject")


@dataclass
class AwsChain:
    """The files and variables from which the AWS chain takes its credentials; ``use`` may be called again."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def use(self, access_key: str, secret_key: str) -> None:
        """Write the shared credentials file, as ``aws configure`` does."""
        text = f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
        (self.folder / "credentials").write_text(text)

    def configure(self, text: str) -> None:
        """Write the shared configuration file."""
        (self.folder / "config").write_text(text)


@pytest.fixture
def aws_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AwsChain:
    """An AWS chain with nothing in it: no variables, no files, no instance metadata, no proxy."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "aws"
    folder.mkdir()
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (folder / "ca.pem").write_text(_ONE_AUTHORITY)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "ca.pem"))
    return AwsChain(folder, monkeypatch)


def bucket_settings(url: str, endpoint_url: str, region: str | None = REGION, **more: Any) -> ExportSettings:
    """``[export]`` for a bucket on a test's own server."""
    return ExportSettings.model_validate(
        {"url": url, "endpoint_url": endpoint_url, "region": region, **more}, context=None
    )


@cache
def _session() -> Any:
    """One session for all: it keeps the parsed models."""
    import boto3  # type: ignore[import-untyped]  # ships no types

    return boto3.session.Session()


def client_of(url: str, service: str, access_key: str = "AKIDTEST", secret_key: str = "secret-of-the-test") -> Any:
    """A boto3 client with a pool of its own; close it."""
    from botocore.config import Config  # type: ignore[import-untyped]  # ships no types

    return _session().client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=20),
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Load moto and parse the SDK's models once, before the workers are forked."""
    if any("moto_url" in getattr(item, "fixturenames", ()) for item in session.items):
        import moto.server  # noqa: F401

        client_of("http://127.0.0.1:1", "s3").close()
        asyncio.run(BucketClient.prepare())


@dataclass
class S3Server:
    """One bucket on a moto server, as Megaphone sees it."""

    url: str
    bucket: str = BUCKET
    client: Any = field(default=None, repr=False)

    def put(self, key: str, body: bytes = b"", *, modified: datetime | None = None) -> str:
        """Put an object; ``modified`` sets its LastModified. Returns the ETag without quotes."""
        etag: str = self.client.put_object(Bucket=self.bucket, Key=key, Body=body)["ETag"].strip('"')
        if modified is not None:
            from moto.backends import get_backend

            get_backend("s3")[ACCOUNT]["aws"].buckets[self.bucket].keys[key].last_modified = modified.replace(
                tzinfo=None
            )
        return etag

    def delete(self, key: str) -> None:
        """Take an object away."""
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def settings(self, prefix: str = "", **more: Any) -> ExportSettings:
        """``[export]`` for this bucket."""
        return bucket_settings(f"s3://{self.bucket}/{prefix}", self.url, **more)


def _post(url: str, body: bytes = b"") -> None:
    headers = {"Content-Type": "text/plain"}  # as a form, moto would not see the body
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=10) as reply:
        reply.read()


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """A moto server on 127.0.0.1, port 0, for the whole run of a worker."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def moto_client(moto_url: str) -> Iterator[Any]:
    """The client of somebody who may do everything while nobody's rights are checked."""
    with closing(client_of(moto_url, "s3")) as client:
        yield client


@pytest.fixture
def s3(moto_url: str, moto_client: Any, aws_chain: AwsChain) -> S3Server:
    """An empty bucket; any credentials will do, and the chain has some."""
    _post(f"{moto_url}/moto-api/reset")
    aws_chain.use("AKIDTEST", "secret-of-the-test")
    moto_client.create_bucket(Bucket=BUCKET)
    return S3Server(moto_url, BUCKET, moto_client)


FAULTY_KEY = "metrics-day-2026-11-20.json.gz"
FAULTY_BODY = random.Random(1).randbytes(300_000)


@pytest.fixture
async def faulty(aws_chain: AwsChain) -> AsyncIterator[FaultServer]:
    """A scripted fault server with one day in it, `FAULTY_KEY`."""
    aws_chain.use("AKIDTEST", "secret-of-the-test")
    async with fault_server() as running:
        running.put(FAULTY_KEY, FAULTY_BODY)
        yield running


@dataclass
class S3Users:
    """The users of a server that checks keys, signatures and policies; the chain has nobody's keys yet."""

    server: S3Server
    chain: AwsChain
    iam: Any

    def add(self, name: str, actions: tuple[str, ...] = READ_POLICY) -> tuple[str, str]:
        """A user with these rights on the bucket; returns access key and secret key."""
        self.iam.create_user(UserName=name)
        resources = [f"arn:aws:s3:::{self.server.bucket}", f"arn:aws:s3:::{self.server.bucket}/*"]
        if actions:
            statement = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
            policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
            self.iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=policy)
        return self.rotate(name)

    def rotate(self, name: str) -> tuple[str, str]:
        """New keys for a user; the old ones are gone."""
        for old in self.iam.list_access_keys(UserName=name)["AccessKeyMetadata"]:
            self.iam.delete_access_key(UserName=name, AccessKeyId=old["AccessKeyId"])
        new = self.iam.create_access_key(UserName=name)["AccessKey"]
        return new["AccessKeyId"], new["SecretAccessKey"]


@pytest.fixture
def s3_auth(moto_url: str, aws_chain: AwsChain) -> Iterator[S3Users]:
    """An empty bucket on a server that checks every request; an administrator made it."""
    _post(f"{moto_url}/moto-api/reset")
    with closing(client_of(moto_url, "iam")) as anybody:
        anybody.create_user(UserName="admin")
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        anybody.put_user_policy(UserName="admin", PolicyName="all", PolicyDocument=json.dumps(policy))
        key = anybody.create_access_key(UserName="admin")["AccessKey"]
    keys = (key["AccessKeyId"], key["SecretAccessKey"])
    _post(f"{moto_url}/moto-api/reset-auth", b"0")
    try:
        with closing(client_of(moto_url, "s3", *keys)) as client, closing(client_of(moto_url, "iam", *keys)) as iam:
            client.create_bucket(Bucket=BUCKET)
            yield S3Users(S3Server(moto_url, BUCKET, client), aws_chain, iam)
    finally:
        _post(f"{moto_url}/moto-api/reset-auth", b"inf")


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """Ceph's object store, once for all tests of the group ``ceph``; skipped where it is not installed."""
    missing = missing_packages()
    if missing is not None:
        pytest.skip(missing)
    with Ceph.up(tmp_path_factory.mktemp("ceph")) as running:
        yield running
