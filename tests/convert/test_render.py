"""Blocks and the exact rules give the same outcome for every row, however odd."""

from __future__ import annotations

import gc
import itertools
import re
import sys
from datetime import date
from functools import cache
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.cli.samples import day_rows
from server.convert.block import BlockConverter
from server.convert.conversion import Conversion
from server.convert.job import Job, Task
from server.convert.log_writer import inflate
from server.convert.row import RowConverter
from server.triton import LogRules

from ..support.kernel_ways import ask_once, parse_once
from ..support.odd_rows import CATALOGUE, GOOD, RULES, nasty_rows, with_ids
from ..support.reference_conversion import KERNEL, convert_slowly

if TYPE_CHECKING:
    from server.convert.kernel import Kernel

DAY = date(2026, 11, 20)
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
KEY = bytes(range(32))
NASTY = with_ids(nasty_rows())
ORDINARY = [row.removesuffix(b"\n") for row in day_rows(DAY, 5)]


@cache
def conversion(rules: LogRules, *, catalogue: bool = False) -> Conversion:
    return Conversion(rules, KEY, CATALOGUE if catalogue else None, DAY)


class Blocks:
    """Converters of blocks, with the kernel and without it, and the exact rules that both must agree with."""

    def __init__(self, made: Conversion, fresh_after: str | None = None) -> None:
        self._made, self._fresh_after = made, fresh_after
        self._converters = [BlockConverter(kernel, made, fresh_after) for kernel in dict.fromkeys((None, KERNEL))]
        self._exact = RowConverter(made)
        ask_once(made, self._exact, *(converter._exact for converter in self._converters))

    def assert_same(self, rows: list[bytes], times: int = 1) -> None:
        """A block comes out as row by row by the exact rules: lines, tally, rejections."""
        data = b"".join(row + b"\n" for row in rows)
        slow = convert_slowly(rows, self._made, fresh_after=self._fresh_after, exact=self._exact)
        assert slow.tally.balanced
        # The second time with names that were learned, which only the kernel needs.
        for converter in (*self._converters, *self._converters[1:] * (times - 1)):
            result = converter.do(Job(0, Task.RENDER, (data,), want_ids=True))
            text = inflate(result.piece).decode()
            assert text.split("\n") == "".join(slow.lines).split("\n")
            assert result.tally.as_json() == slow.tally.as_json()
            rejects = [orjson.loads(reject.at(1)) for reject in result.rejects]
            assert [(reject["line"], reject["reason"]) for reject in rejects] == slow.rejected
            assert result.ids is not None
            assert sum(result.ids.counts) == slow.tally.rows - slow.tally.rejected.total()
            columns = len(self._made.rules.layout.specs)
            for line in text.split("\n")[:-1]:
                assert line.count("\t") == columns - 1
                assert not _CONTROL.search(line)
                assert not line.startswith("#")


def assert_same(rows: list[bytes], made: Conversion, fresh_after: str | None = None, times: int = 1) -> None:
    """One block comes out as row by row by the exact rules."""
    Blocks(made, fresh_after).assert_same(rows, times)


@pytest.fixture
def _parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parse_once(monkeypatch)


@cache
def realistic_day() -> list[bytes]:
    return [row.removesuffix(b"\n") for row in day_rows(DAY, 900, broken=True, tokens_share=0.1)]


@cache
def blocks_by(rules: LogRules, *, catalogue: bool = False) -> Blocks:
    """Return converters that several blocks are given to, one after the other."""
    return Blocks(conversion(rules, catalogue=catalogue))


@pytest.mark.usefixtures("_parsed_once")
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("catalogue", [False, True])
def test_every_odd_row_comes_out_as_by_the_exact_rules(name: str, catalogue: bool) -> None:
    """A table of nasty rows in one block, twice: with a catalogue all of them, without one every third setting's."""
    rows = NASTY if catalogue else NASTY[[*RULES].index(name) % 3 :: 3]
    assert_same(rows, conversion(RULES[name], catalogue=catalogue), times=2)


@pytest.mark.usefixtures("_parsed_once")
@pytest.mark.parametrize("name", RULES)
def test_every_odd_row_comes_out_so_when_it_stands_alone(name: str) -> None:
    """A nasty row in a block of its own, after an ordinary one: each row under a sixth of the settings."""
    ordinary = orjson.dumps({**GOOD, "id": "99999999-2222-4333-8444-555555555555"})
    for row in NASTY[[*RULES].index(name) % 6 :: 6]:
        blocks_by(RULES[name], catalogue=True).assert_same([ordinary, row])


@pytest.mark.usefixtures("_parsed_once")
@pytest.mark.parametrize("name", RULES)
def test_a_realistic_day_comes_out_as_by_the_exact_rules(name: str) -> None:
    """Ordinary rows, some broken ones, and some too fresh, go through the fast path with no difference."""
    assert_same(realistic_day(), conversion(RULES[name]), fresh_after="2026-11-20 20:00:00")


