"""The record of a pickup, for every way a file can be taken."""

from __future__ import annotations

import asyncio
import os
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from server.pickups import Ending, Grade, Pickup, PickupProgress
from server.sftp.delivery import TELL_EVERY, ByteStream, CountedTransport, Delivery
from server.triton import LogName

from ..support.sftp import NAME, RawSftp, Running, acknowledged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SIZE = 1_000_003
CLOSE, READ = 4, 5


@pytest.fixture
async def raw(listener: Running) -> AsyncIterator[RawSftp]:
    """Open a session on a server with a file of SIZE random bytes."""
    listener.served.prune(NAME)
    listener.served.add(NAME, os.urandom(SIZE))
    async with listener.connect() as connection:
        yield await RawSftp.open(connection)


def verdict(pickup: Pickup) -> tuple[Any, ...]:
    return pickup.grade, pickup.ending, pickup.covered, pickup.bytes_answered


async def test_a_whole_read_is_complete(listener: Running, raw: RawSftp) -> None:
    """Front to end, then closed: complete; the record holds who, from where, with what, when."""
    with capture_logs() as entries:
        handle = await raw.open_file(NAME)
        (opened,) = listener.pickups
        assert (opened.grade, opened.ended, opened.ending) == (Grade.OPENED, None, None)
        for offset in range(0, SIZE, 50_000):
            await raw.read(handle, offset, 50_000)
        await raw.status(CLOSE, handle)
        (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (Grade.COMPLETE, Ending.CLOSED, SIZE, SIZE)
    assert pickup.id == opened.id
    assert (pickup.user, pickup.address, str(pickup.name), pickup.size) == ("triton", "127.0.0.1", NAME, SIZE)
    assert pickup.client.startswith("AsyncSSH_")
    assert pickup.ended is not None
    assert pickup.started <= pickup.ended
    (line,) = [entry for entry in entries if "picked up" in entry["event"]]
    assert line["event"] == f"[conn=1 triton 127.0.0.1] picked up {NAME}"
    assert line["bytes"] == SIZE


async def test_reads_in_any_order_are_complete(listener: Running, raw: RawSftp) -> None:
    """The union of the ranges counts, not their order."""
    handle = await raw.open_file(NAME)
    offsets = list(range(0, SIZE, 9_000))
    random.Random(1).shuffle(offsets)
    for offset in offsets:
        await raw.read(handle, offset, 9_000)
    await raw.status(CLOSE, handle)
    (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (Grade.COMPLETE, Ending.CLOSED, SIZE, SIZE)


async def test_tails_read_again_count_once(listener: Running, raw: RawSftp) -> None:
    """OpenSSH reads past the end and reads tails again: more bytes, the same coverage."""
    handle = await raw.open_file(NAME)
    for offset in range(0, SIZE, 200_000):
        await raw.read(handle, offset, 200_000)
    await raw.read(handle, SIZE - 1000, 32_768)
    assert await raw.read(handle, SIZE, 32_768) is None
    await raw.status(CLOSE, handle)
    (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (Grade.COMPLETE, Ending.CLOSED, SIZE, SIZE + 1000)


async def test_as_many_bytes_as_the_file_has_prove_nothing(listener: Running, raw: RawSftp) -> None:
    """The first half read twice is a partial pickup."""
    handle = await raw.open_file(NAME)
    for offset in [*range(0, SIZE // 2, 100_000)] * 3:
        await raw.read(handle, offset, 100_000)
    await raw.status(CLOSE, handle)
    (pickup,) = await listener.finished_pickups()
    assert pickup.bytes_answered > SIZE
    assert (pickup.grade, pickup.ending, pickup.covered) == (Grade.PARTIAL, Ending.CLOSED, 600_000)


async def test_a_half_read_closed_cleanly_is_partial(listener: Running, raw: RawSftp) -> None:
    """Half a file, closed: partial, closed."""
    with capture_logs() as entries:
        handle = await raw.open_file(NAME)
        await raw.read(handle, 0, 200_000)
        await raw.status(CLOSE, handle)
        (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (Grade.PARTIAL, Ending.CLOSED, 200_000, 200_000)
    (line,) = [entry for entry in entries if f"left {NAME}" in entry["event"]]
    assert (line["bytes"], line["of"], line["grade"], line["ended"]) == (200_000, SIZE, "partial", "closed")


async def test_a_file_whose_last_byte_was_acknowledged_needs_no_close(listener: Running, raw: RawSftp) -> None:
    """Everything read, nothing closed: complete while the session goes on, and reported once; then the session ends."""
    handle = await raw.open_file(NAME)
    for offset in range(0, SIZE, 200_000):
        await raw.read(handle, offset, 200_000)
    async with asyncio.timeout(20):
        while listener.pickups[-1].grade is not Grade.COMPLETE:  # noqa: ASYNC110  # the listener calls back
            await asyncio.sleep(0.01)
    assert (listener.pickups[-1].ended, listener.pickups[-1].ranges) == (None, ((0, SIZE),))
    assert await raw.read(handle, 0, 1000) is not None
    raw.writer.channel.abort()
    (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (Grade.COMPLETE, Ending.INTERRUPTED, SIZE, SIZE + 1000)
    assert len(listener.pickups) == 3


@pytest.mark.parametrize("closes", [True, False])
async def test_of_a_client_that_answers_no_questions_only_the_close_proves_something(
    listener: Running, closes: bool
) -> None:
    """SSH.NET answered none for years: complete when it closes after the bytes, partial when it does not."""
    async with listener.connect() as connection:
        connection._process_keepalive_at_openssh_dot_com_global_request = lambda _: None
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        size = listener.served.files[NAME].size
        for offset in range(0, size, 200_000):
            await raw.read(handle, offset, 200_000)
        if closes:
            await raw.status(CLOSE, handle)
    (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (
        (Grade.COMPLETE, Ending.CLOSED, size, size) if closes else (Grade.PARTIAL, Ending.INTERRUPTED, size, size)
    )


async def test_a_cut_connection_proves_what_its_client_has(listener: Running) -> None:
    """Half of a file read, then a cut: that half was delivered, to the byte, and a later session may read the rest."""
    connection = await listener.connect()
    raw = await RawSftp.open(connection)
    handle = await raw.open_file(NAME)
    for offset in range(0, 500_000, 10_000):
        await raw.read(handle, offset, 10_000)
    connection.abort()
    (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (Grade.PARTIAL, Ending.INTERRUPTED, 500_000, 500_000)
    assert pickup.ranges == ((0, 500_000),)


async def test_a_close_sent_ahead_of_the_bytes_proves_nothing(listener: Running) -> None:
    """Reads and CLOSE sent at once, nothing taken, connection cut: partial, interrupted."""
    listener.served.add("MEGA20261121-00.tsv.gz", bytes(8_000_000))
    connection = await listener.connect()
    raw = await RawSftp.open(connection)
    handle = await raw.open_file("MEGA20261121-00.tsv.gz")
    raw.writer.channel.pause_reading()
    for offset in range(0, 8_000_000, 200_000):
        raw.send(bytes([READ]) + bytes(4) + handle + offset.to_bytes(8, "big") + (200_000).to_bytes(4, "big"))
    raw.send(bytes([CLOSE]) + bytes(4) + handle)
    await asyncio.sleep(0.3)
    assert listener.finished == []
    connection.abort()
    (pickup,) = await listener.finished_pickups()
    assert (pickup.grade, pickup.ending) == (Grade.PARTIAL, Ending.INTERRUPTED)


async def test_a_close_sent_ahead_is_complete_once_the_bytes_were_taken(listener: Running, raw: RawSftp) -> None:
    """The same client, but it takes everything in the end: complete."""
    handle = await raw.open_file(NAME)
    offsets = range(0, SIZE, 100_000)
    for offset in offsets:
        raw.send(bytes([READ]) + bytes(4) + handle + offset.to_bytes(8, "big") + (100_000).to_bytes(4, "big"))
    raw.send(bytes([CLOSE]) + bytes(4) + handle)
    for _ in range(len(offsets) + 1):
        await raw.receive()
    (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (Grade.COMPLETE, Ending.CLOSED, SIZE, SIZE)


async def test_two_sessions_at_once_have_two_records(listener: Running) -> None:
    """Each handle is a pickup of its own, also on one connection and of one file."""
    async with listener.connect() as one, listener.connect() as two:
        first, second = await RawSftp.open(one), await RawSftp.open(two)
        third = await RawSftp.open(two)
        handles = [await raw.open_file(NAME) for raw in (first, second, third)]
        size = listener.served.files[NAME].size
        for offset in range(0, size, 200_000):
            await asyncio.gather(first.read(handles[0], offset, 200_000), third.read(handles[2], offset, 200_000))
        await second.read(handles[1], 0, 10)
        for raw, handle in zip((first, second, third), handles, strict=True):
            await raw.status(CLOSE, handle)
        pickups = await listener.finished_pickups(3)
    assert len({pickup.id for pickup in pickups}) == 3
    assert sorted(pickup.grade for pickup in pickups) == [Grade.COMPLETE, Grade.COMPLETE, Grade.PARTIAL]


async def test_a_file_pruned_during_a_transfer_is_still_picked_up(listener: Running, raw: RawSftp) -> None:
    """The open handle reads on, and the record is complete."""
    handle = await raw.open_file(NAME)
    await raw.read(handle, 0, 100_000)
    listener.served.prune(NAME)
    for offset in range(100_000, SIZE, 100_000):
        await raw.read(handle, offset, 100_000)
    await raw.status(CLOSE, handle)
    (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (Grade.COMPLETE, Ending.CLOSED, SIZE, SIZE)


async def test_an_opened_file_that_was_not_read_is_opened(listener: Running, raw: RawSftp) -> None:
    """Opening a file is not a pickup."""
    await raw.status(CLOSE, await raw.open_file(NAME))
    (pickup,) = await listener.finished_pickups()
    assert verdict(pickup) == (Grade.OPENED, Ending.CLOSED, 0, 0)


async def test_a_transfer_may_finish_while_the_service_stops(listener: Running, raw: RawSftp) -> None:
    """drain lets the open file be read to its end, lets no new one be opened, then closes the connections."""
    handle = await raw.open_file(NAME)
    draining = asyncio.create_task(listener.server.drain(20))
    await asyncio.sleep(0)
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", listener.port or 1)
    assert (await raw.ask(3, b"\0\0\0\x16" + NAME.encode() + b"\0\0\0\1" + bytes(4)))[0] == 101
    for offset in range(0, SIZE, 100_000):
        await raw.read(handle, offset, 100_000)
    await raw.status(CLOSE, handle)
    await asyncio.wait_for(draining, 10)
    (pickup,) = listener.finished
    assert pickup.grade is Grade.COMPLETE
    assert listener.server.registry.connected == 0


async def test_a_transfer_that_does_not_finish_is_cut_when_the_time_is_over(listener: Running, raw: RawSftp) -> None:
    """drain waits no longer than its limit, and the record says interrupted."""
    handle = await raw.open_file(NAME)
    await raw.read(handle, 0, 100_000)
    await asyncio.wait_for(listener.server.drain(0.2), 10)
    (pickup,) = listener.finished
    assert verdict(pickup) == (Grade.PARTIAL, Ending.INTERRUPTED, 100_000, 100_000)


def test_an_open_handle_is_told_now_and_then() -> None:
    """What arrived on a handle that stays open is reported within ten seconds, once; then nothing is waited for."""
    reports: list[Pickup] = []
    delivery = acknowledged(reports.append)
    name = LogName.parse(NAME)
    assert name is not None
    progress = PickupProgress(name, SIZE, "triton", "198.51.100.7", "JSch", datetime(2026, 11, 21, 7, tzinfo=UTC))
    delivery.answered(progress, 0, 10)
    assert not delivery.waits  # it has not been sent
    delivery.handed_over(23, data=True)
    for _ in range(2 * TELL_EVERY):
        delivery.tick()
    (told,) = reports
    assert (told.ranges, told.ended, told.grade) == (((0, 10),), None, Grade.PARTIAL)
    assert not delivery.waits


class Unanswered:
    """A stream of bytes that all arrive, and of questions that nobody answers."""

    written = proven = last_question = asked = 0
    answers = True

    @property
    def asking(self) -> bool:
        return self.asked > 0

    def acknowledged(self) -> int:
        return self.written

    def ask(self) -> None:
        self.asked += 1
        self.last_question = self.written


def test_a_question_follows_what_a_client_may_leave_after() -> None:
    """One is under way while something waits; one more after the end of a file, and after the last missing piece."""
    streams = Unanswered(), Unanswered()
    together: dict[Any, Any] = {}
    one, two = (Delivery(stream, lambda: 0, lambda _: None, together=together) for stream in streams)  # type: ignore[arg-type]  # what it asks of one
    name = LogName.parse(NAME)
    assert name is not None
    first, second = (
        PickupProgress(name, 100, "triton", "198.51.100.7", "lftp", datetime(2026, 11, 21, 7, tzinfo=UTC)) for _ in "12"
    )

    def asked(delivery: Delivery, progress: PickupProgress, offset: int, count: int) -> tuple[int, int]:
        delivery.answered(progress, offset, count)
        delivery.handed_over(count, data=True)
        streams[delivery is two].written += count
        delivery.mark()
        return streams[0].asked, streams[1].asked

    assert asked(one, first, 0, 20) == (1, 0)
    assert asked(one, first, 20, 20) == (1, 0)
    assert asked(two, second, 60, 30) == (1, 1)
    assert asked(two, second, 90, 10) == (1, 2)  # the end
    assert asked(two, second, 90, 10) == (1, 2)
    assert asked(two, second, 50, 10) == (1, 2)
    assert asked(one, first, 40, 10) == (2, 3)  # the last piece, and what two had not asked about


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_an_interrupted_handle_leaves_what_was_acknowledged(beside: bool, together: bool) -> None:
    """Whole replies, up to the last that the client's system has, whether they left one by one or in one piece; nothing
    where another handle of the file is read."""

    class Taken(Unanswered):
        def acknowledged(self) -> int:
            return 85_000

    reports: list[Pickup] = []
    stream = Taken()
    delivery = Delivery(stream, lambda: 0, reports.append)  # type: ignore[arg-type]  # what it asks of one
    name = LogName.parse(NAME)
    assert name is not None
    first, second = (
        PickupProgress(name, SIZE, "triton", "198.51.100.7", "lftp", datetime(2026, 11, 21, 7, tzinfo=UTC))
        for _ in "12"
    )
    for offset in range(0, 150_000, 30_000):
        delivery.answered(first, offset, 30_000)
        delivery.handed_over(30_013, data=True)
        stream.written += 30_100
        if not together or offset == 120_000:
            delivery.mark()
    if beside:
        delivery.begins(second, 90_000)
    delivery.abandon([first])
    (left,) = reports
    assert (left.first_read, left.alone, left.ranges) == (0, not beside, ())
    assert left.tail == (None if beside else (0, 60_000))
    assert second.alone is not beside


def test_every_byte_that_is_written_counts() -> None:
    """Whichever way it is written, and also when the transport breaks: to count too little would prove too much."""

    class Broken:
        def get_extra_info(self, _: str) -> None:
            return None

        def write(self, _: bytes) -> None:
            raise OSError

    transport = CountedTransport(Broken())  # type: ignore[arg-type]  # what it needs of one
    for write in (lambda: transport.write(b"12345"), lambda: transport.writelines([b"67", b"8"])):
        with pytest.raises(OSError):
            write()
    stream = ByteStream(transport)
    assert stream.written == 8
    with pytest.raises(OSError):
        stream.acknowledged()
