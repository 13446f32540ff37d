"""Several nodes on one store: as if one had published, whoever is first, dies, is cut off or comes later."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from server.errors import NodesDiffer, StoreError
from server.publish.shared import SharedSequence
from server.service import Installation, _recover
from server.storage.sequence import Entry
from server.triton import Layout, LogRules
from tests.support.site import DAY, at, name, rows_of, same_everywhere, seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.site import Site

pytestmark = pytest.mark.usefixtures("_conversions_here")


async def test_two_nodes_publish_each_day_and_each_late_row_once(node: Callable[..., Site]) -> None:
    """Whoever comes second takes over what the first has done; late rows go out by whoever sees them."""
    a, b = node("a", max_rows_per_file=20), node("b", max_rows_per_file=20)
    a.put(rows_of(DAY, 50), at(1, "04:10"))
    await a.round(at(1, "05:35"))
    await b.round(at(1, "05:36"))
    assert list(same_everywhere(a, b)) == [name(0), name(1), name(2)]
    a.put(rows_of(DAY, 55), at(1, "09:00"))
    await b.round(at(1, "10:15"))
    await a.round(at(1, "10:16"))
    assert sorted(same_everywhere(a, b)) == [name(n) for n in range(4)]
    for site in (a, b):
        assert site.standing_ids() == {f"{DAY}-{n}": 1 for n in range(55)}
    assert b.ledger.publications()[0].tally == a.ledger.publications()[0].tally
    books = [site.ledger.books.get([1])[1].as_json() for site in (a, b)]
    assert books[0] == books[1]


async def test_who_loses_a_number_decides_the_day_anew(node: Callable[..., Site]) -> None:
    """The other was first, by a newer version: what it has sent is not sent again."""
    a, b = node("a"), node("b")
    a.put(rows_of(DAY, 40), at(1, "04:10"))
    before = SharedSequence._write

    def first_b(self: SharedSequence, shelf: Any, entry: Any) -> None:
        if self is a.shared and entry.kind == "publication" and not b.files():
            a.put(rows_of(DAY, 45), at(1, "04:15"))
            asyncio.run(b.round(at(1, "05:36")))
        before(self, shelf, entry)

    SharedSequence._write = first_b  # type: ignore[method-assign]
    try:
        await a.round(at(1, "05:35"))
    finally:
        SharedSequence._write = before  # type: ignore[method-assign]
    await b.round(at(1, "06:35"))
    await a.round(at(1, "06:36"))
    assert same_everywhere(a, b).keys() == {name()}
    assert a.standing_ids() == {f"{DAY}-{n}": 1 for n in range(45)}
    assert len(list((a.settings["store"] / "blobs").iterdir())) == 1


async def test_an_operators_word_and_pruning_hold_on_every_node(node: Callable[..., Site]) -> None:
    """Accepted on one, sent again on another; what one prunes is gone on all, and its name is spent."""
    a, b = node("a", max_rejected=0.01), node("b", max_rejected=0.01)
    a.put([*rows_of(DAY, 10), *[b"{"] * 5], at(1, "04:10"))
    assert await a.word(at(1, "05:35")) == await b.word(at(1, "05:36")) == "held"
    assert await b.word(at(1, "06:00"), DAY, accept=True) == "published"
    assert await a.word(at(1, "06:01")) == "published"
    assert await a.word(at(1, "07:00"), DAY, resend="void") == "held"
    assert await a.word(at(1, "07:00"), DAY, resend="void", accept=True) == "published"
    assert await b.word(at(1, "07:01")) == "published"
    assert list(same_everywhere(a, b)) == [name(0), name(1)]
    assert [log.superseded_by for log in b.ledger.logs()] == [2, None]
    b.prune(at(62, "00:00"))
    a.source.now = at(62, "00:10")
    a.publisher.catch_up()
    assert same_everywhere(a, b) == {}
    assert {log.state for log in a.ledger.logs()} == {"pruned"}
    assert await a.word(at(62, "01:00"), DAY) == "refused"
    a.prune(at(64, "00:00"))
    assert list((a.settings["store"] / "blobs").iterdir()) == []


async def test_a_third_joins_empty_and_one_that_was_away_catches_up(
    node: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a checkpoint and what follows it; what was pruned meanwhile is not asked for, and its names are spent."""
    monkeypatch.setattr("server.publish.replay.CHECKPOINT_EVERY", 3)
    a, b = node("a", keep_days=5), node("b", keep_days=5)
    for number in range(12):
        day = DAY.fromordinal(DAY.toordinal() + number)
        a.put(rows_of(day, 20 + number), at(1, "04:10", day), day)
        await a.round(at(1, "05:35", day))
        if number == 2:
            await b.round(at(1, "05:36", day))
        a.prune(at(1, "06:00", day))
    now = at(12, "07:00")
    assert len(a.files()) < 8 < a.ledger.entries.head()
    c = node("c", keep_days=5)
    for site in (b, c):
        await site.round(now)
    same_everywhere(a, b, c)
    assert [(log.name, log.state) for log in c.ledger.logs()] == [(log.name, log.state) for log in a.ledger.logs()]
    reads: list[str] = []
    d = node("d", keep_days=5)
    d.shelf.weather = lambda operation, what, done: reads.append(what) if operation == "read" and not done else None
    await d.round(now)
    assert sum(what.startswith("sequence/") for what in reads) <= 4
    same_everywhere(a, d)


