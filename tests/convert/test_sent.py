"""Late rows are those that no published log of the day holds: each is sent once, and what changed is counted."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from server.cli.samples import day_rows
from server.convert.conversion import Conversion
from server.convert.day import SentLog
from server.errors import DataFolderError
from server.triton import ColumnSpec, IdCells, Layout, LogFormat, LogRules

from ..support.reference_conversion import (
    DAY,
    KERNEL,
    KEY,
    MemorySink,
    assert_is,
    conversion,
    convert,
    convert_slowly,
    export_file,
    sample,
    with_repetitions,
)
from ..support.rows import row

if TYPE_CHECKING:
    from pathlib import Path

    from server.convert.kernel import Kernel


def published(sink: MemorySink, layout: Layout) -> list[SentLog]:
    """The logs of a conversion, as the service hands them back."""
    return [SentLog(layout, lambda content=log.content: BytesIO(content)) for log in sink.logs]  # type: ignore[misc]


LAYOUTS = [
    Layout(),
    Layout(LogFormat.W3C),
    Layout(header="comment"),
    Layout(header="none", text="percent"),
    Layout(columns=(ColumnSpec("id", value="x-metric-id"), ColumnSpec("ua", value="user-agent"))),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_late_rows_are_the_ones_that_were_not_sent(tmp_path: Path, layout: Layout, threads: int) -> None:
    """A first version, then the whole day: together every line once; changed and removed rows are counted."""
    made, first, second, cells, slow, now, filtered = _two_versions(layout)
    _, sent = convert(export_file(tmp_path, first), made, threads=threads, max_rows_per_file=100)
    converted, sink = convert(
        export_file(tmp_path, second), made, threads=threads, sent=published(sent, layout), max_rows_per_file=150
    )
    header = layout.header_lines(DAY)
    assert "".join(text.removeprefix(header) for text in sink.texts) == "".join(slow.lines)
    assert converted.tally.as_json() == slow.tally.as_json()
    assert [(entry["line"], entry["reason"]) for entry in sink.reject_entries] == slow.rejected
    lines_now = {line.removesuffix("\n") for line in now.lines}
    sent_lines = {line for text in sent.texts for line in text.removeprefix(header).splitlines()}
    gone = set(cells) - set(now.cells) - filtered
    assert converted.removed == len(gone) > 0
    assert converted.changed == len(sent_lines - lines_now) - len(gone) > 0


@cache
def _two_versions(layout: Layout) -> tuple[Any, ...]:
    """The conversion, both versions, and of it row by row: the first's cells, the second then, now, and filtered."""
    made = conversion(layout=layout)
    day = with_repetitions(sample(400))
    odd = [orjson.dumps({**orjson.loads(day[30]), "id": f'o"d{n}\t%', "user_agent": f"odd {n}"}) for n in range(6)]
    first = [*day[:300], *odd[:4]]
    second = [*odd[1:], *day[20:60], *[_changed(row) for row in day[60:70]], *day[70:]]
    cells = convert_slowly(first, made).cells
    slow, now = convert_slowly(second, made, sent=cells), convert_slowly(second, made)
    return made, first, second, cells, slow, now, _filtered_cells(second, made)


def _changed(row: bytes) -> bytes:
    try:
        fields = orjson.loads(row)
    except orjson.JSONDecodeError:
        return row
    return orjson.dumps({**fields, "user_agent": "changed"}) if isinstance(fields, dict) else row


def _filtered_cells(rows: list[bytes], made: Conversion) -> set[str]:
    every = Conversion(LogRules(layout=made.rules.layout, rows="all"), KEY, day=DAY)
    no_bytes = [row.replace(b'"bytes_sent":0,', b'"bytes_sent":1,') for row in rows]
    return set(convert_slowly(no_bytes, every).cells)


def test_when_nothing_is_late_no_log_is_opened(tmp_path: Path) -> None:
    """The same version again has no new line, no changed and no removed one."""
    rows = with_repetitions(sample(300))
    path = export_file(tmp_path, rows)
    first, sent = convert(path)
    again, sink = convert(path, sent=published(sent, Layout()), threads=2)
    assert (again.lines_per_log, sink.logs, again.changed, again.removed) == ([], [], 0, 0)
    assert again.tally.filtered["sent_before"] == first.tally.lines
    assert again.tally.reporting == first.tally.reporting
    assert again.tally.rejected == first.tally.rejected


def test_a_sent_row_that_would_now_be_filtered_or_rejected_is_changed(tmp_path: Path) -> None:
    """Neither is sent again, and neither is taken for removed."""
    rows = [row.removesuffix(b"\n") for row in day_rows(DAY, 40, tokens_share=0)]
    _, sent = convert(export_file(tmp_path, rows), conversion(rows="all"))
    rows[5] = orjson.dumps({**orjson.loads(rows[5]), "bytes_sent": 0})
    rows[6] = orjson.dumps({**orjson.loads(rows[6]), "ip": ""})
    del rows[7]
    again, sink = convert(export_file(tmp_path, rows), conversion(rows="all"), sent=published(sent, Layout()))
    assert (again.changed, again.removed, sink.logs) == (2, 1, [])
    assert again.tally.filtered == {"sent_before": 38}
    assert again.tally.rejected == {"no_ip": 1}


