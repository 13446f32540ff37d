"""A shared store that loses what was written, keeps what should go, takes no condition, or lies about the time."""

from __future__ import annotations

import asyncio
import errno
import gzip
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from server.errors import DataFolderError, LedgerError, StoreError
from server.publish.replay import BEGINNING
from server.publish.shared import SharedSequence
from tests.support.site import DAY, Site, at, name, publish, rows_of, same_everywhere, store_of, words

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

pytestmark = pytest.mark.usefixtures("_conversions_here")

SECOND = DAY + timedelta(days=1)


LOSSES: dict[str, tuple[tuple[str, ...], bool]] = {  # what is lost; whether an old node goes on and mends it
    "the state": (("sequence", "blobs", "checkpoints", "copies"), False),
    "the sequence": (("sequence",), True),
    "the newest entry": (("sequence/00000003",), True),
    "what was newest": (("sequence/00000003", "copies"), True),
    "the oldest entries": (("sequence/00000001", "sequence/00000002"), True),
    "contents": (("blobs",), True),
}


@pytest.mark.parametrize("loss", LOSSES)
async def test_what_a_life_cycle_rule_removes_makes_no_second_history(node: Callable[..., Site], loss: str) -> None:
    """A node that was away, and one that joins empty, write nothing where what others wrote may be lost.

    Entries and contents are put back by a node that has them.
    """
    a, away = node("a"), node("away")
    await publish(a)
    await away.round(at(1, "05:36"))
    await publish(a, SECOND)
    what, mends = LOSSES[loss]
    for path in (store_of(a) / word for word in what):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    # The partner's objects still tell of the logs.
    for file in a.files():
        (store_of(a) / "logs").mkdir(exist_ok=True)
        shutil.copy(a.point.pickup_dir / file, store_of(a) / "logs")
    if mends:
        a.prune(at(1, "08:00", SECOND))
        a.put(rows_of(DAY, 25), at(1, "09:10", SECOND))
    joins = node("joins")
    for site in (away, joins, away, joins):
        said = await words(site, at(1, "09:40", SECOND))
        assert mends or any(word in said for word in ("is lost", "has never published", "lies in the store"))
    if not mends:
        with pytest.raises(StoreError, match="is lost"):
            a.prune(at(1, "09:41", SECOND))
        assert len(a.served()) == 2 and away.served() == [name()] and set(joins.served()) <= {name()}
        return
    for site in (a, away, joins):
        await site.round(at(1, "10:40", SECOND))
    same_everywhere(a, away, joins)
    assert a.standing_ids() == {f"{day}-{n}": 1 for day, count in ((DAY, 25), (SECOND, 20)) for n in range(count)}


@pytest.mark.parametrize("tells", ["sequence", "copies"])
async def test_a_gap_behind_the_newest_entry_is_seen_before_anything_is_written(
    node: Callable[..., Site], tells: str
) -> None:
    """Objects expire in any order: that the next number is free does not mean that nothing follows."""
    a, away = node("a"), node("away")
    await publish(a)
    await away.round(at(1, "05:36"))
    for number in (1, 2):
        await publish(a, DAY + timedelta(days=number))
    for path in [*store_of(a).glob("sequence/0000000[34]"), *store_of(a).glob("copies/0000000[34]~*")]:
        if path.parent.name != tells or path.name.startswith("00000003"):
            path.unlink()
    assert "entry 3 of the shared store's sequence is lost" in await words(away, at(4, "05:40"))
    assert away.served() == [name()]
    a.prune(at(4, "06:00"))
    await away.round(at(4, "07:40"))
    same_everywhere(a, away)


@pytest.mark.parametrize("lost", ["[2]", "[12]"])
async def test_who_comes_back_puts_back_what_is_lost_below_what_others_wrote(
    node: Callable[..., Site], lost: str
) -> None:
    """Nobody else need be there to do it."""
    a, away = node("a"), node("away")
    await publish(a)
    await away.round(at(1, "05:36"))
    await publish(a, SECOND)
    for path in store_of(a).glob(f"sequence/0000000{lost}"):
        path.unlink()
    away.restart()
    await away.round(at(1, "05:40", SECOND))
    assert same_everywhere(a, away).keys() == {name(), name(0, SECOND)}
    assert len(list(store_of(a).glob("sequence/*"))) == 3


