"""Made-up exports are the same every time, and look like the ones that Megaphone writes."""

from __future__ import annotations

import gzip
from collections import Counter
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import orjson
import pytest

from server.cli.samples import day_rows, write_day
from server.convert.conversion import Conversion
from server.convert.row import RowConverter
from server.convert.tally import FilterReason, RejectReason, RowRejected
from server.megaphone.exports import DELIVERY_V2, KINDS, METRICS
from server.triton import LogRules

from ..support.rows import GOOD_V2

if TYPE_CHECKING:
    from pathlib import Path

    from server.megaphone.exports import ExportKind

DAY = date(2026, 11, 20)


def test_the_same_seed_gives_the_same_rows_and_another_seed_or_day_others() -> None:
    """Rows depend on seed and day, and on nothing else."""
    rows = list(day_rows(DAY, 300, 5))
    assert rows == list(day_rows(DAY, 300, 5))
    others = {*day_rows(DAY, 300, 6), *day_rows(date(2026, 11, 21), 300, 5)}
    assert not others & set(rows)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_an_unfinished_day_is_a_part_of_the_finished_one(kind: ExportKind) -> None:
    """The rows at noon are the first of those in the evening, and were all created before noon."""
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    whole, half = list(day_rows(DAY, 5000, kind=kind)), list(day_rows(DAY, 5000, until=noon, kind=kind))
    assert half == [row for row in whole if orjson.loads(row)["created_at"] < "2026-11-20T12"]
    assert 2400 < len(half) < 2600


def test_every_row_has_all_fields_of_the_export_and_lies_in_its_day() -> None:
    """The field names are Megaphone's, and created_at stays within the day."""
    for row in map(orjson.loads, day_rows(DAY, 500)):
        assert set(row) == set(METRICS.fields)
        assert row["created_at"].startswith("2026-11-20T")
    for row in map(orjson.loads, day_rows(DAY, 500, kind=DELIVERY_V2)):
        assert set(row) == set(GOOD_V2) and row["created_at"].startswith("2026-11-20T")


def test_the_other_kind_has_plays_tokens_and_equal_rows() -> None:
    """What is known of it, and what makes it hard: rows without an id, of which some are equal."""
    converter = RowConverter(Conversion(LogRules(kind="delivery-v2"), bytes(32), day=DAY))
    outcomes = [converter.convert(row) for row in day_rows(DAY, 4000, kind=DELIVERY_V2)]
    assert not any(outcome.is_address for outcome in outcomes) and all(outcome.derived for outcome in outcomes)
    assert 0.05 < sum(outcome.filtered == "play" for outcome in outcomes) / 4000 < 0.2
    assert 5 < 4000 - len({outcome.id for outcome in outcomes}) < 60


def test_the_shares_are_those_of_a_real_day() -> None:
    """IPv4, IPv6, tokens, partials, bots, rows without bytes and clamped rows all occur."""
    converter = RowConverter(Conversion(LogRules(), bytes(32), day=DAY))
    kinds: Counter[str] = Counter()
    for row in day_rows(DAY, 4000, tokens_share=0.05):
        outcome = converter.convert(row)
        kinds[str(outcome.filtered)] += 1
        kinds["clamped"] += outcome.clamped
        kinds["ipv6"] += ":" in outcome.line.split("\t")[2] if outcome.line else 0
        kinds["token"] += not outcome.is_address
        kinds["partial"] += "\t206\t" in outcome.line
    assert 0.2 < kinds["ipv6"] / 4000 < 0.3
    assert 0.03 < kinds["token"] / 4000 < 0.07
    assert 0.2 < kinds["partial"] / 4000 < 0.4
    assert 0.05 < kinds["clamped"] / 4000 < 0.1
    assert min(kinds[reason] for reason in (FilterReason.BLACKLISTED_IP, FilterReason.BLACKLISTED_UA)) > 20
    assert kinds[FilterReason.NO_BYTES] > 0


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_broken_rows_are_of_every_kind_that_is_rejected(tmp_path: Path, kind: ExportKind) -> None:
    """With ``broken`` a day has at least one row for every reason."""
    path = tmp_path / "day.json.gz"
    written = write_day(path, DAY, 200, broken=True, kind=kind)
    assert list(tmp_path.iterdir()) == [path]
    converter, reasons, ids = RowConverter(Conversion(LogRules(kind=kind.name), bytes(32), day=DAY)), set(), set()
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    assert written == len(lines) > 200
    for line in lines:
        try:
            outcome = converter.convert(line)
        except RowRejected as error:
            reasons.add(error.reason)
        else:
            if outcome.id in ids and not outcome.derived:
                reasons.add(RejectReason.DUPLICATE_ID)
            ids.add(outcome.id)
    assert reasons == set(RejectReason) - (set() if kind.delivery_types else {RejectReason.BAD_DELIVERY_TYPE})
