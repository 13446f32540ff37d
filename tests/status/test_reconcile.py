"""Tallies by podcast: counted beside the day's tally, stored with the publication, and kept after pruning."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING

import orjson
import pytest

from server.cli.tables import reconciliation_text
from server.convert.day import convert_export
from server.convert.row import RowConverter
from server.convert.tally import (
    MOST_PODCASTS,
    NO_PODCAST,
    OTHERS,
    FilterReason,
    PodcastBooks,
    RejectReason,
    RowRejected,
    Tally,
)
from server.status.reconcile import ALL, COLUMNS, PodcastLine, reconcile
from server.status.words import reconciliation_csv
from tests.support.reference_conversion import (
    KERNEL,
    SMALL,
    MemorySink,
    conversion,
    export_file,
    opened,
    sample,
    with_repetitions,
)
from tests.support.site import DAY, Site, at, broken_rows, rows_of

if TYPE_CHECKING:
    from pathlib import Path

    from server.convert.kernel import Kernel


def slow_books(rows: list[bytes]) -> PodcastBooks:
    """Return the tallies by podcast, row by row and by the exact rules."""
    converter, seen, books = RowConverter(conversion()), set[str](), PodcastBooks()
    for raw in rows:
        if not raw.decode(errors="surrogateescape").strip():
            continue
        try:
            outcome = converter.convert(raw)
        except RowRejected as rejection:
            books.reject(readable_podcast(raw), rejection.reason)
            continue
        if outcome.id in seen:
            books.reject(outcome.podcast_id, RejectReason.DUPLICATE_ID)
            continue
        seen.add(outcome.id)
        books.count(
            [outcome.podcast_id], [outcome.reporting], {} if outcome.filtered is None else {0: outcome.filtered}
        )
    return books


def readable_podcast(raw: bytes) -> str:
    """Return a rejected row's podcast id, '' if none can be read."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return ""
    value = row.get("podcast_id") if isinstance(row, dict) else None
    return value if isinstance(value, str) and value.strip() else str(value) if type(value) is int else ""


@pytest.mark.parametrize("kernel", [KERNEL, None])
def test_the_engine_counts_by_podcast_as_one_row_at_a_time_does(tmp_path: Path, kernel: Kernel | None) -> None:
    """For every podcast the engine's books are those of the exact rules, with repeated ids and odd rows too."""
    rows = with_repetitions(sample())
    done = convert_export(
        opened(export_file(tmp_path, rows)), conversion(), MemorySink(), kernel=lambda: kernel, scratch=tmp_path,
        threads=2, by_podcast=True, tuning=SMALL,
    )  # fmt: skip
    slow = slow_books(rows)
    assert PodcastBooks.from_json(done.podcasts.as_json()).as_json() == done.podcasts.as_json()
    assert dict(sorted(done.podcasts.as_json().items())) == dict(sorted(slow.as_json().items()))
    total = Tally()
    for tally in done.podcasts.tallies.values():
        assert tally.balanced
        total.add(tally)
    assert (total.rows, total.lines, total.reporting) == (done.tally.rows, done.tally.lines, done.tally.reporting)
    assert total.filtered == done.tally.filtered and +total.rejected == +done.tally.rejected


def test_the_books_of_one_podcast_are_never_lost_among_many() -> None:
    """Beyond the most podcasts that are kept apart, the rest are counted together, and rows without one apart."""
    books = PodcastBooks()
    for number in range(MOST_PODCASTS + 10):
        books.count([f"p{number}"], [True], {})
    books.reject("", RejectReason.NO_EPISODE)
    assert books.of(OTHERS).lines == 10 and books.of(NO_PODCAST).rows == 1
    assert sum(tally.rows for tally in books.tallies.values()) == MOST_PODCASTS + 11


def test_a_podcast_that_is_only_blanks_is_none() -> None:
    """As in the log's line, where it is written ``-``; found by fuzzing."""
    books = PodcastBooks()
    books.count(["\u00a0\u3000", ""], [True, False], {0: FilterReason.NO_BYTES})
    books.reject(" ", RejectReason.NO_IP)
    assert books.as_json() == {NO_PODCAST: [3, 1, 1, {"no_bytes": 1}, {"no_ip": 1}]}


