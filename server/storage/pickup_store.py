"""The pickups in the ledger: a row per handle, for a while, and for good what each user has of each log.

Uses the ledger's transactions. Promise: the union of what was delivered is kept by user, name and SHA-256, and survives
restarts; a client that opens a file again and again does not make the ledger grow.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from ..pickups import MAX_ADDRESSES, Coverage, Delivered, Grade, shown_by_resuming
from ..triton import LogName
from .tables import (
    DELIVERED,
    ELSEWHERE,
    PICKUPS_OF,
    PROGRESS,
    LedgerPart,
    delivered_of,
    packed_ranges,
    pickup_of,
    text,
    unpacked_ranges,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from sqlite3 import Cursor, Row

    from ..pickups import Pickup

MAX_HANDLES = 1000  # rows per user and log; with more, only `KEPT_HANDLES`, the first, the last and the best remain
KEPT_HANDLES = 500  # complete ones before others, newer before older

# Drops rows of one user and log whose handle has ended; never the first, the last or the best. The test reads of
# `doctor` are ranked by themselves.
_THIN = """
DELETE FROM pickup WHERE ending <> '' AND id IN (
    SELECT id FROM (
        SELECT id, started,
        row_number() OVER (PARTITION BY grade = 'test' ORDER BY started, id) AS first,
        row_number() OVER (PARTITION BY grade = 'test' ORDER BY started DESC, id DESC) AS last,
        row_number() OVER (PARTITION BY grade = 'test' ORDER BY delivered DESC, covered DESC, started, id) AS best,
        row_number() OVER (PARTITION BY grade = 'test' ORDER BY grade = 'complete' DESC, started DESC, id) AS place
        FROM pickup WHERE log = ?1 AND user = ?2
    ) WHERE first > 1 AND last > 1 AND best > 1 AND {})
