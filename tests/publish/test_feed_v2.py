"""The Delivery export V2 from its bucket to the partner: marked, completed late, recognised by ids of our own.

Real S3 server (moto) or folder, real ledger and conversion; the clock is handed in.
"""

from __future__ import annotations

import gzip
from datetime import date, timedelta
from typing import TYPE_CHECKING

import orjson
import pytest
from structlog.testing import capture_logs

from server.megaphone.bucket import Bucket
from server.megaphone.exports import DELIVERY_V2
from server.s3.errors import BucketPlace
from server.status.snapshot import trace_of
from server.status.words import history
from tests.support.config_text import MINIMAL, parse
from tests.support.rows import KEY, row_v2
from tests.support.site import DAY, Site, at, log_name, name, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from server.megaphone.exports import Listing
    from tests.support.s3 import S3Server

NEXT = DAY + timedelta(days=1)


def rows(count: int, day: date = DAY, first: int = 0, seconds: int = 60) -> list[bytes]:
    """Rows of a day without ids, in steps of this many seconds; every tenth is equal to the one before it."""
    steps = [n - (n % 10 == 9) for n in range(first, first + count)]
    created = [divmod(n * seconds, 3600) for n in steps]
    return [
        row_v2(created_at=f"{day}T{hour:02d}:{rest // 60:02d}:{rest % 60:02d}.000Z", user_agent=f"Agent {n}")
        for n, (hour, rest) in zip(steps, created, strict=True)
    ]


class ClockedBucket(Bucket):
    """A bucket whose server's clock is the test's."""

    now = at(0)
    own_clock = True
    kind = DELIVERY_V2

    async def day_exports(self) -> Listing:
        return (await super().day_exports())._replace(now=self.now)


async def test_a_bucket_of_both_kinds_is_published_completed_late_and_pulled(
    s3: S3Server, make_site: Callable[..., Site]
) -> None:
    """Rewritten hourly, marked late, marked before the object; the marker's date is spelled in both ways."""

    def put(lines: list[bytes], modified: datetime, day: date = DAY, name: str = "delivery-v2-day") -> None:
        s3.put(f"{name}-{day}.json.gz", gzip.compress(b"\n".join(lines), 1, mtime=0), modified=modified)

    place = s3.settings().place
    assert isinstance(place, BucketPlace)
    site = make_site(kind="delivery-v2", source=ClockedBucket(place, DELIVERY_V2))
    put(rows_of(DAY, 5), at(1, "03:10"), name="metrics-day")
    put(rows(3), at(1, "03:10"), name="impressions-v2-day")
    s3.put(f"_finalized_impressions_{DAY}_1", modified=at(1, "03:10"))
    words = []
    for hour in (4, 10, 11):
        put(rows(80 + hour), at(1, f"{hour:02d}:15"))
        words.append(await site.word(at(1, f"{hour:02d}:20")))
    assert words == ["open", "open", "unmarked"] and site.files() == []
    s3.put(f"_finalized_delivery_{DAY:%Y_%m_%d}_1763899800", modified=at(1, "12:10"))
    assert await site.word(at(1, "12:11")) == "published"
    assert len(site.ids(name())) == 91
    # Written once more, after its marker: it settles, then its new rows go out, each once.
    put(rows(99), at(1, "13:15"))
    assert await site.word(at(1, "14:19")) == "published" and site.files() == [name()]
    assert await site.word(at(1, "14:20")) == "published"
    assert len(site.ids(name(1))) == 8 and set(site.standing_ids().values()) == {1}
    # The next day's marker comes before its object, and spells the date with hyphens.
    s3.put(f"_finalized_delivery_{NEXT}_1763982000", modified=at(2, "09:00"))
    assert (await site.round(at(2, "09:10"))).results[-2].word == "open"
    put(rows(20, NEXT), at(2, "09:15"), NEXT)
    assert await site.word(at(2, "10:19"), day=NEXT) == "settling"
    assert await site.word(at(2, "10:20"), day=NEXT) == "published"
    assert site.files() == [name(), name(1), name(0, NEXT)]
    site.pick_up(at(2, "11:00"))
    assert [site.state(at(2, "11:00"), day) for day in (DAY, NEXT)] == ["picked up"] * 2
    line = dict(zip(*(row.split("\t") for row in site.lines(name())[:2]), strict=True))
    assert (line["status"], line["bytes"], line["object-size"], line["byte-range"]) == ("200", "-", "-", "-")
    site.check_folder()


