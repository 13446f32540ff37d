"""The bucket follows the folder: what is published lies there too, whatever the store does meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from server.publish.store_copy import StoreCopy
from server.publish.store_state import STORE
from server.s3.errors import BucketPlace
from server.storage.log_store import LogStore
from tests.support.fault_s3 import BUCKET, cut, done_but, hang_up, page, redirect, refuse, silent
from tests.support.faulty_bucket import UNHURRIED
from tests.support.s3 import REGION
from tests.support.site import DAY, Site, at, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiohttp import web

    from tests.support.fault_s3 import Fault, FaultServer
    from tests.support.s3 import S3Users

PREFIX = "partner/logs/"
LOGS = [name(number) for number in range(4)]


def copy_of(site: Site, url: str, bucket: str = BUCKET) -> StoreCopy:
    """What makes a store follow, as a start of the service makes it."""
    place = BucketPlace(bucket, PREFIX, REGION, url, None, "store")
    return StoreCopy(LogStore(place, UNHURRIED), site.ledger, site.point, lambda: False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A day in four logs; no test changes it."""
    site = Site(tmp_path_factory.mktemp("site"), max_rows_per_file=10)
    site.put(rows_of(DAY, 40), at(1, "04:10"))
    asyncio.run(site.round(at(1, "05:35")))
    assert site.files() == LOGS
    yield site
    site.stop()


@pytest.fixture(autouse=True)
def _forgotten(published: Site) -> None:
    """Nothing is known of a store."""
    published.ledger.note(**{STORE: None})


def in_order(faulty: FaultServer, site: Site) -> bool:
    """Whether the store holds what the folder holds, byte by byte, and got it in the order of publication, once."""
    keys = [f"{PREFIX}{file}" for file in LOGS]
    whole = all(faulty.objects[key].body == (site.point.pickup_dir / key[len(PREFIX) :]).read_bytes() for key in keys)
    return whole and faulty.written == keys and faulty.removed == []