async def test_what_a_folder_has_lost_is_brought_back_from_the_store(node: Callable[..., Site]) -> None:
    """A log that is gone, one that is cut; not one that the store has lost, too, which keeps nothing else waiting."""
    a, b = node("a"), node("b")
    for number in range(4):
        await publish(a, DAY + timedelta(days=number))
    b.publisher.catch_up()
    shown, files = same_everywhere(a, b), b.files()
    gone, cut, lost = (b.point.pickup_dir / file for file in files[:3])
    gone.unlink()
    cut.chmod(0o640)
    cut.write_bytes(b"cut")
    lost.unlink()
    (blob,) = store_of(a).glob(f"blobs/{shown[lost.name][2]}-*")
    content = blob.read_bytes()
    blob.unlink()
    b.restart()
    b.publisher.recover(at(4, "06:00"))
    assert b.served() == files[3:]
    with capture_logs() as entries:
        for _ in range(2):
            b.publisher.catch_up()
    assert b.served() == [gone.name, cut.name, *files[3:]] and (b.root / "data" / cut.name).read_bytes() == b"cut"
    assert [entry["event"] for entry in entries if lost.name in entry["event"]] == [
        f"publisher could not bring {lost.name} back"
    ]
    blob.write_bytes(content)
    b.publisher.catch_up()
    assert same_everywhere(a, b) == shown


async def test_what_a_dead_node_alone_had_taken_over_is_put_back_from_its_copy(node: Callable[..., Site]) -> None:
    """Its clients have seen the log: whoever publishes next takes the lost entry over first; strangers do no harm."""
    a, b, c = node("a"), node("b"), node("c")
    await publish(a)
    for folder in ("sequence", "copies", "checkpoints"):
        for word in ("stranger", "7"):
            a.shelf.put(f"{folder}/{word}", b"{}")
    for site in (b, c):
        await site.round(at(1, "05:36"))
    await publish(a, SECOND)
    path = store_of(a) / "sequence" / "00000003"
    content = path.read_bytes()
    path.unlink()
    c.shared.change_rules()
    assert path.read_bytes() == content
    path.unlink()
    b.put(rows_of(SECOND, 25), at(1, "04:20", SECOND), SECOND)
    await b.round(at(1, "05:40", SECOND))
    assert path.read_bytes() == content
    a.publisher.catch_up()
    assert same_everywhere(a, b).keys() == {name(), name(0, SECOND), name(1, SECOND)}
    # One copy is enough: every node has the older entries.
    a.prune(at(1, "07:00", SECOND))
    assert [path.name[:9] for path in store_of(a).glob("copies/0*")] == ["00000004~"]


async def test_a_store_that_took_two_entries_of_one_number_is_found_out(node: Callable[..., Site]) -> None:
    """Whose entry was replaced writes nothing after it."""
    a, b = node("a"), node("b")
    await publish(a)
    path = store_of(a) / "sequence" / "00000002"
    content = path.read_bytes()
    path.write_bytes(content.replace(a.ledger.entries.id_of(2).encode(), b"0" * 16))
    with pytest.raises(StoreError, match="not the one that this node has applied"):
        a.prune(at(2, "05:40"))
    path.write_bytes(content)
    await publish(b, SECOND)
    assert same_everywhere(b).keys() == {name(), name(0, SECOND)}


async def test_a_store_that_replaces_what_is_there_gets_no_entry(node: Callable[..., Site]) -> None:
    """Also where it could not be asked at the start."""
    a = node("a")
    link = a.shelf._link

    def replace(what: str, data: bytes) -> bool:
        (store_of(a) / what).unlink(missing_ok=True)
        return link(what, data)

    a.shelf._link = replace  # type: ignore[method-assign]
    await publish(a)
    assert a.state(at(1, "05:36")) == "failed" and "ignores If-None-Match" in await words(a, at(1, "06:36"))
    assert a.served() == [] and not list((store_of(a) / "sequence").glob("*"))


async def test_a_sequence_begins_with_who_has_published_and_need_not_be_sent_in_one_go(
    node: Callable[..., Site],
) -> None:
    """An empty node that is first by mistake begins no sequence beside the logs of another; a cut beginning goes on."""
    a = node("a", store=None, max_rows_per_file=7)
    await publish(a)
    (a.point.pickup_dir / name(2)).unlink()  # by somebody else
    empty = node("empty")
    (store_of(empty) / "logs").mkdir(parents=True)
    (store_of(empty) / "logs" / name()).write_bytes(b"")
    assert "has never published it" in await words(empty, at(1, "05:40"))
    a.restart(store=store_of(empty))
    sent: list[str] = []

    def cut(operation: str, what: str, done: bool) -> None:
        if operation == "put_file" and done:
            sent.append(what)
            if len(sent) % 2:
                raise StoreError("the connection was cut")

    a.shelf.weather = cut
    for hour in range(5, 8):
        await publish(a, SECOND, clock=f"0{hour}:40")
    contents = [what for what in sent if a.ledger.facts()[BEGINNING] in what]
    assert len(contents) == len(set(contents)) == 2
    a.shelf.weather = lambda *_: None
    await publish(a, SECOND, clock="09:00")
    await empty.round(at(1, "09:40", SECOND))
    assert {name(), name(1)} < same_everywhere(a, empty).keys() and name(2) not in a.served()


