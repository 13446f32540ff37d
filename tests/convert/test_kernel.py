"""The kernel writes what the exact rules write, for every row that it takes; and it takes every ordinary row."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from server.cli.samples import day_rows
from server.convert import block as converting
from server.convert import kernel as binding
from server.convert.block import BlockConverter
from server.convert.conversion import Conversion
from server.convert.job import Task
from server.convert.kernel import Kernel, load_kernel
from server.convert.log_writer import inflate
from server.convert.row import RowConverter
from server.convert.row_ids import pack_id
from server.convert.tally import FilterReason, RowRejected
from server.episodes.catalogue import Catalogue, Episode
from server.megaphone.exports import DELIVERY_V2
from server.triton import URL_LIMIT, ColumnSpec, Layout, LogRules

from ..support.kernel_ways import (
    EPISODES,
    EVERY_VALUE,
    FRESH_AFTER,
    MORE_RULES,
    ROWS,
    V2_RULES,
    Ways,
    cuts,
    guarded_room,
    job,
    kernel,
    odd_rows,
    parse_once,
    result_values,
    v2_rows,
    worth_comparing,
)
from ..support.mutation import mutate_rows
from ..support.odd_rows import EPISODE, GOOD, with_ids
from ..support.reference_conversion import DAY, KEY
from ..support.rows import row_v2


@cache
def made(name: str, *, episodes: bool = True) -> Conversion:
    return Conversion(MORE_RULES[name], KEY, EPISODES if episodes else None, DAY)


def third(name: str, turn: int = 0) -> list[bytes]:
    """Return a third of the nasty rows; the next setting, and the next turn, has the next third."""
    return ROWS[([*MORE_RULES].index(name) + turn) % 3 :: 3]


def text_of(rows: list[bytes]) -> bytes:
    return b"".join(row + b"\n" for row in rows)


@pytest.fixture
def _parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_once(monkeypatch)


@pytest.mark.usefixtures("_parsed_once")
@pytest.mark.parametrize("name", MORE_RULES)
def test_every_odd_row_is_the_same_by_kernel_and_by_the_exact_rules(name: str) -> None:
    """Every setting and every nasty row, in one block; and a third each without episodes, as records, and if fresh."""
    ways = Ways(made(name, episodes=False))
    rows = third(name)
    ways.agree(job(text_of(worth_comparing(made(name, episodes=False), rows, ways.by_kernel._render_rules))))
    ways = Ways(made(name), FRESH_AFTER)
    rows = worth_comparing(made(name), ROWS, ways.by_kernel._render_rules)
    ways.agree(job(text_of(rows)))
    records = ways.agree(job(text_of(rows[[*MORE_RULES].index(name) % 3 :: 3]), Task.INDEX_ROWS)).records
    assert records is not None
    text = text_of(rows[([*MORE_RULES].index(name) + 1) % 3 :: 3])
    some = b"".join(pack_id(row_id.decode()) for row_id in re.findall(rb'"id":"([ -~]*?)"', text)[::3])
    ways.agree(job(text, fresh=some))


@pytest.mark.parametrize("name", V2_RULES)
def test_every_row_of_the_other_kind_is_the_same_by_kernel_and_by_the_exact_rules(name: str) -> None:
    """In blocks whose first row has an id, and in those whose first has none; with equal rows here and before."""
    conversion = Conversion(V2_RULES[name], KEY, EPISODES, DAY)
    rows = v2_rows()
    converter = RowConverter(conversion)
    ids = []
    for row in rows:
        with contextlib.suppress(RowRejected):
            ids.append(pack_id(converter.convert(row).id))
    numbers = b"".join(
        row_id + (n % 3 + 1).to_bytes(8, "little") for n, row_id in enumerate(dict.fromkeys(ids[-90::4]))
    )
    ways = Ways(conversion, FRESH_AFTER)
    for first in (row_v2(), row_v2(id="an-id", filesize=9, bytes_sent=5)):
        text = text_of([first, *rows])
        ways.agree(job(text))
        ways.agree(job(text, Task.INDEX_ROWS, numbers=numbers))
        result = ways.agree(job(text, numbers=numbers, duplicates=ids[40], fresh=b"".join(ids[::3])))
        assert result.derived is not None and result.tally.filtered["sent_before"] > 50
    for block in cuts(text_of(rows), 4000):
        ways.agree(job(block))


def test_a_size_that_no_cell_has_room_for_is_odd() -> None:
    """What an RSS feed states is cut where it is read; the kernel does not rely on that."""
    conversion = Conversion(V2_RULES["v2 reporting, rss"], KEY, EPISODES, DAY)
    rows = [row_v2(episode_id=key) for key in ("sized", "huge")]
    assert [len(odd_rows(conversion, row + b"\n", derive=True)) for row in rows] == [0, 1]


def test_equal_rows_are_numbered_in_a_block_that_takes_several_calls() -> None:
    """Before and after a room that is full, by the kernel and by the exact rules, the odd one first or last."""
    odd, even = row_v2(ip=" 203.0.113.9"), row_v2(ip="203.0.113.8")
    same = [row_v2(delivery_type="download", note=[]), row_v2()]  # equal, and the first of them is odd to the kernel
    filling = [row_v2(created_at=f"{DAY}T12:00:00.{n}Z", user_agent='"' * 90) for n in range(400)]
    for rows in ([*same, odd, even], [*reversed(same), even, odd, *same], [same[1], even, *same, odd]):
        columns = (ColumnSpec("long", constant="ä" * 900), *EVERY_VALUE)
        conversion = Conversion(LogRules(Layout(columns=columns), kind="delivery-v2"), KEY, None, DAY)
        result = Ways(conversion).agree(job(text_of([*rows, *filling, *rows, *filling[:9]])))
        assert result.tally.lines == 2 * len(rows) + 409
        Ways(conversion).agree(job(text_of(rows)))  # in one call


def test_a_day_of_the_other_kind_is_left_to_no_other() -> None:
    """The kernel takes every row of a realistic day of either sort: without ids and sizes, and with them."""
    rows = [*day_rows(DAY, 1000, kind=DELIVERY_V2)] * 2  # the second of equal ones is numbered
    own = [
        orjson.dumps(orjson.loads(row) | {"id": f"i{n}", "filesize": 9, "bytes_sent": 9}) for n, row in enumerate(rows)
    ]
    for rules in V2_RULES.values():
        conversion = Conversion(rules, KEY, EPISODES, DAY)
        assert odd_rows(conversion, b"".join(rows), derive=True) == []
        # Nor one that is equal to a row of an earlier block, or a client that asks again and again made a day slow.
        numbers = b"".join(
            pack_id(RowConverter(conversion).convert(row).id) + bytes((7, *bytes(7))) for row in rows[:50]
        )
        assert odd_rows(conversion, b"".join(rows), derive=True, numbers=numbers) == []
        assert odd_rows(conversion, text_of(own)) == []
        assert (
            len(odd_rows(conversion, b"".join(rows)))
            == len(odd_rows(conversion, text_of(own), derive=True))
            == len(rows)
        )


@pytest.mark.usefixtures("_parsed_once")
@pytest.mark.parametrize("name", ["default", "w3c columns", "every field"])
def test_every_odd_row_is_the_same_alone(name: str) -> None:
    """Each nasty row in a block of its own, under one setting: at its beginning and end, with no newline after it."""
    ways = Ways(made(name))
    rows = worth_comparing(made(name), third(name), ways.by_kernel._render_rules)
    assert len(third(name)) / 2 < len(rows) < len(third(name))
    for row in rows:
        ways.agree(job(row))


def test_what_is_ordinary_is_left_to_no_other() -> None:
    """The kernel takes every row of a realistic day, in every setting; with new fields too."""
    rows = [row for row in day_rows(DAY, 2000, tokens_share=0.1) if b"\\" not in row]
    named = binding.Names().packed(tuple(orjson.loads(rows[0])))
    assert named[1] == 18
    for name in MORE_RULES:
        if name == "comment":
            continue  # a line that would begin with # is odd
        assert odd_rows(made(name), b"".join(rows)) == [], name
        assert odd_rows(made(name), b"".join(rows), by_podcast=True, fresh_after=FRESH_AFTER) == []
        assert odd_rows(made(name), b"".join(rows), index_rows=True) == []


def test_escapes_and_foreign_letters_are_ordinary() -> None:
    """What public lists of user agents contain: quotes, backslashes, tabs, umlauts, emoji, as they are or escaped."""
    agents = [
        b'say \\"hi\\"',
        b"back\\\\slash",
        b"tab\\there",
        "Küche".encode(),
        "🎧".encode(),
        b"K\\u00fcche",
        b"\\ud83c\\udfa7",
        b"a\\/b",
    ]
    rows = [orjson.dumps({**GOOD, "user_agent": "HERE"}).replace(b"HERE", agent) for agent in agents]
    for name in MORE_RULES:
        assert odd_rows(made(name), text_of(rows)) == [], name


def test_new_fields_are_learned_from_the_first_row() -> None:
    """A field that Megaphone adds costs no speed, whatever scalar it holds and wherever it is."""
    rows = [
        orjson.dumps({"added": n, **GOOD, "id": f"id{n}", "later": [None, True, "é\\", -1.5, 7][n % 5]})
        for n in range(50)
    ]
    names = binding.Names()
    rooms = binding.Rooms()
    rooms.load([text_of(rows)])
    rules = binding.CompiledRules(kernel(), made("default"))
    block = rooms.block(0, names.packed(tuple(orjson.loads(rows[0]))), array=False)
    kernel().convert(rules, block)
    assert (block.id_count, block.odd_count) == (50, 0)
    Ways(made("default")).agree(job(text_of(rows)))


def test_names_that_another_thread_forgets_change_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads may learn at once, and one of them in vain: a block that is converted twice keeps its names."""
    converter = BlockConverter(kernel(), Conversion(LogRules(kind="delivery-v2"), KEY, None, DAY))
    known = [binding.Names(DELIVERY_V2).packed(names) for names in (("note",), (), ())]
    monkeypatch.setattr(converter._names, "packed", lambda _first: known.pop(0))
    again = [row_v2(ip="203.0.113.8"), row_v2(ip=" 203.0.113.8"), row_v2(ip="203.0.113.8", extra={})]
    result = converter.do(job(text_of([row_v2(note=1), row_v2(), *again]), want_ids=True))
    assert len(set(inflate(result.piece).split(b"\n"))) == result.tally.lines + 1 == 6


