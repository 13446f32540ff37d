"""Blocks of export rows to log lines, fast: ordinary rows here, all others by the exact rules of `convert`.

No outside world. The promise: the outcome of every row, and the tally, are those of `RowConverter`, one row at a time;
a differential test holds it to that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import orjson

from .convert import RowConverter
from .ids import pack_id, pack_uuids, unpack
from .megaphone import LARGEST_WHOLE_NUMBER, REPORTING_SECONDS
from .memo import TOKEN, Memos, Unusual, splits_query
from .tally import FilterReason, RejectReason, RowRejected, Tally
from .triton import DerivedValue, Layout, LogFormat

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .convert import Conversion, Outcome

_FIELDS = itemgetter(
    "id", "created_at", "ip", "podcast_id", "episode_id", "filesize", "bytes_sent", "seconds_downloaded",
    "blacklisted_ip", "blacklisted_ua", "user_agent",
)  # fmt: skip
_PLAIN_ID = re.compile(r"[0-9A-Za-z._~:-]+", re.ASCII)  # an id that every way of cleaning text leaves as it is
_NEVER = "~"  # later than every time
_URL = list(DerivedValue).index(DerivedValue.URL)


@dataclass(slots=True)
class Rendered:
    """What a block of rows came to.

    ``ids`` and ``lines`` have an entry for every row that was not rejected, in order; the line (with its newline) of a
    filtered row is empty. ``kept`` holds the index of each of them among the rows, ``rejected`` index and reason of the
    rejected ones, in order. ``packed`` are the ids in 16 bytes each, once they are known.
    """

    ids: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    rejected: list[tuple[int, RejectReason]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    packed: tuple[bytes, ...] | None = None
    only_uuids: bool = False

    def pack(self) -> tuple[bytes, ...]:
        """The ids in 16 bytes each."""
        if self.packed is None:
            self.packed = tuple(map(pack_id, self.ids))
        return self.packed


class BlockRenderer:
    """Renders blocks of rows, one after the other."""

    def __init__(self, conversion: Conversion, fresh_after: str | None = None) -> None:
        self._converter = RowConverter(conversion)
        self._rules = conversion.rules
        self._fresh_after = fresh_after
        self._memos = Memos(conversion, split_query=splits_query(conversion))
        layout = conversion.rules.layout
        self._arrange = _Arrangement(layout) if layout.columns is not None else None
        self._odd_ids = False  # whether the last blocks held ids that are no UUIDs

    def render(
        self, rows: Sequence[bytes], duplicates: Collection[bytes] = (), fresh: Collection[bytes] | None = None
    ) -> Rendered:
        """The lines of a block.

        ``duplicates`` are the packed ids that stood in an earlier block. ``fresh``, if given, are the packed cells of
        ``x-metric-id`` that no published log of the day holds: all other rows were sent before.
        """
        self._memos.trim()
        block = self._walk(rows, check_ids=self._odd_ids)
        packed = pack_uuids(block.ids)
        if packed is None and not self._odd_ids:
            block = self._walk(rows, check_ids=True)
        if packed is not None:
            block.packed, block.only_uuids = unpack(packed), True
        self._odd_ids = packed is None and sum(len(row_id) != 36 for row_id in block.ids) * 8 > len(block.ids)
        if duplicates or len(set(block.ids)) != len(block.ids):
            self._drop_duplicates(block, rows, duplicates)
        if fresh is not None:
            self._keep_fresh(block, rows, fresh)
        return block

    def metric_cells(self, block: Rendered) -> tuple[bytes, ...]:
        """The packed cells of ``x-metric-id``: those of the ids, but where an id had to be cleaned."""
        clean = self._rules.layout.clean
        packed = block.pack()
        if block.only_uuids or all(map(_PLAIN_ID.fullmatch, block.ids)):
            return packed
        return tuple(pack_id(clean(row_id)) for row_id in block.ids)

    def _walk(self, rows: Sequence[bytes], *, check_ids: bool) -> Rendered:  # the hot loop, kept in one piece
        """Every row for itself. Unless ``check_ids``, ids are taken as they come: the caller looks at all at once."""
        memos, arrange, exact = self._memos, self._arrange, self._exact
        times, addresses, episodes, agents = memos.times, memos.addresses, memos.episodes, memos.agents
        loads, fields, largest, plain_id = orjson.loads, _FIELDS, LARGEST_WHOLE_NUMBER, _PLAIN_ID.fullmatch
        url_per_row = memos.url_per_row
        all_rows, reporting_only = self._rules.rows == "all", self._rules.rows == "reporting"
        tells_partial, clamps = self._rules.partial_status == 206, self._rules.bytes == "clamped"
        fresh_after = self._fresh_after.replace(" ", "\t") if self._fresh_after is not None else _NEVER
        block = Rendered()
        tally = block.tally
        ids, lines, kept, filtered = block.ids, block.lines, block.kept, tally.filtered
        reporting = clamped = tokens = zeros = unmapped = 0
        for index, raw in enumerate(rows):
            try:
                row = loads(raw)
                row_id, created_at, ip, podcast, episode, size, sent, seconds, bad_ip, bad_ua, agent = fields(row)
                time_cells = times.get(created_at) or memos.time(created_at)
                address_cells, kind = addresses.get(ip) or memos.address(ip)
                if url_per_row:
                    url, episode_cells, is_unmapped = memos.episode(podcast, episode, row)
                else:
                    url, episode_cells, is_unmapped = episodes.get((podcast, episode)) or memos.episode(
                        podcast, episode, row
                    )
                if type(size) is not int or type(sent) is not int or not (0 < size <= largest and 0 <= sent <= largest):
                    raise Unusual
                agent_cell = agents.get(agent) or memos.agent(agent)
                counts = long_enough = seconds >= REPORTING_SECONDS
                if check_ids and not plain_id(row_id):
                    raise Unusual
            except (KeyError, TypeError, ValueError):
                exact(index, raw, block)
                continue
            reason = None
            if bad_ip is not False or bad_ua is not False:
                by_ip, by_ua = bad_ip is True or bad_ip == "true", bad_ua is True or bad_ua == "true"
                counts = counts and not by_ip and not by_ua
                if not all_rows:
                    reason = FilterReason.BLACKLISTED_IP if by_ip else FilterReason.BLACKLISTED_UA if by_ua else None
            if not sent:
                reason = FilterReason.NO_BYTES
            elif reason is None:
                if reporting_only and not long_enough:
                    reason = FilterReason.SHORT
                elif time_cells >= fresh_after:
                    reason = FilterReason.TOO_FRESH
            reporting += counts
            ids.append(row_id)
            kept.append(index)
            if reason is not None:
                filtered[reason] += 1
                lines.append("")
                continue
            if sent < size and tells_partial:
                line = (
                    f"{time_cells}{address_cells}GET\t{url}206\t{sent}\t{size}\t0-{sent - 1}\t"
                    f"{episode_cells}{row_id}\t{agent_cell}\n"
                )
            else:
                if sent > size and clamps:
                    sent = size
                    clamped += 1
                line = (
                    f"{time_cells}{address_cells}GET\t{url}200\t{sent}\t{size}\t-\t"
                    f"{episode_cells}{row_id}\t{agent_cell}\n"
                )
            if kind:
                if kind == TOKEN:
                    tokens += 1
                else:
                    zeros += 1
            unmapped += is_unmapped
            lines.append(line if arrange is None else arrange(line, row))
        tally.reporting += reporting
        tally.clamped += clamped
        tally.not_an_address += tokens
        tally.ends_in_zero += zeros
        tally.unmapped_episodes += unmapped
        tally.rows += len(ids) + len(block.rejected)
        tally.lines += len(lines) - lines.count("")
        return block

    def _exact(self, index: int, raw: bytes, block: Rendered) -> None:
        """One row by the exact rules; a blank line is no row."""
        try:
            outcome = self._outcome(raw)
        except RowRejected as rejection:
            if not _is_blank(raw):
                block.rejected.append((index, rejection.reason))
                block.tally.rejected[rejection.reason] += 1
            return
        block.ids.append(outcome.id)
        block.kept.append(index)
        block.lines.append(f"{outcome.line}\n" if outcome.filtered is None else "")
        block.tally.reporting += outcome.reporting
        _book(outcome, block.tally)

    def _outcome(self, raw: bytes) -> Outcome:
        outcome = self._converter.convert(raw)
        if outcome.filtered is None and self._fresh_after is not None and outcome.created_at >= self._fresh_after:
            return replace(outcome, line="", filtered=FilterReason.TOO_FRESH)
        return outcome

    def _drop_duplicates(self, block: Rendered, rows: Sequence[bytes], duplicates: Collection[bytes]) -> None:
        """Reject every row whose id stood before it in the day."""
        packed, seen, stay = block.pack(), set(duplicates), []
        for place, packed_id in enumerate(packed):
            if packed_id not in seen:
                seen.add(packed_id)
                stay.append(place)
                continue
            outcome = self._outcome(rows[block.kept[place]])
            block.tally.reporting -= outcome.reporting
            _book(outcome, block.tally, -1)
            block.rejected.append((block.kept[place], RejectReason.DUPLICATE_ID))
        block.rejected.sort()
        block.tally.rejected[RejectReason.DUPLICATE_ID] += len(packed) - len(stay)
        block.packed = tuple(packed[place] for place in stay)
        block.ids = [block.ids[place] for place in stay]
        block.kept = [block.kept[place] for place in stay]
        block.lines = [block.lines[place] for place in stay]
        block.tally.lines = len(block.lines) - block.lines.count("")

    def _keep_fresh(self, block: Rendered, rows: Sequence[bytes], fresh: Collection[bytes]) -> None:
        """Filter every row that was sent before."""
        cells, tally = self.metric_cells(block), block.tally
        sent = [place for place, cell in enumerate(cells) if cell not in fresh]
        if len(sent) * 2 < len(cells):  # take away those that were sent, or begin anew with those that were not
            changed, sign = sent, -1
        else:
            sent_before = set(sent)
            changed, sign = [place for place in range(len(cells)) if place not in sent_before], 1
            tally.filtered.clear()
            tally.clamped = tally.not_an_address = tally.ends_in_zero = tally.outside_day = tally.unmapped_episodes = 0
        for place in changed:
            _book(self._outcome(rows[block.kept[place]]), tally, sign)
        tally.filtered[FilterReason.SENT_BEFORE] += len(sent)
        for place in sent:
            block.lines[place] = ""
        tally.lines = len(block.lines) - block.lines.count("")


def _book(outcome: Outcome, tally: Tally, sign: int = 1) -> None:
    """Count what a row that was not rejected came to, but for ``reporting``, which no filter changes."""
    if outcome.filtered is not None:
        tally.filtered[outcome.filtered] += sign
        return
    tally.clamped += sign * outcome.clamped
    tally.not_an_address += sign * (not outcome.is_address)
    tally.ends_in_zero += sign * outcome.ends_in_zero
    tally.outside_day += sign * outcome.outside_day
    tally.unmapped_episodes += sign * outcome.unmapped


def _is_blank(raw: bytes) -> bool:
    try:
        return not raw.decode().strip()
    except UnicodeDecodeError:
        return False


class _Arrangement:
    """Makes a line of configured columns from a line of the default ones (in TSV order, with the URL whole)."""

    def __init__(self, layout: Layout) -> None:
        self._clean = layout.clean
        values = [str(value) for value in DerivedValue]
        constants = [layout.clean(spec.constant) for spec in layout.specs if spec.constant is not None]
        fields = [spec.field for spec in layout.specs if spec.field is not None]
        self._fields, self._constants = fields, constants
        stem = len(values)
        first_constant, first_field = stem + 2, stem + 2 + len(constants)
        self._picks: list[int] = []
        for spec in layout.specs:
            if spec.constant is not None:
                self._picks.append(first_constant)
                first_constant += 1
            elif spec.field is not None:
                self._picks.append(first_field)
                first_field += 1
            elif spec.value == "cs-uri-query":
                self._picks.append(stem + 1)
            elif layout.format is LogFormat.W3C and spec.name == "cs-uri-stem" and spec.value == DerivedValue.URL:
                self._picks.append(stem)
            else:
                self._picks.append(values.index(str(spec.value)))

    def __call__(self, line: str, row: dict[str, Any]) -> str:
        cells = line[:-1].split("\t")
        stem, _, query = cells[_URL].partition("?")
        cells += (stem or "-", query or "-", *self._constants)
        cells += [self._clean(row.get(name)) for name in self._fields]
        text = "\t".join([cells[pick] for pick in self._picks])
        return f"%23{text[1:]}\n" if text.startswith("#") else f"{text}\n"