def test_no_day_means_no_row_outside_it() -> None:
    """An export whose name has no day in it has no row outside the day."""
    rows = NASTY
    made = Conversion(LogRules(), KEY)
    assert_same(rows, made)
    assert convert_slowly(rows, made).tally.outside_day == 0


def test_one_episode_under_two_podcasts_keeps_each_rows_own_podcast() -> None:
    """What is remembered of an episode is not mixed up when it comes with another podcast."""
    rows = with_ids([orjson.dumps({**GOOD, "podcast_id": f"podcast-{n % 3}"}) for n in range(30)])
    assert_same(rows, conversion(LogRules()), times=2)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
_ipv4 = st.tuples(*[st.integers(0, 260)] * 4).map(lambda octets: ".".join(map(str, octets)))
_groups = st.lists(st.sampled_from(["0", "1", "ffff", "db8", "00a0", "ABCD", "2001", "0000"]), min_size=8, max_size=8)
_ipv6 = _groups.map(":".join) | _groups.map(lambda groups: str(IPv6Address(":".join(groups)))) | st.from_regex(
    r"[0-9a-f]{0,4}(:{1,2}[0-9a-f]{0,4}){1,8}(:1\.2\.3\.4)?", fullmatch=True
)  # fmt: skip
_rows = st.fixed_dictionaries(
    {},
    optional={
        "id": _values | st.uuids().map(str) | st.text("ab-_ ", min_size=1, max_size=3),
        "created_at": _values
        | st.datetimes().map(lambda at: f"{at:%Y-%m-%dT%H:%M:%S}Z")
        | st.just("2026-11-20 01:02:03"),
        "ip": _values | _ipv4 | _ipv6,
        "podcast_id": _values,
        "episode_id": _values,
        "filesize": _values | st.integers(0, 5),
        "bytes_sent": _values | st.integers(0, 5),
        "seconds_downloaded": _values | st.integers(58, 62),
        "blacklisted_ip": _values,
        "blacklisted_ua": _values,
        "user_agent": _values,
        "normalized_user_agent": _values,
        "duration": _values,
        "country": _values,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_rows, min_size=1, max_size=6), st.sampled_from(sorted(RULES)), st.booleans())
@example([{"ip": "1:2:3:4:5:6:7::"}, {"ip": "0:1::"}], "default", False)
def test_any_json_in_any_field_comes_out_as_by_the_exact_rules(
    rows: list[dict[str, Any]], name: str, more: bool
) -> None:
    """Whatever JSON can say, in any field, alone or among ordinary rows."""
    texts = [orjson.dumps({**GOOD, "id": f"id{number}", **row}) for number, row in enumerate(rows)]
    blocks_by(RULES[name], catalogue=more).assert_same([*ORDINARY, *texts] if more else texts)


@settings(max_examples=100, deadline=None)
@given(st.lists(_ipv4 | _ipv6 | st.text(max_size=8), min_size=1, max_size=8), st.sampled_from(["full", "truncated"]))
def test_addresses_are_written_as_ipaddress_writes_them(ips: list[str], how: str) -> None:
    """Every form of an address, in any mixture."""
    rows = [orjson.dumps({**GOOD, "id": f"id{number}", "ip": ip}) for number, ip in enumerate(ips)]
    blocks_by(LogRules(ip=how)).assert_same(rows)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), st.integers(0, 1))
def test_any_bytes_are_a_row_or_rejected_or_blank(line: bytes, array: int) -> None:
    """A line that is not JSON at all is counted once, by its first reason, or is blank."""
    line = line.replace(b"\n", b"")
    blocks_by(LogRules()).assert_same([orjson.dumps(GOOD), line, b" " * array])


@pytest.mark.parametrize("kernel", [KERNEL, None])
@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"{x\n"])
def test_rows_that_are_not_ordinary_leave_no_memory_behind(line: bytes, kernel: Kernel | None) -> None:
    """A day of blank or broken lines, however long, costs no memory that is not given back."""
    converter = BlockConverter(kernel, conversion(LogRules()))
    job = Job(0, Task.RENDER, (line * 2000,))
    converter.do(job)
    before = sys.getallocatedblocks()
    converter.do(job)
    assert sys.getallocatedblocks() - before < 500


def test_fields_in_ever_new_orders_leave_no_memory_behind() -> None:
    """Every block may begin with another order of its fields."""
    converter = BlockConverter(KERNEL, conversion(LogRules()))
    orders = itertools.permutations(GOOD)

    def do() -> None:
        row = orjson.dumps({name: GOOD[name] for name in next(orders)})
        assert converter.do(Job(0, Task.RENDER, (row,))).tally.lines == 1

    gc.disable()
    try:
        for _ in range(200):
            do()
        before = sys.getallocatedblocks()
        for _ in range(200):
            do()
        assert sys.getallocatedblocks() - before < 2000
    finally:
        gc.enable()
