"""The fault campaign: what was done to pickup-point, how often, and what was lost.

    python -m benchmarks.faults [PART ...] [--short] [--complete] [--seed 8] [--minutes N] [--folder DIR] [--json FILE]

Runs the parts (all of them, or those named), each in a process of its own and bounded in time, and prints the manual's
table; exit 1 if anything was lost. `--short` is the form that CI runs. Wants the extras `test` and `fuzz`; a part that
needs a program which is not there says so in its row and does without, unless `--complete` asks for every fault.
Nothing listens beyond loopback.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from .result import Campaign, Fault, as_table, run_part

# Part, which is a module beside this one: (minutes of the whole form, seconds of the short one).
PARTS: dict[str, tuple[float, float]] = {
    "crash": (24, 40),
    "disk": (15, 80),
    "power": (15, 45),
    "bucket": (11, 40),
    "network": (41, 40),
    "clock": (5, 50),
    "months": (30, 60),
    "nodes": (30, 60),
    "exports": (5, 45),
    "fuzz": (61, 45),
    "attack": (5, 60),
}


def main() -> None:
    """Run the parts, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--short", action="store_true", help="the form that CI runs")
    parser.add_argument("--complete", action="store_true", help="exit 1 also if a fault was not tried at all")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--minutes", type=float, help="for each part, in place of its own bound")
    parser.add_argument("--folder", type=Path, help="work here, and leave everything there")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    context, rows = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as temporary:
        for part in arguments.parts or PARTS:
            folder = (arguments.folder or Path(temporary)) / part
            folder.mkdir(parents=True, exist_ok=True)
            minutes = arguments.minutes or PARTS[part][0]
            seconds = PARTS[part][1] if arguments.short else minutes * 60
            started = time.monotonic()
            ours, theirs = context.Pipe()
            campaign = Campaign(folder, arguments.seed, seconds, arguments.short)
            process = context.Process(target=run_part, args=(part, campaign, theirs))
            process.start()
            theirs.close()
            try:
                faults: list[Fault] = ours.recv()
            except EOFError:
                faults = [Fault(part, lost=["its process died"])]
            process.join()
            rows += faults
            print(f"{part}: {time.monotonic() - started:.0f} s", *_findings(faults), sep="\n  ", file=sys.stderr)
    print(as_table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    untried = [row for row in rows if not row.tried]
    for row in untried if arguments.complete else ():
        print(f"not tried: {row.name} {row.figures}", file=sys.stderr)
    sys.exit(any(row.lost for row in rows) or (arguments.complete and bool(untried)))


def _findings(faults: list[Fault]) -> list[str]:
    return [f"{fault.name}: {sentence}" for fault in faults for sentence in fault.lost]


if __name__ == "__main__":
    main()
