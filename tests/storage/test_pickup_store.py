"""What a user has of a log: the union over handles and restarts, bounded, and honest about what is missing."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from server.convert.tally import PodcastBooks, Tally
from server.megaphone.exports import DayExport
from server.pickups import DOCTOR_CLIENT, MAX_ADDRESSES, MAX_RANGES, Delivered, Grade, Pickup, PickupProgress
from server.publish.clock import believe, doubt
from server.sftp.registry import Login
from server.storage import ledger as ledger_module
from server.storage.ledger import LIVE_DAYS, Ledger
from server.storage.pickup_store import KEPT_HANDLES, MAX_HANDLES
from server.storage.pickup_writer import PickupWriter
from server.storage.records import DayRecord, LedgerLog, Publication
from server.storage.tables import MIGRATIONS, packed_ranges, unpacked_ranges
from tests.support.rows import rules
from tests.support.site import DAY, at, log_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date
    from pathlib import Path

SIZE = 100_000
HOME, ELSEWHERE = "198.51.100.7", "203.0.113.9"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A new ledger with one published log."""
    with closing(Ledger.open(tmp_path / "ledger.sqlite3")) as opened:
        publish(opened)
        yield opened


def publish(ledger: Ledger, day: date = DAY, *, number: int = 0, sha256: str = "a" * 64) -> None:
    """Publish one log of a day, with books."""
    export = DayExport(day, "metrics-day.json.gz", "etag", 9, at(1, "04:10"))
    books = PodcastBooks()
    books.count(["podcast"], [True], {})
    made = Publication(0, day, "first", export, rules(), Tally(rows=5, lines=5), at(1, "05:35"), None, podcasts=books)
    entry = LedgerLog(log_name(number, day), 0, SIZE, sha256, 1000, 5, "intended")
    ledger.published(ledger.intend(made, [entry], [5]), at(1, "05:36"), checked_etag="etag")


def read(
    *ranges: tuple[int, int], user: str = "triton", address: str = HOME, started: datetime | None = None,
    client: str = "JSch", arrived: bool = True, tail: int = 0, alone: bool = True,
) -> Pickup:  # fmt: skip
    """The record of a handle on which these ranges were read, and of a killed one what it had taken besides."""
    it = PickupProgress(log_name(), SIZE, user, address, client, started or at(1, "07:00"), alone=alone)
    it.first_read = ranges[0][0] if ranges else None
    for start, end in ranges:
        it.answered(start, end - start)
        if arrived:
            it.delivered(start, end - start)
    if tail:
        it.answered(it.run[1], tail - it.run[1])
        it.leave_tail(it.proven.ranges[-1][1] if it.proven.bytes else it.run[0], tail)
    return it.finished(it.started + timedelta(minutes=1), closed=True)


def has(ledger: Ledger, user: str = "triton") -> Delivered:
    """What a user has of the log."""
    (found,) = [what for what in ledger.pickups.delivered([log_name()]) if what.user == user]
    return found


HALF = SIZE // 2
KILLED = read((0, 10_000), tail=HALF)  # half of it acknowledged, a tenth answered for
RESUMED_AND_KILLED = read((30_000, 30_010), arrived=False, tail=70_000)
COMPLETE: list[tuple[str, Sequence[Pickup]]] = [
    ("at once", [read((0, SIZE))]),
    ("resumed from another address", [read((0, HALF)), read((HALF - 10, SIZE), address=ELSEWHERE)]),
    ("in four parts, out of order", [read((n * 25_000, (n + 1) * 25_000)) for n in (2, 0, 3, 1)]),
    ("in tiny pieces that join", [read(*((n, n + 10) for n in range(0, SIZE, 10)))]),
    ("killed and resumed", [KILLED, read((30_000, SIZE))]),
    ("killed and resumed elsewhere", [KILLED, read((30_000, SIZE), address=ELSEWHERE)]),
    ("killed, opened, resumed", [KILLED, read(), read((30_000, SIZE))]),
    ("killed and resumed, twice", [KILLED, read((30_000, 40_000), tail=60_000), read((60_000, SIZE))]),
    ("killed twice, unanswered", [read((0, 10), arrived=False, tail=30_000), RESUMED_AND_KILLED, read((60_000, SIZE))]),
]
PARTIAL: list[tuple[str, Sequence[Pickup]]] = [
    ("half by each of two users", [read((0, HALF)), read((HALF, SIZE), user="other")]),
    ("the same half twice", [read((0, HALF)), read((0, HALF))]),
    ("all but one byte", [read((0, HALF)), read((HALF + 1, SIZE))]),
    ("half by the doctor", [read((0, HALF)), read((HALF, SIZE), client=DOCTOR_CLIENT)]),
    ("all answered, half arrived", [read((0, HALF)), read((0, SIZE), arrived=False)]),
    ("killed, and resumed after what it took", [KILLED, read((HALF + 1, SIZE))]),
    ("killed, and resumed by another user", [KILLED, read((30_000, SIZE), user="other")]),
    ("killed, and resumed by the doctor", [KILLED, read((30_000, SIZE), client=DOCTOR_CLIENT)]),
    ("killed, and fetched in pieces", [KILLED, read((30_000, SIZE), alone=False)]),
    ("killed, begun anew, and gone on later", [KILLED, read((0, 10)), read((30_000, SIZE))]),
    ("killed, and fetched in pieces before", [KILLED, read((0, 10), alone=False), read((30_000, SIZE))]),
    ("killed, resumed and not read", [KILLED, read((30_000, SIZE), arrived=False)]),
    ("killed, resumed, and resumed again", [KILLED, read((30_000, 40_000)), read((45_000, SIZE))]),
]