async def test_a_bucket_holds_what_the_folder_holds_with_no_more_rights_than_the_manual_says(
    site: Site, s3_auth: S3Users
) -> None:
    """The same bytes as gzip without a Content-Encoding; late files come, pruned ones go; nothing else lies there."""
    s3_auth.chain.use(*s3_auth.add("writer", ("s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject")))
    copy, client = copy_of(site, s3_auth.server.url), s3_auth.server.client
    site.put(rows_of(DAY, 40), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    assert (await copy.follow()).there == (name(),)
    site.put(rows_of(DAY, 45), at(1, "09:00"))
    await site.round(at(1, "10:15"))
    assert (await copy.follow()).there == (name(), name(1))
    for log in site.ledger.logs():
        found = client.get_object(Bucket=BUCKET, Key=f"{PREFIX}{log.name}")
        assert found["Body"].read() == (site.point.pickup_dir / str(log.name)).read_bytes()
        assert found["ContentType"] == "application/gzip" and "ContentEncoding" not in found
        assert found["Metadata"] == {"sha256": log.sha256, "mtime": str(log.mtime)}
    for now, there in ((at(61, "06:00"), [name(1)]), (at(62, "06:00"), [])):
        site.prune(now)
        assert [*(await copy.follow()).there] == there
        held = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        assert [entry["Key"] for entry in held] == [f"{PREFIX}{file}" for file in there]


@pytest.mark.parametrize(
    "fault",
    {
        "sent, and lost": hang_up(),
        "done, and its answer lost": done_but(hang_up(reset=True)),
        "done, and no answer in time": done_but(silent()),
        "no answer": silent(),
        "overloaded": refuse(503, "SlowDown"),
        "done, and called overloaded": done_but(refuse(500, "InternalError")),
        "two writes at once": refuse(409, "ConditionalRequestConflict"),
        "done, and called a conflict": done_but(refuse(409, "ConditionalRequestConflict")),
        "sent elsewhere": redirect("http://127.0.0.1:9/"),
        "a page of a proxy": page("<html>"),
        "not allowed": refuse(403, "AccessDenied"),
    }.items(),
    ids=lambda pair: pair[0],
)
async def test_a_write_that_goes_wrong_is_made_up_for_in_order(
    published: Site, faulty: FaultServer, fault: tuple[str, Fault]
) -> None:
    """Whether it was done is looked up, never guessed; what comes after it waits for it."""
    faulty.weather = lambda request: fault[1] if request.method == "PUT" and len(faulty.written) == 2 else None
    copy = copy_of(published, faulty.url)
    state = await copy.follow()
    assert len(state.there) >= 2 and set(state.there) <= {key[len(PREFIX) :] for key in faulty.written}
    faulty.weather = lambda _: None
    for _ in range(2):
        state = await copy.follow()
    assert (state.there, state.error, state.wrong) == (tuple(LOGS), "", ())
    assert in_order(faulty, published)


@pytest.mark.parametrize("seed", range(2))
async def test_a_store_that_cuts_half_of_its_answers_gets_everything_in_the_end(
    published: Site, faulty: FaultServer, seed: int
) -> None:
    """Listings, looks and writes, done or not, with a new start of the service now and then."""
    dice = random.Random(seed)
    faults = [hang_up(), hang_up(reset=True), done_but(hang_up()), done_but(refuse(503, "SlowDown"))]

    def half(request: web.Request) -> Fault | None:
        reads = [cut(0), hang_up(), refuse(503, "SlowDown")]
        return dice.choice(faults if request.method == "PUT" else reads) if dice.random() < 0.5 else None

    faulty.weather = half
    copy = copy_of(published, faulty.url)
    for _ in range(300):
        state = await copy.follow()
        assert all(key[len(PREFIX) :] in LOGS for key in faulty.objects if key.startswith(PREFIX))
        if state.there == tuple(LOGS):
            break
        if dice.random() < 0.3:
            copy = copy_of(published, faulty.url)
    assert in_order(faulty, published)


@pytest.mark.parametrize("instant", [0, 2, 3, 5, 9])
async def test_a_service_that_dies_in_mid_pass_carries_on_at_its_next_start(
    published: Site, faulty: FaultServer, instant: int
) -> None:
    """Before or after any request: nothing is put twice, nothing out of order, nothing lost."""
    requests, died = 0, asyncio.Event()

    async def nothing_more(_: FaultServer, __: web.Request, ___: Any) -> Any:
        died.set()
        await asyncio.sleep(60)

    def dying(_: web.Request) -> Fault | None:
        nonlocal requests
        requests += 1
        return (done_but(nothing_more) if instant % 2 else nothing_more) if requests == instant // 2 + 1 else None

    faulty.weather = dying
    living = asyncio.create_task(copy_of(published, faulty.url).follow())
    await died.wait()
    living.cancel()
    await asyncio.gather(living, return_exceptions=True)
    faulty.weather = lambda _: None
    assert (await copy_of(published, faulty.url).follow()).there == tuple(LOGS)
    assert in_order(faulty, published)


async def test_what_is_not_ours_is_told_and_neither_replaced_nor_removed(published: Site, faulty: FaultServer) -> None:
    """Another file under a log's name, of another size or the same; a name that was never published; no log at all."""
    real = (published.point.pickup_dir / LOGS[1]).read_bytes()
    ours = {"x-amz-meta-sha256": hashlib.sha256(real).hexdigest()}
    foreign = {LOGS[0]: b"shorter", LOGS[1]: real[::-1], name(7): b"never", "notes.txt": b"a stranger's"}
    for file, body in foreign.items():
        faulty.put(f"{PREFIX}{file}", body)
    copy = copy_of(published, faulty.url)
    state = await copy.follow()
    assert state.there == tuple(LOGS[2:]) and state.error == ""
    assert {sentence.split()[0] for sentence in state.wrong} == {LOGS[0], LOGS[1], name(7), "the"}
    assert {file: faulty.objects[f"{PREFIX}{file}"].body for file in foreign} == foreign
    # Mended by hand: what was in the way is gone, and what was put there is the log.
    for file in (LOGS[0], name(7), "notes.txt"):
        del faulty.objects[f"{PREFIX}{file}"]
    faulty.objects[f"{PREFIX}{LOGS[1]}"] = replace(faulty.put(f"{PREFIX}{LOGS[1]}", real), headers=tuple(ours.items()))
    state = await copy.follow()
    assert (state.there, state.wrong) == (tuple(LOGS), ())
    # Replaced behind our back, by something of the same size: noticed at the next pass.
    faulty.put(f"{PREFIX}{LOGS[3]}", faulty.objects[f"{PREFIX}{LOGS[3]}"].body[::-1])
    assert (await copy.follow()).there == tuple(LOGS[:3])


async def test_a_file_that_is_damaged_in_the_folder_is_not_spread(site: Site, faulty: FaultServer) -> None:
    """Its digest is taken again before it is sent."""
    site.put(rows_of(DAY, 10), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    path = site.point.pickup_dir / name()
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[::-1])
    state = await copy_of(site, faulty.url).follow()
    assert faulty.written == [] and state.wrong == (f"{name()} in the folder is not the file that was published",)


async def test_a_store_that_was_there_counts_while_it_is_away(published: Site, faulty: FaultServer) -> None:
    """What was seen there is remembered over a restart; of another store nothing is known."""
    await copy_of(published, faulty.url).follow()
    faulty.listing_script.extend([refuse(503, "SlowDown")] * 2)
    state = await copy_of(published, faulty.url).follow()
    assert state.there == tuple(LOGS) and "503" in state.error
    other = StoreCopy(
        LogStore(BucketPlace(BUCKET, "other/", REGION, faulty.url, None, "store"), UNHURRIED),
        published.ledger, published.point, lambda: False,
    )  # fmt: skip
    faulty.listing_script.extend([refuse(503, "SlowDown")] * 2)
    assert (await other.follow()).there == ()
    assert json.loads(json.dumps(published.ledger.facts()[STORE]))["url"] == f"s3://{BUCKET}/other"


async def test_a_bucket_that_lets_nothing_be_removed_gets_what_is_new(site: Site, faulty: FaultServer) -> None:
    """Object Lock, or a policy: it is reported, and the partner's new logs come."""
    copy = copy_of(site, faulty.url)
    site.put(rows_of(DAY, 10), at(1, "04:10"))
    await site.round(at(1, "05:35"))
    await copy.follow()
    later = DAY + timedelta(days=61)
    site.prune(at(1, "00:00", later))
    site.put(rows_of(later, 10), at(1, "04:10", later), later)
    await site.round(at(1, "05:35", later))
    faulty.weather = lambda request: refuse(403, "AccessDenied") if request.method == "DELETE" else None
    state = await copy.follow()
    assert state.there == (name(0, later),) and "AccessDenied" in state.error


async def test_what_another_node_has_just_published_is_no_strangers(
    node: Callable[..., Site], faulty: FaultServer
) -> None:
    """It comes between this node's look at the sequence and its listing of the logs."""
    a, b = node("a"), node("b")
    a.put(rows_of(DAY, 20), at(1, "04:10"))
    await a.round(at(1, "05:35"))
    await copy_of(a, faulty.url).follow()
    looks = iter([lambda: None, b.publisher.catch_up])
    place = BucketPlace(BUCKET, PREFIX, REGION, faulty.url, None, "store")
    copy = StoreCopy(LogStore(place, UNHURRIED), b.ledger, b.point, lambda: False, lambda: next(looks)())
    state = await copy.follow()
    assert (state.there, state.wrong, state.error) == ((name(),), (), "")
