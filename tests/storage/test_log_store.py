"""The bucket of published logs: what we may do there, and which right is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.errors import StoreError
from server.s3.errors import BucketPlace
from server.storage.log_store import LogStore
from tests.support.fault_s3 import BUCKET, write
from tests.support.faulty_bucket import UNHURRIED
from tests.support.s3 import REGION

if TYPE_CHECKING:
    from aiohttp import web

    from tests.support.fault_s3 import FaultServer, Version
    from tests.support.s3 import S3Users

RIGHTS = ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject")
STATE = ".pickup-point/logs/"


def store_at(url: str) -> LogStore:
    """The store, with little patience."""
    return LogStore(BucketPlace(BUCKET, "logs/", REGION, url, None, "store"), STATE, UNHURRIED)


async def test_four_rights_are_enough_and_each_that_is_missing_is_named(s3_auth: S3Users) -> None:
    """With the key of the policy that it belongs to; nothing is left behind."""
    store = store_at(s3_auth.server.url)
    s3_auth.chain.use(*s3_auth.add("all", RIGHTS))
    assert await store.try_rights()
    assert "Contents" not in s3_auth.server.client.list_objects_v2(Bucket=BUCKET)
    for number, right in enumerate(RIGHTS):
        s3_auth.chain.use(*s3_auth.add(f"user-{number}", tuple(other for other in RIGHTS if other != right)))
        with pytest.raises(StoreError, match=f"{right} is missing") as caught:
            await store.try_rights()
        if right != "s3:ListBucket":
            assert f"put {right} on arn:aws:s3:::{BUCKET}/{STATE}* into the policy" in caught.value.hint


async def test_a_store_that_ignores_the_condition_is_found_out(faulty: FaultServer) -> None:
    """It says 200 to a second write."""

    async def careless(server: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        server.objects.pop(request.match_info["key"], None)
        return await write(server, request, version)

    assert await store_at(faulty.url).try_rights()
    faulty.put_script.extend([careless] * 2)
    assert not await store_at(faulty.url).try_rights()
    assert [key for key in faulty.objects if key.startswith(STATE)] == []


async def test_an_unknown_profile_is_told_as_that(faulty: FaultServer) -> None:
    """`store.profile` names another one of the chain's."""
    place = BucketPlace(BUCKET, "logs/", REGION, faulty.url, "nobody", "store")
    with pytest.raises(StoreError, match=r"no usable credentials .*ProfileNotFound"):
        await LogStore(place, STATE, UNHURRIED).try_rights()