async def test_an_unmarked_day_is_given_up_and_completed(make_site: Callable[..., Site]) -> None:
    """Without its marker it goes out at give_up_waiting, without the freshest rows; these follow, equal ones too."""
    site = make_site(kind="delivery-v2")
    everything = rows(100, seconds=860)
    site.put(everything[:95], at(0, "23:30"))
    assert await site.word(at(1, "22:59")) == "stale"
    site.put(everything[:97], at(1, "00:15"))
    assert await site.word(at(1, "22:59")) == "unmarked"
    (late,) = (alarm for alarm in site.alarms(at(1, "22:59")) if alarm.name == "day_not_published")
    assert "give_up_waiting" in late.hint and "feed --day" not in late.hint  # which would do nothing
    assert await site.word(at(1, "23:00")) == "published"
    assert "day_given_up" in site.alarm_names(at(1, "23:10"))
    sent = len(site.ids(name()))
    assert 0 < sent < 97
    site.put(everything, at(2, "01:15"))
    site.mark(at(2, "02:00"), between="-")
    assert await site.word(at(2, "02:10")) == "published"
    assert len(site.ids(name(1))) == 100 - sent and set(site.standing_ids().values()) == {1}


def traced(site: Site, number: int = 0) -> str:
    """What `trace` prints of a log."""
    keys = site.root / "keys"
    keys.mkdir(exist_ok=True)
    (keys / "ip_hash.key").write_text(site.settings["hash_key"].hex())
    (keys / "ip_hash.key").chmod(0o600)
    text = MINIMAL.replace("[export]", 'data_dir = "data"\nkeys_dir = "keys"\n[export]\nkind = "delivery-v2"')
    return "\n".join(line for _, line in history(trace_of(parse(text, site.root), log_name(number))))


async def test_under_another_key_late_rows_are_told_and_not_sent(make_site: Callable[..., Site]) -> None:
    """All of them would look new. Sent again as a whole, the day has ids of the key in force, and late rows as ever."""
    site = make_site(kind="delivery-v2")
    site.put(rows(20), at(1, "08:15"))
    site.mark(at(1, "09:00"))
    assert await site.word(at(1, "09:05")) == "published"
    site.put(rows(25), at(1, "09:15"))
    site.restart(hash_key=KEY[::-1])
    with capture_logs() as logs:
        assert await site.word(at(1, "12:00")) == "published"
    assert site.files() == [name()]
    assert [entry["why"] for entry in logs if entry["event"] == f"feed ignored late rows of {DAY}"] == [
        "its rows got their ids under another ip_hash.key, or an unknown one, so late rows cannot be recognised"
    ]
    (alarm,) = (alarm for alarm in site.alarms(at(1, "12:05")) if alarm.name == "day_late_ignored")
    assert "another ip_hash.key" in alarm.sentence and "--resend" in alarm.hint
    assert "another ip_hash.key" in traced(site)
    await site.round(at(1, "12:10"), DAY, resend="another key")
    assert "day_late_ignored" not in site.alarm_names(at(1, "12:15")) and "ip_hash.key" not in traced(site, 1)
    site.put(rows(30), at(1, "12:15"))
    await site.round(at(1, "14:00"))
    assert [len(site.ids(name(number))) for number in range(3)] == [20, 25, 5]
    assert set(site.standing_ids().values()) == {1}