async def test_a_store_that_removes_nothing_holds_nothing_up(node: Callable[..., Site]) -> None:
    """Object Lock, or a policy: what is pruned is pruned on all nodes, and whoever loses a number decides anew."""
    a, b = node("a"), node("b")

    def frozen(operation: str, _: str, done: bool) -> None:
        if operation == "remove" and not done:
            raise StoreError("AccessDenied")

    for site in (a, b):
        site.shelf.weather = frozen
    await publish(a)
    before = SharedSequence._write

    def first_b(self: SharedSequence, shelf: Any, entry: Any) -> None:
        if self is a.shared and entry.kind == "publication" and len(b.files()) < 2:
            asyncio.run(b.round(at(1, "05:36", SECOND)))
        before(self, shelf, entry)

    SharedSequence._write = first_b  # type: ignore[method-assign]
    try:
        await publish(a, SECOND)
    finally:
        SharedSequence._write = before  # type: ignore[method-assign]
    assert same_everywhere(a, b).keys() == {name(), name(0, SECOND)}
    a.source.now = at(62, "00:00")
    assert [str(log) for log in a.prune(at(62, "00:00")).logs] == [name()]
    b.publisher.catch_up()
    assert b.served() == [name(0, SECOND)]


async def test_a_store_that_takes_nothing_is_told_by_its_own_words(node: Callable[..., Site]) -> None:
    """And everything that was published goes on being served and taken over."""
    a, b = node("a"), node("b")
    await publish(a)

    def read_only(operation: str, what: str, done: bool) -> None:
        if operation == "put_new" and what.startswith("sequence/") and not done:
            raise StoreError("the store may not be written: AccessDenied", hint="aws s3 ls")

    b.shelf.weather = read_only
    b.put(rows_of(DAY, 25), at(1, "09:10"))
    assert "AccessDenied" in await words(b, at(1, "10:40"))
    assert b.served() == [name()]


async def test_a_store_whose_clock_leapt_dates_no_log(node: Callable[..., Site]) -> None:
    """Ten years ahead: nothing would ever be pruned. Minutes, or a node that was away for weeks, are no leap."""
    a = node("a")
    await publish(a)
    a.shelf.now = lambda: a.source.now + timedelta(days=3650)
    a.put(rows_of(DAY, 25), at(1, "09:10"))
    assert "the store's clock says 2036" in await words(a, at(1, "10:40"))
    a.shelf.now = lambda: a.source.now + timedelta(minutes=10)
    later = DAY + timedelta(days=70)
    await publish(a, later, clock="10:50")
    assert name(0, later) in a.served()


CHECKPOINTS = {
    "empty": b"",
    "no gzip": b"no gzip",
    "no entry": gzip.compress(b"{}\n"),
    "cut": gzip.compress(b"{}" * 9)[:-9],
}


@pytest.mark.parametrize("data", CHECKPOINTS.values(), ids=CHECKPOINTS)
async def test_a_strange_checkpoint_is_no_obstacle(node: Callable[..., Site], data: bytes) -> None:
    """Whoever joins reads the sequence itself."""
    a = node("a")
    await publish(a)
    for word in ("00000100", "zzz"):
        a.shelf.put(f"checkpoints/{word}", data)
    b = node("b")
    await b.round(at(1, "05:40"))
    same_everywhere(a, b)


async def test_a_checkpoint_of_an_earlier_sequence_is_no_history(node: Callable[..., Site]) -> None:
    """It was left when the rest was removed."""
    a, b = node("a"), node("b")
    await publish(a)
    lines = [(store_of(a) / "sequence" / f"0000000{number}").read_bytes() + b"\n" for number in (1, 2)]
    earlier = b"".join(lines).replace(name().encode(), name(0, SECOND).encode())
    a.shelf.put("checkpoints/00000002", gzip.compress(earlier))
    await b.round(at(1, "05:40"))
    same_everywhere(a, b)


