"""The part `nodes`: several nodes on one store, killed at every step, cut off, overtaken, answered wrongly over HTTP.

`tests.support.crash_nodes` kills, `tests.support.nodes` walks through weeks of virtual time (every other walk is one of
Delivery exports V2), `tests.support.cut_store` has two nodes on a server that cuts its answers. Touches its own folder,
and listens on 127.0.0.1. What must hold: each row once, no name with two contents, everything the same on all nodes,
nothing for a person to do.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import structlog

from server.megaphone.exports import KINDS
from tests.support.crash_nodes import SCENARIOS
from tests.support.cut_store import cut_days
from tests.support.nodes import NodesWalk

from .result import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .result import Campaign

DAYS = 30  # of a walk, in the whole form


def run(campaign: Campaign) -> list[Fault]:
    """The rows of this part."""
    killed = Fault("nodes: SIGKILL of one at every step of publishing, pruning, beginning and taking over")
    walks = Fault(
        "nodes: two or three for weeks; splits, kills, clocks that differ; lost answers, entries, ledgers (rounds)"
    )
    cut = Fault("nodes: two, over HTTP, on a store that cuts or refuses half of its answers (requests)")
    figures = {"walks": 0, "overtaken in mid-round": 0, "store faults": 0, "kills": 0, "rows sent once": 0}
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running: dict[Future[Any], Callable[[Any], None]] = {}

        def took_deaths(found: tuple[int, list[str]]) -> None:
            killed.tried += found[0]
            killed.lost += found[1]

        def took_walk(found: tuple[int, dict[str, int], list[str]]) -> None:
            walks.tried += found[0]
            for name, count in found[1].items():
                figures[name] += count
            walks.lost += found[2]

        def took_cut(found: tuple[int, list[str]]) -> None:
            cut.tried += found[0]
            cut.lost += found[1]

        jobs = _jobs(campaign, took_deaths, took_walk, took_cut)
        waiting = True
        while running or waiting:
            while waiting and len(running) < workers:
                job = next(jobs, None)
                waiting = job is not None
                if job is not None:
                    running[pool.submit(job[0], *job[1])] = job[2]
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for one in ended:
                running.pop(one)(one.result())
    walks.figures |= figures
    return [killed, walks, cut]


def _jobs(campaign: Campaign, deaths: Any, walk: Any, cut: Any) -> Iterator[tuple[Any, tuple[Any, ...], Any]]:
    """Every kind at least once, then walks and cuts as long as there is time."""
    stride = 9 if campaign.short else 1
    for scenario in SCENARIOS:
        # Every step, in several processes.
        for first in range(1, (2 if campaign.short else 3)):
            folder = campaign.folder / f"{scenario.replace(' ', '-')}-{first}"
            yield (
                _die,
                (folder, scenario, first + campaign.seed % stride, stride * (1 if campaign.short else 2)),
                deaths,
            )
    number = 0
    while number < 1 or campaign.left > 0:
        seed = f"{campaign.seed}/nodes/{number}"
        kind = list(KINDS)[number % len(KINDS)]
        yield _walk, (campaign.folder / f"walk-{number}", seed, 4 if campaign.short else DAYS, kind), walk
        yield _cut, (campaign.folder / f"cut-{number}", seed), cut
        number += 1


def _die(folder: Path, scenario: str, first: int, stride: int) -> tuple[int, list[str]]:
    """Die at some steps of a scenario; return how often, and what went wrong."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.support.crash_nodes", str(folder), scenario, str(first), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("20")]
    if done.returncode != 0 or not lines or not lines[-1].isdigit():
        return 0, [f"{scenario}: {done.stderr[-300:]}"]
    shutil.rmtree(folder)
    return int(lines[-1]), lines[:-1]


def _walk(folder: Path, seed: str, days: int, kind: str) -> tuple[int, dict[str, int], list[str]]:
    """Walk once through exports of one kind, which leaves nothing if all is well.

    Return the number of rounds, figures, and what went wrong.
    """
    _quiet()
    dice = random.Random(seed)
    nodes = NodesWalk(folder, dice, days, kills=True, kind=kind)
    nodes.run()
    nodes.settle()
    nodes.stop()
    wrong = [f"walk {seed} ({kind}): {sentence}" for sentence in nodes.wrong]
    if not wrong:
        shutil.rmtree(folder)
    figures = {"walks": 1, "overtaken in mid-round": nodes.overtaken, "store faults": nodes.faults,
               "kills": nodes.killed, "rows sent once": nodes.rows}  # fmt: skip
    return nodes.rounds, figures, wrong


def _cut(folder: Path, seed: str) -> tuple[int, list[str]]:
    _quiet()
    folder.mkdir()
    requests, wrong = cut_days(folder, random.Random(seed))
    shutil.rmtree(folder)
    return requests, [f"cut {seed}: {sentence}" for sentence in wrong]


def _quiet() -> None:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    logging.disable(logging.CRITICAL)