@pytest.mark.parametrize(
    ("records", "complete"),
    [*(pytest.param(r, True, id=n) for n, r in COMPLETE), *(pytest.param(r, False, id=n) for n, r in PARTIAL)],
)
def test_a_log_is_picked_up_when_the_union_covers_it(ledger: Ledger, records: Sequence[Pickup], complete: bool) -> None:
    """Over all handles, sessions and restarts of one user; told once, when the last byte came."""
    told = []
    for record in records:
        with closing(Ledger.open(ledger.path)) as service:  # each time started anew
            told.append(service.pickups.record(record))
    found = has(ledger)
    assert (found.completed is not None, found.state) == ((True, "complete") if complete else (False, "partial"))
    assert [one is not None for one in told] == [False] * (len(records) - 1) + [complete]
    again = ledger.pickups.record(read((0, SIZE), started=at(2)))
    assert (again is None) is complete
    assert has(ledger).completed == (records[-1].ended if complete else at(2, "00:01"))


def test_the_addresses_that_contributed_are_kept_and_bounded(ledger: Ledger) -> None:
    """Whoever brought nothing new is not among them."""
    ledger.pickups.record(read((0, 10)))
    ledger.pickups.record(read((0, 10), address="192.0.2.1"))
    ledger.pickups.record(read((10, 20), address=ELSEWHERE))
    assert (has(ledger).addresses, has(ledger).handles, has(ledger).bytes) == ((HOME, ELSEWHERE), 3, 20)
    for number in range(40):
        ledger.pickups.record(read((100 + number, 101 + number), address=f"192.0.2.{number}"))
    assert len(has(ledger).addresses) == MAX_ADDRESSES


def test_too_many_pieces_are_told_and_prove_nothing(ledger: Ledger) -> None:
    """Every second byte, then the others: all of it was delivered, and nobody can tell; a whole read settles it."""
    for first in range(0, 20_000, 5_000):
        ledger.pickups.record(read(*((n, n + 1) for n in range(first, first + 5_000, 2))))
    assert (has(ledger).state, has(ledger).pieces) == ("too fragmented", MAX_RANGES)
    for first in range(0, 20_000, 5_000):
        ledger.pickups.record(read(*((n, n + 1) for n in range(first + 1, first + 5_000, 2))))
    ledger.pickups.record(read((20_000, SIZE)))
    assert (has(ledger).state, has(ledger).completed) == ("too fragmented", None)
    ledger.pickups.record(read((0, SIZE)))
    assert (has(ledger).state, has(ledger).pieces) == ("complete", 1)


def test_a_log_of_the_same_name_and_other_bytes_begins_anew(tmp_path: Path) -> None:
    """The union belongs to the bytes that were read: name and SHA-256."""
    path = tmp_path / "ledger.sqlite3"
    with closing(Ledger.open(path)) as ledger:
        publish(ledger)
        ledger.pickups.record(read((0, HALF)))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("UPDATE log SET sha256 = ?", ("b" * 64,))
        assert ledger.pickups.delivered([log_name()]) == []
        assert ledger.pickups.record(read((HALF, SIZE))) is None
        assert has(ledger).bytes == SIZE - HALF


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 40)), max_size=50))
def test_packed_ranges_come_back(steps: list[tuple[int, int]]) -> None:
    """Whatever the gaps and lengths."""
    ranges, end = [], 0
    for gap, length in steps:
        ranges.append((end + gap, end + gap + length))
        end += gap + length
    assert unpacked_ranges(packed_ranges(ranges)) == ranges


# Bounds


def rows(ledger: Ledger, question: str = "SELECT count(*) FROM pickup") -> int:
    """A number that another process reads in the file."""
    with closing(sqlite3.connect(ledger.path)) as connection:
        (found,) = connection.execute(question).fetchone()
    return int(found)


