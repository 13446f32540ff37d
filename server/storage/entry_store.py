"""The entries of a shared sequence that a ledger has applied, and which publication came with which.

Uses the ledger's transactions. Promise: an entry's number and its effects are written together.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import orjson

from .tables import LedgerPart, log_name

if TYPE_CHECKING:
    from ..triton import LogName


class EntryStore(LedgerPart):
    """The applied entries of a ledger."""

    def head(self) -> int:
        """Return the number of the newest applied entry, or 0."""
        return int(self._rows("SELECT coalesce(max(number), 0) FROM entry")[0][0])

    def id_of(self, number: int) -> str:
        """Return the id of an applied entry, '' for none."""
        rows = self._rows("SELECT id FROM entry WHERE number = ?", (number,))
        return str(rows[0][0]) if rows else ""

    def forget(self) -> None:
        """Forget all entries; what came with them becomes this data folder's own."""
        with self._transaction() as run:
            run("UPDATE publication SET entry = NULL")
            run("DELETE FROM entry")

    def applied(self, number: int, entry_id: str, node: str, data: bytes) -> None:
        """Record that an entry was applied; call it in the transaction that applies it."""
        with self._transaction() as run:
            run("INSERT INTO entry VALUES (?, ?, ?, ?)", (number, entry_id, node, zlib.compress(data)))

    def belongs(self, publication: int, number: int) -> None:
        """Record which entry a publication came with."""
        with self._transaction() as run:
            run("UPDATE publication SET entry = ? WHERE id = ?", (number, publication))

    def strangers(self) -> list[tuple[str, str, int]]:
        """Return (name, SHA-256, mtime) of the logs that came with no entry."""
        query = (
            "SELECT l.name, l.sha256, l.mtime FROM log l JOIN publication p ON p.id = l.publication"
            " WHERE p.entry IS NULL ORDER BY l.name"
        )
        return [(row[0], row[1], row[2]) for row in self._rows(query)]

    def nodes(self) -> dict[str, tuple[int, int]]:
        """Return, by node, (number of its newest entry, when it was written, in seconds since 1970).

        (0, 0) for a node that has reported pickups but never wrote an entry.
        """
        told = {row[0]: (0, 0) for row in self._rows("SELECT DISTINCT node FROM delivered_elsewhere")}
        query = "SELECT node, number, data FROM entry WHERE number IN (SELECT max(number) FROM entry GROUP BY node)"
        wrote = {row[0]: (row[1], orjson.loads(zlib.decompress(row[2]))["at"]) for row in self._rows(query)}
        return told | wrote

    def data(self, number: int) -> bytes:
        """Return an applied entry as its object holds it."""
        return zlib.decompress(self._rows("SELECT data FROM entry WHERE number = ?", (number,))[0][0])

    def blobs(self) -> list[tuple[LogName, str, str]]:
        """Return (name, SHA-256, entry id) of every published log."""
        query = (
            "SELECT l.name, l.sha256, e.id FROM log l JOIN publication p ON p.id = l.publication JOIN entry e"
            " ON e.number = p.entry WHERE l.state = 'published'"
        )
        return [(log_name(row[0]), row[1], row[2]) for row in self._rows(query)]