def test_rows_created_too_late_are_held_back_and_come_with_the_next_file(tmp_path: Path) -> None:
    """Filtered as too fresh the first time, sent the second: every line once."""
    rows = sample(400)
    path = export_file(tmp_path, rows)
    made, limit = conversion(), "2026-11-20 18:00:00"
    first, sent = convert(path, threads=2, fresh_after=limit)
    slow = convert_slowly(rows, made, fresh_after=limit)
    assert_is(slow, first, sent)
    assert first.tally.filtered["too_fresh"] > 50
    late, sink = convert(path, sent=published(sent, Layout()))
    assert late.changed == late.removed == 0
    assert sorted(slow.lines + sink.texts[0].splitlines(keepends=True)[1:]) == sorted(convert_slowly(rows, made).lines)
    still, _ = convert(path, sent=published(sent, Layout()), fresh_after=limit)
    assert still.tally.filtered["sent_before"] == first.tally.lines
    assert still.tally.filtered["too_fresh"] == first.tally.filtered["too_fresh"]
    assert still.lines_per_log == []


# Ids, two by two, that had one cell in the first releases; and some whose cells then and now look like each other's.
ODD_IDS = [
    "a\tb",
    "a b",
    "\x00",
    "-",
    'q"',
    "q%22",
    "q%2522",
    "%41",
    "A",
    "%2541",
    "\u2028x",
    " x",
    "x",
    "#1",
    "%231",
    "ü",
]


def with_odd_ids(row_ids: list[str]) -> list[bytes]:
    return [row(id=row_id) for row_id in [*(f"plain-{n}" for n in range(4)), *row_ids]]


@pytest.mark.parametrize("kernel", [KERNEL, None])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_that_differ_at_all_are_different_rows(tmp_path: Path, layout: Layout, kernel: Kernel | None) -> None:
    """Each is sent once, whichever of two similar ones came first."""
    made, header = conversion(layout=layout, rows="all"), layout.header_lines(DAY)
    for early in (ODD_IDS[::2], ODD_IDS[1::2]):
        first, before = convert(export_file(tmp_path, with_odd_ids(early)), made, kernel=kernel)
        late, sink = convert(
            export_file(tmp_path, with_odd_ids(ODD_IDS)), made, kernel=kernel, sent=published(before, layout)
        )
        assert (first.tally.lines, late.tally.lines) == (12, 8)
        assert (late.tally.filtered, late.changed, late.removed) == ({"sent_before": 12}, 0, 0)
        (lines,) = (text.removeprefix(header).splitlines() for text in sink.texts)
        cells = {line.split("\t")[layout.id_column()] for line in lines}
        assert cells == {layout.id_cell(row_id) for row_id in ODD_IDS if row_id not in early}


@pytest.mark.parametrize("kernel", [KERNEL, None])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("written", [IdCells.CLEANED, IdCells.EXACT])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_an_earlier_release_sent_is_recognised(
    tmp_path: Path, layout: Layout, written: IdCells, known: bool, kernel: Kernel | None
) -> None:
    """A log with the cells of that time, as the ledger says, or found in the folder; and a day that has both kinds."""
    rows, new = with_odd_ids(ODD_IDS), [row(id="new\t%")]
    wrote = layout._replace(ids=written)
    _, before = convert(export_file(tmp_path, rows), conversion(layout=wrote, rows="all"), kernel=kernel)
    read = wrote if known else layout._replace(ids=IdCells.UNKNOWN)
    assert Layout.from_json(read.as_json()) == read
    # The rules of the day's late rows are those of its first file; after a new configuration, those of the resend.
    for rules in (read, layout):
        made = conversion(layout=rules, rows="all")
        late, sink = convert(export_file(tmp_path, [*rows, *new]), made, kernel=kernel, sent=published(before, read))
        assert (late.tally.lines, late.tally.filtered, late.removed) == (1, {"sent_before": len(rows)}, 0)
        sent = [*published(before, read), *published(sink, rules)]
        last, sink = convert(export_file(tmp_path, [*rows, *new]), made, kernel=kernel, sent=sent)
        assert (last.tally.lines, last.removed, sink.logs) == (0, 0, [])


def test_a_ledger_of_an_earlier_release_tells_how_its_ids_were_written() -> None:
    """Its layouts do not say it: they all wrote them like any other text."""
    kept = Layout().as_json()
    assert kept.pop("ids") == "exact"
    assert Layout.from_json(kept) == Layout(ids=IdCells.CLEANED)
    assert Layout.from_json(kept).id_cell('\ta"%') == " a%22%"


def test_a_damaged_published_log_is_the_data_folders_fault(tmp_path: Path) -> None:
    """It is not the export that is torn."""
    path = export_file(tmp_path, sample(50))
    _, sent = convert(path)
    torn = SentLog(Layout(), lambda: BytesIO(sent.logs[0].content[:-4]))
    with pytest.raises(DataFolderError, match="damaged"):
        convert(path, sent=[torn])
