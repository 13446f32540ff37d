"""One small day with every kind of row, and the logs that a reader of the mapping table makes of it by hand.

Reads tests/golden/ (its README says how the files were made) and converts in a temporary folder.
"""

from __future__ import annotations

import gzip
from datetime import date
from pathlib import Path
from typing import Any

import orjson
import pytest

from server.cli.convert import convert_by_hand
from server.config import parse_config
from server.convert.conversion import Conversion
from server.convert.row import RowConverter
from server.convert.tally import RejectReason, RowRejected, Tally
from server.episodes.catalogue import load_catalogue
from server.triton import ColumnSpec, Layout, LogFormat, LogRules

from ..support.apart import conversions_here
from ..support.rows import KEY, converted, result, row

GOLDEN = Path(__file__).parent / "golden"
DAY = date(2026, 11, 20)
EXPORT = GOLDEN / "metrics-day-2026-11-20.ndjson"

COLUMNS = (
    ColumnSpec("day", value="date"),
    ColumnSpec("time", value="start-time"),
    ColumnSpec("IP", value="IP"),
    ColumnSpec("Hashed-IP", value="Hashed-IP"),
    ColumnSpec("link", value="url"),
    ColumnSpec("status", value="status"),
    ColumnSpec("bytes", value="bytes"),
    ColumnSpec("range", value="byte-range"),
    ColumnSpec("guid", value="episode-guid"),
    ColumnSpec("id", value="x-metric-id"),
    ColumnSpec("ps", field="normalized_user_agent"),
    ColumnSpec("dist", constant="Publisher B"),
)
AGREED = LogRules(
    Layout(LogFormat.TSV, "comment", "percent", COLUMNS),
    rows="all",
    ip="truncated",
    partial_status=200,
    bytes="as-sent",
    url="/listen/{guid}?from={country}",
)
CASES = {
    "default.tsv": (LogRules(), False),
    "default.w3c": (LogRules(Layout(LogFormat.W3C)), False),
    "agreed.tsv": (AGREED, True),
}
REJECTED = {
    "malformed_json": 1, "not_an_object": 1, "no_id": 1, "bad_created_at": 1, "no_ip": 1, "no_episode": 1,
    "bad_filesize": 1, "bad_bytes_sent": 1, "duplicate_id": 1,
}  # fmt: skip
# The rows r01, r03, r04, 18 and r19 meet Megaphone's own rule.
BOOKS = {
    "default.tsv": {
        "rows": 18, "lines": 6, "filtered": {"no_bytes": 1, "blacklisted_ip": 1, "blacklisted_ua": 1},
        "rejected": REJECTED, "reporting": 5, "clamped": 1, "not_an_address": 1, "ends_in_zero": 1, "outside_day": 1,
        "unmapped_episodes": 0, "readdressed": 0, "fallback_urls": 0, "unmatched": 0,
    },
    "agreed.tsv": {
        "rows": 18, "lines": 8, "filtered": {"no_bytes": 1}, "rejected": REJECTED, "reporting": 5, "clamped": 0,
        "not_an_address": 1, "ends_in_zero": 1, "outside_day": 1, "unmapped_episodes": 2, "readdressed": 0,
        "fallback_urls": 0, "unmatched": 2,
    },
}  # fmt: skip
BOOKS["default.w3c"] = BOOKS["default.tsv"]
# (line of the export, counted from 1, blank ones too; reason)
REJECTS = [
    (9, "malformed_json"), (10, "not_an_object"), (11, "no_id"), (12, "bad_created_at"), (13, "no_ip"),
    (14, "no_episode"), (15, "bad_filesize"), (16, "bad_bytes_sent"), (17, "duplicate_id"),
]  # fmt: skip

CONFIG: dict[str, dict[str, Any]] = {
    "default.tsv": {},
    "default.w3c": {"format": "w3c"},
    "agreed.tsv": {
        "header": "comment", "text": "percent", "rows": "all", "ip": "truncated", "partial_status": 200,
        "bytes": "as-sent", "url": "/listen/{guid}?from={country}", "episodes": str(GOLDEN / "episodes.csv"),
        "columns": [
            {"name": c.name} | {k: v for k in ("value", "field", "constant") if (v := getattr(c, k)) is not None}
            for c in COLUMNS
        ],
    },
}  # fmt: skip


