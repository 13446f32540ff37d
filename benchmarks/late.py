"""Memory and time for a day of which one row in a hundred comes late: `python -m benchmarks.late [--rows 10000000]`.

Converts a first version of a day without those rows, then the whole day against the log of the first. Prints the wall
time of both, and the peak memory of all processes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zlib
from datetime import date
from pathlib import Path

from server.cli.samples import write_day
from server.convert.apart import Outputs, SentFile, convert_apart
from server.convert.messages import FileNames
from server.convert.row import Conversion
from server.triton import Layout, LogRules

from .measuring import measure

DAY = date(2026, 11, 20)


def _convert(folder: Path, name: str, sent: list[Path]) -> None:
    conversion = Conversion(LogRules(), bytes(32), day=DAY)
    converted = convert_apart(
        folder / f"{name}.json.gz",
        lambda: conversion,
        Outputs(folder, lambda: FileNames(f"{name}-", 0, ".tsv.gz"), (folder, f"{name}.rejects.ndjson.gz")),
        scratch=folder,
        sent=[SentFile(Layout(), lambda path=path: path.open("rb"), path.name) for path in sent],  # type: ignore[misc]
    )
    print(converted.tally.as_json(), converted.changed, converted.removed, file=sys.stderr)


def main() -> None:
    """Make both versions, convert both, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--convert", nargs="+", help=argparse.SUPPRESS)  # the measured process: name, sent logs
    arguments = parser.parse_args()
    if arguments.convert:
        _convert(arguments.folder, arguments.convert[0], [Path(path) for path in arguments.convert[1:]])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "second.json.gz").exists():
            write_day(folder / "first.json.gz", DAY, arguments.rows, keep=lambda row: zlib.crc32(row) % 100 != 0)
            write_day(folder / "second.json.gz", DAY, arguments.rows)
        command = [sys.executable, "-m", "benchmarks.late", "--folder", str(folder), "--convert"]
        first = measure([*command, "first"])
        second = measure([*command, "second", str(folder / "first-00.tsv.gz")])
        for name, run in (("first version", first), ("late rows", second)):
            print(
                f"{arguments.rows:,} rows, {name}: {run.seconds:.1f} s, peak {run.peak / 1e6:.0f} MB of all processes"
            )


if __name__ == "__main__":
    main()
