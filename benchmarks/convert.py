"""A realistic day converted by `pickup-point convert`, DuckDB, Polars, and zcat, jq and gzip, in turn.

    python -m benchmarks.convert [--rows 1000000] [--rounds 5] [--without jq] [--episodes 20000]

Prints the medians of wall time, their ratios, the peak memory of all processes, and the size of each output; says
whether the outputs are the same text, where an engine can express the rule (the Hashed-IP column, a keyed hash, is
left out). `polars-lean` cuts times from the text and takes ids as they come, which only a day as clean as this one
forgives; `polars` checks and cleans them, as the mapping asks. The floor is gunzip and gzip of the export with isal
and nothing in between. With `--episodes`, `catalogue` is ours again, with an episode catalogue of that many RSS items
in use: `ours/its` is then what the catalogue costs (0.95 is 5 %). Wants the extra `bench`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import shutil
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path

from server.cli.samples import write_day

from .episodes import write_catalogue
from .measuring import Measured, measure

DAY = date(2026, 11, 20)
HASHED_IP = 3
PEERS = ("polars", "polars-lean", "duckdb", "jq", "floor")
# Issue "Conversion": our time over the engine's, at most.
REACH = {"polars": 0.75, "duckdb": 0.30, "jq": 0.08, "floor": 2.0}
WITH_CATALOGUE = 0.95  # ours without a catalogue over ours with one, at least: not slower by more than about 5 %


def main() -> None:
    """Make the day, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jq-rounds", type=int, help="jq takes a minute for a million rows; default: as --rounds")
    parser.add_argument("--without", action="append", default=[], choices=PEERS)
    parser.add_argument("--episodes", type=int, default=0, help="also with a catalogue of so many episodes")
    parser.add_argument("--folder", type=Path, help="keep the export and the outputs here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        export = folder / f"metrics-day-{DAY}.json.gz"
        if not export.exists():
            write_day(export, DAY, arguments.rows)
        print(f"{arguments.rows:,} rows, {export.stat().st_size / 1e6:.1f} MB compressed, {arguments.rounds} rounds")
        engines = ["ours", *(peer for peer in PEERS if peer not in arguments.without)]
        if arguments.episodes:
            write_catalogue(folder / "catalogue", export, arguments.episodes)
            engines.insert(1, "catalogue")
        runs: dict[str, list[Measured]] = {engine: [] for engine in engines}
        for number in range(arguments.rounds):
            for engine in engines:
                if engine == "jq" and number >= (arguments.jq_rounds or arguments.rounds):
                    continue
                runs[engine].append(measure(_command(engine, export, folder)))
                print(f"round {number + 1}: {engine:12} {runs[engine][-1].seconds:8.2f} s", file=sys.stderr)
        _report(runs, folder)


def _command(engine: str, export: Path, folder: Path) -> list[str]:
    output = str(folder / f"{engine}.tsv.gz")
    if engine in ("ours", "catalogue"):
        command = Path(sys.executable).with_name("pickup-point")
        found = str(command) if command.exists() else shutil.which("pickup-point") or "pickup-point"
        place = folder / "catalogue"
        config = place / ("config.toml" if engine == "catalogue" else "plain.toml")
        return [
            found,
            "convert",
            str(export),
            "--output",
            output,
            "--json",
            *(["--config", str(config)] * config.exists()),
        ]
    return [sys.executable, "-m", "benchmarks.peers", engine, str(export), output]


def _report(runs: dict[str, list[Measured]], folder: Path) -> None:
    ours = statistics.median(run.seconds for run in runs["ours"])
    expected = _text_digest(folder / "ours.tsv.gz")
    print(f"{'':12}{'seconds':>9}{'ours/its':>10}{'to reach':>10}{'peak MB':>9}{'size MB':>9}  text")
    for engine, measured in runs.items():
        median = statistics.median(run.seconds for run in measured)
        peak = max(run.peak for run in measured) / 1e6
        output = folder / f"{engine}.tsv.gz"
        same = "" if engine in ("ours", "floor") else "the same" if _text_digest(output) == expected else "DIFFERENT"
        ratio = "" if engine == "ours" else f"{ours / median:.3f}"
        reach = f"{REACH[engine]:.2f}" if engine in REACH else ""
        if engine == "catalogue":
            reach = f"> {WITH_CATALOGUE:.2f}"
        size = output.stat().st_size / 1e6
        print(f"{engine:12}{median:9.2f}{ratio:>10}{reach:>10}{peak:9.0f}{size:9.1f}  {same}")


def _text_digest(log: Path) -> str:
    """The digest of a log's text without its Hashed-IP column."""
    digest = hashlib.sha256()
    with gzip.open(log) as lines:
        for line in lines:
            cells = line.split(b"\t")
            del cells[HASHED_IP]
            digest.update(b"\t".join(cells))
    return digest.hexdigest()


if __name__ == "__main__":
    main()
