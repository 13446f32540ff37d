"""The service's own objects in a shared store: what we may do there, and which right is missing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from server.errors import ConfigError, StoreError
from server.publish.nodes import AT_START, refuse_unfit_store, shared_sequence
from server.s3.errors import BucketPlace
from server.s3.objects import ObjectStore
from server.storage.shelf import open_shelf, try_rights
from tests.support.config_text import MINIMAL, parse
from tests.support.fault_s3 import BUCKET, silent, trickle, write
from tests.support.faulty_bucket import UNHURRIED
from tests.support.s3 import REGION

if TYPE_CHECKING:
    from aiohttp import web

    from tests.support.fault_s3 import Fault, FaultServer, Version
    from tests.support.s3 import S3Server, S3Users
    from tests.support.site import Site

RIGHTS = ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject")
STATE = ".pickup-point/logs/"


async def tried(url: str, profile: str | None = None) -> bool:
    """Whether the store keeps the first, after everything was tried there; with little patience."""

    def act() -> bool:
        place = BucketPlace(BUCKET, "logs/", REGION, url, profile, "store")
        with open_shelf(ObjectStore(place, UNHURRIED), STATE) as shelf:
            return try_rights(shelf, shelf.remove)

    return await asyncio.to_thread(act)


async def test_four_rights_are_enough_and_each_that_is_missing_is_named(s3_auth: S3Users) -> None:
    """With the key of the policy that it belongs to; nothing is left behind."""
    url = s3_auth.server.url
    s3_auth.chain.use(*s3_auth.add("all", RIGHTS))
    assert await tried(url)
    assert "Contents" not in s3_auth.server.client.list_objects_v2(Bucket=BUCKET)
    for number, right in enumerate(RIGHTS):
        s3_auth.chain.use(*s3_auth.add(f"user-{number}", tuple(other for other in RIGHTS if other != right)))
        with pytest.raises(StoreError, match=f"{right} is missing") as caught:
            await tried(url)
        if right != "s3:ListBucket":
            assert f"put {right} on arn:aws:s3:::{BUCKET}/{STATE}* into the policy" in caught.value.hint


async def test_a_store_that_ignores_the_condition_is_found_out(faulty: FaultServer, site: Site) -> None:
    """It says 200 to a second write; a service that is to share it does not start."""

    async def careless(server: FaultServer, request: web.Request, version: Version) -> web.StreamResponse:
        server.objects.pop(request.match_info["key"], None)
        return await write(server, request, version)

    assert await tried(faulty.url)
    faulty.put_script.extend([careless] * 2)
    assert not await tried(faulty.url)
    place = f'url = "s3://{BUCKET}/logs"\nregion = "{REGION}"\nendpoint_url = "{faulty.url}"'
    config = parse(f"{MINIMAL}[store]\nshared = true\n{place}\n")
    shared = shared_sequence(config, site.ledger, site.point)
    await refuse_unfit_store(config, shared)
    faulty.put_script.extend([careless] * 2)
    with pytest.raises(ConfigError) as caught:
        await refuse_unfit_store(config, shared)
    assert f"store.shared: is true, but s3://{BUCKET}/logs ignores If-None-Match" in str(caught.value.problems[0])
    assert [key for key in faulty.objects if key.startswith(STATE)] == []


async def test_an_unknown_profile_is_told_as_that(faulty: FaultServer) -> None:
    """`store.profile` names another one of the chain's."""
    with pytest.raises(StoreError, match=r"no usable credentials .*ProfileNotFound"):
        await tried(faulty.url, "nobody")


async def test_of_a_long_sequence_only_what_is_new_is_listed(s3: S3Server) -> None:
    """In pages of a thousand: a sequence that has grown for years costs a listing no more than a new one."""

    def act() -> list[list[str]]:
        place = BucketPlace(s3.bucket, "logs/", REGION, s3.url, None, "store")
        with open_shelf(ObjectStore(place, UNHURRIED), STATE) as shelf:
            return [[shelved.name for shelved in shelf.list("sequence", after)] for after in ("", "2", "3")]

    for number in (1, 2, 3):
        s3.put(f"{STATE}sequence/{number}", b"{}")
    s3.put(f"{STATE}sequences", b"{}")
    assert await asyncio.to_thread(act) == [["1", "2", "3"], ["3"], []]


async def test_a_start_waits_little_for_a_store_that_is_silent(
    faulty: FaultServer, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients wait for the start, and systemd ends one that takes too long: one request, once."""
    monkeypatch.setattr("server.publish.nodes.AT_START", replace(AT_START, silence=0.2))
    asked: list[str] = []

    def away(request: web.Request) -> Fault:
        asked.append(request.method)
        return silent()

    faulty.weather = away
    place = f'url = "s3://{BUCKET}/logs"\nregion = "{REGION}"\nendpoint_url = "{faulty.url}"'
    config = parse(f"{MINIMAL}[store]\nshared = true\n{place}\n")
    shared = shared_sequence(config, site.ledger, site.point)
    with capture_logs() as said:
        await refuse_unfit_store(config, shared)
    assert [line["event"] for line in said] == ["service could not try the shared store"] and asked == ["GET"]


async def test_an_entry_may_take_long_and_no_bucket_is_no_empty_store(faulty: FaultServer, s3: S3Server) -> None:
    """Each piece of an object extends the time for the next; a missing bucket is reported as such."""
    body = b"entry" * 400

    def read(url: str, bucket: str) -> bytes | None:
        patience = replace(UNHURRIED, call=0.6, silence=0.6, least_rate=1)
        place = BucketPlace(bucket, "logs/", REGION, url, None, "store")
        with open_shelf(ObjectStore(place, patience), STATE) as shelf:
            return shelf.read("sequence/00000001", 1 << 20)

    faulty.put(f"{STATE}sequence/00000001", body)
    faulty.script.append(trickle(400, 0.2))
    assert await asyncio.to_thread(read, faulty.url, BUCKET) == body
    assert await asyncio.to_thread(read, s3.url, s3.bucket) is None
    with pytest.raises(StoreError, match="there is no bucket no-such"):
        await asyncio.to_thread(read, s3.url, "no-such")


async def test_an_end_of_the_service_waits_for_no_store(faulty: FaultServer) -> None:
    """A frozen one keeps it longer than systemd waits."""
    asked: list[str] = []

    def away(request: web.Request) -> Fault:
        asked.append(request.method)
        return silent()

    def act() -> None:
        place = BucketPlace(BUCKET, "logs/", REGION, faulty.url, None, "store")
        with open_shelf(ObjectStore(place), STATE, lambda: bool(asked)) as shelf:
            shelf.list("sequence")

    faulty.weather = away
    with pytest.raises(StoreError, match="the service ended"):
        await asyncio.to_thread(act)
    assert asked == ["GET"]