def test_more_names_than_the_kernel_takes_cost_no_row() -> None:
    """Rows with hundreds of ever new fields, some with long or foreign names, are converted by the exact rules."""
    ways = Ways(made("default"))
    for start in range(0, 400, 50):
        names = (
            [f"new {n}" for n in range(start, start + 50)]
            + ["é" * n for n in range(90, 110)]
            + ["n" * 196, "n" * 197, "n" * 198]
        )
        ways.agree(job(text_of([orjson.dumps({**GOOD, **dict.fromkeys(names, 1)}), orjson.dumps({**GOOD, "id": "b"})])))


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \n", b"\t \r\n", b"\n\n", b"\n \n\r\n"])
def test_line_ends_blank_lines_and_arrays(end: bytes, array: bool) -> None:
    """Rows with every line end, blank lines between them, commas and brackets of an array, in blocks of any size."""
    rows = [row.removesuffix(b"\n") for row in day_rows(DAY, 60, broken=True)]
    comma = b"," if array else b""
    text = (b"[" + end if array else b"") + (comma + end).join(rows) + end + (b"]" + end if array else b"")
    ways = Ways(made("default"))
    for tail in (b"", b"]", b"\r\n", b",\n", b"{}", b"]\n]\n", orjson.dumps(GOOD)):
        ways.agree(job(text + tail, array=array))
        blocks = [*enumerate(cuts(text + tail, 3000))]
        for number, block in blocks[-1:] if tail else blocks:  # those before the last one are the same
            ways.agree(job(block, array=array, number=number))


