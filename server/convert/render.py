"""Blocks of export rows to log lines, fast: ordinary rows here, all others by the exact rules of `row`.

No outside world. The promise: the outcome of every row, and the tally, are those of `RowConverter`, one row at a time;
a differential test holds it to that.

Rows are taken some at a time and column by column, so that the interpreter's loops are those of `map`, `zip` and
`join`. What is not ordinary in any row of such a chunk shows as `Unusual` before anything is counted; the chunk is
then halved, until the unusual row stands alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from io import BytesIO
from itertools import compress, islice, repeat
from operator import ge, gt, not_
from typing import TYPE_CHECKING, Any

import orjson

from .arrangement import Arrangement
from .export_row import REPORTING_SECONDS
from .memo import ENDS_IN_ZERO, Memos, Unusual, without_hash
from .ordinary import RowDecoder
from .row import RowConverter
from .row_ids import pack_id, pack_uuids, unpack
from .tally import FilterReason, RejectReason, RowRejected, Tally

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .row import Conversion, Outcome

CHUNK = 128  # rows; by measurement
_PLAIN_ID = re.compile(r"[0-9A-Za-z._~:-]+", re.ASCII)  # an id that every way of cleaning text leaves as it is
_PARTS = 7  # of a line: times, addresses, URL, counts, episode, id, user agent
_NO_FIELDS: Mapping[str, Any] = {}
_NO_LINE = [""] * _PARTS


@dataclass(slots=True)
class Rendered:
    """What a block of rows came to.

    ``ids`` has an entry for every row that was not rejected, in order; ``filtered_at`` are the places, among these, of
    the filtered ones; ``texts`` hold the lines of the others, each with its newline. ``rejected`` holds index and
    reason of rejected rows, ``blank`` the index of lines that are no rows. ``podcasts`` and ``reported`` have an entry
    for each of ``ids``, ``reasons`` one for each filtered place. ``packed`` are the ids in 16 bytes each,
    once they are known.
    """

    texts: list[bytes] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    filtered_at: list[int] = field(default_factory=list)
    rejected: list[tuple[int, RejectReason]] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)
    podcasts: list[str] = field(default_factory=list)
    reported: list[bool] = field(default_factory=list)
    reasons: dict[int, FilterReason] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    packed: tuple[bytes, ...] | None = None
    only_uuids: bool = False

    def pack(self) -> tuple[bytes, ...]:
        """The ids in 16 bytes each."""
        if self.packed is None:
            self.packed = tuple(map(pack_id, self.ids))
        return self.packed

    def kept(self) -> list[int]:
        """The index of each of ``ids`` among the rows."""
        skipped = {*self.blank, *(index for index, _ in self.rejected)}
        return [index for index in range(len(self.ids) + len(skipped)) if index not in skipped]

    def lines(self) -> list[bytes]:
        """The line of each of ``ids`` with its newline, empty for a filtered one."""
        written = BytesIO(b"".join(self.texts))
        filtered = set(self.filtered_at)
        return [b"" if place in filtered else written.readline() for place in range(len(self.ids))]


class BlockRenderer:
    """Renders blocks of rows, one after the other."""

    def __init__(self, conversion: Conversion, fresh_after: str | None = None) -> None:
        rules = conversion.rules
        self._converter = RowConverter(conversion)
        self._rules = rules
        self._fresh_after = fresh_after
        self._fresh_cells = fresh_after.replace(" ", "\t") if fresh_after is not None else None
        self._memos = Memos(conversion)
        self._decoder = RowDecoder()
        self._arrange = Arrangement(rules.layout) if rules.layout.columns is not None else None
        self._odd_ids = False  # whether the last block held many ids that are no UUIDs

    def render(
        self, text: bytes, duplicates: Collection[bytes] = (), fresh: Collection[bytes] | None = None
    ) -> Rendered:
        """The lines of a block of rows, one a line of ``text``.

        ``duplicates`` are the packed ids that stood in an earlier block. ``fresh``, if given, are the packed cells of
        ``x-metric-id`` that no published log of the day holds: all other rows were sent before.
        """
        self._memos.trim()
        self._decoder.learn(text[: text.find(b"\n") + 1 or None])
        block = self._walk(text, check_ids=self._odd_ids)
        packed = pack_uuids(block.ids)
        if packed is None and not self._odd_ids:
            block = self._walk(text, check_ids=True)
        if packed is not None:
            block.packed, block.only_uuids = unpack(packed), True
        self._odd_ids = packed is None and sum(len(row_id) != 36 for row_id in block.ids) * 8 > len(block.ids)
        if duplicates or len(set(block.ids)) != len(block.ids):
            self._drop_duplicates(block, list(BytesIO(text)), duplicates)
        if fresh is not None:
            self._keep_fresh(block, list(BytesIO(text)), fresh)
        return block

    def metric_cells(self, block: Rendered) -> tuple[bytes, ...]:
        """The packed cells of ``x-metric-id``: those of the ids, but where an id had to be cleaned."""
        packed = block.pack()
        if block.only_uuids or all(map(_PLAIN_ID.fullmatch, block.ids)):
            return packed
        id_cell = self._rules.layout.id_cell
        return tuple(pack_id(id_cell(row_id)) for row_id in block.ids)

    def _walk(self, text: bytes, *, check_ids: bool) -> Rendered:
        """Every row for itself. Unless ``check_ids``, ids are taken as they come: the caller looks at all at once."""
        block = Rendered()
        lines, start = BytesIO(text), 0
        while chunk := list(islice(lines, CHUNK)):
            if b"\n" in chunk or b"\r\n" in chunk:  # blank lines cost next to nothing, however many there are
                self._between_blanks(chunk, start, block, check_ids)
            else:
                self._chunk(chunk, start, block, check_ids)
            start += len(chunk)
        tally = block.tally
        tally.rows = start - len(block.blank)
        tally.lines = len(block.ids) - len(block.filtered_at)
        return block

    def _between_blanks(self, lines: Sequence[bytes], start: int, block: Rendered, check_ids: bool) -> None:
        run: list[bytes] = []
        for index, row in enumerate(lines, start):
            if row != b"\n" and row != b"\r\n":
                run.append(row)
                continue
            block.blank.append(index)
            if run:
                self._chunk(run, index - len(run), block, check_ids)
                run = []
        if run:
            self._chunk(run, start + len(lines) - len(run), block, check_ids)

    def _chunk(self, rows: Sequence[bytes], start: int, block: Rendered, check_ids: bool) -> None:
        try:
            self._ordinary(rows, block, check_ids)
        except Unusual:
            if len(rows) == 1:
                self._exact(rows[0], start, block)
                return
            half = len(rows) // 2
            self._chunk(rows[:half], start, block, check_ids)
            self._chunk(rows[half:], start + half, block, check_ids)

    def _ordinary(self, rows: Sequence[bytes], block: Rendered, check_ids: bool) -> None:
        """Rows of a chunk, all at once.

        Raises:
            Unusual: one of them is not ordinary; nothing was added to ``block``.
        """
        memos, arrange = self._memos, self._arrange
        count = len(rows)
        ids, times, ips, podcasts, episodes, sizes, sents, seconds, bad_ips, bad_uas, agents = self._decoder.decode(
            rows
        )
        if (check_ids and not all(map(_PLAIN_ID.fullmatch, ids))) or (
            arrange is not None and "\n" in "".join(ids)  # lines are taken apart again there
        ):
            raise Unusual
        dicts: list[Any] = list(map(orjson.loads, rows)) if arrange is not None or memos.episodes.per_row else []
        long_enough = list(map(ge, seconds, repeat(REPORTING_SECONDS)))
        time_cells = list(map(memos.times.__getitem__, times))
        address_cells, odd_places = memos.addresses.column(ips)
        url_cells, episode_cells = memos.episodes.column(podcasts, episodes, dicts or repeat(_NO_FIELDS))
        agent_cells = list(map(memos.agents.__getitem__, agents))

        # From here on nothing fails.
        parts = [""] * (_PARTS * count)
        parts[0::_PARTS] = time_cells
        parts[1::_PARTS] = address_cells
        parts[2::_PARTS] = url_cells
        parts[3::_PARTS] = self._counts(sents, sizes)
        parts[4::_PARTS] = episode_cells
        parts[5::_PARTS] = ids
        parts[6::_PARTS] = agent_cells
        tally = block.tally
        clamped = list(map(gt, sents, sizes)) if self._rules.bytes == "clamped" else []
        tally.reporting += long_enough.count(True)
        tally.clamped += clamped.count(True)
        every = range(count)
        odd = {*compress(every, bad_ips), *compress(every, bad_uas)}
        if 0 in sents:
            odd.update(compress(every, map(not_, sents)))
        if self._rules.rows == "reporting":
            odd.update(compress(every, map(not_, long_enough)))
        if self._fresh_cells is not None:
            odd.update(compress(every, map(ge, time_cells, repeat(self._fresh_cells))))
        filtered = set()
        for place in sorted(odd):
            by_ip, by_ua = _flag(bad_ips[place]), _flag(bad_uas[place])
            if by_ip or by_ua:
                tally.reporting -= long_enough[place]
            reason = self._filter_reason(sents[place], by_ip, by_ua, long_enough[place], time_cells[place])
            if by_ip or by_ua:
                long_enough[place] = False  # from here on: whether Megaphone reports it
            if reason is not None:
                tally.filtered[reason] += 1
                block.reasons[len(block.ids) + place] = reason
                tally.clamped -= bool(clamped) and clamped[place]
                filtered.add(place)
                block.filtered_at.append(len(block.ids) + place)
                parts[place * _PARTS : (place + 1) * _PARTS] = _NO_LINE
        for place in odd_places:
            if place in filtered:
                continue
            if memos.addresses.odd[address_cells[place]] == ENDS_IN_ZERO:
                tally.ends_in_zero += 1
            else:
                tally.not_an_address += 1
                parts[place * _PARTS + 2] = without_hash(url_cells[place])
        if memos.times.outside:
            for place in compress(every, map(memos.times.outside.__contains__, time_cells)):
                tally.outside_day += place not in filtered
        if memos.episodes.unmapped:
            unmapped = map(memos.episodes.unmapped.__contains__, episodes)
            for place in compress(every, unmapped):
                tally.unmapped_episodes += place not in filtered
        block.ids += ids
        block.podcasts += podcasts
        block.reported += long_enough
        lines = "".join(parts)
        if arrange is not None:
            lines = arrange(lines, [row for place, row in enumerate(dicts) if place not in filtered])
        block.texts.append(lines.encode())

    def _counts(self, sents: Sequence[int], sizes: Sequence[int]) -> list[str]:
        """The cells ``status``, ``bytes``, ``object-size`` and ``byte-range``."""
        rules, whole = self._rules, self._memos.whole
        pairs = zip(sents, sizes, strict=True)
        if rules.partial_status == 206 and rules.bytes == "clamped":
            return [whole[size] if sent >= size else f"206\t{sent}\t{size}\t0-{sent - 1}\t" for sent, size in pairs]
        if rules.partial_status == 206:
            return [
                f"200\t{sent}\t{size}\t-\t" if sent >= size else f"206\t{sent}\t{size}\t0-{sent - 1}\t"
                for sent, size in pairs
            ]
        if rules.bytes == "clamped":
            return [whole[size] if sent >= size else f"200\t{sent}\t{size}\t-\t" for sent, size in pairs]
        return [f"200\t{sent}\t{size}\t-\t" for sent, size in pairs]

    def _filter_reason(
        self, sent: int, by_ip: bool, by_ua: bool, long_enough: bool, time_cells: str
    ) -> FilterReason | None:
        if sent == 0:
            return FilterReason.NO_BYTES
        if self._rules.rows != "all":
            if by_ip:
                return FilterReason.BLACKLISTED_IP
            if by_ua:
                return FilterReason.BLACKLISTED_UA
            if self._rules.rows == "reporting" and not long_enough:
                return FilterReason.SHORT
        if self._fresh_cells is not None and time_cells >= self._fresh_cells:
            return FilterReason.TOO_FRESH
        return None

    def _exact(self, raw: bytes, index: int, block: Rendered) -> None:
        """One row by the exact rules; a blank line is no row."""
        try:
            outcome = self._outcome(raw)
        except RowRejected as rejection:
            if _is_blank(raw):
                block.blank.append(index)
            else:
                block.rejected.append((index, rejection.reason))
                block.tally.rejected[rejection.reason] += 1
            return
        if outcome.filtered is None:
            block.texts.append(f"{outcome.line}\n".encode())
        else:
            block.filtered_at.append(len(block.ids))
            block.reasons[len(block.ids)] = outcome.filtered
        block.ids.append(outcome.id)
        block.podcasts.append(outcome.podcast_id)
        block.reported.append(outcome.reporting)
        block.tally.reporting += outcome.reporting
        _book(outcome, block.tally)

    def _outcome(self, raw: bytes) -> Outcome:
        outcome = self._converter.convert(raw)
        if outcome.filtered is None and self._fresh_after is not None and outcome.created_at >= self._fresh_after:
            return replace(outcome, line="", filtered=FilterReason.TOO_FRESH)
        return outcome

    def _drop_duplicates(self, block: Rendered, rows: Sequence[bytes], duplicates: Collection[bytes]) -> None:
        """Reject every row whose id stood before it in the day."""
        packed, kept, lines = block.pack(), block.kept(), block.lines()
        seen, stay = set(duplicates), []
        for place, packed_id in enumerate(packed):
            if packed_id not in seen:
                seen.add(packed_id)
                stay.append(place)
                continue
            outcome = self._outcome(rows[kept[place]])
            block.tally.reporting -= outcome.reporting
            _book(outcome, block.tally, -1)
            block.rejected.append((kept[place], RejectReason.DUPLICATE_ID))
        block.rejected.sort()
        block.tally.rejected[RejectReason.DUPLICATE_ID] += len(packed) - len(stay)
        block.packed = tuple(packed[place] for place in stay)
        block.ids = [block.ids[place] for place in stay]
        block.podcasts = [block.podcasts[place] for place in stay]
        block.reported = [block.reported[place] for place in stay]
        block.reasons = {new: block.reasons[old] for new, old in enumerate(stay) if old in block.reasons}
        self._set_lines(block, [lines[place] for place in stay])

    def _keep_fresh(self, block: Rendered, rows: Sequence[bytes], fresh: Collection[bytes]) -> None:
        """Filter every row that was sent before."""
        cells, kept, lines, tally = self.metric_cells(block), block.kept(), block.lines(), block.tally
        sent = [place for place, cell in enumerate(cells) if cell not in fresh]
        if len(sent) * 2 < len(cells):  # take away those that were sent, or begin anew with those that were not
            changed, sign = sent, -1
        else:
            sent_before = set(sent)
            changed, sign = [place for place in range(len(cells)) if place not in sent_before], 1
            tally.filtered.clear()
            tally.clamped = tally.not_an_address = tally.ends_in_zero = tally.outside_day = tally.unmapped_episodes = 0
        for place in changed:
            _book(self._outcome(rows[kept[place]]), tally, sign)
        tally.filtered[FilterReason.SENT_BEFORE] += len(sent)
        for place in sent:
            lines[place] = b""
            block.reasons[place] = FilterReason.SENT_BEFORE
        self._set_lines(block, lines)

    @staticmethod
    def _set_lines(block: Rendered, lines: list[bytes]) -> None:
        block.texts = lines
        block.filtered_at = [place for place, line in enumerate(lines) if not line]
        block.tally.lines = len(lines) - len(block.filtered_at)


def _flag(value: Any) -> bool:
    return value is True or value == "true"


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
