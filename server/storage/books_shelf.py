"""The ledger's shelf of the books by podcast, a row a publication.

Touches the ledger through the two functions it is handed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from ..convert.podcasts import PodcastBooks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from sqlite3 import Row


class BooksShelf:
    """What each publication came to, podcast by podcast."""

    def __init__(
        self, transaction: Callable[[], AbstractContextManager[Any]], rows: Callable[..., Sequence[Row]]
    ) -> None:
        self._transaction = transaction
        self._rows = rows

    def put(self, publication: int, books: PodcastBooks) -> None:
        """Keep the books of a publication."""
        with self._transaction() as run:
            run("INSERT INTO podcast_books VALUES (?, ?)", (publication, orjson.dumps(books.as_json()).decode()))

    def get(self, publications: Sequence[int]) -> dict[int, PodcastBooks]:
        """The books of these publications, by number; those that have none are left out."""
        marks = ",".join("?" * len(publications))
        query = f"SELECT publication, books FROM podcast_books WHERE publication IN ({marks})"  # noqa: S608  # marks only
        rows = self._rows(query, list(publications))
        return {row["publication"]: PodcastBooks.from_json(orjson.loads(row["books"])) for row in rows}
