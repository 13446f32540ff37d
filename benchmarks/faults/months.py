"""The part `months`: random walks through weeks of virtual time, with everything that can come together in them.

`tests.support.months` is the walk and the model: first, unfinal, held, late and split publications, resends, adoption
by a new ledger, settings that change in between, rounds that are killed, sources that are lost. Every other walk is one
of Delivery exports V2: marked or not, rows without ids. Touches its own folder.
What must hold at the end: every row of every day was sent exactly once in a publication that stands, or somebody was
told.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import TYPE_CHECKING

import structlog

from server.megaphone.exports import KINDS
from tests.support.months import Walk

from .result import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from .result import Campaign

DAYS = 20  # of a walk
LEAST = 4  # walks, however short the time


def run(campaign: Campaign) -> list[Fault]:
    """The row of this part."""
    row = Fault("months of virtual time: outages, settings, kills, lost ledgers, an operator, all at once (rounds)")
    walks = kills = files = 0
    rows = dict.fromkeys(KINDS, 0)
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        started, running = 0, set()
        while running or started < LEAST or (campaign.left > 0 and not row.lost):
            while len(running) < workers and not row.lost and (campaign.left > 0 or started < LEAST):
                seed, kind = f"{campaign.seed}/months/{started}", list(KINDS)[started % len(KINDS)]
                running.add(pool.submit(_walk, campaign.folder / f"walk-{started}", seed, kind))
                started += 1
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for one in ended:
                kind, rounds, killed, sent, accounted, wrong = one.result()
                row.tried += rounds
                walks, kills, files = walks + 1, kills + killed, files + sent
                rows[kind] += accounted
                row.lost += wrong
            if row.lost and not running:
                break
    row.figures = {"walks": walks, "kills": kills, "files published": files}
    row.figures |= {f"rows of {kind} sent once": count for kind, count in rows.items()}
    return [row]


def _walk(folder: Path, seed: str, kind: str) -> tuple[str, int, int, int, int, list[str]]:
    """Walk once through exports of one kind, which leaves nothing if all is well.

    Return the kind, the numbers of rounds, kills, files and rows, and what went wrong.
    """
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    logging.disable(logging.CRITICAL)
    walk = Walk(folder, random.Random(seed), DAYS, wild=True, kills=True, kind=kind)
    walk.run()
    wrong = [f"walk {seed} ({kind}): {sentence}" for sentence in walk.accounts()]
    walk.site.stop()
    if not wrong:
        shutil.rmtree(folder)
    return kind, walk.rounds, walk.killed, len(walk.sent), walk.rows, wrong
