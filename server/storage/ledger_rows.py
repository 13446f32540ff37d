"""The ledger's rows as types. No outside world."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import orjson

from ..convert.row import LogRules
from ..convert.tally import Tally
from ..episodes.rss import RssItem
from ..megaphone.exports import DayExport
from ..pickups import Ending, Grade, Pickup
from ..triton import LogName
from .records import CatalogueStamp, DayRecord, Failure, Hold, LateCheck, LedgerLog, Publication, RssFeed

if TYPE_CHECKING:
    from sqlite3 import Row

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def text(at: datetime | None) -> str | None:
    """An instant as the ledger writes it."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds")


def instant(value: str | None) -> datetime | None:
    """The instant that `text` wrote, or None."""
    return None if value is None else datetime.fromisoformat(value)


def moment(value: str | None) -> datetime:
    """The instant that `text` wrote, where there is always one."""
    return instant(value) or _EPOCH


def log_of(row: Row) -> LedgerLog:
    """A row of ``log``."""
    name = LogName.parse(row["name"])
    assert name is not None  # noqa: S101  # only str(LogName) is ever written
    return LedgerLog(
        name=name,
        publication=row["publication"],
        size=row["size"],
        sha256=row["sha256"],
        mtime=row["mtime"],
        lines=row["lines"],
        state=row["state"],
        pruned_at=instant(row["pruned_at"]),
        superseded_by=row["superseded_by"],
    )


def publication_of(row: Row, logs: tuple[LedgerLog, ...]) -> Publication:
    """A row of ``publication`` with its logs."""
    day = date.fromisoformat(row["day"])
    return Publication(
        id=row["id"],
        delivery=row["delivery"],
        day=day,
        kind=row["kind"],
        export=DayExport(
            day, row["export_key"], row["export_etag"], row["export_size"], moment(row["export_modified"])
        ),
        rules=LogRules.from_json(orjson.loads(row["rules"])),
        tally=_tally(row["tally"]),
        changed=row["changed"],
        removed=row["removed"],
        remark=row["remark"],
        intended_at=moment(row["intended_at"]),
        published_at=instant(row["published_at"]),
        logs=logs,
        catalogue=None if row["catalogue"] is None else CatalogueStamp(**orjson.loads(row["catalogue"])),
    )


def record_of(row: Row) -> DayRecord:
    """A row of ``day``."""
    day = date.fromisoformat(row["day"])
    export = None
    if row["export_key"] is not None:
        modified = moment(row["export_modified"])
        export = DayExport(day, row["export_key"], row["export_etag"], row["export_size"], modified)
    hold = None
    if row["held_why"] is not None:
        tally = _tally(row["held_tally"]) or Tally()
        hold = Hold(row["held_why"], row["held_reason"], row["held_etag"], tally)
    failure = None
    if row["failure"] is not None:
        failure = Failure(
            sentence=row["failure"],
            hint=row["failure_hint"] or "",
            etag=row["failure_etag"] or "",
            at=moment(row["failed_at"]),
            next_try=moment(row["next_try"]),
            tries=row["tries"],
        )
    return DayRecord(
        day=day,
        delivery=row["delivery"],
        seen=row["seen"],
        seen_at=moment(row["seen_at"]),
        export=export,
        checked_etag=row["checked_etag"],
        withheld=row["withheld"],
        hold=hold,
        failure=failure,
    )


def late_check_of(row: Row) -> LateCheck:
    """A row of ``late_check``."""
    return LateCheck(
        day=date.fromisoformat(row["day"]),
        delivery=row["delivery"],
        at=moment(row["at"]),
        etag=row["export_etag"],
        modified=instant(row["export_modified"]),
        unsent=row["unsent"],
        changed=row["changed"],
        removed=row["removed"],
        tally=_tally(row["tally"]) or Tally(),
    )


def pickup_of(row: Row) -> Pickup:
    """A row of ``pickup``."""
    name = LogName.parse(row["log"])
    assert name is not None  # noqa: S101  # only str(LogName) is ever written
    return Pickup(
        id=row["id"],
        name=name,
        size=row["size"],
        user=row["user"],
        address=row["address"],
        client=row["client"],
        started=moment(row["started"]),
        ended=instant(row["ended"]),
        bytes_answered=row["bytes"],
        covered=row["covered"],
        grade=Grade(row["grade"]),
        ending=Ending(row["ending"]) if row["ending"] else None,
    )


def rss_feed_of(row: Row, items: tuple[RssItem, ...]) -> RssFeed:
    """A row of ``rss_feed`` with its items."""
    return RssFeed(
        url=row["url"],
        tried_at=moment(row["tried_at"]),
        read_at=instant(row["read_at"]),
        title=row["title"],
        etag=row["etag"],
        last_modified=row["last_modified"],
        error=row["error"],
        hint=row["hint"],
        change=row["change"],
        items=items,
        item_count=row["item_count"],
    )


def rss_item_of(row: Row) -> RssItem:
    """A row of ``rss_item``."""
    return RssItem(
        guid=row["guid"],
        enclosure_url=row["enclosure_url"],
        title=row["title"],
        published=instant(row["published"]),
        duration=row["duration"],
        length=row["length"],
        bare_url=row["bare_url"],
        token=row["token"],
    )


def _tally(value: str | None) -> Tally | None:
    return None if value is None else Tally.from_json(orjson.loads(value))
