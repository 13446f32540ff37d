"""The campaign's words: what a part of it is given, and what it gives back, row by row of the manual's table.

No outside world.
"""

from __future__ import annotations

import random
import sys
import time
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Campaign:
    """What a part is given: a folder of its own, a seed, and a bound in seconds.

    ``short`` is the form that CI runs: a part then tries every kind of fault at least once and ends within ``seconds``.
    """

    folder: Path
    seed: int
    seconds: float
    short: bool = False
    started: float = field(default_factory=time.monotonic)  # the monotonic clock is the same in every process

    def rng(self, *names: object) -> random.Random:
        """Random numbers that depend on the seed and on these names alone."""
        return random.Random(f"{self.seed}/{'/'.join(map(str, names))}")

    @property
    def left(self) -> float:
        """Seconds that are left, never below 0."""
        return max(0.0, self.seconds - (time.monotonic() - self.started))


@dataclass(slots=True)
class Fault:
    """One row of the table: what was done to it, how often, and what went wrong.

    ``lost`` holds a sentence for every promise that was found broken: empty is the good case. ``figures`` are what
    was measured beside it, by name, with the unit in the name.
    """

    name: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)

    def expect(self, true: object, otherwise: str) -> None:
        """Note a broken promise unless ``true``."""
        if not true:
            self.lost.append(otherwise)


def as_table(faults: list[Fault]) -> str:
    """The manual's table."""
    lines = ["| fault | times tried | what was lost |", "|---|---:|---|"]
    for fault in faults:
        figures = "".join(f"; {name} {value}" for name, value in fault.figures.items())
        lost = "nothing" if not fault.lost else f"**{len(fault.lost)}**: {fault.lost[0]}"
        lines.append(f"| {fault.name} | {fault.tried:,} | {lost}{figures} |")
    return "\n".join(lines)


def run_part(part: str, campaign: Campaign, pipe: Connection) -> None:
    """Run one part in this process, and send its rows; here, since multiprocessing skips a ``__main__``."""
    try:
        faults = import_module(f".{part}", __package__).run(campaign)
    except BaseException:  # a part that fails is a row that says so
        traceback.print_exc()
        faults = [Fault(part, lost=[f"the part itself failed: {sys.exc_info()[1]!r}"])]
    pipe.send(faults)