def golden(name: str) -> str:
    return (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_the_reference_writes_the_log_that_was_written_by_hand(name: str) -> None:
    """Row by row, with nothing of the pipeline: header, lines, reasons and counts."""
    log_rules, mapped = CASES[name]
    catalogue = load_catalogue(GOLDEN / "episodes.csv") if mapped else None
    converter = RowConverter(Conversion(log_rules, KEY, catalogue, DAY))
    written, tally, rejects = log_rules.layout.header_lines(DAY), Tally(), []
    seen: set[str] = set()
    reason: RejectReason | None
    for number, raw in enumerate(EXPORT.read_bytes().split(b"\n"), 1):
        if not raw.strip():
            continue
        tally.rows += 1
        try:
            outcome = converter.convert(raw)
        except RowRejected as rejected:
            reason = rejected.reason
        else:
            reason = RejectReason.DUPLICATE_ID if outcome.id in seen else None
        if reason is not None:
            tally.rejected[reason] += 1
            rejects.append((number, str(reason)))
            continue
        seen.add(outcome.id)
        tally.reporting += outcome.reporting
        if outcome.filtered is not None:
            tally.filtered[outcome.filtered] += 1
            continue
        written += f"{outcome.line}\n"
        tally.lines += 1
        tally.clamped += outcome.clamped
        tally.not_an_address += not outcome.is_address
        tally.ends_in_zero += outcome.ends_in_zero
        tally.outside_day += outcome.outside_day
        tally.unmapped_episodes += outcome.unmapped
        tally.unmatched += outcome.unmatched
    assert written == golden(name)
    assert tally.as_json() == BOOKS[name]
    assert rejects == REJECTS
    assert tally.balanced


def convert(
    export_text: bytes,
    log: dict[str, Any],
    folder: Path,
    name: str = "metrics-day-2026-11-20.json.gz",
    **export_more: Any,
) -> tuple[str, Tally, list[dict[str, Any]]]:
    """What the service makes of one export: the log's text, the books, the rejected rows."""
    key_file = folder / "keys" / "ip_hash.key"
    key_file.parent.mkdir()
    key_file.touch(mode=0o600)
    key_file.write_text(KEY.hex() + "\n")
    (folder / "triton.pub").touch()
    export = folder / name
    export.write_bytes(gzip.compress(export_text))
    users = [{"name": "triton", "authorized_keys": "triton.pub"}]
    raw = {"export": {"url": str(folder)} | export_more, "log": log, "sftp": {"users": users}}
    output, rejects = folder / "out.gz", folder / "rejects.gz"
    by_hand = convert_by_hand(export, output, rejects, parse_config(raw, folder / "config.toml"))
    told = []
    if rejects.exists():  # without a rejected row there is no file of them
        told = [orjson.loads(line) for line in gzip.decompress(rejects.read_bytes()).splitlines()]
    return gzip.decompress(output.read_bytes()).decode(), by_hand.tally, told


@pytest.mark.parametrize("name", CASES)
def test_the_service_writes_the_log_that_was_written_by_hand(name: str, tmp_path: Path) -> None:
    """From a configuration, a key file and a gzip file to a gzip file, its books and its rejected rows."""
    written, tally, told = convert(EXPORT.read_bytes(), CONFIG[name], tmp_path)
    assert written == golden(name)
    assert tally.as_json() == BOOKS[name]
    assert [(reject["line"], reject["reason"]) for reject in told] == REJECTS
    lines = EXPORT.read_text(encoding="utf-8").split("\n")
    assert [reject["raw"] for reject in told] == [lines[number - 1] for number, _ in REJECTS]


DELIVERY_V2 = {
    "rows": 13, "lines": 5, "filtered": {"play": 1, "blacklisted_ua": 1},
    "rejected": {"no_id": 1, "no_ip": 1, "bad_delivery_type": 2, "bad_bytes_sent": 1, "duplicate_id": 1},
    "reporting": 5, "clamped": 0, "not_an_address": 4, "ends_in_zero": 0, "outside_day": 0, "unmapped_episodes": 0,
    "readdressed": 0, "fallback_urls": 0, "unmatched": 0,
}  # fmt: skip


def test_a_day_of_the_other_kind_is_the_log_that_was_written_by_hand(tmp_path: Path) -> None:
    """Equal rows, one of them left out; a play; sizes where there are some; what is rejected, and why."""
    columns = [{"name": spec.name, "value": spec.value} for spec in Layout().specs]
    log = {"columns": [*columns, {"name": "media_type", "field": "media_type"}]}
    name = "delivery-v2-day-2026-11-20"
    text = (GOLDEN / f"{name}.ndjson").read_bytes()
    written, tally, told = convert(text, log, tmp_path, f"{name}.json.gz", kind="delivery-v2")
    assert written == golden("delivery-v2.tsv")
    assert tally.as_json() == DELIVERY_V2
    assert [(reject["line"], reject["reason"]) for reject in told] == [
        (7, "bad_delivery_type"), (8, "bad_delivery_type"), (9, "bad_bytes_sent"), (10, "duplicate_id"), (11, "no_ip"),
        (12, "no_id"),
    ]  # fmt: skip


@pytest.mark.parametrize("row_id", ["a\nb", "\n", " \n", "a\tb", "#\n", 7])
@pytest.mark.parametrize("name", CASES)
def test_one_odd_id_harms_no_other_row(name: str, row_id: Any, tmp_path: Path) -> None:
    """A line end or a tab in an id among ordinary ones: the service's lines are the reference's."""
    log_rules, mapped = CASES[name]
    catalogue = load_catalogue(GOLDEN / "episodes.csv") if mapped else None
    rows = [row(), row(id=row_id), row(id="last")]
    expected = log_rules.layout.header_lines(DAY)
    for raw in rows:
        if result(raw, log_rules) == "line":
            expected += f"{converted(raw, log_rules, catalogue=catalogue).line}\n"
    with conversions_here():
        written, tally, _ = convert(b"\n".join(rows), CONFIG[name], tmp_path)
    assert written == expected
    assert tally.balanced