@pytest.mark.parametrize(
    "text",
    [b"\n", b"\r", b"[", b"[\n", b"]", b"[\n]", b"{", b"}", b'"', b'{"', b"{}", b"\\", b"\x00", b"\xef\xbb\xbf"],
)
def test_blocks_of_next_to_nothing(text: bytes) -> None:
    """Blocks without a row, or without anything that could be one, in an array and outside."""
    for array in (False, True):
        ways = Ways(made("default"))
        ways.agree(job(text, array=array))
        ways.agree(job(text, array=array, number=1))
        ways.agree(job(text, Task.INDEX_ROWS, array=array))


def test_a_byte_order_mark_makes_the_same_of_the_first_row() -> None:
    """What it means is left to the exact rules."""
    Ways(made("default")).agree(job(b"\xef\xbb\xbf" + text_of([orjson.dumps(GOOD), orjson.dumps({**GOOD, "id": "b"})])))


def test_ids_that_come_again_are_rejected_wherever_they_stand() -> None:
    """Twice among ordinary rows, among odd ones, in one of each, and before the block; UUIDs and others."""
    rows = [row.removesuffix(b"\n") for row in day_rows(DAY, 300, broken=True)]
    odd = [orjson.dumps({**orjson.loads(rows[n]), "ip": "::1%x"}) for n in (5, 7, 9)]
    other = [orjson.dumps({**GOOD, "id": "other"}), orjson.dumps({**GOOD, "id": "other", "bytes_sent": 0})]
    mixed = [odd[0], *rows[:8], *odd, *rows[6:], *other, rows[3], odd[1], *other]
    ways = Ways(made("default"), FRESH_AFTER)
    before = b"".join(pack_id(orjson.loads(row)["id"]) for row in [*rows[50:60], other[0], odd[2]])
    for duplicates in (b"", before):
        result = ways.agree(job(text_of(mixed), duplicates=duplicates))
        assert result.tally.rejected["duplicate_id"] >= 10
        ways.agree(job(text_of(mixed), Task.INDEX_ROWS, duplicates=duplicates))
        ways.agree(job(text_of(mixed), duplicates=duplicates, fresh=before))
    assert odd_rows(made("default"), text_of(mixed)) != []


