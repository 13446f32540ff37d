"""Pickups at several nodes count as those of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from server.errors import StoreError
from server.pickups import PickupProgress
from server.publish.shared_pickups import SharedPickups
from server.publish.store_state import HEARD
from tests.support.site import DAY, Site, at, name, rows_of

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from server.pickups import Delivered

pytestmark = pytest.mark.usefixtures("_conversions_here")


@pytest.fixture
async def nodes(tmp_path: Path) -> Any:
    """Two nodes that serve a day, each with what it exchanges pickups by."""
    sites = [Site(tmp_path / word, store=tmp_path / "store", exports=tmp_path / "exports") for word in "ab"]
    sites[0].put(rows_of(DAY, 50), at(1, "04:10"))
    for site in sites:
        await site.round(at(1, "05:35"))
        site.source.now = at(1, "12:00")  # the store's clock
    yield sites
    for site in sites:
        site.stop()


def pickups_of(site: Site, word: str = "") -> SharedPickups:
    """As a start of the service makes it."""
    return SharedPickups(lambda: site.shelf.opened(), site.ledger, word or site.root.name, lambda: "new")


def read(site: Site, now: datetime, start: float, end: float) -> None:
    """A client reads a part of the day's file."""
    (file,) = site.point.served.values()
    progress = PickupProgress(file.name, file.size, "triton", f"198.51.100.{ord(site.root.name)}", "JSch", now)
    first, last = int(file.size * start), int(file.size * end)
    progress.answered(first, last - first)
    progress.delivered(first, last - first)
    site.ledger.pickups.record(progress.finished(now, closed=True), now)
    site.ledger.record_login("triton", now, "198.51.100.7", "JSch")


def delivered(site: Site) -> Delivered:
    """What the partner has, as this node knows it."""
    (found,) = site.ledger.pickups.delivered([log.name for log in site.ledger.logs()])
    return found


async def test_a_file_that_is_read_at_two_nodes_is_picked_up(nodes: list[Site]) -> None:
    """The union decides, on both; deadlines follow; a file that one has whole is whole."""
    a, b = nodes
    read(a, at(1, "08:00"), 0, 0.6)
    read(b, at(1, "09:00"), 0.5, 1)
    for site in (a, b, a):
        pickups_of(site).exchange()
    for site in nodes:
        found = delivered(site)
        assert (found.state, found.bytes, found.handles, found.completed) == ("complete", found.size, 2, at(1, "09:00"))
        assert found.addresses != () and len(set(found.addresses)) == 2
        assert site.state(at(1, "10:00")) == "picked up"
        assert "day_not_picked_up" not in site.alarm_names(at(2, "23:00"))
        assert site.ledger.logins()["triton"][0] == at(1, "09:00")
    assert delivered(a).nodes == ("b",)


async def test_a_standby_that_has_done_nothing_is_known_to_the_others(nodes: list[Site]) -> None:
    """It has published nothing, and nobody has come to it; each name is recorded once."""
    a, b = nodes
    for site in (b, a):
        pickups_of(site).exchange()
    assert a.ledger.facts()[HEARD] == ["b"]
    pickups_of(b).exchange()
    assert b.ledger.facts()[HEARD] == ["a", "b"]


async def test_what_one_does_not_have_whole_is_not_whole(nodes: list[Site]) -> None:
    """Halves that overlap do not make a whole; what is read again is not counted twice."""
    a, b = nodes
    read(a, at(1, "08:00"), 0, 0.5)
    read(b, at(1, "09:00"), 0.2, 0.7)
    for site in (a, b, a, b):
        pickups_of(site).exchange()
    for site in nodes:
        found = delivered(site)
        assert (found.state, found.bytes) == ("partial", int(found.size * 0.7))
        assert "day_not_picked_up" in site.alarm_names(at(2, "23:00"))
    read(b, at(1, "11:00"), 0.6, 1)
    exchanges = [pickups_of(site) for site in nodes]
    for exchange in (*exchanges[::-1], *exchanges):
        exchange.exchange()
    assert delivered(a).state == delivered(b).state == "complete"