"""
_THIN_BY_COUNT = _THIN.format("place > ?3")
_THIN_BY_AGE = _THIN.format("started < ?3")
_MANY = 500  # pairs of user and log that one pass thins out, to keep the transaction short


class PickupStore(LedgerPart):
    """The pickups of a ledger."""

    def record(self, pickup: Pickup, at: datetime | None = None) -> Delivered | None:
        """Record a pickup as it is now: its handle opened, read, or closed; ``at`` is the present instant.

        Return what the user has of the log if this made it complete, else None.
        """
        at = at or pickup.ended or pickup.started
        values = (pickup.id, str(pickup.name), pickup.user, pickup.address, pickup.client, text(pickup.started),
                  text(pickup.ended), pickup.size, pickup.bytes_answered, pickup.covered, str(pickup.grade),
                  str(pickup.ending or ""), pickup.delivered)  # fmt: skip
        with self._transaction() as run:
            known = run("SELECT 1 FROM pickup WHERE id = ?", (pickup.id,)).fetchone()
            run(
                "INSERT OR REPLACE INTO pickup (id, log, user, address, client, started, ended, size, bytes, covered,"
                " grade, ending, delivered) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                values,
            )
            owner = (str(pickup.name), pickup.user)
            if known is None:
                (count,) = run("SELECT count(*) FROM pickup WHERE log = ? AND user = ?", owner).fetchone()
                if count > MAX_HANDLES:
                    run(_THIN_BY_COUNT, (*owner, KEPT_HANDLES))
            # A test read of `doctor` is nobody's pickup.
            return None if pickup.grade is Grade.TEST else self._add(run, pickup, at, is_new=known is None)

    def _add(self, run: Callable[..., Cursor], pickup: Pickup, at: datetime, *, is_new: bool) -> Delivered | None:
        """Add a handle's ranges to what the user has of the log; return that if this made it complete."""
        found = run("SELECT sha256 FROM log WHERE name = ?", (str(pickup.name),)).fetchone()
        key = (str(pickup.name), pickup.user, found[0] if found else "")
        row = run("SELECT * FROM delivered WHERE log = ? AND user = ? AND sha256 = ?", key).fetchone()
        before = delivered_of(row) if row is not None else None
        if before is not None and before.completed is not None:
            handles = before.handles + is_new
            run(
                "UPDATE delivered SET handles = ?, last_at = max(last_at, ?) WHERE log = ? AND user = ? AND sha256 = ?",
                (handles, text(at), *key),
            )
            return None
        union = Coverage(unpacked_ranges(row["ranges"]) if row is not None else ())
        addresses = list(before.addresses) if before is not None else []

        def add(ranges: Iterable[tuple[int, int]], address: str) -> None:
            nonlocal addresses
            had = union.bytes
            for start, end in ranges:
                union.add(start, end)
            if union.bytes > had and address not in addresses:
                addresses = [*addresses, address][-MAX_ADDRESSES:]

        tail = row["tail"] if row is not None else None
        if tail is not None and pickup.first_read is not None:
            # Only the next handle that reads counts as resuming it, wherever it reads; no later one does.
            start, end, address = orjson.loads(tail)
            tail = None
            add([shown_by_resuming((start, end), pickup.first_read, alone=pickup.alone)], address)
        if pickup.tail is not None:
            tail = orjson.dumps([*pickup.tail, pickup.address]).decode()
        add(((0, pickup.size),) if pickup.grade is Grade.COMPLETE else pickup.ranges, pickup.address)
        whole = union.covers(pickup.size) and union.bytes > 0
        fragmented = union.fragmented or pickup.fragmented or (before is not None and before.fragmented)
        run(
            "INSERT OR REPLACE INTO delivered VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (*key, pickup.size, union.bytes, len(union.ranges), int(fragmented and not whole),
             b"" if whole else packed_ranges(union.ranges), (before.handles if before else 0) + is_new,
             orjson.dumps(addresses).decode(), text(before.first if before else pickup.started), text(at),
             text(at) if whole else None, None if whole else tail),
        )  # fmt: skip
        if not whole:
            return None
        row = run("SELECT * FROM delivered WHERE log = ? AND user = ? AND sha256 = ?", key).fetchone()
        return delivered_of(row)

    def interrupt_open(self) -> int:
        """Mark the handles that an earlier process left open as interrupted; return their number. Call it at start."""
        with self._transaction() as run:
            return run("UPDATE pickup SET ending = 'interrupted' WHERE ending = ''").rowcount

    def delivered(self, names: Sequence[LogName]) -> list[Delivered]:
        """Return what each user has of these logs, all nodes taken together."""
        rows = self._rows(DELIVERED, [_names(names)])
        found = {(row["log"], row["user"]): delivered_of(row) for row in rows}
        elsewhere = self._rows(ELSEWHERE, [_names(names)])
        if not elsewhere:
            return list(found.values())
        ranges = {(row["log"], row["user"]): unpacked_ranges(row["ranges"]) for row in rows}
        for row in elsewhere:
            owner = (row["log"], row["user"])
            theirs = orjson.loads(row["progress"])
            if theirs["sha256"] == row["sha256"]:
                union = Coverage([*ranges.get(owner, ()), *map(tuple, theirs["ranges"])])
                ranges[owner] = list(union.ranges)
                found[owner] = _together(found.get(owner), theirs, row, union)
        return [found[owner] for owner in sorted(found)]

    def progress(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return (log, user, progress at this node) for every published log; `merge` reads it at the other nodes."""
        return [
            (
                row["log"],
                row["user"],
                {
                    "sha256": row["sha256"],
                    "ranges": unpacked_ranges(row["ranges"]),
                    "fragmented": bool(row["fragmented"]),
                    "handles": row["handles"],
                    "addresses": orjson.loads(row["addresses"]),
                    "first": row["first_at"],
                    "last": row["last_at"],
                    "completed": row["completed_at"],
                },
            )
            for row in self._rows(PROGRESS)
        ]

    def merge(self, log: str, user: str, node: str, progress: dict[str, Any]) -> None:
        """Record what a user has of a log at another node, as its `progress` returned it.

        Raises:
            ValueError, KeyError, TypeError, OverflowError: ``progress`` is malformed.
        """
        checked = {
            "sha256": str(progress["sha256"]),
            "ranges": Coverage((int(start), int(end)) for start, end in progress["ranges"]).ranges,
            "fragmented": bool(progress["fragmented"]),
            "handles": int(progress["handles"]),
            "addresses": [str(address) for address in progress["addresses"]][-MAX_ADDRESSES:],
            "first": _instant(progress["first"]),
            "last": _instant(progress["last"]),
            "completed": progress["completed"] and _instant(progress["completed"]),
        }
        with self._transaction() as run:
            values = (log, user, node, orjson.dumps(checked).decode())
            run("INSERT OR REPLACE INTO delivered_elsewhere VALUES (?,?,?,?)", values)

    def handles(self, names: Sequence[LogName]) -> list[Pickup]:
        """Return the handles of these logs that are still kept, in the order they were opened."""
        return [pickup_of(row) for row in self._rows(PICKUPS_OF, [_names(names)])]

    def thin_out(self, before: datetime) -> None:
        """Drop handles opened before ``before``, except the first, best and last of each user and log."""
        limit = text(before)
        with self._transaction() as run:
            query = (
                "SELECT DISTINCT log, user FROM pickup INDEXED BY pickup_unsettled"
                " WHERE settled = 0 AND started < ? AND ending <> '' LIMIT ?"
            )
            for owner in run(query, (limit, _MANY)).fetchall():
                run(_THIN_BY_AGE, (*owner, limit))
                # These need not be looked at again until newer ones of the same user and log grow old.
                run("UPDATE pickup SET settled = 1 WHERE log = ? AND user = ? AND started < ?", (*owner, limit))


def _together(ours: Delivered | None, theirs: dict[str, Any], row: Row, union: Coverage) -> Delivered:
    """Return what a user has of a log at two nodes together; ``union`` is that of their ranges, if neither is whole."""
    first, last = (datetime.fromisoformat(theirs[name]) for name in ("first", "last"))
    ends = [datetime.fromisoformat(theirs["completed"])] if theirs["completed"] else []
    if ours is not None:
        first, last = min(first, ours.first), max(last, ours.last)
        ends += [ours.completed] if ours.completed is not None else []
    size: int = row["size"]
    if not ends and union.bytes and union.covers(size):
        ends = [last]
    addresses = dict.fromkeys([*(ours.addresses if ours else ()), *theirs["addresses"]])
    return Delivered(
        name=_log_name(row["log"]),
        user=row["user"],
        size=size,
        bytes=size if ends else union.bytes,
        pieces=1 if ends else len(union.ranges),
        fragmented=not ends and (union.fragmented or theirs["fragmented"] or (ours is not None and ours.fragmented)),
        handles=theirs["handles"] + (ours.handles if ours else 0),
        addresses=tuple(addresses)[-MAX_ADDRESSES:],
        first=first,
        last=last,
        completed=min(ends, default=None),
        nodes=(*(ours.nodes if ours else ()), row["node"]),
    )


def _instant(value: str) -> str:
    """Return an instant unchanged; raise `ValueError` for one without a time zone, which no other compares with."""
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError(value)
    return value


def _log_name(text: str) -> LogName:
    name = LogName.parse(text)
    assert name is not None  # noqa: S101  # the row names a log
    return name


def _names(names: Sequence[LogName]) -> str:
    return orjson.dumps([str(name) for name in names]).decode()