def test_ids_that_were_chosen_to_be_slow_are_told_apart_otherwise() -> None:
    """Of one slot in the kernel's table, so that each is compared with all before it: ten million took half an hour."""
    undo = pow(0xD6E8FEB86659FD93, -1, 1 << 64)  # what hash_id multiplies by
    chosen = [(undo * number % (1 << 64)).to_bytes(8, "little") + bytes(8) for number in range(1000)]
    slots = binding._slots(1000)
    assert kernel()._library.ids_differ(b"".join(chosen), 1000, slots, len(slots)) == -1
    assert kernel().ids_differ(b"".join(chosen)) is True
    assert kernel().ids_differ(b"".join([*chosen, chosen[7]])) is False
    random_ids = random.Random(1).randbytes(16 * 1000)
    assert kernel().ids_differ(random_ids) is True
    assert kernel().ids_differ(random_ids + random_ids[160:176]) is False


def test_many_blocks_of_repeated_ids_stay_fast_by_the_kernel() -> None:
    """A repeated id sends its own rows the exact way, not the whole block."""
    rows = list(day_rows(DAY, 2000))
    converter = BlockConverter(kernel(), made("default"))
    asked: list[bytes] = []
    exact = converter._exact.convert

    def counted(row: bytes) -> Any:
        asked.append(row)
        return exact(row)

    converter._exact.convert = counted  # type: ignore[method-assign]
    result = converter.do(job(b"".join([*rows, rows[7]])))
    assert result.tally.rejected["duplicate_id"] == 1
    assert (
        len([row for row in asked if row == rows[7]]) == len(asked) - len(odd_rows(made("default"), b"".join(rows))) * 2
    )


