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
from server.convert.day import SentLog, convert_export
from server.convert.row import Conversion
from server.triton import Layout, LogRules

from .measuring import measure

if TYPE_CHECKING:
    from typing import BinaryIO

DAY = date(2026, 11, 20)


class _Folder:
    """A sink that writes into one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def restart(self) -> None:
        """Nothing is kept that would have to be forgotten."""

    def open_log(self, index: int) -> BinaryIO:
        """The log with this index."""
        return (self._folder / f"{self._name}-{index:02}.tsv.gz").open("wb")

    def open_rejects(self) -> BinaryIO:
        """The rejects file."""
        return (self._folder / f"{self._name}.rejects.ndjson.gz").open("wb")


def _convert(folder: Path, name: str, sent: list[Path]) -> None:
    converted = convert_export(
        folder / f"{name}.json.gz",
        Conversion(LogRules(), bytes(32), day=DAY),
        _Folder(folder, name),
        scratch=folder,
        sent=[SentLog(Layout(), lambda path=path: path.open("rb")) for path in sent],  # type: ignore[misc]
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