async def test_contents_of_an_entry_that_is_being_written_are_not_swept(node: Callable[..., Site]) -> None:
    """Another node's retention comes between the contents and their entry."""
    a, b = node("a"), node("b")
    await publish(a)
    before = SharedSequence._write

    def prunes(self: SharedSequence, shelf: Any, entry: Any) -> None:
        if self is a.shared and entry.kind == "publication":
            b.source.now = a.source.now + timedelta(hours=1)
            b.prune(b.source.now)
        before(self, shelf, entry)

    SharedSequence._write = prunes  # type: ignore[method-assign]
    try:
        await publish(a, SECOND)
    finally:
        SharedSequence._write = before  # type: ignore[method-assign]
    await b.round(at(1, "05:40", SECOND))
    same_everywhere(a, b)
    # What nobody named within a day is a dead node's.
    a.shelf.put("blobs/left", b"")
    a.source.now += timedelta(hours=25)
    a.prune(a.source.now)
    assert "left" not in [shelved.name for shelved in a.shelf.list("blobs")]


async def test_what_was_decided_before_another_nodes_entry_is_decided_anew(node: Callable[..., Site]) -> None:
    """Though its name is free: an empty day is held once the day before it is known to have had rows."""
    a, b = node("a"), node("b")
    before = SharedSequence.publish

    def first_b(self: SharedSequence, *what: Any) -> Any:
        if self is a.shared and not b.files():
            b.put(rows_of(DAY, 20), at(1, "04:10"))
            asyncio.run(b.round(at(1, "05:36")))
        return before(self, *what)

    SharedSequence.publish = first_b  # type: ignore[method-assign]
    try:
        await publish(a, SECOND, 0)
    finally:
        SharedSequence.publish = before  # type: ignore[method-assign]
    assert a.state(at(1, "05:36", SECOND), SECOND) == "held"
    assert same_everywhere(a, b).keys() == {name()}


@pytest.mark.parametrize(
    ("was", "strange"),
    [(b'"at":', b'"at":99999999999999,"x":'), (b'"id":', b'"id":7,"x":'), (b'"mtime":', b'"mtime":-1,"x":')],
)
async def test_an_entry_that_nobody_can_have_written_stops_a_node_with_a_sentence(
    node: Callable[..., Site], was: bytes, strange: bytes
) -> None:
    """It goes on serving what it has."""
    a, b = node("a"), node("b")
    await publish(a)
    await b.round(at(1, "05:36"))
    await publish(a, SECOND)
    path = store_of(a) / "sequence" / "00000003"
    path.write_bytes(path.read_bytes().replace(was, strange))
    assert "entry 3 is not what an entry" in await words(b, at(1, "05:40", SECOND))
    assert b.served() == [name()]


async def pruned_and_published(node: Callable[..., Site]) -> tuple[Site, Site, date]:
    """Two nodes, and the day that the first one has published and the second does not know; an older one is pruned."""
    a, b = node("a", keep_days=5), node("b", keep_days=5)
    await publish(a)
    await b.round(at(1, "05:36"))
    later = DAY + timedelta(days=6)
    await publish(a, later)
    a.prune(at(1, "06:00", later))
    return a, b, later


async def test_on_a_full_disk_what_others_pruned_makes_room_for_what_they_published(node: Callable[..., Site]) -> None:
    """Though the one was published before the other was pruned: in the order of entries there would never be room."""
    a, b, later = await pruned_and_published(node)

    def full(operation: str, _: str, done: bool) -> None:
        if operation == "fetch" and not done and b.files():
            raise OSError(errno.ENOSPC, "No space left on device")

    b.shelf.weather = full
    with pytest.raises(DataFolderError):
        b.publisher.catch_up()
    b.publisher.catch_up()
    same_everywhere(a, b)
    assert b.served() == [name(0, later)]


async def test_a_store_that_begins_to_replace_what_is_there_is_found_out_before_the_next_entry(
    node: Callable[..., Site],
) -> None:
    """Moved, failed over, put behind a proxy: it was asked at the start, and again before each entry."""
    a, b = node("a"), node("b")
    await publish(b)
    await a.round(at(1, "05:36"))
    link = b.shelf._link

    def replace(what: str, data: bytes) -> bool:
        (store_of(b) / what).unlink(missing_ok=True)
        return link(what, data)

    b.shelf._link = replace  # type: ignore[method-assign]
    b.put(rows_of(DAY, 25), at(1, "09:10"))
    assert "ignores If-None-Match" in await words(b, at(1, "10:40"))
    await a.round(at(1, "10:41"))
    b.shelf._link = link  # type: ignore[method-assign]
    await b.round(at(1, "11:50"))
    assert same_everywhere(a, b).keys() == {name(), name(1)}