def test_what_only_late_rows_need_is_made_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large catalogue takes long to pack: once for lines, and once more when records are asked for."""
    made_for: list[str] = []

    def compiled(*args: Any, index_rows: bool = False, **more: Any) -> binding.CompiledRules:
        made_for.append("records" if index_rows else "lines")
        return binding.CompiledRules(*args, index_rows=index_rows, **more)

    monkeypatch.setattr(converting, "CompiledRules", compiled)
    converter = BlockConverter(kernel(), made("default"))
    converter.do(job(orjson.dumps(GOOD)))
    assert made_for == ["lines"]
    for _ in range(2):
        converter.do(job(orjson.dumps(GOOD), Task.INDEX_ROWS))
    assert made_for == ["lines", "records"]


def test_more_podcasts_than_a_call_takes() -> None:
    """Books by podcast for thousands of podcasts in one block."""
    most = binding._MOST_PODCASTS
    rows = [
        orjson.dumps({**GOOD, "id": f"i{n}", "podcast_id": f"p{n % (most + 50)}", "bytes_sent": n % 3})
        for n in range(2 * most + 100)
    ]
    result = Ways(made("default")).agree(job(text_of(rows)))
    assert result.podcasts is not None
    assert len(result.podcasts.tallies) == most + 50


def test_more_odd_rows_than_a_call_takes() -> None:
    """Thousands of broken lines, with ordinary ones between."""
    rows = [b"{" if n % 3 else orjson.dumps({**GOOD, "id": f"i{n}"}) for n in range(binding._MOST_ODD * 5 // 3)]
    Ways(made("default")).agree(job(text_of(rows)))


def test_lines_that_are_longer_than_their_rows() -> None:
    """A block whose lines do not fit into the room at once."""
    text = text_of([orjson.dumps({**GOOD, "id": f"i{n}", "user_agent": '"' * 90}) for n in range(500)])
    for name in ("long", "every field, percent"):
        result = Ways(made(name)).agree(job(text))
        assert len(inflate(result.piece)) > len(text) + binding._SMALLEST


def test_a_row_whose_line_fits_no_room_goes_the_exact_way() -> None:
    """A long text in a small block, in several columns."""
    rows = [orjson.dumps({**GOOD, "city": '"' * 300_000}), orjson.dumps({**GOOD, "id": "b"})]
    Ways(made("every field, percent")).agree(job(text_of(rows)))


@pytest.mark.parametrize("length", [URL_LIMIT - 1, URL_LIMIT, URL_LIMIT + 1])
@pytest.mark.parametrize(
    ("url", "row", "is_odd"),
    [
        ("/{city}/", {"city": "c" * 40}, False),
        ("/{city}/{id}/", {"city": "\u00e9 %" * 5}, False),
        ("{guid}/", {"episode_id": "plain"}, False),
        ("{token}/", {"episode_id": "plain"}, False),
        ("{enclosure_url}/", {"episode_id": "plain"}, False),
        ("/all.mp3", {"episode_id": "whole"}, False),  # its own URL
        ("{enclosure_url}", {"episode_id": "published"}, False),  # as it was published
        ("/\u00fc\u00fc{city}/", {}, True),  # counted in characters, of which bytes say little
    ],
)
def test_a_url_is_as_long_as_it_may_be(url: str, row: dict[str, str], length: int, is_odd: bool) -> None:
    """Of 2048 characters in all it is one, of one more it is not; and the kernel takes it up to its last byte."""
    of = {"whole": Episode("g", "/" + "w" * (length - 1)), "published": Episode("g", "", "T", "/" + "p" * (length - 1))}
    catalogue = Catalogue({"plain": EPISODES.episodes["plain"], **of})
    one = orjson.dumps({**GOOD, **row})

    def rules(filling: int) -> LogRules:
        return LogRules(Layout(columns=(ColumnSpec("url", value="url"), *EVERY_VALUE)), url=url + "u" * filling)

    def length_of(filling: int) -> int:
        return len(RowConverter(Conversion(rules(filling), KEY, catalogue, DAY)).convert(one).line.split("\t")[0])

    fixed = row.get("episode_id") in of
    conversion = Conversion(rules(0 if fixed else length - length_of(0)), KEY, catalogue, DAY)
    result = Ways(conversion).agree(job(one + b"\n"))
    fits = length <= URL_LIMIT
    falls_back = not fits and (url.startswith("{token}") or "enclosure" in url)  # an RSS feed costs no row
    assert (result.tally.lines, result.tally.fallback_urls) == (fits or falls_back, falls_back)
    assert len(odd_rows(conversion, one + b"\n")) == (is_odd or not fits)


def test_rooms_that_a_huge_line_made_are_given_back() -> None:
    """Each thread that ever had one kept them until it had another block."""
    converter = BlockConverter(kernel(), made("default"))
    for city, kept in (("x", True), ("x" * binding._LARGEST_KEPT, False), ("x", True)):
        converter.do(job(orjson.dumps({**GOOD, "city": city})))
        assert hasattr(converter._rooms, "_text") is kept


def test_published_lines_are_indexed_alike() -> None:
    """Lines of a log with ids of any form, fewer cells than columns, empty lines, with and without a last newline."""
    ways = Ways(made("default"))
    lines = inflate(ways.by_kernel.do(job(text_of(ROWS))).piece)
    for text in (lines, lines + b"\n\nx\n\t\t\n" + b"\t" * 30, lines[:-1], b"", b"\n", b"a\tb"):
        for column in (12, 0, 13, 40):
            ways.agree(job(text, Task.INDEX_LINES, id_column=column))


def test_without_special_instructions_nothing_changes() -> None:
    """HMAC-SHA-256 by the processor's instructions and without them."""
    text = text_of(with_ids([orjson.dumps({**GOOD, "ip": "t" * n}) for n in range(1, 201)]))
    plain = Kernel(kernel()._library)
    plain.features = 0
    for name in ("default", "truncated"):
        by_feature = [BlockConverter(one, made(name)).do(job(text)).piece for one in (kernel(), plain)]
        assert by_feature[0] == by_feature[1]
        Ways(made(name)).agree(job(text))


