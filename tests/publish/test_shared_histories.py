"""Two histories in one store: a node that published alone, or entries in the place of those that the store lost."""

from __future__ import annotations

import asyncio
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from server.errors import StoreError
from server.publish.replay import LEFT
from tests.support.folder_shelf import fair
from tests.support.site import DAY, Site, at, name, publish, rows_of, same_everywhere, store_of, words

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

pytestmark = pytest.mark.usefixtures("_conversions_here")

SECOND = DAY + timedelta(days=1)


def refuse(this: bool) -> None:
    """Refuse an operation on the store."""
    if this:
        raise StoreError("the store is away")


async def fall_back(a: Site, b: Site, day: date) -> None:
    """Let the store fall back to what ``b`` has applied, whereupon ``b`` publishes something else than ``a`` did."""
    for path in [*store_of(a).glob("copies/*"), *store_of(a).glob("sequence/*")]:
        if int(path.name[:8]) > b.ledger.entries.head():
            path.unlink()
    b.put(rows_of(day, 30), at(1, "04:20", day), day)
    b.shelf.weather = fair
    await b.round(at(1, "05:45", day))


@pytest.mark.parametrize("by", ["its copy", "its trial", "its place"])
async def test_no_node_mixes_two_histories(node: Callable[..., Site], by: str) -> None:
    """The store lost two entries, and another took the place of the first: the second must not follow that."""
    a, b = node("a"), node("b")
    await publish(a)
    await b.round(at(1, "05:36"))
    if by == "its copy":
        a.shelf.weather = lambda operation, what, _: refuse(operation == "put_new" and what.startswith("copies/"))
    with capture_logs() as entries:
        for number in (1, 2):
            await publish(a, DAY + timedelta(days=number))
    uncopied = [entry["event"] for entry in entries if "took no copy" in entry["event"]]
    assert uncopied == [f"shared store took no copy of entry {number}" for number in (3, 4) if by == "its copy"]
    a.shelf.weather = fair
    lost = (store_of(a) / "sequence" / "00000004").read_bytes()
    if by == "its trial":

        def falls(operation: str, _: str, done: bool) -> None:
            if operation == "put_file" and not done and b.ledger.entries.head() == 2:
                asyncio.run(fall_back(a, b, SECOND))

        a.shelf.weather = falls
        a.put(rows_of(at(3).date(), 20), at(4, "04:10"), at(3).date())
        assert "entry 4 of the shared store's sequence is lost" in await words(a, at(4, "05:50"))
    else:
        await fall_back(a, b, SECOND)
        a.publisher.catch_up()
        if by == "its place":
            a.shelf.put("sequence/00000004", lost)
    shown = b.served()
    b.put(rows_of(DAY, 22), at(1, "05:50", SECOND))
    said = await words(b, at(1, "07:00", SECOND))
    assert ("entry 4 follows another entry 3" in said) is (by != "its trial")
    assert (b.served() == shown) is (by != "its trial") and name(0, DAY + timedelta(days=2)) not in b.served()
    if by != "its place":
        with pytest.raises(StoreError, match="entry 4 of the shared store's sequence is"):
            a.prune(at(3, "08:00"))


async def test_nothing_is_put_back_into_a_sequence_that_has_begun_anew(node: Callable[..., Site]) -> None:
    """Though it is shorter than what this node has applied."""
    a, b = node("a"), node("b")
    await publish(a)
    await publish(a, SECOND)
    await b.round(at(1, "05:36", SECOND))
    a.restart(store=None)
    a.ledger.note(**{LEFT: True})  # as a start of the service with `shared = false` does
    shutil.rmtree(store_of(b))
    a.restart(store=store_of(b))
    await a.round(at(1, "05:45", SECOND))
    begun = {path.name: path.read_bytes() for path in store_of(b).glob("sequence/*")}
    with pytest.raises(StoreError, match="entry 3 of the shared store's sequence is lost"):
        b.prune(at(1, "06:00", SECOND))
    assert {path.name: path.read_bytes() for path in store_of(b).glob("sequence/*")} == begun and len(begun) == 1


async def test_who_has_published_alone_shares_again(node: Callable[..., Site]) -> None:
    """As the manual says: without the sequence in the bucket, which begins anew with everything that was published."""
    a, b = node("a"), node("b")
    await publish(a)
    await b.round(at(1, "05:36"))
    a.restart(store=None)
    a.ledger.note(**{LEFT: True})  # as a start of the service with `shared = false` does
    await publish(a, SECOND)
    for folder in ("sequence", "checkpoints", "blobs"):
        shutil.rmtree(store_of(b) / folder, ignore_errors=True)
    a.restart(store=store_of(b))
    a.shelf.weather = lambda operation, _, __: refuse(operation == "remove")
    assert "the store is away" in await words(a, at(1, "05:44", SECOND))
    a.restart()
    await a.round(at(1, "05:45", SECOND))
    c = node("c")
    for site in (a, c):
        await publish(site, DAY + timedelta(days=2))
    same_everywhere(a, c)
    assert len(c.served()) == 3
    assert "is not the one that" in await words(b, at(3, "05:45"))


async def test_who_shares_again_with_the_old_sequence_is_told_how_and_can(node: Callable[..., Site]) -> None:
    """What it has published alone is not in it; the manual's way is open after this mistake, too."""
    a, b = node("a"), node("b")
    await publish(a)
    a.restart(store=None)
    a.ledger.note(**{LEFT: True})  # as a start of the service with `shared = false` does
    await publish(a, SECOND)
    a.restart(store=store_of(b))
    assert "while it was alone" in await words(a, at(1, "05:40", SECOND))
    shutil.rmtree(store_of(b) / "sequence")
    a.restart()
    await words(a, at(1, "05:45", SECOND))
    await b.round(at(1, "05:46", SECOND))
    assert same_everywhere(a, b).keys() == {name(), name(0, SECOND)}