async def test_strange_objects_claim_nothing_and_pruned_logs_leave_none(nodes: list[Site]) -> None:
    """Nothing that another version or a stranger writes stops the exchange."""
    a, b = nodes
    read(a, at(1, "08:00"), 0, 1)
    for site in nodes:
        pickups_of(site).exchange()
    ((_, _, progress),) = a.ledger.pickups.progress()
    naive = orjson.dumps(progress | {"first": "2026-11-21T08:00:00"})  # of which time zone?
    before_the_file, endless = (
        orjson.dumps(progress | {"completed": None, "ranges": [what]}) for what in ((-5, 10), (0, 1e30))
    )
    strange = (b"", b"[]", b"{}", b'{"sha256":1,"ranges":[1]}', b"\xff", naive, before_the_file, endless)
    for number, data in enumerate(strange):
        a.shelf.put(f"pickups/{name()}~triton~stranger-{number}", data)
        a.shelf.put(f"pickups/logins~~stranger-{number}", data)
    a.shelf.put("pickups/nonsense", b"{}")
    a.shelf.put("pickups/logins~~older", b'{"triton":["2026-11-21T08:30:00+00:00","198.51.100.7","JSch"]}')
    pickups_of(b).exchange()
    assert delivered(b).state == "complete" and delivered(b).nodes == ("a",)
    assert b.ledger.logins()["triton"][0] == at(1, "08:30")
    b.prune(at(62, "00:00"))
    kept = {
        "logins~~a",
        "logins~~b",
        "logins~~older",
        "nonsense",
        *(f"logins~~stranger-{number}" for number in range(len(strange))),
    }
    for site in (b, a):
        site.publisher.catch_up()
        pickups_of(site).exchange()
        assert {shelved.name for shelved in a.shelf.list("pickups")} == kept


async def test_two_nodes_that_were_given_one_name_lose_no_pickup(nodes: list[Site]) -> None:
    """A copied data folder has its node's name; so does one that was restored, which has forgotten what it reported."""
    a, b = nodes
    exchanges = [pickups_of(a, "same"), pickups_of(b, "same")]
    read(a, at(1, "08:00"), 0, 0.6)
    read(b, at(1, "09:00"), 0.5, 1)
    for exchange in (*exchanges, *exchanges):
        exchange.exchange()
    assert delivered(a).state == delivered(b).state == "complete"
    assert {shelved.name for shelved in a.shelf.list("pickups")} >= {f"{name()}~triton~same", f"{name()}~triton~new"}


async def test_what_lies_there_no_more_is_told_again_and_a_right_to_read_is_enough_to_hear(nodes: list[Site]) -> None:
    """A life-cycle rule removed it; nothing that a node may not write or remove keeps it from hearing."""
    a, b = nodes
    telling = pickups_of(a)
    read(a, at(1, "08:00"), 0, 1)
    read(b, at(1, "08:10"), 0, 0.1)
    telling.exchange()
    a.shelf.remove(f"pickups/{name()}~triton~a")
    telling.exchange()

    def read_only(operation: str, _: str, done: bool) -> None:
        if operation in ("put", "remove") and not done:
            raise StoreError("AccessDenied")

    b.shelf.weather = read_only
    with pytest.raises(StoreError):
        pickups_of(b).exchange()
    assert delivered(b).state == "complete"


async def test_a_node_whose_clock_is_ahead_tells_of_no_future(nodes: list[Site]) -> None:
    """Its clock leapt by a year: the others would not notice for as long that the partner has stopped coming."""
    a, b = nodes
    read(b, at(1, "08:00"), 0, 0.1)
    read(a, at(366, "08:00"), 0, 1)
    for site in (a, b):
        pickups_of(site).exchange()
    found, login = delivered(b), b.ledger.logins()["triton"]
    assert found.completed == found.last == login[0] == at(1, "12:00") and login[3] < 5 * 3600


async def test_an_earlier_write_that_arrives_late_is_told_over(nodes: list[Site]) -> None:
    """A proxy, or the SDK, repeats a request whose answer was lost, after what followed it."""
    a, b = nodes
    telling = pickups_of(a)
    read(a, at(1, "08:00"), 0, 0.5)
    telling.exchange()
    earlier = a.shelf.read(f"pickups/{name()}~triton~a", 1 << 20)
    read(a, at(1, "09:00"), 0.5, 1)
    telling.exchange()
    assert earlier is not None
    a.shelf.put(f"pickups/{name()}~triton~a", earlier)
    telling.exchange()
    pickups_of(b).exchange()
    assert delivered(b).state == "complete" and delivered(b).nodes == ("a",)


async def test_a_node_that_could_not_tell_of_logins_teaches_no_silence(nodes: list[Site]) -> None:
    """It was cut off from the store, or its clock was behind; a silence at every node is one."""
    a, b = nodes

    def login(site: Site, days: int, clock: str = "08:00") -> None:
        site.ledger.record_login("triton", at(days, clock), "198.51.100.7", "JSch")

    def exchanged(days: int) -> int:
        for site in (a, b):
            site.source.now = at(days, "12:00")  # the store's clock
            pickups_of(site).exchange()
        return b.ledger.logins()["triton"][3] // 3600

    for site in nodes:
        login(site, 1)
    assert exchanged(1) == 0
    for day in range(2, 8):
        login(a, day)
    assert exchanged(7) == 24 and b.ledger.logins()["triton"][0] == at(7, "08:00")
    login(a, 10)
    assert exchanged(10) == 72
