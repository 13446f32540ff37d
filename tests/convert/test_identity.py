"""Rows without an id: each gets one that stays the same in every version of its day, and moves no other.

Converts in a temporary folder, in this process; nothing else.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.convert.conversion import Conversion
from server.convert.day import SentLog
from server.convert.export_row import derived_id, identity_of, subkey, with_fingerprint
from server.convert.row import RowConverter
from server.megaphone.exports import DELIVERY_V2
from server.triton import LogRules

from ..support.reference_conversion import DAY, KERNEL, assert_is, convert, convert_slowly, export_file
from ..support.rows import ABSENT, GOOD_V2, KEY, V2, row, row_v2

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from server.convert.kernel import Kernel

MADE = Conversion(V2, KEY, day=DAY)
IDENTITY = DELIVERY_V2.identity


def id_of(raw: bytes, number: int = 0, key: bytes = KEY) -> str:
    return RowConverter(Conversion(V2, key)).convert(raw, number).id


def ids_of(texts: list[str]) -> list[str]:
    """The cells of x-metric-id, in order."""
    return [line.split("\t")[12] for text in texts for line in text.splitlines()[1:]]


def test_an_id_is_a_uuid_made_of_the_secret_and_of_six_fields() -> None:
    """A value that stays for ever: published logs hold it. Other fields do not change it, each of the six does."""
    assert id_of(row_v2()) == "1d221988-ea1a-82e1-8e3f-90aee6baebbf"
    assert uuid.UUID(id_of(row_v2())).version == 8
    assert id_of(row_v2()) == id_of(row_v2(blacklisted_ip=True, media_type="video", country="US", id=None))
    others = [
        id_of(row_v2(**{name: ABSENT})) for name in IDENTITY if name in ("podcast_id", "episode_id", "user_agent")
    ]
    others += [id_of(row_v2(user_agent="")), id_of(row_v2(created_at="2026-11-20T15:19:12.346Z"))]
    others += [id_of(row_v2(ip="203.0.113.9")), id_of(row_v2(delivery_type="play")), id_of(row_v2(), 1)]
    others += [id_of(row_v2(), key=KEY[::-1]), id_of(row_v2())]
    assert len(set(others)) == len(others)


# A text that is cut into six fields, of which an empty one may be absent instead.
_CUTS = st.tuples(*[st.integers(0, 3)] * (len(IDENTITY) - 1), st.booleans())


def _cut(text: str, *cuts: int) -> list[str | None]:
    *ends, absent = cuts
    return [text[begin:end] or ("" if not absent else None) for begin, end in pairwise((0, *sorted(ends), len(text)))]


@given(st.text("ab1", max_size=3), _CUTS, _CUTS)
def test_different_fields_are_different_identities(text: str, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    """Wherever one ends and the next begins, and whether one is absent or empty."""
    first, second = _cut(text, *one), _cut(text, *other)
    assert (identity(first) == identity(second)) == (first == second)


def test_a_number_has_the_identity_of_its_text() -> None:
    """As a JSON export has the one or the other; and a value of another kind is none."""
    assert identity([None, "", "a", "b", 12, 1.5]) == identity([[], "", "a", "b", "12", "1.5"])


def identity(values: Sequence[Any]) -> bytes:
    return identity_of(dict(zip(IDENTITY, values, strict=True)), IDENTITY)


def test_the_fingerprint_tells_keys_apart_and_nothing_of_them() -> None:
    """Only of a kind whose rows need the key; it is neither the key nor what addresses or ids are hashed by."""
    mine, other = (with_fingerprint(V2, key).id_key for key in (KEY, KEY[::-1]))
    assert mine != other and len(mine) == 16 and mine not in (KEY.hex(), subkey(KEY).hex())
    assert with_fingerprint(LogRules(), KEY) == LogRules()


def test_equal_rows_are_numbered_by_those_that_become_lines(tmp_path: Path) -> None:
    """Two equal rows are two lines; one that is left out, in whatever place, takes no number from another."""
    good, bad = row_v2(), row_v2(blacklisted_ua=True)
    expected = [id_of(good, n) for n in range(2)]
    for rows in ([good, good], [bad, good, good], [good, bad, good], [good, good, bad, bad]):
        _, sink = convert(export_file(tmp_path, rows), MADE)
        assert ids_of(sink.texts) == expected


def scattered(count: int, seed: int = 1) -> list[bytes]:
    """Rows of which many are equal, near and far, some left out, some with an id of their own, some rejected."""
    chance = random.Random(seed)
    rows = []
    for n in range(count):
        more: dict[str, Any] = {"ip": f"203.0.113.{chance.randrange(1, 9)}", "blacklisted_ip": chance.random() < 0.1}
        more["created_at"] = f"{DAY}T12:00:{chance.randrange(60):02d}Z"
        kind = chance.random()
        if kind < 0.1:
            more |= {"id": f"own-{chance.randrange(count // 8)}", "filesize": 9, "bytes_sent": 5}
        elif kind < 0.2:
            more["delivery_type"] = chance.choice(["play", "", None])
        elif kind < 0.6:
            more["user_agent"] = f"Agent {n} \u201e\\"
        rows.append(row_v2(**more))
    return rows


@pytest.mark.parametrize(("kernel", "threads"), [(None, 1), (KERNEL, 3)], ids=["exact", "kernel"])
def test_a_day_in_many_blocks_is_numbered_as_one(tmp_path: Path, kernel: Kernel | None, threads: int) -> None:
    """Equal rows in different blocks, everything spilled to disk: line for line what one pass by hand makes."""
    rows = scattered(700)
    for some in (rows, [raw for raw in rows if b'"own-' not in raw]):
        slow = convert_slowly(some, MADE)
        assert max(Counter(slow.cells).values()) == 1 < len({cell for cell in slow.cells if "-8" in cell})
        converted, sink = convert(export_file(tmp_path, some), MADE, kernel=kernel, threads=threads)
        assert sink.restarts == 1
        assert_is(slow, converted, sink)


@pytest.mark.parametrize("kernel", [None, KERNEL], ids=["exact", "kernel"])
def test_late_rows_are_found_among_equal_ones(tmp_path: Path, kernel: Kernel | None) -> None:
    """In a new version in another order, with more rows equal to those that were sent, each new line goes out once."""
    rows = scattered(600)
    first = convert_slowly(rows[:350], MADE)
    _, sink = convert(export_file(tmp_path, rows[:350]), MADE, kernel=kernel)
    log = tmp_path / "log.gz"
    log.write_bytes(sink.logs[0].content)
    later = rows[:]
    random.Random(2).shuffle(later)
    sent = [SentLog(V2.layout, lambda: log.open("rb"))]
    converted, late = convert(export_file(tmp_path, later), MADE, kernel=kernel, sent=sent)
    assert_is(convert_slowly(later, MADE, sent=first.cells), converted, late)
    both = Counter([*first.cells, *ids_of(late.texts)])
    derived = {cell for cell in both if not cell.startswith("own-")}
    assert {cell for cell in convert_slowly(later, MADE).cells if not cell.startswith("own-")} == derived
    assert max(both.values()) == 1 and converted.removed == 0


def test_a_row_that_is_blacklisted_later_is_removed_and_sends_no_other_again(tmp_path: Path) -> None:
    """The equal rows that stay keep their numbers, wherever it was."""
    rows = [row_v2(), row_v2(), row_v2(user_agent="Other/1.0")]
    _, sink = convert(export_file(tmp_path, rows), MADE)
    log = tmp_path / "log.gz"
    log.write_bytes(sink.logs[0].content)
    sent = [SentLog(V2.layout, lambda: log.open("rb"))]
    converted, late = convert(export_file(tmp_path, [row_v2(blacklisted_ip=True), *rows[1:]]), MADE, sent=sent)
    assert (late.texts, converted.removed, converted.changed, converted.tally.lines) == ([], 1, 0, 0)
    assert dict(converted.tally.filtered) == {"sent_before": 2, "blacklisted_ip": 1}


def test_the_other_kind_knows_no_such_ids(tmp_path: Path) -> None:
    """A metrics row without one is rejected, as ever."""
    converted, _ = convert(export_file(tmp_path, [row(id=ABSENT), row(id=None), row()]))
    assert dict(converted.tally.rejected) == {"no_id": 2}
    assert set(GOOD_V2) <= set(DELIVERY_V2.fields)
    assert derived_id(b"", b"", 0) != derived_id(b"", b"", 1)
