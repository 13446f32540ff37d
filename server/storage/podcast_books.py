"""The books by podcast in the ledger: what became of each podcast's rows in a publication.

Uses the ledger's transactions. Promise: books go with the last log of their publication, so that they do not grow for
ever.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import orjson

from ..convert.tally import PodcastBooks
from .tables import LedgerPart

if TYPE_CHECKING:
    from collections.abc import Sequence


class PodcastBookStore(LedgerPart):
    """The tallies of each publication by podcast, until its last log is pruned."""

    def put(self, publication: int, books: PodcastBooks) -> None:
        """Store the books of a publication."""
        with self._transaction() as run:
            run("INSERT INTO podcast_books VALUES (?, ?)", (publication, zlib.compress(orjson.dumps(books.as_json()))))

    def get(self, publications: Sequence[int]) -> dict[int, PodcastBooks]:
        """Return the books of these publications, by number; those that have none are left out."""
        marks = ",".join("?" * len(publications))
        query = f"SELECT publication, books FROM podcast_books WHERE publication IN ({marks})"  # noqa: S608  # marks only
        rows = self._rows(query, list(publications))
        return {row["publication"]: PodcastBooks.from_json(orjson.loads(_unpacked(row["books"]))) for row in rows}


def _unpacked(books: str | bytes) -> str | bytes:
    """Return the JSON of a day's books, which earlier versions wrote uncompressed."""
    return books if isinstance(books, str) else zlib.decompress(books)