async def test_a_new_ledger_sends_no_late_rows_of_days_that_it_found(make_site: Callable[..., Site]) -> None:
    """By which key their ids were made does not show in the files."""
    site = make_site(kind="delivery-v2")
    site.put(rows(20), at(1, "08:15"))
    site.mark(at(1, "09:00"))
    await site.round(at(1, "09:05"))
    site.stop()
    for path in (site.root / "data").glob("ledger.sqlite3*"):
        path.unlink()
    site.start()
    site.put(rows(25), at(1, "09:15"))
    await site.round(at(1, "12:00"))
    assert site.files() == [name()] and [p.kind for p in site.ledger.publications(DAY)] == ["adopted"]


async def test_a_day_published_from_one_kind_gets_no_late_rows_of_the_other(make_site: Callable[..., Site]) -> None:
    """Whoever changes export.kind meanwhile: no row goes out twice, and the next day comes from the other kind."""
    site = make_site()
    site.put(rows_of(DAY, 5), at(1, "04:10"))
    assert await site.word(at(1, "05:35")) == "published"
    site.restart(kind="delivery-v2")
    for day in (DAY, NEXT):
        site.put(rows(25, day), at(2, "08:15"), day)
        site.mark(at(2, "09:00"), day)
    await site.round(at(2, "09:05"))
    assert site.files() == [name(), name(0, NEXT)] and len(site.ids(name(0, NEXT))) == 25
    site.restart(kind="metrics")
    await site.round(at(2, "09:15"))
    assert site.files() == [name(), name(0, NEXT)]


def v1_rows(count: int) -> list[bytes]:
    return rows_of(DAY, count)


def with_ids(lines: list[bytes]) -> list[bytes]:
    """The same rows, with an id each."""
    return [orjson.dumps(orjson.loads(line) | {"id": f"new-{n}"}) for n, line in enumerate(lines)]


def spelled_otherwise(lines: list[bytes]) -> list[bytes]:
    """The same rows, their instants without a fraction."""
    return [line.replace(b".000Z", b"Z") for line in lines]


@pytest.mark.parametrize(
    ("kind", "before", "changed"),
    [("delivery-v2", rows, with_ids), ("delivery-v2", rows, spelled_otherwise), ("metrics", v1_rows, with_ids)],
)
async def test_rows_that_come_again_under_other_ids_are_held_and_not_sent_twice(
    make_site: Callable[..., Site],
    kind: str,
    before: Callable[[int], list[bytes]],
    changed: Callable[[list[bytes]], list[bytes]],
) -> None:
    """Reported by journal, `feed` and `check` until an operator decides: sent again as a whole, or accepted as new."""
    site = make_site(kind=kind)
    site.put(before(20), at(1, "04:10"))
    site.mark(at(1, "04:15"))
    assert await site.word(at(1, "05:35")) == "published"
    site.put(changed(before(22)), at(1, "06:00"))
    with capture_logs() as logs:
        assert [await site.word(at(1, clock)) for clock in ("07:10", "07:20")] == ["held", "held"]
    assert [entry["event"] for entry in logs].count(f"feed held late rows of {DAY}") == 1
    assert site.files() == [name()] and site.state(at(1, "07:30")) == "published"
    (alarm,) = (alarm for alarm in site.alarms(at(1, "07:30")) if alarm.name == "day_late_held")
    assert "20 of the 20 rows sent before are not in its new version, and 22 look new" in alarm.sentence
    assert "--accept-rejects" in alarm.hint and f"--day {DAY} --resend" in alarm.hint
    # Another version: the hold was of the one before it.
    site.put(changed(before(23)), at(1, "08:00"))
    assert await site.word(at(1, "09:10"), DAY, accept=True) == "held"
    if kind == "metrics":  # nobody decides: nothing goes out twice, and what was not sent is told
        await site.round(at(3, "00:00"))
        assert site.files() == [name()] and site.days(at(3, "00:10"))[DAY].unsent == 23
    elif changed is with_ids:
        assert await site.word(at(1, "09:20"), DAY, accept=True) == "published"
        assert len(site.ids(name(1))) == 23
    else:
        await site.round(at(1, "09:20"), DAY, resend="voided")
        assert len(site.standing_ids()) == 23
    assert "day_late_held" not in site.alarm_names(at(3, "00:10"))
    site.check_folder()