@pytest.mark.usefixtures("_parsed_once")
@pytest.mark.parametrize("at_end", [True, False])
def test_no_byte_outside_its_rooms_is_touched(at_end: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every room of a block ends (or begins) at a page that cannot be touched; rows are cut at every byte."""
    monkeypatch.setattr(binding, "make_room", lambda size: guarded_room(size, at_end=at_end))
    monkeypatch.setattr(binding, "_SMALLEST", 1)
    monkeypatch.setattr(binding, "_LARGEST_KEPT", 1)
    for name in ("default", "every field", "w3c truncated"):
        ways = Ways(made(name))
        rows = worth_comparing(made(name), third(name, at_end), ways.by_kernel._render_rules)
        ways.agree(job(text_of(rows)))
        ways.agree(job(text_of(rows), Task.INDEX_ROWS))
        for row in ROWS[at_end::14]:
            ways.by_kernel.do(job(row))
    row = orjson.dumps({**GOOD, "city": "é\\u00e9\\ud83d\\ude00", "ip": "2001:db8::1", "source": 12345.678})
    ways = Ways(made("every field"))
    for cut in range(len(row)):
        ways.agree(job((row + b"\n" if cut % 2 == at_end else b"") + row[:cut]))


def test_threads_that_share_a_converter_do_not_interfere() -> None:
    """Blocks with all kinds of rows, done by four threads at once, come out as if done one after the other."""
    converter = BlockConverter(kernel(), made("every field"), FRESH_AFTER, by_podcast=True)
    rows = [*ROWS[::3], *(row.removesuffix(b"\n") for row in day_rows(DAY, 1000, broken=True))]
    orders = [dict(reversed(GOOD.items())), {"new": 1, **GOOD}]
    blocks = [*cuts(text_of(rows), 40_000), *(text_of([orjson.dumps(order)]) for order in orders)] * 3
    alone = [converter.do(job(block, number=number)) for number, block in enumerate(blocks)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda one: converter.do(job(one[1], number=one[0])), enumerate(blocks)))
    for one, other in zip(alone, together, strict=True):
        assert result_values(one) == result_values(other)


@pytest.mark.parametrize("name", MORE_RULES)
def test_mutated_rows_are_the_same_by_kernel_and_by_the_exact_rules(name: str) -> None:
    """Blocks of rows, each changed in several places, with a seed of its own for each setting."""
    fuzz(name, 10, zlib.crc32(name.encode()))


def fuzz(name: str, rounds: int, seed: int) -> int:
    """Convert blocks of mutated rows both ways; return how many rows they had."""
    dice, mutate, rows = random.Random(seed), mutate_rows(1), 0
    ways_with = cache(lambda episodes, fresh_after: Ways(made(name, episodes=episodes), fresh_after))
    plain = [row.removesuffix(b"\n") for row in day_rows(DAY, 50)]
    pool = [*ROWS, *plain * 10]
    for _ in range(rounds):
        ways = ways_with(dice.random() < 0.5, dice.choice([None, FRESH_AFTER]))
        chosen = [dice.choice(pool) for _ in range(dice.choice((1, 3, 30)))]
        text = b"".join(row + dice.choice((b"\n", b"\n", b"\n", b"\r\n", b",\n")) for row in chosen)
        for _ in range(3):
            text = mutate(b"x" + text, 1 << 20, dice)[1:]
        array = dice.random() < 0.2
        ids = [pack_id(row_id.decode(errors="ignore")) for row_id in re.findall(rb'"id":"([^"]*)"', text)]
        some = b"".join(row_id for row_id in ids if dice.random() < 0.3)
        task = dice.choice((Task.RENDER, Task.RENDER, Task.INDEX_ROWS))
        fresh = some if task is Task.RENDER and dice.random() < 0.3 else None
        duplicates = some if dice.random() < 0.1 else b""
        ways.agree(job(text, task, array=array, number=dice.randrange(2), fresh=fresh, duplicates=duplicates))
        rows += len(chosen)
    return rows


def test_a_row_is_counted_as_it_is_by_the_exact_rules() -> None:
    """Lines, filters and counts for every combination of what the tally counts, compared with `RowConverter` itself."""
    rows = []
    for ip, sent, bad, seconds, day, episode in itertools.product(
        ("1.2.3.4", "1.2.3.0", "token", "2001:db8::1"), (0, 1, 1000, 1001), (False, True, "true"), (59, 60),
        ("20", "21"), (EPISODE, "nowhere"),
    ):  # fmt: skip
        changes = {"ip": ip, "bytes_sent": sent, "blacklisted_ua": bad, "seconds_downloaded": seconds}
        at = f"2026-11-{day}T12:00:00Z"
        rows.append(orjson.dumps({**GOOD, **changes, "id": f"i{len(rows)}", "created_at": at, "episode_id": episode}))
    for name in ("default", "reporting", "as sent", "truncated"):
        converter, lines, kept = RowConverter(made(name)), [], []
        for row in rows:
            try:
                kept.append(converter.convert(row))
            except RowRejected as rejected:
                raise AssertionError(row) from rejected
            lines += [kept[-1].line] if kept[-1].filtered is None else []
        result = BlockConverter(kernel(), made(name)).do(job(text_of(rows)))
        written = [one for one in kept if one.filtered is None]
        assert inflate(result.piece).decode() == "".join(f"{line}\n" for line in lines)
        tally = result.tally
        assert (tally.rows, tally.lines, tally.reporting) == (len(rows), len(lines), sum(one.reporting for one in kept))
        assert tally.clamped == sum(one.clamped for one in written)
        assert tally.not_an_address == sum(not one.is_address for one in written)
        assert tally.ends_in_zero == sum(one.ends_in_zero for one in written)
        assert tally.outside_day == sum(one.outside_day for one in written)
        assert tally.unmapped_episodes == sum(one.unmapped for one in written)
        for reason in FilterReason:
            assert tally.filtered[reason] == sum(one.filtered is reason for one in kept)
        assert odd_rows(made(name), text_of(rows)) == []


def test_a_missing_or_foreign_library_is_no_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no library, another library, or other structures: there is no kernel, and no error."""
    assert Kernel.open(tmp_path / "nothing.so") is None
    (tmp_path / "text.so").write_text("no library")
    assert Kernel.open(tmp_path / "text.so") is None
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert Kernel.open(Path(next(line.split()[-1] for line in maps if "/libc" in line))) is None
    monkeypatch.setattr(binding, "_Podcast", binding._Odd)
    assert Kernel.open(binding.LIBRARY) is None


def test_the_environment_switches_the_kernel_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """PICKUP_POINT_KERNEL=none: no kernel is loaded, so every row is converted the exact way."""
    assert load_kernel() is not None
    monkeypatch.setenv("PICKUP_POINT_KERNEL", "none")
    assert load_kernel() is None


if __name__ == "__main__":  # by hand, until it is stopped: python -m tests.convert.test_kernel SEED
    for turn in itertools.count(int(sys.argv[1])):
        tested = sum(fuzz(name, 50, turn * 1000 + number) for number, name in enumerate(MORE_RULES))
        print(turn, tested, flush=True)
