"""Ids in 16 bytes, spread over partitions and spilled to disk, keep every repetition findable."""

from __future__ import annotations

import uuid
from random import Random
from typing import TYPE_CHECKING

import pytest

from server.convert import row_ids as ids_module
from server.convert.row_ids import (
    PARTITIONS,
    BlockIds,
    BlockRecords,
    Spill,
    find_duplicates,
    pack_id,
    partition,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UUID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"


def uuids(count: int, seed: int = 1) -> list[str]:
    random = Random(seed)
    return [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(count)]


def test_uuids_are_packed_to_their_own_bytes() -> None:
    """A canonical UUID is its 16 bytes."""
    many = uuids(50)
    assert list(map(pack_id, many)) == [uuid.UUID(one).bytes for one in many]


@pytest.mark.parametrize(
    "odd",
    [
        UUID.upper(), UUID.replace("-", ""), UUID[:-1], UUID + "0", "", "{" + UUID + "}", UUID.replace("-", "\n"),
        UUID.replace("0a", "0g"), UUID.replace("0a", "\u0660a"), " " + UUID[1:], UUID[:8] + UUID[9:] + "-",
        UUID[:-2] + " f", "-" * 36, UUID[:-1] + "\n",
    ],
)  # fmt: skip
def test_what_is_no_canonical_uuid_has_a_packed_form_of_its_own(odd: str) -> None:
    """A hash, which is not the form of the UUID that it resembles."""
    assert len(pack_id(odd)) == 16
    assert pack_id(odd) != pack_id(UUID)


@pytest.mark.parametrize(
    "make",
    [
        lambda random, n: uuid.UUID(int=random.getrandbits(128), version=4),
        lambda random, n: uuid.UUID(fields=(n & 0xFFFFFFFF, 0xABCD, 0x11EC, 0x8F, 0x0C, 0x0F1F2F3F4F5F)),
        lambda random, n: uuid.UUID(int=(n << 80) | (7 << 76) | (2 << 62) | random.getrandbits(62)),
    ],
    ids=["version 4", "version 1", "version 7"],
)
def test_uuids_of_every_version_spread_over_the_partitions(make: Callable[[Random, int], uuid.UUID]) -> None:
    """No partition has more than twice its share, whether ids are random or made from the time."""
    random = Random(3)
    packed = [make(random, n).bytes for n in range(20_000)]
    parts = partition(packed, b"".join(packed))
    assert sum(parts.counts) == 20_000
    assert max(parts.counts) < 2 * 20_000 / PARTITIONS
    assert sorted(unpack(parts.data)) == sorted(packed)


@pytest.mark.parametrize("held", [0, 1000, 1 << 20])
def test_a_spill_gives_back_what_was_added_in_order(tmp_path: Path, held: int) -> None:
    """On disk or in memory, each partition's records come back in the order in which they came."""
    with Spill(tmp_path, 2, 3, held) as spill:
        for n in range(300):
            spill.append(n % 3, n.to_bytes(2, "big"))
            spill.flush_if_large()
        for part in range(3):
            data = b"".join(spill.chunks(part))
            assert data == b"".join(n.to_bytes(2, "big") for n in range(part, 300, 3))
            assert spill.count(part) == 100
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("held", [0, 1 << 20])
@pytest.mark.parametrize("at_once", [7, 200_000])
def test_every_id_that_stood_in_an_earlier_block_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, at_once: int
) -> None:
    """The ids to be rejected in each block are exactly those of an earlier one, also past a block without records."""
    monkeypatch.setattr(ids_module, "AT_ONCE", at_once)
    random, pool = Random(5), uuids(900)
    blocks = [sorted(set(random.choices(pool, k=30))) for _ in range(40)]
    blocks[17] = []
    expected, seen = [], set[str]()
    for block in blocks:
        expected.append({pack_id(one) for one in block if one in seen})
        seen.update(block)
    with BlockRecords(tmp_path, 16, held) as records, BlockIds(tmp_path, len(blocks), held) as found:
        for block in blocks:
            packed = [pack_id(one) for one in block]
            records.add(partition(packed, b"".join(packed)) if block else None)
        assert records.blocks == len(blocks)
        find_duplicates(records, found)
        assert [set(unpack(found.of(number))) for number in range(len(blocks))] == expected
        assert found.count == sum(map(len, expected))
        assert list(tmp_path.iterdir()) == []


def test_no_choice_of_ids_makes_a_group_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that are equal in all bytes but two: a group is examined in memory, which is limited."""
    monkeypatch.setattr(ids_module, "AT_ONCE", 50)
    packed = [bytes(8) + n.to_bytes(2, "big") + bytes(6) for n in range(5000)]
    with BlockRecords(tmp_path, 16) as records:
        records.add(partition(packed, b"".join(packed)))
        groups = [unpack(group.ids()) for group in records]
    assert sorted(one for group in groups for one in group) == packed
    assert max(map(len, groups)) < 200