async def test_a_history_whose_books_by_podcast_are_too_large_for_an_entry_begins_without_them(
    node: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year of a large network: an entry that nobody could read would stop all nodes for good."""
    a = node("a", store=None)
    a.put([line for n in range(50) for line in rows_of(DAY, 1, n, podcast_id=f"podcast-{n}")], at(1, "04:10"))
    await a.round(at(1, "05:35"))
    b = node("b")
    monkeypatch.setattr("server.publish.shared.MOST_BYTES", 2000)
    a.restart(store=store_of(b))
    for site in (a, b):
        await words(site, at(1, "05:40"))
    assert same_everywhere(a, b).keys() == {name()}
    assert [list(site.ledger.books.get([1])) for site in (a, b)] == [[1], []]


async def test_a_ledger_that_finds_no_room_gets_it_from_what_others_pruned(
    node: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may be full for the ledger rather than for a file."""
    a, b, later = await pruned_and_published(node)
    applied = b.ledger.entries.applied

    def full(*what: Any) -> None:
        if (b.point.pickup_dir / name()).exists():
            raise LedgerError("the ledger cannot be used: its disk is full")
        applied(*what)

    monkeypatch.setattr(b.ledger.entries, "applied", full)
    with pytest.raises(LedgerError):
        b.publisher.catch_up()
    b.publisher.catch_up()
    same_everywhere(a, b)
    assert b.served() == [name(0, later)]


async def test_a_folder_without_its_ledger_becomes_the_first_entry_too(node: Callable[..., Site]) -> None:
    """Its names are spent: none of them gets another content, and none of its rows is sent again."""
    a, b = node("a", store=None), node("b")
    await publish(a)
    a.stop()
    for path in a.point.data_dir.glob("ledger.sqlite3*"):
        path.unlink()
    a.settings["store"] = store_of(b)
    a.start()
    a.put(rows_of(DAY, 25), at(1, "09:10"))
    for hour in (10, 11):
        await a.round(at(1, f"{hour}:40"))
    await b.round(at(1, "11:50"))
    assert same_everywhere(a, b).keys() == {name(), name(1)}
    assert b.standing_ids() == {f"{DAY}-{n}": 1 for n in range(25)}


async def test_who_has_published_the_same_bytes_at_another_time_does_not_join_with_them(
    node: Callable[..., Site],
) -> None:
    """Two services that were each alone: an mtime that a client has seen does not change, nor differ between nodes."""
    a, b = node("a", store=None), node("b", store=None)
    await publish(a)
    await publish(b, clock="06:35")
    for site in (a, b):
        site.restart(store=a.root.parent / "store")
        said = await words(site, at(1, "07:35"))
    assert "that the shared store does not know" in said
    b.check_folder()
    assert b.point.served[name()].mtime == a.point.served[name()].mtime + 3600


@pytest.mark.parametrize("remains", ["blobs", "copies"])
async def test_an_empty_node_begins_no_sequence_where_something_of_another_remains(
    node: Callable[..., Site], remains: str
) -> None:
    """Though the partner's objects tell of no log: whoever has that history may begin it, nobody else."""
    a, joins = node("a"), node("joins")
    await publish(a)
    for folder in {"sequence", "blobs", "copies"} - {remains}:
        shutil.rmtree(store_of(a) / folder)
    assert "has never published it" in await words(joins, at(1, "05:40"))
    assert joins.files() == [] and not list((store_of(a) / "sequence").glob("*"))


async def test_a_name_that_a_client_has_seen_gets_no_other_content(node: Callable[..., Site]) -> None:
    """The newest entry was lost before the log lay where the partner reads; its pickup tells of it."""
    a, b = node("a"), node("b")
    await publish(a)
    await b.round(at(1, "05:36"))
    await publish(a, SECOND)
    a.shelf.put(f"pickups/{name(0, SECOND)}~triton~a", b"{}")
    for path in [*store_of(a).glob("sequence/00000003"), *store_of(a).glob("copies/00000003~*")]:
        path.unlink()
    assert "lies in the store already" in await words(b, at(1, "05:40", SECOND))
    assert b.served() == [name()]
