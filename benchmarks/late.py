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
from typing import TYPE_CHECKING

from server.cli.samples import write_day
from server.convert.apart import Outputs, SentFile, convert_apart
from server.convert.conversion import Conversion
from server.convert.messages import FileNames
from server.triton import Layout, LogRules

from .measuring import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY = date(2026, 11, 20)


def command(export: Path, name: str, sent: Sequence[Path] = (), workers: int = 0) -> list[str]:
    """The command that converts an export into ``{name}-00.tsv.gz`` beside it, against the logs that were sent."""
    itself = [sys.executable, "-m", "benchmarks.late", "--folder", str(export.parent), "--workers", str(workers)]
    return [*itself, "--convert", export.name, name, *map(str, sent)]


def _convert(export: Path, name: str, sent: list[Path], workers: int) -> None:
    conversion, folder = Conversion(LogRules(), bytes(32), day=DAY), export.parent
    converted = convert_apart(
        export,
        lambda: conversion,
        Outputs(folder, lambda: FileNames(f"{name}-", 0, ".tsv.gz"), (folder, f"{name}.rejects.ndjson.gz")),
        scratch=folder,
        workers=workers,
        sent=[SentFile(Layout(), lambda path=path: path.open("rb"), path.name) for path in sent],  # type: ignore[misc]
    )
    print(converted.tally.as_json(), converted.changed, converted.removed, file=sys.stderr)


def main() -> None:
    """Make both versions, convert both, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--workers", type=int, default=0, help="threads (default: one for each core)")
    parser.add_argument("--convert", nargs="+", help=argparse.SUPPRESS)  # the measured process: see `command`
    arguments = parser.parse_args()
    if arguments.convert:
        export, name, *sent = arguments.convert
        _convert(arguments.folder / export, name, [Path(path) for path in sent], arguments.workers)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "second.json.gz").exists():
            write_day(folder / "first.json.gz", DAY, arguments.rows, keep=lambda row: zlib.crc32(row) % 100 != 0)
            write_day(folder / "second.json.gz", DAY, arguments.rows)
        first = measure(command(folder / "first.json.gz", "first", workers=arguments.workers))
        sent = [folder / "first-00.tsv.gz"]
        second = measure(command(folder / "second.json.gz", "second", sent, arguments.workers))
        for name, run in (("first version", first), ("late rows", second)):
            print(
                f"{arguments.rows:,} rows, {name}: {run.seconds:.1f} s, peak {run.peak / 1e6:.0f} MB of all processes"
            )


if __name__ == "__main__":
    main()