async def test_who_joins_holds_no_more_than_one_entry_at_a_time(
    node: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Years of entries with the books of a large network are more than fits into memory."""
    monkeypatch.setattr("server.publish.replay.CHECKPOINT_EVERY", 4)
    a, b = node("a"), node("b")
    for number in range(5):
        day = DAY.fromordinal(DAY.toordinal() + number)
        a.put(rows_of(day, 5), at(1, "04:10", day), day)
        await a.round(at(1, "05:35", day))
    held = []
    applied = b.ledger.entries.applied

    def entries() -> int:
        return sum(isinstance(thing, Entry) for thing in gc.get_objects())

    def counted(*what: Any) -> None:
        held.append(entries() - others)
        applied(*what)

    gc.collect()
    others = entries()

    monkeypatch.setattr(b.ledger.entries, "applied", counted)
    b.publisher.catch_up()
    assert same_everywhere(a, b) and len(held) == 6 and max(held) == 1


async def test_an_existing_folder_becomes_the_first_entry(node: Callable[..., Site]) -> None:
    """What it has published, pruned and superseded is known to a node that joins; it may die on the way."""
    a = node("a", store=None, keep_days=30)
    a.put(rows_of(DAY, 20), at(1, "04:10"))
    await a.round(at(1, "05:35"))
    a.prune(at(32, "00:00"))
    second = DAY.fromordinal(DAY.toordinal() + 31)
    a.put(rows_of(second, 20), at(1, "04:10", second), second)
    await a.round(at(1, "05:35", second))
    before = seen(a)
    b = node("b", keep_days=30)
    a.restart(store=b.settings["store"])
    a.put(rows_of(second, 22), at(1, "08:10", second), second)
    died = [True]

    def cut(operation: str, what: str, done: bool) -> None:
        if operation == "put_new" and what.startswith("sequence/") and done and died:
            died.clear()
            raise StoreError("the answer was lost")

    a.shelf.weather = cut
    for _ in range(2):
        await a.round(at(1, "10:35", second))
    await b.round(at(1, "10:36", second))
    assert seen(a).items() > before.items() and len(seen(a)) == 2
    same_everywhere(a, b)
    assert [(log.name, log.state) for log in b.ledger.logs()] == [(log.name, log.state) for log in a.ledger.logs()]
    stranger = node("stranger", store=None)
    await stranger.round(at(1, "10:35", second))
    stranger.restart(store=b.settings["store"])
    with pytest.raises(NodesDiffer, match="that the shared store does not know"):
        await stranger.round(at(1, "10:37", second))
    assert stranger.served()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hash_key": b"x" * 32}, "in keys/ip_hash.key, so"),
        ({"prefix": "OTHER"}, "in log.prefix, so"),
        ({"rules": LogRules(Layout(header="comment"), ip="truncated")}, "in log.header, log.ip, so"),
        ({"rules": LogRules(kind="delivery-v2")}, "in export.kind, so"),
    ],
)
async def test_a_node_that_differs_publishes_nothing_and_says_in_what(
    node: Callable[..., Site], settings: dict[str, Any], words: str
) -> None:
    """It goes on serving what the others publish."""
    a, b = node("a"), node("b", **settings)
    a.put(rows_of(DAY, 20), at(1, "04:10"))
    await a.round(at(1, "05:35"))
    await b.round(at(1, "05:36"))
    a.put(rows_of(DAY, 25), at(1, "09:10"))
    outcome = await b.round(at(1, "10:36"))
    assert words in outcome.results[0].sentence and outcome.results[0].word == "failed"
    same_everywhere(a, b)
    assert b.shared is not None and b.shared.change_rules() != []
    assert await b.word(at(1, "11:00"), DAY) == "published"
    assert "differs" in (await a.round(at(1, "11:01"), DAY)).results[0].sentence or seen(a) == seen(b)


async def test_without_the_store_nothing_is_published_and_all_is_served(node: Callable[..., Site]) -> None:
    """And everything goes on when it is back."""
    a = node("a")
    a.put(rows_of(DAY, 20), at(1, "04:10"))
    await a.round(at(1, "05:35"))

    def away(*_: object) -> None:
        raise StoreError("the store is away")

    a.shelf.weather = away
    a.put(rows_of(DAY, 25), at(1, "09:10"))
    with pytest.raises(StoreError):
        await a.round(at(1, "10:35"))
    assert a.served() == [name()]
    a.restart()
    a.publisher.recover(at(1, "10:40"))
    assert a.served() == [name()]
    await a.round(at(1, "10:45"))
    assert a.standing_ids() == {f"{DAY}-{n}": 1 for n in range(25)}


async def test_a_start_serves_what_is_here_before_the_store_is_asked(node: Callable[..., Site]) -> None:
    """It may be away, and a node that joins may have much to download; systemd ends a start that takes too long."""
    a = node("a")
    a.put(rows_of(DAY, 20), at(1, "04:10"))
    await a.round(at(1, "05:35"))
    a.restart()
    asked: list[str] = []
    a.shelf.weather = lambda operation, *_: asked.append(operation)
    nothing: Any = None
    _recover(Installation(nothing, a.point, a.ledger, a.publisher, a.feed, nothing, a.stop_event, a.shared))
    assert a.served() == [name()] and asked == []