def test_a_client_that_opens_a_log_for_ever_does_not_grow_the_ledger(ledger: Ledger) -> None:
    """Three thousand handles: a thousand rows at most, the first, the best and the newest among them, and the count."""
    first = read((0, 10), started=at(1, "06:00"))
    best = read((0, HALF), started=at(1, "06:01"))
    begin = at(1, "07:00")
    many = [read((0, 1), started=begin + timedelta(seconds=n)) for n in range(3 * MAX_HANDLES)]
    with ledger.together():
        for record in (first, best, *many):
            ledger.pickups.record(record)
    kept = {record.id for record in ledger.pickups.handles([log_name()])}
    assert KEPT_HANDLES <= len(kept) <= MAX_HANDLES
    assert {first.id, best.id, *(record.id for record in many[-KEPT_HANDLES // 2 :])} <= kept
    assert has(ledger).handles == 3 * MAX_HANDLES + 2


def test_old_handles_are_thinned_out_to_the_first_the_best_and_the_last(ledger: Ledger) -> None:
    """Of each user; those that are not old, and those that are open, stay; a second pass finds nothing to do."""
    old = [read((0, 10 + (n == 5)), started=at(1) + timedelta(hours=n)) for n in range(10)]
    other = read((0, 10), user="other", started=at(1))
    doctors = [read((0, SIZE), client=DOCTOR_CLIENT, started=at(1) + timedelta(hours=n)) for n in range(4)]
    still_open = PickupProgress(log_name(), SIZE, "triton", HOME, "JSch", at(1, "05:00")).opened()
    for record in (*old, other, *doctors, still_open):
        ledger.pickups.record(record)
    for _ in range(2):
        ledger.pickups.thin_out(at(2))
        kept = {record.id for record in ledger.pickups.handles([log_name()])}
        assert kept == {old[0].id, old[5].id, old[9].id, other.id, doctors[0].id, doctors[3].id, still_open.id}
    new = [read((0, 10), started=at(20) + timedelta(hours=n)) for n in range(3)]
    for record in new:
        ledger.pickups.record(record)
    ledger.pickups.thin_out(at(10))
    kept = {record.id for record in ledger.pickups.handles([log_name()])}
    assert {old[0].id, old[5].id, *(record.id for record in new)} <= kept
    ledger.pickups.thin_out(at(30))
    kept = {record.id for record in ledger.pickups.handles([log_name()]) if record.user == "triton"}
    assert kept - {record.id for record in doctors} == {old[0].id, old[5].id, new[2].id, still_open.id}
    assert (has(ledger).handles, has(ledger, "other").handles) == (14, 1)


def test_what_is_pruned_leaves_its_name_and_who_had_it(ledger: Ledger) -> None:
    """The ranges and the books by podcast go; who had how much, and the name, stay."""
    publish(ledger, number=1)
    ledger.pickups.record(read((0, HALF)))
    numbers = [publication.id for publication in ledger.publications(DAY)]
    assert set(ledger.books.get(numbers)) == set(numbers)
    ledger.pruned(log_name(), at(61))
    assert set(ledger.books.get(numbers)) == {numbers[1]}
    assert rows(ledger, "SELECT length(ranges) FROM delivered") == 0
    assert (has(ledger).bytes, has(ledger).state) == (HALF, "partial")
    ledger.pickups.record(read((HALF, SIZE)))
    assert has(ledger).completed is None


def test_only_the_days_that_matter_are_read(ledger: Ledger) -> None:
    """The newest hundred, and all since the oldest day whose log is still there."""
    days = [DAY + timedelta(days=n) for n in range(1, LIVE_DAYS + 20)]
    for day in days:
        ledger.see(DayRecord(day, "due", at(1), None))
        publish(ledger, day)
        ledger.pruned(log_name(0, day), at(61))
    assert ledger.horizon() == DAY and len(ledger.live_publications()) == len(days) + 1
    ledger.pruned(log_name(), at(61))
    assert ledger.horizon() == days[-LIVE_DAYS]
    assert [publication.day for publication in ledger.live_publications()] == days[-LIVE_DAYS:]
    assert sorted(ledger.live_days()) == days[-LIVE_DAYS:]
    assert ledger.day(days[0]) == DayRecord(days[0], "due", at(1), None, checked_etag="etag", checked_at=at(1))
    assert ledger.published_logs() == [] and len(ledger.logs()) == len(days) + 1
    assert ledger.newest_mtime() == 1000
    assert ledger.row_totals() == {"line": 5 * (len(days) + 1)}


def test_an_older_ledger_is_carried_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole pickups stay whole, with their addresses and the first end; what was partial has its count; rows add up."""
    path = tmp_path / "ledger.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        monkeypatch.setattr(ledger_module, "MIGRATIONS", MIGRATIONS[:3])
        ledger_module._migrate(path, old)
        old.execute(
            "INSERT INTO publication (id, delivery, day, kind, export_key, export_etag, export_size, rules, tally,"
            " intended_at, published_at) VALUES (1, 'default', '2026-11-20', 'first', 'k', 'e', 1, '{}', ?, ?, ?)",
            ('{"rows":5,"lines":3,"filtered":{"short":1},"rejected":{"no_ip":1}}', "2026-11-21", "2026-11-21"),
        )
        old.execute("INSERT INTO log VALUES (?, 1, ?, 'aa', 1, 3, 'published', NULL, NULL)", (str(log_name()), SIZE))
        old.execute("INSERT INTO podcast_books VALUES (1, '{}')")
        for number, (user, grade, covered) in enumerate(
            [("triton", "partial", 10), ("triton", "complete", SIZE), ("triton", "complete", SIZE),
             ("other", "partial", 10), ("doctored", "test", SIZE)]
        ):  # fmt: skip
            begin, end = f"2026-11-21T07:0{number}:00.000+00:00", f"2026-11-21T08:0{number}:00.000+00:00"
            old.execute(
                "INSERT INTO pickup VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                (str(number), str(log_name()), user, HOME, "JSch", begin, end, SIZE, covered, covered, grade, "closed"),
            )
    monkeypatch.undo()
    with closing(Ledger.open(path)) as ledger:
        triton, other = has(ledger), has(ledger, "other")
        assert (triton.completed, triton.handles, triton.addresses) == (at(1, "08:01"), 3, (HOME,))
        assert (triton.bytes, triton.pieces, triton.first, triton.last) == (SIZE, 1, at(1, "07:00"), at(1, "08:02"))
        assert (other.state, other.handles, other.addresses) == ("opened", 1, ())
        assert len(ledger.pickups.delivered([log_name()])) == 2
        assert [record.delivered for record in ledger.pickups.handles([log_name()])] == [0, SIZE, SIZE, 0, 0]
        assert ledger.row_totals() == {"line": 3, "short": 1, "no_ip": 1}
        assert set(ledger.books.get([1])) == {1}  # written uncompressed


# The writer


async def test_what_is_reported_is_written_together_and_a_log_in_pieces_is_told(ledger: Ledger) -> None:
    """A thousand reports while the ledger is busy are a few transactions; one line says who has the log, from where."""
    writer = PickupWriter(ledger)
    for record in [read((n, n + 1)) for n in range(1000)]:
        writer.on_pickup(record)
    writer.on_pickup(read((0, HALF)))
    writer.on_pickup(read((HALF, SIZE), address=ELSEWHERE))
    writer.on_pickup(read((0, SIZE), user="other"))
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement == "COMMIT"

    ledger._connection.set_trace_callback(count)
    with capture_logs() as entries:
        await writer.close(asyncio.create_task(writer.write_forever()))
    ledger._connection.set_trace_callback(None)
    assert 1 <= commits <= 10
    (line,) = entries
    assert line["event"] == f"triton picked up {log_name()} in pieces"
    assert (line["handles"], line["by"]) == (1002, f"{HOME},{ELSEWHERE}")
    assert has(ledger, "other").state == "complete"
    assert [record.grade for record in ledger.pickups.handles([log_name()]) if record.user == "other"] == [
        Grade.COMPLETE
    ]


async def test_a_clock_that_ran_ahead_leaves_no_silence_of_years(ledger: Ledger) -> None:
    """After it no silence of the partner's would be too long for an alarm; a clock that is believed measures."""
    login = Login(1, "triton", HOME, "Client_1.0", "password", "-", "-", "-", "-")
    now, day = datetime.now(UTC), timedelta(days=1)
    for believed, longest in ((now - 400 * day, timedelta()), (now, day)):
        ledger.record_login("triton", now - day, HOME, "Client_1.0")
        believe(ledger, believed)
        writer = PickupWriter(ledger, lambda at: doubt(ledger, at))
        writer.on_login(login)
        await writer.close(asyncio.create_task(writer.write_forever()))
        at, _, _, silence = ledger.logins()["triton"]
        assert at >= now - timedelta(seconds=1) and round(timedelta(seconds=silence) / day) == longest / day
    # And one that was behind for a month, and was put right between two logins, none of a month.
    ledger.record_login("triton", now - 30 * day, HOME, "Client_1.0", measured=False)
    writer.on_login(login)
    await writer.close(asyncio.create_task(writer.write_forever()))
    assert ledger.logins()["triton"][3] < 2 * day.total_seconds()