def test_the_books_hold_no_more_of_a_name_than_an_id_has() -> None:
    """A thousand podcasts whose ids are a megabyte each, which no line can hold, took a gigabyte."""
    books = PodcastBooks()
    for number in range(20):
        books.reject(f"{number:03d}" + "x" * 1_000_000, RejectReason.URL_TOO_LONG)
    assert len(books.tallies) == 20
    assert max(map(len, books.tallies)) <= 200


async def test_a_day_can_be_reconciled_with_its_late_rows_until_it_is_pruned(site: Site) -> None:
    """Lines are all that were sent, the other counts those of the newest version; the books go with the files."""
    rows = [*rows_of(DAY, 150, podcast_id="one"), *rows_of(DAY, 20, 150, podcast_id="two", blacklisted_ua=True)]
    site.put([*rows, *broken_rows(1)], at(1, "04:00"))
    await site.round(at(1, "05:35"))
    site.put([*rows, *rows_of(DAY, 5, 170, podcast_id="two"), *broken_rows(1)], at(1, "09:00"))
    await site.round(at(1, "10:05"))

    def lines() -> dict[str, list[str]]:
        publications = site.ledger.publications(DAY)
        found = reconcile(publications, site.ledger.books.get([p.id for p in publications]))
        return {line.podcast: line.cells() for line in found}

    before = lines()
    assert list(before) == [ALL, "one", "two", NO_PODCAST]
    blacklisted = COLUMNS.index(f"filtered.{FilterReason.BLACKLISTED_UA}")
    malformed = COLUMNS.index(f"rejected.{RejectReason.MALFORMED_JSON}")
    assert before["one"][:4] == ["one", "150", "150", "150"]
    assert before["two"][:4] == ["two", "25", "5", "5"] and before["two"][blacklisted] == "20"
    assert before[NO_PODCAST][1] == "1" and before[NO_PODCAST][malformed] == "1"
    assert before[ALL][:4] == [ALL, "176", "155", "155"]
    site.prune(at(70))
    assert site.files() == [] and lines() == {}


def test_no_podcast_sends_a_control_character_to_the_terminal() -> None:
    """An export may name a podcast as it likes; two podcasts stay two."""
    books = PodcastBooks()
    books.count(["\x1b[2J\x9b1A\u2028", "%1B[2J\x7f", "p-1"], [True] * 3, {})
    publication = SimpleNamespace(id=1, published_at=at(1), logs=[SimpleNamespace(superseded_by=None)])
    lines = reconcile([publication], {1: books})  # type: ignore[list-item]  # what it asks of one
    printed = (
        reconciliation_text(lines, 0.5)
        + reconciliation_csv(lines)
        + orjson.dumps([x.as_json() for x in lines]).decode()
    )
    assert all(letter.isprintable() or letter == "\n" for letter in printed)
    assert {line.podcast for line in lines} == {ALL, "%1B[2J%C2%9B1A%E2%80%A8", "%251B[2J%7F", "p-1"}


def test_counts_of_a_line_stand_under_their_columns() -> None:
    """A cell for each column, in the order of the reasons."""
    books = PodcastBooks()
    books.count(["a", "a"], [True, False], {1: FilterReason.SHORT})
    tally = books.of("a")
    assert (tally.rows, tally.lines, tally.reporting, tally.filtered) == (2, 1, 1, Counter({FilterReason.SHORT: 1}))


def test_the_share_that_a_catalogue_matches_ends_the_table() -> None:
    """People see it in a line of its own; without a catalogue there is none."""
    lines = [PodcastLine(ALL, rows=4, reporting=4, lines=4)]
    assert reconciliation_text(lines, None).count("\n") == 2
    assert reconciliation_text(lines, 0.75).endswith("75.0% of the lines belong to an episode in the catalogue\n")
    assert reconciliation_csv(lines).splitlines()[0].startswith("podcast_id,rows,reporting,lines,filtered.sent_before")
