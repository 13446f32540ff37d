"""Three days converted by `pickup-point convert` and by its peers, in turn.

    python -m benchmarks.convert [--rows 1000000] [--rounds 5] [--day varied] [--without jq] [--episodes 20000]

The days are those of `days`: one whose values repeat, one whose values do not, one of hash-like addresses. Prints for
each the medians of wall time, their ratios, the peak memory of all processes, and the size of each output; says whether
the outputs are the same text, where an engine can express the rule (the Hashed-IP column, a keyed hash, is left out);
and at the end the manual's table: each ratio on each day, and the worst of them. Peers are careful or lean (see
`peers`); it is the fastest of a kind that counts. The floor is gunzip of the export, then gzip of the same log text,
with isal in one process. `addresses` is the day `tokens` with addresses: what ours takes for the one over what it takes
for the other says what tokens cost. `delivery-v2` is the day `sample` as a Delivery export V2, whose rows get ids of
ours: rows of it a second beside those of the metrics export; `retries` is one in which every row comes a hundred times:
what it takes over what `delivery-v2` does says what a client costs that asks again and again. `one worker` is ours in
one thread; `late rows` is ours for a day of which one row in a hundred comes late, against the log of the others. An
empty day is converted twenty times. With `--episodes`, `catalogue` is ours again, with an episode catalogue of that
many RSS items in use. Wants the extra `bench`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import shutil
import statistics
import sys
import tempfile
import zlib
from datetime import date
from pathlib import Path

from isal import igzip

from . import late
from .days import DAYS, make_day
from .episodes import write_catalogue
from .measuring import Measured, measure
from .peers import ENGINES

DAY = date(2026, 11, 20)
HASHED_IP = 3
# Our time over that of the fastest of a kind, at most, on the worst of the days.
REACH = {"polars": 0.65, "duckdb": 0.25, "jq": 0.08, "floor": 1.3, "addresses": 1.3, "retries": 3.0}
EMPTY, EMPTY_ROUNDS = 0.2, 20  # seconds, at most, for a day without rows
OWN = ("one worker", "late rows")
# Other forms of the day, converted by us in turn with it.
BESIDE = {"sample": ("delivery-v2", "retries"), "tokens": ("addresses",)}
FORMS = tuple(form for forms in BESIDE.values() for form in forms)
WITH_CATALOGUE = 0.95  # ours without a catalogue over ours with one, at least: not slower by more than about 5 %


def main() -> None:
    """Make the days, run the rounds, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--day", action="append", default=[], choices=DAYS, help="only this day (default: all of them)")
    parser.add_argument("--jq-rounds", type=int, default=1, help="jq takes a minute for a million rows")
    parser.add_argument("--without", action="append", default=[], choices=[*map(_kind, ENGINES), *OWN, *FORMS])
    parser.add_argument("--episodes", type=int, default=0, help="also with a catalogue of this many episodes")
    parser.add_argument("--folder", type=Path, help="keep the exports and the outputs here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if "jq" not in arguments.without and shutil.which("jq") is None:
            arguments.without.append("jq")
            print("without jq: apt-get install jq")
        days = {name: _measure_day(name, folder, arguments) for name in arguments.day or DAYS}
        empty = _empty_day(folder)
    _table(days)
    print(f"an empty day: {empty:.3f} s, median of {EMPTY_ROUNDS}; to reach {EMPTY:.1f} s")


def _table(days: dict[str, dict[str, float]]) -> None:
    """Print the manual's table of ratios."""
    print(f"| ours / the fastest | {' | '.join(days)} | worst | to reach |")
    print("|---|" + "---|" * (len(days) + 2))
    for kind, reach in REACH.items():
        ratios = [ratios.get(kind) for ratios in days.values()]
        if any(ratios):
            cells = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            worst = max(ratio for ratio in ratios if ratio is not None)
            print(f"| {kind} | {' | '.join(cells)} | **{worst:.2f}** | {reach:.2f} |")


def _empty_day(folder: Path) -> float:
    """The median time of a day without rows."""
    export = folder / f"metrics-day-{DAY}.json.gz"
    export.write_bytes(gzip.compress(b""))
    return statistics.median(measure(_command("ours", export, folder)).seconds for _ in range(EMPTY_ROUNDS))


def _kind(engine: str) -> str:
    return engine if engine in FORMS else engine.partition("-")[0]


def _measure_day(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Our time over that of the fastest of each kind; tells all of them."""
    export = make_day(name, folder, DAY, arguments.rows)
    where, exports = export.parent, {"ours": export}
    print(
        f"{name}: {arguments.rows:,} rows, {export.stat().st_size / 1e6:.1f} MB compressed, {arguments.rounds} rounds"
    )
    engines = ["ours", *(engine for engine in (*OWN, *ENGINES) if _kind(engine) not in arguments.without)]
    if "late rows" in engines:
        first = where / "first.json.gz"
        with igzip.open(export) as rows, igzip.open(first, "wb", 2) as kept:  # type: ignore[no-untyped-call]
            kept.writelines(row for row in rows if zlib.crc32(row) % 100)
        measure(late.command(first, "first"))
    for form in BESIDE.get(name, ()):
        if form not in arguments.without:
            engines.append(form)
            exports[form] = make_day(form, folder, DAY, arguments.rows)
    if arguments.episodes and name == DAYS[0]:
        write_catalogue(where / "catalogue", export, arguments.episodes)
        engines.insert(1, "catalogue")
    measure(_command("ours", export, where))  # once before, for the text that the floor wants
    text = where / "ours.tsv"
    with gzip.open(where / "ours.tsv.gz") as packed, text.open("wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)
    runs: dict[str, list[Measured]] = {engine: [] for engine in engines}
    for number in range(arguments.rounds):
        for engine in engines:
            if _kind(engine) == "jq" and number >= arguments.jq_rounds:
                continue
            runs[engine].append(measure(_command(engine, exports.get(engine, export), where)))
            print(f"round {number + 1}: {engine:16} {runs[engine][-1].seconds:8.2f} s", file=sys.stderr)
    _report(runs, where)
    ours = statistics.median(run.seconds for run in runs["ours"])
    ratios: dict[str, float] = {}
    for engine, measured in runs.items():
        if (kind := _kind(engine)) in REACH:
            its = statistics.median(run.seconds for run in measured)
            ratio = ours / its
            if kind == "retries":  # against the same kind of rows, all different
                if "delivery-v2" not in runs:
                    continue
                ratio = its / statistics.median(run.seconds for run in runs["delivery-v2"])
            ratios[kind] = max(ratio, ratios.get(kind, 0.0))
    return ratios


def _command(engine: str, export: Path, folder: Path) -> list[str]:
    output = str(folder / f"{engine}.tsv.gz")
    if engine in OWN:
        sent, workers = ([folder / "first-00.tsv.gz"], 0) if engine == "late rows" else ([], 1)
        return late.command(export, engine, sent, workers)
    if engine in ("ours", "catalogue", *FORMS):
        command = Path(sys.executable).with_name("pickup-point")
        found = str(command) if command.exists() else shutil.which("pickup-point") or "pickup-point"
        config = folder / "catalogue" / ("config.toml" if engine == "catalogue" else "plain.toml")
        with_config = ["--config", str(config)] if config.exists() else []
        return [found, "convert", str(export), "--output", output, "--json", *with_config]
    more = [str(folder / "ours.tsv")] if engine == "floor" else []
    return [sys.executable, "-m", "benchmarks.peers", engine, str(export), output, *more]


def _report(runs: dict[str, list[Measured]], folder: Path) -> None:
    ours = statistics.median(run.seconds for run in runs["ours"])
    expected = _text_digest(folder / "ours.tsv.gz")
    print(f"{'':18}{'seconds':>9}{'ours/its':>10}{'peak MB':>9}{'size MB':>9}  text")
    for engine, measured in runs.items():
        median = statistics.median(run.seconds for run in measured)
        peak = max(run.peak for run in measured) / 1e6
        output = folder / (f"{engine}-00.tsv.gz" if engine in OWN else f"{engine}.tsv.gz")
        compared = "" if engine in ("ours", "late rows", *FORMS) else _text_digest(output)
        same = "" if not compared else "the same" if compared == expected else "DIFFERENT"
        ratio = "" if engine == "ours" else f"{ours / median:.3f}"
        if engine == "catalogue":
            same += f", to reach {WITH_CATALOGUE:.2f}"
        print(f"{engine:18}{median:9.2f}{ratio:>10}{peak:9.0f}{output.stat().st_size / 1e6:9.1f}  {same}")


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
